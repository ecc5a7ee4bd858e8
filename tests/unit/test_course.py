"""A whole run: how it ends, what stays, and that it goes on from anywhere to the same end."""

from __future__ import annotations

import json

import numpy as np
import pytest

import fdcore
from fdcore import motion
from fdcore.course import Course, Plan
from fdcore.dynamics.settings import Bounds, Leg, Relaxation, default_timestep_fs
from fdcore.dynamics.simulation import Ended, Frame, Sample
from fdcore.errors import ComputeError, UnsupportedStructureError, UsageError
from fdcore.records import Structure
from fdcore.relax import Point, Relaxed
from fdcore.spec import ModelChoice, Spec
from fdcore.store import structures as stored
from fdcore.store.series import read_table
from fdcore.tasks.run import execute
from tests.dynamics.springs import SpringModel, crystal
from tests.unit.test_potential import salt


@pytest.fixture(scope="module")
def model():
    return fdcore.load_model()


def leg(**changes) -> Leg:
    return Leg(**({"steps": 20, "timestep_fs": 1.0, "monitor_every": 5, "frame_every": 10} | changes))


def events(course: Course) -> list:
    return [event for _, event in course.run() if event is not None]


def ended(course: Course) -> list[Ended]:
    return [e for e in events(course) if isinstance(e, Ended)]


REASONS = {
    "temperature": Bounds(temperature_K=1.0),
    "distance": Bounds(closest=1.9),
    "force-delta": Bounds(above=1e-6),
    "force-delta-atom": Bounds(above_atom=1e-6),
    "wall-time": Bounds(wall_seconds=0.0),
}


@pytest.mark.parametrize("reason", REASONS)
def test_a_bound_ends_a_structure_and_says_why(model, reason):
    course = Course(model, [salt()], Plan((leg(),), bounds=REASONS[reason]), seed=0)
    seen = events(course)
    [stop] = [e for e in seen if isinstance(e, Ended)]
    assert stop.reason == reason and stop.text.endswith(".") and stop.step < 20
    assert any(isinstance(e, Sample) for e in seen), "what was computed stays"


def test_atoms_that_fly_apart_do_not_disturb_their_neighbours(model):
    """A time step that no integrator survives, for atoms that stand on top of each other; the other crystal does not notice."""
    wild = salt()
    positions = np.array(wild.positions)
    positions[1] = positions[0] + [0.3, 0.0, 0.0]
    crushed = Structure(wild.numbers, positions, wild.cell, wild.pbc)
    plan = Plan((leg(steps=40),), bounds=Bounds(temperature_K=None, closest=0.0))
    together = Course(model, [crushed, salt(1)], plan, seed=0)
    seen = events(together)
    assert {e.system for e in seen if isinstance(e, Ended)} <= {0}
    calm = [s for s in seen if isinstance(s, Sample) and 1 in s.systems]
    assert calm[-1].step == 40
    assert np.isfinite([s.energy_potential[list(s.systems).index(1)] for s in calm]).all()


class Bursting(SpringModel):
    """NaN from the second evaluation on."""

    def potential(self, structures):
        made = super().potential(structures)
        evaluate, calls = made.evaluate, []

        def burst(positions, **what):
            calls.append(1)
            return evaluate(positions * (1.0 if len(calls) < 4 else float("nan")), **what)

        made.evaluate = burst
        return made


def test_numbers_that_are_none_are_not_recorded(tmp_path):
    spec = Spec("md", ModelChoice("fd-orb-small-v1"), "", 1, {"steps": 50, "timestep_fs": 1.0})
    outcome = execute(spec, [crystal()], lambda _: Bursting(), tmp_path / "1")
    assert outcome.state == "done"
    rows = read_table(tmp_path / "1", "series")
    assert list(rows["step"]) == [0, 1, 2] and np.isfinite(rows["energy_potential_eV"]).all()
    found = motion.read(tmp_path / "1", spec, [crystal()], outcome.summary)
    summary = motion.summary(found, 0, 0)
    assert summary.stopped_because == "not-a-number" and summary.steps_done == 2
    json.dumps(outcome.summary, allow_nan=False)


def test_a_structure_that_ends_leaves_the_others_as_they_were_alone():
    """Springs are exact: the second crystal must be the same to rounding whether or not the first has left the batch."""
    legs = (leg(steps=400, temperature_K=300.0, ensemble="nvt", driver="conservative"),)
    three = [crystal(1), crystal(1), crystal(1)]

    def samples(hottest: float | None) -> list[Sample]:
        plan = Plan(legs, bounds=Bounds(temperature_K=hottest, closest=0.0))
        return [e for e in events(Course(SpringModel(), three, plan, seed=4)) if isinstance(e, Sample)]

    whole = samples(None)
    peaks = np.sort(np.array([s.temperature_K for s in whole]).max(0))
    limited = samples(float(peaks[1:].mean()))
    left = set(limited[-1].systems)
    assert 0 < len(left) < 3, "some have ended, some have not"
    for a, b in zip(limited, whole, strict=True):
        for k, system in enumerate(a.systems):
            if system in left:
                assert a.conserved[k] == pytest.approx(b.conserved[system], abs=1e-9)


PLANS = {
    "relaxed, equilibrated, produced": Plan(
        (
            leg(steps=12, ensemble="nvt", thermostat="langevin", name="equilibration", frame_every=0),
            leg(steps=16, driver="mts", mts_stride=4),
        ),
        Relaxation(fmax_eV_per_A=0.2, steps=8, monitor_every=2),
        Bounds(closest=0.0),
    ),
    "arms from one start": Plan(
        (
            leg(steps=6, ensemble="nvt", driver="conservative"),
            leg(steps=8, driver="conservative", start=0),
            leg(steps=8, driver="mts", mts_stride=2, start=0),
            leg(steps=8, driver="direct", start=0),
        )
    ),
    "L-BFGS": Plan((leg(steps=4),), Relaxation(optimiser="lbfgs", driver="conservative", steps=10, fmax_eV_per_A=0.02)),
}


@pytest.mark.parametrize("name", PLANS)
def test_taken_up_at_any_step_it_ends_in_the_same_bits(model, name):
    plan, inputs = PLANS[name], [salt(1), salt(2)]
    whole, states = Course(model, inputs, plan, seed=9), []
    seen = []
    for leg_number, event in whole.run():
        if event is None:
            states.append((len(seen), whole.save()))
        else:
            seen.append((leg_number, event))
    assert len(states) > 10
    for count, (values, arrays) in states[:: max(1, len(states) // 8)]:
        again = Course(model, inputs, plan, seed=9, state=(json.loads(json.dumps(values)), arrays))
        later = [(n, e) for n, e in again.run() if e is not None]
        assert len(later) == len(seen) - count
        for (n, a), (m, b) in zip(seen[count:], later, strict=True):
            assert n == m
            _same(a, b)
        assert again.steps_done == whole.steps_done


def _same(a, b) -> None:
    assert type(a) is type(b)
    for field in a.__dataclass_fields__:
        left, right = getattr(a, field), getattr(b, field)
        if isinstance(left, np.ndarray):
            assert np.array_equal(left, right, equal_nan=left.dtype.kind == "f"), field
        else:
            assert left == right, field


def test_the_drift_of_the_whole_is_not_taken_for_heat():
    """Langevin noise moves the centre of mass; in the NVE that follows it neither moves nor counts."""
    legs = (
        leg(steps=200, ensemble="nvt", thermostat="langevin", thermostat_time_fs=20.0, driver="conservative"),
        leg(steps=20, driver="conservative"),
    )
    course = Course(SpringModel(), [crystal(1), crystal(1)], Plan(legs, bounds=Bounds(closest=0.0)), seed=2)
    last: dict[int, list[Sample]] = {}
    for number, event in course.run():
        if isinstance(event, Sample):
            last.setdefault(number, []).append(event)
    assert last[0][-1].net_momentum.min() > 0.1, "the noise has moved it"
    assert max(s.net_momentum.max() for s in last[1]) < 1e-12


def test_arms_begin_at_the_same_place(model):
    firsts = {}
    for number, event in Course(model, [salt()], PLANS["arms from one start"], seed=1).run():
        if isinstance(event, Sample) and event.step == 0:
            firsts[number] = (event.energy_potential[0], event.energy_kinetic[0])
    assert firsts[1] == firsts[2] == firsts[3]


def test_same_seed_same_run_other_seed_other_velocities(model):
    def kinetic(seed):
        return [
            e.energy_kinetic[0] for e in events(Course(model, [salt()], Plan((leg(),)), seed)) if isinstance(e, Sample)
        ]

    assert kinetic(1) == kinetic(1) != kinetic(2)


def test_frames_hold_both_forces_of_their_positions(model):
    frames = [e for e in events(Course(model, [salt()], Plan((leg(),)), seed=0)) if isinstance(e, Frame)]
    assert [f.step for f in frames] == [0, 10, 20]
    atoms = salt().to_atoms()
    atoms.positions = frames[-1].positions
    [expected] = model.evaluate(atoms)
    np.testing.assert_allclose(frames[-1].forces_direct, expected.forces_direct, atol=1e-4)
    np.testing.assert_allclose(frames[-1].forces_conservative, expected.forces_conservative, atol=1e-4)
    # Å/fs: a sodium atom at 300 K moves about 0.005.
    assert 1e-4 < np.abs(frames[-1].velocities).mean() < 2e-2


def test_relaxation_ends_at_a_minimum_of_its_force_and_asks_the_other(model):
    for driver in ("direct", "conservative"):
        plan = Plan((), Relaxation(driver, fmax_eV_per_A=0.03, steps=300))
        seen = events(Course(model, [salt(1), salt(2)], plan, seed=0))
        ends = [e for e in seen if isinstance(e, Relaxed)]
        assert {e.system for e in ends} == {0, 1}
        for end in ends:
            own = end.forces_direct if driver == "direct" else end.forces_conservative
            other = end.forces_conservative if driver == "direct" else end.forces_direct
            assert end.converged and np.linalg.norm(own, axis=1).max() < 0.03
            disagree = np.linalg.norm(other, axis=1).max() > 0.06
            assert ("disagree about the minimum" in end.note) == disagree
        points = [e for e in seen if isinstance(e, Point) and e.system == 0]
        assert points[-1].energy < points[0].energy
        assert points[0].force_delta is not None and points[1].force_delta is None, "U every five iterations"


def test_what_cannot_move_is_refused_in_words(model):
    one = Structure(np.array([11]), np.zeros((1, 3)), 5 * np.eye(3), (True,) * 3)
    with pytest.raises(UnsupportedStructureError, match="single atom"):
        Course(model, [one], Plan((leg(),)), 0)
    with pytest.raises(UnsupportedStructureError, match="not trained on"):
        Course(model, [Structure(np.array([79, 79]), np.eye(3)[:2], np.eye(3) * 9, (True,) * 3)], Plan((leg(),)), 0)


def test_too_many_at_once_is_refused_before_it_begins(model, monkeypatch):
    monkeypatch.setattr(model, "available_bytes", lambda: 1000.0)
    with pytest.raises(ComputeError, match="at once"):
        Course(model, [salt()], Plan((leg(),)), 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"timestep_fs": 0.0},
        {"temperature_K": float("nan")},
        {"ensemble": "npt"},
        {"driver": "both"},
        {"thermostat": "andersen"},
        {"driver": "mts", "mts_stride": 3},
        {"monitor_every": 0},
        {"steps": True},
    ],
)
def test_wrong_settings_are_refused_with_the_next_step(wrong):
    with pytest.raises(UsageError) as error:
        leg(**wrong)
    assert error.value.message


def test_default_time_step_knows_hydrogen():
    assert default_timestep_fs([1, 8]) == 0.5 and default_timestep_fs([12, 13]) == 1.0


def test_cadences_are_whole_rounds():
    assert leg(steps=800, driver="mts", mts_stride=8, monitor_every=10, frame_every=30).cadence() == (8, 16, 32)
    assert leg(steps=100_000, frame_every=None).cadence() == (5, 5, 250)


def test_inputs_are_named_by_content():
    assert stored.inputs_sha256([salt(1)]) != stored.inputs_sha256([salt(2)])
