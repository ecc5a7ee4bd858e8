"""OUTCAR of VASP: every ionic step with its energy and forces. Positions and forces have five and six decimals there.

The energy is the free energy (TOTEN), whose derivative the forces are. A step whose density did not become self-consistent is a structure
without a result.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from fdcore.errors import FormatError, LimitError, StructureError
from fdcore.records import Failure, FloatArray, Structure
from fdcore.structures.limits import Limits
from fdcore.structures.origin import told
from fdcore.structures.text import clean, element, plural
from fdcore.structures.vasprun import PROGRAM

_FLOAT = re.compile(r"[-+]?\d+\.\d+")
_SETTING = re.compile(r"^\s*(ENCUT|ISPIN|GGA|ISMEAR|SIGMA|EDIFF|LDAU|IVDW)\s*=\s*([^\s;]+)")
_SMEARING = re.compile(r"ISMEAR =\s*(-?\d+);\s*SIGMA\s*=\s*([\d.]+)")
_TOTEN = re.compile(r"^\s*free  energy\s+TOTEN\s*=\s*(\S+)\s*eV")
_POSITIONS = re.compile(r"^\s*POSITION\s+TOTAL-FORCE \(eV/Angst\)")
_CONVERGED = "aborting loop because EDIFF is reached"


def read_outcar(text: str, limits: Limits) -> Iterator[Structure | Failure]:
    """Each ionic step as a Structure, or a Failure that carries its index. Raises FormatError or LimitError where the rest cannot be read."""
    lines = text.split("\n")
    run = _Run(lines[0] if lines else "")
    at = index = 0
    while at < len(lines):
        line = lines[at]
        if "direct lattice vectors" in line:
            run.cell = _cell(lines[at + 1 : at + 4])
        elif _POSITIONS.match(line):
            n = sum(run.counts)
            run.rows = _rows(lines[at + 2 : at + 2 + n], n, index)
            at += 1 + n
        elif (energy := _TOTEN.match(line)) is not None and run.rows is not None:
            if index >= limits.max_frames:
                raise LimitError(
                    f"The file has more than {limits.max_frames:,} steps; the first {limits.max_frames:,} were read.",
                    "Bring fewer steps.",
                )
            try:
                yield run.structure(energy[1], index)
            except StructureError as error:
                yield Failure("", error.message, error.hint, index)
            run.rows, run.converged = None, False
            index += 1
        else:
            run.hear(line)
        at += 1
    if run.rows is not None:
        raise FormatError(
            f"The OUTCAR ends within step {index + 1}, before its energy: it is torn, or the calculation has not ended.",
            "Let the calculation end, or copy the file again.",
        )
    if index == 0:
        raise FormatError(
            "This OUTCAR holds no ionic step with its forces.", "Bring that of a calculation that has ended."
        )


class _Run:
    """What has been read so far."""

    def __init__(self, first_line: str) -> None:
        version = re.match(r"\s*(vasp\.[\w.\-]+)", first_line)
        self.version = clean(version[1].removeprefix("vasp."), 40) if version else ""
        self.species: list[int | None] = []
        self.counts: list[int] = []
        self.settings: dict[str, Any] = {}
        self.cell: FloatArray | None = None
        self.rows: FloatArray | None = None
        self.converged = False

    def hear(self, line: str) -> None:
        if _CONVERGED in line:
            self.converged = True
        elif "VRHFIN" in line:
            self.species.append(element(line.partition("=")[2].partition(":")[0]))
        elif "ions per type" in line:
            self.counts = [int(t) for t in line.partition("=")[2].split() if t.isdigit() and len(t) < 8]
        elif (both := _SMEARING.search(line)) is not None:
            self._set("ISMEAR", both[1])
            self._set("SIGMA", both[2])
        elif (found := _SETTING.match(line)) is not None:
            self._set(found[1], found[2])

    def _set(self, name: str, value: str) -> None:
        try:
            number = float(value)
            self.settings.setdefault(name, int(number) if number.is_integer() and "." not in value else number)
        except (ValueError, OverflowError):
            self.settings.setdefault(name, clean(value, 40))

    def structure(self, energy: str, index: int) -> Structure:
        assert self.rows is not None
        if len(self.species) != len(self.counts) or None in self.species or not self.counts:
            raise FormatError("The OUTCAR does not say which atoms there are.", "Copy the file again.")
        if self.cell is None:
            raise FormatError(f"Step {index + 1} has no lattice vectors.", "Copy the file again.")
        labels: dict[str, FloatArray | float | str] = {}
        warnings: tuple[str, ...] = ()
        try:
            value = float(energy)
        except ValueError:
            value = np.nan
        if not self.converged:
            warnings = ("the density did not become self-consistent: energy and forces left out",)
        elif not np.isfinite(value) or not np.isfinite(self.rows[:, 3:]).all():
            warnings = ("energy or forces in the file are no numbers: left out",)
        else:
            labels["energy_eV"] = value
            labels["forces_eV_per_A"] = self.rows[:, 3:].copy()
            labels["provenance"] = told(PROGRAM, self.version, {**self.settings, "energy": "free energy (TOTEN)"})
        return Structure(
            numbers=np.repeat(np.array(self.species, dtype=np.int64), self.counts),
            positions=self.rows[:, :3],
            cell=self.cell,
            pbc=(True, True, True),
            index=index,
            labels=labels,
            warnings=warnings,
        )


def _cell(lines: list[str]) -> FloatArray | None:
    rows = [[float(t) for t in _FLOAT.findall(line)][:3] for line in lines]
    return np.array(rows) if len(rows) == 3 and all(len(row) == 3 for row in rows) else None


def _rows(lines: list[str], n: int, index: int) -> FloatArray:
    """Positions and forces (N, 6); NaN where Fortran printed stars for a force."""
    if n == 0:
        raise FormatError("The OUTCAR does not say how many atoms there are.", "Copy the file again.")
    out = np.full((n, 6), np.nan)
    for k in range(n):
        tokens = lines[k].split() if k < len(lines) else []
        try:
            out[k] = [np.nan if t.startswith("*") else float(t) for t in tokens]
        except ValueError as error:
            raise FormatError(
                f"The OUTCAR is cut within the forces of step {index + 1}: {plural(k, 'atom')} of {n:,} are there.",
                "Let the calculation end, or copy the file again.",
            ) from error
    return out
