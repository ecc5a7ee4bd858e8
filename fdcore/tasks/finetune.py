"""Fine-tuning as a task: the labelled structures first, then those of the base model's own domain that are only looked at.

steps   one row per step of the optimiser
checks  errors of the averaged weights: on what is held out after every epoch, on everything before and after

The result names the model, which is the product "model": a folder that `fdcore.models.finetuned` reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from fdcore.errors import UsageError
from fdcore.finetune.settings import Finetuning
from fdcore.spec import Spec
from fdcore.store.series import Checkpoint, Column, Tables
from fdcore.tasks.base import Job, Note, Parameters, Product, Progress, Rows, Run, Savable

if TYPE_CHECKING:
    from fdcore.finetune.training import Checked, Training
    from fdcore.models.orb_training import Example
    from fdcore.records import Structure

MODEL = "model"
# Of `labelled_by`, in characters.
MOST_WORDS = 500
PARTS_SEEN = ("train", "held-out", "replay")
WHEN = ("before", "epoch", "after")


@dataclass(frozen=True)
class FinetuneParameters(Parameters, Finetuning):
    """As `Finetuning`, and: n_replay, how many structures at the end are only looked at; groups, of each of the others, what it is alike
    to (a climb, a trajectory; None: each for itself); labelled_by, the method of the labels in words; labels_sha256 of
    `labels_sha256`: content ids do not know of labels."""

    n_replay: int = 0
    groups: tuple[int, ...] | None = None
    labelled_by: str = ""
    labels_sha256: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.n_replay) is not int or self.n_replay < 0:
            raise UsageError(f"n_replay is {self.n_replay!r}; a whole number is needed.")
        if self.groups is not None:
            if not isinstance(self.groups, (list, tuple)) or not all(type(g) is int for g in self.groups):
                raise UsageError(f"groups are {self.groups!r}; one whole number per structure is needed.")
            object.__setattr__(self, "groups", tuple(self.groups))
        if not isinstance(self.labelled_by, str) or len(self.labelled_by) > MOST_WORDS:
            raise UsageError("labelled_by is no short text.")

    def settings(self) -> Finetuning:
        return Finetuning(**{f.name: getattr(self, f.name) for f in fields(Finetuning)})


def labels_sha256(structures: Sequence[Structure]) -> str:
    """Over the labels of these structures, in their order."""
    h = hashlib.sha256(b"fdcore.labels.1")
    for structure in structures:
        for key in sorted(structure.labels):
            value = structure.labels[key]
            h.update(key.encode() + (repr(value).encode() if isinstance(value, int | float | str) else value.tobytes()))
    return h.hexdigest()


class FinetuneTask:
    name = "finetune"
    unit = "step"

    def check(self, spec: Spec) -> None:
        parameters: FinetuneParameters = FinetuneParameters.of(spec)
        trained = spec.n_structures - parameters.n_replay
        if trained < 1:
            raise UsageError("There is nothing to train on.", "Give labelled structures.")
        if parameters.groups is not None and len(parameters.groups) != trained:
            raise UsageError(
                f"{len(parameters.groups)} groups are named for {trained} structures.", "Name one for each."
            )

    def tables(self, spec: Spec, structures: Sequence[Structure]) -> Tables:
        return {
            "steps": {
                "epoch": Column("<i4"),
                "step": Column("<i8"),
                "learning_rate": Column(),
                "loss": Column(),
                # NaN where it is not part of what is minimised.
                "loss_energy": Column(),
                "loss_direct": Column(),
                "loss_conservative": Column(),
                "slope": Column(),
            },
            "checks": {
                # Positions in WHEN and PARTS_SEEN.
                "when": Column("<i1"),
                "part": Column("<i1"),
                "epoch": Column("<i4"),
                "n_structures": Column("<i8"),
                "error_direct_eV_per_A": Column(),
                "error_conservative_eV_per_A": Column(),
                "force_delta_eV_per_A": Column(),
                "error_energy_meV_per_atom": Column(),
            },
        }

    def run(self, job: Job) -> Run:
        from fdcore.finetune.training import Ended, Step, Training

        model, parameters = job.needs_model(), FinetuneParameters.of(job.spec)
        n = len(job.structures) - parameters.n_replay
        examples = examples_of(job.structures[:n])
        if job.state is None:
            for k in sorted(set(range(n)) - set(examples)):
                left_out = job.structures[k]
                yield Note({"file": left_out.file, "index": left_out.index, "left_out": "it has no energy or no force"})
        state = None if job.state is None else (job.state.values["training"], job.state.arrays)
        training = Training(
            model,
            list(examples.values()),
            parameters.settings(),
            job.spec.seed,
            replay=list(examples_of(job.structures[n:]).values()),
            groups=None if parameters.groups is None else [parameters.groups[k] for k in examples],
            state=state,
        )
        checks: list[Checked] = list(() if job.state is None else map(_checked, job.state.values["checks"]))
        latest = "looking at it before"
        yield Progress(training.step, training.steps, latest)
        for event in training.run():
            if event is None:
                yield Progress(training.step, training.steps, latest)
                yield Savable(lambda: _state(training, checks))
            elif isinstance(event, Step):
                latest = f"epoch {event.epoch + 1} of at most {parameters.epochs}, loss {event.loss:.3g}"
                yield step_row(event)
            elif isinstance(event, Ended):
                yield Note({"ended": event.reason, "best_epoch": event.best_epoch, "epochs_done": event.epochs_done})
            else:
                if event.when != "epoch":
                    # Those of every epoch are in the table.
                    checks.append(event)
                yield check_row(event)
        # Also where it stopped early.
        yield Progress(training.steps, training.steps, f"{training.epoch} epochs")
        return (yield from _finished(job, training, parameters, checks))


def examples_of(structures: Sequence[Structure]) -> dict[int, Example]:
    """What can be trained on, by position: structures whose energy and forces are known."""
    import numpy as np

    from fdcore.models.orb_training import Example

    found: dict[int, Example] = {}
    for k, structure in enumerate(structures):
        energy, reference = structure.labels.get("energy_eV"), structure.labels.get("forces_eV_per_A")
        if isinstance(energy, int | float) and isinstance(reference, np.ndarray):
            found[k] = Example(structure, energy, reference)
    return found


def _finished(job: Job, training: Training, parameters: FinetuneParameters, checks: Sequence[Checked]) -> Run:
    """Keep the model; the result names it."""
    from fdcore.finetune.product import write

    model, made = job.needs_model(), []
    step = lineage_step(job, training, parameters.settings(), parameters.labelled_by, checks)
    step["labels_sha256"] = parameters.labels_sha256
    yield Product(MODEL, lambda folder: made.append(write(folder, training, model, step)))
    [card] = made
    return {
        "model": card.id,
        "model_sha256": card.sha256,
        "base": model.card.id,
        "best_epoch": training.best_epoch,
        "epochs_done": training.epoch,
        "steps_done": training.step,
        "n_trained": len(training.trained_on),
        "n_held_out": len(training.held_out),
        "energy_shifts_eV": step["energy_shifts_eV"],
        "device": model.device,
        "weights_sha256": model.weights_sha256,
    }


def lineage_step(
    job: Job, training: Training, settings: Finetuning, labelled_by: str, checks: Sequence[Checked]
) -> dict[str, Any]:
    """What the card says of this fine-tuning: everything that decides what the weights are, and nothing of the machine."""
    return {
        "labelled_by": labelled_by,
        "inputs_sha256": job.spec.inputs_sha256,
        "n_structures": len(training.examples),
        "n_held_out": len(training.held_out),
        "seed": job.spec.seed,
        "settings": asdict(settings),
        "versions": dict(job.spec.versions),
        "best_epoch": training.best_epoch,
        "epochs_done": training.epoch,
        "energy_shifts_eV": {str(z): s for z, s in training.shifts.items()},
        "checks": [asdict(c) for c in checks],
    }


def _state(training: Training, checks: Sequence[Checked]) -> Checkpoint:
    values, arrays = training.save()
    return Checkpoint({"training": values, "checks": [asdict(c) for c in checks]}, arrays)


def _checked(values: Mapping[str, Any]) -> Checked:
    from fdcore.finetune.training import Checked

    return Checked(**values)


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value


def step_row(step: Any) -> Rows:
    return Rows(
        "steps",
        {
            "epoch": [step.epoch],
            "step": [step.step],
            "learning_rate": [step.learning_rate],
            "loss": [step.loss],
            "loss_energy": [_nan(step.loss_energy)],
            "loss_direct": [_nan(step.loss_direct)],
            "loss_conservative": [_nan(step.loss_conservative)],
            "slope": [step.slope],
        },
    )


def check_row(checked: Checked) -> Rows:
    return Rows(
        "checks",
        {
            "when": [WHEN.index(checked.when)],
            "part": [PARTS_SEEN.index(checked.part)],
            "epoch": [checked.epoch],
            "n_structures": [checked.n_structures],
            "error_direct_eV_per_A": [checked.error_direct],
            "error_conservative_eV_per_A": [checked.error_conservative],
            "force_delta_eV_per_A": [checked.force_delta],
            "error_energy_meV_per_atom": [checked.energy_error],
        },
    )
