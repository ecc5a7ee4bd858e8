"""Relaxation along either force, cell fixed: torch-sim's FIRE and L-BFGS, a batch at a time, U_Delta along the way.

FIRE (Bitzek et al. 2006, as ASE implements it) follows the force alone and so works with one that has no potential; L-BFGS
builds a curvature from force differences, which a direct force need not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.data import atomic_masses
from numpy.typing import NDArray

from fdcore import delta
from fdcore.dynamics.settings import Relaxation
from fdcore.models.base import Model
from fdcore.models.neighbours import import_neighbour_lists
from fdcore.records import Structure

# Before torch-sim, which would import the same package with a compiler.
import_neighbour_lists()

import torch  # noqa: E402
from torch_sim.optimizers.fire import fire_init, fire_step  # noqa: E402
from torch_sim.optimizers.lbfgs import lbfgs_init, lbfgs_step  # noqa: E402
from torch_sim.optimizers.state import FireState, LBFGSState  # noqa: E402
from torch_sim.state import SimState  # noqa: E402

from fdcore.dynamics.driver import Driver  # noqa: E402

Array = NDArray[np.float64]
INIT = {"fire": fire_init, "lbfgs": lbfgs_init}
STEP = {"fire": fire_step, "lbfgs": lbfgs_step}
STATE = {"fire": FireState, "lbfgs": LBFGSState}
# No atom moves farther in one iteration (Å).
MAX_STEP_A = 0.2


@dataclass(frozen=True)
class Point:
    """One iteration of one structure: energy (eV), the largest force on an atom (eV/Å) of the driving and, where it was
    computed, of the other force, and U_Delta (eV/Å); None where it was not. `converged`: the driving force is below fmax."""

    system: int
    iteration: int
    energy: float
    fmax: float
    fmax_other: float | None
    force_delta: float | None
    converged: bool


@dataclass(frozen=True)
class Relaxed:
    """Where a structure's relaxation ended: positions (N, 3) Å, both forces (N, 3) eV/Å, and why."""

    system: int
    iteration: int
    converged: bool
    finite: bool
    energy: float
    positions: Array
    forces_direct: Array
    forces_conservative: Array
    note: str


@dataclass(frozen=True)
class Snapshot:
    """A relaxation between two iterations. `tensors`: torch-sim's own state, by name."""

    iteration: int
    active: tuple[int, ...]
    tensors: Mapping[str, NDArray[Any]]
    reference: Array | None


class Descent:
    """A batch of structures on their way down; each leaves the batch when it has arrived."""

    def __init__(
        self,
        model: Model,
        structures: Sequence[Structure],
        settings: Relaxation,
        snapshot: Snapshot | None = None,
    ) -> None:
        self.model, self.settings = model, settings
        self._all = tuple(structures)
        self._fresh = snapshot is None
        self.iteration = 0 if snapshot is None else snapshot.iteration
        self.active = tuple(range(len(self._all))) if snapshot is None else snapshot.active
        self._bind(None if snapshot is None else snapshot.reference)
        if snapshot is None:
            self.state = self._init(np.concatenate([s.positions for s in self._moving]))
        else:
            tensors = {k: torch.tensor(v, device=self._driver.device) for k, v in snapshot.tensors.items()}
            # Without the cell's stress, which a relaxation at fixed cell has none of.
            self.state: Any = STATE[settings.optimiser](**{"stress": None, **tensors})

    def _bind(self, reference: Array | None) -> None:
        self._moving = tuple(self._all[k] for k in self.active)
        self._ends = np.cumsum([s.n_atoms for s in self._moving])
        potential = self.model.potential(self._moving)
        potential.start_at(None if reference is None else torch.as_tensor(reference, device=potential.device))
        self._driver = Driver(potential, self.settings.driver)

    def _init(self, positions: Array) -> Any:
        device = self._driver.device
        counts = torch.tensor([s.n_atoms for s in self._moving], device=device)
        numbers = np.concatenate([s.numbers for s in self._moving])
        state = SimState(
            positions=torch.tensor(positions, device=device),
            masses=torch.tensor(atomic_masses[numbers], device=device),
            cell=torch.tensor(np.stack([s.cell.T for s in self._moving]), device=device),
            pbc=torch.zeros(3, dtype=torch.bool, device=device),
            atomic_numbers=torch.tensor(numbers, device=device),
            system_idx=torch.repeat_interleave(torch.arange(len(self._moving), device=device), counts),
        )
        self._driver.both = True
        return INIT[self.settings.optimiser](state, self._driver)

    def snapshot(self) -> Snapshot:
        reference = self._driver.potential.reference
        tensors = {k: v for k, v in self.state.attributes.items() if isinstance(v, torch.Tensor)}
        return Snapshot(
            iteration=self.iteration,
            active=self.active,
            tensors={k: _numpy(v) for k, v in tensors.items()},
            reference=None if reference is None else _numpy(reference),
        )

    def run(self) -> Iterator[Point | Relaxed | None]:
        """Yields what is seen, and None between two iterations: the state is complete then."""
        if self._fresh:
            yield from self._look()
            yield None
        while self.active:
            following = self.iteration + 1
            self._driver.both = self._monitored(following)
            self.state = STEP[self.settings.optimiser](self.state, self._driver, max_step=MAX_STEP_A)
            self.iteration = following
            yield from self._look()
            yield None

    def _monitored(self, iteration: int) -> bool:
        return iteration % self.settings.monitor_every == 0 or iteration >= self.settings.steps

    def _look(self) -> Iterator[Point | Relaxed]:
        driving = self._split(self.state.forces)
        energies = _numpy(self.state.energy)
        fmax = [float(np.linalg.norm(f, axis=1).max()) for f in driving]
        arrived = [f < self.settings.fmax_eV_per_A for f in fmax]
        lost = [not np.isfinite(f) for f in fmax]
        last = self.iteration >= self.settings.steps
        latest = self._driver.latest
        # Taken up from a saved state, nothing has been evaluated yet; that state was looked at before it was saved.
        assert latest is not None
        both = latest.forces_direct is not None and latest.forces_conservative is not None
        if not both and any(arrived):
            latest = self._driver.potential.evaluate(self.state.positions, direct=True, conservative=True)
            both = True
        nothing: list[Any] = [None] * len(self.active)
        direct = self._split(latest.forces_direct) if both else nothing
        conservative = self._split(latest.forces_conservative) if both else nothing
        other = conservative if self.settings.driver == "direct" else direct
        positions = self._split(self.state.positions)
        leaving = []
        for k, system in enumerate(self.active):
            apart = both and not lost[k]
            yield Point(
                system=system,
                iteration=self.iteration,
                energy=float(energies[k]),
                fmax=fmax[k],
                fmax_other=float(np.linalg.norm(other[k], axis=1).max()) if apart else None,
                force_delta=delta.force_delta(direct[k], conservative[k]) if apart else None,
                converged=arrived[k],
            )
            if not (arrived[k] or lost[k] or last):
                continue
            leaving.append(k)
            if lost[k] and not both:
                direct[k] = conservative[k] = np.full_like(positions[k], np.nan)
            yield Relaxed(
                system=system,
                iteration=self.iteration,
                converged=arrived[k],
                finite=not lost[k],
                energy=float(energies[k]),
                positions=positions[k],
                forces_direct=direct[k],
                forces_conservative=conservative[k],
                note=_note(self.settings, arrived[k], lost[k], fmax[k], direct[k], conservative[k]),
            )
        if leaving:
            self._drop(leaving)

    def _drop(self, leaving: list[int]) -> None:
        staying = [k for k in range(len(self.active)) if k not in leaving]
        self.active = tuple(self.active[k] for k in staying)
        if staying:
            state = self.state[staying]
            self._bind(None)
            self.state = state

    def _split(self, tensor: torch.Tensor | None) -> list[Any]:
        assert tensor is not None
        return np.split(_numpy(tensor), self._ends[:-1])


def _note(settings: Relaxation, arrived: bool, lost: bool, fmax: float, direct: Array, conservative: Array) -> str:
    """Plain words on where a relaxation ended, and on whether the other force agrees that it is a minimum."""
    if lost:
        return "The relaxation has blown up: a force is no longer a finite number."
    name, other_name = ("F_nc", "F_c") if settings.driver == "direct" else ("F_c", "F_nc")
    other = conservative if settings.driver == "direct" else direct
    left = float(np.linalg.norm(other, axis=1).max())
    if not arrived:
        return (
            f"Not converged: {name} is still {fmax:.3g} eV/Å on one atom after {settings.steps} iterations, and {other_name} {left:.3g} eV/Å."
            + (f" Where the two forces disagree so much, following {name} may lead nowhere." if left > 2 * fmax else "")
        )
    if left <= 2 * settings.fmax_eV_per_A:
        return f"Both forces see a minimum here: {other_name} is at most {left:.2g} eV/Å."
    return (
        f"The two forces disagree about the minimum: {name} is below {settings.fmax_eV_per_A:g} eV/Å on every atom, {other_name} still pulls "
        f"with {left:.2g} eV/Å on one. A minimum of {name} is then no minimum of the energy, and the other way round."
    )


def _numpy(tensor: torch.Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy().copy()
