"""The backbone in tiles and the divided interactions against the package's own modules, which they must say the same as."""

from __future__ import annotations

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from hypothesis import given, settings
from hypothesis import strategies as st
from orb_models.forcefield.forcefield_adapter import ForcefieldAtomsAdapter
from orb_models.forcefield.pretrained import orb_v2_architecture, orb_v3_direct_architecture
from torch import nn

import fdcore
from fdcore import data
from fdcore.models import orb_tiles, small_orb
from fdcore.models.orb import OrbModel
from fdcore.models.orb_interaction import FactoredInteraction
from fdcore.models.orb_training import OrbTraining

SMALL = {"latent_dim": 16, "base_mlp_hidden_dim": 24, "num_message_passing_steps": 2, "device": "cpu"}
# Name: the card whose checks apply, the module, whether it can go through in tiles.
NETWORKS = {
    "embedded": (
        "fd-orb-small-v1",
        lambda: small_orb.load(data.path("models", "fd-orb-small-v1.safetensors"))[0],
        True,
    ),
    "Orb v3": ("orb-v3-direct-inf-mpa", lambda: orb_v3_direct_architecture(**SMALL), True),
    "Orb v3 with charge and spin": (
        "orb-v3-direct-omol",
        lambda: orb_v3_direct_architecture(**SMALL, has_charge_spin_cond=True, has_stress=False),
        True,
    ),
    "Orb v2": ("orb-d3-xs-v2", lambda: orb_v2_architecture(num_message_passing_steps=2, device="cpu"), False),
}


def crystal(copies: int = 1, seed: int = 0) -> ase.Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (copies, 1, 1)
    atoms.rattle(0.1, seed=seed)
    atoms.info = {"charge": 0, "spin": 1}
    return atoms


def untouched(name: str) -> tuple[nn.Module, ForcefieldAtomsAdapter]:
    """The package's own module in float64."""
    torch.manual_seed(3)
    card, make, _ = NETWORKS[name]
    radius = 5.0 if card.startswith("fd-") else 6.0
    return make().double().eval(), ForcefieldAtomsAdapter(radius=radius, max_num_neighbors=200)


def model_of(name: str) -> OrbModel:
    return OrbModel(fdcore.card(NETWORKS[name][0]), *untouched(name), "cpu", "float64")


def of_the_package(name: str, atoms: ase.Atoms) -> tuple[float, np.ndarray, np.ndarray]:
    """E, F_nc and F_c of one crystal by the package alone."""
    module, adapter = untouched(name)
    batch = adapter.from_ase_atoms(atoms, device="cpu", output_dtype=torch.float64)
    vectors, _, _ = batch.compute_differentiable_edge_vectors(use_stress_displacement=False, use_rotation=False)
    batch.edge_features["vectors"] = vectors
    found = module.predict(batch)
    (slope,) = torch.autograd.grad(found["energy"].sum(), batch.node_features["positions"])
    return found["energy"].item(), found["forces"].detach().numpy(), -slope.numpy()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rows", [7, 100, 10**6])
def test_they_say_what_the_package_says(name, rows, monkeypatch):
    model = model_of(name)
    assert all(isinstance(layer, FactoredInteraction) for layer in model.module.model.gnn_stacks)
    assert (model._tiled is not None) == NETWORKS[name][2]
    monkeypatch.setattr(orb_tiles._Layers, "rows", property(lambda _self: rows))
    frames = [crystal(1), crystal(2, seed=1)]
    for atoms, found in zip(frames, model.evaluate(frames), strict=True):
        energy, direct, conservative = of_the_package(name, atoms)
        assert found.energy == pytest.approx(energy, abs=1e-10)
        np.testing.assert_allclose(found.forces_direct, direct, atol=1e-12)
        np.testing.assert_allclose(found.forces_conservative, conservative, atol=1e-12)
        (alone,) = model.predict_each([atoms])
        # Nothing is kept where nothing is differentiated.
        np.testing.assert_allclose(alone.forces_driving, direct, atol=1e-12)


@settings(max_examples=12, deadline=None)
@given(rows=st.integers(1, 400), copies=st.integers(1, 2), seed=st.integers(0, 99))
def test_tiles_of_any_size_and_the_modules_agree(rows, copies, seed):
    model = model_of("Orb v3")
    structure = model.check(crystal(copies, seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orb_tiles._Layers, "rows", property(lambda _self: rows))
        tiled = model.two_forces(model.graphs([structure]))
    patched, model._tiled = model._tiled, None
    plain = model.two_forces(model.graphs([structure]))
    assert patched is not None
    torch.testing.assert_close(tiled.forces_conservative, plain.forces_conservative, atol=1e-12, rtol=0)
    torch.testing.assert_close(tiled.forces_direct, plain.forces_direct, atol=1e-12, rtol=0)


def test_the_force_is_the_slope_of_the_energy():
    """Central differences in float64, along a direction in which every atom moves."""
    model, atoms = model_of("embedded"), crystal(2)
    (found,) = model.evaluate(atoms)
    along = np.random.default_rng(0).normal(size=(len(atoms), 3))
    ends = []
    for step in (1e-4, -1e-4):
        moved = atoms.copy()
        moved.positions += step * along
        ends.append(model.evaluate(moved)[0].energy)
    slope = (ends[0] - ends[1]) / 2e-4
    assert slope == pytest.approx(-(found.forces_conservative * along).sum(), abs=1e-6)


def test_an_atom_without_neighbours_has_no_edges_and_no_forces():
    model = fdcore.load_model("fd-orb-molecules-v1", "cpu", "float64")
    found = model.evaluate([ase.Atoms("H", [[0.0, 0.0, 0.0]])])[0]
    assert np.isfinite(found.energy) and not found.forces_conservative.any()
    far = molecule("H2O") + ase.Atoms("H", [[50.0, 0.0, 0.0]])
    (tiled,) = model.evaluate(far)
    model._tiled = None
    (plain,) = model.evaluate(far)
    np.testing.assert_allclose(tiled.forces_conservative, plain.forces_conservative, atol=1e-12)


def test_a_second_derivative_is_refused_not_wrong():
    """Who differentiates twice asks for it, and gets the modules; tiles would leave the weights' share out."""
    model = model_of("Orb v3")
    batch = model.graphs([model.check(crystal())])
    vectors = batch.edge_features["vectors"].detach().requires_grad_(True)
    batch.edge_features["vectors"] = vectors
    assert model._tiled is not None
    features = model._tiled.node_features(batch)
    with pytest.raises(RuntimeError, match="once"):
        torch.autograd.grad(features.sum(), vectors, create_graph=True)


@pytest.mark.parametrize("parts", ["all", "low-rank"])
def test_weights_that_a_training_has_changed_are_the_ones_that_are_used(parts):
    training = OrbTraining(model_of("Orb v3"), parts, 2, seed=0)
    model, atoms = training.model, crystal()
    before = model.evaluate(atoms)[0]
    with torch.no_grad():
        for parameter in training.parameters.values():
            parameter.add_(0.01)
    tiled = model.evaluate(atoms)[0]
    model._tiled = None
    plain = model.evaluate(atoms)[0]
    assert abs(plain.energy - before.energy) > 1e-6
    assert tiled.energy == pytest.approx(plain.energy, abs=1e-12)
    np.testing.assert_allclose(tiled.forces_conservative, plain.forces_conservative, atol=1e-12)
