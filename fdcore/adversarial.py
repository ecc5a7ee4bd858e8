"""What a recorded attack says: every way up, and the dataset that was chosen from them. Pure functions of tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdcore import delta
from fdcore.attack.selection import Selected, choose, rises
from fdcore.attack.settings import Choice
from fdcore.human import three_digits
from fdcore.records import Structure
from fdcore.spec import Spec
from fdcore.store.series import open_series, read_notes, read_table
from fdcore.tasks.attack import AttackParameters
from fdcore.units import KB

Array = NDArray[np.float64]
TASK = "attack"
# The temperature (K) of the Boltzmann weight that is reported where none was asked for: a hot simulation, far from decomposition.
WEIGHT_TEMPERATURE_K = 1000.0
# Positions are what extended xyz can write (Å): a file that is read back is the same structure, with the same content id.
DECIMALS = 8
# How an end is called; what is left unsaid is in the note.
ENDINGS = {
    "steps": "all steps done",
    "plateau": "U_Delta stopped rising",
    "closest": "two atoms too close",
    "window": "energy window reached",
    "force": "force too large",
    "no-gradient": "nowhere to go",
    "failed": "could not be evaluated",
}


@dataclass(frozen=True)
class Origin:
    """A given structure as the attack began (relaxed where that was asked for): its energy (eV), U_Delta (eV/Å), both forces (N, 3)
    eV/Å. `relaxed`: where its relaxation ended, in words."""

    parent: int
    structure: Structure
    energy: float
    force_delta: float
    closest_share: float
    forces_direct: Array
    forces_conservative: Array
    relaxed: str = ""
    problem: str = ""

    @property
    def force_delta_per_atom(self) -> Array:
        """u_i (N,) eV/Å."""
        return delta.force_delta_per_atom(self.forces_direct, self.forces_conservative)


@dataclass(frozen=True)
class Found:
    """One structure that the attack visited, with all that a dataset says of it. `rise`: U_Delta over that of the origin, infinite where
    that is zero; `weight`: exp(-(E - E_0) / N k T)."""

    row: int
    start: int
    parent: int
    step: int
    structure: Structure
    energy: float
    above_eV_per_atom: float
    force_delta: float
    rise: float
    closest_A: float
    closest_share: float
    fmax: float
    moved_A: float
    weight: float
    forces_direct: Array
    forces_conservative: Array

    @property
    def force_delta_per_atom(self) -> Array:
        """u_i (N,) eV/Å."""
        return delta.force_delta_per_atom(self.forces_direct, self.forces_conservative)


@dataclass(frozen=True)
class Climb:
    """The way of one start: columns per step, why it was displaced at random (empty: it was not), and how it ended."""

    start: int
    parent: int
    rows: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]]
    rattled: str = ""
    reason: str = ""
    text: str = ""


@dataclass(frozen=True)
class Adversarial:
    """A recorded attack, whole or so far."""

    spec: Spec
    structures: tuple[Structure, ...]
    origins: Mapping[int, Origin]
    steps: Mapping[str, NDArray[Any]]
    notes: tuple[Mapping[str, Any], ...]
    result: Mapping[str, Any] | None
    folder: Path | None
    units: Mapping[int, float] = field(default_factory=dict)

    @property
    def parameters(self) -> AttackParameters:
        return AttackParameters.of(self.spec)

    @property
    def all_parameters(self) -> dict[str, Any]:
        """Every parameter as it was in force, those at their default too. alpha and beta are None where each start had its own."""
        known = self.parameters
        return {f.name: getattr(known, f.name) for f in fields(known)} | {"starts": self.starts}

    @property
    def n_steps(self) -> int:
        """Structures visited so far."""
        return len(self.steps["step"]) if self.steps else 0

    @property
    def starts(self) -> int:
        return self.parameters.starts_for(len(self.structures))

    @property
    def temperature_K(self) -> float:
        """Of the weights that are reported."""
        return self.parameters.temperature_K or WEIGHT_TEMPERATURE_K

    @cached_property
    def rises(self) -> Array:
        """U_Delta over that of the origin, per visited structure; infinite where that is rounding."""
        if not self.steps:
            return np.zeros(0)
        return rises(self.steps["force_delta_eV_per_A"], self.steps["parent"], self._origin_force_deltas)

    @property
    def _origin_force_deltas(self) -> dict[int, float]:
        return {parent: origin.force_delta for parent, origin in self.origins.items()}

    @cached_property
    def climbs(self) -> tuple[Climb, ...]:
        """Every start that has begun."""
        if not self.steps:
            return ()
        rattled = {n["start"]: n["text"] for n in self.notes if "rattled_A" in n}
        ends = {n["start"]: n for n in self.notes if "ended" in n}
        out = []
        for start in np.unique(self.steps["start"]):
            rows = np.flatnonzero(self.steps["start"] == start)
            columns = {k: v[rows] for k, v in self.steps.items() if k != "environments"}
            end = ends.get(int(start), {})
            out.append(
                Climb(
                    int(start),
                    int(columns["parent"][0]),
                    rows,
                    columns,
                    rattled.get(int(start), ""),
                    str(end.get("ended", "")),
                    str(end.get("text", "")),
                )
            )
        return tuple(out)

    @property
    def endings(self) -> dict[str, int]:
        """How many starts ended how, in the order of ENDINGS."""
        reasons = [n["ended"] for n in self.notes if "ended" in n]
        return {name: reasons.count(name) for name in ENDINGS if name in reasons}

    @cached_property
    def selected(self) -> Selected:
        """The dataset that the spec asks for, as far as it has been visited."""
        return self.choose(self.parameters.choice())

    def choose(self, choice: Choice) -> Selected:
        """Another dataset from the same structures."""
        if not self.n_steps:
            return Selected((), (), 0, 0)
        return choose(self.steps, self._origin_force_deltas, self.units, choice)

    def name_of(self, parent: int) -> str:
        """The file of a given structure, with its frame where there are several."""
        structure = self.structures[parent]
        several = sum(s.file == structure.file for s in self.structures) > 1
        return structure.file + (f":{structure.index}" if several else "")


def read(
    folder: Path | None, spec: Spec, structures: Sequence[Structure], result: Mapping[str, Any] | None
) -> Adversarial:
    """What an attempt's folder holds so far (None: nothing yet); `result` is what the task returned, if it has."""
    if folder is None:
        return Adversarial(spec, tuple(structures), {}, {}, (), result, None)
    # In this order: what a later table points to was written before it.
    steps, rows = read_table(folder, "steps"), read_table(folder, "origins")
    notes = tuple(read_notes(folder))
    origins = {}
    relaxed = {n["parent"]: n["text"] for n in notes if "relaxed" in n}
    problems = {n["parent"]: n["problem"] for n in notes if "problem" in n}
    for k, parent in enumerate(rows.get("parent", ())):
        given = structures[int(parent)]
        found = _atoms(folder, int(rows["first_atom"][k]), int(rows["n_atoms"][k]))
        if found is None:
            continue
        origins[int(parent)] = Origin(
            int(parent),
            replace(given, positions=np.round(found[0], DECIMALS), labels={}),
            float(rows["energy_eV"][k]),
            float(rows["force_delta_eV_per_A"][k]),
            float(rows["closest_share"][k]),
            found[1],
            found[2],
            relaxed.get(int(parent), ""),
            problems.get(int(parent), ""),
        )
    units = {int(p): float(u) for p, u in zip(rows.get("parent", ()), rows.get("unit", ()), strict=True)}
    known = np.isin(steps["parent"], list(origins)) if steps else np.zeros(0, bool)
    steps = {k: v[known] for k, v in steps.items()} if steps and not known.all() else steps
    return Adversarial(spec, tuple(structures), origins, steps, notes, result, folder, units)


def _atoms(folder: Path, first: int, n: int) -> tuple[Array, Array, Array] | None:
    for parts in _arrays(folder, [(first, n)]):
        return parts
    return None


def _arrays(folder: Path, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[Array, Array, Array]]:
    with open_series(folder) as file:
        if file is None:
            return
        columns: list[Any] = [
            file[f"atoms/{n}"] for n in ("position_A", "forces_direct_eV_per_A", "forces_conservative_eV_per_A")
        ]
        here = min(c.shape[0] for c in columns)
        for first, n in ranges:
            if first + n > here:
                return
            a, b, c = (np.asarray(column[first : first + n], dtype=np.float64) for column in columns)
            yield a, b, c


def found(attack: Adversarial, rows: Sequence[int]) -> list[Found]:
    """Visited structures by their row; those whose atoms cannot be read yet are left out."""
    if attack.folder is None or not attack.n_steps:
        return []
    steps = attack.steps
    ranges = [(int(steps["first_atom"][r]), int(steps["n_atoms"][r])) for r in rows]
    out = []
    for row, (positions, direct, conservative) in zip(rows, _arrays(attack.folder, ranges), strict=False):
        parent = int(steps["parent"][row])
        given = attack.structures[parent]
        above = float(steps["above_eV_per_atom"][row])
        out.append(
            Found(
                row=int(row),
                start=int(steps["start"][row]),
                parent=parent,
                step=int(steps["step"][row]),
                structure=replace(
                    given, positions=np.round(positions, DECIMALS), cell=steps["cell_A"][row], labels={}, warnings=()
                ),
                energy=float(steps["energy_eV"][row]),
                above_eV_per_atom=above,
                force_delta=float(steps["force_delta_eV_per_A"][row]),
                rise=float(attack.rises[row]),
                closest_A=float(steps["closest_A"][row]),
                closest_share=float(steps["closest_share"][row]),
                fmax=float(steps["fmax_eV_per_A"][row]),
                moved_A=float(steps["moved_A"][row]),
                weight=math.exp(min(0.0, -above / (KB * attack.temperature_K))),
                forces_direct=direct,
                forces_conservative=conservative,
            )
        )
    return out


def dataset(attack: Adversarial) -> list[Found]:
    """The structures of the dataset, highest U_Delta first."""
    return found(attack, attack.selected.rows)


def sentence(attack: Adversarial) -> str:
    """What was found, in one sentence."""
    chosen, parameters = attack.selected, attack.parameters
    n = len(chosen.rows)
    if not attack.n_steps:
        return "Nothing has been visited yet."
    if not n:
        best = float(attack.rises[attack.steps["allowed"] > 0].max(initial=0.0))
        return (
            f"No structure has reached {parameters.rise:g} times the disagreement of its start within the bounds; the highest so far is "
            f"{three_digits(best)} times."
        )
    rises = attack.rises[list(chosen.rows)]
    above = attack.steps["above_eV_per_atom"][list(chosen.rows)]
    # Where both forces vanish at the start there is nothing to be a multiple of.
    times = (
        f"{three_digits(rises.min())} to {three_digits(rises.max())} times as far as at the start"
        if np.isfinite(rises).all()
        else ("where they agreed at the start")
    )
    return (
        f"{n} structure{'' if n == 1 else 's'} on which the two forces disagree {times}, at most {above.max():.2g} eV/atom above it, "
        "no two alike."
    )


def without(attack: Adversarial) -> list[str]:
    """Which of several structures are not in the dataset, and why, one sentence each; empty where all are, or none."""
    if attack.result is None or len(attack.structures) < 2 or not attack.selected.rows:
        return []
    given = set(attack.steps["parent"][list(attack.selected.rows)].tolist())
    out = []
    for parent in range(len(attack.structures)):
        if parent in given or (parent in attack.origins and attack.origins[parent].problem):
            continue
        own = (attack.steps["parent"] == parent) & (attack.steps["allowed"] > 0)
        best = float(attack.rises[own].max(initial=0.0))
        if best < attack.parameters.rise:
            why = (
                f"the highest it reached within the bounds is {three_digits(best)} times the disagreement of its start"
            )
        elif len(attack.selected.rows) == attack.parameters.count:
            why = "the others rose more, and no more structures were asked for"
        else:
            why = "all of its structures are too much like one of the dataset"
        out.append(f"Nothing from {attack.name_of(parent)}: {why}.")
    return out


def shortage(attack: Adversarial) -> str:
    """Why there are fewer structures than were asked for, and what would help; empty where there are not."""
    chosen, parameters = attack.selected, attack.parameters
    n = len(chosen.rows)
    if n >= parameters.count or attack.result is None:
        return ""
    if chosen.reached <= n:
        return (
            f"{n} of {parameters.count}: only {chosen.reached} visited structures reached {parameters.rise:g} times the disagreement of "
            "their start within the bounds. More starts, more steps, a wider energy window or a smaller rise give more."
        )
    return (
        f"{n} of {parameters.count}: {chosen.alike} more that reached {parameters.rise:g} times the disagreement of their start are too "
        "much like one of these. More starts, or a smaller distance apart, give more."
    )
