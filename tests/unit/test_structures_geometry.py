"""Distances over periodic images against brute force, and the one validation."""

from __future__ import annotations

from itertools import product

import ase
import ase.build
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fdcore.errors import GeometryError, LimitError
from fdcore.records import Structure
from fdcore.structures import Limits, closest_distance, closest_per_pair, validate, with_charge_spin
from fdcore.structures.periodic import reduced_cell, shortest_lattice_vector


def brute_force(structure: Structure, reach: int) -> dict[str, float]:
    """Smallest distance per pair of elements over all images within `reach` cells."""
    out: dict[str, float] = {}
    shifts = list(product(range(-reach, reach + 1), repeat=3)) if structure.periodic else [(0, 0, 0)]
    vectors = np.array(shifts) @ structure.cell
    for i in range(structure.n_atoms):
        for j in range(i, structure.n_atoms):
            d = np.linalg.norm(structure.positions[j] - structure.positions[i] + vectors, axis=1)
            if i == j:
                d = d[[s != (0, 0, 0) for s in shifts]]
            if len(d):
                key = "-".join(sorted((structure.symbols[i], structure.symbols[j])))
                out[key] = min(out.get(key, np.inf), float(d.min()))
    return out


def distance_of(structure: Structure, i: int, j: int, reach: int = 3) -> float:
    """Shortest distance of two atoms of a cell, i == j meaning an image."""
    shifts = [s for s in product(range(-reach, reach + 1), repeat=3) if structure.periodic or not any(s)]
    if i == j:
        shifts.remove((0, 0, 0))
    vectors = np.array(shifts) @ structure.cell
    return float(np.linalg.norm(structure.positions[j] - structure.positions[i] + vectors, axis=1).min())


def random_structure(seed: int, periodic: bool, n: int) -> Structure:
    """Random cells, many of them skewed, with atoms in and outside of the cell."""
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(2, 9, 3)) + rng.uniform(-3, 3, (3, 3)) * rng.integers(0, 2, (3, 3))
    if abs(np.linalg.det(cell)) < 12:
        cell = np.diag([3.0, 4.0, 5.0])
    positions = rng.uniform(-1.5, 2.5, (n, 3)) @ cell
    return Structure(rng.choice([1, 8, 11, 17], n), positions, cell if periodic else np.zeros((3, 3)), (periodic,) * 3)


@given(st.integers(0, 10_000), st.booleans(), st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_closest_distances_agree_with_brute_force(seed: int, periodic: bool, n: int) -> None:
    structure = random_structure(seed, periodic, n)
    # Positions reach over four cells and the cells are skewed: nine cells to each side hold every nearest image.
    wrapped = structure
    if periodic:
        fractional = structure.positions @ np.linalg.inv(structure.cell)
        wrapped = Structure(structure.numbers, (fractional % 1) @ structure.cell, structure.cell, structure.pbc)
    expected = brute_force(wrapped, 6)
    closest = closest_distance(structure)
    if not expected:
        assert closest is None
        return
    assert closest is not None
    distance, i, j = closest
    assert distance == pytest.approx(min(expected.values()), abs=1e-9)
    assert distance_of(wrapped, i, j, 6) == pytest.approx(distance, abs=1e-9)
    pairs = closest_per_pair(structure, 5.0)
    assert pairs.keys() == {key for key, d in expected.items() if d <= 5.0}
    for key, (d, i, j) in pairs.items():
        assert d == pytest.approx(expected[key], abs=1e-9)
        assert f"{structure.symbols[i]}-{structure.symbols[j]}" == key
        assert distance_of(wrapped, i, j, 6) == pytest.approx(d, abs=1e-9)


def test_an_atom_is_measured_against_its_own_images() -> None:
    copper = Structure.from_atoms(ase.build.bulk("Cu", a=3.6))
    assert closest_distance(copper) == (pytest.approx(3.6 / np.sqrt(2)), 0, 0)
    assert closest_per_pair(copper) == {"Cu-Cu": (pytest.approx(3.6 / np.sqrt(2)), 0, 0)}
    assert closest_distance(Structure.from_atoms(ase.Atoms("He"))) is None
    assert closest_per_pair(Structure.from_atoms(ase.Atoms("He"))) == {}


def test_a_flat_description_of_a_lattice_gives_the_same_distance() -> None:
    atoms = ase.build.bulk("NaCl", "rocksalt", 5.64)
    skewed = atoms.cell.array.copy()
    skewed[2] += 7 * skewed[0] - 11 * skewed[1]
    structure = Structure(atoms.numbers, atoms.positions + 40.0, skewed, (True, True, True))
    assert closest_distance(structure) == (pytest.approx(2.82), 0, 1)
    assert shortest_lattice_vector(skewed) == pytest.approx(5.64 / np.sqrt(2))
    assert abs(np.linalg.det(reduced_cell(skewed))) == pytest.approx(abs(np.linalg.det(skewed)))


def test_twenty_thousand_atoms_take_a_moment() -> None:
    atoms = ase.build.bulk("NaCl", "rocksalt", 5.64, cubic=True).repeat((14, 14, 12))
    structure = Structure.from_atoms(atoms)
    assert closest_distance(structure)[0] == pytest.approx(2.82)  # type: ignore[index]
    assert {k: round(v[0], 3) for k, v in closest_per_pair(structure).items()} == {
        "Cl-Cl": 3.988,
        "Cl-Na": 2.82,
        "Na-Na": 3.988,
    }


CELL = np.diag([5.0, 5.0, 5.0])
ALL, NONE = (True, True, True), (False, False, False)
TWO = np.array([[0.0, 0.0, 0.0], [2.5, 2.5, 2.5]])


@pytest.mark.parametrize(
    ("structure", "word"),
    [
        (Structure([], np.zeros((0, 3)), CELL, ALL), "no atoms"),
        (Structure([1, 1], TWO[:1], CELL, ALL), "do not belong together"),
        (Structure([0, 1], TWO, CELL, ALL), "atomic number 0"),
        (Structure([1, 119], TWO, CELL, ALL), "atomic number 119"),
        (Structure([1, -3], TWO, CELL, ALL), "atomic number -3"),
        (Structure([1, 1], TWO * np.nan, CELL, ALL), "not a finite number"),
        (Structure([1, 1], TWO * 1e200, CELL, NONE), "from the origin"),
        (Structure([1, 1], TWO, CELL, (True, True, False)), "some directions only"),
        (Structure([1, 1], TWO, CELL * np.nan, ALL), "not finite"),
        (Structure([1, 1], TWO, np.full((3, 3), np.inf), ALL), "not finite"),
        (Structure([1, 1], TWO, CELL * 1e307, ALL), "longer than"),
        (Structure([1, 1], TWO, CELL * 0, ALL), "0 Å long"),
        (Structure([1, 1], TWO, CELL * 1e-300, ALL), "Å long"),
        (Structure([1, 1], TWO, CELL[[0, 1, 1]], ALL), "flat"),
        (Structure([1, 1], TWO, np.diag([0.6, 0.6, 0.6]), ALL), "too small"),
        (Structure([1, 1], TWO, np.array([[5, 0, 0], [4.9, 0.3, 0], [0, 0, 5]]), ALL), "too small"),
        (Structure([1, 8], TWO * [0.02, 0, 0], CELL, ALL), "Atom 1 (H) and atom 2 (O) overlap"),
        (Structure([1, 8], TWO * 2, CELL, ALL), "overlap"),
        (Structure([1, 8], TWO * 0, CELL, NONE), "overlap"),
        (Structure([1, 8], TWO, CELL, ALL, charge=1000), "charge"),
        (Structure([1, 8], TWO, CELL, ALL, spin=0), "spin"),
    ],
)
def test_validation_refuses(structure: Structure, word: str) -> None:
    with pytest.raises(GeometryError) as caught:
        validate(structure)
    assert word in caught.value.message
    assert caught.value.hint


def test_validation_bounds_the_number_of_atoms() -> None:
    atoms = Structure.from_atoms(ase.build.bulk("Cu", cubic=True))
    with pytest.raises(LimitError, match="at most 3"):
        validate(atoms, Limits(max_atoms=3))
    assert validate(atoms, Limits(max_atoms=4)) is atoms


def test_validation_changes_nothing_but_the_cell_of_a_molecule() -> None:
    for atoms in (ase.Atoms("He"), ase.build.molecule("H2O"), ase.build.fcc111("Pt", (2, 2, 3), 5.0, periodic=True)):
        structure = Structure.from_atoms(atoms)
        assert validate(structure) is structure
    boxed = ase.build.molecule("H2O")
    boxed.cell = CELL
    assert not validate(Structure.from_atoms(boxed)).cell.any()
    left_handed = Structure([1], np.zeros((1, 3)), CELL[[1, 0, 2]], ALL)
    assert validate(left_handed) is left_handed


def test_charge_and_spin_fill_only_silence() -> None:
    silent = Structure.from_atoms(ase.build.molecule("H2O"))
    filled = with_charge_spin(silent, 1, 2)
    assert (filled.charge, filled.spin) == (1, 2)
    kept = with_charge_spin(filled, 0, 1)
    assert (kept.charge, kept.spin) == (1, 2)
    assert (with_charge_spin(silent, None, None).charge, with_charge_spin(silent, 0, None).charge) == (None, 0)
    with pytest.raises(GeometryError):
        with_charge_spin(silent, 0, 0)
