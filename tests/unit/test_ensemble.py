"""U_var and what is read of an ensemble: against formulas written out, analytic spreads, and what must not depend on order."""

from __future__ import annotations

import json

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from hypothesis import given
from hypothesis import strategies as st

from fdcore import ensemble, ensemble_files, models
from fdcore.cli import main
from fdcore.ensemble import Compared, Spread
from fdcore.errors import UsageError
from fdcore.records import Evaluation, Prediction, Structure

forces = st.tuples(st.integers(2, 6), st.integers(1, 7), st.integers(0, 2**32 - 1)).map(
    lambda k: np.random.default_rng(k[2]).normal(size=(k[0], k[1], 3))
)


def test_the_formula_written_out():
    """Two members that differ by (1, 0, 0) on one of two atoms: variance of a component 1/2, over 6 components."""
    f = np.zeros((2, 2, 3))
    f[1, 0, 0] = 1.0
    assert ensemble.ensemble_spread(f) == pytest.approx(np.sqrt(0.5 / 6))
    np.testing.assert_allclose(ensemble.ensemble_spread_per_atom(f), [np.sqrt(0.5 / 3), 0.0])
    np.testing.assert_allclose(ensemble.pairwise_differences(f), np.sqrt(1 / 6) * (1 - np.eye(2)))
    np.testing.assert_allclose(ensemble.from_the_others(f), [np.sqrt(1 / 6)] * 2)


def test_it_estimates_the_width_that_forces_were_drawn_with():
    f = np.random.default_rng(0).normal(scale=0.3, size=(5, 4000, 3))
    assert ensemble.ensemble_spread(f) == pytest.approx(0.3, rel=0.02)


@given(forces)
def test_spreads_agree_with_each_other(f):
    u = ensemble.ensemble_spread(f)
    assert u == pytest.approx(np.sqrt((ensemble.ensemble_spread_per_atom(f) ** 2).mean()), rel=1e-9)
    # The unbiased variance is half the mean square of all pairs.
    m = len(f)
    pairs = ensemble.pairwise_differences(f)
    assert u**2 == pytest.approx((pairs**2).sum() / (2 * m * (m - 1)), rel=1e-9)
    np.testing.assert_allclose(pairs, pairs.T)
    others = [np.sqrt(((f[k] - np.delete(f, k, 0).mean(0)) ** 2).mean()) for k in range(m)]
    np.testing.assert_allclose(ensemble.from_the_others(f), others, rtol=1e-9)


@given(forces, st.randoms())
def test_no_order_of_members_and_no_common_force_matters(f, random):
    order = list(range(len(f)))
    random.shuffle(order)
    common = np.random.default_rng(1).normal(size=f.shape[1:])
    assert ensemble.ensemble_spread(f[order] + common) == pytest.approx(ensemble.ensemble_spread(f), rel=1e-9)


def test_outlier_only_where_one_stands_out():
    assert ensemble.outlier([0.1, 0.11, 0.9, 0.1]) == 2
    assert ensemble.outlier([0.1, 0.11, 0.12, 0.1]) is None
    assert ensemble.outlier([0.1, 5.0]) is None, "of two, neither is"


@pytest.mark.parametrize("shape", [(1, 4, 3), (3, 4), (2, 0, 3), (2, 3, 2)])
def test_what_is_no_ensemble_is_refused(shape):
    with pytest.raises(UsageError, match="at least two members"):
        ensemble.ensemble_spread(np.zeros(shape))


def test_methods_are_not_mixed_silently():
    cards = [models.card(i) for i in ("orb-v2", "orb-d3-v2", "orb-v3-direct-inf-omat", "orb-v3-direct-inf-mpa")]
    assert list(models.reference_groups(cards).values()) == [
        ("orb-v2", "orb-v3-direct-inf-mpa"),
        ("orb-d3-v2",),
        ("orb-v3-direct-inf-omat",),
    ]
    assert "D3" in models.mixed_methods(cards) and models.mixed_methods(cards[::3]) == ""


def _spread(position: int, scale: float, labelled: bool, names: str = "abc", seconds: float = 1.0) -> Spread:
    rng = np.random.default_rng(position)
    structure = Structure(
        np.array([11, 17]),
        rng.normal(size=(2, 3)),
        5 * np.eye(3),
        (True,) * 3,
        labels={"forces_eV_per_A": np.zeros((2, 3))} if labelled else {},
        index=position,
    )
    base = scale * rng.normal(size=(2, 3))
    members = {n: Prediction(0.0, base + scale * rng.normal(size=(2, 3))) for n in names}
    return Spread(
        position,
        structure,
        Evaluation(0.0, base, np.zeros((2, 3))),
        members,
        seconds,
        dict.fromkeys(names, seconds),
        {},
    )


def test_rankings_are_over_labelled_structures_alone():
    compared = Compared(
        "a",
        ("a", "b", "c"),
        tuple(_spread(k, 0.1 * (k + 1), labelled=k != 3) for k in range(9)),
        (),
        {},
    )
    found = {(r.estimate, r.error): r.found for r in ensemble.rankings(compared)}
    # Here U_Delta is eps_nc itself; there is no confidence head.
    assert set(found) == {(e, x) for e in ("force_delta", "ensemble_spread") for x in ensemble.ERRORS}
    assert found["force_delta", "error_direct"].r_s == pytest.approx(1.0)
    assert found["force_delta", "error_direct"].n == 8
    assert ensemble.agreement(compared).n == 9


def test_few_structures_and_copies_rank_nothing():
    """Four structures, one of them three times: no r_s; a fifth one gives it, over five."""
    four = [_spread(k, 0.1 * (k + 1), labelled=True) for k in range(4)]
    few = Compared("a", ("a", "b", "c"), (*four, four[3], four[3]), (), {})
    assert ensemble.agreement(few).r_s is None and ensemble.rankings(few) == []
    fifth = Compared("a", ("a", "b", "c"), (*few.spreads, _spread(4, 0.5, labelled=True)), (), {})
    assert ensemble.agreement(fifth).n == 5 and ensemble.rankings(fifth)[0].found.n == 5


def test_cost_is_compared_where_all_members_answered():
    whole, part = _spread(0, 1.0, False), _spread(1, 1.0, False, names="ab", seconds=100.0)
    compared = Compared("a", ("a", "b", "c"), (whole, part), (), {})
    assert compared.relative_cost == pytest.approx(1 / 3)
    # A pair that never met has no difference.
    lonely = Compared("a", ("a", "b", "z"), (part,), (), {})
    pairs = lonely.pairwise()
    assert pairs is not None and np.isnan(pairs[0, 2]) and pairs[0, 1] > 0
    assert ensemble_files.document(lonely)["pairwise_eV_per_A"][0][2] is None


@pytest.fixture
def salt(tmp_path):
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    frames = []
    for k in range(3):
        frame = atoms.copy()
        frame.rattle(0.05 * (k + 1), seed=k)
        frames.append(frame)
    path = tmp_path / "salt.extxyz"
    ase.io.write(path, frames)
    return path


def test_command_line_says_what_the_members_say(salt, tmp_path, random_checkpoint, capfd):
    """Three Orb models of full size with random weights, one of them conservative: every number against the models asked directly."""
    ids = ["orb-d3-xs-v2", "orb-d3-sm-v2"]
    conservative = "orb-v3-conservative-inf-mpa"
    weights = [f"--weights={i}={random_checkpoint(i)}" for i in [*ids, conservative]]
    named = ["ensemble", str(salt), "--models", ",".join([*ids, conservative]), "--device", "cpu", *weights]
    assert main([*named, "--json", "-"]) == 2
    assert "--mix-methods" in capfd.readouterr().err
    xyz = tmp_path / "out.extxyz"
    assert main([*named, "--mix-methods", "--extxyz", str(xyz), "--json", "-"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["model"] == "orb-d3-xs-v2" and document["members"] == [*ids, conservative]
    frames = ase.io.read(salt, ":")
    loaded = [models.load_predictor(i, "cpu", weights=random_checkpoint(i)) for i in [*ids, conservative]]
    driving = [[p.forces_driving for p in m.predict_each(frames)] for m in loaded]
    judged = loaded[0].evaluate(frames)
    for k, row in enumerate(document["results"]):
        f = np.stack([d[k] for d in driving])
        assert row["ensemble_spread_eV_per_A"] == pytest.approx(ensemble.ensemble_spread(f), rel=1e-6)
        assert row["force_delta_eV_per_A"] == pytest.approx(judged[k].force_delta, rel=1e-5)
        assert row["confidence_eV_per_A"] is None and row["error_direct_eV_per_A"] is None
    assert document["cost"]["force_delta_over_ensemble"] > 0
    back = ase.io.read(xyz, ":")
    for atoms, row in zip(back, document["results"], strict=True):
        per_atom = atoms.arrays["ensemble_spread_per_atom"]
        assert np.sqrt((per_atom**2).mean()) == pytest.approx(row["ensemble_spread_eV_per_A"], rel=1e-5)


def test_a_member_that_cannot_read_a_structure_is_left_out_by_name(tmp_path, random_checkpoint, capfd):
    """The embedded model does not know thallium; Orb does."""
    atoms = bulk("TlCl", "cesiumchloride", a=3.83)
    atoms.rattle(0.05, seed=1)
    path = tmp_path / "x.extxyz"
    ase.io.write(path, atoms)
    ids = ["orb-d3-xs-v2", "orb-d3-sm-v2", "fd-orb-small-v1"]
    weights = [f"--weights={i}={random_checkpoint(i)}" for i in ids[:2]]
    named = ["ensemble", str(path), "--models", ",".join(ids), "--mix-methods", "--device", "cpu", *weights]
    assert main([*named, "--json", "-"]) == 0
    [row] = json.loads(capfd.readouterr().out)["results"]
    assert row["members"] == ids[:2] and "not trained on Tl" in row["left_out"]["fd-orb-small-v1"]
    assert row["ensemble_spread_eV_per_A"] > 0


def test_a_member_without_weights_is_left_out_and_said(salt, random_checkpoint, capfd, monkeypatch):
    from fdcore.errors import WeightsError
    from fdcore.models import orb_pretrained

    real = orb_pretrained.load

    def load(card, device, dtype, weights=None):
        if weights is None:
            raise WeightsError(f"The weights of {card.id} could not be downloaded.", "Check the network.")
        return real(card, device, dtype, weights)

    monkeypatch.setattr(orb_pretrained, "load", load)
    ids = ["orb-d3-xs-v2", "orb-d3-sm-v2", "orb-d3-v2"]
    weights = [f"--weights={i}={random_checkpoint(i)}" for i in ids[:2]]
    assert main(["ensemble", str(salt), "--models", ",".join(ids), "--device", "cpu", *weights, "--json", "-"]) == 1
    out, err = capfd.readouterr()
    document = json.loads(out)
    assert "could not be downloaded" in document["not_loaded"]["orb-d3-v2"] and "left out: orb-d3-v2" in err
    assert [r["members"] for r in document["results"]] == [ids[:2]] * 3
    assert document["cost"]["force_delta_over_ensemble"] > 0
