"""POSCAR and CONTCAR, VASP 4 to 6.

Read here and not by pymatgen or ASE: the format is a page long, the counts are compared with the lines that are there before
anything is made of them, and each error can name its line. The tests hold the reader against both libraries.
"""

from __future__ import annotations

import re

import numpy as np

from fdcore.errors import FormatError, GeometryError, LimitError
from fdcore.records import FloatArray, Structure
from fdcore.structures.limits import Limits
from fdcore.structures.text import HEAVY_HYDROGEN, element, number, plural, quote

MAX_LINE = 20_000


def read_poscar(text: str, limits: Limits) -> Structure:
    """The one structure of a POSCAR or CONTCAR; velocities and what else follows the positions is left alone.

    Raises FormatError, LimitError or GeometryError.
    """
    lines = [line[:MAX_LINE] for line in text.split("\n")]
    if len(lines) < 7:
        raise FormatError(
            f"A POSCAR has at least 7 lines, this one has {len(lines)}.", "Check that the file was saved completely."
        )
    warnings: list[str] = []
    cell = _cell(lines)
    names, at = _names_line(lines)
    counts = _counts(lines[at], at)
    n = sum(counts)
    if n > limits.max_atoms:
        raise LimitError(
            f"The POSCAR declares {n:,} atoms; at most {limits.max_atoms:,} are read here.", "Use a smaller cell."
        )
    at += 1
    if at < len(lines) and lines[at].strip()[:1] in ("s", "S"):
        at += 1
    mode = lines[at].strip()[:1] if at < len(lines) else ""
    rows = lines[at + 1 : at + 1 + n]
    present = next((i for i, row in enumerate(rows) if not row.strip()), len(rows))
    if present < n:
        raise FormatError(
            f"The POSCAR declares {n:,} atoms but has only {present:,} position lines.",
            "Correct the counts in the line above the positions, or save the file again.",
        )
    positions = np.array([_three(row, at + 1 + i, f"the position of atom {i + 1}") for i, row in enumerate(rows)])
    positions = positions.reshape(-1, 3)
    numbers = _numbers(names, counts, rows, lines[0], warnings)
    scaled, factor = _scaled(cell, lines[1])
    # VASP takes C, c, K, k for Cartesian and everything else for direct.
    positions = positions * factor if mode in ("C", "c", "K", "k") and mode else positions @ scaled
    return Structure(np.array(numbers), positions, scaled, (True, True, True), warnings=tuple(warnings))


def _three(line: str, at: int, what: str) -> list[float]:
    tokens = line.split()[:3]
    try:
        if len(tokens) == 3:
            return [number(t) for t in tokens]
    except ValueError:
        pass
    raise FormatError(
        f"Line {at + 1} should hold three numbers for {what} but reads {quote(line)}.",
        "Check that the counts fit the lines and that a point is the decimal sign.",
    )


def _cell(lines: list[str]) -> FloatArray:
    return np.array([_three(lines[2 + i], 2 + i, f"cell vector {'abc'[i]}") for i in range(3)])


def _scaled(cell: FloatArray, line: str) -> tuple[FloatArray, FloatArray | float]:
    """The cell in Å and what Cartesian positions are multiplied by: one factor, minus the volume, or three factors."""
    values: list[float] = []
    for token in line.split()[:3]:
        try:
            values.append(number(token))
        except ValueError:
            break
    if not values:
        raise FormatError(f"Line 2 should hold the scaling factor but reads {quote(line)}.", "Usually it is 1.0.")
    if len(values) == 3 and all(v > 0 for v in values):
        return cell * np.array(values), np.array(values)
    if len(values) == 3:
        raise GeometryError(f"The scaling factors in line 2 are {quote(line)}.", "Three factors must all be above 0.")
    factor = values[0]
    if factor == 0 or not np.isfinite(factor):
        raise GeometryError(
            f"The scaling factor in line 2 is {factor:g}.", "Usually it is 1.0; minus a volume in Å³ works too."
        )
    if factor > 0:
        return cell * factor, factor
    volume = abs(float(np.linalg.det(cell))) if np.isfinite(cell).all() and np.abs(cell).max() < 1e50 else 0.0
    if volume == 0:
        raise GeometryError(
            "The cell has no volume to be scaled.", "Give three cell vectors that do not lie in one plane."
        )
    scale = float((-factor / volume) ** (1 / 3))
    return cell * scale, scale


def _bare(token: str) -> str:
    """Fe out of Fe_pv, Fe/1a2b3c4d (the POTCAR hash of VASP 6.4) and Fe2+."""
    return re.split(r"[_/:\d+-]", token, maxsplit=1)[0]


def _names_line(lines: list[str]) -> tuple[list[str] | None, int]:
    """The species of line 6 and the line that holds the counts; None for VASP 4, which has no such line."""
    tokens = lines[5].split("!")[0].split("#")[0].split()
    if not tokens:
        raise FormatError("Line 6 of the POSCAR is empty.", "It should name the elements, e.g. “Na Cl”.")
    return (None, 5) if re.fullmatch(r"\d+", tokens[0]) else (tokens, 6)


def _counts(line: str, at: int) -> list[int]:
    counts: list[int] = []
    for token in line.split():
        if not re.fullmatch(r"\d{1,12}", token):
            break
        counts.append(int(token))
    if not counts or sum(counts) == 0:
        raise FormatError(
            f"Line {at + 1} should hold the number of atoms of each element but reads {quote(line)}.",
            "Write one count per element, e.g. “4 4”.",
        )
    return counts


def _numbers(
    names: list[str] | None, counts: list[int], rows: list[str], comment: str, warnings: list[str]
) -> list[int]:
    if names is not None:
        if len(names) < len(counts):
            raise FormatError(
                f"The POSCAR names {plural(len(names), 'element')} ({quote(' '.join(names))}) but gives {plural(len(counts), 'count')}.",
                "Give one count per element.",
            )
        per_kind = _elements(names[: len(counts)], warnings)
        if len(names) > len(counts):
            # Trailing words without a count are a comment, unless they are elements.
            extra = [t for t in names[len(counts) :] if element(_bare(t))]
            if extra:
                raise FormatError(
                    f"The POSCAR names {plural(len(names), 'element')} but gives {plural(len(counts), 'count')}.",
                    "Give one count per element.",
                )
        return np.repeat(per_kind, counts).tolist()
    last = [row.split()[-1] if len(row.split()) > 3 else "" for row in rows]
    if all(element(_bare(t)) for t in last):
        return _elements(last, warnings)
    tokens = comment.replace(",", " ").split()
    known = [t for t in tokens if element(_bare(t)) and re.fullmatch(r"[A-Z][a-z]?", _bare(t))]
    if len(known) == len(counts) and (len(tokens) == len(counts) or tokens[: len(counts)] == known):
        warnings.append("element names taken from the comment line")
        return np.repeat(_elements(known, warnings), counts).tolist()
    raise FormatError(
        f"The POSCAR (VASP 4 style) does not name its {plural(len(counts), 'element')}.",
        "Insert a line with the element names above the counts, e.g. “Na Cl”.",
    )


def _elements(names: list[str], warnings: list[str]) -> list[int]:
    out: list[int] = []
    for name in names:
        z = element(_bare(name))
        if z is None:
            raise FormatError(
                f"{quote(name)} is no element.", "Write the elements' symbols above the counts, e.g. “Na Cl”."
            )
        out.append(z)
    if any(_bare(name).capitalize() in HEAVY_HYDROGEN for name in names):
        warnings.append("deuterium read as hydrogen")
    return out
