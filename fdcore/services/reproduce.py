"""What a page or the command line may ask of reproductions: what there is to reproduce, cost, submission, results."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from fdcore import models, reproduction, services
from fdcore import reference as references
from fdcore.errors import UsageError
from fdcore.human import duration
from fdcore.models.base import guessed_seconds_per_edge
from fdcore.records import Failure, Structure
from fdcore.reproduce.protocols import MODELS, SYSTEMS, Part, parts
from fdcore.reproduce.settings import ALL, NEED_REFERENCE, PRESETS, TARGETS, Target, targets_of
from fdcore.reproduction import TASK, Reproduced
from fdcore.services import repeat, runs
from fdcore.spec import ModelChoice, Spec
from fdcore.structures import read_sources
from fdcore.tasks import task
from fdcore.tasks.reproduce import ReproduceParameters, ReproduceTask, spec_of

__all__ = ["ALL", "NEED_REFERENCE", "PRESETS", "TARGETS", "Question", "Target", "targets_of"]

# Who labels where nobody says otherwise: PBE of a teacher for crystals and liquids, tight binding for molecules; the paper's way is DFT.
REFERENCES = {"quick": {"periodic": "chgnet", "molecule": "gfn2"}, "paper": {"periodic": "gpaw", "molecule": "gpaw"}}
# No teacher at hand knows a liquid: CHGNet is for inorganic crystals.
UNLABELLED = ("water_box",)
NOBODY = "none"


@dataclass(frozen=True)
class Question:
    """A reproduction that can be run: its spec, its structures, what to say of it beforehand."""

    spec: Spec
    structures: tuple[Structure, ...]
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        return parts(ReproduceParameters.of(self.spec), self.structures).parts


def question(
    targets: Sequence[str],
    *,
    preset: str = "quick",
    structures: Sequence[Structure] = (),
    chosen: Sequence[str] = (),
    reference: str | None = None,
    effort: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    device: str = "auto",
    seed: int = 0,
) -> Question:
    """What is to be run for these targets ("all": every one).

    structures : the user's; () for the shipped examples that each target looks at. chosen : models in place of the preset's. reference :
    who labels all of them; None for one that fits each and is here; "none" for nobody. Raises UsageError.
    """
    wanted = targets_of(tuple(targets))
    if preset not in PRESETS:
        raise UsageError(f"There is no preset {preset!r}.", f"Known are {' and '.join(PRESETS)}.")
    own = bool(structures)
    named = _named(structures) if own else _examples(wanted, preset)
    notes: list[str] = []
    labels = tuple(_reference(name, s, preset, reference, notes) for name, s in named.items())
    if not any(labels) and any(t in NEED_REFERENCE for t in wanted):
        notes.append("Nobody labels: errors are missing, and nothing can be learnt.")
    given = {
        "targets": wanted,
        "preset": preset,
        "names": tuple(named),
        "own": own,
        "models": tuple(services.card(m).id for m in chosen),
        "references": labels,
        "effort": dict(effort or {}),
    }
    listed = tuple(named.values())
    asked = parts(ReproduceParameters(**given), listed)
    first = next((p.model for p in asked.parts if p.model), None)
    if first is None:
        said = [s for missing in asked.missing.values() for s in missing]
        raise UsageError(
            "There is nothing that could be done.", said[0] if said else "Name other models or structures."
        )
    plain = repeat.parameters_of(ReproduceParameters, TASK, given)
    spec = runs.spec_of(TASK, listed, ModelChoice(first, dtype, device), plain, seed=seed)
    ReproduceTask().check(spec)
    # A value that a part would refuse is known before any of them is run.
    for part in asked.parts:
        task(part.task).check(spec_of(spec, part, max(1, len(part.source.places)), None))
    return Question(spec, listed, tuple(dict.fromkeys(notes)))


def _named(structures: Sequence[Structure]) -> dict[str, Structure]:
    """The user's structures by what their files are called."""
    out: dict[str, Structure] = {}
    for structure in structures:
        stem = PurePath(structure.file).stem or structure.formula
        name = stem if stem not in out and not structure.index else f"{stem}_{structure.index}"
        while name in out:
            name += "_"
        out[name] = structure
    return out


def _examples(targets: Sequence[str], preset: str) -> dict[str, Structure]:
    wanted = dict.fromkeys(name for t in targets for name in SYSTEMS[preset][t])
    shipped = {e.id: e for e in services.examples()}
    return {name: read_sources([services.example_source(shipped[name])]).structures[0] for name in wanted}


def _reference(name: str, structure: Structure, preset: str, asked: str | None, notes: list[str]) -> str:
    if asked == NOBODY:
        return ""
    if asked is not None:
        return references.reference(asked).id
    if name in UNLABELLED and preset == "quick":
        return ""
    found = references.REFERENCES[REFERENCES[preset][structure.kind]]
    if not found.is_here:
        notes.append(f"{found.title} is not here, so errors of {name} are missing. {found.install}")
        return ""
    return found.id


# ---- cost --------------------------------------------------------------------------------------------------------------


def seconds(asked: Question) -> float:
    """What it will take, roughly, on one core: the weights of its parts were measured with the embedded models."""
    known = guessed_seconds_per_edge(services.card(models.DEFAULT_MODEL))
    total = 0.0
    for part in asked.parts:
        share = guessed_seconds_per_edge(services.card(part.model)) / known if part.model else 1.0
        total += part.weight * share
    return total * (2.0 if asked.spec.model is not None and asked.spec.model.dtype == "float64" else 1.0)


def cost(asked: Question) -> str:
    """In words."""
    slow = [p for p in asked.parts if p.task in ("label", "validate") and p.parameters.get("reference") == "gpaw"]
    more = ", and hours to days of GPAW" if slow else ""
    return f"{len(asked.parts)} parts, about {duration(seconds(asked))} on one core{more} (a guess)"


# ---- runs --------------------------------------------------------------------------------------------------------------


def submit(viewer: runs.Viewer, asked: Question, *, title: str, refusals: Sequence[Failure] = ()) -> runs.Run:
    """Queue it, or return the run that already answers the same question. Raises QuotaError, UsageError."""
    assert asked.spec.model is not None
    lane = runs.lane_of(asked.spec.model.device, seconds(asked))
    return runs.submit(viewer, asked.spec, asked.structures, title=title, lane=lane, refusals=refusals)


def of_run(run: runs.Run) -> Reproduced:
    """What a run has found so far."""
    return reproduction.read(runs.folder(run), run.spec, runs.inputs(run))


def provenance(spec: Spec, result: Mapping[str, Any] | None) -> dict[str, Any]:
    """How it can be repeated."""
    return {
        "spec": json.loads(spec.to_json()),
        "spec_sha256": spec.sha256,
        "result": None if result is None else dict(result),
    }


def command_line(files: Sequence[str], spec: Spec) -> str:
    """The command that repeats it."""
    p: ReproduceParameters = ReproduceParameters.of(spec)
    words = ["fdcore", TASK, *([ALL] if p.targets == tuple(TARGETS) else p.targets), "--preset", p.preset]
    if p.own:
        words += ["--structures", *map(services.as_argument, files)]
    if p.models:
        words += ["--models", ",".join(p.models)]
    labelled = {r for r in p.references if r}
    usual = {REFERENCES[p.preset][k] for k in ("periodic", "molecule")}
    if not labelled:
        words += ["--reference", NOBODY]
    elif not labelled <= usual and len(labelled) == 1:
        words += ["--reference", *labelled]
    for name, value in p.effort.items():
        words += ["--set", f"{name}={json.dumps(value)}"]
    if spec.model is not None and spec.model.dtype != "float32":
        words += ["--dtype", spec.model.dtype]
    if spec.seed:
        words += ["--seed", str(spec.seed)]
    return shlex.join(words)


def preset_models(preset: str) -> dict[str, tuple[str, ...]]:
    """Which models each target asks, where nobody names others."""
    return dict(MODELS[preset])
