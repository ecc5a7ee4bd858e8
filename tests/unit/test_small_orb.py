"""The embedded architecture and its file: exact round trip, strict loading, nothing executed, nothing global changed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from safetensors.torch import load_file, save_file

import fdcore
from fdcore.errors import WeightsError
from fdcore.models import small_orb
from fdcore.models.orb import OrbModel
from fdcore.models.small_orb import SmallOrbConfig

SMALL = SmallOrbConfig(latent_dim=16, hidden_dim=24, head_hidden_dim=16, message_passing_steps=2)


@pytest.fixture
def written(tmp_path):
    torch.manual_seed(3)
    module, _ = small_orb.build(SMALL)
    path = tmp_path / "small.safetensors"
    small_orb.save(path, module, SMALL, {"seed": "3"})
    return path, module


def rattled():
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.rattle(0.1, seed=1)
    return atoms


def test_round_trip_is_exact(written):
    path, module = written
    loaded, adapter, config, metadata = small_orb.load(path)
    assert config == SMALL
    assert metadata["seed"] == "3"
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    card = fdcore.card(fdcore.models.DEFAULT_MODEL)
    first = OrbModel(card, module, adapter, "cpu", "float32").evaluate(rattled())[0]
    second = OrbModel(card, loaded, adapter, "cpu", "float32").evaluate(rattled())[0]
    assert first.energy == pytest.approx(second.energy, rel=1e-7)
    np.testing.assert_allclose(first.forces_direct, second.forces_direct, atol=1e-6)
    np.testing.assert_allclose(first.forces_conservative, second.forces_conservative, atol=1e-6)


def test_the_cutoff_is_where_the_recipe_says(written):
    """An atom that crosses 5 Å changes nothing at the crossing, neither energy nor direct force."""
    path, _ = written
    module, adapter, _, _ = small_orb.load(path, dtype="float64")
    model = OrbModel(fdcore.card(fdcore.models.DEFAULT_MODEL), module, adapter, "cpu", "float64")
    from ase import Atoms

    def pair(distance):
        return model.evaluate(Atoms("NaCl", positions=[[0, 0, 0], [distance, 0, 0]]))[0]

    inside, outside, far = pair(4.9999), pair(5.0001), pair(9.0)
    assert inside.energy == pytest.approx(outside.energy, abs=1e-6)
    assert outside.energy == pytest.approx(far.energy, abs=1e-9)
    assert pair(4.0).energy != pytest.approx(far.energy, abs=1e-6)


def test_float64_and_no_change_of_global_settings(written):
    before = torch.get_default_dtype()
    module, _, _, _ = small_orb.load(written[0], dtype="float64")
    assert next(module.parameters()).dtype == torch.float64
    assert torch.get_default_dtype() == before
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda state, meta: state.pop(next(k for k in state if k.startswith("heads.forces"))), "does not fill"),
        (lambda state, meta: state.update(extra=torch.zeros(2)), "does not fill"),
        (lambda state, meta: state.update({"heads.energy.reference.linear.weight": torch.zeros(7)}), "does not fill"),
        (lambda state, meta: meta.update(format="other"), "not an embedded"),
        (lambda state, meta: meta.pop("config"), "no usable recipe"),
        (lambda state, meta: meta.update(config="{"), "no usable recipe"),
        (lambda state, meta: meta.update(config=json.dumps({"latent_dim": 16})), "no usable recipe"),
        (lambda state, meta: meta.update(config=meta["config"].replace('"hidden_dim": 24', '"hidden_dim": 10000000')), "too large"),
        (lambda state, meta: meta.update(config=meta["config"].replace('"hidden_dim": 24', '"hidden_dim": -1')), "no usable recipe"),
    ],
)  # fmt: skip
def test_damaged_content_is_refused(written, tmp_path, damage, says):
    from safetensors import safe_open

    state = load_file(written[0])
    with safe_open(str(written[0]), framework="pt") as file:
        metadata = dict(file.metadata())
    damage(state, metadata)
    save_file(state, tmp_path / "bad.safetensors", metadata)
    with pytest.raises(WeightsError, match=says) as caught:
        small_orb.load(tmp_path / "bad.safetensors")
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"\xff" * 8 + b"{}", b"PK\x03\x04"])
def test_damaged_bytes_are_refused(tmp_path, content):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a readable"):
        small_orb.load(path)


def test_a_torn_download_is_refused(written, tmp_path):
    path = tmp_path / "torn.safetensors"
    path.write_bytes(written[0].read_bytes()[:-100])
    with pytest.raises(WeightsError):
        small_orb.load(path)


def test_other_weights_of_the_same_format_load_by_path(written):
    model = fdcore.load_model(weights=written[0])
    assert model.weights_sha256 != fdcore.card(fdcore.models.DEFAULT_MODEL).sha256
    assert model.evaluate(rattled())[0].force_delta > 0


def test_what_training_writes_can_be_read_and_begun_with(tmp_path, monkeypatch):
    """Normalisers and reference energies set from frames, as training/train.py does it, leave a file that fills its architecture."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "training"))
    import train

    frames = []
    for seed in range(4):
        atoms = rattled()
        atoms.rattle(0.05, seed=seed)
        atoms.info["energy_eV"] = -3.0 * len(atoms) + seed
        atoms.new_array("forces_reference", np.random.default_rng(seed).normal(size=(len(atoms), 3)))
        frames.append(atoms)
    module, _ = small_orb.build(SMALL)
    train.set_normalisers(module, frames)
    small_orb.save(tmp_path / "model.safetensors", module, SMALL, {"seed": "0"})
    again, _, _, _ = small_orb.load(tmp_path / "model.safetensors")
    components = np.concatenate([a.arrays["forces_reference"].ravel() for a in frames])
    variance = float(again.heads["forces"].normalizer.bn.running_var)
    assert variance == pytest.approx(components.std() ** 2, rel=1e-5)
    assert again.state_dict().keys() == module.state_dict().keys()
