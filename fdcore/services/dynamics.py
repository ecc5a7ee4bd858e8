"""What a page or the command line may ask of dynamics, relaxation and the advisor: presets, cost, submission, results."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from fdcore import services
from fdcore.dynamics.settings import check_can_move
from fdcore.errors import FdcoreError
from fdcore.human import duration, size
from fdcore.models.base import (
    LEAST_SECONDS,
    MEMORY_SHARE,
    available_bytes,
    check_covered,
    estimated_edges,
    guessed_bytes_per_edge,
    guessed_seconds_per_edge,
)
from fdcore.motion import plan_parts
from fdcore.records import Failure, ModelCard, Structure
from fdcore.services import repeat, runs
from fdcore.spec import ModelChoice, Spec
from fdcore.tasks.md import MdParameters
from fdcore.tasks.motion import leg_timestep
from fdcore.tasks.mts_advisor import AdvisorParameters
from fdcore.tasks.relax import RelaxParameters

# Of both forces; the rest is the backward pass.
DIRECT_SHARE = 0.45
# A relaxation rarely needs all the iterations it may take.
TYPICAL_ITERATIONS = 60
# Ice: every oxygen has exactly four others around it, within this distance (Å).
ICE_OXYGEN_A = 3.2
PARAMETERS = {"md": MdParameters, "relax": RelaxParameters, "mts-advisor": AdvisorParameters}


# ---- presets -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preset:
    """A named set of parameters for `md`, made for given structures."""

    id: str
    title: str
    description: str
    parameters: Callable[[Sequence[Structure]], dict[str, Any]]


def _steps(structures: Sequence[Structure], length_ps: float, timestep_fs: float | None = None) -> int:

    return round(length_ps * 1000 / leg_timestep(structures, timestep_fs))


def _quick(structures: Sequence[Structure]) -> dict[str, Any]:
    return {
        "ensemble": "nve",
        "steps": _steps(structures, 2.0),
        "equilibrate_steps": _steps(structures, 0.2),
        "temperature_K": default_temperature_K(structures),
    }


def _paper(structures: Sequence[Structure]) -> dict[str, Any]:
    return {
        "ensemble": "nve",
        "timestep_fs": 0.5,
        "steps": 20_000,
        "relax_fmax_eV_per_A": 0.05,
        "equilibrate_steps": 4_000,
        "thermostat": "nose-hoover",
        "thermostat_time_fs": 10.0,
        "temperature_K": default_temperature_K(structures),
    }


def _long(structures: Sequence[Structure]) -> dict[str, Any]:
    return {
        "ensemble": "nvt",
        "thermostat": "vrescale",
        "thermostat_time_fs": 100.0,
        "steps": _steps(structures, 50.0),
        "temperature_K": default_temperature_K(structures),
        "monitor_every": 20,
    }


PRESETS: dict[str, Preset] = {
    "quick": Preset(
        "quick", "A quick look", "0.2 ps of NVT, then 2 ps of NVE, in which a drift usually shows.", _quick
    ),
    "paper": Preset(
        "paper",
        "The paper's protocol",
        "Relaxed to 0.05 eV/Å, 2 ps of NVT at 300 K (ice 200 K; Nosé-Hoover, 10 fs), then 10 ps of NVE in steps of 0.5 fs.",
        _paper,
    ),
    "long": Preset("long", "Long NVT", "50 ps at constant temperature (stochastic velocity rescaling, 100 fs).", _long),
}


def default_temperature_K(structures: Sequence[Structure]) -> float:
    """300 K; 200 K where every structure is ice, as in the paper."""
    return 200.0 if structures and all(map(is_ice, structures)) else 300.0


def is_ice(structure: Structure) -> bool:
    """Whether it is a periodic network of water in which every oxygen has exactly four oxygen neighbours (liquid water and small
    clusters have more and fewer)."""
    from ase.neighborlist import primitive_neighbor_list

    oxygen = structure.numbers == 8
    if not structure.periodic or oxygen.sum() * 2 != (structure.numbers == 1).sum():
        return False
    if oxygen.sum() * 3 != structure.n_atoms:
        return False
    centres = primitive_neighbor_list(
        "i", structure.pbc, structure.cell, structure.positions[oxygen], ICE_OXYGEN_A, self_interaction=False
    )
    return bool((np.bincount(centres, minlength=int(oxygen.sum())) == 4).all())


def movable(card: ModelCard, structures: Sequence[Structure]) -> tuple[list[Structure], list[Failure]]:
    """Those that this model can move, and for each of the others the reason: one that cannot does not stop the rest."""
    good, refused = [], []
    for structure in structures:
        try:
            check_covered(card, structure)
            check_can_move(structure)
        except FdcoreError as error:
            refused.append(Failure(structure.file, error.message, error.hint, structure.index))
        else:
            good.append(structure)
    return good, refused


def parameters_of(task: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters without those at their default: what a spec holds, so that equal questions have equal specs. Raises UsageError."""
    return repeat.parameters_of(PARAMETERS[task], task, given)


def all_parameters(spec: Spec) -> dict[str, Any]:
    """Every parameter of a run, those at their default too."""
    complete = PARAMETERS[spec.task].of(spec)
    values = {f.name: getattr(complete, f.name) for f in fields(complete)}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def in_whole_rounds(given: Mapping[str, Any], fixed: Collection[str] = ()) -> dict[str, Any]:
    """The parameters with the steps of multiple time stepping raised to whole rounds, but for the `fixed` ones."""
    out = dict(given)
    if out.get("driver") == "mts":
        stride = int(out.get("mts_stride", MdParameters.mts_stride))
        for name in ("steps", "equilibrate_steps"):
            if out.get(name) and name not in fixed and stride > 0:
                out[name] = stride * math.ceil(out[name] / stride)
    return out


# ---- cost ----------------------------------------------------------------------------------------------------------


def estimate(
    card: ModelCard, structures: Sequence[Structure], spec: Spec, pace: float | None = None
) -> services.Estimate:
    """What a run of these tasks will cost. `pace`: how many times the guess earlier runs took here; None before there is one."""
    edges = _edges(card, structures, spec)
    doubled = _doubled(spec)
    seconds = _guessed_seconds(card, structures, spec) * (1.0 if pace is None else pace)
    memory = edges * guessed_bytes_per_edge(card) * doubled
    free = available_bytes("cpu")
    text = f"about {duration(seconds)}, {size(memory)} of {size(free)} free"
    if pace is None:
        text += " (a guess until this model has moved atoms here)"
    return services.Estimate(seconds, memory / 1e6, free / 1e6, memory < MEMORY_SHARE * free, pace is not None, text)


def _guessed_seconds(card: ModelCard, structures: Sequence[Structure], spec: Spec, *, relaxing: bool = True) -> float:
    legs, relaxation, _ = plan_parts(spec, structures)
    one = LEAST_SECONDS + _edges(card, structures, spec) * guessed_seconds_per_edge(card) * _doubled(spec)
    return _evaluations(legs, relaxation if relaxing else None) * one


def _edges(card: ModelCard, structures: Sequence[Structure], spec: Spec) -> float:
    """Of the whole batch."""
    *_, replicas = plan_parts(spec, structures)
    return replicas * sum(estimated_edges(s, card.cutoff_A, card.neighbour_cap) for s in structures)


def _doubled(spec: Spec) -> float:
    return 2.0 if spec.model is not None and spec.model.dtype == "float64" else 1.0


def _evaluations(legs: Any, relaxation: Any, iterations: int = TYPICAL_ITERATIONS) -> float:
    """Evaluations of both forces that have the same cost."""

    def of(driver: str, steps: int, stride: int, monitor: int) -> float:
        if driver == "conservative":
            return float(steps)
        both = steps / stride if driver == "mts" else steps / monitor
        return DIRECT_SHARE * steps + (1 - DIRECT_SHARE) * min(both, steps)

    total = sum(of(leg.driver, leg.steps, leg.stride, leg.cadence()[1]) for leg in legs)
    if relaxation is not None:
        total += of(relaxation.driver, min(relaxation.steps, iterations), 1, relaxation.monitor_every)
    return total


def measured_pace(viewer: runs.Viewer, card: ModelCard, dtype: str) -> float | None:
    """How many times the guess this viewer's newest finished simulation with this model took; None without one."""
    for run in runs.list_runs(viewer, states=("done",), limit=50):
        model = run.spec.model
        if run.task != "md" or model is None or (model.id, model.dtype) != (card.id, dtype) or not run.summary:
            continue
        structures = runs.inputs(run)
        legs, *_ = plan_parts(run.spec, structures)
        spent = sum(run.summary["seconds"][1:])
        if spent > 1 and run.summary["steps_done"] == [leg.steps for leg in legs]:
            return spent / _guessed_seconds(card, structures, run.spec, relaxing=False)
    return None


# ---- submitting ----------------------------------------------------------------------------------------------------


def submit(
    viewer: runs.Viewer,
    task: str,
    structures: Sequence[Structure],
    model: ModelChoice,
    parameters: Mapping[str, Any],
    *,
    title: str,
    seed: int = 0,
    refusals: Sequence[Failure] = (),
    again: bool = False,
) -> runs.Run:
    """Queue a run of `md`, `relax` or `mts-advisor`, or return the one that already answers the same question.

    Raises QuotaError, UnknownModelError, UsageError.
    """
    spec = runs.spec_of(task, structures, model, parameters_of(task, parameters), seed=seed)
    card = services.card(model.id)
    cost = estimate(card, structures, spec, measured_pace(viewer, card, model.dtype))
    # Who waits for a second must not wait for what was guessed too short.
    lane = runs.lane_of(model.device, cost.seconds if cost.measured else 2 * cost.seconds)
    return runs.submit(viewer, spec, structures, title=title, lane=lane, refusals=refusals, again=again)


# ---- repeat this ---------------------------------------------------------------------------------------------------

_FLAGS = {
    "md": {
        "steps": "steps",
        "ensemble": "ensemble",
        "driver": "driver",
        "timestep_fs": "timestep-fs",
        "temperature_K": "temperature-K",
        "thermostat": "thermostat",
        "thermostat_time_fs": "thermostat-time-fs",
        "mts_stride": "mts-stride",
        "monitor_every": "monitor-every",
        "record_every": "record-every",
        "frame_every": "frame-every",
        "replicas": "replicas",
        "relax_fmax_eV_per_A": "relax-fmax",
        "relax_optimiser": "relax-optimiser",
        "relax_steps": "relax-steps",
        "equilibrate_steps": "equilibrate-steps",
        "stop_above": "stop-above",
        "stop_above_atom": "stop-above-atom",
        "stop_temperature_K": "stop-temperature-K",
        "stop_closest": "stop-closest",
        "wall_seconds": "wall-seconds",
    },
    "relax": {
        "driver": "driver",
        "optimiser": "optimiser",
        "fmax_eV_per_A": "fmax",
        "steps": "steps",
        "monitor_every": "monitor-every",
    },
    "mts-advisor": {
        "steps": "steps",
        "strides": "strides",
        "timestep_fs": "timestep-fs",
        "temperature_K": "temperature-K",
        "thermostat": "thermostat",
        "equilibrate_steps": "equilibrate-steps",
        "relax_fmax_eV_per_A": "relax-fmax",
        "relax_steps": "relax-steps",
        "replicas": "replicas",
        "tolerance_meV_per_atom_per_ps": "tolerance",
    },
}


def flags(task: str) -> dict[str, str]:
    """The command line option of every parameter, without its dashes."""
    return dict(_FLAGS[task])


def command_line(files: Sequence[str], spec: Spec) -> str:
    """The command that repeats a run of these tasks; what is at its default is left out."""
    return repeat.command_line(files, spec, parameters_of(spec.task, spec.parameters), _FLAGS[spec.task])
