"""U_Delta from energies alone: exact where every direction is probed, unbiased with a true error where not."""

from __future__ import annotations

import json

import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes

import fdcore
from fdcore import calculators
from fdcore.cli import main
from fdcore.delta import force_delta
from fdcore.errors import UsageError
from fdcore.probing import Probed, probe, probes_needed


def last(*arguments, **options) -> Probed:
    *_, found = probe(*arguments, **options)
    assert isinstance(found, Probed)
    return found


class Quadratic:
    """E = 1/2 r A r + b r, and a force that misses -dE/dr by `off`: central differences of it are exact."""

    def __init__(self, n_atoms: int, off: float) -> None:
        rng = np.random.default_rng(3)
        n = 3 * n_atoms
        a = rng.normal(size=(n, n))
        self.a, self.b = a + a.T, rng.normal(size=n)
        self.positions = rng.normal(size=(n_atoms, 3))
        self.difference = off * rng.normal(size=(n_atoms, 3))
        gradient = (self.a @ self.positions.ravel() + self.b).reshape(n_atoms, 3)
        self.forces_conservative = -gradient
        self.forces_direct = -gradient + self.difference

    def energy(self, positions) -> float:
        r = positions.ravel()
        return float(0.5 * r @ self.a @ r + self.b @ r)


def test_all_directions_give_the_exact_answer():
    q = Quadratic(5, 0.2)
    found = last(q.energy, q.positions, q.forces_direct, probes=15)
    assert found.force_delta == pytest.approx(force_delta(q.forces_direct, q.forces_conservative), rel=1e-7)
    assert found.standard_error == 0 and found.low == found.high == pytest.approx(found.force_delta)
    np.testing.assert_allclose(found.forces_conservative, q.forces_conservative, atol=1e-7)


@pytest.mark.parametrize("probes", [1, 4, 20])
def test_unbiased_with_the_error_it_states(probes):
    """Over many draws: U^2 is right on average, its spread is the formula's, and the interval holds the truth 95 times in 100."""
    q = Quadratic(10, 0.2)
    truth = force_delta(q.forces_direct, q.forces_conservative)
    found = [last(q.energy, q.positions, q.forces_direct, probes=probes, seed=k) for k in range(600)]
    squares = np.array([f.force_delta**2 for f in found]) / truth**2
    expected = np.sqrt(2 * (30 - probes) / (probes * 32))
    assert squares.mean() == pytest.approx(1.0, abs=4 * expected / np.sqrt(600))
    assert squares.std() == pytest.approx(expected, rel=0.2)
    inside = np.mean([f.low <= truth <= f.high for f in found])
    assert 0.92 < inside < 0.98


def test_as_many_probes_as_the_precision_needs():
    for n_atoms, precision in ((1, 0.1), (8, 0.1), (100, 0.1), (3000, 0.05), (2, 0.5)):
        n, k = 3 * n_atoms, probes_needed(n_atoms, precision)
        assert 0.5 * np.sqrt(2 * (n - k) / (k * (n + 2))) <= precision
        assert k == 1 or 0.5 * np.sqrt(2 * (n - k + 1) / ((k - 1) * (n + 2))) > precision
    assert probes_needed(10_000, 0.1) == 50
    with pytest.raises(UsageError):
        probes_needed(5, 0.0)


def test_agrees_with_the_exact_value_of_a_model():
    """The embedded model's own two forces, in float64, on a crystal and with a third of the directions."""
    model = fdcore.load_model(device="cpu", dtype="float64")
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.rattle(0.15, seed=5)
    [exact] = model.evaluate(atoms)

    def energy(positions) -> float:
        moved = atoms.copy()
        moved.positions = positions
        return model.evaluate(moved)[0].energy

    whole = last(energy, atoms.positions, exact.forces_direct, probes=24, step_A=1e-3)
    assert whole.force_delta == pytest.approx(exact.force_delta, rel=1e-3)
    np.testing.assert_allclose(whole.forces_conservative, exact.forces_conservative, atol=1e-3)
    assert whole.step_error < 1e-3 * whole.force_delta * 10 and not whole.step_matters
    part = last(energy, atoms.positions, exact.forces_direct, probes=8, seed=1)
    assert abs(part.force_delta - exact.force_delta) < 3 * part.standard_error


def test_a_rough_energy_is_told():
    q = Quadratic(4, 0.01)
    rough = lambda r: q.energy(r) + 5e-3 * np.sin(3e4 * r.sum())  # noqa: E731
    assert last(rough, q.positions, q.forces_direct, probes=12).step_matters
    assert not last(q.energy, q.positions, q.forces_direct, probes=12).step_matters


class Swirl(Calculator):
    """Springs to the origin, and a force that turns besides: not the gradient of anything."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        if "Xe" in atoms.symbols:
            raise RuntimeError("no xenon here")
        r = atoms.positions
        self.results = {"energy": 0.5 * float((r**2).sum()), "forces": -r + 0.1 * np.cross([0, 0, 1.0], r)}


def test_command_line(tmp_path, monkeypatch, capfd):
    """A calculator from a module beside the person: U_Delta is that of the turning force; a structure that fails stops no other."""
    path = tmp_path / "two.extxyz"
    good = molecule("CH3CH2OH")
    bad = molecule("H2O")
    bad.symbols[0] = "Xe"
    ase.io.write(path, [good, bad])
    named = f"{__name__}:Swirl"
    assert main(["score", str(path), "--calculator", named, "--precision", "0.01", "--json", "-"]) == 1
    document = json.loads(capfd.readouterr().out)
    [row], [error] = document["results"], document["errors"]
    truth = 0.1 * np.sqrt((np.cross([0, 0, 1.0], good.positions) ** 2).mean())
    assert row["probes"] == row["directions"] == 27
    assert row["force_delta_eV_per_A"] == pytest.approx(truth, rel=1e-6)
    assert row["verdict"] == "unknown" and len(row["force_delta_per_atom_eV_per_A"]) == 9
    assert "no xenon here" in error["error"] and error["index"] == 1
    xyz = tmp_path / "out.extxyz"
    assert main(["score", str(path), "--calculator", named, "--probes", "4", "--extxyz", str(xyz)]) == 1
    out = capfd.readouterr().out
    assert "4 of 27" in out and "judges none" in out
    back = ase.io.read(xyz)
    # Per atom nothing is known from four directions; nothing is made up.
    assert "force_delta_per_atom" not in back.arrays and back.info["force_delta_standard_error_eV_per_A"] > 0


@pytest.mark.parametrize(
    "name", ["nonsense", "no_such_module_x:y", "math:no_such", "math:pi", "builtins:dict", "os:system;x"]
)
def test_what_is_no_calculator_is_wrong_usage(name):
    with pytest.raises(UsageError):
        calculators.made(calculators.factory(name), name)
