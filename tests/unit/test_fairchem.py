"""What is special to fairchem checkpoints: the package's own answer is ours, nothing is random, gates are named, and what cannot be
computed is refused."""

from __future__ import annotations

import logging
import os
import random

import ase
import numpy as np
import pytest
import torch
from ase.build import fcc111, molecule

import fdcore
from fdcore.errors import ComputeError, UnsupportedStructureError, WeightsError
from fdcore.models import FAMILIES, is_here, list_models, load_model, load_predictor
from fdcore.models.fairchem_cards import CHECKPOINTS, HUB, cached_file


@pytest.fixture(scope="module")
def esen(random_checkpoint):
    return load_model("esen-sm-direct-all-omol", "cpu", "float64", random_checkpoint("small-esen"))


@pytest.fixture(scope="module")
def soft(random_checkpoint):
    return load_model("allscaip-md-direct-all-omol", "cpu", "float64", random_checkpoint("small-allscaip"))


@pytest.fixture(scope="module")
def oc25(random_checkpoint):
    """float64; keeps 20 neighbours."""
    return load_model("esen-md-direct-all-oc25", "cpu", "float64", random_checkpoint("small-oc25"))


def ethanol() -> ase.Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=2)
    atoms.info.update(charge=0, spin=1)
    return atoms


def surface() -> ase.Atoms:
    slab = fcc111("Pd", (2, 2, 2), vacuum=8.0, periodic=True)
    slab.rattle(0.05, seed=1)
    return slab


def numeric_forces(model, atoms, chosen, step=1e-5):
    shifts = np.zeros((len(chosen), 2, len(atoms), 3))
    for row, component in enumerate(chosen):
        shifts[row, 0].flat[component], shifts[row, 1].flat[component] = step, -step
    ends = model.displaced(atoms, shifts.reshape(-1, len(atoms), 3))
    energies = np.array([e.energy for e in ends]).reshape(-1, 2)
    spread = np.array([e.force_delta for e in ends]).reshape(-1, 2)
    return -(energies[:, 0] - energies[:, 1]) / (2 * step), (spread[:, 0] - spread[:, 1]) / (2 * step)


@pytest.mark.parametrize("name", ["esen", "soft", "oc25"])
def test_both_gradients_to_a_millionth(name, request):
    model = request.getfixturevalue(name)
    atoms = surface() if name == "oc25" else ethanol()
    chosen = np.random.default_rng(0).choice(3 * len(atoms), 8, replace=False)
    forces, slopes = numeric_forces(model, atoms, chosen)
    (g,) = model.gradients(atoms, method="double-backward")
    exact = g.evaluation.forces_conservative
    assert np.abs(forces - exact.flat[chosen]).max() <= 1e-6 * np.abs(exact).max()
    assert np.abs(slopes - g.force_delta_gradient.flat[chosen]).max() <= 1e-6 * np.abs(g.force_delta_gradient).max()
    (low,) = model.gradients(atoms, method="finite-difference")
    (cheap,) = model.gradients(atoms, method="one-sided")
    scale = np.abs(g.force_delta_gradient).max()
    np.testing.assert_allclose(low.force_delta_gradient, g.force_delta_gradient, atol=1e-5 * scale)
    np.testing.assert_allclose(cheap.force_delta_gradient, g.force_delta_gradient, atol=1e-3 * scale)


def test_edges_along_the_axis_of_the_frames(esen):
    """A frame that turns an edge onto y is singular for an edge along -y, or is glued of two that are not."""
    atoms = ase.Atoms("OHHO", [[0, 0, 0], [0, 0.97, 0], [0, -0.97, 0], [0, 0, 1.4]])
    atoms.info.update(charge=0, spin=1)
    forces, slopes = numeric_forces(esen, atoms, np.arange(12))
    (g,) = esen.gradients(atoms)
    exact = g.evaluation.forces_conservative
    assert np.abs(forces - exact.flatten()).max() <= 1e-6 * np.abs(exact).max()
    assert np.abs(slopes - g.force_delta_gradient.flatten()).max() <= 1e-6 * np.abs(g.force_delta_gradient).max()


@pytest.mark.parametrize("name", ["small-esen", "small-allscaip", "small-oc25"])
def test_the_package_says_the_same(name, random_checkpoint):
    """Energy and F_nc of its own calculator, in its own precision."""
    from fairchem.core import FAIRChemCalculator
    from fairchem.core.units.mlip_unit import load_predict_unit
    from fairchem.core.units.mlip_unit.api.inference import InferenceSettings

    ids = {
        "small-esen": "esen-sm-direct-all-omol",
        "small-oc25": "esen-md-direct-all-oc25",
        "small-allscaip": "allscaip-md-direct-all-omol",
    }
    path = random_checkpoint(name)
    atoms = surface() if name == "small-oc25" else ethanol()
    (ours,) = load_model(ids[name], "cpu", "float32", path).evaluate(atoms)
    unit = load_predict_unit(path, InferenceSettings(activation_checkpointing=False), device="cpu")
    atoms.calc = FAIRChemCalculator(unit, task_name=CHECKPOINTS[ids[name]].task)
    assert ours.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
    np.testing.assert_allclose(ours.forces_direct, atoms.get_forces(), atol=1e-4)
    assert np.abs(ours.forces_direct).max() > 0.01


def test_nothing_is_random(esen):
    """The package turns every edge's frame by a random angle."""
    first, second = esen.evaluate(ethanol())[0], esen.evaluate(ethanol())[0]
    assert first.energy == second.energy
    np.testing.assert_array_equal(first.forces_conservative, second.forces_conservative)


def test_esen_turns_with_the_molecule(esen):
    turned = ethanol()
    turned.rotate(50, (1, 2, 3))
    a, b = esen.evaluate([ethanol(), turned])
    rotation = np.linalg.lstsq(ethanol().positions, turned.positions, rcond=None)[0]
    np.testing.assert_allclose(b.forces_direct, a.forces_direct @ rotation, atol=1e-8)
    np.testing.assert_allclose(b.forces_conservative, a.forces_conservative @ rotation, atol=1e-8)


def test_charge_and_spin_are_seen(esen):
    neutral, charged = ethanol(), ethanol()
    charged.info.update(charge=1, spin=2)
    a, b = esen.evaluate([neutral, charged])
    assert abs(a.energy - b.energy) > 1e-6
    charged.info.update(charge=101)
    with pytest.raises(UnsupportedStructureError, match="no charge of 101"):
        esen.evaluate(charged)


def test_predict_leaves_the_second_force_out(esen):
    (predicted,) = esen.predict_each([ethanol()])
    (evaluated,) = esen.evaluate(ethanol())
    assert predicted.energy == pytest.approx(evaluated.energy, abs=1e-9)
    np.testing.assert_allclose(predicted.forces_driving, evaluated.forces_direct, atol=1e-10)


def test_the_gap_behind_the_last_neighbour(oc25):
    """Against a neighbour list made elsewhere: the cap of 20 takes whole shells, within 0.01 Å."""
    from ase.neighborlist import neighbor_list

    (found,) = oc25.evaluate(surface())
    centres, lengths = neighbor_list("id", surface(), 6.0)
    gaps = []
    for atom in range(len(surface())):
        own = np.sort(lengths[centres == atom])
        # The package compares squares.
        kept = int((own**2 <= own[20] ** 2 + 0.01).sum())
        if kept < len(own):
            gaps.append(own[kept] - own[kept - 1])
    assert gaps
    assert found.graph_tie_A == pytest.approx(min(gaps), abs=1e-9)


def test_displaced_keeps_the_graph(oc25):
    """Moving an atom by 0.3 Å changes the 20 nearest; at fixed graph the energy is that of the old pairs."""
    atoms = surface()
    shift = np.zeros((1, len(atoms), 3))
    shift[0, 0] = [0.3, 0.2, 0.1]
    (kept,) = oc25.displaced(atoms, shift)
    atoms.positions += shift[0]
    (fresh,) = oc25.evaluate(atoms)
    assert abs(kept.energy - fresh.energy) > 1e-4


def test_soft_neighbours_that_change_are_not_differentiated_over(soft):
    """Two molecules that a step brings within the 6 Å of one another."""
    far = ethanol()
    far.translate([9.0, 0, 0])
    both = ethanol() + far
    both.info.update(charge=0, spin=1)
    gap = min(np.linalg.norm(a - b) for a in ethanol().positions for b in far.positions)
    both.positions[len(far) :, 0] -= gap - 6.0 - 0.05
    shifts = np.zeros((2, len(both), 3))
    shifts[1, len(far) :, 0] = -1.0
    with pytest.raises(ComputeError, match="change within the step"):
        soft.displaced(both, shifts)


def test_every_listed_checkpoint_is_the_packages_own():
    from fairchem.core.calculate.pretrained_mlip import _MODEL_CKPTS, available_models

    for checkpoint in CHECKPOINTS.values():
        known = _MODEL_CKPTS.checkpoints[checkpoint.name]
        assert checkpoint.repo == known.repo_id
        assert checkpoint.file == f"{known.subfolder}/{known.filename}"
    left_out = set(available_models) - {c.name for c in CHECKPOINTS.values()}
    assert left_out == {"esen-sm-filtered-odac25", "esen-sm-full-odac25"}
    cards = {c.id: c for c in list_models() if c.family == "fairchem"}
    assert set(cards) == set(CHECKPOINTS)
    assert all(c.weights == "gated" and c.address.startswith(HUB) for c in cards.values())


def test_the_hubs_cache_is_looked_into(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRCHEM_CACHE_DIR", str(tmp_path))
    card = fdcore.card("esen-sm-direct-all-omol")
    assert cached_file(card) is None and not is_here(card)
    repo = tmp_path / "models--facebook--OMol25"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0123")
    file = repo / "snapshots" / "0123" / "checkpoints" / "esen_sm_direct_all.pt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    assert cached_file(card) == file and is_here(card)


def _refusal(kind):
    from huggingface_hub import errors

    made = getattr(errors, kind)
    if kind in ("GatedRepoError", "RepositoryNotFoundError"):
        import httpx

        request = httpx.Request("GET", "https://hub.invalid/file")
        return made("401", response=httpx.Response(401, request=request))
    return made("away")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("GatedRepoError", "are gated"),
        ("RepositoryNotFoundError", "not shown to this machine"),
        ("LocalEntryNotFoundError", "cannot be reached"),
        ("OfflineModeIsEnabled", "cannot be reached"),
    ],
)
def test_gates_are_named_with_the_way_through(kind, says, monkeypatch, tmp_path):
    from fairchem.core.calculate import pretrained_mlip

    def refuse(**options):
        raise _refusal(kind)

    monkeypatch.setenv("FAIRCHEM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(pretrained_mlip, "hf_hub_download", refuse)
    with pytest.raises(WeightsError, match=says) as caught:
        load_model("esen-md-direct-all-oc25", "cpu")
    for word in ("https://huggingface.co/facebook/OC25", "FAIR Chemistry License", "HF_TOKEN", "--weights"):
        assert word in str(caught.value)


def test_offline_for_real(monkeypatch, tmp_path):
    """HF_HUB_OFFLINE is set for the tests: the package's own download, refused."""
    monkeypatch.setenv("FAIRCHEM_CACHE_DIR", str(tmp_path))
    with pytest.raises(WeightsError, match="facebook/OMol25"):
        load_model("esen-sm-direct-all-omol", "cpu")


def test_files_of_another_kind_are_named(random_checkpoint, tmp_path):
    with pytest.raises(WeightsError, match="holds a conservative model"):
        load_model("esen-sm-direct-all-omol", "cpu", weights=random_checkpoint("small-conserving"))
    with pytest.raises(WeightsError, match="holds a direct model"):
        load_predictor("esen-sm-conserving-all-omol", "cpu", weights=random_checkpoint("small-esen"))
    with pytest.raises(WeightsError, match="made for oc25, not for omol"):
        load_model("esen-sm-direct-all-omol", "cpu", weights=random_checkpoint("small-oc25"))
    (tmp_path / "bad.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(WeightsError, match=r"bad\.pt cannot be loaded as esen"):
        load_model("esen-sm-direct-all-omol", "cpu", weights=tmp_path / "bad.pt")


@pytest.mark.parametrize("part", ["output_heads.forces.", "output_heads.energy.", "backbone.blocks.3."])
def test_a_checkpoint_with_a_part_missing_is_refused(random_checkpoint, tmp_path, part):
    held = torch.load(random_checkpoint("small-esen"), weights_only=False)
    held.ema_state_dict = {k: v for k, v in held.ema_state_dict.items() if part not in k}
    torch.save(held, tmp_path / "torn.pt")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load_model("esen-sm-direct-all-omol", "cpu", weights=tmp_path / "torn.pt")


def test_loading_leaves_the_process_as_it_was(random_checkpoint):
    root = logging.getLogger()
    before = (torch.get_default_dtype(), root.handlers[:], root.level, root.manager.disable, dict(os.environ))
    random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
    expected = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002
    random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
    for name, model_id in (
        ("small-esen", "esen-sm-direct-all-omol"),
        ("small-allscaip", "allscaip-md-direct-all-omol"),
    ):
        model = load_model(model_id, "cpu", "float64", random_checkpoint(name))
        model.evaluate(ethanol())
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected  # noqa: NPY002
    assert (torch.get_default_dtype(), root.handlers[:], root.level, root.manager.disable, dict(os.environ)) == before


def test_modules_are_frozen(esen, soft):
    for model in (esen, soft):
        assert not model.module.training
        assert not any(p.requires_grad for p in model.module.parameters())


def test_the_family_has_both_loaders():
    assert FAMILIES["fairchem"].loader == "fdcore.models.fairchem_pretrained"
