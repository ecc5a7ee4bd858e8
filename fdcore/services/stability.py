"""What a page or the command line may ask of stability measurements: cost, submission, results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fdcore import drifts, services
from fdcore.drifts import Measured
from fdcore.errors import UsageError
from fdcore.human import duration, size
from fdcore.models.base import available_bytes, estimated_edges, guessed_bytes_per_edge, guessed_seconds_per_edge
from fdcore.records import Failure, Structure
from fdcore.services import repeat, runs
from fdcore.spec import ModelChoice, Spec
from fdcore.tasks.motion import leg_timestep
from fdcore.tasks.stability import StabilityParameters, StabilityTask

FLAGS: dict[str, str] = {
    "picoseconds": "picoseconds",
    "timestep_fs": "timestep-fs",
    "temperature_K": "temperature-K",
    "seeds": "seeds",
    "sigmas_A": "sigmas",
    "per_sigma": "per-sigma",
    "relax_fmax_eV_per_A": "relax-fmax",
    "relax_steps": "relax-steps",
    "reference": "reference",
}
# F_nc alone against both forces (measured for Orb), which U_Delta needs in every tenth row.
ONE_FORCE = 0.5


def spec_of(
    structures: Sequence[Structure],
    ids: Sequence[str],
    parameters: Mapping[str, Any],
    *,
    dtype: str = "float32",
    device: str = "auto",
    seed: int = 0,
) -> Spec:
    """The description of a measurement of these models, the base first. Raises UsageError, UnknownModelError."""
    if not ids:
        raise UsageError("No model was named.", "Name the base model first, then those to hold against it.")
    cards = [services.card(i) for i in ids]
    for card in cards:
        if card.kind != "direct":
            raise UsageError(f"{card.id} has no direct force, whose drift this is about.", "Name direct models.")
    names = [c.id for c in cards]
    given = repeat.parameters_of(StabilityParameters, "stability", {**parameters, "models": names[1:]})
    spec = runs.spec_of("stability", structures, ModelChoice(names[0], dtype, device), given, seed=seed)
    StabilityTask().check(spec)
    return spec


def estimate(spec: Spec, structures: Sequence[Structure]) -> services.Estimate:
    """What it will cost."""
    parameters: StabilityParameters = StabilityParameters.of(spec)
    assert spec.model is not None
    settings = parameters.settings()
    steps = settings.leg(leg_timestep(structures, settings.timestep_fs)).steps
    doubled = 2.0 if spec.model.dtype == "float64" else 1.0
    seconds = need = 0.0
    for name in (spec.model.id, *parameters.models):
        card = services.card(name)
        edges = sum(estimated_edges(s, card.cutoff_A, card.neighbour_cap) for s in structures)
        per_edge = guessed_seconds_per_edge(card) * doubled
        seconds += (
            per_edge
            * edges
            * (
                ONE_FORCE * steps * settings.seeds
                + settings.relax_steps / 2
                + len(settings.sigmas_A) * settings.per_sigma
            )
        )
        need = max(need, edges * settings.seeds * guessed_bytes_per_edge(card) * doubled)
    free = available_bytes("cpu")
    text = f"about {duration(seconds)}, {size(need)} of {size(free)} free (a guess from the sizes of the models)"
    return services.Estimate(seconds, need / 1e6, free / 1e6, need < free, False, text)


def submit(
    viewer: runs.Viewer,
    structures: Sequence[Structure],
    ids: Sequence[str],
    parameters: Mapping[str, Any],
    *,
    title: str,
    dtype: str = "float32",
    device: str = "auto",
    seed: int = 0,
    refusals: Sequence[Failure] = (),
) -> runs.Run:
    """Queue a measurement, or return the one that already answers the same question. Raises QuotaError, UnknownModelError, UsageError."""
    spec = spec_of(structures, ids, parameters, dtype=dtype, device=device, seed=seed)
    lane = runs.lane_of(device, estimate(spec, structures).seconds)
    return runs.submit(viewer, spec, structures, title=title, lane=lane, refusals=refusals)


def of_run(run: runs.Run) -> Measured:
    """What a measurement has found so far."""
    return drifts.read(runs.folder(run), run.spec, runs.inputs(run))


def command_line(files: Sequence[str], spec: Spec) -> str:
    """The command that repeats a measurement; what is at its default is left out."""
    assert spec.model is not None
    names = ",".join([spec.model.id, *spec.parameters.get("models", ())])
    given = {k: v for k, v in spec.parameters.items() if k in FLAGS}
    unnamed = replace(spec, model=None)
    dtype = [] if spec.model.dtype == "float32" else ["--dtype", spec.model.dtype]
    return repeat.command_line(files, unnamed, given, FLAGS, "--models", names, *dtype, "--zip", "stability.zip")


def provenance(spec: Spec, result: Mapping[str, Any] | None) -> dict[str, Any]:
    """How it can be repeated."""
    return {
        "spec": json.loads(spec.to_json()),
        "spec_sha256": spec.sha256,
        "result": None if result is None else dict(result),
    }
