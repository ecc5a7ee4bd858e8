"""What a page or the command line may ask of loops: cost, submission, results, and the models they made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fdcore import generations, models, services
from fdcore import reference as references
from fdcore.attack.ascent import GRADIENT_COST
from fdcore.errors import UsageError
from fdcore.generations import Loop
from fdcore.human import duration, size
from fdcore.models.base import (
    DOUBLE_BACKWARD_MEMORY,
    available_bytes,
    estimated_edges,
    guessed_bytes_per_edge,
    guessed_seconds_per_edge,
)
from fdcore.records import Failure, Structure
from fdcore.services import finetune, repeat, runs, stability
from fdcore.spec import ModelChoice, Spec
from fdcore.tasks.attack import AttackParameters
from fdcore.tasks.finetune import labels_sha256
from fdcore.tasks.generations import GenerationsTask
from fdcore.tasks.motion import leg_timestep
from fdcore.tasks.stages import GenerationsParameters

# Of the evaluations that steps and epochs could take; starts end early, and so do trainings.
TYPICAL_SHARE = 0.7
# What the parameters are called on the command line.
FLAGS: dict[str, str] = {
    "reference": "reference",
    "generations": "generations",
    "also_direct": "also-direct",
    "wall_seconds": "wall-seconds",
    "count": "count",
    "rise": "rise",
    "spread": "spread",
    "apart": "apart",
    "window_eV_per_atom": "window",
    "attack_steps": "attack-steps",
    "starts": "starts",
    "attack_relax_fmax_eV_per_A": "attack-relax-fmax",
    **{k: v for k, v in finetune.FLAGS.items() if k in GenerationsParameters.__dataclass_fields__},
    **{k: v for k, v in stability.FLAGS.items() if k != "reference"},
}


def check_settings(parameters: Mapping[str, Any]) -> None:
    """UsageError for settings that no loop has, whatever it begins with."""
    repeat.parameters_of(GenerationsParameters, "generations", parameters)


def spec_of(
    structures: Sequence[Structure],
    replay: Sequence[Structure],
    model: ModelChoice,
    parameters: Mapping[str, Any],
    *,
    seed: int = 0,
) -> Spec:
    """The description of a loop. Raises UsageError."""
    problem = finetune.can_train(services.card(model.id))
    if problem:
        raise UsageError(problem, "Choose another model.")
    more = {"n_replay": len(replay), "replay_sha256": labels_sha256(replay) if replay else ""}
    given = repeat.parameters_of(GenerationsParameters, "generations", {**parameters, **more})
    spec = runs.spec_of("generations", [*structures, *replay], model, given, seed=seed)
    labels = references.reference(GenerationsParameters.of(spec).reference)
    spec = replace(spec, versions={**spec.versions, labels.id: labels.version})
    GenerationsTask().check(spec)
    return spec


def estimate(spec: Spec, structures: Sequence[Structure]) -> services.Estimate:
    """What it will cost, without what the reference takes."""
    parameters: GenerationsParameters = GenerationsParameters.of(spec)
    assert spec.model is not None
    card = services.card(spec.model.id)
    starts = structures[: len(structures) - parameters.n_replay]
    edges = [estimated_edges(s, card.cutoff_A, card.neighbour_cap) for s in starts]
    mean, total = sum(edges) / len(edges), sum(edges)
    settings, steadiness = parameters.finetuning("both"), parameters.stability()
    attack = (
        GRADIENT_COST * AttackParameters(**parameters.attack()).starts_for(len(starts)) * parameters.attack_steps * mean
    )
    trained = 0.0
    for stage in parameters.stages():
        if stage.kind == "finetune":
            trained += parameters.count * stage.generation * mean * settings.epochs * finetune.STEP_COST[stage.train]
    steps = steadiness.leg(leg_timestep(starts, steadiness.timestep_fs)).steps
    trainings = sum(s.kind == "finetune" for s in parameters.stages())
    moved = stability.ONE_FORCE * steps * steadiness.seeds * total * (1 + trainings)
    doubled = 2.0 if spec.model.dtype == "float64" else 1.0
    work = TYPICAL_SHARE * (parameters.generations * attack + trained) + moved
    seconds = work * guessed_seconds_per_edge(card) * doubled
    need = max(DOUBLE_BACKWARD_MEMORY * max(edges), steadiness.seeds * total) * guessed_bytes_per_edge(card) * doubled
    free = available_bytes("cpu")
    text = (
        f"about {duration(seconds)} and the time of {parameters.reference}; {size(need)} of {size(free)} free (guesses)"
    )
    return services.Estimate(seconds, need / 1e6, free / 1e6, need < free, False, text)


def submit(
    viewer: runs.Viewer,
    structures: Sequence[Structure],
    replay: Sequence[Structure],
    model: ModelChoice,
    parameters: Mapping[str, Any],
    *,
    title: str,
    seed: int = 0,
    refusals: Sequence[Failure] = (),
) -> runs.Run:
    """Queue a loop, or return the one that already answers the same question. Raises QuotaError, UnknownModelError, UsageError."""
    spec = spec_of(structures, replay, model, parameters, seed=seed)
    complete = [*structures, *replay]
    lane = runs.lane_of(model.device, estimate(spec, complete).seconds)
    return runs.submit(viewer, spec, complete, title=title, lane=lane, refusals=refusals)


def of_run(run: runs.Run) -> Loop:
    """What a loop has come to so far."""
    return generations.read(runs.folder(run), run.spec, runs.inputs(run))


def models_of(run: runs.Run) -> dict[str, str]:
    """The ids of the models that a loop has finished, by the title of their training; from now on they are known by their names."""
    out = {}
    for training in of_run(run).trainings:
        if training.folder is not None:
            out[training.title] = finetune.known(training.folder).id
    return out


def provenance(spec: Spec, result: Mapping[str, Any] | None) -> dict[str, Any]:
    """How it can be repeated."""
    return {
        "spec": json.loads(spec.to_json()),
        "spec_sha256": spec.sha256,
        "result": None if result is None else dict(result),
    }


def command_line(files: Sequence[str], spec: Spec) -> str:
    """The command that repeats a loop; what is at its default is left out."""
    given = {k: v for k, v in spec.parameters.items() if k in FLAGS}
    more = [] if spec.parameters.get("n_replay") else ["--replay", "none"]
    return repeat.command_line(files, spec, given, FLAGS, *more, "--out", "loop", model_flag="base", yes_or_no=True)


def trainable_models() -> tuple[str, ...]:
    """Ids of the listed models that can be fine-tuned here, those on this machine first."""
    cards = [c for c in models.list_models() if not finetune.can_train(c)]
    return tuple(c.id for c in sorted(cards, key=lambda c: not models.is_here(c)))
