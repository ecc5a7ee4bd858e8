"""Reference results of structures: a record that never loses where it comes from, and the search for the structure that it belongs to.

A structure has a label, has none yet, or has failed to get one; the last two are never numbers. Everything here is a pure function of records.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from fdcore.errors import FdcoreError, FormatError, UsageError
from fdcore.records import Failure, FloatArray, Structure, frozen_array
from fdcore.spec import canonical

# How far (Å) files move an atom or a cell vector by rounding: OUTCAR prints five decimals, extended xyz eight.
TOLERANCE_A = 2e-5
# Two results for one structure that differ by more than files round are a contradiction: eV and eV/Å.
SAME_ENERGY_EV, SAME_FORCE_EV_PER_A = 1e-5, 1e-5
# A second structure as near as this many times the nearest (plus the tolerance) makes a match ambiguous.
CLEARLY_NEARER = 4.0
# How the result of a file is told from one that was computed here.
FROM_FILE = "file"


@dataclass(frozen=True)
class Provenance:
    """Where a label comes from.

    reference : name of the reference (`fdcore.reference`), or what a file says of itself ("VASP"); "file" where it says nothing.
    version, settings : of the reference; empty where not known. `details`: what was decided for this structure.
    made_at : when it was computed, ISO 8601 in UTC; empty where not known. `file`: the file that brought it, empty for none.
    """

    reference: str
    version: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    made_at: str = ""
    file: str = ""

    def __post_init__(self) -> None:
        for name in ("settings", "details"):
            value = getattr(self, name)
            canonical(dict(value))
            object.__setattr__(self, name, MappingProxyType(dict(value)))

    def to_json(self) -> str:
        """Canonical JSON."""
        document = {name: getattr(self, name) for name in self.__dataclass_fields__}
        document["settings"], document["details"] = dict(self.settings), dict(self.details)
        return canonical(document)

    @classmethod
    def from_json(cls, text: str) -> Provenance:
        """Raises FormatError for anything that `to_json` would not have written."""
        try:
            document = json.loads(text)
            if not isinstance(document, dict):
                raise TypeError("no table")
            strings = ("reference", "version", "made_at", "file")
            if not all(isinstance(document.get(name, ""), str) for name in strings):
                raise TypeError("a name that is no text")
            return cls(**document)
        except (ValueError, TypeError) as error:
            raise FormatError("The origin of a label cannot be read.", "Write the labels again.") from error

    @property
    def method(self) -> str:
        """Reference, version and settings in a line: labels with another one of these do not belong into one data set."""
        how = ", ".join(f"{k} {v}" for k, v in self.settings.items())
        return " ".join(filter(None, (self.reference, self.version))) + (f" ({how})" if how else "")


@dataclass(frozen=True)
class Label:
    """A reference result: energy in eV (None where only forces are known), forces_reference (N, 3) in eV/Å, both finite."""

    energy: float | None
    forces_reference: FloatArray
    provenance: Provenance

    def __post_init__(self) -> None:
        object.__setattr__(self, "forces_reference", frozen_array(self.forces_reference))
        shape = self.forces_reference.shape
        if len(shape) != 2 or shape[1] != 3:
            raise UsageError(f"A label has forces of shape {shape}.", "Three components for each atom are needed.")
        if not np.isfinite(self.forces_reference).all() or (self.energy is not None and not np.isfinite(self.energy)):
            raise UsageError("A label holds numbers that are not finite.", "Leave the structure without a label.")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Label):
            return NotImplemented
        return (
            (self.energy, self.provenance) == (other.energy, other.provenance)
            and self.forces_reference.shape == other.forces_reference.shape
            and bool((self.forces_reference == other.forces_reference).all())
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Labelled:
    """A structure with its label, the reason why it has none, or None: nobody has asked yet."""

    structure: Structure
    label: Label | FdcoreError | None = None

    def __post_init__(self) -> None:
        if isinstance(self.label, Label) and len(self.label.forces_reference) != self.structure.n_atoms:
            raise UsageError(
                f"A label for {len(self.label.forces_reference)} atoms does not belong to {self.structure.formula}.",
                "Give one force for each atom.",
            )


@dataclass(frozen=True)
class LabelledSet:
    """Structures in their order, each with its label or without."""

    items: tuple[Labelled, ...]

    @classmethod
    def of(cls, structures: Iterable[Structure]) -> LabelledSet:
        """With the results that the structures' files brought along."""
        return cls(tuple(Labelled(s, label_of_file(s)) for s in structures))

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Labelled]:
        return iter(self.items)

    @property
    def structures(self) -> tuple[Structure, ...]:
        return tuple(item.structure for item in self.items)

    @property
    def labelled(self) -> tuple[tuple[Structure, Label], ...]:
        """What can be trained on."""
        return tuple((i.structure, i.label) for i in self.items if isinstance(i.label, Label))

    @property
    def unlabelled(self) -> tuple[Structure, ...]:
        """Those that nobody has labelled or tried to."""
        return tuple(i.structure for i in self.items if i.label is None)

    @property
    def without(self) -> tuple[Structure, ...]:
        """All without a label, failed ones too."""
        return tuple(i.structure for i in self.items if not isinstance(i.label, Label))

    @property
    def failed(self) -> tuple[Failure, ...]:
        """Those that could not be labelled, each with its reason."""
        return tuple(
            Failure(i.structure.file, i.label.message, i.label.hint, i.structure.index)
            for i in self.items
            if isinstance(i.label, FdcoreError)
        )

    @property
    def methods(self) -> tuple[str, ...]:
        """The different methods of its labels; more than one do not belong together."""
        return tuple(dict.fromkeys(label.provenance.method for _, label in self.labelled))

    def with_labels(self, found: Mapping[int, Label | FdcoreError]) -> LabelledSet:
        """With these at these positions. A label is kept where the new one is a failure."""
        return LabelledSet(
            tuple(
                item
                if k not in found or (isinstance(item.label, Label) and isinstance(found[k], FdcoreError))
                else replace(item, label=found[k])
                for k, item in enumerate(self.items)
            )
        )


def label_of_file(structure: Structure) -> Label | None:
    """The reference result that came with the structure's file; None where there are no forces in it."""
    forces: Any = structure.labels.get("forces_eV_per_A")
    if forces is None:
        return None
    energy: Any = structure.labels.get("energy_eV")
    told: Any = structure.labels.get("provenance")
    known = Provenance(FROM_FILE) if told is None else Provenance.from_json(told)
    return Label(None if energy is None else float(energy), forces, replace(known, file=structure.file))


def structure_with(structure: Structure, label: Label) -> Structure:
    """The structure as if its file had brought the label: what travels into a run."""
    energy = {} if label.energy is None else {"energy_eV": label.energy}
    told = {"forces_eV_per_A": label.forces_reference, "provenance": label.provenance.to_json()}
    return replace(structure, labels={**energy, **told})


# ---- which structure a result belongs to ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """A frame that is the structure at `position`: how far apart they are (Å, 0 for the same content), and whether its atoms had to be
    put into the structure's order."""

    position: int
    frame: int
    distance_A: float
    reordered: bool = False


@dataclass(frozen=True)
class Matching:
    """Labels by the position of their structure (an FdcoreError where frames contradict each other), how each was found, and the frames
    that belong to none, each with the reason."""

    labels: Mapping[int, Label | FdcoreError]
    matches: tuple[Match, ...]
    unused: tuple[Failure, ...]

    @property
    def rounded(self) -> tuple[Match, ...]:
        """Those that are the same but for what files round."""
        return tuple(m for m in self.matches if m.distance_A > 0)

    @property
    def text(self) -> str:
        """What was matched and how, in one sentence."""
        n = len({m.position for m in self.matches})
        out = f"{n} structure{'' if n == 1 else 's'} found in the labelled files"
        if self.rounded:
            out += f", {len(self.rounded)} but for rounding (at most {max(m.distance_A for m in self.rounded):.1e} Å)"
        reordered = sum(m.reordered for m in self.matches)
        if reordered:
            out += f", {reordered} with its atoms put back into order"
        return out + (f"; {len(self.unused)} labelled frames belong to none" if self.unused else "") + "."


def match(
    structures: Sequence[Structure],
    frames: Sequence[Structure],
    *,
    tolerance_A: float = TOLERANCE_A,
    reorder: bool = False,
) -> Matching:
    """Find for every frame the structures that it is, and give them its label.

    A frame is a structure when both have the same elements in the same order, the same periodicity, no contradicting charge or
    multiplicity, and cell vectors and atoms that differ by no more than `tolerance_A` (Å); for a crystal, an atom and its image in another
    cell are the same. Another choice of cell vectors is another structure. With `reorder`, atoms may stand in another order
    (VASP sorts them by element); which is which then follows from where they are, and the forces are put into the structure's order.

    One frame labels every copy of its structure. A frame that is as near to two different structures labels neither; two frames
    that contradict each other make the structure's label an error.
    """
    candidates = _Candidates(structures, tolerance_A, reorder)
    found: dict[int, list[tuple[Match, Label]]] = {}
    unused: list[Failure] = []
    for number, frame in enumerate(frames):
        try:
            label = label_of_file(frame)
            if label is None:
                raise FormatError(
                    f"No reference forces{''.join(f' ({w})' for w in frame.warnings)}.",
                    "Bring a file that holds energies and forces of a finished calculation.",
                )
            for position, distance, order in candidates.of(frame):
                own = label if order is None else replace(label, forces_reference=label.forces_reference[order])
                here = Match(position, number, distance, order is not None)
                found.setdefault(position, []).append((here, own))
        except FdcoreError as error:
            unused.append(Failure(frame.file, error.message, error.hint, frame.index))
    labels = {position: _agreed([label for _, label in several]) for position, several in sorted(found.items())}
    matches = tuple(here for several in found.values() for here, _ in several)
    return Matching(labels, tuple(sorted(matches, key=lambda m: (m.position, m.frame))), tuple(unused))


def _agreed(several: Sequence[Label]) -> Label | FdcoreError:
    first = several[0]
    for other in several[1:]:
        apart = float(np.abs(other.forces_reference - first.forces_reference).max())
        both = first.energy is not None and other.energy is not None
        if apart > SAME_FORCE_EV_PER_A or (both and abs(first.energy - other.energy) > SAME_ENERGY_EV):  # pyright: ignore
            return UsageError(
                f"Two labelled frames ({first.provenance.file}, {other.provenance.file}) are this structure and say different things "
                f"(forces differ by {apart:.3g} eV/Å).",
                "Bring the results of one method only.",
            )
    return next((label for label in several if label.energy is not None), first)


class _Candidates:
    """The structures, each content once, by what has to be equal."""

    def __init__(self, structures: Sequence[Structure], tolerance_A: float, reorder: bool) -> None:
        if not 0 < tolerance_A < 0.1:
            raise UsageError(f"A tolerance of {tolerance_A!r} Å does not tell structures apart.", "Use 1e-8 to 0.01 Å.")
        self._tolerance, self._reorder = tolerance_A, reorder
        self._copies: dict[str, list[int]] = {}
        self._alike: dict[tuple[object, ...], list[Structure]] = {}
        self._composed: dict[tuple[object, ...], list[Structure]] = {}
        for position, structure in enumerate(structures):
            copies = self._copies.setdefault(structure.content_id, [])
            if not copies:
                self._alike.setdefault((structure.pbc, structure.numbers.tobytes()), []).append(structure)
                self._composed.setdefault((structure.pbc, structure.formula), []).append(structure)
            copies.append(position)

    def of(self, frame: Structure) -> list[tuple[int, float, np.ndarray | None]]:
        """(position, distance in Å, order of the frame's atoms or None) of every copy of the structure that this frame is. FormatError where
        it is none, or it cannot be told which."""
        if frame.content_id in self._copies:
            return [(position, 0.0, None) for position in self._copies[frame.content_id]]
        alike = [s for s in self._alike.get((frame.pbc, frame.numbers.tobytes()), ()) if _may_be(s, frame)]
        chosen, nearest = self._nearest(alike, _separations(alike, frame))
        if chosen is not None:
            return [(position, nearest, None) for position in self._copies[chosen.content_id]]
        others = [s for s in self._composed.get((frame.pbc, frame.formula), ()) if _may_be(s, frame)]
        orders = [atom_order(s, frame, self._tolerance) for s in others]
        sorted_frames = [frame if o is None else _reordered(frame, o) for o in orders]
        apart = [
            np.inf if o is None else separation(s, f) for s, o, f in zip(others, orders, sorted_frames, strict=True)
        ]
        chosen, distance = self._nearest(others, apart)
        if chosen is not None:
            if not self._reorder:
                raise FormatError(
                    f"{frame.formula}: the atoms of this frame stand in another order than those of the structure that it is.",
                    "Allow it (--reorder) where a program has sorted them, as VASP does.",
                )
            order = orders[next(k for k, s in enumerate(others) if s is chosen)]
            return [(position, distance, order) for position in self._copies[chosen.content_id]]
        how = f"the nearest with these atoms is {nearest:.2g} Å away" if alike else "none has these atoms in this order"
        raise FormatError(
            f"{frame.formula}: this frame is none of the structures ({how}).", "Bring results for these structures."
        )

    def _nearest(
        self, listed: Sequence[Structure], apart: Sequence[float] | FloatArray
    ) -> tuple[Structure | None, float]:
        if not listed:
            return None, np.inf
        order = np.argsort(apart, kind="stable")
        first = float(apart[order[0]])
        if not first <= self._tolerance:
            return None, first
        if len(order) > 1 and apart[order[1]] <= min(self._tolerance, CLEARLY_NEARER * first):
            raise FormatError(
                f"{listed[order[0]].formula}: two different structures are {first:.1e} and {apart[order[1]]:.1e} Å from this frame.",
                "Bring a file that keeps more decimals.",
            )
        return listed[order[0]], first


def _may_be(structure: Structure, frame: Structure) -> bool:
    """Files of many programs are silent on charge and multiplicity; what they say must not contradict."""
    pairs = ((structure.charge, frame.charge), (structure.spin, frame.spin))
    return all(a is None or b is None or a == b for a, b in pairs)


def separation(a: Structure, b: Structure) -> float:
    """The largest difference (Å) between a cell vector or an atom in one and in the other, in the same order; for crystals an atom and its
    image in another cell are the same. Infinite where they have other atoms or another periodicity."""
    if a.pbc != b.pbc or not np.array_equal(a.numbers, b.numbers):
        return np.inf
    return float(_separations([a], b)[0])


def _separations(alike: Sequence[Structure], frame: Structure) -> FloatArray:
    """`separation` of each of these from the frame, all of the frame's atoms and periodicity."""
    if not alike:
        return np.zeros(0)
    differences = np.stack([s.positions for s in alike]) - frame.positions
    if not frame.periodic:
        return np.linalg.norm(differences, axis=2).max(axis=1)
    cells = np.stack([s.cell for s in alike])
    fractions = differences @ np.linalg.inv(cells)
    # Modulo the structure's own cell, which is not rounded: how many cells an atom has been moved by does not matter.
    moved = (fractions - np.round(fractions)) @ cells
    apart = np.linalg.norm(moved, axis=2).max(axis=1)
    return np.maximum(apart, np.linalg.norm(cells - frame.cell, axis=2).max(axis=1))


def _apart(structure: Structure, differences: FloatArray) -> FloatArray:
    """Differences (..., 3) in Å, images of a crystal being the same place."""
    if not structure.periodic:
        return differences
    fractions = differences @ np.linalg.inv(structure.cell)
    return (fractions - np.round(fractions)) @ structure.cell


def atom_order(structure: Structure, frame: Structure, tolerance_A: float = TOLERANCE_A) -> np.ndarray | None:
    """Which atom of the frame is where each of the structure's is (N,), by element and place; None where that is not one to one."""
    if not np.array_equal(np.sort(structure.numbers), np.sort(frame.numbers)) or structure.pbc != frame.pbc:
        return None
    if structure.periodic and np.linalg.norm(structure.cell - frame.cell, axis=1).max() > tolerance_A:
        return None
    order = np.empty(structure.n_atoms, np.int64)
    for k, (z, place) in enumerate(zip(structure.numbers, structure.positions, strict=True)):
        away = np.linalg.norm(_apart(structure, place - frame.positions), axis=1)
        near = np.flatnonzero((away <= tolerance_A) & (frame.numbers == z))
        if len(near) != 1:
            return None
        order[k] = near[0]
    return order if len(np.unique(order)) == len(order) else None


def _reordered(frame: Structure, order: np.ndarray) -> Structure:
    return replace(frame, numbers=frame.numbers[order], positions=frame.positions[order], labels={})
