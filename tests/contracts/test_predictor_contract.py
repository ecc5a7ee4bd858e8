"""What every conservative model must fulfil as a member of an ensemble: the one force that it is run with, F_c = -dE/dR."""

from __future__ import annotations

import functools

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from fdcore.errors import FdcoreError, UnsupportedStructureError
from fdcore.models import FAMILIES, extra_is_here, list_models, load_predictor
from fdcore.models.base import Model
from fdcore.records import Prediction

# Model id: the checkpoint with random weights (None: its own weights). Full size where small, the rest smaller than published or by hand.
MEMBERS: dict[str, str | None] = {
    "orb-v3-conservative-inf-mpa": "orb-v3-conservative-inf-mpa",
    "chgnet-0.3.0": None,
    "esen-sm-conserving-all-omol": "esen-sm-conserving-all-omol",
    "esen-sm-conserving-all-oc25": "small-conserving-oc25",
    "allscaip-md-conserving-all-omol": "small-allscaip-conserving",
    "uma-s-1p1-omat": "small-uma",
    "uma-s-1p1-omol": "small-uma",
    "mace-mp-0-small": "mace-mp-0-small",
}
SLOW: dict[str, str] = {
    "allscaip-md-conserving-all-omol": "allscaip-md-conserving-all-omol",
    "uma-s-1p1-omat": "uma-s-1p1",
}
CASES = [pytest.param(m, w, id=m) for m, w in MEMBERS.items()] + [
    pytest.param(m, w, id=f"{m}-full", marks=pytest.mark.slow) for m, w in SLOW.items()
]


@pytest.fixture(scope="session")
def load(random_checkpoint, isolated_checkpoint):
    @functools.cache
    def loaded(model_id: str, weights: str | None, dtype: str = "float64"):
        card = next(c for c in list_models() if c.id == model_id)
        if not extra_is_here(card):
            pytest.fail(
                f"the package {card.extra} belongs to the development environment: `make install-dev` brings it"
            )
        if card.family == "mace":
            path, _ = isolated_checkpoint("mace", weights)
        else:
            path = None if weights is None else random_checkpoint(weights)
        return load_predictor(model_id, device="cpu", dtype=dtype, weights=path)

    return loaded


def crystal() -> ase.Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.rattle(0.08, seed=3)
    return atoms


def dimer() -> ase.Atoms:
    first, second = molecule("H2O"), molecule("H2O")
    first.rattle(0.05, seed=4)
    second.rattle(0.02, seed=4)
    second.translate([0.3, 2.9, 0.4])
    atoms = first + second
    atoms.info.update(charge=0, spin=1)
    return atoms


def structure_for(model) -> ase.Atoms:
    return dimer() if model.card.needs_charge_spin else crystal()


def predicted(model, structures) -> list[Prediction]:
    found = list(model.predict_each(structures))
    for item in found:
        if isinstance(item, FdcoreError):
            raise item
    return [item for item in found if isinstance(item, Prediction)]


@pytest.mark.parametrize(("model_id", "weights"), CASES)
class TestPredictorContract:
    def test_shapes_and_records(self, load, model_id, weights):
        model = load(model_id, weights, "float32")
        atoms = structure_for(model)
        (found,) = predicted(model, [atoms])
        assert not isinstance(model, Model)
        assert model.card.kind == "conservative"
        assert found.forces_driving.shape == (len(atoms), 3)
        assert np.isfinite(found.energy)
        assert np.abs(found.forces_driving).max() > 1e-4
        with pytest.raises(ValueError):
            found.forces_driving[0] = 0.0

    def test_input_is_untouched(self, load, model_id, weights):
        model = load(model_id, weights, "float32")
        atoms = structure_for(model)
        atoms.positions += 20.0
        atoms.info["note"] = "mine"
        before, info = atoms.copy(), dict(atoms.info)
        predicted(model, [atoms])
        assert atoms == before
        assert atoms.info == info
        assert torch.get_default_dtype() == torch.float32

    def test_batch_equals_single(self, load, model_id, weights):
        model = load(model_id, weights)
        other = structure_for(model)
        other.rattle(0.1, seed=9)
        several = [structure_for(model), other, structure_for(model)]
        for together, item in zip(predicted(model, several), several, strict=True):
            (alone,) = predicted(model, [item])
            assert together.energy == pytest.approx(alone.energy, abs=1e-9)
            np.testing.assert_allclose(together.forces_driving, alone.forces_driving, atol=1e-10)

    def test_permutation_of_atoms(self, load, model_id, weights):
        model = load(model_id, weights)
        atoms = structure_for(model)
        order = np.random.default_rng(0).permutation(len(atoms))
        permuted = atoms[order]
        permuted.info = dict(atoms.info)
        a, b = predicted(model, [atoms, permuted])
        assert b.energy == pytest.approx(a.energy, abs=1e-8)
        np.testing.assert_allclose(b.forces_driving, a.forces_driving[order], atol=1e-8)

    def test_translation(self, load, model_id, weights):
        """Any shift of all atoms, and a lattice vector for single atoms of a crystal, change nothing."""
        model = load(model_id, weights)
        atoms = structure_for(model)
        moved = atoms.copy()
        moved.positions += [0.37, -1.21, 2.9]
        if atoms.pbc.all():
            moved.positions[2] += 2 * atoms.cell[1] - atoms.cell[0]
        a, b = predicted(model, [atoms, moved])
        assert b.energy == pytest.approx(a.energy, abs=1e-8)
        np.testing.assert_allclose(b.forces_driving, a.forces_driving, atol=1e-8)

    def test_the_force_is_minus_the_slope_of_the_energy(self, load, model_id, weights):
        model = load(model_id, weights)
        atoms = structure_for(model)
        chosen = np.random.default_rng(1).choice(3 * len(atoms), 5, replace=False)
        step = 1e-4
        ends = []
        for component in chosen:
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions.flat[component] += sign * step
                ends.append(moved)
        (centre,) = predicted(model, [atoms])
        energies = np.array([p.energy for p in predicted(model, ends)]).reshape(-1, 2)
        numeric = -(energies[:, 0] - energies[:, 1]) / (2 * step)
        scale = np.abs(centre.forces_driving).max()
        np.testing.assert_allclose(numeric, centre.forces_driving.flat[chosen], atol=2e-5 * scale)

    def test_a_bad_structure_does_not_stop_the_others(self, load, model_id, weights):
        model = load(model_id, weights, "float32")
        good = structure_for(model)
        unknown = ase.Atoms("Rn2" if "Rn" not in model.card.elements else "Fr2", positions=[[0, 0, 0], [0, 0, 3]])
        unknown.info.update(charge=0, spin=1)
        first, bad, second = model.predict_each([good, unknown, good])
        assert isinstance(bad, UnsupportedStructureError)
        np.testing.assert_allclose(first.forces_driving, second.forces_driving, atol=1e-5)

    def test_single_precision_is_close_to_double(self, load, model_id, weights):
        double = load(model_id, weights)
        atoms = structure_for(double)
        (a,), (b,) = predicted(load(model_id, weights, "float32"), [atoms]), predicted(double, [atoms])
        scale = np.abs(b.forces_driving).max()
        np.testing.assert_allclose(a.forces_driving, b.forces_driving, atol=2e-3 * scale)


def test_every_family_with_conservative_models_is_covered():
    families = {c.family for c in list_models() if c.kind == "conservative" and c.family in FAMILIES}
    covered = {next(c.family for c in list_models() if c.id == m) for m in MEMBERS}
    assert families <= covered
