"""vasprun.xml of VASP: every ionic step with its energy and forces.

Read here and not by ASE or pymatgen (which the tests hold it against): a torn file keeps its complete steps, a document that declares entities
is refused, and a step whose density did not become self-consistent is a structure without a result.

The energy is the free energy (e_fr_energy), whose derivative the forces are.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from typing import Any

import numpy as np

from fdcore.errors import FormatError, LimitError, StructureError
from fdcore.records import Failure, FloatArray, Structure
from fdcore.structures.limits import Limits
from fdcore.structures.origin import told
from fdcore.structures.text import clean, element

PROGRAM = "VASP"
# Of the hundreds of parameters, those that decide what an energy means.
SETTINGS = ("ENCUT", "ENMAX", "GGA", "METAGGA", "ISPIN", "ISMEAR", "SIGMA", "EDIFF", "LDAU", "IVDW", "LHFCALC")
# VASP's own default for the most iterations of a density.
DEFAULT_NELM = 60
# Large, and not looked at.
_HEAVY = frozenset(("eigenvalues", "dos", "projected", "partial", "projected_kpoints", "dielectricfunction", "kpoints"))
_PIECE = 1 << 18
_DECLARES = re.compile(r"<!\s*(DOCTYPE|ENTITY)", re.IGNORECASE)


def read_vasprun(text: str, limits: Limits) -> Iterator[Structure | Failure]:
    """Each ionic step as a Structure, or a Failure that carries its index. Raises FormatError or LimitError where the rest cannot be read."""
    if _DECLARES.search(text):
        raise FormatError(
            "The file declares a document type or entities, which VASP never writes.",
            "Bring the vasprun.xml as VASP wrote it.",
        )
    run = _Run()
    index = 0
    for node in _calculations(text, run):
        if index >= limits.max_frames:
            raise LimitError(
                f"The file has more than {limits.max_frames:,} steps; the first {limits.max_frames:,} were read.",
                "Bring fewer steps.",
            )
        try:
            yield run.structure(node, index)
        except StructureError as error:
            yield Failure("", error.message, error.hint, index)
        index += 1
    if index == 0:
        raise FormatError("This vasprun.xml holds no ionic step.", "Bring that of a calculation that has ended.")


def _calculations(text: str, run: _Run) -> Iterator[ElementTree.Element]:
    parser = ElementTree.XMLPullParser(("end",))
    try:
        for start in range(0, len(text), _PIECE):
            parser.feed(text[start : start + _PIECE])
            yield from _ended(parser, run)
        parser.close()
        yield from _ended(parser, run)
    except ElementTree.ParseError as error:
        raise FormatError(
            f"The vasprun.xml is torn or damaged at line {error.position[0]:,}: the calculation has not ended, or the file is incomplete.",
            "Let the calculation end, or copy the file again.",
        ) from error


def _ended(parser: ElementTree.XMLPullParser, run: _Run) -> Iterator[ElementTree.Element]:
    events: Any = parser.read_events()
    for _, node in events:
        if node.tag == "calculation":
            yield node
            node.clear()
        else:
            run.hear(node)
            if node.tag in _HEAVY:
                node.clear()


class _Run:
    """What the head of the file says."""

    def __init__(self) -> None:
        self.version = ""
        self.nelm = DEFAULT_NELM
        self.numbers: list[int] = []
        self.settings: dict[str, Any] = {}

    def hear(self, node: ElementTree.Element) -> None:
        if node.tag == "generator":
            self.version = clean(node.findtext("i[@name='version']") or "", 40)
        elif node.tag == "atominfo":
            symbols = [row.findtext("c") or "" for row in node.iterfind("array[@name='atoms']/set/rc")]
            known = {s: element(s) for s in set(symbols)}
            self.numbers = [known[s] or 0 for s in symbols]
        elif node.tag == "kpoints":
            divisions = node.findtext("generation/v[@name='divisions']")
            if divisions:
                self.settings["kpoints"] = "x".join(divisions.split()[:3])
        elif node.tag in ("incar", "parameters"):
            self._parameters(node)

    def _parameters(self, node: ElementTree.Element) -> None:
        for item in node.iter("i"):
            name = (item.get("name") or "").strip()
            value = _value(item)
            if name == "NELM" and isinstance(value, int) and value > 0:
                self.nelm = value
            elif name in SETTINGS and value not in (None, ""):
                self.settings.setdefault(name, value)

    def structure(self, node: ElementTree.Element, index: int) -> Structure:
        n = len(self.numbers)
        if not n or 0 in self.numbers:
            raise FormatError("The vasprun.xml does not say which atoms there are.", "Copy the file again.")
        cell = _rows(node, "structure/crystal/varray[@name='basis']", 3)
        fractions = _rows(node, "structure/varray[@name='positions']", n)
        if cell is None or fractions is None:
            raise FormatError(f"Step {index + 1} has no structure.", "Copy the file again.")
        labels, warnings = self._labels(node, n)
        return Structure(
            numbers=np.array(self.numbers),
            positions=fractions @ cell,
            cell=cell,
            pbc=(True, True, True),
            index=index,
            labels=labels,
            warnings=warnings,
        )

    def _labels(self, node: ElementTree.Element, n: int) -> tuple[dict[str, FloatArray | float | str], tuple[str, ...]]:
        """Energy and forces, or why they are left out."""
        iterations = len(node.findall("scstep"))
        if iterations == 0:
            return {}, ("the step holds no self-consistent density: energy and forces left out",)
        if iterations >= self.nelm:
            why = (
                f"the density did not become self-consistent within {self.nelm} iterations: energy and forces left out"
            )
            return {}, (why,)
        forces = _rows(node, "varray[@name='forces']", n)
        energy = _number(node.findtext("energy/i[@name='e_fr_energy']"))
        if forces is None or energy is None or not np.isfinite(forces).all():
            return {}, ("energy or forces in the file are missing or no numbers: left out",)
        return {
            "energy_eV": energy,
            "forces_eV_per_A": forces,
            "provenance": told(PROGRAM, self.version, {**self.settings, "energy": "free energy (e_fr_energy)"}),
        }, ()


def _rows(node: ElementTree.Element, path: str, count: int) -> FloatArray | None:
    """Rows of three numbers; None unless there are `count` of them."""
    found = node.find(path)
    if found is None:
        return None
    try:
        rows = np.array([[float(t) for t in (v.text or "").split()] for v in found.iterfind("v")], dtype=np.float64)
    except ValueError:
        return None
    return rows if rows.shape == (count, 3) else None


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _value(item: ElementTree.Element) -> Any:
    text, kind = (item.text or "").strip(), item.get("type")
    if kind == "logical":
        return text.startswith("T")
    if kind == "string":
        return clean(text, 40)
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError:
        return None
