"""A model whose atoms move: the same numbers as an evaluation from scratch, whatever the neighbour list has seen before."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.md.verlet import VelocityVerlet

import fdcore
from fdcore import services
from fdcore.dynamics.settings import Bounds, Leg
from fdcore.dynamics.simulation import Sample, Simulation, maxwell_boltzmann, new_generator, run
from fdcore.models.potential import PlainPotential
from fdcore.records import Structure
from fdcore.units import FS, KB, PS, ns_per_day


@pytest.fixture(scope="module")
def model():
    return fdcore.load_model(dtype="float64")


def salt(seed: int = 0, a: float = 5.6) -> Structure:
    atoms = bulk("NaCl", "rocksalt", a=a, cubic=True)
    atoms.rattle(0.1, seed=seed)
    return Structure.from_atoms(atoms)


def example(name: str) -> Structure:
    found = {e.id: e for e in services.examples()}[name]
    return services.read_sources([services.example_source(found)]).structures[0]


def check(model, structures, potential, positions) -> None:
    ends = np.cumsum([s.n_atoms for s in structures])[:-1]
    moved = [replace(s, positions=p) for s, p in zip(structures, np.split(positions, ends), strict=True)]
    expected = model.evaluate(moved)
    found = potential.evaluate(torch.tensor(positions), direct=True, conservative=True)
    np.testing.assert_allclose(found.energy, [e.energy for e in expected], rtol=1e-11)
    np.testing.assert_allclose(found.forces_direct, np.concatenate([e.forces_direct for e in expected]), atol=1e-10)
    np.testing.assert_allclose(
        found.forces_conservative, np.concatenate([e.forces_conservative for e in expected]), atol=1e-10
    )


def _on_the_faces(rounding: float) -> Structure:
    """A primitive cell with atoms on its faces, up to rounding on either side: where wrapping twice may give two images."""
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    atoms = atoms.repeat((2, 2, 2))
    atoms.set_scaled_positions(np.round(atoms.get_scaled_positions(), 12) + rounding)
    return Structure.from_atoms(atoms)


@pytest.mark.parametrize("rounding", [0.0, -1e-17, -1e-16, -3e-16, 1e-16, -1e-9, -1e-6, 1 - 1e-16])
def test_atoms_on_the_faces_of_a_cell(model, rounding):
    structures = [_on_the_faces(rounding), salt(1)]
    positions = np.concatenate([s.positions for s in structures])
    check(model, structures, model.potential(structures), positions)


def test_the_primitive_cell_of_mg17al12(model):
    """Its atom at the origin is at -1e-17 of a lattice vector: its neighbours were lost until the list was made anew, 76 meV/atom."""
    cell = 0.5 * 10.549 * np.array([[-1.0, 1, 1], [1, -1, 1], [1, 1, -1]])
    whole = example("Mg17Al12")
    fractions = np.linalg.solve(cell.T, whole.positions.T).T
    _, first = np.unique(np.round(fractions % 1.0, 5) % 1.0, axis=0, return_index=True)
    assert len(first) == 29
    for shift in (0.0, -1e-17, -2e-16):
        primitive = Structure(whole.numbers[first], ((fractions[first] + shift) @ cell), cell, (True,) * 3)
        check(model, [primitive], model.potential([primitive]), primitive.positions)


def test_moving_atoms_are_those_of_an_evaluation(model):
    structures = [salt(1), example("Mg17Al12"), salt(2)]
    potential = model.potential(structures)
    rng = np.random.default_rng(0)
    positions = np.concatenate([s.positions for s in structures])
    lists = set()
    for _ in range(12):
        positions = positions + 0.06 * rng.standard_normal(positions.shape)
        check(model, structures, potential, positions)
        lists.add(potential.reference.numpy().tobytes())
    assert 1 < len(lists) < 12, "a neighbour list serves several steps, and is made anew in time"


def test_a_molecule_and_a_crystal_move_in_one_batch(model):
    structures = [salt(), Structure.from_atoms(molecule("H2O"))]
    check(model, structures, model.potential(structures), np.concatenate([s.positions for s in structures]))


def test_atoms_that_have_wandered_far_lose_no_digits():
    model = fdcore.load_model(dtype="float32")
    structure = salt()
    potential = model.potential([structure])
    here = potential.evaluate(torch.tensor(structure.positions), direct=True, conservative=True)
    far = structure.positions + 1000 * structure.cell.sum(0)
    there = potential.evaluate(torch.tensor(far), direct=True, conservative=True)
    assert abs(float(here.energy - there.energy)) < 1e-5
    assert float((here.forces_direct - there.forces_direct).abs().max()) < 1e-5


def test_only_what_is_asked_for_is_computed(model):
    potential = model.potential([salt()])
    positions = torch.tensor(salt().positions)
    direct = potential.evaluate(positions, direct=True, conservative=False)
    both = potential.evaluate(positions, direct=True, conservative=True)
    assert direct.forces_conservative is None and torch.equal(direct.forces_direct, both.forces_direct)
    assert potential.evaluate(positions, direct=False, conservative=True).forces_direct is None
    torch.testing.assert_close(both.difference, both.forces_conservative - both.forces_direct)
    with pytest.raises(ValueError):
        _ = direct.difference


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_repeat_to_the_last_bit(dtype):
    """Whatever the number of threads; torch by itself adds up gradients in the order in which threads come."""
    model = fdcore.load_model(dtype=dtype)
    structure = example("Mg17Al12")
    potential = model.potential([structure])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = [
            potential.evaluate(torch.tensor(structure.positions), direct=True, conservative=True) for _ in range(8)
        ]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(f.forces_conservative, found[0].forces_conservative) for f in found)
    assert not torch.are_deterministic_algorithms_enabled(), "the setting of the process is left as it was"


def test_numbers_do_not_depend_on_what_the_process_did_before():
    """A run that is taken up by another process goes on in its bits: also from its first evaluation on, and also where somebody else
    used the package's modules in between."""
    code = """
import sys, fdcore, torch, tests.unit.test_potential as t
model, x = fdcore.load_model(device="cpu"), torch.tensor(t.salt().positions)
if sys.argv[1] == "used":
    for _ in range(4):
        model.two_forces(model.graphs([t.salt()]))
potential = model.potential([t.salt()])
for _ in range(3):
    print(potential.evaluate(x, direct=True, conservative=True).forces_conservative.numpy().tobytes().hex())
"""
    seen = set()
    for before in ("fresh", "used"):
        command = [sys.executable, "-c", code, before]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True)
        seen |= set(done.stdout.split()[-3:])
    assert len(seen) == 1


def test_a_list_taken_up_again_gives_the_same_bits(model):
    structure = example("Mg17Al12")
    potential = model.potential([structure])
    rng = np.random.default_rng(1)
    potential.evaluate(torch.tensor(structure.positions), direct=True, conservative=False)
    moved = torch.tensor(structure.positions + 0.02 * rng.standard_normal(structure.positions.shape))
    first = potential.evaluate(moved, direct=True, conservative=True)
    other = model.potential([structure])
    other.start_at(potential.reference)
    second = other.evaluate(moved, direct=True, conservative=True)
    assert torch.equal(first.forces_conservative, second.forces_conservative)
    assert torch.equal(first.energy, second.energy)


def test_crowded_atoms_get_the_neighbours_that_the_model_takes(model):
    """More neighbours than the adapter keeps: the package decides which, at every step."""
    structure = salt(a=4.2)
    small = model.adapter.max_num_neighbors
    try:
        model.adapter.max_num_neighbors = 40
        check(model, [structure], model.potential([structure]), structure.positions.copy())
    finally:
        model.adapter.max_num_neighbors = small


def test_a_capped_model_has_a_new_graph_every_step(random_checkpoint):
    model = fdcore.load_model("orb-d3-xs-v2", weights=random_checkpoint("orb-d3-xs-v2"), dtype="float64", device="cpu")
    structure = salt()
    check(model, [structure], model.potential([structure]), structure.positions.copy())


def test_positions_that_are_no_numbers_give_no_numbers(model):
    found = model.potential([salt()]).evaluate(torch.full((8, 3), torch.nan), direct=True, conservative=True)
    assert found.energy.isnan().all() and found.forces_direct.isnan().all() and found.lengths.numel() == 0


def test_any_model_can_move(model):
    structures = [salt(), salt(3)]
    positions = torch.tensor(np.concatenate([s.positions for s in structures]))
    plain = PlainPotential(model, structures).evaluate(positions, direct=True, conservative=True)
    own = model.potential(structures).evaluate(positions, direct=True, conservative=True)
    torch.testing.assert_close(plain.forces_direct, own.forces_direct, atol=1e-10, rtol=0)
    assert float(plain.lengths.min()) == pytest.approx(float(own.lengths.min()))


class BothForces(Calculator):
    """The model behind ASE's interface: an independent integrator then drives it."""

    implemented_properties = ("energy", "forces")

    def __init__(self, model, conservative: bool) -> None:
        super().__init__()
        self.model, self.conservative = model, conservative

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        [found] = self.model.evaluate(atoms)
        chosen = found.forces_conservative if self.conservative else found.forces_direct
        self.results = {"energy": found.energy, "forces": chosen}


@pytest.mark.parametrize("driver", ["direct", "conservative"])
def test_trajectory_is_that_of_ase(model, driver):
    """200 steps of 1 fs in float64: the units of time, mass and momentum are right, or nothing would agree."""
    structure = salt(5)
    momenta = maxwell_boltzmann([structure], 300.0, new_generator(3, "cpu"))
    leg = Leg(steps=200, timestep_fs=1.0, driver=driver, monitor_every=50, frame_every=0)
    simulation = Simulation.start(model, [structure], leg, new_generator(3, "cpu"), momenta=momenta)
    ours = [s for s in run(simulation, Bounds()) if isinstance(s, Sample)]
    atoms = structure.to_atoms()
    atoms.set_momenta(momenta)
    atoms.calc = BothForces(model, driver == "conservative")
    dynamics = VelocityVerlet(atoms, timestep=1.0 * FS)
    for sample in ours[1:]:
        dynamics.run(1)
        assert abs(sample.energy_potential[0] - atoms.get_potential_energy()) < 1e-6
        assert abs(sample.energy_kinetic[0] - atoms.get_kinetic_energy()) < 1e-6
    assert ours[-1].time_ps == pytest.approx(0.2)
    # ASE counts all 3N degrees of freedom, we the 3N - 3 that move.
    assert ours[-1].temperature_K[0] == pytest.approx(atoms.get_temperature() * 24 / 21)


def test_units():
    assert pytest.approx(98.2269, rel=1e-5) == PS and pytest.approx(PS / 1000) == FS
    assert pytest.approx(8.617330e-5, rel=1e-6) == KB
    assert ns_per_day(10.0, 0.5) == pytest.approx(10 * 86400 * 0.5e-6)
