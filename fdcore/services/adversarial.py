"""What a page or the command line may ask of attacks: cost, submission, results, and a reference to hold them against."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from fdcore import adversarial, services, truth
from fdcore.adversarial import Adversarial
from fdcore.attack import references
from fdcore.attack.ascent import GRADIENT_COST
from fdcore.attack.settings import Choice
from fdcore.human import duration, size
from fdcore.models.base import (
    DOUBLE_BACKWARD_MEMORY,
    available_bytes,
    estimated_edges,
    guessed_bytes_per_edge,
    guessed_seconds_per_edge,
)
from fdcore.records import Failure, ModelCard, Structure
from fdcore.services import dynamics, runs
from fdcore.spec import ModelChoice, Spec
from fdcore.tasks.attack import AttackParameters
from fdcore.truth import Compared

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
    complete = AttackParameters.of(Spec("attack", None, "", 1, given))
    return {f.name: getattr(complete, f.name) for f in fields(complete) if getattr(complete, f.name) != f.default}


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
    # The low-memory form is taken where the exact one does not fit.
    need = max(edges) * guessed_bytes_per_edge(card) * doubled
    free = available_bytes("cpu")
    text = f"about {duration(seconds)}, {size(need * DOUBLE_BACKWARD_MEMORY)} of {size(free)} free"
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


# ---- a reference ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Offered:
    """A reference that may be asked for: whether it is installed, and what to do where it is not."""

    id: str
    title: str
    about: str
    is_here: bool
    install: str


def offered_references() -> tuple[Offered, ...]:
    """Named references, installed or not."""
    return tuple(
        Offered(r.id, r.title, r.about, r.is_here, f"pip install 'force-delta[{r.extra}]'")
        for r in references.REFERENCES.values()
        if r.extra
    )


def to_compare(attack: Adversarial, also: int = ALSO_COMPARED) -> list[Structure]:
    """The dataset, and structures from the whole range of U_Delta that the attack went through, its origins among them. Each once,
    named by where it comes from."""
    rest = attack.choose(Choice(count=also, rise=0.0, spread=True, apart=0.0))
    rows = list(dict.fromkeys([*attack.selected.rows, *rest.rows]))
    origins = [o.structure for o in attack.origins.values() if not o.problem]
    out = [replace(s, file=f"{s.file} (origin)", labels={}) for s in origins]
    out += [
        replace(f.structure, file=f"start {f.start}, step {f.step}", index=f.row)
        for f in adversarial.found(attack, rows)
    ]
    # The first step of a start that was not displaced is its origin.
    return list({s.content_id: s for s in out}.values())


def compare(
    viewer: runs.Viewer, structures: Sequence[Structure], model: ModelChoice, reference: str, *, title: str
) -> runs.Run:
    """Queue the comparison of these structures with a named reference."""
    spec = runs.spec_of("truth", structures, model, {"reference": reference})
    # What a reference costs nobody knows beforehand; it is never quick.
    return runs.submit(viewer, spec, structures, title=title, lane=runs.lane_of(model.device, 1e9))


def truth_of_run(run: runs.Run) -> tuple[list[Compared], list[Failure]]:
    """What a comparison has found so far."""
    return truth.read(runs.folder(run), runs.inputs(run))


def labelled(
    attack: Adversarial, frames: Sequence[Structure], tolerance_A: float = 1e-3
) -> list[tuple[Structure, int]]:
    """Which of the visited structures each labelled frame is: same elements in the same order, positions and cell within a tolerance
    (files round). Frames without forces, or that are none of them, are left out. (structure as visited with the labels, row)."""
    candidates = adversarial.found(attack, range(attack.n_steps))
    out = []
    for frame in frames:
        if "forces_eV_per_A" not in frame.labels:
            continue
        for item in candidates:
            there = item.structure
            if (
                np.array_equal(there.numbers, frame.numbers)
                and np.abs(there.cell - frame.cell).max() < tolerance_A
                and _same_place(there, frame) < tolerance_A
            ):
                name = f"start {item.start}, step {item.step}"
                out.append((replace(there, labels=frame.labels, file=name, index=item.row), item.row))
                break
    return out


def _same_place(a: Structure, b: Structure) -> float:
    """The largest distance between an atom in one and in the other, images of a crystal being the same place."""
    apart = a.positions - b.positions
    if a.periodic:
        fractions = np.linalg.solve(a.cell.T, apart.T).T
        apart = (fractions - np.round(fractions)) @ a.cell
    return float(np.abs(apart).max())


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
    words = ["fdcore", "attack", *files]
    model = spec.model
    if model is not None and model.id != services.default_model_id():
        words += ["--model", model.id]
    if model is not None and model.dtype != "float32":
        words += ["--dtype", model.dtype]
    for name, value in parameters_of(spec.parameters).items():
        words.append(f"--{_FLAGS[name]}")
        if not isinstance(value, bool):
            words.append("none" if value is None else str(value))
    if spec.seed:
        words += ["--seed", str(spec.seed)]
    words += ["--out", "dataset.extxyz"]
    return shlex.join(words)
