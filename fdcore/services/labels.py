"""What a page or the command line may ask of reference labels: who can give them, a run that does, its results, and labels out of files."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fdcore import reference as references
from fdcore import services
from fdcore.labels import TOLERANCE_A, Labelled, LabelledSet, Matching, match, structure_with
from fdcore.records import Failure, Structure
from fdcore.reference import Reference
from fdcore.services import runs
from fdcore.spec import Spec
from fdcore.store import structures as stored
from fdcore.tasks import label as label_task

TASK = "label"


@dataclass(frozen=True)
class Offered:
    """A reference that may be asked for: whether it is installed, and what to do where it is not. `settings`: what can be chosen, with
    its defaults."""

    id: str
    title: str
    about: str
    is_here: bool
    install: str
    settings: Mapping[str, Any]


def offered_references() -> tuple[Offered, ...]:
    """Named references, installed or not; none that a command line has registered."""
    return tuple(
        Offered(r.id, r.title, r.about, r.is_here, r.install, r.settings_used)
        for r in references.REFERENCES.values()
        if r.extra or r.environment
    )


# ---- a run ---------------------------------------------------------------------------------------------------------


def spec_of(structures: Sequence[Structure], reference: str, settings: Mapping[str, Any] | None = None) -> Spec:
    """The complete description of labelling these structures. Raises UsageError for a reference or settings that there are not."""
    found: Reference = references.reference(reference, settings)
    usual = references.REFERENCES[reference].settings_used
    # Without those at their default, so that equal questions have equal specs.
    changed = {name: value for name, value in found.settings_used.items() if value != usual[name]}
    return Spec(
        task=TASK,
        model=None,
        inputs_sha256=stored.inputs_sha256(structures),
        n_structures=len(structures),
        parameters={"reference": reference, **({"settings": changed} if changed else {})},
        versions={reference: found.version},
    )


def submit(
    viewer: runs.Viewer,
    structures: Sequence[Structure],
    reference: str,
    settings: Mapping[str, Any] | None = None,
    *,
    title: str,
    refusals: Sequence[Failure] = (),
) -> runs.Run:
    """Queue the labelling of these structures by a named reference, or return the run that already answers the same question.
    Raises QuotaError, UsageError."""
    spec = spec_of(structures, reference, settings)
    # What a reference costs nobody knows beforehand; it is never quick, and none of them uses a GPU.
    return runs.submit(viewer, spec, structures, title=title, lane=runs.lane_of("cpu", 1e9), refusals=refusals)


def of_run(run: runs.Run) -> LabelledSet:
    """The structures of a run with the labels that it has made so far."""
    return label_task.read(runs.folder(run), run.spec, runs.inputs(run))


# ---- labels out of files -------------------------------------------------------------------------------------------


def unlabelled(structures: Sequence[Structure]) -> LabelledSet:
    """Structures without the results that their files brought along."""
    return LabelledSet(tuple(map(Labelled, structures)))


@dataclass(frozen=True)
class Attached:
    """Structures with the labels that were found in files; how they were found; files that could not be read."""

    known: LabelledSet
    matching: Matching
    failures: tuple[Failure, ...]


def of_files(structures: Sequence[Structure]) -> LabelledSet:
    """Structures with the results that their own files brought along."""
    return LabelledSet.of(structures)


def attach(
    known: LabelledSet,
    sources: Sequence[services.Source],
    *,
    reorder: bool = False,
    tolerance_A: float = TOLERANCE_A,
) -> Attached:
    """Give the labels in these files (extended xyz, ASE database, vasprun.xml, OUTCAR; read in a bounded process) to the structures that
    they are of, by content. A label from a file replaces one that is there."""
    parsed = services.read_sources(sources)
    return _attached(known, parsed, reorder, tolerance_A)


def attach_paths(
    known: LabelledSet, paths: Sequence[str], *, reorder: bool = False, tolerance_A: float = TOLERANCE_A
) -> Attached:
    """As `attach`, for files on disk."""
    return _attached(known, services.read_paths(paths), reorder, tolerance_A)


def _attached(known: LabelledSet, parsed: services.Parsed, reorder: bool, tolerance_A: float) -> Attached:
    matching = match(known.structures, parsed.structures, tolerance_A=tolerance_A, reorder=reorder)
    return Attached(known.with_labels(matching.labels), matching, parsed.failures)


def merged(known: LabelledSet, made: LabelledSet) -> LabelledSet:
    """The set with what a run has made of some of its structures, found by content."""
    by_content = {item.structure.content_id: item.label for item in made if item.label is not None}
    found = {k: by_content[s.content_id] for k, s in enumerate(known.structures) if s.content_id in by_content}
    return known.with_labels(found)


def as_inputs(known: LabelledSet) -> tuple[Structure, ...]:
    """The labelled structures, each carrying its label with its origin: what a run that trains on them is given."""
    return tuple(structure_with(structure, label) for structure, label in known.labelled)


# ---- repeat this ---------------------------------------------------------------------------------------------------


def command_line(files: Sequence[str], spec: Spec) -> str:
    """The command that repeats a labelling; what is at its default is left out."""
    words = ["fdcore", "label", *map(services.as_argument, files), "--reference", spec.parameters["reference"]]
    for name, value in spec.parameters.get("settings", {}).items():
        words += ["--set", f"{name}={value}"]
    return shlex.join([*words, "--out", "labelled.extxyz"])
