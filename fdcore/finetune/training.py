"""The training: AdamW on the losses of `fdcore.models.orb_training`, as a generator of frozen records.

What is yielded is what happened, and None after every step, where the state is complete and `save` may be called. Taken up from a
saved state, everything that follows is the same to the last bit on a CPU: the order of the structures and their rotations depend on the
seed, the epoch and the step alone, never on what ran before.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from fdcore import delta
from fdcore.errors import ComputeError, UsageError
from fdcore.finetune.settings import Finetuning
from fdcore.models.base import DOUBLE_BACKWARD_MEMORY, MEMORY_SHARE, Model, OutOfMemory
from fdcore.models.orb import OrbModel
from fdcore.models.orb_training import Example, OrbTraining, Weights
from fdcore.records import Evaluation
from fdcore.units import MEV_PER_EV

Arrays = Mapping[str, NDArray[Any]]
Part = Literal["train", "held-out", "replay"]
When = Literal["before", "epoch", "after"]
# Share of the steps over which the learning rate rises.
WARM_UP = 0.05
# Beyond this mean distance (eV/atom) "auto" takes the labels' zero of energy: errors of models are far smaller, other methods' zeros are
# farther away.
OTHER_ZERO_EV_PER_ATOM = 1.0
# Models of fewer parameters are small.
SMALL_PARAMETERS = 2_000_000
# Of the training structures so many are looked at before and after, evenly chosen.
MOST_CHECKED = 100


@dataclass(frozen=True)
class Step:
    """One step of the optimiser: the losses of its batch (None: not computed) and the learning rate."""

    epoch: int
    step: int
    learning_rate: float
    loss: float
    loss_energy: float | None
    loss_direct: float | None
    loss_conservative: float | None
    # Norm of the gradient before it was clipped.
    slope: float


@dataclass(frozen=True)
class Checked:
    """Errors of the averaged weights on structures that were not trained on (or were: `part` says): root mean squares over all of their
    components, error_direct and error_conservative and U_Delta in eV/Å, energy_error (mean absolute) in meV/atom."""

    when: When
    part: Part
    epoch: int
    n_structures: int
    error_direct: float
    error_conservative: float
    force_delta: float
    energy_error: float


@dataclass(frozen=True)
class Ended:
    """Why it ended, and which epoch's weights are the result; 0: no epoch was better than the base."""

    reason: Literal["all epochs", "no longer better"]
    best_epoch: int
    epochs_done: int


Event = Step | Checked | Ended


class Training:
    """One fine-tuning of `base` on `examples`; `replay` are labelled structures of the base model's own domain, only looked at.

    groups : of each example, what it is alike to (a climb, a trajectory): a group is held out whole. None: each for itself.
    held_out : which examples are not trained on, instead of drawing them.
    Raises UsageError for a model that cannot be trained or too few examples.
    """

    def __init__(
        self,
        base: Model,
        examples: Sequence[Example],
        settings: Finetuning,
        seed: int,
        *,
        replay: Sequence[Example] = (),
        groups: Sequence[Hashable] | None = None,
        held_out: Sequence[int] | None = None,
        state: tuple[Mapping[str, Any], Arrays] | None = None,
    ) -> None:
        if not isinstance(base, OrbModel):
            raise UsageError(
                f"{base.card.id} cannot be fine-tuned here: only the Orb family and the embedded models can.",
                "Fine-tune it with its own package; the labelled extXYZ and ASE database that you can download are what those read.",
            )
        self.base_id = base.card.id
        self.examples, self.replay, self.settings, self.seed = tuple(examples), tuple(replay), settings, seed
        for example in (*self.examples, *self.replay):
            base.check(example.structure)
        self.held_out = (
            draw_held_out(len(self.examples), settings.held_out, seed, groups) if held_out is None else list(held_out)
        )
        self.trained_on = [k for k in range(len(self.examples)) if k not in set(self.held_out)]
        if not self.trained_on:
            raise UsageError("No labelled structure is left to train on.", "Label more, or hold out fewer.")
        self.peak = settings.learning_rate or peak_for(base.card.n_parameters)
        self._work = OrbTraining(base, settings.parts, settings.rank, seed)
        self._weights = Weights(*settings.weights)
        self._parameters = self._work.parameters
        self._average = {n: p.detach().clone() for n, p in self._parameters.items()}
        self._best = {n: p.clone() for n, p in self._average.items()}
        self._optimizer = torch.optim.AdamW(self._parameters.values(), lr=self.peak, weight_decay=settings.weight_decay)
        self.epoch, self._batch, self.step, self.best_epoch = 0, 0, 0, 0
        self._lowest, self._begun, self._after = math.inf, False, 0
        self.shifts: dict[int, float] = {}
        self.limit = self._edge_limit()
        if state is not None:
            self._load(*state)

    # ---- how far ---------------------------------------------------------------------------------------------------

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.trained_on) // self.settings.batch)

    @property
    def steps(self) -> int:
        """As many as there will be unless it stops early."""
        return self.steps_per_epoch * self.settings.epochs

    @property
    def stopped_early(self) -> bool:
        patience = self.settings.patience
        return bool(self.held_out and patience and self.epoch - self.best_epoch >= patience)

    # ---- the training ----------------------------------------------------------------------------------------------

    def run(self) -> Iterator[Event | None]:
        if not self._begun:
            yield from self._begin()
            yield None
        while self.epoch < self.settings.epochs and not self.stopped_early:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.trained_on)
            while self._batch < self.steps_per_epoch:
                first = self._batch * self.settings.batch
                yield self.one_step(order[first : first + self.settings.batch].tolist())
                self._batch += 1
                self.step += 1
                if self._batch < self.steps_per_epoch:
                    yield None
            self._batch, self.epoch = 0, self.epoch + 1
            yield from self._judge()
            yield None
        yield from self._finish()

    def _begin(self) -> Iterator[Event]:
        yield from self._checks("before")
        zero = self.settings.zero
        if zero != "model":
            energies = [
                e.energy for e in self._evaluated(self._work.model, [self.examples[k] for k in self.trained_on])
            ]
            trained = [self.examples[k] for k in self.trained_on]
            away = np.mean([(e.energy - own) / e.structure.n_atoms for e, own in zip(trained, energies, strict=True)])
            if zero == "labels" or abs(away) > OTHER_ZERO_EV_PER_ATOM:
                self.shifts = dict(self._work.shift_reference_energies(trained, energies))
        if self.held_out:
            # The base competes: what is worse than it is no result.
            self._lowest = self._score(
                self._check(self._work.trained({}), "before", "held-out", self._examples_held_out())
            )
        self._begun = True

    def _examples_held_out(self) -> list[Example]:
        return [self.examples[k] for k in self.held_out]

    def _score(self, checked: Checked) -> float:
        """What is to become small on the held-out structures: the error of F_nc, with that of F_c where it is trained."""
        both = self.settings.train == "both"
        return math.hypot(checked.error_direct, checked.error_conservative) if both else checked.error_direct

    def one_step(self, numbers: Sequence[int]) -> Step:
        settings = self.settings
        rate = learning_rate(self.step, self.steps, self.peak)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        random = np.random.default_rng([self.seed, self.epoch, self._batch])
        turns = (
            Rotation.random(len(numbers), random).as_matrix()
            if settings.rotate
            else np.repeat(np.eye(3)[None], len(numbers), 0)
        )
        while True:
            self._optimizer.zero_grad(set_to_none=True)
            try:
                losses = self._losses(numbers, turns)
                break
            except OutOfMemory:
                # Smaller pieces, unless it is one structure already that does not fit.
                if self.limit < max(self._edges(k) for k in numbers):
                    raise ComputeError(
                        "One structure needs more memory to train on than there is.",
                        "Use smaller cells, train direct, or a machine with more memory.",
                    ) from None
                self.limit /= 2
        slope = float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), settings.clip))
        if not math.isfinite(losses["loss"]) or not math.isfinite(slope):
            raise ComputeError(
                f"The loss is no longer a number at step {self.step} of epoch {self.epoch + 1}.",
                "Begin again with a lower learning rate, and look at the labels with the largest forces.",
            )
        self._optimizer.step()
        # Young averages forget their beginning faster.
        keep = min(settings.averaging, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                self._average[name].lerp_(parameter, 1 - keep)
        return Step(
            self.epoch,
            self.step,
            rate,
            losses["loss"],
            losses.get("energy"),
            losses.get("direct"),
            losses.get("conservative"),
            slope,
        )

    def _losses(self, numbers: Sequence[int], turns: NDArray[np.float64]) -> dict[str, float]:
        """Over the batch, in pieces that fit into memory: the gradient is that of the whole batch's loss up to how structures of unequal
        size share it."""
        pieces = _pieces([self._edges(k) for k in numbers], self.limit)
        found: dict[str, float] = {}
        for piece in pieces:
            share = len(piece) / len(numbers)
            examples = {numbers[i]: self.examples[numbers[i]] for i in piece}
            for name, value in self._work.losses(examples, self._weights, turns[list(piece)], share).items():
                found[name] = found.get(name, 0.0) + share * value
        return found

    def _edges(self, number: int) -> float:
        return self._work.model._edge_count(self.examples[number].structure)

    def _edge_limit(self) -> float:
        model = self._work.model
        factor = DOUBLE_BACKWARD_MEMORY if self._weights.conservative > 0 else 1.0
        return MEMORY_SHARE * model.available_bytes() / (model.bytes_per_edge * factor)

    # ---- looking at it ---------------------------------------------------------------------------------------------

    def _judge(self) -> Iterator[Event]:
        """After an epoch: is it better?"""
        if not self.held_out:
            self._keep()
            return
        checked = self._check(self._averaged(), "epoch", "held-out", self._examples_held_out())
        score = self._score(checked)
        if score < self._lowest:
            self._lowest = score
            self._keep()
        yield checked

    def _keep(self) -> None:
        self._best = {n: p.clone() for n, p in self._average.items()}
        self.best_epoch = self.epoch

    def _finish(self) -> Iterator[Event]:
        yield from self._checks("after")
        yield Ended(
            "no longer better" if self.epoch < self.settings.epochs else "all epochs", self.best_epoch, self.epoch
        )

    def _checks(self, when: When) -> Iterator[Checked]:
        model = self.result() if when == "after" else self._work.trained({})
        picked = np.unique(np.linspace(0, len(self.trained_on) - 1, MOST_CHECKED).round().astype(int))
        parts: tuple[tuple[Part, list[Example]], ...] = (
            ("train", [self.examples[self.trained_on[k]] for k in picked]),
            ("held-out", [self.examples[k] for k in self.held_out]),
            ("replay", list(self.replay)),
        )
        for part, examples in parts:
            if examples:
                yield self._check(model, when, part, examples)

    def _check(self, model: OrbModel, when: When, part: Part, examples: Sequence[Example]) -> Checked:
        found = self._evaluated(model, examples)
        return Checked(
            when,
            part,
            self.epoch,
            len(examples),
            _rms(
                [
                    delta.rms_difference(e.forces_direct, x.forces_reference)
                    for e, x in zip(found, examples, strict=True)
                ],
                examples,
            ),
            _rms(
                [
                    delta.rms_difference(e.forces_conservative, x.forces_reference)
                    for e, x in zip(found, examples, strict=True)
                ],
                examples,
            ),
            _rms([e.force_delta for e in found], examples),
            MEV_PER_EV
            * float(
                np.mean([abs(e.energy - x.energy) / x.structure.n_atoms for e, x in zip(found, examples, strict=True)])
            ),
        )

    @staticmethod
    def _evaluated(model: OrbModel, examples: Sequence[Example]) -> list[Evaluation]:
        return model.evaluate([e.structure for e in examples])

    def _averaged(self) -> OrbModel:
        return self._work.trained(self._average)

    def result(self) -> OrbModel:
        """The best weights so far, as a model of its own."""
        return self._work.trained(self._best)

    # ---- saved states ----------------------------------------------------------------------------------------------

    def save(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Everything that what follows depends on: plain values and arrays."""
        values = {
            "epoch": self.epoch,
            "batch": self._batch,
            "step": self.step,
            "best_epoch": self.best_epoch,
            "lowest": self._lowest if math.isfinite(self._lowest) else None,
            "begun": self._begun,
            "limit": self.limit,
            "shifts": {str(z): s for z, s in self.shifts.items()},
        }
        arrays: dict[str, NDArray[Any]] = {"reference": self._reference.detach().cpu().numpy().copy()}
        for name, parameter in self._parameters.items():
            arrays[f"parameter/{name}"] = _copied(parameter)
            arrays[f"average/{name}"] = _copied(self._average[name])
            arrays[f"best/{name}"] = _copied(self._best[name])
            known = self._optimizer.state.get(parameter)
            if known:
                arrays[f"first/{name}"] = _copied(known["exp_avg"])
                arrays[f"second/{name}"] = _copied(known["exp_avg_sq"])
        return values, arrays

    def _load(self, values: Mapping[str, Any], arrays: Arrays) -> None:
        self.epoch, self._batch, self.step = int(values["epoch"]), int(values["batch"]), int(values["step"])
        self.best_epoch, self._begun, self.limit = (
            int(values["best_epoch"]),
            bool(values["begun"]),
            float(values["limit"]),
        )
        self._lowest = math.inf if values["lowest"] is None else float(values["lowest"])
        self.shifts = {int(z): float(s) for z, s in values["shifts"].items()}
        with torch.no_grad():
            self._reference.copy_(torch.from_numpy(np.array(arrays["reference"])))
            for name, parameter in self._parameters.items():
                for kind, tensor in (
                    ("parameter", parameter),
                    ("average", self._average[name]),
                    ("best", self._best[name]),
                ):
                    tensor.copy_(torch.from_numpy(np.array(arrays[f"{kind}/{name}"])))
                if f"first/{name}" in arrays:
                    self._optimizer.state[parameter] = {
                        "step": torch.tensor(float(self.step)),
                        "exp_avg": torch.from_numpy(np.array(arrays[f"first/{name}"])).to(parameter.device),
                        "exp_avg_sq": torch.from_numpy(np.array(arrays[f"second/{name}"])).to(parameter.device),
                    }

    @property
    def _reference(self) -> torch.Tensor:
        return self._work.model.module.heads["energy"].reference.linear.weight


def draw_held_out(n: int, share: float, seed: int, groups: Sequence[Hashable] | None = None) -> list[int]:
    """Which of n examples are not trained on: whole groups, drawn at random until `share` of the examples is reached; at least one group
    and never all where share > 0 and there are two groups or more."""
    if groups is not None and len(groups) != n:
        raise UsageError(f"{len(groups)} groups are named for {n} labelled structures.", "Name one for each.")
    if share <= 0:
        return []
    names = list(range(n)) if groups is None else list(groups)
    kinds = list(dict.fromkeys(names))
    if len(kinds) < 2:
        return []
    drawn: set[Hashable] = set()
    count = 0
    for k in np.random.default_rng([seed, 1]).permutation(len(kinds))[: len(kinds) - 1]:
        if count >= share * n:
            break
        drawn.add(kinds[k])
        count += sum(name == kinds[k] for name in names)
    return [k for k, name in enumerate(names) if name in drawn]


def peak_for(n_parameters: int) -> float:
    """The highest learning rate where none is asked for: what suits the embedded models (measured: 1e-3 halves the drift that 3e-4 leaves in
    as many epochs) would undo a large one."""
    return 1e-3 if n_parameters < SMALL_PARAMETERS else 3e-4


def learning_rate(step: int, total: int, peak: float) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = max(1, round(WARM_UP * total))
    if step < warm:
        return peak * (step + 1) / warm
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _pieces(edges: Sequence[float], limit: float) -> list[range]:
    """Consecutive ranges whose edges stay within the limit; one that exceeds it alone is a piece of its own."""
    out, start, total = [], 0, 0.0
    for k, more in enumerate(edges):
        if k > start and total + more > limit:
            out.append(range(start, k))
            start, total = k, 0.0
        total += more
    return [*out, range(start, len(edges))]


def _rms(values: Sequence[float], examples: Sequence[Example]) -> float:
    """Over all components of all structures, from the root mean square of each."""
    atoms = np.array([e.structure.n_atoms for e in examples], float)
    return float(np.sqrt(np.average(np.square(values), weights=atoms)))


def _copied(tensor: torch.Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy().copy()
