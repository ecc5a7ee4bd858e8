"""The silent failures of the Orb family that FACTS lists: each one is loud, or handled, here."""

from __future__ import annotations

import subprocess
import sys

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from orb_models.forcefield.models.forcefield_heads import ForceHead
from orb_models.forcefield.pretrained import ORB_PRETRAINED_MODELS, orb_v3_conservative_architecture

import fdcore
from fdcore.errors import (
    ComputeError,
    GeometryError,
    UnknownModelError,
    UnsupportedStructureError,
    UsageError,
    WeightsError,
)
from fdcore.models import list_models, load_model
from fdcore.models.orb import OrbModel


@pytest.fixture(scope="module")
def capped(random_checkpoint):
    """float64: the 20-neighbour model of the paper."""
    return load_model("orb-v3-direct-20-mpa", "cpu", "float64", random_checkpoint("orb-v3-direct-20-mpa"))


@pytest.fixture(scope="module")
def uncapped(random_checkpoint):
    return load_model("orb-v3-direct-inf-mpa", "cpu", "float32", random_checkpoint("orb-v3-direct-inf-mpa"))


def test_every_published_direct_model_has_a_card():
    ids = {c.id for c in list_models() if c.family == "orb"}
    named = {
        "orb-d3-xs-v2",
        "orb-d3-v2",
        "orb-d3-sm-v2",
        "orb-v3-direct-inf-mpa",
        "orb-v3-direct-20-mpa",
        "orb-v3-direct-inf-omat",
        "orb-v3-direct-20-omat",
        "orb-v3-direct-omol",
        "orb-v2",
        "orb-mptraj-only-v2",
    }
    assert named <= ids <= set(ORB_PRETRAINED_MODELS)


def test_addresses_are_the_loaders_own():
    for card in list_models():
        if card.family == "orb":
            assert card.address == ORB_PRETRAINED_MODELS[card.id].__defaults__[0]


def test_listing_models_needs_no_torch():
    code = "import sys, fdcore; [fdcore.models.is_here(c) for c in fdcore.list_models()]; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_loading_leaves_global_settings_alone(random_checkpoint):
    torch.set_default_dtype(torch.float32)
    precision = torch.get_float32_matmul_precision()
    model = load_model("orb-d3-xs-v2", "cpu", "float64", random_checkpoint("orb-d3-xs-v2"))
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_float32_matmul_precision() == precision
    assert next(model.module.parameters()).dtype == torch.float64


def test_modules_are_frozen_in_eval_mode_and_do_not_drift(uncapped):
    assert not uncapped.module.training
    assert not any(p.requires_grad for p in uncapped.module.parameters())
    atoms = bulk("MgO", "rocksalt", a=4.2)
    before = {k: v.clone() for k, v in uncapped.module.state_dict().items()}
    uncapped.evaluate(atoms)
    uncapped.gradients(atoms)
    for key, value in uncapped.module.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("head", ["forces", "energy", "confidence"])
def test_a_checkpoint_without_a_head_is_refused(random_checkpoint, tmp_path, head):
    state = torch.load(random_checkpoint("orb-v3-direct-inf-mpa"), weights_only=True)
    torch.save({k: v for k, v in state.items() if not k.startswith(f"heads.{head}.")}, tmp_path / "torn.ckpt")
    with pytest.raises(WeightsError, match=f"lack heads.{head}"):
        load_model("orb-v3-direct-inf-mpa", "cpu", weights=tmp_path / "torn.ckpt")


def test_a_backbone_alone_is_refused(random_checkpoint, tmp_path):
    state = torch.load(random_checkpoint("orb-v3-direct-inf-mpa"), weights_only=True)
    torch.save({k[6:]: v for k, v in state.items() if k.startswith("model.")}, tmp_path / "backbone.ckpt")
    with pytest.raises(WeightsError, match="lack"):
        load_model("orb-v3-direct-inf-mpa", "cpu", weights=tmp_path / "backbone.ckpt")


def test_legacy_names_of_v2_heads_are_understood(random_checkpoint, tmp_path):
    """Published v2 checkpoints call the heads node_head, graph_head and stress_head."""
    old = {"heads.forces.": "node_head.", "heads.energy.": "graph_head.", "heads.stress.": "stress_head."}
    state = torch.load(random_checkpoint("orb-d3-xs-v2"), weights_only=True)

    def legacy(key: str) -> str:
        return next((o + key.removeprefix(n) for n, o in old.items() if key.startswith(n)), key)

    torch.save({legacy(k): v for k, v in state.items()}, tmp_path / "v2.ckpt")
    atoms = molecule("H2O")
    a = load_model("orb-d3-xs-v2", "cpu", weights=tmp_path / "v2.ckpt").evaluate(atoms)[0]
    b = load_model("orb-d3-xs-v2", "cpu", weights=random_checkpoint("orb-d3-xs-v2")).evaluate(atoms)[0]
    assert a.energy == b.energy


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot be loaded"),
        (b"not a checkpoint at all", "cannot be loaded"),
        (b"PK\x03\x04broken", "cannot be loaded"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, says):
    (tmp_path / "bad.ckpt").write_bytes(content)
    with pytest.raises(WeightsError, match=says) as caught:
        load_model("orb-d3-xs-v2", "cpu", weights=tmp_path / "bad.ckpt")
    assert caught.value.hint


def test_another_architecture_is_named(random_checkpoint):
    with pytest.raises(WeightsError, match="cannot be loaded as orb-d3-xs-v2"):
        load_model("orb-d3-xs-v2", "cpu", weights=random_checkpoint("orb-v3-direct-inf-mpa"))


def test_a_pickle_is_not_executed(tmp_path):
    """weights_only: a checkpoint that runs code when it is read must not."""
    flag = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (flag.write_text, ("x",))

    torch.save({"heads.energy.x": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(WeightsError):
        load_model("orb-d3-xs-v2", "cpu", weights=tmp_path / "evil.ckpt")
    assert not flag.exists()


def test_missing_file_and_unknown_names(tmp_path):
    with pytest.raises(WeightsError, match="no file"):
        load_model("orb-d3-xs-v2", weights=tmp_path / "none.ckpt")
    with pytest.raises(UnknownModelError) as caught:
        load_model("orb-v3-direct-inf")
    assert "orb-v3-direct-inf-mpa" in caught.value.hint
    with pytest.raises(UsageError):
        load_model("orb-d3-xs-v2", dtype="float16")
    with pytest.raises(UsageError):
        load_model("orb-d3-xs-v2", device="toaster")


def test_no_network_is_said_with_the_way_out(monkeypatch, tmp_path):
    """The real download path, with a cache that is empty and a network that is not there."""
    import cached_path

    monkeypatch.setenv("CACHED_PATH_CACHE_ROOT", str(tmp_path))
    cached_path.set_cache_dir(tmp_path)

    def refuse(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("requests.sessions.Session.request", refuse)
    with pytest.raises(WeightsError, match="could not be downloaded") as caught:
        load_model("orb-d3-xs-v2", "cpu")
    assert "--weights" in caught.value.hint
    assert "orb-d3-xs-v2-20241011.ckpt" in caught.value.hint


def test_a_model_without_direct_head_is_refused_before_it_is_downloaded():
    with pytest.raises(WeightsError, match="no direct force head"):
        load_model("orb-v3-conservative-inf-mpa")


def test_published_conservative_architecture_carries_no_direct_head():
    """Should a release of the package change that, its cards must change too."""
    assert "forces" not in orb_v3_conservative_architecture(device="cpu").heads


def test_a_conservative_regressor_with_a_direct_head_gives_both_forces():
    """F_c agrees with the package's own gradient force; F_nc with its own direct head."""
    torch.manual_seed(1)
    module = orb_v3_conservative_architecture(
        latent_dim=32, base_mlp_hidden_dim=32, head_mlp_hidden_dim=32, num_message_passing_steps=2, device="cpu"
    )
    module.heads["forces"] = ForceHead(latent_dim=32, num_mlp_layers=1, mlp_hidden_dim=32, activation="silu")
    module.extra_properties.append("forces")
    from orb_models.forcefield.forcefield_adapter import ForcefieldAtomsAdapter

    adapter = ForcefieldAtomsAdapter(radius=6.0, max_num_neighbors=120)
    card = fdcore.card("orb-v3-conservative-inf-mpa")
    model = OrbModel(card, module, adapter, "cpu", "float32")
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.rattle(0.1, seed=2)
    (ev,) = model.evaluate(atoms)
    with torch.enable_grad():
        own = module.predict(adapter.from_ase_atoms(atoms, device="cpu"))
    np.testing.assert_allclose(ev.forces_conservative, own["grad_forces"].detach().numpy(), atol=1e-4)
    np.testing.assert_allclose(ev.forces_direct, own["forces"].detach().numpy(), atol=1e-5)
    assert ev.energy == pytest.approx(own["energy"].item(), abs=1e-4)


def test_energy_and_direct_force_are_the_packages_own(uncapped):
    from orb_models.forcefield.inference.calculator import ORBCalculator

    atoms = bulk("MgO", "rocksalt", a=4.2, cubic=True)
    atoms.rattle(0.1, seed=5)
    (ev,) = uncapped.evaluate(atoms)
    atoms.calc = ORBCalculator(uncapped.module, uncapped.adapter, device="cpu")
    assert ev.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
    np.testing.assert_allclose(ev.forces_direct, atoms.get_forces(), atol=1e-5)


# ---- neighbours ----------------------------------------------------------------------------------------------------


def test_a_split_shell_is_reported_and_batching_does_not_change_the_answer(capped):
    """Rock salt: the 20 nearest neighbours cut through the 8 atoms of the third shell."""
    perfect = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    partner = bulk("MgO", "rocksalt", a=4.2, cubic=True)
    alone = capped.evaluate(perfect)[0]
    assert alone.graph_tie_A == pytest.approx(0.0, abs=1e-4)
    together = capped.evaluate([partner, perfect, partner])[1]
    assert together.force_delta == pytest.approx(alone.force_delta, rel=1e-9)


def test_no_tie_is_reported_without_a_cut(capped, uncapped):
    assert capped.evaluate(molecule("H2O"))[0].graph_tie_A is None
    assert uncapped.evaluate(bulk("NaCl", "rocksalt", a=5.64))[0].graph_tie_A is None


def test_inf_means_120_and_dense_crystals_reach_it(uncapped):
    diamond = bulk("C", "diamond", a=3.57)
    gap = uncapped.evaluate(diamond)[0].graph_tie_A
    assert gap is not None
    assert gap >= 0


# ---- elements, charge, geometry ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [84, 85, 86, 87, 88, 95, 100, 117, 118])
def test_elements_outside_the_training_set_are_refused_by_name(uncapped, number):
    symbol = ase.data.chemical_symbols[number]
    with pytest.raises(UnsupportedStructureError, match=rf"not trained on {symbol}\b"):
        uncapped.evaluate(ase.Atoms([number, 1], positions=[[0, 0, 0], [0, 0, 2]]))


def test_charge_and_spin_are_required_where_the_model_reads_them(random_checkpoint):
    model = load_model("orb-v3-direct-omol", "cpu", weights=random_checkpoint("orb-v3-direct-omol"))
    atoms = molecule("H2O")
    with pytest.raises(UnsupportedStructureError, match="charge and the spin"):
        model.evaluate(atoms)
    energies = []
    for charge, spin in ((0, 1), (1, 2), (-1, 2)):
        atoms.info.update(charge=charge, spin=spin)
        energies.append(model.evaluate(atoms)[0].energy)
    assert len({round(e, 6) for e in energies}) == 3


def test_net_torque_is_removed_for_molecules_whatever_cell_they_came_with(uncapped):
    """The package looks at `cell == 0`, not at pbc: a molecule in a box file must not keep its torque."""
    free = molecule("CH3OH")
    boxed = free.copy()
    boxed.set_cell([12, 12, 12])
    boxed.pbc = False
    a, b = uncapped.evaluate([free, boxed])
    np.testing.assert_allclose(a.forces_direct, b.forces_direct, atol=1e-6)
    torque = fdcore.delta.net_torque(a.forces_direct, free.positions)
    assert np.abs(torque).max() < 1e-3


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_positions_that_are_not_finite_are_refused(uncapped, value):
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.positions[3, 1] = value
    with pytest.raises(GeometryError):
        uncapped.evaluate(atoms)


def test_exact_overlap_mixed_pbc_and_empty_are_refused(uncapped):
    overlap = ase.Atoms("H2", positions=[[0, 0, 0], [0, 0, 0]])
    slab = bulk("NaCl", "rocksalt", a=5.6)
    slab.pbc = (True, True, False)
    for atoms in (overlap, slab, ase.Atoms()):
        with pytest.raises(GeometryError):
            uncapped.evaluate(atoms)


# ---- memory --------------------------------------------------------------------------------------------------------


def test_too_large_a_structure_is_an_error_not_a_crash(uncapped, monkeypatch):
    monkeypatch.setattr(type(uncapped), "available_bytes", lambda self: 1e6)
    small, large = molecule("H2O"), bulk("NaCl", "rocksalt", a=5.6, cubic=True) * (3, 3, 3)
    results = list(uncapped.evaluate_each([small, large, small]))
    assert isinstance(results[1], ComputeError)
    assert "GB" in results[1].message
    assert results[0].energy == results[2].energy


def test_out_of_memory_halves_the_batch(uncapped, monkeypatch):
    from fdcore.models.base import OutOfMemory

    original, sizes = type(uncapped)._evaluate, []

    def tight(self, structures):
        sizes.append(len(structures))
        if len(structures) > 2:
            raise OutOfMemory
        return original(self, structures)

    monkeypatch.setattr(type(uncapped), "_evaluate", tight)
    waters = [molecule("H2O") for _ in range(5)]
    assert len(uncapped.evaluate(waters)) == 5
    assert sizes[0] == 5
    assert max(sizes[1:]) <= 3


def test_low_memory_gradient_agrees_in_single_precision(uncapped):
    atoms = bulk("MgO", "rocksalt", a=4.2, cubic=True)
    atoms.rattle(0.1, seed=6)
    (exact,) = uncapped.gradients(atoms, method="double-backward")
    (cheap,) = uncapped.gradients(atoms, method="finite-difference")
    scale = np.abs(exact.force_delta_gradient).max()
    np.testing.assert_allclose(cheap.force_delta_gradient, exact.force_delta_gradient, atol=2e-2 * scale)


def test_auto_takes_the_low_memory_gradient_when_memory_is_short(uncapped, monkeypatch):
    used = []
    original = type(uncapped)._gradients_of
    monkeypatch.setattr(type(uncapped), "_gradients_of", lambda s, a, m, e: used.append(m) or original(s, a, m, e))
    atoms = molecule("H2O")
    uncapped.gradients(atoms)
    need = uncapped.memory_bytes(uncapped.check(atoms), double_backward=True)
    monkeypatch.setattr(type(uncapped), "available_bytes", lambda self: 0.9 * need)
    uncapped.gradients(atoms)
    assert used == ["double-backward", "finite-difference"]
