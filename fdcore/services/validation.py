"""What a page or the command line may ask of validations: which model judges what, cost, submission, results."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fdcore import reference as references
from fdcore import services, validation
from fdcore.human import duration, size
from fdcore.labels import FROM_FILE, label_of_file
from fdcore.models.base import available_bytes, estimated_edges, guessed_bytes_per_edge, guessed_seconds_per_edge
from fdcore.records import Failure, Structure
from fdcore.services import ensemble, runs
from fdcore.shipped_labels import PBE
from fdcore.shipped_labels import shipped as shipped_labels
from fdcore.spec import ModelChoice, Spec
from fdcore.tasks.validate import LABELS, ValidateParameters, ValidateTask
from fdcore.validation import Compared
from fdcore.validation_report import Report

shipped = shipped_labels
ORIGIN_UNKNOWN = "origin unknown; the file does not say what made them"
SHIPPED_FILE = f"{PBE}.extxyz"


@dataclass(frozen=True)
class Judges:
    """Which model judges each structure: ids in the order of how many they judge, and of each structure the place of its own."""

    ids: tuple[str, ...]
    of: tuple[int, ...]

    def of_model(self, structures: Sequence[Structure]) -> dict[str, list[Structure]]:
        """The structures of each."""
        out: dict[str, list[Structure]] = {i: [] for i in self.ids}
        for structure, k in zip(structures, self.of, strict=True):
            out[self.ids[k]].append(structure)
        return out


def one_for_all(model_id: str, structures: Sequence[Structure]) -> Judges:
    """The named model judges everything."""
    return Judges((model_id,), (0,) * len(structures))


def suggested(structures: Sequence[Structure]) -> Judges:
    """For each structure the embedded model that has seen its like, as `fdcore score` chooses it."""
    chosen = [services.suggested_model([s]) for s in structures]
    ids: tuple[str, ...] = tuple(i for i, _ in Counter(chosen).most_common()) or (services.default_model_id(),)
    return Judges(ids, tuple(ids.index(i) for i in chosen))


def unlabelled(structures: Sequence[Structure]) -> int:
    """How many bring no reference forces."""
    return sum(label_of_file(s) is None for s in structures)


def spec_of(
    structures: Sequence[Structure],
    judges: Judges,
    *,
    reference: str = LABELS,
    members: Sequence[str] = (),
    mix_methods: bool = False,
    dtype: str = "float32",
    device: str = "auto",
) -> Spec:
    """The complete description of a validation; what is at its default is left out. Raises UsageError, UnknownModelError."""
    parameters: dict[str, object] = {}
    if reference != LABELS:
        parameters["reference"] = reference
    first, *further = judges.ids
    if further:
        parameters |= {"further": further, "model_of": list(judges.of)}
    if members:
        parameters["ensemble"] = list(members)
        if mix_methods and ensemble.mixed_methods(members):
            parameters["mix_methods"] = True
    spec = runs.spec_of("validate", structures, ModelChoice(first, dtype, device), parameters)
    ValidateTask().check(spec)
    return spec


def estimate(structures: Sequence[Structure], spec: Spec) -> services.Estimate:
    """What it will cost, by the sizes of the models; what a reference takes nobody knows beforehand."""
    parameters: ValidateParameters = ValidateParameters.of(spec)
    assert spec.model is not None
    doubled = 2.0 if spec.model.dtype == "float64" else 1.0
    seconds = need = 0.0
    by: dict[str, list[Structure]] = {}
    for structure, model_id in zip(structures, parameters.models(spec), strict=True):
        by.setdefault(model_id, []).append(structure)
    asked = [(i, listed, 1.0) for i, listed in by.items()]
    asked += [(i, list(structures), ensemble.ONE_FORCE) for i in parameters.ensemble]
    for model_id, listed, share in asked:
        card = services.card(model_id)
        edges = [estimated_edges(s, card.cutoff_A, card.neighbour_cap) for s in listed]
        seconds += share * sum(edges) * guessed_seconds_per_edge(card) * doubled
        need = max(need, max(edges, default=0.0) * guessed_bytes_per_edge(card) * doubled)
    free = available_bytes("cpu")
    more = "" if parameters.reference == LABELS else ", and what the reference takes"
    text = f"about {duration(seconds)}{more}, {size(need)} of {size(free)} free (a guess from the sizes of the models)"
    return services.Estimate(seconds, need / 1e6, free / 1e6, need < free, False, text)


def submit(
    viewer: runs.Viewer,
    structures: Sequence[Structure],
    spec: Spec,
    *,
    title: str,
    refusals: Sequence[Failure] = (),
) -> runs.Run:
    """Queue a validation, or return the one that already answers the same question. Raises QuotaError, UnknownModelError, UsageError."""
    assert spec.model is not None
    seconds = estimate(structures, spec).seconds if spec.parameters.get("reference", LABELS) == LABELS else 1e9
    lane = runs.lane_of(spec.model.device, seconds)
    return runs.submit(viewer, spec, structures, title=title, lane=lane, refusals=refusals)


def of_run(run: runs.Run) -> tuple[list[Compared], list[Failure]]:
    """What a validation has compared so far, and what it could not."""
    compared, failed = validation.read(runs.folder(run), run.spec, runs.inputs(run))
    return compared, [*runs.refusals(run), *failed]


def reference_title(spec: Spec) -> str:
    """What the errors are held against."""
    name = str(spec.parameters.get("reference", LABELS))
    if name == LABELS:
        return "the labels"
    return references.REFERENCES[name].title if name in references.REFERENCES else name


def methods_of(compared: Sequence[Compared]) -> tuple[str, ...]:
    """Where the labels say that they come from, in a few words; that some do not say it, where they do not."""
    found: dict[str, None] = {}
    for c in compared:
        label = label_of_file(c.structure)
        if label is None:
            continue
        known = label.provenance
        functional = str(known.settings.get("xc", ""))
        told = "" if known.reference == FROM_FILE else known.reference
        found[" ".join(filter(None, (told, known.version, functional))) if told else ORIGIN_UNKNOWN] = None
    return tuple(found)


def report_of(run: runs.Run, *, group_by: str | None = None, above: float | None = None, seed: int = 0) -> Report:
    """Everything that a run says. Raises UsageError for a group that there is not."""
    compared, failures = of_run(run)
    found = validation.validate(compared, group_by=group_by, above=above, seed=seed)
    labels = methods_of(compared) if run.spec.parameters.get("reference", LABELS) == LABELS else ()
    return Report(tuple(found), reference_title(run.spec), labels, tuple(failures), runs.provenance_of(run))


def command_line(
    files: Sequence[str],
    spec: Spec,
    *,
    suggested_models: bool,
    group_by: str | None = None,
    above: float | None = None,
    seed: int = 0,
) -> str:
    """The command that repeats it; without a model where each structure was given its own."""
    words = ["fdcore", "validate", *map(services.as_argument, files)]
    model, given = spec.model, spec.parameters
    if model is not None and not suggested_models:
        words += ["--model", model.id]
    if model is not None and model.dtype != "float32":
        words += ["--dtype", model.dtype]
    if "reference" in given:
        words += ["--reference", str(given["reference"])]
    if given.get("ensemble"):
        words += ["--ensemble", ",".join(given["ensemble"])]
    if given.get("mix_methods"):
        words.append("--mix-methods")
    for flag, value in (("--group-by", group_by), ("--above", None if above is None else f"{above:g}")):
        words += [] if value is None else [flag, value]
    words += ["--seed", str(seed)] if seed else []
    return shlex.join(words)
