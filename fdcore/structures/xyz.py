"""xyz and extxyz, one or many frames.

Read here and not by ASE: a declared count is compared with the lines that are there before anything is made of it (three
lines that declare a billion atoms cost ASE 76 s), and the frames before a torn one are kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from fdcore.errors import FormatError, LimitError, StructureError
from fdcore.records import Failure, FloatArray, Structure
from fdcore.structures.limits import Limits
from fdcore.structures.origin import provenance_of, tags_of
from fdcore.structures.text import HEAVY_HYDROGEN, capital, element, number, plural, quote, whole

MAX_COMMENT = 100_000
# Every repetition is bounded: a comment of unclosed brackets must not cost the square of its length.
_KEY_VALUE = re.compile(
    r"""([A-Za-z_][\w\-.]{0,63})[ \t]{0,9}=[ \t]{0,9}"""
    r"""("[^"]{0,2000}"|'[^']{0,2000}'|\{[^}]{0,2000}\}|\[[^\]]{0,2000}\]|[^\s"'{\[]\S{0,2000})"""
)
_SYMBOL_COLUMNS = ("species", "symbols", "symbol", "element", "elements")
_NUMBER_COLUMNS = ("z", "numbers", "atomic_numbers")
_POSITION_COLUMNS = ("pos", "positions")
_FORCE_COLUMNS = ("forces_ev_per_a", "forces_reference", "forces", "ref_forces", "force")
_ENERGY_KEYS = ("energy_ev", "energy", "ref_energy")
_CHARGE_KEYS = ("charge", "total_charge")
_SPIN_KEYS = ("spin", "spin_multiplicity", "multiplicity")
_READ = frozenset((*_CHARGE_KEYS, *_SPIN_KEYS))
_LABEL = re.compile(r"([A-Za-z]{1,3})[\d_'*.+-]*$")


@dataclass
class _Columns:
    """Where species, positions and forces stand in an atom line."""

    species: int = 0
    numeric: bool = False
    position: int = 1
    forces: int | None = None
    width: int = 4
    # A result that Force Delta exported: its energy is a model's, not a reference.
    own_result: bool = False


@dataclass(frozen=True)
class _Lines:
    """How the atom lines of a frame are called: by their number in the file, or in the frame."""

    first: int
    of: str = ""

    def __getitem__(self, offset: int) -> str:
        return f"line {self.first + offset}{self.of}"


@dataclass
class _Frame:
    info: dict[str, str]
    columns: _Columns
    warnings: list[str] = field(default_factory=list)


def read_xyz(text: str, limits: Limits, first: int | None = None) -> Iterator[Structure | Failure]:
    """Each frame as a Structure, or a Failure that carries its index; `first` is the index of the first frame of a part of a file, whose
    lines are then counted within their frame.

    Raises FormatError or LimitError where the rest of the file cannot be read.
    """
    lines = text.split("\n")
    end = len(lines)
    while end and not lines[end - 1].strip(" \t\f\x1a"):
        end -= 1
    at, start = 0, first or 0
    index = start
    while at < end:
        if not lines[at].strip():
            at += 1
            continue
        if index - start >= limits.max_frames:
            raise LimitError(
                f"The file has more than {limits.max_frames:,} frames; the first {limits.max_frames:,} were read.",
                "Thin it out, e.g. `ase convert -n ::10 FILE thinned.extxyz`, or split it.",
            )
        n = _count(lines[at], f"Line {at + 1}" if first is None else f"The first line of frame {index + 1:,}")
        there = end - at - 2
        if n > max(there, 0):
            # The comment line may be all that is left of the file's end.
            raise FormatError(
                f"Frame {index + 1:,} declares {n:,} atoms, but only {plural(max(there, 0), 'line')} left: "
                "the file is torn, or its count is wrong.",
                "Correct the count in the frame's first line, or write the file again.",
            )
        try:
            if n > limits.max_atoms:
                raise LimitError(
                    f"Frame {index + 1:,} has {n:,} atoms; at most {limits.max_atoms:,} are read here.",
                    "Use a smaller cell or cut out the part of interest.",
                )
            lead = _Lines(at + 3) if first is None else _Lines(3, f" of frame {index + 1:,}")
            yield _frame(lines[at + 1] if at + 1 < end else "", lines[at + 2 : at + 2 + n], lead, index)
        except StructureError as error:
            yield Failure("", error.message, error.hint, index)
        at += 2 + n
        index += 1


def _count(line: str, where: str) -> int:
    token = line.strip()
    if not re.fullmatch(r"\+?\d{1,18}", token):
        raise FormatError(
            f"{where} should hold a number of atoms but reads {quote(line)}.",
            "The count of the frame before may not match its atom lines; each frame is: count, comment, atom lines.",
        )
    return int(token)


def _frame(comment: str, rows: list[str], lines: _Lines, index: int) -> Structure:
    frame = _head(comment)
    columns, warnings = frame.columns, frame.warnings
    tokens = [row.split() for row in rows]
    for offset, row in enumerate(tokens):
        if len(row) < columns.width:
            raise FormatError(
                f"{capital(lines[offset])} has {len(row)} columns, {columns.width} are needed: {quote(rows[offset])}.",
                "Check that the number of atoms is right and that no line is cut off.",
            )
    positions = _numbers(tokens, columns.position, lines, rows)
    numbers = _species([row[columns.species] for row in tokens], columns.numeric, lines, warnings)
    cell, pbc = _cell(frame.info, warnings)
    labels: dict[str, FloatArray | float | str] = {}
    energy = _first(frame.info, _ENERGY_KEYS)
    if energy is not None and not columns.own_result:
        try:
            value = number(energy)
        except ValueError:
            value = np.nan
        if np.isfinite(value):
            labels["energy_eV"] = value
        else:
            warnings.append("the energy in the file is not a number: left out")
    if columns.forces is not None:
        forces = _numbers(tokens, columns.forces, lines, rows)
        if np.isfinite(forces).all():
            labels["forces_eV_per_A"] = forces
        else:
            warnings.append("the forces in the file are not all finite: left out")
    if labels and "label_reference" in frame.info:
        labels["provenance"] = provenance_of(frame.info)
    charge = _first(frame.info, _CHARGE_KEYS)
    spin = _first(frame.info, _SPIN_KEYS)
    multiplicity = whole(spin, "the spin multiplicity") if spin is not None else None
    if multiplicity == 0:
        # Data sets write spin=0 for "not set"; as 2S + 1 it means nothing.
        warnings.append("spin=0 in the file read as not given")
        multiplicity = None
    return Structure(
        numbers=np.array(numbers, dtype=np.int64),
        positions=positions,
        cell=cell,
        pbc=pbc,
        charge=whole(charge, "the charge") if charge is not None else None,
        spin=multiplicity,
        index=index,
        labels=labels,
        warnings=tuple(warnings),
        tags=tags_of(frame.info, _READ),
    )


def _head(comment: str) -> _Frame:
    if len(comment) > MAX_COMMENT:
        raise LimitError(
            f"The comment line has {len(comment):,} characters; at most {MAX_COMMENT:,} are read.",
            "Shorten the comment line.",
        )
    info: dict[str, str] = {}
    for key, value in _KEY_VALUE.findall(comment):
        info.setdefault(key.lower(), value.strip("\"'{}[]").strip())
    columns = _columns(info["properties"]) if "properties" in info else _Columns()
    return _Frame(info, columns)


def _columns(properties: str) -> _Columns:
    """`species:S:1:pos:R:3:forces:R:3` as column numbers."""
    parts = properties.split(":")
    places: dict[str, tuple[int, str, int]] = {}
    at = 0
    for name, kind, size in zip(parts[::3], parts[1::3], parts[2::3], strict=False):
        if not re.fullmatch(r"[1-9]\d{0,3}", size) or kind.upper() not in ("S", "R", "I", "L"):
            places.clear()
            break
        places.setdefault(name.lower(), (at, kind.upper(), int(size)))
        at += int(size)
    symbols = next((places[name] for name in _SYMBOL_COLUMNS if name in places), None)
    numbers = next((places[name] for name in _NUMBER_COLUMNS if name in places), None)
    position = next((places[name] for name in _POSITION_COLUMNS if name in places), None)
    species = symbols or numbers
    if len(parts) % 3 or species is None or position is None or position[2] != 3:
        raise FormatError(
            f"Properties={quote(properties)} does not describe the atom lines.",
            "It must name a species (or Z) column and three pos columns, e.g. Properties=species:S:1:pos:R:3.",
        )
    forces = next((places[name] for name in _FORCE_COLUMNS if name in places and places[name][2] == 3), None)
    return _Columns(
        species[0], symbols is None, position[0], forces[0] if forces else None, at, "forces_direct" in places
    )


def _numbers(tokens: list[list[str]], column: int, lines: _Lines, rows: list[str]) -> FloatArray:
    try:
        return np.array([[float(t) for t in row[column : column + 3]] for row in tokens]).reshape(-1, 3)
    except ValueError:
        pass
    out = np.empty((len(tokens), 3))
    for i, row in enumerate(tokens):
        try:
            out[i] = [number(t) for t in row[column : column + 3]]
        except ValueError as error:
            raise FormatError(
                f"{capital(lines[i])} should hold three numbers but reads {quote(rows[i])}.",
                "Use a point as the decimal sign, and check that the number of atoms is right.",
            ) from error
    return out


def _species(names: list[str], numeric: bool, lines: _Lines, warnings: list[str]) -> list[int]:
    known = {name: _one_species(name, numeric) for name in dict.fromkeys(names)}
    unknown = [name for name, z in known.items() if z is None]
    if unknown:
        raise FormatError(
            f"{quote(unknown[0])} ({lines[names.index(unknown[0])]}) is no element.",
            "Replace dummy atoms by elements or delete those lines.",
        )
    if any(name.strip().capitalize() in HEAVY_HYDROGEN for name in known):
        warnings.append("deuterium read as hydrogen")
    return [known[name] or 0 for name in names]


def _one_species(name: str, numeric: bool) -> int | None:
    if numeric or name.isdigit():
        z = int(name) if name.isdigit() and len(name) < 4 else 0
        return z if 1 <= z <= 118 else None
    z = element(name)
    # Labels as some programs write them: C1, Fe_2, H12.
    label = _LABEL.match(name) if z is None else None
    return element(label[1]) if label else z


def _cell(info: dict[str, str], warnings: list[str]) -> tuple[FloatArray, tuple[bool, bool, bool]]:
    lattice, axes = info.get("lattice"), info.get("pbc")
    pbc: tuple[bool, bool, bool] | None = None
    if axes is not None:
        flags = re.findall(r"\b(t|true|1|f|false|0)\b", axes.lower())
        flags = flags * 3 if len(flags) == 1 else flags
        if len(flags) != 3:
            raise FormatError(f"pbc={quote(axes)} is not three times T or F.", 'Write pbc="T T T" or pbc="F F F".')
        pbc = (flags[0] in ("t", "true", "1"), flags[1] in ("t", "true", "1"), flags[2] in ("t", "true", "1"))
    if lattice is None:
        if pbc is not None and any(pbc):
            raise FormatError(
                "The frame is periodic (pbc) but gives no Lattice.", 'Add Lattice="ax ay az bx by bz cx cy cz" in Å.'
            )
        return np.zeros((3, 3)), (False, False, False)
    try:
        values = np.array([number(t) for t in lattice.replace(",", " ").split()])
    except ValueError:
        values = np.array([])
    if values.size not in (3, 9):
        raise FormatError(
            f"Lattice={quote(lattice)} is not nine numbers.", 'Write Lattice="ax ay az bx by bz cx cy cz" in Å.'
        )
    cell = np.diag(values) if values.size == 3 else values.reshape(3, 3)
    if pbc is None:
        if not cell.any():
            return np.zeros((3, 3)), (False, False, False)
        warnings.append("the file gives a Lattice without pbc: read as periodic")
        return cell, (True, True, True)
    if not any(pbc) and cell.any():
        warnings.append("pbc is F F F: the Lattice is not used")
    return cell, pbc


def _first(info: dict[str, str], keys: tuple[str, ...]) -> str | None:
    return next((info[key] for key in keys if key in info), None)
