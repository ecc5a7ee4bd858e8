"""The verdict: each line of evidence turns where it should, and "unknown" is said rather than guessed."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from ase.build import bulk, molecule

from fdcore.distribution import Band, ReferenceDistribution, reference_distribution
from fdcore.models import DEFAULT_MODEL, card
from fdcore.records import Evaluation, Structure
from fdcore.site_symmetry import forces_vanish_by_symmetry
from fdcore.structures import without_neighbours
from fdcore.verdict import judge

REFERENCE = ReferenceDistribution(
    model_id="m",
    values=tuple(np.linspace(0.01, 0.10, 100)),
    bands=(Band(0, 0.1, 0.05, 0.02, 0.05),),
    description="test",
    closest_A={"Cl-Na": 2.4, "Cl-Cl": 3.0, "Na-Na": 3.0},
    largest_force=5.0,
)
CARD = card("orb-v3-direct-20-mpa")


def salt(a: float = 5.7, numbers=(11, 17), shift: float = 0.05) -> Structure:
    """Rock salt, by default with one atom a little off its place so that symmetry leaves forces free."""
    cell = 0.5 * a * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])
    return Structure(np.array(numbers), np.array([[0, 0, 0], [a / 2 + shift, a / 2, a / 2]]), cell, (True,) * 3)


def evaluation(u: float, *, force: float = 0.5, confidence=None, tie=None) -> Evaluation:
    """Two atoms whose forces differ by the same amount, so that U_Delta = u exactly."""
    direct = np.array([[force, 0, 0], [-force, 0, 0]])
    shift = np.full((2, 3), u)
    return Evaluation(-1.0, direct, direct - shift, confidence, tie)


def line(verdict, name):
    return next(e for e in verdict.evidence if e.name == name)


@pytest.mark.parametrize(
    ("u", "level", "status", "percentile"),
    [(0.05, "consistent", "pass", 44.5), (0.0975, "caution", "look", 97), (0.2, "unreliable", "fail", 100)],
)
def test_u_against_the_reference(u, level, status, percentile):
    verdict = judge(salt(), evaluation(u), CARD, REFERENCE)
    assert verdict.level == level
    assert line(verdict, "Agreement of the two forces").status == status
    assert verdict.percentile == pytest.approx(percentile, abs=1)
    assert f"{u:.3g}" in line(verdict, "Agreement of the two forces").text


def test_without_a_reference_it_is_unknown_unless_something_is_plainly_wrong():
    assert judge(salt(), evaluation(0.01), CARD, None).level == "unknown"
    assert judge(salt(), evaluation(0.01), CARD, None).percentile is None
    crushed = judge(salt(2.4), evaluation(0.01), CARD, None)
    assert crushed.level == "unreliable"
    assert line(crushed, "Closest atoms").status == "fail"


def test_a_short_distance_names_its_atoms():
    verdict = judge(salt(4.6), evaluation(0.05), CARD, REFERENCE)
    evidence = line(verdict, "Closest atoms")
    assert evidence.status == "look"
    assert set(evidence.atoms) == {0, 1}
    assert "2.25" in evidence.text
    assert judge(salt(4.0), evaluation(0.05), CARD, REFERENCE).level == "unreliable"


def test_an_unseen_pair_of_elements_fails():
    verdict = judge(salt(numbers=(3, 17)), evaluation(0.05), CARD, REFERENCE)
    evidence = line(verdict, "Elements")
    assert evidence.status == "fail"
    assert "Cl-Li" in evidence.text


def test_force_scale_finds_consensus_failures():
    """Both forces huge and equal: U is zero, and still nobody should believe it."""
    verdict = judge(salt(), evaluation(0.0, force=30.0), CARD, REFERENCE)
    assert line(verdict, "Agreement of the two forces").status == "pass"
    assert line(verdict, "Size of the forces").status == "fail"
    assert verdict.level == "unreliable"


def test_one_atom_that_stands_out_is_named():
    n = 8
    direct = np.zeros((n, 3))
    conservative = np.full((n, 3), 0.01)
    conservative[5] = 0.3
    structure = Structure(
        np.full(n, 11), 4.0 * np.arange(n)[:, None] * np.array([1, 0, 0]), np.zeros((3, 3)), (False,) * 3
    )
    evidence = line(judge(structure, Evaluation(0.0, direct, conservative), CARD, None), "Single atoms")
    assert evidence.status == "look"
    assert evidence.atoms == (5,)
    assert "Na5" in evidence.text


@pytest.mark.parametrize(("gap", "status"), [(None, "pass"), (0.2, "pass"), (0.0, "look")])
def test_neighbour_ties(gap, status):
    assert line(judge(salt(), evaluation(0.05, tie=gap), CARD, REFERENCE), "Neighbour shells").status == status


@pytest.mark.parametrize(("expected", "status"), [(0.02, "pass"), (0.15, "look"), (0.25, "fail")])
def test_confidence_head(expected, status):
    verdict = judge(salt(), evaluation(0.05, confidence=np.full(2, expected)), CARD, REFERENCE)
    assert line(verdict, "Confidence head").status == status


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"charge": 1}, "Charge +1 was given"),
        ({"charge": 0, "spin": 3}, "Spin multiplicity 3 was given"),
        ({"charge": -2, "spin": 2}, "Charge -2 and spin multiplicity 2 were given"),
        ({"charge": 0, "spin": 1}, None),
        ({}, None),
    ],
)
def test_a_charge_or_spin_that_a_model_does_not_read_is_said(given, says):
    verdict = judge(replace(salt(), **given), evaluation(0.05), CARD, REFERENCE)
    said = [e for e in verdict.evidence if e.name == "Charge and spin"]
    assert verdict.level == ("consistent" if says is None else "caution")
    assert [e.status for e in said] == ([] if says is None else ["look"])
    assert says is None or said[0].text.startswith(says)
    reads = replace(CARD, needs_charge_spin=True)
    assert all(
        e.name != "Charge and spin"
        for e in judge(replace(salt(), **given), evaluation(0.05), reads, REFERENCE).evidence
    )


def test_a_lone_atom_is_judged_without_distances():
    atom = Structure(np.array([11]), np.zeros((1, 3)), np.zeros((3, 3)), (False,) * 3)
    verdict = judge(atom, Evaluation(0.0, np.zeros((1, 3)), np.zeros((1, 3))), CARD, REFERENCE)
    assert line(verdict, "Closest atoms").status == "pass"


def apart(positions, cell=None) -> Structure:
    """Oxygen atoms at these places."""
    r = np.array(positions, dtype=float)
    return Structure(
        np.full(len(r), 8), r, np.zeros((3, 3)) if cell is None else np.array(cell, float), (cell is not None,) * 3
    )


def judged(structure: Structure, card=CARD, reference=REFERENCE):
    """With two forces that agree to 0.05 eV/Å everywhere."""
    force = np.full((structure.n_atoms, 3), 0.1)
    known = replace(reference, closest_A={"O-O": 1.0})
    return judge(structure, Evaluation(0.0, force, force - 0.05), card, known)


BOX = 20.0 * np.eye(3)


@pytest.mark.parametrize("cell", [None, 60.0 * np.eye(3)])
def test_atoms_that_nothing_acts_on_cannot_be_judged(cell):
    """Two oxygen atoms 30 Å apart: nothing that the model says of them depends on where they are."""
    verdict = judged(apart([[0, 0, 0], [30, 0, 0]], cell))
    evidence = line(verdict, "Closest atoms")
    assert evidence.status == "unknown" and evidence.atoms == (0, 1)
    assert "O0 and O1 have no neighbour within the 6 Å" in evidence.text and "nothing acts on them" in evidence.text
    assert verdict.level == "unknown" and "ordinary" not in evidence.text
    # Attention over all atoms knows no such distance.
    assert (
        line(
            judged(apart([[0, 0, 0], [30, 0, 0]], cell), replace(CARD, acts_beyond_cutoff=True)), "Closest atoms"
        ).status
        == "pass"
    )


@pytest.mark.parametrize("cell", [None, BOX])
def test_one_atom_that_nothing_acts_on_is_named(cell):
    verdict = judged(apart([[1, 1, 1], [2.2, 1, 1], [10, 10, 10]], cell))
    evidence = line(verdict, "Closest atoms")
    assert evidence.status == "look" and evidence.atoms == (2,) and verdict.level == "caution"
    assert "O2 has no neighbour within the 6 Å" in evidence.text
    # Too close somewhere else as well: both are said, and the worse decides.
    crushed = line(judged(apart([[1, 1, 1], [1.6, 1, 1], [10, 10, 10]], cell)), "Closest atoms")
    assert crushed.status == "fail" and crushed.atoms == (0, 1) and "O2 has no neighbour" in crushed.text


def test_neighbours_across_the_border_and_own_images_count():
    assert line(judged(apart([[0.6, 1, 1], [19.4, 1, 1]], BOX)), "Closest atoms").status == "pass"
    assert line(judged(apart([[1, 1, 1], [9, 9, 9]], np.diag([5.5, 40, 40]))), "Closest atoms").status == "pass"
    [alone] = without_neighbours(apart([[0.5, 1, 1], [19.5, 1, 1], [10, 10, 10]], BOX), 6.0)
    assert alone == 2
    assert without_neighbours(apart([[0, 0, 0], [5.9, 0, 0]]), 6.0) == ()


@pytest.mark.parametrize("cell", [None, 30.0 * np.eye(3)])
def test_a_single_atom_keeps_its_words(cell):
    evidence = line(judged(apart([[0, 0, 0]], cell)), "Closest atoms")
    assert (evidence.status, evidence.text) == ("pass", "A single atom without neighbours.")


def test_every_atom_alone_is_found_among_images():
    """Against all distances, in a skewed cell, with atoms outside of it."""
    rng = np.random.default_rng(3)
    cell = np.array([[14.0, 0, 0], [9, 13, 0], [-5, 4, 15]])
    shifts = np.array(list(product(range(-3, 4), repeat=3))) @ cell
    seen = set()
    for _ in range(20):
        structure = apart(rng.uniform(-2, 2, (7, 3)) @ cell, cell)
        differences = structure.positions[:, None, None] - structure.positions[None, :, None] - shifts
        # Atoms lie up to four cells apart: the shifts that matter are about the nearest image.
        whole = np.rint((structure.positions[:, None] - structure.positions[None]) @ np.linalg.inv(cell)) @ cell
        distance = np.linalg.norm(differences - whole[:, :, None], axis=-1)
        distance[distance < 1e-9] = np.inf
        expected = tuple(np.flatnonzero(distance.min(axis=(1, 2)) > 6.0))
        assert without_neighbours(structure, 6.0) == expected
        seen.add(len(expected))
    assert len(seen) > 2


def test_perfect_symmetry_is_unknown_not_consistent():
    """Rock salt on its sites: both forces vanish whatever the model knows."""
    verdict = judge(salt(shift=0.0), evaluation(0.001), CARD, REFERENCE)
    assert verdict.level == "unknown"
    assert "ymmetry" in verdict.sentence
    assert judge(salt(shift=0.0), evaluation(0.2), CARD, REFERENCE).level == "unreliable"


@pytest.mark.parametrize(
    ("build", "vanish"),
    [
        (lambda: bulk("NaCl", "rocksalt", a=5.6, cubic=True), True),
        (lambda: bulk("Al") * (3, 3, 3), True),
        (lambda: bulk("Mg", "hcp", a=3.2, c=5.2), True),
        (lambda: bulk("Si", cubic=True), True),
        # wurtzite: free along c; rutile-like freedom in general
        (lambda: bulk("ZnO", "wurtzite", a=3.25, c=5.2), False),
        (lambda: molecule("CH4"), False),
    ],
)
def test_site_symmetry(build, vanish):
    structure = Structure.from_atoms(build())
    assert forces_vanish_by_symmetry(structure) is vanish
    if vanish:
        moved = build()
        moved.rattle(0.01, seed=1)
        assert not forces_vanish_by_symmetry(Structure.from_atoms(moved)) or len(moved) == 1


def test_percentile_and_quantile():
    assert REFERENCE.percentile(0.0) == 0
    assert REFERENCE.percentile(1.0) == 100
    assert REFERENCE.quantile(0.95) == pytest.approx(REFERENCE.values[94])
    assert REFERENCE.quantile(1.0) == REFERENCE.values[-1]
    assert REFERENCE.quantile(0.0) == REFERENCE.values[0]


def test_shipped_distribution_of_the_default_model():
    reference = reference_distribution(DEFAULT_MODEL)
    assert reference is not None
    assert len(reference.values) >= 150
    assert list(reference.values) == sorted(reference.values)
    assert {"Al-Mg", "Cl-Na", "Mg-O", "F-Li", "P-S", "H-O"} <= set(reference.closest_A)
    # The ladder climbs: more displacement, more disagreement.
    ladder = [b.force_delta for b in reference.bands]
    assert ladder[-1] > 3 * ladder[0]
    assert reference_distribution("orb-v2") is None
