"""One leg of a simulation: a batch of structures advanced together, seen, ended one by one, saved and taken up again.

Positions, momenta and sums are float64 whatever the precision of the model. `snapshot` holds everything the next step depends
on, to the last bit on a CPU: also the state of the random generator and the positions that the neighbour list was made at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.data import atomic_masses, covalent_radii
from numpy.typing import NDArray

from fdcore import delta
from fdcore.dynamics import integrator
from fdcore.dynamics.settings import Bounds, Leg, check_can_move
from fdcore.errors import ComputeError
from fdcore.models.base import Model
from fdcore.models.neighbours import import_neighbour_lists
from fdcore.records import Structure
from fdcore.units import FS, KB

# Before torch-sim, which would import the same package with a compiler.
import_neighbour_lists()

import torch  # noqa: E402
from torch_sim.integrators.md import MDState  # noqa: E402

from fdcore.dynamics import mts  # noqa: E402
from fdcore.dynamics.driver import Driver  # noqa: E402
from fdcore.dynamics.observables import (  # noqa: E402
    degrees_of_freedom,
    kinetic_per_atom,
    per_system,
    smallest,
    temperature,
)

ATOM_ARRAYS = ("positions", "momenta", "driving", "correction")
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """What is seen at one step of a leg; one entry per structure in `systems` (K of them).

    energies (K,) eV: potential, kinetic, and the integrator's conserved quantity; temperature_K (K,) and per element
    (K, number of elements of the run, NaN where a structure has none); net_momentum (K,) in sqrt(amu eV); closest_A (K,) and as a share
    of the sum of covalent radii, infinite where no two atoms are near; force_delta, worst (K,) eV/Å, NaN where U was not due,
    and worst_atom (K,), -1 then.
    """

    step: int
    time_ps: float
    systems: NDArray[np.int64]
    energy_potential: Array
    energy_kinetic: Array
    conserved: Array
    temperature_K: Array
    temperature_by_element_K: Array
    net_momentum: Array
    closest_A: Array
    closest_share: Array
    force_delta: Array
    worst: Array
    worst_atom: NDArray[np.int64]

    @property
    def finite(self) -> NDArray[np.bool_]:
        """(K,): whether the structure still has an energy and a temperature."""
        return np.isfinite(self.energy_potential) & np.isfinite(self.energy_kinetic)


@dataclass(frozen=True)
class Frame:
    """One structure at one step: positions (N, 3) Å, not wrapped; velocities (N, 3) Å/fs; both forces (N, 3) eV/Å."""

    system: int
    step: int
    time_ps: float
    positions: Array
    velocities: Array
    forces_direct: Array
    forces_conservative: Array


@dataclass(frozen=True)
class Ended:
    """A structure's simulation ended before its time: `reason` in one word, `text` in a sentence."""

    system: int
    step: int
    reason: str
    text: str


@dataclass(frozen=True)
class Snapshot:
    """Plain values and arrays from which a leg goes on; `atoms` and `systems` hold arrays per atom and per structure."""

    step: int
    active: tuple[int, ...]
    atoms: Mapping[str, NDArray[Any]]
    systems: Mapping[str, NDArray[Any]]
    generator: NDArray[np.uint8]
    reference: Array | None


def new_generator(seed: int, device: str) -> torch.Generator:
    return torch.Generator(device=torch.device(device)).manual_seed(seed)


def maxwell_boltzmann(structures: Sequence[Structure], temperature_K: float, generator: torch.Generator) -> Array:
    """Momenta (A, 3) in amu Å per unit of time, drawn at a temperature; each structure's total momentum is zero."""
    out = []
    for structure in structures:
        masses = torch.as_tensor(atomic_masses[structure.numbers], device=generator.device)[:, None]
        noise = torch.randn((len(masses), 3), dtype=torch.float64, device=generator.device, generator=generator)
        out.append((noise * torch.sqrt(masses * temperature_K * KB)).cpu().numpy())
    return at_rest(structures, np.concatenate(out))


def at_rest(structures: Sequence[Structure], momenta: Array) -> Array:
    """The same momenta (A, 3) with a total of zero in each structure."""
    out = []
    for structure, own in zip(
        structures, np.split(momenta, np.cumsum([s.n_atoms for s in structures])[:-1]), strict=True
    ):
        masses = atomic_masses[structure.numbers][:, None]
        out.append(own - masses * own.sum(0) / masses.sum())
    return np.concatenate(out)


class Simulation:
    """One leg. `structures` are all systems of the run, `active` says which of them move here; `fresh`: nothing has been seen
    of it yet."""

    def __init__(self, model: Model, structures: Sequence[Structure], leg: Leg, snapshot: Snapshot) -> None:
        self.model, self.leg = model, leg
        self._all = tuple(structures)
        self._elements = np.unique(np.concatenate([s.numbers for s in self._all]))
        self._integrator = integrator(leg.integrator)
        self.record_every, self.monitor_every, self.frame_every = leg.cadence()
        self._restore(snapshot)

    # ---- starting, saving ------------------------------------------------------------------------------------------

    @classmethod
    def start(
        cls,
        model: Model,
        structures: Sequence[Structure],
        leg: Leg,
        generator: torch.Generator,
        *,
        active: Sequence[int] | None = None,
        positions: Array | None = None,
        momenta: Array | None = None,
    ) -> Simulation:
        """A leg at its first step. Without momenta they are drawn at the leg's temperature."""
        active = tuple(range(len(structures))) if active is None else tuple(active)
        moving = [structures[k] for k in active]
        for structure in moving:
            check_can_move(structure)
        if momenta is None:
            momenta = maxwell_boltzmann(moving, leg.temperature_K, generator)
        if positions is None:
            positions = np.concatenate([s.positions for s in moving])
        atoms = {"positions": positions, "momenta": momenta}
        random = generator.get_state().cpu().numpy()
        return cls(model, structures, leg, Snapshot(0, active, atoms, {}, random, None))

    def snapshot(self) -> Snapshot:
        state = self.state
        atoms = {"positions": state.positions, "momenta": state.momenta, "driving": state.forces}
        if self._driver.correction is not None:
            atoms["correction"] = self._driver.correction
        systems = {"energy": state.energy, **self._integrator.memory(state)}
        reference = self._driver.potential.reference
        return Snapshot(
            step=self.step,
            active=self.active,
            atoms={k: _numpy(v) for k, v in atoms.items()},
            systems={k: _numpy(v) for k, v in systems.items()},
            generator=state.rng.get_state().cpu().numpy().copy(),
            reference=None if reference is None else _numpy(reference),
        )

    def _restore(self, snapshot: Snapshot) -> None:
        self.step, self.active = snapshot.step, snapshot.active
        self._moving = tuple(self._all[k] for k in self.active)
        potential = self.model.potential(self._moving)
        device = potential.device
        potential.start_at(None if snapshot.reference is None else torch.as_tensor(snapshot.reference, device=device))
        self._driver = Driver(potential, self.leg.driver)
        atoms = {k: torch.tensor(v, device=device) for k, v in snapshot.atoms.items()}
        numbers = np.concatenate([s.numbers for s in self._moving])
        counts = torch.tensor([s.n_atoms for s in self._moving], device=device)
        self._system = torch.repeat_interleave(torch.arange(len(self._moving), device=device), counts)
        self._ends = np.cumsum([s.n_atoms for s in self._moving])
        self._radii = torch.tensor(covalent_radii[numbers], device=device)
        state = MDState(
            positions=atoms["positions"],
            masses=torch.tensor(atomic_masses[numbers], device=device),
            # torch-sim keeps cells as columns.
            cell=torch.tensor(np.stack([s.cell.T for s in self._moving]), device=device),
            pbc=torch.zeros(3, dtype=torch.bool, device=device),
            atomic_numbers=torch.tensor(numbers, device=device),
            system_idx=self._system,
            momenta=atoms["momenta"],
            energy=torch.zeros(len(self._moving), dtype=torch.float64, device=device),
            forces=torch.zeros_like(atoms["positions"]),
        )
        self._groups(numbers, state.masses)
        self.fresh = "driving" not in atoms
        if self.fresh:
            # Whatever is recorded or corrected at the first step needs both forces.
            self._driver.both = True
            found = self._driver(state)
            self._driver.both = False
            state.energy, state.forces = found["energy"], found["forces"]
        else:
            state.forces = atoms["driving"]
            state.energy = torch.tensor(snapshot.systems["energy"], device=device)
            self._driver.correction = atoms.get("correction")
        state.rng = torch.Generator(device=device)
        self.state = self._integrator.init(state, self.leg)
        generator = torch.Generator(device=device)
        generator.set_state(torch.as_tensor(snapshot.generator))
        self.state.rng = generator
        if not self.fresh:
            memory = {k: torch.tensor(v, device=device) for k, v in snapshot.systems.items() if k != "energy"}
            self._integrator.recall(self.state, memory)

    def _groups(self, numbers: NDArray[np.int64], masses: torch.Tensor) -> None:
        """Atoms of one element in one structure are a group; their degrees of freedom do not change."""
        systems, kinds = len(self._moving), len(self._elements)
        element = torch.tensor(np.searchsorted(self._elements, numbers), device=masses.device)
        self._group = self._system * kinds + element
        fixed = self._integrator.FIXED_DOF
        dof = degrees_of_freedom(masses, self._group, systems * kinds, self._system, systems, fixed)
        self._dof_by_element = dof.reshape(systems, kinds)

    # ---- moving ----------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """To the next complete state: one step, or one round of multiple time steps."""
        following = self.step + self.leg.stride
        if self.leg.driver == "mts":
            self.state = mts.step(self.state, self._driver, self.leg, self._integrator.step)
        else:
            self._driver.both = self.monitored(following)
            self.state = self._integrator.step(self.state, self._driver, self.leg)
        self.step = following

    def recorded(self, step: int) -> bool:
        return step % self.record_every == 0 or self.monitored(step)

    def monitored(self, step: int) -> bool:
        return step % self.monitor_every == 0 or step == self.leg.steps or self.framed(step)

    def framed(self, step: int) -> bool:
        return self.frame_every > 0 and step % self.frame_every == 0

    @property
    def done(self) -> bool:
        return self.step >= self.leg.steps or not self.active

    # ---- seeing ----------------------------------------------------------------------------------------------------

    def observe(self) -> Sample:
        """What is recorded of the present step; U where both forces were due."""
        state, count = self.state, len(self._moving)
        kinetic = kinetic_per_atom(state.momenta, state.masses)
        by_group = torch.zeros(self._dof_by_element.numel(), dtype=kinetic.dtype, device=kinetic.device)
        by_element = by_group.index_add_(0, self._group, kinetic).reshape(self._dof_by_element.shape)
        total, dof = by_element.sum(1), self._dof_by_element.sum(1)
        latest = self._driver.latest
        assert latest is not None
        pairs = latest.edges
        share = latest.lengths / (self._radii[pairs[0]] + self._radii[pairs[1]])
        where = self._system[pairs[0]]
        columns = [
            state.energy,
            total,
            self._integrator.conserved(state, self.leg),
            temperature(total, dof),
            per_system(state.momenta, self._system, count).norm(dim=-1),
            smallest(latest.lengths, where, count),
            smallest(share, where, count),
        ]
        # One copy from the device for all of them.
        table = _numpy(torch.cat([torch.stack(columns, 1), temperature(by_element, self._dof_by_element)], 1))
        force_delta, worst, worst_atom = self._disagreement()
        return Sample(
            step=self.step,
            time_ps=self.step * self.leg.timestep_fs * 1e-3,
            systems=np.array(self.active),
            energy_potential=table[:, 0],
            energy_kinetic=table[:, 1],
            conserved=table[:, 2],
            temperature_K=table[:, 3],
            temperature_by_element_K=table[:, 7:],
            net_momentum=table[:, 4],
            closest_A=table[:, 5],
            closest_share=table[:, 6],
            force_delta=force_delta,
            worst=worst,
            worst_atom=worst_atom,
        )

    def frames(self) -> Iterator[Frame]:
        """The present step of every structure, with both forces."""
        direct, conservative = self._both()
        velocities = _numpy(self.state.velocities) * FS
        arrays = [_numpy(self.state.positions), velocities, direct, conservative]
        for k, parts in enumerate(zip(*(np.split(a, self._ends[:-1]) for a in arrays), strict=True)):
            yield Frame(self.active[k], self.step, self.step * self.leg.timestep_fs * 1e-3, *parts)

    def _disagreement(self) -> tuple[Array, Array, NDArray[np.int64]]:
        count = len(self._moving)
        if not self.monitored(self.step):
            return np.full(count, np.nan), np.full(count, np.nan), np.full(count, -1)
        direct, conservative = self._both()
        per_atom = delta.force_delta_per_atom(direct, conservative)
        parts = np.split(per_atom, self._ends[:-1])
        worst_atom = np.array([int(p.argmax()) for p in parts])
        worst = np.array([p[k] for p, k in zip(parts, worst_atom, strict=True)])
        return np.array([np.sqrt(np.mean(p**2)) for p in parts]), worst, worst_atom

    def _both(self) -> tuple[Array, Array]:
        latest = self._driver.latest
        if latest is None or latest.forces_direct is None or latest.forces_conservative is None:
            raise ComputeError("Both forces were asked for at a step where only one was computed.")
        return _numpy(latest.forces_direct), _numpy(latest.forces_conservative)

    # ---- ending ----------------------------------------------------------------------------------------------------

    def ended(self, sample: Sample, bounds: Bounds) -> list[Ended]:
        """Which structures must not go on, and why; also takes them out of the batch."""
        found = [
            Ended(int(system), sample.step, *why)
            for k, system in enumerate(sample.systems)
            if (why := _why(sample, k, self._all[system], bounds)) is not None
        ]
        if found:
            self._drop({e.system for e in found})
        return found

    def _drop(self, systems: set[int]) -> None:
        keep = [k for k, system in enumerate(self.active) if system not in systems]
        if not keep:
            self.active = ()
            return
        now = self.snapshot()
        mask = np.isin(_numpy(self._system), keep)
        self._restore(
            Snapshot(
                step=now.step,
                active=tuple(self.active[k] for k in keep),
                atoms={k: v[mask] for k, v in now.atoms.items()},
                systems={k: v[keep] for k, v in now.systems.items()},
                generator=now.generator,
                reference=None,
            )
        )


def _why(sample: Sample, k: int, structure: Structure, bounds: Bounds) -> tuple[str, str] | None:
    """(reason, sentence) where entry k of a sample is out of bounds."""
    hot, near = sample.temperature_K[k], sample.closest_share[k]
    u, worst, atom = sample.force_delta[k], sample.worst[k], int(sample.worst_atom[k])
    if not sample.finite[k]:
        return "not-a-number", "The energy or a velocity is no longer a finite number: the simulation has blown up."
    if bounds.temperature_K is not None and hot > bounds.temperature_K:
        return "temperature", f"The temperature of {hot:,.0f} K is above the bound of {bounds.temperature_K:,.0f} K."
    if near < bounds.closest:
        return "distance", (
            f"Two atoms are {sample.closest_A[k]:.2f} Å apart, {near:.2f} of the sum of their covalent radii; "
            f"the bound is {bounds.closest:g}."
        )
    if bounds.above is not None and u > bounds.above:
        return "force-delta", f"U_Delta of {u:.3g} eV/Å is above the bound of {bounds.above:g} eV/Å."
    if bounds.above_atom is not None and worst > bounds.above_atom:
        name = f"{structure.symbols[atom]}{atom}"
        return "force-delta-atom", (
            f"u_i of {worst:.3g} eV/Å on atom {name} is above the bound of {bounds.above_atom:g} eV/Å."
        )
    return None


def run(simulation: Simulation, bounds: Bounds) -> Iterator[Sample | Frame | Ended | None]:
    """Advance to the end of the leg; yields what is seen, and None after every step: the state is complete then."""
    if simulation.fresh:
        yield from _look(simulation, bounds)
        yield None
    while not simulation.done:
        simulation.advance()
        if simulation.recorded(simulation.step):
            yield from _look(simulation, bounds)
        yield None


def _look(simulation: Simulation, bounds: Bounds) -> Iterator[Sample | Frame | Ended]:
    sample = simulation.observe()
    yield sample
    if simulation.framed(simulation.step):
        yield from simulation.frames()
    yield from simulation.ended(sample, bounds)


def _numpy(tensor: torch.Tensor) -> NDArray[Any]:
    # A copy: torch-sim changes some of its tensors in place.
    return tensor.detach().cpu().numpy().copy()
