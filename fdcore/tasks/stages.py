"""Of which stages a loop consists, and what may be asked of each: frozen records, the task that does them being `generations`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from fdcore.dynamics.settings import between, whole
from fdcore.errors import UsageError
from fdcore.finetune.settings import Finetuning, Recipe, Train
from fdcore.stability.settings import Stability
from fdcore.tasks.attack import AttackParameters
from fdcore.tasks.base import Parameters
from fdcore.tasks.stability import require_reference
from fdcore.units import KB

MOST_GENERATIONS = 5


@dataclass(frozen=True)
class GenerationsParameters(Parameters, Recipe, Stability):
    """generations : how often it is attacked, labelled and fine-tuned; from the second on from the model and with the structures of all
        before. reference : a name of `fdcore.reference`. n_replay : labelled structures at the end that are only looked
        at; replay_sha256: of their labels.
    also_direct : in the first generation also train F_nc alone, to compare with. wall_seconds : no new generation begins after so many
        seconds of computing (None: no limit).
    count, rise, spread, apart, attack_steps, starts, attack_relax_fmax_eV_per_A : of every attack, as `Attack`, `Choice` and
        `AttackParameters`.
    window_eV_per_atom : as of `Attack`; None: 3/2 k T at temperature_K, what a simulation at that temperature visits. What lies far above
        teaches the model little about where it is used, and it forgets (docs/method.md has the figures).
    The others are those of `Recipe` and `Stability`.
    """

    reference: str = "chgnet"
    generations: int = 2
    also_direct: bool = True
    n_replay: int = 0
    replay_sha256: str = ""
    wall_seconds: float | None = None
    count: int = 100
    rise: float = 1.0
    spread: bool = True
    apart: float = 0.1
    window_eV_per_atom: float | None = None
    attack_steps: int = AttackParameters.steps
    starts: int | None = None
    attack_relax_fmax_eV_per_A: float | None = AttackParameters.relax_fmax_eV_per_A

    def __post_init__(self) -> None:
        Recipe.__post_init__(self)
        Stability.__post_init__(self)
        require_reference(self.reference)
        whole("generations", self.generations, 1, MOST_GENERATIONS)
        whole("n_replay", self.n_replay, 0, 1_000_000)
        if not isinstance(self.also_direct, bool):
            raise UsageError(f"also_direct is {self.also_direct!r}; true or false is needed.")
        if self.wall_seconds is not None:
            between("wall-seconds", self.wall_seconds, 0.0, 1e9, "s")
        # The rest are the rules of the records that it becomes.
        self.attack()
        self.finetuning("both")

    @property
    def window(self) -> float:
        """Energy above its start that an attack may reach, eV/atom."""
        return 1.5 * KB * self.temperature_K if self.window_eV_per_atom is None else self.window_eV_per_atom

    def attack(self) -> dict[str, Any]:
        """Parameters of the task `attack`."""
        given = {
            "count": self.count,
            "rise": self.rise,
            "spread": self.spread,
            "apart": self.apart,
            "window_eV_per_atom": self.window,
            "steps": self.attack_steps,
            "starts": self.starts,
            "relax_fmax_eV_per_A": self.attack_relax_fmax_eV_per_A,
        }
        AttackParameters(**given)
        return given

    def finetuning(self, train: Train) -> Finetuning:
        return Finetuning(train=train, **{f.name: getattr(self, f.name) for f in fields(Recipe)})

    def stability(self) -> Stability:
        return Stability(**{f.name: getattr(self, f.name) for f in fields(Stability)})

    def stages(self) -> list[Stage]:
        """What is done, in order."""
        out = []
        for g in range(1, self.generations + 1):
            out += [Stage("attack", g), Stage("label", g)]
            if g == 1 and self.also_direct:
                out.append(Stage("finetune", g, "direct"))
            out.append(Stage("finetune", g, "both"))
        return [*out, Stage("stability", self.generations)]


@dataclass(frozen=True)
class Stage:
    """One stage; `train` of a fine-tuning."""

    kind: str
    generation: int
    train: Train = "both"

    @property
    def product(self) -> str:
        """How the model of a fine-tuning is called among the products."""
        return f"model-{self.generation}-{self.train}"

    @property
    def text(self) -> str:
        what = {
            "attack": "attack",
            "label": "labels",
            "finetune": f"fine-tuning ({self.train})",
            "stability": "stability",
        }[self.kind]
        return what if self.kind == "stability" else f"generation {self.generation}: {what}"
