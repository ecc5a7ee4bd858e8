"""What a page or the command line may ask of ensembles: who can be a member, cost, submission, results."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from fdcore import ensemble, models, services
from fdcore.ensemble import Compared
from fdcore.errors import FdcoreError
from fdcore.human import duration, size
from fdcore.models.base import (
    available_bytes,
    check_covered,
    estimated_edges,
    guessed_bytes_per_edge,
    guessed_seconds_per_edge,
)
from fdcore.records import Failure, ModelCard, Structure
from fdcore.services import runs
from fdcore.spec import ModelChoice, Spec
from fdcore.tasks.ensemble import EnsembleTask

# F_nc alone against both forces from one graph (measured for Orb: 1.9 to 2.1).
ONE_FORCE = 0.5


def members() -> tuple[ModelCard, ...]:
    """Every model that has a force, conservative ones too, embedded ones first."""
    return models.list_models()


def members_with(own: Sequence[ModelCard]) -> tuple[ModelCard, ...]:
    """`members`, and these models that somebody's own runs have made."""
    return (*members(), *own)


def default_members(model_id: str) -> tuple[str, ...]:
    """The models that are on this machine and were trained to reproduce the same method as this one, it first."""
    own = models.card(model_id)
    alike = [
        c.id for c in members() if c.reference_method == own.reference_method and c.id != own.id and models.is_here(c)
    ]
    return (own.id, *alike)


def mixed_methods(ids: Sequence[str]) -> str:
    """Why these should not be in one ensemble, in words; empty where they may."""
    return models.mixed_methods([models.card(i) for i in ids])


def reference_groups(ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """These members by the method that they were trained to reproduce."""
    return models.reference_groups([models.card(i) for i in ids])


def comparable(card: ModelCard, structures: Sequence[Structure]) -> tuple[list[Structure], list[Failure]]:
    """Those that the judged model can read; for each of the others the reason. What a member cannot read is told per structure."""
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


def estimate(
    card: ModelCard, structures: Sequence[Structure], ids: Sequence[str], dtype: str = "float32"
) -> services.Estimate:
    """What it will cost, by the sizes of the models."""
    doubled = 2.0 if dtype == "float64" else 1.0
    seconds, need = services.estimate(card, structures, dtype).seconds, 0.0
    for one in map(models.card, ids):
        edges = [estimated_edges(s, one.cutoff_A, one.neighbour_cap) for s in structures]
        seconds += ONE_FORCE * sum(edges) * guessed_seconds_per_edge(one) * doubled
        need = max(need, max(edges, default=0.0) * guessed_bytes_per_edge(one) * doubled)
    free = available_bytes("cpu")
    text = f"about {duration(seconds)}, {size(need)} of {size(free)} free (a guess from the sizes of the models)"
    return services.Estimate(seconds, need / 1e6, free / 1e6, need < free, False, text)


def submit(
    viewer: runs.Viewer,
    structures: Sequence[Structure],
    model: ModelChoice,
    ids: Sequence[str],
    *,
    mix_methods: bool,
    title: str,
    refusals: Sequence[Failure] = (),
) -> runs.Run:
    """Queue the comparison, or return the one that already answers the same question. Raises QuotaError, UnknownModelError, UsageError."""
    spec = runs.spec_of("ensemble", structures, model, parameters_of(ids, mix_methods))
    seconds = estimate(models.card(model.id), structures, ids, model.dtype).seconds
    return runs.submit(
        viewer, spec, structures, title=title, lane=runs.lane_of(model.device, seconds), refusals=refusals
    )


def check(spec: Spec) -> None:
    """Raises UsageError for members that cannot make an ensemble."""
    EnsembleTask().check(spec)


def parameters_of(ids: Sequence[str], mix_methods: bool) -> dict[str, object]:
    """What a spec holds; mix_methods only where it says something."""
    return {"members": list(ids), **({"mix_methods": True} if mix_methods and mixed_methods(ids) else {})}


def of_run(run: runs.Run) -> Compared:
    """What a comparison has found so far."""
    assert run.spec.model is not None
    return ensemble.read(runs.folder(run), run.spec.model.id, run.spec.parameters["members"], runs.inputs(run))


def command_line(files: Sequence[str], model: ModelChoice, ids: Sequence[str], mix_methods: bool) -> str:
    """The command that repeats it."""
    words = ["fdcore", "ensemble", *map(services.as_argument, files), "--models", ",".join(ids)]
    if model.id != ids[0]:
        words += ["--model", model.id]
    if model.dtype != "float32":
        words += ["--dtype", model.dtype]
    if mix_methods and mixed_methods(ids):
        words.append("--mix-methods")
    return shlex.join(words)
