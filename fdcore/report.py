"""What a recorded examination says: is this model conservative on these structures? Pure functions of tables.

What could not be done is in `Examined.missing` with its reason, and what has not been done yet in neither: nothing is ever zero for want of a
number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdcore import conservativity, delta
from fdcore.conservativity import Asymmetry, Pairs, Work
from fdcore.drifts import Mean, mean_of
from fdcore.errors import UsageError
from fdcore.examination import COPIES, FORCES, LOOPS, PARTS, Examination
from fdcore.motion import SHORTEST_PS
from fdcore.records import Evaluation, Failure, Structure
from fdcore.spec import Spec
from fdcore.statistics import Slope, fitted_slope
from fdcore.store.series import read_notes, read_result, read_table
from fdcore.tasks.report import ReportParameters, report_tables
from fdcore.units import MEV_PER_EV

TASK = "report"
Array = NDArray[np.float64]
Table = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Loop:
    """One closed path: its kind, the work of either force on it (eV), its length in the space of all coordinates (Å), and at its T points the
    energy (eV) and the powers per unit of the phase (eV)."""

    kind: str
    direct: Work
    conservative: Work
    length_A: float
    energy_eV: Array
    power_direct_eV: Array
    power_conservative_eV: Array


@dataclass(frozen=True)
class Line:
    """One straight walk: after each of its steps, how far it is (Å per atom, root mean square), what the energy did beyond the integral of F_c
    (eV), and how many neighbours came or went."""

    distance_A: Array
    unexplained_eV: Array
    neighbour_changes: NDArray[np.int64]


@dataclass(frozen=True)
class Noise:
    """What copies that are the same thing say otherwise: root mean square of the deviations of either force (eV/Å), standard deviation of the
    energy (meV/atom)."""

    kind: str
    copies: int
    direct: float
    conservative: float
    energy_meV_per_atom: float


@dataclass(frozen=True)
class Drift:
    """NVE under one force: times (ps), energy per atom from its start (meV), its fitted slope (meV/atom/ps, and as a temperature in K/ps), and
    why it ended early (empty: it did not)."""

    time_ps: Array
    energy_meV_per_atom: Array
    temperature_K: Array
    slope: Slope | None
    slope_K: Slope | None
    ended: str = ""


@dataclass(frozen=True)
class Examined:
    """One structure. Mappings by force have "direct" and "conservative"; what is empty or None was not done (yet), or is `missing` by part."""

    structure: Structure
    evaluation: Evaluation | None
    check: Mapping[str, Any] | None
    asymmetry: Mapping[str, Asymmetry]
    asymmetry_by: str
    jacobians: Mapping[str, Array]
    loops: tuple[Loop, ...]
    lines: tuple[Line, ...]
    noises: tuple[Noise, ...]
    drifts: Mapping[str, Drift]
    missing: Mapping[str, str]
    seconds: Mapping[str, float]

    def forces(self, force: str) -> Array:
        assert self.evaluation is not None
        return self.evaluation.forces_direct if force == "direct" else self.evaluation.forces_conservative

    def net_force(self, force: str) -> float:
        """|sum F| / N in eV/Å."""
        return float(np.linalg.norm(delta.net_force(self.forces(force)))) / self.structure.n_atoms

    def net_torque(self, force: str) -> float | None:
        """|sum (r - mean r) x F| / N in eV of a molecule; a crystal has none."""
        if self.structure.periodic:
            return None
        torque = delta.net_torque(self.forces(force), self.structure.positions)
        return float(np.linalg.norm(torque)) / self.structure.n_atoms

    def works(self, kind: str, force: str) -> list[float]:
        """Of every loop of this kind, eV."""
        return [
            (loop.direct if force == "direct" else loop.conservative).value for loop in self.loops if loop.kind == kind
        ]

    def mean_work(self, kind: str, force: str) -> Mean | None:
        """Mean |work| over the loops of this kind with its interval, meV."""
        return mean_of([abs(w) * MEV_PER_EV for w in self.works(kind, force)])

    def work_per_length(self, force: str) -> float | None:
        """Mean |work| of the random loops over their length, in eV/Å: on such a loop no conservative force is nearer to this one than that, as a
        root mean square along the path (Cauchy-Schwarz)."""
        found = [
            abs((loop.direct if force == "direct" else loop.conservative).value) / loop.length_A
            for loop in self.loops
            if loop.kind == "random"
        ]
        return float(np.mean(found)) if found else None

    @property
    def largest_jump_meV(self) -> float | None:
        """The largest step of the energy that F_c does not explain."""
        if not self.lines:
            return None
        return MEV_PER_EV * max(float(np.abs(line.unexplained_eV).max()) for line in self.lines)

    @property
    def neighbour_changes(self) -> int:
        return int(sum(line.neighbour_changes.sum() for line in self.lines))

    def noise(self, kind: str) -> Noise | None:
        return next((n for n in self.noises if n.kind == kind), None)

    @cached_property
    def by_atom(self) -> tuple[Array, Array] | None:
        """lambda of every atom's entries and its share of |A|^2, for F_nc, where the whole Jacobian is known."""
        j = self.jacobians.get("direct")
        return None if j is None else conservativity.by_atom(j)

    @cached_property
    def pairs(self) -> Pairs | None:
        j = self.jacobians.get("direct")
        return None if j is None else conservativity.by_pair(j)


@dataclass(frozen=True)
class Report:
    """A report, whole or so far. `examined` has an entry for every structure that has forces."""

    model_id: str
    dtype: str
    settings: Examination
    examined: tuple[Examined, ...]
    failures: tuple[Failure, ...]
    complete: bool


def read(folder: Path | None, spec: Spec, structures: Sequence[Structure]) -> Report:
    """What an attempt's folder holds so far."""
    parameters: ReportParameters = ReportParameters.of(spec)
    assert spec.model is not None
    settings = parameters.settings()
    if folder is None:
        return Report(spec.model.id, spec.model.dtype, settings, (), (), False)
    tables = {name: read_table(folder, name) for name in report_tables()}
    notes = tuple(read_notes(folder))
    failures = [
        Failure(structures[n["position"]].file, n["error"], n["hint"], structures[n["position"]].index)
        for n in notes
        if n["part"] == "forces" and "error" in n
    ]
    examined = []
    for position, evaluation in _evaluations(tables):
        mine = {name: _of(table, position) for name, table in tables.items() if name != "atoms"}
        own = [n for n in notes if n["position"] == position]
        examined.append(_examined(structures[position], evaluation, mine, own, settings))
    complete = read_result(folder) is not None
    return Report(spec.model.id, spec.model.dtype, settings, tuple(examined), tuple(failures), complete)


def _of(table: Table, position: int, **more: int) -> dict[str, NDArray[Any]]:
    if not table:
        return {}
    kept = table["position"] == position
    for name, value in more.items():
        kept &= table[name] == value
    return {name: column[kept] for name, column in table.items()}


def _evaluations(tables: Mapping[str, Table]) -> Iterator[tuple[int, Evaluation]]:
    rows, atoms = tables["structures"], tables["atoms"]
    if not rows or not atoms:
        return
    here = len(atoms["confidence_eV_per_A"])
    for k, position in enumerate(rows["position"]):
        first, n = int(rows["first_atom"][k]), int(rows["n_atoms"][k])
        if first + n > here:
            return
        part = slice(first, first + n)
        confidence, tie = atoms["confidence_eV_per_A"][part], float(rows["graph_tie_A"][k])
        yield (
            int(position),
            Evaluation(
                float(rows["energy_eV"][k]),
                atoms["forces_direct_eV_per_A"][part],
                atoms["forces_conservative_eV_per_A"][part],
                None if np.isnan(confidence).all() else confidence,
                None if np.isnan(tie) else tie,
            ),
        )


def _examined(
    structure: Structure,
    evaluation: Evaluation,
    tables: Mapping[str, Table],
    notes: Sequence[Mapping[str, Any]],
    settings: Examination,
) -> Examined:
    missing = {n["part"]: f"{n['error']} {n['hint']}".strip() for n in notes if "error" in n}
    done = {PARTS[p] for p in tables["timings"].get("part", ())}
    jacobians = _jacobians(tables["blocks"], structure.n_atoms) if "asymmetry" in done else {}
    asymmetry: dict[str, Asymmetry] = {}
    if "asymmetry" in done:
        try:
            asymmetry = {
                force: conservativity.of_jacobian(jacobians[force])
                if force in jacobians
                else _probed(tables, number, 3 * structure.n_atoms)
                for number, force in enumerate(FORCES)
            }
        except UsageError as error:
            missing["asymmetry"] = error.message
    return Examined(
        structure=structure,
        evaluation=evaluation,
        check=next((n["check"] for n in notes if "check" in n), None),
        asymmetry=asymmetry,
        asymmetry_by=next((n["by"] for n in notes if "by" in n), ""),
        jacobians=jacobians,
        loops=_loops(tables["loops"]),
        lines=_lines(tables["lines"], settings.line_step_A),
        noises=_noises(tables["copies"], structure.n_atoms),
        drifts=_drifts(tables["series"], structure.n_atoms, notes, settings),
        missing=missing,
        seconds={
            PARTS[p]: float(s)
            for p, s in zip(*(tables["timings"].get(c, ()) for c in ("part", "seconds")), strict=True)
        },
    )


def _jacobians(blocks: Table, n: int) -> dict[str, Array]:
    """Whole ones: every block of every pair is there."""
    out = {}
    for number, force in enumerate(FORCES):
        mine = blocks.get("force", np.zeros(0)) == number
        if mine.sum() != n * n:
            continue
        whole = np.zeros((n, 3, n, 3))
        whole[blocks["row_atom"][mine], :, blocks["column_atom"][mine], :] = blocks["jacobian_eV_per_A2"][mine]
        out[force] = whole.reshape(3 * n, 3 * n)
    return out


def _probed(tables: Mapping[str, Table], number: int, dimensions: int) -> Asymmetry:
    probes = tables["probes"]
    mine = probes["force"] == number
    odd, whole = probes["antisymmetric_squared"][mine], probes["whole_squared"][mine]
    if not np.isnan(odd).any():
        return conservativity.of_squares(odd, whole, dimensions)
    crossed = tables["crossed"]
    mine = crossed["force"] == number
    products = np.zeros((len(whole), len(whole)))
    products[crossed["left"][mine], crossed["right"][mine]] = crossed["product"][mine]
    return conservativity.of_pairs(products, whole, dimensions)


def _loops(rows: Table) -> tuple[Loop, ...]:
    out = []
    for k in np.unique(rows["loop"]) if rows else ():
        mine = rows["loop"] == k
        direct, conservative = rows["power_direct_eV"][mine], rows["power_conservative_eV"][mine]
        out.append(
            Loop(
                LOOPS[int(rows["kind"][mine][0])],
                conservativity.work(direct),
                conservativity.work(conservative),
                2 * np.pi * float(rows["speed_A"][mine].mean()),
                rows["energy_eV"][mine],
                direct,
                conservative,
            )
        )
    return tuple(out)


def _lines(rows: Table, step_A: float) -> tuple[Line, ...]:
    out = []
    for k in np.unique(rows["line"]) if rows else ():
        mine = rows["line"] == k
        jumps = conservativity.unexplained(rows["energy_eV"][mine], rows["slope_eV_per_A"][mine], step_A)
        out.append(Line(step_A * rows["point"][mine][1:], jumps, rows["neighbour_changes"][mine][1:].astype(np.int64)))
    return tuple(out)


def _noises(rows: Table, n_atoms: int) -> tuple[Noise, ...]:
    out = []
    for number, kind in enumerate(COPIES):
        mine = rows.get("kind", np.zeros(0)) == number
        if mine.any():
            direct, conservative = (
                conservativity.rms(rows[f"deviation_{f}_eV_per_A"][mine]) for f in ("direct", "conservative")
            )
            spread = float(rows["energy_eV"][mine].std()) * MEV_PER_EV / n_atoms
            out.append(Noise(kind, int(mine.sum()), direct, conservative, spread))
    return tuple(out)


def _drifts(rows: Table, n_atoms: int, notes: Sequence[Mapping[str, Any]], settings: Examination) -> dict[str, Drift]:
    out = {}
    for number, force in enumerate(FORCES):
        mine = rows.get("force", np.zeros(0)) == number
        if mine.sum() < 2:
            continue
        time, energy = rows["time_ps"][mine], rows["conserved_eV"][mine] * MEV_PER_EV / n_atoms
        temperature, kinetic = rows["temperature_K"][mine], rows["kinetic_eV"][mine]
        finite = np.isfinite(energy)
        ended = next((n["ended"] for n in notes if n.get("ended") and n.get("force") == number), "")
        slope = fitted_slope(time[finite], energy[finite]) if finite.sum() > 1 else None
        if slope is not None and np.ptp(time[finite]) < SHORTEST_PS:
            # Within a vibration or two any error looks like a trend.
            slope = replace(slope, half_width=None)
        moving = finite & (kinetic > 0)
        kelvin = (
            float(np.median(temperature[moving] / kinetic[moving])) * n_atoms / MEV_PER_EV if moving.any() else None
        )
        in_kelvin = None if slope is None or kelvin is None else slope.scaled(kelvin)
        out[force] = Drift(time, energy - energy[0], temperature, slope, in_kelvin, ended)
    return out
