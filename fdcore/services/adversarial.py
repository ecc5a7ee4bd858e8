"""What a page or the command line may ask of attacks: cost, submission, results, and a reference to hold them against."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fdcore import adversarial, services, validation
from fdcore import reference as references
from fdcore.adversarial import Adversarial
from fdcore.attack.ascent import GRADIENT_COST
from fdcore.attack.settings import Choice
from fdcore.human import duration, size
from fdcore.labels import match
from fdcore.models.base import (
    DOUBLE_BACKWARD_MEMORY,
    available_bytes,
    estimated_edges,
    guessed_bytes_per_edge,
    guessed_seconds_per_edge,
)
from fdcore.records import Failure, ModelCard, Structure
from fdcore.services import dynamics, repeat, runs
from fdcore.spec import ModelChoice, Spec
from fdcore.tasks.attack import AttackParameters
from fdcore.validation import Compared

# Of all the steps that an attack may take; the others are saved by starts that end early (measured: 60 to 90 %).
TYPICAL_SHARE = 0.7
# Structures of a comparison beside those of the dataset, from the whole range of U_Delta: a correlation needs one.
ALSO_COMPARED = 30


def attackable(
    card: ModelCard, structures: Sequence[Structure], strain: bool = False
) -> tuple[list[Structure], list[Failure]]:
    """Those that this model can move, and with `strain` have a cell; for each of the others the reason."""
    good, refused = dynamics.movable(card, structures)
    if strain:
        refused += [
            Failure(
                s.file,
                "Only a crystal has a cell that can be strained.",
                "Attack it without straining the cell (--strain).",
                s.index,
            )
            for s in good
            if not s.periodic
        ]
        good = [s for s in good if s.periodic]
    return good, refused


def parameters_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters without those at their default: what a spec holds, so that equal questions have equal specs. Raises UsageError."""
    return repeat.parameters_of(AttackParameters, "attack", given)


# ---- cost ----------------------------------------------------------------------------------------------------------


def estimate(
    card: ModelCard, structures: Sequence[Structure], spec: Spec, measured: float | None = None
) -> services.Estimate:
    """What an attack will cost. `measured`: seconds per step and edge, from earlier attacks."""
    parameters: AttackParameters = AttackParameters.of(spec)
    doubled = 2.0 if spec.model is not None and spec.model.dtype == "float64" else 1.0
    edges = [estimated_edges(s, card.cutoff_A, card.neighbour_cap) for s in structures]
    steps = TYPICAL_SHARE * parameters.starts_for(len(structures)) * parameters.steps
    per_edge = GRADIENT_COST * guessed_seconds_per_edge(card) * doubled if measured is None else measured
    seconds = per_edge * steps * float(np.mean(edges))
    if parameters.relax_fmax_eV_per_A is not None:
        iterations = min(parameters.relax_steps, dynamics.TYPICAL_ITERATIONS)
        seconds += sum(edges) * guessed_seconds_per_edge(card) * doubled * iterations
    # Where the exact form does not fit, "auto" takes the low-memory one.
    least = max(edges) * guessed_bytes_per_edge(card) * doubled
    exact = DOUBLE_BACKWARD_MEMORY if parameters.gradient in ("auto", "double-backward") else 1.0
    need = least * (exact if parameters.gradient == "double-backward" else 1.0)
    free = available_bytes("cpu")
    text = f"about {duration(seconds)}, {size(least * exact)} of {size(free)} free"
    if measured is None:
        text += " (a guess until this model has attacked here)"
    return services.Estimate(seconds, need / 1e6, free / 1e6, need < free, measured is not None, text)


def measured_speed(viewer: runs.Viewer, card: ModelCard, dtype: str) -> float | None:
    """Seconds per step and edge in this viewer's newest finished attack with this model; None without one."""
    for run in runs.list_runs(viewer, states=("done",), limit=50):
        model = run.spec.model
        if run.task != "attack" or model is None or (model.id, model.dtype) != (card.id, dtype) or not run.summary:
            continue
        structures = runs.inputs(run)
        edges = float(np.mean([estimated_edges(s, card.cutoff_A, card.neighbour_cap) for s in structures]))
        if run.summary["steps_done"] > 20 and edges:
            return run.summary["seconds"] / run.summary["steps_done"] / edges
    return None


# ---- submitting ----------------------------------------------------------------------------------------------------


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
    """Queue an attack, or return the one that already answers the same question. Raises QuotaError, UnknownModelError, UsageError."""
    spec = runs.spec_of("attack", structures, model, parameters_of(parameters), seed=seed)
    card = services.card(model.id)
    seconds = estimate(card, structures, spec, measured_speed(viewer, card, model.dtype)).seconds
    lane = runs.lane_of(model.device, seconds)
    return runs.submit(viewer, spec, structures, title=title, lane=lane, refusals=refusals)


def of_run(run: runs.Run) -> Adversarial:
    """What an attack has recorded so far."""
    return adversarial.read(runs.folder(run), run.spec, runs.inputs(run), run.summary)


def dataset_of(attack: Adversarial) -> list[Structure]:
    """The dataset, highest U_Delta first, each named by where it comes from."""
    return [_named(f) for f in adversarial.dataset(attack)]


def origins_of(attack: Adversarial) -> list[Structure]:
    """What was attacked, relaxed where that was asked for."""
    return [replace(o.structure, labels={}) for o in attack.origins.values() if not o.problem]


def _named(found: adversarial.Found) -> Structure:
    return replace(found.structure, file=f"start {found.start}, step {found.step}", index=found.row)


def climb_of(structure: Structure) -> int | None:
    """The climb that a structure of a dataset comes from, by its name; None for any other."""
    said = re.fullmatch(r"start (\d+), step \d+", structure.file)
    return None if said is None else int(said.group(1))


# ---- a reference ---------------------------------------------------------------------------------------------------


def to_compare(attack: Adversarial, also: int = ALSO_COMPARED) -> tuple[list[Structure], list[int]]:
    """The dataset, and structures from the whole range of U_Delta that the attack went through, its origins among them. Each once,
    named by where it comes from; and of each the climb: the number of its start, of an origin -1, -2, ..."""
    rest = attack.choose(Choice(count=also, rise=0.0, spread=True, apart=0.0))
    rows = list(dict.fromkeys([*attack.selected.rows, *rest.rows]))
    out = [
        (replace(o.structure, file=f"{o.structure.file} (origin)", labels={}), -1 - o.parent)
        for o in attack.origins.values()
        if not o.problem
    ]
    out += [(_named(f), f.start) for f in adversarial.found(attack, rows)]
    # The first step of a start that was not displaced is its origin.
    once = {s.content_id: (s, climb) for s, climb in out}.values()
    return [s for s, _ in once], [climb for _, climb in once]


def comparison_specs(attack: Adversarial, model: ModelChoice) -> list[Spec]:
    """What `compare` asks, per named reference: of the same attack always the same."""
    structures, climbs = to_compare(attack)
    return [_comparison(structures, climbs, model, name) for name in references.REFERENCES]


def _comparison(structures: Sequence[Structure], climbs: Sequence[int], model: ModelChoice, reference: str) -> Spec:
    return runs.spec_of("validate", structures, model, {"reference": reference, "climbs": list(climbs)})


def comparisons(run: runs.Run, specs: Sequence[Spec]) -> tuple[runs.Run, ...]:
    """Those of these comparisons of an attack that its owner has asked for, the newest first. Whoever may see the attack may see what it
    was held against."""
    found = [runs.same_work(runs.Viewer(run.owner), spec) for spec in specs]
    return tuple(sorted((r for r in found if r is not None), key=lambda r: -r.created_at))


def compare(viewer: runs.Viewer, attack: Adversarial, model: ModelChoice, reference: str, *, title: str) -> runs.Run:
    """Queue the comparison of an attack with a named reference, or return the one that there is."""
    structures, climbs = to_compare(attack)
    spec = _comparison(structures, climbs, model, reference)
    # What a reference costs nobody knows beforehand; it is never quick.
    return runs.submit(viewer, spec, structures, title=title, lane=runs.lane_of(model.device, 1e9))


def truth_of_run(run: runs.Run) -> tuple[list[Compared], list[Failure]]:
    """What a comparison has found so far."""
    return validation.read(runs.folder(run), run.spec, runs.inputs(run))


def labelled(
    attack: Adversarial, frames: Sequence[Structure], tolerance_A: float = 1e-3
) -> list[tuple[Structure, int]]:
    """Which of the visited structures each labelled frame is (`fdcore.labels.match`; the elements in the same order). Frames without forces,
    or that are none of them, are left out. (structure as visited with the labels, row)."""
    candidates = adversarial.found(attack, range(attack.n_steps))
    matching = match([item.structure for item in candidates], frames, tolerance_A=tolerance_A)
    out = []
    # One row for each frame, in the order of the frames.
    for here in sorted({m.frame: m for m in reversed(matching.matches)}.values(), key=lambda m: m.frame):
        item = candidates[here.position]
        out.append((replace(_named(item), labels=frames[here.frame].labels), item.row))
    return out


# ---- repeat this ---------------------------------------------------------------------------------------------------

_FLAGS = {
    "steps": "steps",
    "alpha": "alpha",
    "beta": "beta",
    "balance": "balance",
    "first_step_A": "first-step",
    "temperature_K": "temperature-K",
    "max_step_A": "max-step",
    "rattle_A": "rattle",
    "strain": "strain",
    "max_strain": "max-strain",
    "closest": "closest",
    "max_force_eV_per_A": "max-force",
    "window_eV_per_atom": "window",
    "patience": "patience",
    "gradient": "gradient",
    "count": "count",
    "rise": "rise",
    "spread": "spread",
    "apart": "apart",
    "starts": "starts",
    "relax_fmax_eV_per_A": "relax-fmax",
    "relax_steps": "relax-steps",
}


def flags() -> dict[str, str]:
    """The command line option of every parameter, without its dashes."""
    return dict(_FLAGS)


def command_line(files: Sequence[str], spec: Spec) -> str:
    """The command that repeats an attack; what is at its default is left out."""
    given = parameters_of(spec.parameters)
    return repeat.command_line(files, spec, given, _FLAGS, "--out", "dataset.extxyz")
