"""U_Delta against the equation of the paper, by hand and by property."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fdcore import delta
from fdcore.errors import UsageError

forces = st.integers(1, 12).flatmap(
    lambda n: st.tuples(*[arrays(np.float64, (n, 3), elements=st.floats(-50, 50, allow_subnormal=False))] * 2)
)


def test_by_hand():
    direct = [[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]
    conservative = [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    # differences (1, 0, 0) and (0, 2, -1): squares sum to 6 over 3N = 6 components
    assert delta.force_delta(direct, conservative) == pytest.approx(1.0)
    np.testing.assert_allclose(delta.force_delta_per_atom(direct, conservative), [math.sqrt(1 / 3), math.sqrt(5 / 3)])


@given(forces)
def test_rms_over_atoms_of_u_i_is_u(pair):
    per_atom = delta.force_delta_per_atom(*pair)
    assert delta.force_delta(*pair) == pytest.approx(np.sqrt((per_atom**2).mean()), rel=1e-12, abs=1e-12)


@given(forces, st.floats(0, 6.28))
def test_symmetric_and_invariant_under_rotation(pair, angle):
    a, b = pair
    c, s = math.cos(angle), math.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    value = delta.force_delta(a, b)
    assert delta.force_delta(b, a) == value
    assert delta.force_delta(a @ turn, b @ turn) == pytest.approx(value, rel=1e-9, abs=1e-9)


@given(forces)
def test_zero_only_for_equal_forces(pair):
    a, b = pair
    assert delta.force_delta(a, a) == 0
    assert (delta.force_delta(a, b) == 0) == bool(((a - b) ** 2 == 0).all())


@given(forces)
def test_triangle_inequality_with_a_reference(pair):
    """U <= eps_nc + eps_c for any reference: why a large U means that at least one force is wrong."""
    a, b = pair
    reference = 0.3 * a - 0.1 * b
    bound = delta.rms_difference(a, reference) + delta.rms_difference(b, reference)
    assert delta.force_delta(a, b) <= bound * (1 + 1e-12) + 1e-12


@pytest.mark.parametrize(
    ("a", "b"),
    [([], []), ([[1, 2]], [[1, 2]]), ([[1, 2, 3]], [[1, 2, 3], [1, 2, 3]]), ([1, 2, 3], [1, 2, 3])],
)
def test_wrong_shapes_are_refused(a, b):
    with pytest.raises(UsageError) as caught:
        delta.force_delta(a, b)
    assert caught.value.hint


def test_nan_stays_nan():
    assert math.isnan(delta.force_delta([[np.nan, 0, 0]], [[0, 0, 0]]))


def test_net_force_and_torque():
    positions = [[0, 0, 0], [1, 0, 0]]
    assert delta.net_force([[1, 2, 3], [-1, -2, 3]]) == pytest.approx([0, 0, 6])
    # a couple: opposite forces along y, one Å apart
    assert delta.net_torque([[0, -1, 0], [0, 1, 0]], positions) == pytest.approx([0, 0, 1])
