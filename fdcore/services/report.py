"""What a page or the command line may ask of reports: cost, submission, results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fdcore import report, services
from fdcore.errors import FdcoreError
from fdcore.human import duration, size
from fdcore.models.base import (
    DOUBLE_BACKWARD_MEMORY,
    LEAST_SECONDS,
    available_bytes,
    check_covered,
    estimated_edges,
    guessed_bytes_per_edge,
    guessed_seconds_per_edge,
)
from fdcore.records import Failure, ModelCard, Structure
from fdcore.report import Report
from fdcore.services import repeat, runs
from fdcore.spec import ModelChoice, Spec
from fdcore.tasks.motion import leg_timestep
from fdcore.tasks.report import ReportParameters, ReportTask

# What differences of energies and of forces need; the command line and the page begin with it.
DTYPE = "float64"
FLAGS: dict[str, str] = {
    "parts": "parts",
    "exact_atoms": "exact-atoms",
    "precision": "precision",
    "loops": "loops",
    "loop_radius_A": "loop-radius",
    "lines": "lines",
    "line_step_A": "line-step",
    "line_points": "line-points",
    "copies": "copies",
    "picoseconds": "picoseconds",
    "equilibrate_ps": "equilibrate-ps",
    "temperature_K": "temperature-K",
    "timestep_fs": "timestep-fs",
}
# Loops end when their work has settled, probes when lambda is known: measured, so much of the most that they may take.
USUAL_SHARE = 0.6


def examinable(card: ModelCard, structures: Sequence[Structure]) -> tuple[list[Structure], list[Failure]]:
    """Those that the model can read; for each of the others the reason."""
    good: list[Structure] = []
    refused: list[Failure] = []
    for structure in structures:
        try:
            check_covered(card, structure)
        except FdcoreError as error:
            refused.append(Failure(structure.file, error.message, error.hint, structure.index))
        else:
            good.append(structure)
    return good, refused


def spec_of(
    structures: Sequence[Structure], model: ModelChoice, parameters: Mapping[str, Any], *, seed: int = 0
) -> Spec:
    """The description of a report. Raises UsageError, UnknownModelError."""
    given = repeat.parameters_of(ReportParameters, report.TASK, parameters)
    spec = runs.spec_of(report.TASK, structures, model, given, seed=seed)
    ReportTask().check(spec)
    return spec


def estimate(spec: Spec, structures: Sequence[Structure]) -> services.Estimate:
    """What it will cost."""
    parameters: ReportParameters = ReportParameters.of(spec)
    assert spec.model is not None
    settings, card = parameters.settings(), services.card(spec.model.id)
    doubled = 2.0 if spec.model.dtype == "float64" else 1.0
    seconds = need = 0.0
    for structure in structures:
        edges = estimated_edges(structure, card.cutoff_A, card.neighbour_cap)
        once = max(LEAST_SECONDS, edges * guessed_seconds_per_edge(card)) * doubled
        costs = settings.costs(structure, leg_timestep([structure], settings.timestep_fs))
        seconds += once * sum(USUAL_SHARE * c if p in ("loops", "asymmetry") else c for p, c in costs.items())
        need = max(need, edges * guessed_bytes_per_edge(card) * doubled * DOUBLE_BACKWARD_MEMORY)
    free = available_bytes("cpu")
    text = f"about {duration(seconds)}, {size(need)} of {size(free)} free (a guess from the size of the model)"
    return services.Estimate(seconds, need / 1e6, free / 1e6, need < free, False, text)


def submit(
    viewer: runs.Viewer,
    structures: Sequence[Structure],
    model: ModelChoice,
    parameters: Mapping[str, Any],
    *,
    title: str,
    seed: int = 0,
    refusals: Sequence[Failure] = (),
) -> runs.Run:
    """Queue a report, or return the one that already answers the same question. Raises QuotaError, UnknownModelError, UsageError."""
    spec = spec_of(structures, model, parameters, seed=seed)
    lane = runs.lane_of(model.device, estimate(spec, structures).seconds)
    return runs.submit(viewer, spec, structures, title=title, lane=lane, refusals=refusals)


def of_run(run: runs.Run) -> Report:
    """What a report has found so far."""
    return report.read(runs.folder(run), run.spec, runs.inputs(run))


def command_line(files: Sequence[str], spec: Spec) -> str:
    """The command that repeats a report; what is at its default is left out."""
    given = {k: v for k, v in spec.parameters.items() if k in FLAGS}
    assert spec.model is not None
    # The verb's own precision is the double one.
    words = repeat.command_line(files, spec, given, FLAGS)
    if spec.model.dtype == DTYPE:
        return words.replace(f" --dtype {DTYPE}", "")
    return f"{words} --dtype {spec.model.dtype}"
