"""EquiformerV2 in its worker: it says what the package says, its gradient is the exact one, and its weights are what they should be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import ase
import ase.io
import ase.neighborlist
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

import fdcore
from fdcore.errors import UsageError, WeightsError, WorkerError
from fdcore.models import card, envs, eqv2_cards, is_here
from fdcore.models.base import guessed_bytes_per_edge, guessed_seconds_per_edge
from fdcore.models.selfcheck import check_gradients

OFFICIAL = Path(__file__).with_name("official.py")


def crystal() -> ase.Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.rattle(0.1, seed=1)
    return atoms


def dimer() -> ase.Atoms:
    first, second = molecule("H2O"), molecule("H2O")
    first.rattle(0.05, seed=4)
    second.rattle(0.02, seed=5)
    second.translate([0.3, 2.9, 0.4])
    return first + second


STRUCTURES = {"crystal": crystal, "molecule": dimer}


@pytest.fixture(scope="module")
def dens(eqv2_model):
    """A DeNS model whose averaged weights differ from those beside them, in float64."""
    return eqv2_model("small", "float64", "--dens", "--ema")


@pytest.fixture(scope="module")
def official(isolated_checkpoint, tmp_path_factory) -> dict[str, dict[str, np.ndarray]]:
    """What the package says of each of STRUCTURES, and what plain backpropagation through it gives."""
    path = tmp_path_factory.mktemp("official") / "structures.extxyz"
    ase.io.write(path, [make() for make in STRUCTURES.values()])
    # Of a training file the package's calculator takes the weights that are not averaged: here the file holds but one kind.
    weights, _ = isolated_checkpoint("eqv2", "small", "--dens")
    environment = {**os.environ, "PYTHONPATH": envs.python_path("eqv2")}
    done = subprocess.run(
        [envs.python_of("eqv2"), OFFICIAL, weights, path], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    return {k: {n: np.array(v) for n, v in row.items()} for k, row in zip(STRUCTURES, rows, strict=True)}


@pytest.mark.parametrize("kind", STRUCTURES)
def test_the_gradient_is_exact_where_plain_backpropagation_is_not(dens, official, kind):
    atoms = STRUCTURES[kind]()
    check = check_gradients(dens, atoms)
    assert check.forces_conservative_error < 1e-6 * check.forces_conservative_scale, check
    assert check.force_delta_gradient_error < 1e-6 * check.force_delta_gradient_scale, check
    assert check.low_memory_gradient_error < 1e-4 * check.force_delta_gradient_scale, check

    (ev,) = dens.evaluate(atoms)
    said = official[kind]
    # Single precision there, with frames at random; the same weights, graph, normalisation and reference energies.
    assert ev.energy == pytest.approx(said["energy"], abs=1e-4)
    scale = np.abs(ev.forces_direct).max()
    np.testing.assert_allclose(ev.forces_direct, said["forces"], atol=1e-4 * scale)
    wrong = np.linalg.norm(said["naive"] - ev.forces_conservative) / np.linalg.norm(ev.forces_conservative)
    assert 0.005 < wrong < 0.5
    print(f"\nplain backpropagation, {kind}: F_c off by {100 * wrong:.1f} %")


def test_one_force_alone_is_the_same(dens):
    several = [crystal(), dimer()]
    for prediction, ev in zip(dens.predict_each(several), dens.evaluate(several), strict=True):
        assert prediction.energy == pytest.approx(ev.energy, abs=1e-10)
        np.testing.assert_allclose(prediction.forces_driving, ev.forces_direct, atol=1e-10)
    structures = [dens.check(a) for a in several]
    positions = torch.as_tensor(np.concatenate([s.positions for s in structures]))
    found = dens.potential(structures).evaluate(positions, direct=False, conservative=True)
    assert found.forces_direct is None
    np.testing.assert_allclose(
        found.forces_conservative, np.concatenate([e.forces_conservative for e in dens.evaluate(several)]), atol=1e-10
    )
    first, second = found.edges.numpy()
    molecule_only = first >= len(crystal())
    assert molecule_only.sum() == 6 * 5
    apart = positions.numpy()[first] - positions.numpy()[second]
    np.testing.assert_allclose(found.lengths[molecule_only], np.linalg.norm(apart, axis=1)[molecule_only], atol=1e-12)
    blown_up = dens.potential(structures).evaluate(positions * torch.nan, direct=True, conservative=True)
    assert torch.isnan(blown_up.forces_direct).all() and torch.isnan(blown_up.energy).all()


def test_the_cost_is_known_before_loading(dens):
    """Measured with the 31M: 6 ms and 1.9 MB per edge, which the number of parameters alone underestimates 7 and 15 times."""
    published = card("eqV2_31M_mp")
    assert guessed_seconds_per_edge(published) == pytest.approx(6.2e-3, rel=0.01)
    assert guessed_bytes_per_edge(published) == pytest.approx(1.95e6, rel=0.01)
    # The same from the file, whatever its size: here in double precision.
    assert dens.seconds_per_edge == guessed_seconds_per_edge(dens.card) < 1e-3
    assert dens.bytes_per_edge == 2 * guessed_bytes_per_edge(dens.card) == 8 * 19 * 2 * 4**2 * 16


def test_the_gap_at_the_neighbour_cap(dens):
    """Against ASE's neighbour list: the 21st neighbour and all within 0.01 Å^2 of its squared distance are kept."""
    atoms = crystal()
    centre, length = ase.neighborlist.neighbor_list("id", atoms, 12.0)
    gaps = []
    for index in range(len(atoms)):
        squares = np.sort(length[centre == index] ** 2)
        kept = squares <= squares[20] + 0.01
        gaps.append(np.sqrt(squares[~kept].min()) - np.sqrt(squares[kept].max()))
    assert dens.evaluate(atoms)[0].graph_tie_A == pytest.approx(min(gaps), abs=1e-5)
    assert dens.evaluate(dimer())[0].graph_tie_A is None


def test_gradients_of_a_batch_and_the_cheap_way(dens):
    several = [crystal(), dimer()]
    together = dens.gradients(several)
    for g, atoms in zip(together, several, strict=True):
        (alone,) = dens.gradients(atoms)
        np.testing.assert_allclose(g.force_delta_gradient, alone.force_delta_gradient, atol=1e-8)
        (cheap,) = dens.gradients(atoms, method="one-sided")
        scale = np.abs(alone.force_delta_gradient).max()
        np.testing.assert_allclose(cheap.force_delta_gradient, alone.force_delta_gradient, atol=0.02 * scale)
    with pytest.raises(UsageError, match="cell"):
        dens.gradients(crystal(), strain=True)


def test_a_worker_that_is_killed_is_replaced(dens):
    before = dens.evaluate(crystal())[0]
    os.kill(dens.worker.pid, signal.SIGTERM)
    errors = list(dens.evaluate_each([crystal(), dimer()]))
    assert {type(e) for e in errors} <= {WorkerError, type(before)}
    after = dens.evaluate(crystal())[0]
    np.testing.assert_array_equal(after.forces_conservative, before.forces_conservative)


def test_a_file_of_another_architecture_is_refused(isolated_checkpoint, tmp_path):
    path, _ = isolated_checkpoint("eqv2", "small", "--dens", "--ema")
    with pytest.raises(WeightsError, match=r"parameters instead of 31,207,434 and a DeNS model"):
        fdcore.load_model("eqV2_31M_mp", device="cpu", weights=path)
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"not a checkpoint")
    with pytest.raises(WeightsError, match=r"broken.pt cannot be loaded as eqV2_31M_mp"):
        fdcore.load_model("eqV2_31M_mp", device="cpu", weights=broken)
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"no checkpoint of fairchem-core 1.x"):
        fdcore.load_model("eqV2_31M_mp", device="cpu", weights=tmp_path / "other.pt")


def test_gated_weights_say_where_to_ask(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert not is_here(card("eqV2_86M_omat_mp_salex"))
    with pytest.raises(WeightsError) as caught:
        fdcore.load_model("eqV2_86M_omat_mp_salex", device="cpu")
    for word in ("facebook/OMAT24", "License", "HF_TOKEN", "--weights", "eqV2_86M_omat_mp_salex.pt"):
        assert word in str(caught.value)


def test_weights_in_the_hub_cache_are_found(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--facebook--OMAT24"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc" / "eqV2_31M_mp.pt").write_bytes(b"x")
    found = eqv2_cards.cached_file(card("eqV2_31M_mp"))
    assert found == folder / "snapshots" / "abc" / "eqV2_31M_mp.pt"
    assert eqv2_cards.cached_file(card("eqV2_dens_31M_mp")) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_id", "size", "options"), [("eqV2_31M_mp", "31M", ()), ("eqV2_dens_31M_mp", "31M", ("--dens",))]
)
def test_full_size(isolated_checkpoint, model_id, size, options):
    """The published architecture with random weights through the official loading path."""
    path, count = isolated_checkpoint("eqv2", size, *options)
    assert count == card(model_id).n_parameters
    model = fdcore.load_model(model_id, device="cpu", dtype="float64", weights=path)
    assert model.bytes_per_edge == 2 * guessed_bytes_per_edge(card(model_id))
    for atoms in (crystal(), dimer()):
        check = check_gradients(model, atoms, components=3)
        assert check.passed, check
        assert check.forces_conservative_error < 1e-6 * check.forces_conservative_scale, check
        _say(model_id, check)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_id", "size", "options"),
    [
        ("eqV2_86M_omat_mp_salex", "86M", ()),
        ("eqV2_dens_86M_mp", "86M", ("--dens",)),
        ("eqV2_153M_omat_mp_salex", "153M", ()),
        ("eqV2_dens_153M_mp", "153M", ("--dens",)),
    ],
)
def test_the_larger_sizes(isolated_checkpoint, model_id, size, options):
    """As above, on what fits into the memory of a desktop: two components of six atoms, and a crystal of two."""
    path, count = isolated_checkpoint("eqv2", size, *options)
    assert count == card(model_id).n_parameters
    started = time.monotonic()
    model = fdcore.load_model(model_id, device="cpu", dtype="float64", weights=path)
    loaded = time.monotonic()
    assert model.bytes_per_edge == 2 * guessed_bytes_per_edge(card(model_id))
    # One displaced structure at a time.
    model.batch_edges = 1
    check = check_gradients(model, dimer(), components=2)
    assert check.passed, check
    assert check.forces_conservative_error < 1e-6 * check.forces_conservative_scale, check
    checked = time.monotonic()
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    atoms.rattle(0.1, seed=1)
    (ev,) = model.evaluate(atoms)
    assert ev.forces_direct.shape == ev.forces_conservative.shape == (2, 3)
    assert 0 < ev.force_delta < np.inf
    # Nothing pushes the crystal as a whole: an exact gradient, as a naive one, but for rounding.
    np.testing.assert_allclose(ev.forces_conservative.sum(axis=0), 0, atol=1e-9 * np.abs(ev.forces_conservative).max())
    _say(model_id, check)
    print(f"loaded in {loaded - started:.0f} s, checked in {checked - loaded:.0f} s")
    print(f"crystal of 2 atoms: {model.worker.seconds:.1f} s, U = {ev.force_delta:.4f} eV/Å")
    model.worker.close()
    path.unlink()


def _say(model_id: str, check) -> None:
    print(
        f"\n{model_id}: F_c {check.forces_conservative_error / check.forces_conservative_scale:.1e}, "
        f"grad U {check.force_delta_gradient_error / check.force_delta_gradient_scale:.1e} relative"
    )
