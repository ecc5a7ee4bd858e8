"""The measures themselves: analytic fields, known matrices, coverage of the estimates."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fdcore import conservativity, data, services
from fdcore.errors import UsageError


def matrix(n: int, odd: float, seed: int = 0) -> np.ndarray:
    """A symmetric matrix plus `odd` times an antisymmetric one."""
    m = np.random.default_rng(seed).normal(size=(n, n))
    return 0.5 * (m + m.T) + odd * 0.5 * (m - m.T)


def rotational(n_atoms: int, k: float, w: float) -> np.ndarray:
    """J of F = -k r + w z x r."""
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 0]])
    return np.kron(np.eye(n_atoms), -k * np.eye(3) + w * turn)


def test_lambda_of_known_fields():
    assert conservativity.of_jacobian(matrix(9, 0.0)).value == 0
    assert conservativity.of_jacobian(matrix(9, 1.0) - matrix(9, 1.0).T).value == pytest.approx(1)
    k, w = 3.0, 0.4
    found = conservativity.of_jacobian(rotational(5, k, w))
    assert found.value == pytest.approx(math.sqrt(2 * w**2 / (3 * k**2 + 2 * w**2)), rel=1e-12)
    assert found.antisymmetric_norm == pytest.approx(math.sqrt(5 * 2) * w)
    assert found.exact and found.standard_error == 0
    with pytest.raises(UsageError, match="does not change"):
        conservativity.of_jacobian(np.zeros((6, 6)))
    with pytest.raises(UsageError, match="square"):
        conservativity.of_jacobian(np.zeros((6, 3)))


def test_atoms_and_pairs_add_up_to_the_whole():
    j = matrix(12, 0.3)
    j[:3, :3] += rotational(1, 0.0, 5.0)  # the first atom turns
    own, share = conservativity.by_atom(j)
    assert share.sum() == pytest.approx(1) and share.argmax() == own.argmax() == 0
    pairs = conservativity.by_pair(j)
    assert len(pairs.first) == 10
    weights = np.where(pairs.first == pairs.second, 1, 2)
    whole = conservativity.of_jacobian(j)
    assert (weights * pairs.antisymmetric_norm**2).sum() == pytest.approx(whole.antisymmetric_norm**2)
    assert (weights * pairs.norm**2).sum() == pytest.approx(whole.norm**2)


@pytest.mark.parametrize("way", ["products", "pairs"])
def test_all_directions_leave_nothing_to_chance(way):
    n, j = 12, matrix(12, 0.2)
    q = conservativity.directions(n, n, [3])
    assert np.allclose(q @ q.T, np.eye(n), atol=1e-12)
    if way == "products":
        found = conservativity.of_products(q @ j.T, q @ j)
    else:
        found = conservativity.of_pairs(q @ (q @ j.T).T, ((q @ j.T) ** 2).sum(1), n)
    exact = conservativity.of_jacobian(j)
    assert found.value == pytest.approx(exact.value, rel=1e-10)
    assert found.norm == pytest.approx(exact.norm, rel=1e-10)
    assert found.standard_error == 0


def test_more_directions_begin_with_the_same():
    few, many = conservativity.directions(30, 4, [1, 2]), conservativity.directions(30, 9, [1, 2])
    assert np.allclose(few, many[:4], atol=1e-12)


@pytest.mark.parametrize(("way", "count"), [("products", 8), ("pairs", 24)])
def test_estimates_are_unbiased_and_their_errors_cover(way, count):
    """Over 300 seeds: no bias of |A|^2 and |J|^2, and the truth within 1.96 standard errors about as often as it should be."""
    n = 90
    # As of a real model: few large entries, a small antisymmetric part that has few directions.
    rng = np.random.default_rng(5)
    shape = np.diag(np.exp(-np.arange(n) / 15))
    basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
    j = basis @ shape @ basis.T + 0.05 * (lambda m: m - m.T)(basis @ shape @ rng.normal(size=(n, n)) @ shape @ basis.T)
    exact = conservativity.of_jacobian(j)
    odd, whole, inside = [], [], 0
    for seed in range(300):
        q = conservativity.directions(n, count, [seed])
        forward = q @ j.T
        if way == "products":
            found = conservativity.of_products(forward, q @ j)
        else:
            found = conservativity.of_pairs(q @ forward.T, (forward**2).sum(1), n)
        odd.append(found.antisymmetric_norm**2)
        whole.append(found.norm**2)
        inside += abs(found.value - exact.value) < 1.96 * found.standard_error
    for values, truth in ((odd, exact.antisymmetric_norm**2), (whole, exact.norm**2)):
        error = np.std(values, ddof=1) / math.sqrt(len(values))
        assert abs(np.mean(values) - truth) < 4 * error
    assert 0.86 < inside / 300 < 0.995


def test_probes_that_cannot_be_used_are_refused():
    with pytest.raises(UsageError):
        conservativity.of_squares(np.ones(4), np.ones(4), 3)
    with pytest.raises(UsageError, match="pairs"):
        conservativity.of_pairs(np.zeros((2, 2)), np.ones(2), 9)


# ---- loops ---------------------------------------------------------------------------------------------------------


def test_work_on_a_circle_is_that_of_stokes():
    """For a linear force the small-loop formula is exact at any radius."""
    r = np.random.default_rng(1).normal(size=(4, 3))
    j = matrix(12, 0.7, seed=2)
    plane = conservativity.directions(12, 2, [7])
    path = conservativity.circle(r, plane, 0.3, 16)
    force = (path.positions.reshape(16, -1) @ j.T).reshape(path.positions.shape)
    found = conservativity.work((force * path.velocities).sum((1, 2)))
    assert found.value == pytest.approx(conservativity.small_loop_work(j, plane, 0.3), rel=1e-10)
    assert abs(found.value) > 0.01 and found.error < 1e-12
    # Every atom is radius_A away as a root mean square, everywhere; the length is that of a circle of rho = radius_A sqrt(N).
    apart = np.sqrt(((path.positions - r) ** 2).sum((1, 2)) / 4)
    assert np.allclose(apart, 0.3)
    assert path.length_A == pytest.approx(2 * math.pi * 0.3 * 2)


def test_work_of_a_slope_is_zero_and_converges_fast():
    """F = -grad of a smooth anharmonic energy."""
    r = np.random.default_rng(3).normal(size=(3, 3))
    plane = conservativity.directions(9, 2, [1])
    errors = []
    for count in (16, 32, 64):
        path = conservativity.circle(r, plane, 0.5, count)
        force = -np.cos(path.positions) - 0.3 * path.positions**3
        errors.append(abs(conservativity.work((force * path.velocities).sum((1, 2))).value))
    assert errors[-1] < 1e-12 and errors[0] < 1e-3


def test_velocities_are_the_derivatives_of_the_positions():
    rng = np.random.default_rng(4)
    r, arms = rng.normal(size=(5, 3)), rng.normal(size=(3, 3))
    for count in (4096,):
        paths = (
            conservativity.circle(r, conservativity.directions(15, 2, [2]), 0.2, count),
            conservativity.turning_molecule(r, (0, 2, 3), arms - arms.mean(0), [1, 2, -1], 25.0, 0.05, count),
        )
        for path in paths:
            step = 2 * math.pi / count
            numeric = (np.roll(path.positions, -1, 0) - np.roll(path.positions, 1, 0)) / (2 * step)
            assert np.abs(numeric - path.velocities).max() < 1e-5 * np.abs(path.velocities).max()
    # Atoms that do not belong to the molecule stay.
    assert (paths[1].positions[:, [1, 4]] == r[[1, 4]]).all()


def test_an_odd_number_of_points_is_refused():
    with pytest.raises(UsageError):
        conservativity.work(np.ones(7))


# ---- lines and copies ----------------------------------------------------------------------------------------------


def test_a_jump_of_the_energy_is_found_and_nothing_else():
    s = 0.01 * np.arange(60)
    energy, slope = np.sin(3 * s), 3 * np.cos(3 * s)
    smooth = conservativity.unexplained(energy, slope, 0.01)
    assert np.abs(smooth).max() < 1e-9
    energy[31:] += 0.004
    jump = conservativity.unexplained(energy, slope, 0.01)
    assert np.abs(jump).argmax() == 30 and jump[30] == pytest.approx(0.004, abs=1e-8)


def test_rotations_are_rotations():
    for seed in range(20):
        turn = conservativity.rotation([seed])
        assert np.allclose(turn @ turn.T, np.eye(3), atol=1e-12) and np.linalg.det(turn) == pytest.approx(1)


# ---- a real model --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return services.load_model("fd-orb-small-v1", "cpu", "float64")


@pytest.fixture(scope="module")
def salt():
    """NaCl, displaced."""
    from dataclasses import replace

    [s] = services.read_paths([str(data.path("examples", "NaCl.cif"))]).structures
    return replace(s, positions=s.positions + 0.05 * np.random.default_rng(0).normal(size=s.positions.shape))


def jacobian(model, structure, force):
    n = 3 * structure.n_atoms
    return model.pull_back(structure, np.eye(n).reshape(n, -1, 3), force=force).reshape(n, n)


def test_derivatives_are_those_of_differences(model, salt):
    n, step = 3 * salt.n_atoms, 1e-4
    units = step * np.eye(n).reshape(n, -1, 3)
    ends = model.displaced(salt, np.concatenate([units, -units]))
    for force in ("direct", "conservative"):
        values = np.stack([getattr(e, f"forces_{force}").ravel() for e in ends])
        numeric = ((values[:n] - values[n:]) / (2 * step)).T
        exact = jacobian(model, salt, force)
        assert np.abs(numeric - exact).max() < 1e-6 * np.abs(exact).max()


def test_hessian_is_symmetric_and_the_direct_jacobian_is_not(model, salt):
    assert conservativity.of_jacobian(jacobian(model, salt, "conservative")).value < 1e-12
    direct = conservativity.of_jacobian(jacobian(model, salt, "direct"))
    assert 0.005 < direct.value < 0.5


def test_work_of_the_embedded_model(model, salt):
    """F_c does none; F_nc does what its Jacobian says on a small loop."""
    from dataclasses import replace

    plane = conservativity.directions(3 * salt.n_atoms, 2, [4])
    path = conservativity.circle(salt.positions, plane, 0.01, 32)
    found = model.evaluate([replace(salt, positions=p) for p in path.positions])
    work = {
        force: conservativity.work(
            [(getattr(e, f"forces_{force}") * v).sum() for e, v in zip(found, path.velocities, strict=True)]
        ).value
        for force in ("direct", "conservative")
    }
    assert abs(work["conservative"]) < 1e-8
    expected = conservativity.small_loop_work(jacobian(model, salt, "direct"), plane, 0.01)
    assert work["direct"] == pytest.approx(expected, rel=0.02) and abs(expected) > 1e-6


def test_a_sample_agrees_with_the_whole(model, salt):
    exact = conservativity.of_jacobian(jacobian(model, salt, "direct"))
    q = conservativity.directions(3 * salt.n_atoms, 10, [8])
    back = model.pull_back(salt, q.reshape(10, -1, 3)).reshape(10, -1)
    step = 1e-4
    ends = model.displaced(salt, np.concatenate([step * q, -step * q]).reshape(20, -1, 3))
    values = np.stack([e.forces_direct.ravel() for e in ends])
    found = conservativity.of_products((values[:10] - values[10:]) / (2 * step), back)
    assert 0 < found.standard_error < 0.3 * found.value
    assert abs(found.value - exact.value) < 4 * found.standard_error
    # Over 300 seeds the exact value is within 1.96 standard errors nearly as often as that promises (measured: 0.91).
    j, inside = jacobian(model, salt, "direct"), 0
    for seed in range(300):
        q = conservativity.directions(len(j), 10, [seed])
        found = conservativity.of_products(q @ j.T, q @ j)
        inside += abs(found.value - exact.value) < 1.96 * found.standard_error
    assert 0.86 < inside / 300 < 0.995


def test_a_model_without_derivatives_says_so(salt):
    from tests.contracts.test_task_contract import Arithmetic

    plain = Arithmetic(services.card("fd-orb-small-v1"), "cpu", "float64")
    with pytest.raises(UsageError, match="no derivatives"):
        plain.pull_back(salt, np.zeros((1, salt.n_atoms, 3)))


def test_vectors_of_another_shape_are_refused(model, salt):
    with pytest.raises(UsageError, match="shape"):
        model.pull_back(salt, np.zeros((salt.n_atoms, 3)))
