"""Structures as plain JSON: pymatgen's `as_dict()`, OPTIMADE entries, and ASE's numbers, positions, cell and pbc.

Read here and not by the libraries, which import and call what a dictionary names: nothing but numbers and short texts is taken.
Sources: pymatgen/core/structure.py (`as_dict`); OPTIMADE 1.2, "Structures Entries"; ase/atoms.py (`todict`), ase/io/jsonio.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fdcore.errors import FormatError, LimitError
from fdcore.records import FloatArray, IntArray, Structure
from fdcore.structures.checks import FULL_OCCUPANCY, refuse_partly_occupied
from fdcore.structures.limits import Limits
from fdcore.structures.origin import provenance_of, tags_of
from fdcore.structures.text import HEAVY_HYDROGEN, element, plural, quote, whole

Document = Mapping[str, Any]
Pbc = tuple[bool, bool, bool]

# Where a document keeps its structure beside what else it says of it.
HOLDERS = ("structure", "atoms", "molecule")
# By these a person finds a structure again.
ID_KEYS = ("material_id", "mp_id", "id", "immutable_id", "entry_id", "task_id", "identifier", "jid")
NUMBER_KEYS = ("numbers", "atomic_numbers")
OPTIMADE_KEYS = ("lattice_vectors", "cartesian_site_positions", "species_at_sites")
OPTIMADE_MORE = ("species", "dimension_types", "nperiodic_dimensions", "structure_features")
_CHARGE_KEYS = ("total_charge", "charge")
_SPIN_KEYS = ("spin_multiplicity", "multiplicity", "spin")
# What is read as something else, or says nothing that the atoms do not say.
_READ = frozenset(
    [
        *(*_CHARGE_KEYS, *_SPIN_KEYS, *HOLDERS, *NUMBER_KEYS, "@module", "@class", "@version", "type", "elements"),
        *(
            "nelements",
            "nsites",
            "nperiodic_dimensions",
            "last_modified",
            "unique_id",
            "ctime",
            "mtime",
            "user",
            "volume",
        ),
        *(f"chemical_formula_{kind}" for kind in ("anonymous", "descriptive", "hill", "reduced")),
    ]
)
_FORMS = "Bring pymatgen's `structure.as_dict()`, OPTIMADE structures, or numbers, positions, cell and pbc."
_SPECIES = re.compile(r"([A-Za-z]{1,2})(\d{0,2}(\.\d{1,4})?[+-])?$")
# Sums of oxidation states such as 2.67 are as near to whole numbers as they are written.
_NEARLY_WHOLE = 1e-3


def holds_structure(document: Any) -> bool:
    """Whether this is a dictionary in one of the forms that are read, or holds one."""
    return isinstance(document, Mapping) and _reader_of(_inner(document)) is not None


def structure_of(document: Any, index: int, limits: Limits) -> Structure:
    """One dictionary of plain JSON as a Structure; it is not validated.

    Raises FormatError for what is no structure, disordered or damaged, LimitError for too many atoms.
    """
    if not isinstance(document, Mapping):
        raise FormatError("This is no JSON object ({…}).", _FORMS)
    inner = _inner(document)
    reader = _reader_of(inner)
    if reader is None:
        keys = ", ".join(map(str, list(document)[:6])) or "none"
        raise FormatError(f"This JSON object is no structure that is read here; its keys: {quote(keys, 80)}.", _FORMS)
    return replace(reader(inner, _told(document, inner), limits), index=index)


def _inner(document: Document) -> Document:
    if _reader_of(document) is None:
        for key in HOLDERS:
            if isinstance(document.get(key), Mapping):
                return document[key]
    return document


def _reader_of(document: Document) -> Callable[[Document, Document, Limits], Structure] | None:
    if "sites" in document and ("lattice" in document or "Molecule" in str(document.get("@class"))):
        return _pymatgen
    if isinstance(document.get("sites"), list) and "charge" in document:
        return _pymatgen
    attributes = document.get("attributes")
    if "cartesian_site_positions" in (attributes if isinstance(attributes, Mapping) else document):
        return _optimade
    if any(key in document for key in (*NUMBER_KEYS, "symbols")) and "positions" in document:
        return _ase
    return None


def _told(document: Document, inner: Document) -> dict[str, Any]:
    """What is said beside the atoms, in short values; first that by which the structure is found again."""
    parts: list[Any] = [document, inner]
    for part in (document, inner):
        parts += [part.get(key) for key in ("attributes", "properties", "info", "key_value_pairs", "data")]
    told: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items() if isinstance(part, Mapping) else ():
            if isinstance(value, str | int | float):
                told.setdefault(str(key), value)
    return {key: told[key] for key in dict.fromkeys([*(key for key in ID_KEYS if key in told), *told])}


# --- pymatgen ------------------------------------------------------------------------------------------------------------


def _pymatgen(document: Document, told: Document, limits: Limits) -> Structure:
    sites = _list(document["sites"], "sites", limits)
    lattice, warnings = document.get("lattice"), list[str]()
    cell, pbc = np.zeros((3, 3)), (False, False, False)
    if lattice is not None:
        if not isinstance(lattice, Mapping):
            raise FormatError("The lattice of this structure is no JSON object.", _FORMS)
        cell, pbc = (
            _array(lattice.get("matrix"), (3, 3), "lattice matrix"),
            _pbc(True if lattice.get("pbc") is None else lattice["pbc"]),
        )
    species = [_occupants(site, number) for number, site in enumerate(sites)]
    labels = [str(site.get("label") or "/".join(name for name, _ in s)) for site, s in zip(sites, species, strict=True)]
    numbers, kept = _one_each(species, labels, warnings)
    sites = [sites[i] for i in kept]
    if lattice is not None and all(site.get("abc") is not None for site in sites):
        positions = _array([site["abc"] for site in sites], (len(sites), 3), "coordinates (abc)") @ cell
    else:
        positions = _array([site.get("xyz") for site in sites], (len(sites), 3), "coordinates (xyz)")
    return Structure(
        numbers,
        positions,
        cell,
        pbc,
        charge=_charge_of_sites(document, sites, warnings),
        spin=_multiplicity(document.get("spin_multiplicity"), warnings),
        warnings=tuple(warnings),
        tags=tags_of(told, _READ),
    )


def _occupants(site: Any, number: int) -> list[tuple[str, float]]:
    """The species on a site, each with its occupancy."""
    listed = site.get("species") if isinstance(site, Mapping) else None
    if not isinstance(listed, list) or not listed or not all(isinstance(s, Mapping) and "element" in s for s in listed):
        raise FormatError(f"Site {number + 1} names no species.", _FORMS)
    return [(str(s["element"]), _share(s.get("occu"))) for s in listed]


def _charge_of_sites(document: Document, sites: Sequence[Document], warnings: list[str]) -> int | None:
    charge = document.get("charge")
    if not isinstance(charge, int | float):
        return None
    states = [s.get("oxidation_state") for site in sites for s in site["species"]]
    formal = any(isinstance(state, int | float) and state for state in states)
    if np.isfinite(charge) and abs(charge - round(charge)) <= _NEARLY_WHOLE:
        if formal and round(charge):
            warnings.append(f"charge {round(charge):+d} e, as the oxidation states of the file add up")
        return _whole(round(charge), "the charge")
    if formal:
        warnings.append(f"the oxidation states of the file add up to {charge:g} e: read without a charge")
        return None
    return _whole(charge, "the charge")


# --- OPTIMADE ------------------------------------------------------------------------------------------------------------


def _optimade(document: Document, told: Document, limits: Limits) -> Structure:
    entry = document["attributes"] if isinstance(document.get("attributes"), Mapping) else document
    told_features = entry.get("structure_features")
    features = told_features if isinstance(told_features, list) else []
    odd = [f for f in features if f in ("implicit_atoms", "site_attachments", "unknown_positions")]
    if odd:
        raise FormatError(
            f"The structure leaves atoms without a place ({quote(', '.join(map(str, odd)), 60)}).",
            "Bring a structure in which every atom has its coordinates.",
        )
    names = [str(name) for name in _list(entry.get("species_at_sites"), "species_at_sites", limits)]
    if "assemblies" in features or entry.get("assemblies"):
        refuse_partly_occupied(names)
    warnings: list[str] = []
    kinds = _kinds(entry.get("species"), warnings)
    for name in set(names) - set(kinds):
        if kinds:
            raise FormatError(f"The species {quote(name)} of a site is not among the species.", _FORMS)
    # Without a list of species, their names are all there is.
    species = [kinds.get(name, [(name, 1.0)]) for name in names]
    numbers, kept = _one_each(species, names, warnings)
    positions = _array(entry["cartesian_site_positions"], (len(names), 3), "cartesian_site_positions")[kept]
    cell, pbc = _optimade_cell(entry, warnings)
    return Structure(numbers, positions, cell, pbc, warnings=tuple(warnings), tags=tags_of(told, _READ))


def _kinds(species: Any, warnings: list[str]) -> dict[str, list[tuple[str, float]]]:
    """The species by name, each with its chemical symbols and their shares."""
    if not species:
        warnings.append("elements taken from the names of the species")
        return {}
    found: dict[str, list[tuple[str, float]]] = {}
    for kind in species if isinstance(species, list) else ():
        symbols = kind.get("chemical_symbols") if isinstance(kind, Mapping) else None
        shares = (kind.get("concentration") or [1.0]) if isinstance(kind, Mapping) else None
        if not isinstance(symbols, list) or not isinstance(shares, list) or len(symbols) != len(shares) or not symbols:
            raise FormatError("A species lacks its chemical_symbols or their concentration.", _FORMS)
        if kind.get("attached"):
            raise FormatError(
                f"The species {quote(str(kind.get('name')))} has atoms attached that have no place.",
                "Bring a structure in which every atom has its coordinates.",
            )
        found[str(kind.get("name"))] = [(str(s), _share(c)) for s, c in zip(symbols, shares, strict=True)]
    return found


def _optimade_cell(entry: Document, warnings: list[str]) -> tuple[FloatArray, Pbc]:
    vectors, types, periods = (entry.get(k) for k in ("lattice_vectors", "dimension_types", "nperiodic_dimensions"))
    if isinstance(vectors, list):
        # A direction that does not repeat may have no vector.
        vectors = [[0, 0, 0] if v is None or (isinstance(v, list) and not any(v)) else v for v in vectors]
    cell = np.zeros((3, 3)) if vectors is None else _array(vectors, (3, 3), "lattice_vectors")
    if types is not None:
        return cell, _pbc(types)
    if periods is not None:
        n = _whole(periods, "nperiodic_dimensions")
        return cell, (n > 0, n > 1, n > 2)
    return cell, _pbc_of(cell, warnings)


# --- ASE -----------------------------------------------------------------------------------------------------------------


def _ase(document: Document, told: Document, limits: Limits) -> Structure:
    warnings: list[str] = []
    key = next((key for key in NUMBER_KEYS if key in document), None)
    listed = _list(_plain(document[key or "symbols"]), key or "symbols", limits)
    if key is None:
        numbers, _ = _one_each([[(str(symbol), 1.0)] for symbol in listed], [str(s) for s in listed], warnings)
    else:
        values = _array(listed, (len(listed),), key)
        if not (np.isfinite(values).all() and (values == np.rint(values)).all() and (np.abs(values) < 1e6).all()):
            raise FormatError(f"The {key} are not all whole numbers.", "Give one atomic number for each atom.")
        numbers = values.astype(np.int64)
    n = len(listed)
    cell = _cell(_plain(document.get("cell")))
    pbc = _pbc(_plain(document["pbc"])) if document.get("pbc") is not None else _pbc_of(cell, warnings)
    labels: dict[str, FloatArray | float | str] = {}
    _keep(labels, warnings, "energy_eV", document.get("energy"), ())
    _keep(labels, warnings, "forces_eV_per_A", _plain(document.get("forces")), (n, 3))
    if labels and "label_reference" in told:
        labels["provenance"] = provenance_of({k: str(v) for k, v in told.items()})
    charge, spin = _first(told, _CHARGE_KEYS), _first(told, _SPIN_KEYS)
    return Structure(
        numbers,
        _array(_plain(document["positions"]), (n, 3), "positions"),
        cell,
        pbc,
        charge=None if charge is None else _whole(charge, "the charge"),
        spin=_multiplicity(spin, warnings),
        labels=labels,
        warnings=tuple(warnings),
        tags=tags_of(told, _READ),
    )


def _cell(cell: Any) -> FloatArray:
    cell = _plain(cell.get("array")) if isinstance(cell, Mapping) else cell
    if cell is None:
        return np.zeros((3, 3))
    flat = isinstance(cell, list) and len(cell) == 3 and not any(isinstance(row, list) for row in cell)
    return np.diag(_array(cell, (3,), "cell")) if flat else _array(cell, (3, 3), "cell")


def _keep(labels: dict[str, Any], warnings: list[str], key: str, value: Any, shape: tuple[int, ...]) -> None:
    if value is None:
        return
    what = "energy" if key == "energy_eV" else "forces"
    values = _array(value, shape, what)
    if np.isfinite(values).all():
        labels[key] = values if shape else float(values)
    else:
        warnings.append(f"the {what} {'are' if shape else 'is'} not finite: left out")


def _plain(value: Any) -> Any:
    """An array as ASE writes it to JSON, {"__ndarray__": [shape, type, flat values]}, as nested lists."""
    packed = value.get("__ndarray__") if isinstance(value, Mapping) else None
    if packed is None:
        return value
    try:
        shape, _, flat = packed
        return np.array(flat, dtype=object).reshape([int(k) for k in shape]).tolist()
    except (TypeError, ValueError) as error:
        raise FormatError("An array (__ndarray__) does not fit its shape.", "Write the file again with ASE.") from error


# --- what they share -------------------------------------------------------------------------------------------------------


def _one_each(
    species: Sequence[Sequence[tuple[str, float]]], labels: Sequence[str], warnings: list[str]
) -> tuple[IntArray, list[int]]:
    """The atomic number on each site that has an atom, and which sites those are; disorder is refused in the words used for CIF."""
    occupied = [[(name, share) for name, share in s if name != "vacancy" and share > 0] for s in species]
    kept = [i for i, s in enumerate(occupied) if s]
    refuse_partly_occupied(
        [labels[i] for i in kept if len(occupied[i]) > 1 or not FULL_OCCUPANCY <= occupied[i][0][1] <= 1.05]
    )
    if len(kept) < len(species):
        warnings.append(f"left out {plural(len(species) - len(kept), 'empty or dummy site')}")
    names = [occupied[i][0][0] for i in kept]
    known = {name: _element(name) for name in dict.fromkeys(names)}
    for i, name in zip(kept, names, strict=True):
        if known[name] is None:
            raise FormatError(
                f"Site {quote(labels[i])} has the type {quote(name)}, which is no element.",
                "Replace dummy sites and molecule names by atoms, or delete them.",
            )
    if any(name.rstrip("0123456789.+-") in HEAVY_HYDROGEN for name in known):
        warnings.append("deuterium read as hydrogen")
    return np.array([known[name] or 0 for name in names], dtype=np.int64), kept


def _element(name: str) -> int | None:
    """Na, Na+, Fe2.67+."""
    found = _SPECIES.match(name)
    return element(found[1]) if found else None


def _share(value: Any) -> float:
    """An occupancy; 1 where there is none."""
    if value is None:
        return 1.0
    if not isinstance(value, int | float) or not 0 <= value <= 1e6:
        raise FormatError("An occupancy is not a number from 0 to 1.", "Correct it, or choose one ordering.")
    return float(value)


def _list(value: Any, what: str, limits: Limits) -> list[Any]:
    if not isinstance(value, list):
        raise FormatError(f"The structure gives no {what}.", _FORMS)
    if len(value) > limits.max_atoms:
        raise LimitError(
            f"The structure has {len(value):,} atoms; at most {limits.max_atoms:,} are read here.",
            "Use a smaller cell or cut out the part of interest.",
        )
    return value


def _array(value: Any, shape: tuple[int, ...], what: str) -> FloatArray:
    """Numbers in this shape; what is null becomes NaN, which the validation refuses."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"The {what} of the structure are not all numbers.", _FORMS) from error
    if array.shape == (0,) and shape and shape[0] == 0:
        return array.reshape(shape)
    if array.shape != shape:
        given, wanted = (" x ".join(map(str, s)) or "one number" for s in (array.shape, shape))
        raise FormatError(f"The {what} of the structure are {given} numbers, not {wanted}.", _FORMS)
    return array


def _pbc(value: Any) -> Pbc:
    flags = [value] * 3 if isinstance(value, bool) else value
    if not isinstance(flags, list) or len(flags) != 3 or not all(flag in (0, 1) for flag in flags):
        raise FormatError(
            f"pbc {quote(str(value))} is not three times true or false.", "Give pbc as [true, true, true]."
        )
    return bool(flags[0]), bool(flags[1]), bool(flags[2])


def _pbc_of(cell: FloatArray, warnings: list[str]) -> Pbc:
    if not cell.any():
        return False, False, False
    warnings.append("the file gives a cell without pbc: read as periodic")
    return True, True, True


def _multiplicity(value: Any, warnings: list[str]) -> int | None:
    spin = None if value is None else _whole(value, "the spin multiplicity")
    if spin == 0:
        warnings.append("spin=0 in the file read as not given")
    return spin or None


def _whole(value: Any, what: str) -> int:
    return whole(str(value), what)


def _first(told: Document, keys: tuple[str, ...]) -> Any:
    return next((told[key] for key in keys if key in told), None)
