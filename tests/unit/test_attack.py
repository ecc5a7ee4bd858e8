"""The climb, its guards, the choice of a dataset: what each promises, with values."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from ase.build import bulk
from ase.data import covalent_radii
from hypothesis import given, settings
from hypothesis import strategies as st

import fdcore
from fdcore import services
from fdcore.attack.ascent import Ascent, Ended, Origin, Rattled, Step
from fdcore.attack.environments import describe, unit_distance, width
from fdcore.attack.guards import closest_pair, held_apart
from fdcore.attack.selection import select
from fdcore.attack.settings import Attack, Choice
from fdcore.errors import UsageError
from fdcore.records import Evaluation, Gradients, Structure
from tests.doubles import Double


@pytest.fixture(scope="module")
def model():
    return fdcore.load_model(device="cpu")


def salt(sigma: float = 0.05) -> Structure:
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.rattle(sigma, seed=3)
    return Structure.from_atoms(atoms, file="salt.cif")


def events(model, structures, starts=1, seed=0, **asked):
    return [e for e in Ascent(model, structures, starts, Attack(**asked), seed).run() if e is not None]


def of(kind, listed):
    return [e for e in listed if isinstance(e, kind)]


class Bowl(Double):
    """Two atoms, d apart: E = d^2 / 2, and F_nc - F_c is 1 + tanh(d^2) in every component. U_Delta rises to 2 and stops there; where
    the atoms coincide it has no slope."""

    bytes_per_edge = 1.0

    def _edge_count(self, structure):
        return float(structure.n_atoms)

    def _evaluate(self, structures):
        return [self._one(s)[0] for s in structures]

    def _one(self, structure):
        d = structure.positions - structure.positions[::-1]
        u = 1 + np.tanh((d[0] ** 2).sum())
        return Evaluation(0.5 * float((d[0] ** 2).sum()), -d + u, -d), d, u

    def _gradients(self, structure, method):
        evaluation, d, u = self._one(structure)
        return Gradients(evaluation, 2 * d * (1 - (u - 1) ** 2), d)


@pytest.fixture
def bowl(model):
    return Bowl(model.card, "cpu", "float64")


def two_atoms(near: float = 0.1) -> Structure:
    return Structure(np.array([11, 17]), [[0, 0, 0], [near, 0, 0]], np.zeros((3, 3)), (False,) * 3)


# ---- the climb -----------------------------------------------------------------------------------------------------


def test_one_step_is_equation_3(bowl):
    start = two_atoms()
    before = bowl.gradients([start])[0]
    asked = {"alpha": 0.05, "beta": 0.002, "max_step_A": 1.0, "window_eV_per_atom": 100.0, "closest": 0.0}
    first, second = of(Step, events(bowl, [start], steps=1, **asked))
    shift = 0.05 * before.force_delta_gradient - 0.002 * before.energy_gradient
    # A common motion of all atoms changes nothing and is taken out.
    np.testing.assert_allclose(second.positions - first.positions, shift - shift.mean(axis=0), atol=1e-12)
    assert (first.alpha, first.beta) == (0.05, 0.002)


def test_scale_free_step_moves_the_fastest_atom_by_the_first_step(model):
    listed = events(model, [salt(0.1)], steps=1, first_step_A=0.01, balance=0.0, max_step_A=0.5)
    first, second = of(Step, listed)
    moved = np.linalg.norm(second.positions - first.positions, axis=1)
    # All but the common motion that is taken out.
    assert moved.max() == pytest.approx(0.01, rel=0.15)
    assert first.beta == 0.0


def test_balance_is_the_ratio_of_the_two_terms(model):
    first = of(Step, events(model, [salt(0.1)], steps=1, balance=0.4, gradient="double-backward"))[0]
    g = model.gradients([salt(0.1)])[0]
    up = first.alpha * np.sqrt((g.force_delta_gradient**2).mean())
    down = first.beta * np.sqrt((g.energy_gradient**2).mean())
    assert down / up == pytest.approx(0.4, rel=1e-4)


def test_boltzmann_weight_sets_beta_from_u(bowl):
    from fdcore.units import KB

    first = of(Step, events(bowl, [two_atoms()], steps=1, temperature_K=2000.0, alpha=0.01, closest=0.0))[0]
    assert first.beta == pytest.approx(0.01 * first.force_delta / (2 * KB * 2000.0))


def test_u_rises_while_the_bounds_hold(model):
    listed = events(model, [salt()], starts=3, steps=12)
    [origin] = of(Origin, listed)
    steps = of(Step, listed)
    assert max(s.force_delta for s in steps) > 4 * origin.force_delta
    assert max(s.above_eV_per_atom for s in steps) <= 0.4
    assert min(s.closest_share for s in steps) >= 0.75
    assert {s.start for s in steps} == {0, 1, 2}
    for before, after in pairwise(steps):
        if before.start == after.start:
            assert np.linalg.norm(after.positions - before.positions, axis=1).max() < 0.2
    # What is said of a structure is what the model says of it.
    last = steps[-1]
    again = model.evaluate(replace(salt(), positions=last.positions))[0]
    assert again.force_delta == pytest.approx(last.force_delta, rel=1e-3)
    assert (again.energy - origin.energy) / 8 == pytest.approx(last.above_eV_per_atom, abs=1e-5)


def test_plateau_is_detected_and_said(bowl):
    listed = events(
        bowl,
        [two_atoms(0.4)],
        steps=200,
        alpha=0.5,
        beta=0.0,
        max_step_A=0.3,
        closest=0.0,
        window_eV_per_atom=100.0,
        patience=4,
    )
    [end] = of(Ended, listed)
    assert end.reason == "plateau" and end.step < 200
    assert "saturates" in end.text
    assert max(s.force_delta for s in of(Step, listed)) == pytest.approx(2.0, abs=0.02)


def test_energy_window_stops_a_start(bowl):
    listed = events(bowl, [two_atoms(0.4)], steps=200, alpha=0.5, beta=0.0, closest=0.0, window_eV_per_atom=0.05)
    [end] = of(Ended, listed)
    assert end.reason == "window" and "eV/atom above" in end.text
    assert max(s.above_eV_per_atom for s in of(Step, listed)) <= 0.05


def test_symmetric_start_is_rattled_and_reported(bowl):
    listed = events(bowl, [two_atoms(0.0)], steps=3, seed=7, closest=0.0)
    [rattled] = of(Rattled, listed)
    assert "symmetry" in rattled.why and rattled.sigma_A == 0.05
    steps = [s for s in of(Step, listed) if np.any(s.positions)]
    assert steps[-1].force_delta > steps[0].force_delta
    # The seed decides where it goes; the same one goes there again.
    for seed, same in ((7, True), (8, False)):
        again = [
            s for s in of(Step, events(bowl, [two_atoms(0.0)], steps=3, seed=seed, closest=0.0)) if np.any(s.positions)
        ]
        assert np.array_equal(again[-1].positions, steps[-1].positions) == same


def test_where_both_forces_vanish_it_is_rattled_too(model):
    perfect = Structure.from_atoms(bulk("Al", cubic=True) * (2, 1, 1))
    listed = events(model, [perfect], steps=6, seed=7)
    assert of(Origin, listed)[0].force_delta < 1e-4
    assert len(of(Rattled, listed)) == 1
    assert of(Step, listed)[-1].force_delta > 0.02


def test_nothing_to_climb_ends_with_a_reason(model):
    lonely = Structure([1], [[0.0, 0.0, 0.0]], np.zeros((3, 3)), (False,) * 3)
    [end] = of(Ended, events(model, [lonely], steps=3))
    assert end.reason == "no-gradient"


def test_start_outside_the_bounds_is_kept_but_marked(model):
    squeezed = Structure.from_atoms(bulk("NaCl", "rocksalt", a=3.2, cubic=True))
    listed = events(model, [squeezed], steps=3)
    assert of(Step, listed)[0].broken == "closest"
    assert of(Ended, listed)[0].reason == "closest"


def test_several_structures_take_turns(model):
    a, b = salt(0.05), salt(0.08)
    steps = of(Step, events(model, [a, b], starts=3, steps=1))
    assert {(s.start, s.parent) for s in steps} == {(0, 0), (1, 1), (2, 0)}


def test_what_cannot_be_evaluated_does_not_stop_the_others(bowl, monkeypatch):
    def gradients(structure, method):
        evaluation, _, _ = bowl._one(structure)
        if structure.positions[1, 0] > 0.3:
            evaluation = replace(evaluation, energy=float("nan"))
        return Gradients(evaluation, np.ones((2, 3)), structure.positions)

    monkeypatch.setattr(bowl, "_gradients", gradients)
    listed = events(bowl, [two_atoms(0.1), two_atoms(0.5)], starts=2, steps=2, closest=0.0)
    assert [bool(o.problem) for o in of(Origin, listed)] == [False, True]
    assert {e.start: e.reason for e in of(Ended, listed)} == {0: "steps", 1: "failed"}


def test_strain_moves_the_cell_within_its_bounds(model):
    steps = of(Step, events(model, [salt()], steps=6, strain=True, max_strain=0.004))
    cell = salt().cell
    strains = [np.linalg.solve(cell, s.cell) - np.eye(3) for s in steps]
    assert np.abs(strains[-1]).max() > 1e-4
    assert max(np.abs(e).max() for e in strains) <= 10 * 0.004 + 1e-9
    for before, after in pairwise(strains):
        assert np.abs(after - before).max() <= 0.004 * 1.1


def test_impossible_wishes_are_refused():
    for wrong in (
        {"steps": 0},
        {"alpha": -1.0},
        {"closest": 2.0},
        {"temperature_K": 300.0, "beta": 0.1},
        {"strain": 1},
    ):
        with pytest.raises(UsageError):
            Attack(**wrong)
    with pytest.raises(UsageError):
        Choice(count=0)


# ---- guards --------------------------------------------------------------------------------------------------------


def test_closest_pair_sees_periodic_images():
    s = Structure([11, 17], [[0.1, 0, 0], [4.9, 0, 0]], 5 * np.eye(3), (True,) * 3)
    found = closest_pair(s)
    assert found.distance_A == pytest.approx(0.2)
    assert found.share == pytest.approx(0.2 / (covalent_radii[11] + covalent_radii[17]))
    assert set(found.atoms) == {0, 1}
    alone = Structure([1], [[0, 0, 0]], np.zeros((3, 3)), (False,) * 3)
    assert np.isinf(closest_pair(alone).share)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), sigma=st.floats(0.0, 0.5), share=st.floats(0.5, 0.85))
def test_atoms_held_apart_are_apart_and_only_those_that_were_close_moved(seed, sigma, share):
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.rattle(sigma, seed=seed)
    s = Structure.from_atoms(atoms)
    held = held_apart(s, share)
    # Parting many crowded pairs may need more rounds than are made; it never makes the closest pair closer.
    assert closest_pair(held).share >= min(share, closest_pair(s).share) - 1e-9
    if closest_pair(s).share >= share:
        np.testing.assert_array_equal(held.positions, s.positions)
    np.testing.assert_allclose(held.positions.sum(axis=0), s.positions.sum(axis=0), atol=1e-9)


def test_one_close_pair_is_parted_to_the_bound():
    s = Structure([11, 17], [[0, 0, 0], [1.0, 0, 0]], np.zeros((3, 3)), (False,) * 3)
    held = held_apart(s, 0.8)
    assert closest_pair(held).share == pytest.approx(0.8, rel=2e-3)
    np.testing.assert_allclose(held.positions.mean(axis=0), [0.5, 0, 0])


# ---- environments --------------------------------------------------------------------------------------------------


def test_environments_do_not_see_order_translation_or_rotation():
    s = salt(0.1)
    numbers = s.numbers
    base = describe(s, numbers)
    assert base.shape == (width(numbers),)
    order = np.random.default_rng(0).permutation(8)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    for same in (
        replace(s, numbers=s.numbers[order], positions=s.positions[order]),
        replace(s, positions=s.positions + np.array([0.3, 1.0, -2.0])),
        replace(s, positions=s.positions @ turn, cell=s.cell @ turn),
    ):
        np.testing.assert_allclose(describe(same, numbers), base, atol=1e-6)


def test_unit_is_the_distance_of_two_random_displacements():
    s = salt(0.0)
    unit = unit_distance(s, s.numbers)
    rng = np.random.default_rng(5)
    a, b = (describe(replace(s, positions=s.positions + rng.normal(0, 0.1, (8, 3))), s.numbers) for _ in range(2))
    assert 0.4 < np.linalg.norm(a - b) / unit < 2.5
    one = s.positions.copy()
    one[0, 0] += 0.005
    assert np.linalg.norm(describe(replace(s, positions=one), s.numbers) - describe(s, s.numbers)) / unit < 0.1


# ---- selection -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(0, 60),
    count=st.integers(1, 20),
    spread=st.booleans(),
    apart=st.floats(0.0, 1.5),
)
def test_no_two_of_a_dataset_are_alike(seed, n, count, spread, apart):
    rng = np.random.default_rng(seed)
    u, described = rng.uniform(0.1, 2.0, n), rng.normal(size=(n, 2))
    allowed = rng.random(n) > 0.2
    found = select(u, u / 0.1, allowed, described, Choice(count, 5.0, spread, apart))
    rows = list(found.rows)
    assert len(rows) == len(set(rows)) <= count
    assert all(allowed[r] and u[r] >= 0.5 for r in rows)
    assert u[rows].tolist() == sorted(u[rows], reverse=True)
    for k, a in enumerate(rows):
        for b in rows[:k]:
            assert np.linalg.norm(described[a] - described[b]) > apart
    reached = int((allowed & (u >= 0.5)).sum())
    assert found.reached == reached
    if len(rows) < count:
        # Whatever was left out is like one that was chosen.
        assert found.alike == reached - len(rows)
    if rows and not spread:
        assert rows[0] == max(np.flatnonzero(allowed & (u >= 0.5)), key=lambda r: u[r])


def test_spread_covers_the_range_evenly():
    u = np.linspace(1.0, 2.0, 101)
    found = select(u, u, np.ones(101, bool), np.arange(101.0)[:, None], Choice(5, 1.0, True, 0.5))
    np.testing.assert_allclose(u[list(found.rows)], [2.0, 1.75, 1.5, 1.25, 1.0], atol=1e-9)
    highest = select(u, u, np.ones(101, bool), np.arange(101.0)[:, None], Choice(5, 1.0, False, 0.5))
    assert highest.rows == (100, 99, 98, 97, 96)


@pytest.mark.parametrize("spread", [False, True])
def test_every_origin_gives_as_many(spread):
    # The second of three disagrees a hundred times as much everywhere; the third has not risen.
    u = np.concatenate([np.linspace(0.1, 1.0, 20), np.linspace(10.0, 100.0, 20), np.full(20, 0.5)])
    rise = np.concatenate([u[:20] / 0.1, u[20:40] / 10, np.ones(20)])
    parents = np.repeat([0, 1, 2], 20)
    arguments = (u, rise, np.ones(60, bool), np.arange(60.0)[:, None])
    found = select(*arguments, Choice(6, 5.0, spread, 0.5), parents)
    assert np.bincount(parents[list(found.rows)], minlength=3).tolist() == [3, 3, 0]
    # What one cannot give the others do.
    rise[:18] = 1.0
    found = select(*arguments, Choice(6, 5.0, spread, 0.5), parents)
    assert np.bincount(parents[list(found.rows)], minlength=3).tolist() == [2, 4, 0]


# ---- gradients of many structures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["double-backward", "finite-difference"])
def test_batched_gradients_are_those_of_each_alone(method):
    model = fdcore.load_model(device="cpu", dtype="float64")
    several = [salt(0.05), salt(0.1), salt(0.15)]
    together = model.gradients(several, method=method)
    for one, g in zip(several, together, strict=True):
        [alone] = model.gradients([one], method=method)
        np.testing.assert_allclose(g.force_delta_gradient, alone.force_delta_gradient, atol=1e-9)
        np.testing.assert_allclose(g.energy_gradient, alone.energy_gradient, atol=1e-10)


@pytest.mark.parametrize("method", ["double-backward", "finite-difference"])
def test_gradients_with_respect_to_the_cell_against_central_differences(method):
    model = fdcore.load_model(device="cpu", dtype="float64")
    s, h = salt(0.1), 1e-4
    g = model.gradients([salt(0.05), s], method=method, strain=True)[1]
    direction = np.random.default_rng(0).normal(size=(3, 3))
    direction = direction + direction.T

    def at(t):
        bent = np.eye(3) + t * direction
        return model.evaluate(replace(s, positions=s.positions @ bent, cell=s.cell @ bent))[0]

    up, down = at(h), at(-h)
    u_slope, e_slope = (up.force_delta - down.force_delta) / (2 * h), (up.energy - down.energy) / (2 * h)
    assert (g.force_delta_strain_gradient * direction).sum() == pytest.approx(u_slope, rel=1e-4)
    assert (g.energy_strain_gradient * direction).sum() == pytest.approx(e_slope, rel=1e-5)


def test_one_sided_gradient_points_the_same_way():
    for dtype, off in (("float64", 2e-3), ("float32", 0.05)):
        model = fdcore.load_model(device="cpu", dtype=dtype)
        several = [salt(0.05), salt(0.1)]
        for exact, cheap in zip(
            model.gradients(several, strain=True),
            model.gradients(several, method="one-sided", strain=True),
            strict=True,
        ):
            for name in ("force_delta_gradient", "force_delta_strain_gradient"):
                a, b = getattr(exact, name), getattr(cheap, name)
                assert np.linalg.norm(a - b) < off * np.linalg.norm(a)
            np.testing.assert_allclose(cheap.energy_strain_gradient, exact.energy_strain_gradient, atol=1e-3)


def test_one_sided_direction_where_atoms_are_close():
    """The repulsion of close atoms is steep, and stands in both forces alike: it must not get into a difference."""
    exact, cheap = (fdcore.load_model(device="cpu", dtype=dtype) for dtype in ("float64", "float32"))
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.rattle(0.1, seed=2)
    atoms.positions[1] += 0.75 * (atoms.positions[0] - atoms.positions[1]) * 0.45
    close = held_apart(Structure.from_atoms(atoms), 0.75)
    assert closest_pair(close).share < 0.76
    true = exact.gradients([close], method="double-backward")[0].force_delta_gradient
    for method in ("one-sided", "finite-difference"):
        found = cheap.gradients([close], method=method)[0]
        assert _cosine(found.force_delta_gradient, true) > 0.999
        # What is recorded does not depend on how the direction is made.
        [seen] = cheap.evaluate([close])
        assert found.evaluation.energy == pytest.approx(seen.energy, abs=1e-5)
        np.testing.assert_allclose(found.evaluation.forces_direct, seen.forces_direct, atol=1e-4)
        np.testing.assert_allclose(found.evaluation.forces_conservative, seen.forces_conservative, atol=1e-4)


def _cosine(a, b) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.slow
def test_one_sided_direction_of_a_full_size_model(random_checkpoint):
    """Single precision and one side against double precision and double backward, with atoms as close as an attack lets them be: in
    such structures the repulsion used to turn the direction by up to 22 degrees."""
    name = "orb-v3-direct-inf-mpa"
    exact, cheap = (
        fdcore.load_model(name, device="cpu", dtype=dtype, weights=random_checkpoint(name))
        for dtype in ("float64", "float32")
    )
    rng = np.random.default_rng(1)
    for example, sigma in (("Mg17Al12", 0.1), ("ice_XI", 0.2)):
        [given] = services.read_sources(
            [services.example_source(next(e for e in services.examples() if e.id == example))]
        ).structures
        moved = replace(given, positions=given.positions + rng.normal(0, sigma, given.positions.shape))
        moved = held_apart(moved, 0.75)
        true = exact.gradients([moved], method="double-backward")[0].force_delta_gradient
        assert _cosine(cheap.gradients([moved], method="one-sided")[0].force_delta_gradient, true) > 0.999


def test_all_pairs_and_a_neighbour_list_agree(monkeypatch):
    from fdcore.attack import guards

    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True) * (2, 2, 2)
    atoms.rattle(0.3, seed=5)
    atoms.set_cell(atoms.cell.array @ np.array([[1, 0.1, 0], [0, 1, 0.2], [0, 0, 1]]), scale_atoms=True)
    s = Structure.from_atoms(atoms)
    fast = closest_pair(s)
    monkeypatch.setattr(guards, "SMALL", 0)
    listed = closest_pair(s)
    assert fast.distance_A == pytest.approx(listed.distance_A) and set(fast.atoms) == set(listed.atoms)


def test_molecule_has_no_cell_to_strain(model):
    with pytest.raises(UsageError, match="crystal"):
        model.gradients([two_atoms(2.0)], strain=True)


def test_second_derivatives_written_out_are_those_of_autograd():
    import torch

    from fdcore.models.twice import TwiceRMSNorm, TwiceSilu

    torch.manual_seed(0)
    norm = torch.nn.RMSNorm(5).double().requires_grad_(False)
    norm.weight.copy_(torch.rand(5))
    for mine, theirs in ((TwiceSilu(), torch.nn.SiLU()), (TwiceRMSNorm(norm), norm)):
        results = []
        for module in (mine, theirs):
            x = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
            y = module(x)
            (slope,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
            (second,) = torch.autograd.grad((slope.sin() * x).sum(), x)
            results.append((y.detach(), slope.detach(), second))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
