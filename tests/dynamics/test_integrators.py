"""What every integrator promises (fdcore/dynamics/__init__.py), over every row of the table, on a crystal that can be solved."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch_sim.integrators import nvt
from torch_sim.integrators.md import MDState

from fdcore.dynamics import INTEGRATORS, integrator
from fdcore.dynamics.driver import Driver
from fdcore.dynamics.settings import Bounds, Leg
from fdcore.dynamics.simulation import Sample, Simulation, maxwell_boltzmann, new_generator, run
from fdcore.units import FS, KB
from tests.dynamics.springs import SpringModel, crystal, thermal_displacements

NO_BOUNDS = Bounds(temperature_K=None, closest=0.0)
STOCHASTIC = {"langevin", "vrescale"}


def leg(name: str, **changes) -> Leg:
    known = {
        "steps": 200,
        "timestep_fs": 1.0,
        "temperature_K": 300.0,
        "driver": "conservative",
        "monitor_every": 1000,
        "frame_every": 0,
        "thermostat_time_fs": 50.0,
    }
    ensemble = {"ensemble": "nve"} if name == "nve" else {"ensemble": "nvt", "thermostat": name}
    return Leg(**(known | ensemble | changes))


def start(name: str, model=None, copies: int = 1, seed: int = 1, **changes) -> Simulation:
    return Simulation.start(
        model or SpringModel(), [crystal()] * copies, leg(name, **changes), new_generator(seed, "cpu")
    )


def samples(simulation: Simulation) -> list[Sample]:
    return [s for s in run(simulation, NO_BOUNDS) if isinstance(s, Sample)]


@pytest.fixture(params=sorted(INTEGRATORS))
def name(request) -> str:
    return request.param


@pytest.mark.parametrize("driver", ["direct", "conservative", "mts"])
def test_deterministic_ones_are_time_reversible(name, driver):
    if name in STOCHASTIC:
        assert "Stochastic" in integrator(name).__doc__
        return
    simulation = start(name, SpringModel(swirl=0.02), driver=driver, mts_stride=4, steps=200)
    begin = simulation.snapshot()
    for _ in range(200 // simulation.leg.stride):
        simulation.advance()
    now = simulation.snapshot()
    moved = np.abs(now.atoms["positions"] - begin.atoms["positions"]).max()
    atoms = {**now.atoms, "momenta": -now.atoms["momenta"]}
    systems = {k: -v if k == "chain_momenta" else v for k, v in now.systems.items()}
    back = Simulation(simulation.model, [crystal()], simulation.leg, replace(now, atoms=atoms, systems=systems))
    for _ in range(200 // simulation.leg.stride):
        back.advance()
    error = np.abs(back.snapshot().atoms["positions"] - begin.atoms["positions"]).max()
    # torch-sim rounds the weights of its chain to single precision: 1e-8 of the way a thermostat takes.
    assert moved > 0.05 and error < (1e-6 if name == "nose-hoover" else 1e-10)


def test_error_of_the_conserved_quantity_is_second_order_in_the_time_step(name):
    def error(step_fs: float) -> float:
        found = samples(start(name, copies=4, timestep_fs=step_fs, steps=round(200 / step_fs)))
        conserved = np.array([s.conserved for s in found])
        return float(np.sqrt(np.mean((conserved - conserved.mean(0)) ** 2)))

    coarse, fine = error(4.0), error(2.0)
    # 4 for dt^2; noise is another one at every step, so stochastic thermostats only come near it.
    low, high = (2.5, 6.5) if name in STOCHASTIC else (3.7, 4.3)
    assert low < coarse / fine < high, coarse / fine
    assert coarse < 0.02 * 64 * KB * 300


def test_a_force_without_a_potential_does_not_conserve_and_mts_repairs_it():
    model = SpringModel(swirl=0.05)
    spread = {}
    for driver in ("direct", "conservative", "mts"):
        conserved = np.array(
            [s.conserved[0] for s in samples(start("nve", model, driver=driver, steps=800, mts_stride=4))]
        )
        spread[driver] = np.ptp(conserved)
    assert spread["direct"] > 20 * spread["conservative"]
    assert spread["mts"] < 20 * spread["conservative"] and spread["mts"] < spread["direct"] / 5


def test_momentum_is_conserved_where_it_is_no_degree_of_freedom(name):
    found = samples(start(name, SpringModel(swirl=0.02), driver="direct"))
    scale = np.sqrt(found[0].energy_kinetic[0] * 23)
    if integrator(name).FIXED_DOF:
        assert max(s.net_momentum[0] for s in found) < 1e-11 * scale
    else:
        assert found[-1].net_momentum[0] > 1e-3 * scale, "noise moves the centre of mass, and that is counted"


# Of 64 crystals of 64 atoms over 2 ps, after 1 ps: what the mean and the variance of the temperature may be off by.
MEAN_TOLERANCE, VARIANCE_TOLERANCE = 0.01, 0.10


@pytest.mark.parametrize("driver", ["conservative", "mts"])
def test_thermostats_give_the_canonical_temperature(name, driver):
    if name == "nve":
        assert integrator(name).memory(None) == {}, "no thermostat, nothing to remember"
        return
    # Modes of a harmonic crystal do not exchange energy, so their shares must be canonical from the start; the level is not.
    chance, generator, atoms = np.random.default_rng(3), new_generator(1, "cpu"), [crystal()] * 64
    positions = np.concatenate([s.positions + thermal_displacements(s, 120.0, chance) for s in atoms])
    asked = leg(name, steps=1500, timestep_fs=2.0, driver=driver, mts_stride=2, temperature_K=200.0)
    momenta = maxwell_boltzmann(atoms, 120.0, generator)
    simulation = Simulation.start(SpringModel(0.01), atoms, asked, generator, positions=positions, momenta=momenta)
    found = samples(simulation)
    assert found[0].temperature_K.mean() == pytest.approx(120.0, rel=0.05)
    late = np.array([s.temperature_K for s in found[len(found) // 3 :]])
    dof = 3 * 64 - integrator(name).FIXED_DOF
    assert late.mean() == pytest.approx(200.0, rel=MEAN_TOLERANCE)
    # Canonical: var T = 2 T^2 / N_f.
    assert late.var() == pytest.approx(2 * 200.0**2 / dof, rel=VARIANCE_TOLERANCE)
    elements = np.array([s.temperature_by_element_K for s in found[len(found) // 3 :]])
    np.testing.assert_allclose(elements.mean((0, 1)), 200.0, rtol=2 * MEAN_TOLERANCE)


@pytest.mark.parametrize(
    ("name", "step", "options"),
    [
        ("langevin", nvt.nvt_langevin_step, {"gamma": 1 / (50 * FS)}),
        ("vrescale", nvt.nvt_vrescale_step, {"tau": 50 * FS}),
    ],
)
def test_steps_made_of_parts_are_those_of_torch_sim(name, step, options):
    simulation = start(name, steps=50)
    other = simulation.state.clone()
    driver = Driver(SpringModel().potential([crystal()]), "conservative")
    for _ in range(50):
        simulation.advance()
        other = step(state=other, model=driver, dt=FS, kT=300 * KB, **options)
    assert torch.equal(simulation.state.positions, other.positions)
    assert torch.equal(simulation.state.momenta, other.momenta)


def test_multiple_time_steps_of_one_are_the_conservative_dynamics():
    model = SpringModel(swirl=0.1)
    mts = samples(start("nve", model, driver="mts", mts_stride=1))
    plain = samples(start("nve", model, driver="conservative"))
    np.testing.assert_allclose([s.conserved[0] for s in mts], [s.conserved[0] for s in plain], rtol=0, atol=1e-11)


def test_multiple_time_steps_cost_one_pair_of_forces_per_round():
    simulation = start("nve", SpringModel(swirl=0.1), driver="mts", mts_stride=8, steps=80)
    potential = simulation._driver.potential
    calls = []
    evaluate = potential.evaluate
    potential.evaluate = lambda positions, **what: calls.append(what) or evaluate(positions, **what)
    for _ in range(10):
        simulation.advance()
    assert len(calls) == 80, "each step evaluates once"
    assert sum(c["conservative"] for c in calls) == 10 and all(c["direct"] for c in calls)


@pytest.mark.parametrize("driver", ["direct", "conservative", "mts"])
def test_continued_from_a_snapshot_it_is_the_same_to_the_last_bit(name, driver):
    model = SpringModel(swirl=0.03)
    whole = start(name, model, copies=3, driver=driver, mts_stride=2, steps=60)
    half = None
    for k in range(60 // whole.leg.stride):
        if k == 30 // whole.leg.stride:
            half = whole.snapshot()
        whole.advance()
    continued = Simulation(model, [crystal()] * 3, whole.leg, half)
    while not continued.done:
        continued.advance()
    a, b = whole.snapshot(), continued.snapshot()
    for key in a.atoms:
        assert np.array_equal(a.atoms[key], b.atoms[key]), key
    for key in a.systems:
        assert np.array_equal(a.systems[key], b.systems[key]), key
    assert np.array_equal(a.generator, b.generator)


def test_states_are_those_of_torch_sim(name):
    assert isinstance(start(name).state, MDState)
