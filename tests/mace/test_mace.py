"""MACE in its worker: through the package's own way of finding and loading a model it says what the package's calculator says, its force is
the slope of its energy, and files that are something else are refused. What every conservative model must fulfil is in tests/contracts."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from fdcore.config import environments_folder
from fdcore.errors import WeightsError
from fdcore.models import card, envs, is_here, list_models, load_predictor, mace, mace_cards
from fdcore.models.base import file_sha256, guessed_bytes_per_edge, guessed_seconds_per_edge

OFFICIAL = Path(__file__).with_name("official.py")
SMALL = "mace-mp-0-small"


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


def single() -> ase.Atoms:
    return ase.Atoms("Na", positions=[[1.0, 2.0, 3.0]])


STRUCTURES = (crystal, dimer, single)


@pytest.fixture(scope="module")
def cache(isolated_checkpoint, tmp_path_factory) -> Path:
    """A download cache as the package leaves it, with a file of the small architecture under the published name."""
    path, count = isolated_checkpoint("mace", SMALL)
    assert count == card(SMALL).n_parameters
    folder = tmp_path_factory.mktemp("cache")
    (folder / "mace").mkdir()
    shutil.copy(path, folder / "mace" / "20231210mace128L0_energy_epoch249model")
    return folder


@pytest.fixture(scope="module")
def only_cache(cache):
    """That cache is the user's, and there is no network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FDCORE_ENVIRONMENTS", str(environments_folder()))
        patch.setenv("XDG_CACHE_HOME", str(cache))
        for name in ("https_proxy", "HTTPS_PROXY"):
            # Nobody listens there.
            patch.setenv(name, "http://127.0.0.1:9")
        yield


@pytest.fixture(scope="module")
def model(only_cache):
    """Found and loaded by the package, which was given the published address."""
    return load_predictor(SMALL, device="cpu", dtype="float64")


@pytest.fixture(scope="module")
def official(isolated_checkpoint, tmp_path_factory) -> dict:
    """What the package says of STRUCTURES, and its addresses."""
    path = tmp_path_factory.mktemp("official") / "structures.extxyz"
    ase.io.write(path, [make() for make in STRUCTURES])
    weights, _ = isolated_checkpoint("mace", SMALL)
    done = subprocess.run(
        [envs.python_of("mace"), OFFICIAL, weights, path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_it_says_what_the_package_says(model, official):
    for found, said in zip(model.predict_each([make() for make in STRUCTURES]), official["rows"], strict=True):
        assert found.energy == pytest.approx(said["energy"], abs=1e-10)
        np.testing.assert_allclose(found.forces_driving, said["forces"], atol=1e-10)


def test_the_addresses_are_those_of_the_package(official):
    ours = {c.id: c.address for c in mace_cards.CARDS}
    # The one that the authors list in place of the package's.
    del ours["mace-mp-0-large"]
    assert set(ours.values()) <= set(official["addresses"])


@pytest.mark.parametrize("make", STRUCTURES[:2])
def test_the_force_is_minus_the_slope_of_the_energy(model, make):
    worst = slope_error(model, make())
    assert worst < 1e-6
    print(f"\n{make.__name__}: F_c off by {worst:.1e} of its largest component")


def slope_error(model, atoms: ase.Atoms, directions: int = 4) -> float:
    """The largest error of F_c along random directions, by four-point differences, as a share of the largest component of F_c."""
    (centre,) = model.predict_each([atoms])
    rng = np.random.default_rng(0)
    worst = 0.0
    for _ in range(directions):
        along = rng.normal(size=(len(atoms), 3))
        along /= np.linalg.norm(along)
        ends = []
        for step in (1e-3, -1e-3, 2e-3, -2e-3):
            moved = atoms.copy()
            moved.positions += step * along
            ends.append(moved)
        near, back, far, farther_back = (p.energy for p in model.predict_each(ends))
        slope = (8 * (near - back) - (far - farther_back)) / 12e-3
        worst = max(worst, abs(slope + float((centre.forces_driving * along).sum())))
    return worst / np.abs(centre.forces_driving).max()


def test_what_the_file_says_is_known(model, isolated_checkpoint):
    path, count = isolated_checkpoint("mace", SMALL)
    assert model.card.n_parameters == count
    assert set(model.card.elements) == set(card(SMALL).elements) and len(model.card.elements) == 89
    assert model.weights_sha256 == file_sha256(path)
    # The card's guess of the cost is what the shape of the network gives.
    assert guessed_seconds_per_edge(model.card) == guessed_seconds_per_edge(card(SMALL)) == model.seconds_per_edge
    assert 2 * guessed_bytes_per_edge(card(SMALL)) == model.bytes_per_edge


def test_weights_in_the_cache_are_found(only_cache):
    assert is_here(card(SMALL))
    assert [c.id for c in list_models() if c.family == "mace" and is_here(c)] == [SMALL]


def test_without_a_network_it_says_where_the_file_is(model, monkeypatch, capsys):
    order = {"do": "load", "weights": None, "device": "cpu", "dtype": "float64"}

    def start(environment, packages, named):
        # The worker that is there already: a new one takes ten seconds.
        model.worker.ask({**order, "address": named["address"]}, {}, 60)

    monkeypatch.setattr(mace, "started", start)
    for model_id, words in {
        "mace-off23-small": ("MACE-OFF23_small.model", "no commercial use"),
        "mace-mpa-0-medium": ("mace-mpa-0-medium.model", "MIT"),
    }.items():
        with pytest.raises(WeightsError) as caught:
            load_predictor(model_id, device="cpu")
        for word in (*words, "--weights", "download failed"):
            assert word in str(caught.value)
        assert f"fetching {model_id} from" in (said := capsys.readouterr().err) and words[1] in said


def test_a_file_of_something_else_is_refused(model, isolated_checkpoint, tmp_path, monkeypatch):
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"not a model")
    with pytest.raises(WeightsError, match=r"broken.model cannot be loaded as mace-mp-0-small.*no model that torch"):
        load_predictor(SMALL, device="cpu", weights=broken)
    torch.save({"weights": torch.zeros(3)}, tmp_path / "state.model")
    order = {"do": "load", "weights": str(tmp_path / "state.model"), "address": "", "device": "cpu", "dtype": "float64"}
    with pytest.raises(WeightsError, match=r"no energy model that mace saved"):
        model.worker.ask(order, {}, 60)

    ended: list[bool] = []
    loaded = SimpleNamespace(facts=model.worker.facts, close=lambda: ended.append(True))
    monkeypatch.setattr(mace, "started", lambda *_: loaded)
    path, _ = isolated_checkpoint("mace", SMALL)
    with pytest.raises(
        WeightsError, match=r"is not mace-mpa-0-medium: it is 3,847,696 parameters instead of 9,063,204"
    ):
        load_predictor("mace-mpa-0-medium", device="cpu", weights=path)
    with pytest.raises(WeightsError, match=r"of cutoff 6 Å instead of 4.5 Å and of 89 elements instead of 10"):
        load_predictor("mace-off23-small", device="cpu", weights=path)
    assert ended == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("model_id", ["mace-mp-0-medium", "mace-mp-0-large", "mace-mpa-0-medium", "mace-omat-0-small"])
def test_the_other_architectures(isolated_checkpoint, model_id):
    path, count = isolated_checkpoint("mace", model_id)
    assert count == card(model_id).n_parameters
    loaded = load_predictor(model_id, device="cpu", dtype="float64", weights=path)
    for atoms in (crystal(), dimer()):
        worst = slope_error(loaded, atoms)
        assert worst < 1e-6
        print(f"\n{model_id}, {atoms.get_chemical_formula()}: F_c off by {worst:.1e}")
    assert loaded.bytes_per_edge == 2 * card(model_id).bytes_per_edge
    loaded.worker.close()
