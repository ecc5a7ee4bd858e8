"""What the embedded model's card claims is what its weights do on labels that travel with the package."""

from __future__ import annotations

import json

import ase.io
import numpy as np
import pytest
from ase import Atoms
from scipy.stats import spearmanr

import fdcore
from fdcore import data
from fdcore.delta import rms_difference
from fdcore.models import DEFAULT_MODEL
from fdcore.models.base import file_sha256

CARD_FILE = json.loads(data.path("models", f"{DEFAULT_MODEL}.card.json").read_text())


@pytest.fixture(scope="module")
def labelled():
    """(frames, evaluations) of the shipped held-out subset."""
    frames = ase.io.read(data.path("labels", f"{DEFAULT_MODEL}.extxyz"), ":")
    bare = [Atoms(a.symbols, positions=a.positions, cell=a.cell, pbc=True) for a in frames]
    return frames, fdcore.load_model().evaluate(bare)


def test_card_and_weights_belong_together():
    weights = data.path("models", f"{DEFAULT_MODEL}.safetensors")
    card = fdcore.card(DEFAULT_MODEL)
    assert card.sha256 == file_sha256(weights)
    assert weights.stat().st_size < 6e6
    assert set(card.elements) == {"H", "Li", "O", "F", "Na", "Mg", "Al", "P", "S", "Cl", "Ge"}
    assert card.held_out
    assert card.not_for


def test_held_out_errors_are_those_of_the_card(labelled):
    frames, evaluations = labelled
    claimed = CARD_FILE["tables"]["shipped_subset"]
    pairs = [(ev, a.arrays["forces_reference"]) for a, ev in zip(frames, evaluations, strict=True)]
    error_direct = [rms_difference(ev.forces_direct, f) for ev, f in pairs]
    error_conservative = [rms_difference(ev.forces_conservative, f) for ev, f in pairs]
    energy_error = [abs(ev.energy - a.info["energy_eV"]) / len(a) for a, ev in zip(frames, evaluations, strict=True)]
    assert claimed["frames"] == len(frames)
    assert np.sqrt(np.mean(np.square(error_direct))) == pytest.approx(claimed["error_direct_eV_per_A"], rel=1e-3)
    assert np.sqrt(np.mean(np.square(error_conservative))) == pytest.approx(
        claimed["error_conservative_eV_per_A"], rel=1e-3
    )
    assert np.mean(energy_error) == pytest.approx(claimed["energy_mae_eV_per_atom"], rel=1e-2)
    rank = spearmanr([ev.force_delta for ev in evaluations], error_conservative).statistic
    assert rank == pytest.approx(claimed["spearman_force_delta_error_conservative"], abs=0.01)


def test_u_ranks_the_conservative_error(labelled):
    """The paper's claim, on labels the model never saw: bands of displacement pooled."""
    frames, evaluations = labelled
    errors = [rms_difference(ev.forces_conservative, a.arrays["forces_reference"]) for a, ev in zip(frames, evaluations, strict=True)]  # fmt: skip
    assert spearmanr([ev.force_delta for ev in evaluations], errors).statistic > 0.7


def test_rotation_changes_little():
    """Equivariance is learnt: a turned crystal must give turned forces within the model's own errors."""
    frames = ase.io.read(data.path("labels", f"{DEFAULT_MODEL}.extxyz"), ":")
    frame = min(frames, key=lambda a: np.abs(a.arrays["forces_reference"]).max())
    atoms = Atoms(frame.symbols, positions=frame.positions, cell=frame.cell, pbc=True)
    turned = atoms.copy()
    turned.rotate(50, (1, 1, 2), rotate_cell=True)
    first, second = fdcore.load_model().evaluate([atoms, turned])
    back = atoms.copy()
    back.positions = second.forces_direct
    back.rotate(-50, (1, 1, 2))
    scale = CARD_FILE["tables"]["inside"]["error_direct_eV_per_A"]
    assert rms_difference(back.positions, first.forces_direct) < scale
    assert second.energy == pytest.approx(first.energy, abs=0.05 * len(atoms))
