"""What an attack is asked to do: a frozen record without arrays, so that whoever submits a run can check it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fdcore.dynamics.settings import between, one_of, whole
from fdcore.errors import UsageError

Gradient = Literal["auto", "double-backward", "finite-difference", "one-sided"]
GRADIENTS: tuple[Gradient, ...] = ("auto", "double-backward", "finite-difference", "one-sided")
MOST_STEPS, MOST_STARTS = 100_000, 4096
# Below this (eV/Å) U_Delta itself is rounding, and the direction of its gradient with it.
NO_FORCE_DELTA = 1e-4


@dataclass(frozen=True)
class Attack:
    """r_new = r_old + alpha grad U_Delta - beta grad E, per start (eq. 3).

    steps : at most, per start.
    alpha (Å^3/eV), beta (Å^2/eV) : constant, as in the paper. alpha None: chosen per start from its first gradients, so that its
        fastest atom moves by first_step_A. beta None: so that at those gradients the second term is `balance` times as long as
        the first.
    temperature_K : climb U exp(-(E - E_0) / N k T) instead, the Boltzmann weight of a structure per atom against its own
        start, which needs no training data: beta is then alpha U / N k T at every step. None: beta is constant.
    max_step_A : no atom moves farther in one step.
    rattle_A : standard deviation of the random displacement of every copy but the first, per component.
    strain : the cell moves, too: at most max_strain per component and step, 10 max_strain altogether.
    closest, max_force_eV_per_A, window_eV_per_atom : a step that breaks one of them is not made: shortest distance as a share of
        the sum of covalent radii, largest F_c or F_nc of an atom, energy per atom above that of the structure it came from.
    gradient : as `Model.gradients`. "one-sided" is the cheapest and only gives the direction of the next step, 0.2 to 4 % off (cosine above
        0.999, measured); energy, U_Delta and both forces of every structure are exact whatever it is.
    patience : steps without a new highest U_Delta (by 0.5 %) after which it has stopped rising.
    """

    steps: int = 50
    alpha: float | None = None
    beta: float | None = None
    balance: float = 0.3
    first_step_A: float = 0.04
    temperature_K: float | None = None
    max_step_A: float = 0.06
    rattle_A: float = 0.05
    strain: bool = False
    max_strain: float = 0.01
    closest: float = 0.75
    max_force_eV_per_A: float = 50.0
    window_eV_per_atom: float = 0.4
    patience: int = 8
    gradient: Gradient = "one-sided"

    def __post_init__(self) -> None:
        whole("steps", self.steps, 1, MOST_STEPS)
        whole("patience", self.patience, 1, MOST_STEPS)
        one_of("gradient method", self.gradient, GRADIENTS)
        if self.alpha is not None:
            between("alpha", self.alpha, 1e-9, 1e6, "Å^3/eV")
        if self.beta is not None:
            between("beta", self.beta, 0.0, 1e6, "Å^2/eV")
        between("balance", self.balance, 0.0, 100.0, "")
        between("first-step", self.first_step_A, 1e-4, 1.0, "Å")
        if self.temperature_K is not None:
            between("temperature", self.temperature_K, 1.0, 1e6, "K")
        between("max-step", self.max_step_A, 1e-4, 1.0, "Å")
        between("rattle", self.rattle_A, 0.0, 1.0, "Å")
        if not isinstance(self.strain, bool):
            raise UsageError(f"strain is {self.strain!r}; true or false is needed.")
        between("max-strain", self.max_strain, 1e-5, 0.1, "")
        between("closest", self.closest, 0.0, 1.0, "of the sum of covalent radii")
        between("max-force", self.max_force_eV_per_A, 0.1, math.inf, "eV/Å")
        between("window", self.window_eV_per_atom, 1e-4, 100.0, "eV/atom")
        if self.temperature_K is not None and self.beta is not None:
            raise UsageError("beta and temperature both weigh the energy.", "Give one of them.")


@dataclass(frozen=True)
class Choice:
    """Which of the visited structures make the dataset.

    count : at most. rise : U_Delta at least so many times that of the structure it came from.
    spread : evenly over the range of U_Delta instead of the highest first.
    apart : how much two of them differ at least, as a share of what a random displacement of 0.1 Å per component makes
        (see `fdcore.attack.environments`).
    """

    count: int = 10
    rise: float = 5.0
    spread: bool = False
    apart: float = 0.3

    def __post_init__(self) -> None:
        whole("count", self.count, 1, 100_000)
        between("rise", self.rise, 0.0, 1e6, "")
        if not isinstance(self.spread, bool):
            raise UsageError(f"spread is {self.spread!r}; true or false is needed.")
        between("apart", self.apart, 0.0, 100.0, "")
