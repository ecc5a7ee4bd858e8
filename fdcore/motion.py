"""What a recorded run of relaxation, dynamics or the advisor says: drift, temperatures, U_Delta, frames. Pure functions of tables.

The drift is the fitted slope of the conserved quantity, per atom, in meV/ps, with an interval that respects correlation
(`fdcore.statistics`); the definitions are those of Bigi et al. 2025 and ml-peg, so that figures compare.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray
from scipy.stats import t as student

from fdcore import delta
from fdcore.dynamics.settings import Leg, Relaxation
from fdcore.human import plus_minus, three_digits
from fdcore.records import Structure
from fdcore.spec import Spec
from fdcore.statistics import Slope, fitted_slope, mean_with_error
from fdcore.store.series import open_series, read_notes, read_table
from fdcore.tasks.md import MdParameters
from fdcore.tasks.motion import RELAXATION, elements_of, leg_timestep, systems_of
from fdcore.tasks.mts_advisor import AdvisorParameters
from fdcore.tasks.relax import RelaxParameters
from fdcore.units import MEV_PER_EV

Array = NDArray[np.float64]
TASKS = ("md", "relax", "mts-advisor")
COMPLETED = "completed"
# Within a vibration or two (100 fs and more) any energy error looks like a trend: nothing is said of a drift before this.
SHORTEST_PS = 0.25


@dataclass(frozen=True)
class Track:
    """What one structure did in one leg: columns of equal length, one entry per recorded step (see fdcore/tasks/motion.py)."""

    leg: int
    system: int
    columns: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.columns["step"])

    @property
    def time_ps(self) -> Array:
        return self.columns["time_ps"]

    @property
    def energy_total_eV(self) -> Array:
        return self.columns["energy_potential_eV"] + self.columns["energy_kinetic_eV"]

    @cached_property
    def monitored(self) -> NDArray[np.bool_]:
        """Where U_Delta was computed."""
        return np.isfinite(self.columns["force_delta_eV_per_A"])


@dataclass(frozen=True)
class FrameView:
    """One kept frame: positions (N, 3) Å not wrapped, velocities (N, 3) Å/fs, both forces (N, 3) eV/Å."""

    leg: int
    system: int
    step: int
    time_ps: float
    positions: Array
    velocities: Array
    forces_direct: Array
    forces_conservative: Array

    @property
    def force_delta_per_atom(self) -> Array:
        """u_i (N,) eV/Å."""
        return delta.force_delta_per_atom(self.forces_direct, self.forces_conservative)


@dataclass(frozen=True)
class Descent:
    """How one structure relaxed: columns per iteration, and where it ended, in words."""

    system: int
    columns: Mapping[str, NDArray[Any]]
    converged: bool | None = None
    text: str = ""


@dataclass(frozen=True)
class Summary:
    """One structure in one leg. Slopes are those of the conserved quantity: meV/atom/ps, and the same energy as a temperature (K/ps: if all
    of it went into motion), and over the fluctuation (standard deviation) of the kinetic energy (1/ps). None: not known."""

    leg: int
    name: str
    system: int
    driver: str
    ensemble: str
    n_atoms: int
    steps_done: int
    steps_asked: int
    time_ps: float
    drift: Slope | None
    drift_K_per_ps: Slope | None
    drift_over_fluctuation_per_ps: float | None
    temperature_K: float | None
    temperature_error_K: float | None
    temperature_fluctuation_K: float | None
    temperature_by_element_K: Mapping[str, float]
    force_delta_mean: float | None
    force_delta_max: float | None
    worst_atom: int | None
    closest_A: float | None
    net_momentum: float | None
    stopped_because: str
    stopped_text: str
    steps_per_second: float | None


@dataclass(frozen=True)
class Motion:
    """A recorded run, whole or so far. `systems` are the structures in the order of the columns `system`; `legs` what was asked."""

    spec: Spec
    structures: tuple[Structure, ...]
    systems: tuple[Structure, ...]
    legs: tuple[Leg, ...]
    relaxation: Relaxation | None
    tracks: Mapping[tuple[int, int], Track]
    descents: Mapping[int, Descent]
    notes: tuple[Mapping[str, Any], ...]
    result: Mapping[str, Any] | None
    frame_rows: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def replicas(self) -> int:
        return max(1, len(self.systems) // max(1, len(self.structures)))

    def name_of(self, system: int) -> str:
        """How a system is called: its file, frame and replica as far as they are needed."""
        structure = self.systems[system]
        several = sum(s.file == structure.file for s in self.structures) > 1
        name = structure.file + (f":{structure.index}" if several else "")
        return name + (f" (replica {system % self.replicas + 1})" if self.replicas > 1 else "")

    @property
    def elements(self) -> tuple[str, ...]:
        """The columns of `temperature_by_element_K`."""
        return tuple(chemical_symbols[z] for z in elements_of(self.structures))

    @property
    def production(self) -> int:
        """The leg that the run was made for: the last one."""
        return len(self.legs) - 1

    @property
    def latest_leg(self) -> int | None:
        """The newest leg that has rows."""
        return max((leg for leg, _ in self.tracks), default=None)

    def ended(self, leg: int, system: int) -> Mapping[str, Any] | None:
        """The note that says why a structure ended before its time in this leg."""
        found = [n for n in self.notes if n.get("ended") and (n["leg"], n["system"]) == (leg, system)]
        return found[-1] if found else None


def read(folder: Path | None, spec: Spec, structures: Sequence[Structure], result: Mapping[str, Any] | None) -> Motion:
    """What an attempt's folder holds so far (None: nothing yet); `result` is what the task returned, if it has."""
    legs, relaxation, replicas = plan_parts(spec, structures)
    systems = systems_of(structures, replicas)
    rows = {} if folder is None else read_table(folder, "series")
    downhill = {} if folder is None else read_table(folder, "relaxation")
    notes = () if folder is None else tuple(read_notes(folder))
    return Motion(
        spec=spec,
        structures=tuple(structures),
        systems=systems,
        legs=legs,
        relaxation=relaxation,
        tracks=_tracks(rows),
        descents=_descents(downhill, notes),
        notes=notes,
        result=result,
        frame_rows={} if folder is None else read_table(folder, "frames"),
    )


def plan_parts(spec: Spec, structures: Sequence[Structure]) -> tuple[tuple[Leg, ...], Relaxation | None, int]:
    """Legs, relaxation and replicas that a spec asks for."""
    if spec.task == "relax":
        return (), RelaxParameters.of(spec).relaxation(), 1
    if spec.task == "md":
        md: MdParameters = MdParameters.of(spec)
        legs, relaxation, _ = md.plan_parts(leg_timestep(structures, md.timestep_fs))
        return legs, relaxation, md.replicas
    advisor: AdvisorParameters = AdvisorParameters.of(spec)
    legs, relaxation = advisor.plan_parts(leg_timestep(structures, advisor.timestep_fs))
    return legs, relaxation, advisor.replicas


def _tracks(rows: Mapping[str, NDArray[Any]]) -> dict[tuple[int, int], Track]:
    if not rows or not len(rows["step"]):
        return {}
    out = {}
    keys = rows["leg"].astype(np.int64) << 32 | rows["system"].astype(np.int64)
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(keys[order]) != 0])
    for part in np.split(order, starts[1:]):
        leg, system = int(rows["leg"][part[0]]), int(rows["system"][part[0]])
        columns = {name: column[part] for name, column in rows.items() if name not in ("leg", "system")}
        out[leg, system] = Track(leg, system, columns)
    return out


def _descents(rows: Mapping[str, NDArray[Any]], notes: Sequence[Mapping[str, Any]]) -> dict[int, Descent]:
    out = {}
    for system in np.unique(rows["system"]) if rows else ():
        part = rows["system"] == system
        out[int(system)] = Descent(int(system), {k: v[part] for k, v in rows.items() if k != "system"})
    for note in notes:
        if note["leg"] == RELAXATION and "converged" in note and note["system"] in out:
            known = out[note["system"]]
            out[note["system"]] = replace(known, converged=note["converged"], text=note["text"])
    return out


# ---- what it comes to ----------------------------------------------------------------------------------------------


def summary(motion: Motion, leg: int, system: int) -> Summary:
    """What one structure did in one leg so far."""
    asked, structure = motion.legs[leg], motion.systems[system]
    track = motion.tracks.get((leg, system))
    ended = motion.ended(leg, system)
    steps = int(track.columns["step"][-1]) if track is not None else 0
    if ended is not None:
        because, text = str(ended["ended"]), str(ended["text"])
    elif steps >= asked.steps:
        because, text = COMPLETED, ""
    else:
        because, text = ("cancelled" if motion.result is None else "not-started"), ""
    known: dict[str, Any] = dict.fromkeys(
        [
            "drift",
            "drift_K_per_ps",
            "drift_over_fluctuation_per_ps",
            "temperature_K",
            "temperature_error_K",
            "temperature_fluctuation_K",
            "force_delta_mean",
            "force_delta_max",
            "worst_atom",
            "closest_A",
            "net_momentum",
        ]
    )
    if track is not None:
        known |= _seen(track, structure)
    return Summary(
        leg=leg,
        name=asked.name,
        system=system,
        driver=asked.driver,
        ensemble=asked.ensemble,
        n_atoms=structure.n_atoms,
        steps_done=steps,
        steps_asked=asked.steps,
        time_ps=0.0 if track is None else float(track.time_ps[-1]),
        temperature_by_element_K={} if track is None else _by_element(track, motion.elements),
        stopped_because=because,
        stopped_text=text,
        steps_per_second=speed(motion, leg),
        **known,
    )


def _seen(track: Track, structure: Structure) -> dict[str, Any]:
    columns, n = track.columns, structure.n_atoms
    drift = fitted_slope(track.time_ps, columns["conserved_eV"] * MEV_PER_EV / n)
    if drift is not None and np.ptp(track.time_ps) < SHORTEST_PS:
        drift = replace(drift, half_width=None)
    kinetic, temperature = columns["energy_kinetic_eV"], columns["temperature_K"]
    mean, error = mean_with_error(temperature)
    fluctuation = float(kinetic.std())
    u = columns["force_delta_eV_per_A"][track.monitored]
    worst = columns["worst_atom_eV_per_A"][track.monitored]
    near = float(columns["closest_A"].min())
    # K per eV: the instantaneous temperature is 2 K / (N_f k_B), whatever N_f is here.
    moving = kinetic > 0
    kelvin = float(np.median(temperature[moving] / kinetic[moving])) if moving.any() else None
    return {
        "drift": drift,
        "drift_K_per_ps": drift.scaled(n / MEV_PER_EV * kelvin) if drift is not None and kelvin else None,
        "drift_over_fluctuation_per_ps": (
            drift.slope * n / MEV_PER_EV / fluctuation if drift is not None and fluctuation > 0 else None
        ),
        "temperature_K": mean,
        "temperature_error_K": error,
        "temperature_fluctuation_K": float(temperature.std()),
        "force_delta_mean": float(u.mean()) if len(u) else None,
        "force_delta_max": float(u.max()) if len(u) else None,
        "worst_atom": int(columns["worst_atom"][track.monitored][worst.argmax()]) if len(u) else None,
        "closest_A": near if math.isfinite(near) else None,
        "net_momentum": float(columns["net_momentum"][-1]),
    }


def _by_element(track: Track, elements: Sequence[str]) -> dict[str, float]:
    """Mean temperature of each element that the structure has."""
    means = np.mean(track.columns["temperature_by_element_K"], axis=0)
    return {e: float(m) for e, m in zip(elements, means, strict=True) if np.isfinite(m)}


def speed(motion: Motion, leg: int, clock: str = "seconds") -> float | None:
    """Steps per second by one of the clocks of the result."""
    if motion.result is None:
        return None
    seconds, steps = motion.result[clock][leg + 1], motion.result["steps_done"][leg]
    return steps / seconds if seconds > 0 and steps else None


def pooled(found: Sequence[Summary]) -> Summary:
    """Several replicas of one structure as one: means, slopes with the interval of their spread, extremes of all of them; of one, itself."""
    first = found[0]
    if len(found) == 1:
        return first
    elements = {e: [s.temperature_by_element_K.get(e) for s in found] for e in first.temperature_by_element_K}
    heights = [s.force_delta_max for s in found if s.force_delta_max is not None]
    return replace(
        first,
        drift=pooled_slope([s.drift for s in found]),
        drift_K_per_ps=pooled_slope([s.drift_K_per_ps for s in found]),
        drift_over_fluctuation_per_ps=mean_of_known([s.drift_over_fluctuation_per_ps for s in found]),
        temperature_K=mean_of_known([s.temperature_K for s in found]),
        temperature_error_K=None,
        temperature_fluctuation_K=mean_of_known([s.temperature_fluctuation_K for s in found]),
        temperature_by_element_K={e: mean_of_known(values) for e, values in elements.items()},
        force_delta_mean=mean_of_known([s.force_delta_mean for s in found]),
        force_delta_max=max(heights, default=None),
        closest_A=min((s.closest_A for s in found if s.closest_A is not None), default=None),
        worst_atom=next((s.worst_atom for s in found if s.force_delta_max == max(heights, default=None)), None),
        net_momentum=max((s.net_momentum for s in found if s.net_momentum is not None), default=None),
    )


def mean_of_known(values: Sequence[float | None]) -> Any:
    """Of those that are not None; None where there is none."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def pooled_slope(given: Sequence[Slope | None]) -> Slope | None:
    """The mean of the slopes of several replicas with an interval from their spread (Student's t); of one, its own. No interval where
    one of them is too short to have one."""
    slopes = [s for s in given if s is not None]
    if len(slopes) == 1:
        return slopes[0]
    if not slopes:
        return None
    values = np.array([s.slope for s in slopes])
    half = float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return Slope(float(values.mean()), None if any(s.half_width is None for s in slopes) else half)


def expected_fluctuation_K(temperature_K: float, n_atoms: int) -> float:
    """Standard deviation of the instantaneous temperature in the canonical ensemble: T sqrt(2 / N_f), N_f = 3N - 3."""
    return temperature_K * math.sqrt(2 / max(1, 3 * n_atoms - 3))


# ---- frames --------------------------------------------------------------------------------------------------------


def frame_count(motion: Motion, system: int | None = None) -> int:
    """Kept frames (of one system)."""
    return len(chosen_frames(motion, system))


def chosen_frames(motion: Motion, system: int | None = None, most: int | None = None) -> NDArray[np.int64]:
    """Numbers of kept frames (of one system), evenly thinned to at most `most`, the first and the last among them."""
    if not motion.frame_rows:
        return np.zeros(0, np.int64)
    rows = motion.frame_rows["system"]
    chosen = np.arange(len(rows)) if system is None else np.flatnonzero(rows == system)
    if most is None or len(chosen) <= most:
        return chosen
    return chosen[np.unique(np.linspace(0, len(chosen) - 1, most).astype(int))]


def frames(motion: Motion, folder: Path, system: int | None = None) -> Iterator[FrameView]:
    """Kept frames in the order of recording."""
    return frames_at(motion, folder, chosen_frames(motion, system).tolist())


def frames_at(motion: Motion, folder: Path, numbers: Sequence[int]) -> Iterator[FrameView]:
    """The frames with these numbers."""
    rows = motion.frame_rows
    with open_series(folder) as file:
        if file is None:
            return
        names = ("position_A", "velocity_A_per_fs", "forces_direct_eV_per_A", "forces_conservative_eV_per_A")
        columns: list[Any] = [file[f"atoms/{name}"] for name in names]
        here = min(c.shape[0] for c in columns)
        for k in numbers:
            first, n = int(rows["first_atom"][k]), int(rows["n_atoms"][k])
            if first + n > here:
                return
            arrays = [np.asarray(c[first : first + n], dtype=np.float64) for c in columns]
            yield FrameView(
                int(rows["leg"][k]), int(rows["system"][k]), int(rows["step"][k]), float(rows["time_ps"][k]), *arrays
            )


def relaxed_structures(motion: Motion, folder: Path) -> dict[int, Structure]:
    """The end of each relaxation, by system."""
    out = {}
    for frame in frames(motion, folder):
        if frame.leg == RELAXATION:
            out[frame.system] = replace(motion.systems[frame.system], positions=frame.positions, labels={})
    return out


# ---- in words ------------------------------------------------------------------------------------------------------


def sentence(found: Summary) -> str:
    """What the drift says, in one sentence."""
    what = "The total energy" if found.ensemble == "nve" else "The conserved quantity"
    slope = found.drift
    if slope is None or slope.half_width is None:
        return "Too short to say anything about a drift."
    size = f"{plus_minus(slope.slope, slope.half_width, sign=True)} meV/atom/ps"
    if not slope.significant:
        return f"No drift can be told from fluctuation: {size}."
    kelvin = (
        ""
        if found.drift_K_per_ps is None
        else f", as much as {three_digits(found.drift_K_per_ps.slope, sign=True)} K per ps"
    )
    cause = ""
    if found.driver == "direct":
        cause = " The direct force is not the slope of the energy, so it pumps energy in or out."
    return f"{what} drifts by {size}{kelvin}.{cause}"
