"""CIF: gemmi reads the syntax; see `symmetry` for the expansion."""

from __future__ import annotations

import re
from collections.abc import Iterator

import gemmi
import numpy as np

from fdcore.errors import FormatError, GeometryError, LimitError, StructureError
from fdcore.records import Failure, FloatArray, Structure
from fdcore.structures.checks import FULL_OCCUPANCY, ORDER_IT, check_cell, refuse_partly_occupied
from fdcore.structures.limits import Limits
from fdcore.structures.symmetry import Sites, expand, merge_duplicates, operations, value_of
from fdcore.structures.text import HEAVY_HYDROGEN, element, plural, quote


def read_cif(text: str, limits: Limits) -> Iterator[Structure | Failure]:
    """Each data block with atoms as a Structure, or a Failure with the block's place; blocks without atoms are skipped.

    Raises FormatError where the file is no CIF or has no atoms at all.
    """
    general: list[str] = []
    if not re.search(r"^[ \t]*data_", text, re.IGNORECASE | re.MULTILINE):
        text = "data_pasted\n" + text
    try:
        document = _document(text, general)
    except (ValueError, RuntimeError) as error:
        where = re.match(r"string:(\d+)", str(error))
        line = f" near line {where[1]}" if where else ""
        raise FormatError(
            f"The CIF is broken{line}.", "Open it in the program that wrote it (or VESTA, Mercury) and save it again."
        ) from error
    if len(document) > limits.max_frames:
        raise LimitError(
            f"The CIF has {len(document):,} data blocks; at most {limits.max_frames:,} are read.", "Split the file."
        )
    index = 0
    for block in document:
        if not _has_atoms(block):
            continue
        try:
            yield _structure(block, index, limits, list(general))
        except StructureError as error:
            yield Failure("", error.message, error.hint, index)
        index += 1
    if index == 0:
        raise FormatError(
            "The CIF holds no atom sites.",
            "Check that the download was complete; the atoms stand in an _atom_site loop.",
        )


def _document(text: str, warnings: list[str]) -> gemmi.cif.Document:
    """Databases do write a tag twice, or leave out a value: that alone makes no structure doubtful."""
    try:
        return gemmi.cif.read_string(text)
    except RuntimeError:
        document = gemmi.cif.read_string(text, 0)
        warnings.append("the CIF repeats a tag or leaves a value out: the first one counts")
        return document


def _column(block: gemmi.cif.Block, name: str) -> list[str] | None:
    """A column of the atom_site loop in either spelling, unquoted."""
    for tag in (f"_atom_site_{name}", f"_atom_site.{name}"):
        values = [gemmi.cif.as_string(v) for v in block.find_values(tag)]
        if values:
            return values
    return None


def _has_atoms(block: gemmi.cif.Block) -> bool:
    return any(_column(block, name) for name in ("fract_x", "Cartn_x", "label", "type_symbol"))


def _structure(block: gemmi.cif.Block, index: int, limits: Limits, warnings: list[str]) -> Structure:
    _refuse_other_kinds(block)
    cell = _cell(block)
    # Before the expansion, which needs a cell that can be inverted.
    check_cell(cell, 1)
    sites = _sites(block, limits, warnings)
    rotations, translations = operations(block, warnings)
    numbers, fractional = expand(sites, rotations, translations, cell, limits, warnings)
    numbers, fractional = merge_duplicates(numbers, fractional, cell, limits, warnings)
    _warn_of_missing_elements(block, numbers, warnings)
    return Structure(
        np.array(numbers), fractional @ cell, cell, (True, True, True), index=index, warnings=tuple(warnings)
    )


def _refuse_other_kinds(block: gemmi.cif.Block) -> None:
    if block.find_value("_cell_modulation_dimension"):
        raise FormatError(
            "The CIF describes a modulated structure.", "Bring a commensurate approximant, saved as an ordinary CIF."
        )
    if block.find_values("_space_group_symop_magn_operation.xyz") or block.find_values(
        "_space_group_symop.magn_operation_xyz"
    ):
        raise FormatError(
            "The CIF is magnetic (mcif).", "Save the magnetic cell as an ordinary CIF, without the moments."
        )
    if _column(block, "fract_x") is None:
        kind = "a macromolecular CIF (mmCIF)" if _column(block, "Cartn_x") else "a CIF without fractional coordinates"
        raise FormatError(
            f"This is {kind}.", "Save the structure as an ordinary CIF with _atom_site_fract_x, y and z, or as extxyz."
        )


def _cell(block: gemmi.cif.Block) -> FloatArray:
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    values: list[float] = []
    for name in names:
        text = value_of(block, (f"_cell_{name}", f"_cell.{name}"))
        if text is None and name.startswith("angle"):
            # The dictionary's default for an angle that is not given.
            text = "90"
        value = gemmi.cif.as_number(text) if text else np.nan
        if not np.isfinite(value):
            raise GeometryError(
                f"The CIF gives no usable _cell_{name}{f' ({quote(text)})' if text else ''}.",
                "Add the cell lengths (Å) and angles (°).",
            )
        values.append(value)
    if min(values[:3]) <= 0 or not all(0 < angle < 180 for angle in values[3:]):
        raise GeometryError(
            f"The cell ({', '.join(f'{v:g}' for v in values)}) is impossible.",
            "Lengths must be above 0 Å, angles between 0° and 180°.",
        )
    alpha, beta, gamma = np.radians(values[3:])
    cx, cy = np.cos(beta), (np.cos(alpha) - np.cos(beta) * np.cos(gamma)) / np.sin(gamma)
    cz2 = 1 - cx**2 - cy**2
    if cz2 <= 1e-9:
        raise GeometryError(
            "The three cell angles do not close to a cell with a volume.",
            "Check the cell angles: no one may reach the sum of the others.",
        )
    cell = np.array([[1, 0, 0], [np.cos(gamma), np.sin(gamma), 0], [cx, cy, np.sqrt(cz2)]])
    cell[np.abs(cell) < 1e-15] = 0.0
    return cell * np.array(values[:3])[:, None]


def _sites(block: gemmi.cif.Block, limits: Limits, warnings: list[str]) -> Sites:
    columns = {name: _column(block, f"fract_{name}") for name in "xyz"}
    x = columns["x"] or []
    n = len(x)
    if n > limits.max_atoms:
        raise LimitError(
            f"The CIF lists {n:,} sites; at most {limits.max_atoms:,} atoms are read here.", "Use a smaller cell."
        )
    types, names = _column(block, "type_symbol"), _column(block, "label")
    species = types or names
    if species is None or any(len(c or []) != n for c in (*columns.values(), species)):
        raise FormatError(
            "The atom_site loop lacks a column: it needs a type_symbol or label and fract_x, y, z.",
            "Save the CIF again.",
        )
    labels = names if names and len(names) == n else species
    if types is None:
        warnings.append("elements taken from the site labels")
    fractional = np.array([[gemmi.cif.as_number(v) for v in columns[c] or []] for c in "xyz"]).T
    keep = _really_there(block, labels, warnings)
    formula = _formula_elements(block)
    numbers: list[int] = []
    for i in np.flatnonzero(keep):
        z = _element_of(species[i], labels[i], types is not None, formula)
        if z is None:
            raise FormatError(
                f"Site {quote(labels[i])} has the type {quote(species[i])}, which is no element.",
                "Replace dummy sites and molecule names by atoms, or delete them.",
            )
        numbers.append(z)
    chosen = [labels[i] for i in np.flatnonzero(keep)]
    if any(re.match(r"[DT](?![A-Za-z])", species[i]) for i in np.flatnonzero(keep)):
        warnings.append("deuterium read as hydrogen")
    if not chosen:
        raise GeometryError("No site of the CIF has atoms on it.", "Check the occupancies.")
    bad = ~np.isfinite(fractional[keep]).all(axis=1)
    if bad.any():
        raise GeometryError(
            f"Site {quote(chosen[int(np.argmax(bad))])} has no usable coordinates.",
            "Give fract_x, y and z for every site, or delete sites whose place is not known.",
        )
    return Sites(chosen, numbers, fractional[keep])


def _really_there(block: gemmi.cif.Block, labels: list[str], warnings: list[str]) -> np.ndarray:
    """Which sites hold an atom; partial occupancy and alternative positions are refused."""
    n = len(labels)
    occupancy = np.ones(n)
    values = _column(block, "occupancy")
    if values and len(values) == n:
        occupancy = np.array([gemmi.cif.as_number(v) for v in values])
        occupancy[np.isnan(occupancy)] = 1.0
    keep = occupancy > 0
    flags = _column(block, "calc_flag")
    if flags and len(flags) == n:
        keep &= np.array([f.lower() != "dum" for f in flags])
    partial = [labels[i] for i in np.flatnonzero(keep & ((occupancy < FULL_OCCUPANCY) | (occupancy > 1.05)))]
    refuse_partly_occupied(partial)
    groups = _column(block, "disorder_group")
    if groups and len(groups) == n:
        named = {g for g, k in zip(groups, keep, strict=True) if k and g not in (".", "?", "0", "")}
        if len(named) > 1:
            shown = [lab for lab, g in zip(labels, groups, strict=True) if g in named][:5]
            raise FormatError(
                f"The CIF is disordered: {quote(', '.join(shown), 60)} have alternative positions.", ORDER_IT
            )
    if not keep.all():
        warnings.append(f"left out {plural(int((~keep).sum()), 'empty or dummy site')}")
    return keep


def _formula_elements(block: gemmi.cif.Block) -> set[int]:
    text = value_of(block, ("_chemical_formula_sum", "_chemical_formula.sum")) or ""
    return {z for z in (element(m) for m in re.findall(r"[A-Z][a-z]?", text[:2000])) if z}


def _element_of(species: str, label: str, typed: bool, formula: set[int]) -> int | None:
    """Na out of Na1+, NA, Na+; a bare label such as CA1 is read with the help of the formula."""
    # A type is a symbol and perhaps a charge; H2O is not hydrogen. A label may end in anything: O12B.
    letters = re.match(r"([A-Za-z]+)[\d.+\-'_*()]*$" if typed else r"([A-Za-z]+)", species)
    if letters is None:
        return None
    word = letters[1]
    if typed:
        # More letters than a symbol has, or a word such as Wat, is not guessed at.
        return element(word) if len(word) <= 2 else None
    options = [z for z in (element(word[:2]) if len(word) > 1 else None, element(word[0])) if z]
    if len(word) > 1 and word[1].islower() and len(word) == 2:
        return element(word)
    in_formula = [z for z in options if z in formula]
    if in_formula:
        return in_formula[0]
    return options[0] if options and len(word) <= 2 else (element(word[0]) if len(word) == 1 else None)


def _warn_of_missing_elements(block: gemmi.cif.Block, numbers: list[int], warnings: list[str]) -> None:
    """A published CIF often leaves out the hydrogen atoms: its formula knows."""
    from ase.data import chemical_symbols

    missing = _formula_elements(block) - set(numbers) - set(HEAVY_HYDROGEN.values() if 1 in numbers else ())
    if missing:
        names = ", ".join(chemical_symbols[z] for z in sorted(missing))
        warnings.append(f"the formula names {names}, but no such site is given")
