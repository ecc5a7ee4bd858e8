"""What a fine-tuning is asked to do: a frozen record without arrays, so that whoever submits a run can check it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from fdcore.dynamics.settings import between, one_of, whole
from fdcore.errors import UsageError

Train = Literal["direct", "both"]
Parts = Literal["all", "heads", "low-rank"]
Zero = Literal["auto", "model", "labels"]
TRAINS: tuple[str, ...] = get_args(Train)
PARTS: tuple[str, ...] = get_args(Parts)
ZEROS: tuple[str, ...] = get_args(Zero)
MOST_EPOCHS = 10_000


@dataclass(frozen=True)
class Recipe:
    """How is trained, whatever is. The loss is energy_weight L_E + direct_weight L(F_nc) + conservative_weight L(F_c), each as in
    `fdcore.models.orb_training`.

    energy_weight, direct_weight, conservative_weight : F_nc is what moves atoms, so it weighs most: with equal weights the other two take
        so much of the network's attention that simulations drift twice as far (measured, docs/method.md).
    parts : "all" of the network; the "heads" alone; "low-rank": the heads, and of every matrix of the backbone a change of rank `rank`.
    learning_rate : of AdamW at its highest: it rises over the first twentieth of the steps and falls to zero along a cosine. None: 1e-3 for
        models of fewer than 2 million parameters, 3e-4 for others.
    epochs : at most; batch: structures per step; averaging: how much of the average of the weights a step leaves (EMA).
    held_out : share of the labelled structures that is never trained on and says when to stop.
    patience : epochs without a better held-out error after which it stops; 0: never early. The weights that are kept are those with
        the least held-out error in either case, mostly late ones, since the learning rate falls to zero.
    rotate : turn every structure at random each time it is seen: Orb is not equivariant by construction.
    zero : whose zero of energy holds. "model": labels are taken as they are; "labels": the model's reference energies are first
        shifted per element; "auto": the latter where the labels are more than 1 eV/atom away on average, so that nothing else can be
        learnt before.
    """

    parts: Parts = "all"
    rank: int = 8
    energy_weight: float = 1.0
    direct_weight: float = 10.0
    conservative_weight: float = 1.0
    learning_rate: float | None = None
    weight_decay: float = 0.0
    epochs: int = 100
    batch: int = 8
    averaging: float = 0.99
    clip: float = 1.0
    held_out: float = 0.1
    patience: int = 0
    rotate: bool = True
    zero: Zero = "auto"

    def __post_init__(self) -> None:
        one_of("parts", self.parts, PARTS)
        one_of("zero of energy", self.zero, ZEROS)
        whole("rank", self.rank, 1, 4096)
        whole("epochs", self.epochs, 1, MOST_EPOCHS)
        whole("batch", self.batch, 1, 4096)
        whole("patience", self.patience, 0, MOST_EPOCHS)
        for name in ("energy_weight", "direct_weight", "conservative_weight"):
            between(name.replace("_", "-"), getattr(self, name), 0.0, 1e6, "")
        if self.learning_rate is not None:
            between("learning-rate", self.learning_rate, 1e-9, 1.0, "")
        between("weight-decay", self.weight_decay, 0.0, 1.0, "")
        between("averaging", self.averaging, 0.0, 0.999999, "")
        between("clip", self.clip, 1e-6, 1e6, "")
        between("held-out", self.held_out, 0.0, 0.9, "of the labelled structures")
        if not isinstance(self.rotate, bool):
            raise UsageError(f"rotate is {self.rotate!r}; true or false is needed.")
        if self.direct_weight == 0:
            raise UsageError(
                "Without a loss of F_nc the direct force would fall behind what the rest of the network learns.",
                "Give direct-weight a positive value.",
            )


@dataclass(frozen=True)
class Finetuning(Recipe):
    """train : "direct" is L(F_nc) alone; "both" is all three losses, L(F_c) by differentiating through F_c = -dE/dR."""

    train: Train = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("train", self.train, TRAINS)
        if self.train == "both" and self.conservative_weight == 0 and self.energy_weight == 0:
            raise UsageError(
                "Neither F_c nor the energy has a weight.", "Train direct instead, or give one of them a weight."
            )

    @property
    def weights(self) -> tuple[float, float, float]:
        """Of the losses of the energy, of F_nc and of F_c, as they are minimised."""
        if self.train == "direct":
            # Alone it has nothing to be weighed against.
            return 0.0, 1.0, 0.0
        return self.energy_weight, self.direct_weight, self.conservative_weight
