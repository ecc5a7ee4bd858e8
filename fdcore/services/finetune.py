"""What a page or the command line may ask of fine-tunings: what can be trained on, cost, submission, results, and the models they made."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fdcore import data, finetuning, services
from fdcore.errors import FdcoreError, UsageError, WeightsError
from fdcore.finetuning import Trained
from fdcore.human import duration, size
from fdcore.labels import FROM_FILE, LabelledSet
from fdcore.models import finetuned
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
from fdcore.reference import REFERENCES
from fdcore.services import adversarial, repeat, runs
from fdcore.spec import ModelChoice, Spec
from fdcore.tasks.finetune import MOST_WORDS, FinetuneParameters, FinetuneTask, labels_sha256

FAMILIES = ("embedded", "orb", "finetuned")
# Of a step of training, in evaluations of both forces: F_nc only, and both by double backward (measured).
STEP_COST = {"direct": 1.6, "both": 3.7}
FLAGS: dict[str, str] = {
    name: name.replace("_", "-")
    for name in FinetuneParameters.__dataclass_fields__
    if name not in ("n_replay", "labels_sha256")
}
# Runs that are looked through for models.
MOST_RUNS = 500


def can_train(card: ModelCard) -> str:
    """Why this model cannot be fine-tuned here; empty where it can."""
    if card.family in FAMILIES and card.kind == "direct":
        return ""
    if card.family in ("eqv2", "fairchem"):
        return (
            f"{card.id} cannot be fine-tuned here: its package trains with its own launcher, data format and configuration, and exposes no "
            "step that F_c could be added to. The labelled ASE database that you can download is what its launcher reads."
        )
    return f"{card.id} cannot be fine-tuned here: only the Orb family and the embedded models can."


def trainable(card: ModelCard, structures: Sequence[Structure]) -> tuple[list[Structure], list[Failure]]:
    """Labelled structures that this model can read; for each of the others the reason."""
    good: list[Structure] = []
    refused: list[Failure] = []
    for structure in structures:
        try:
            check_covered(card, structure)
            if "forces_eV_per_A" not in structure.labels or "energy_eV" not in structure.labels:
                raise UsageError(
                    "It has no reference energy or no reference force.", "Label it (fdcore label), or leave it out."
                )
        except FdcoreError as error:
            refused.append(Failure(structure.file, error.message, error.hint, structure.index))
        else:
            good.append(structure)
    return good, refused


@cache
def shipped_replay(model_id: str) -> tuple[Structure, ...]:
    """Labelled structures of this model's own domain that travel with the package; those of its base for a fine-tuned one."""
    card = services.card(model_id)
    root = finetuned.architecture_of(card)
    root = services.card(root).member_of or root
    file = data.path("labels", f"{root}.extxyz")
    if not file.is_file():
        return ()
    parsed = services.read_paths([str(file)])
    return tuple(s for s in parsed.structures if "energy_eV" in s.labels and "forces_eV_per_A" in s.labels)


def check_settings(parameters: Mapping[str, Any]) -> None:
    """UsageError for settings that no fine-tuning has, whatever it is trained on."""
    repeat.parameters_of(FinetuneParameters, "finetune", parameters)


def spec_of(
    structures: Sequence[Structure],
    replay: Sequence[Structure],
    model: ModelChoice,
    parameters: Mapping[str, Any],
    *,
    seed: int = 0,
    groups: Sequence[int] | None = None,
) -> Spec:
    """The description of a fine-tuning; the labels say themselves by what they were made, unless `labelled_by` does. Raises UsageError."""
    complete = [*structures, *replay]
    methods = [m for m in LabelledSet.of(structures).methods if m != FROM_FILE]
    said = {"labelled_by": "; ".join(methods)[:MOST_WORDS]}
    more = {
        "n_replay": len(replay),
        "labels_sha256": labels_sha256(complete),
        "groups": None if groups is None else tuple(groups),
    }
    given = repeat.parameters_of(FinetuneParameters, "finetune", {**said, **parameters, **more})
    spec = runs.spec_of("finetune", complete, model, given, seed=seed)
    FinetuneTask().check(spec)
    return spec


def estimate(card: ModelCard, spec: Spec, structures: Sequence[Structure]) -> services.Estimate:
    """What it will cost at most; early stopping saves the rest."""
    parameters: FinetuneParameters = FinetuneParameters.of(spec)
    doubled = 2.0 if spec.model is not None and spec.model.dtype == "float64" else 1.0
    edges = [estimated_edges(s, card.cutoff_A, card.neighbour_cap) for s in structures]
    trained = edges[: len(edges) - parameters.n_replay]
    per_edge = guessed_seconds_per_edge(card) * doubled
    kept = 1 - parameters.held_out
    passes = parameters.epochs * (kept * STEP_COST[parameters.train] + parameters.held_out) + 2
    steps = -(-len(trained) // parameters.batch) * parameters.epochs
    # However small the structures, a step is so many operations one after the other.
    seconds = STEP_COST[parameters.train] * LEAST_SECONDS * steps + per_edge * (
        sum(trained) * passes + 2 * sum(edges[len(trained) :])
    )
    factor = DOUBLE_BACKWARD_MEMORY if parameters.train == "both" else 1.0
    # A batch that does not fit is divided, a structure is not.
    need = max(edges, default=0.0) * guessed_bytes_per_edge(card) * doubled * factor
    free = available_bytes("cpu")
    text = f"about {duration(seconds)} on an idle machine, {size(need)} of {size(free)} free for the largest structure"
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
    groups: Sequence[int] | None = None,
    refusals: Sequence[Failure] = (),
) -> runs.Run:
    """Queue a fine-tuning, or return the one that already answers the same question. Raises QuotaError, UnknownModelError, UsageError."""
    card = services.card(model.id)
    problem = can_train(card)
    if problem:
        raise UsageError(problem, "Choose another model.")
    spec = spec_of(structures, replay, model, parameters, seed=seed, groups=groups)
    complete = [*structures, *replay]
    lane = runs.lane_of(model.device, estimate(card, spec, complete).seconds)
    return runs.submit(viewer, spec, complete, title=title, lane=lane, refusals=refusals)


def of_run(run: runs.Run) -> Trained:
    """What a fine-tuning has come to so far."""
    return finetuning.read(runs.folder(run))


# ---- the models that were made -----------------------------------------------------------------------------------------


def model_of(run: runs.Run) -> ModelCard | None:
    """The model that a finished fine-tuning made, which from now on is known by its name; None before."""
    found = of_run(run)
    if found.model_folder is None:
        return None
    return known(found.model_folder)


def known(folder: Path) -> ModelCard:
    """The card of a run's model; its name leads to the folder from now on, and ends with it."""
    card, _ = finetuned.read(folder)
    _link(card.id, folder)
    return card


def own_models(viewer: runs.Viewer) -> tuple[ModelCard, ...]:
    """Models that this viewer's own runs have made, the newest first; also those of a loop that is not finished."""
    out: dict[str, ModelCard] = {}
    for run in runs.list_runs(viewer, tasks=("finetune", "generations"), limit=MOST_RUNS):
        for folder in runs.model_folders(run):
            # One that cannot be read is missing in a list, and no reason to show none of them.
            with contextlib.suppress(WeightsError):
                card = known(folder)
                out.setdefault(card.id, card)
    return tuple(out.values())


def lineage(card: ModelCard) -> list[dict[str, Any]]:
    """The fine-tunings that a model has behind it, the oldest first; none for a published one."""
    return finetuned.lineage_of(card)


def groups_of(structures: Sequence[Structure]) -> tuple[int, ...] | None:
    """The climb of each structure where all of them come from an attack: those of one climb are alike. None elsewhere."""
    climbs = [adversarial.climb_of(s) for s in structures]
    return None if not climbs or None in climbs else tuple(c for c in climbs if c is not None)


def method_note(card: ModelCard, known: LabelledSet) -> str:
    """What one must know of the methods of these labels before this model is trained on them; empty where they are the model's own."""
    methods = known.methods
    if len(methods) > 1:
        return (
            f"The labels are of {len(methods)} different methods ({'; '.join(methods)}). Their energies and forces contradict each other: "
            "train on those of one."
        )
    for _, label in known.labelled[:1]:
        origin, own = label.provenance, card.reference_method
        if origin.reference == FROM_FILE:
            return (
                f"The file does not say by what it was labelled. {card.id} reproduces {own}; if the labels are of another method, the "
                "model will follow them and leave its own."
            )
        reference = REFERENCES.get(origin.reference)
        title = origin.reference if reference is None else reference.title
        if title.split(" ")[0].casefold() != own.split(" ")[0].casefold() and origin.method not in own:
            return (
                f"{card.id} was trained to reproduce {own}; these labels are of {origin.method}. The model will follow the labels and "
                "leave its own method: errors on its own domain then grow also where nothing is forgotten."
            )
    return ""


def command_line(files: Sequence[str], spec: Spec) -> str:
    """The command that repeats a fine-tuning; what is at its default is left out."""
    given = {k: v for k, v in spec.parameters.items() if k in FLAGS}
    more = [] if spec.parameters.get("n_replay") else ["--replay", "none"]
    return repeat.command_line(files, spec, given, FLAGS, *more, model_flag="base", yes_or_no=True)


def _link(model_id: str, folder: Path) -> None:
    place = finetuned.models_folder() / model_id
    if place.is_symlink() and place.resolve() == folder.resolve():
        return
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = place.with_name(f".{model_id}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(os.path.relpath(folder.resolve(), place.parent.resolve()), target_is_directory=True)
    fresh.replace(place)
