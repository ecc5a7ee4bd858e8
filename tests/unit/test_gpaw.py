"""GPAW as a reference: what is asked of it, the client against a fake worker, and (slow) the program itself."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule

from fdcore import gpaw, reference
from fdcore.errors import BuildError, ComputeError, FdcoreError, UnconvergedError, UnsupportedStructureError, UsageError
from fdcore.gpaw import Gpaw, GpawSettings, asked, boxed, kpoint_grid, starting_moments
from fdcore.models import envs
from fdcore.models.isolated import Worker
from fdcore.records import Structure

FAKE = """
import numpy as np
from serve import Failed, loop, streams

given = {}

def load(order, arrays):
    given.update(order)
    return {"gpaw": "26.7.0", "libxc": "5.2.3"}, {}

def label(order, arrays):
    if 79 in arrays["numbers"]:
        raise Failed("convergence", f"The density did not become self-consistent within {given['max_iterations']} iterations.")
    if 92 in arrays["numbers"]:
        raise FileNotFoundError("Could not find required PAW dataset file U.PBE.gz")
    print("GPAW prints a banner")
    forces = arrays["positions"] - arrays["positions"].mean(axis=0)
    return {"iterations": 9, "moment": float(arrays["moments"].sum())}, {
        "energy": np.array([-given["cutoff_eV"]]), "forces_reference": forces}

incoming, outgoing = streams()
loop(incoming, outgoing, {"load": load, "label": label}, packages=("numpy",))
"""


def structure(atoms: ase.Atoms, **more) -> Structure:
    made = Structure.from_atoms(atoms)
    return Structure(made.numbers, made.positions, made.cell, made.pbc, **more)


@pytest.fixture
def fake(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(FAKE)
    settings = GpawSettings(cutoff_eV=650.0)
    worker = Worker(Path(sys.executable), script, asdict(settings), {"numpy": np.__version__}, called="GPAW")
    yield Gpaw(settings, worker)
    worker.close()


def test_a_label_and_what_was_decided_for_it(fake):
    water = structure(molecule("H2O"))
    energy, forces, details = fake.label(water)
    assert energy == -650.0
    np.testing.assert_allclose(forces, water.positions - water.positions.mean(axis=0), atol=1e-12)
    assert details["kpoints"] == [1, 1, 1] and details["spin_polarised"] is False and details["iterations"] == 9
    assert details["net_force_eV_per_A"] == 0.0 and details["libxc"] == "5.2.3"
    assert min(details["box_A"]) >= 10.0


def test_an_unconverged_density_is_a_failure_and_never_a_number(fake):
    with pytest.raises(UnconvergedError, match=r"Au: .*within 200 iterations.*smearing_eV or max_iterations"):
        fake.label(structure(bulk("Au")))
    assert fake.label(structure(molecule("H2O")))[0] == -650.0, "the process goes on"


def test_other_failures_say_so(fake):
    with pytest.raises(ComputeError, match="GPAW failed: FileNotFoundError: Could not find required PAW dataset"):
        fake.label(structure(bulk("U", "fcc", a=4.5)))


def test_truths_go_on_after_a_failure(fake):
    found = reference.Reference(
        "fake", "Fake", "", "", "", lambda: None, answering=lambda _: lambda s: reference.Truth(*fake.label(s))
    )
    gold, water = structure(bulk("Au")), structure(molecule("H2O"))
    first, second = reference.truths(found, [gold, water])
    assert isinstance(first, UnconvergedError)
    assert isinstance(second, reference.Truth) and second.details["iterations"] == 9


def test_nothing_builds_where_libraries_are_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("FDCORE_ENVIRONMENTS", str(tmp_path))
    monkeypatch.setattr(envs, "_links", lambda compiler, library: library.name != "xc")
    with pytest.raises(BuildError, match=r"xc\.h cannot be found.*apt-get install libxc-dev"):
        envs.python_of("gpaw", print, tmp_path)
    with pytest.raises(UsageError, match=r"not installed.*xc\.h.*apt-get install libxc-dev"):
        reference.reference("gpaw")
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(BuildError, match=r"no C compiler.*build-essential"):
        envs.python_of("gpaw", print, tmp_path)
    assert not list(tmp_path.glob("gpaw-*"))


def test_the_environment_is_pinned_as_the_client_expects():
    lines = (envs.HERE / "gpaw" / "requirements.txt").read_text().splitlines()
    assert f"gpaw=={gpaw.VERSION}" in lines and f"gpaw-data=={gpaw.DATA_VERSION}" in lines
    assert "://" not in "\n".join(lines)
    needs = envs.needs("gpaw")
    assert not needs.torch and {library.debian for library in needs.libraries} == {"libxc-dev", "libopenblas-dev"}
    assert envs.needs("eqv2").torch


# ---- what is asked -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "density", "n"), [(5.64, 3.5, 4), (4.05, 5.0, 8), (10.54, 5.0, 3), (30.0, 3.5, 1), (2 * np.pi, 4.0, 4)]
)
def test_grid_of_kpoints(a, density, n):
    """n a / 2 pi >= density, and one less would not do."""
    assert kpoint_grid(a * np.eye(3), density).tolist() == [n] * 3
    assert n * a / (2 * np.pi) >= density - 1e-6 or n == 1
    assert (n - 1) * a / (2 * np.pi) < density


def test_grid_of_a_skewed_cell_follows_its_reciprocal_lengths():
    cell = np.array([[3.0, 0, 0], [2.9, 3.0, 0], [0, 0, 9.0]])
    reciprocal = 2 * np.pi * np.linalg.norm(np.linalg.inv(cell).T, axis=1)
    assert kpoint_grid(cell, 3.5).tolist() == np.ceil(3.5 * reciprocal).astype(int).tolist()


def test_metals_get_the_denser_grid():
    settings = GpawSettings()
    assert asked(structure(bulk("Al", cubic=True)), settings).grid.tolist() == [8] * 3
    assert asked(structure(bulk("MgO", "rocksalt", a=4.05, cubic=True)), settings).grid.tolist() == [6] * 3


def test_a_molecule_stands_in_vacuum_on_every_side():
    positions, cell = boxed(molecule("C6H6").positions, 5.0)
    assert positions.min() == pytest.approx(5.0)
    np.testing.assert_allclose(np.diag(cell) - positions.max(axis=0), 5.0)
    np.testing.assert_allclose(np.diff(positions, axis=0), np.diff(molecule("C6H6").positions, axis=0), atol=1e-12)


@pytest.mark.parametrize(
    ("atoms", "more", "spin", "polarised", "total", "fixed"),
    [
        (molecule("H2O"), {}, "auto", False, 0, False),
        (molecule("H2O"), {}, "on", True, 0, False),
        (molecule("OH"), {}, "auto", True, 1, True),
        (molecule("OH"), {}, "off", False, 0, False),
        (molecule("O2"), {"spin": 3}, "auto", True, 2, True),
        (molecule("O2"), {"spin": 1}, "auto", False, 0, False),
        (bulk("Fe", cubic=True), {}, "auto", True, 10, False),
        (bulk("Al"), {}, "auto", True, 1, False),
        (bulk("Al", cubic=True), {}, "auto", False, 0, False),
    ],
)
def test_spin_is_off_unless_there_is_a_reason(atoms, more, spin, polarised, total, fixed):
    moments, on, kept = starting_moments(structure(atoms, **more), spin)
    assert (on, kept) == (polarised, fixed)
    assert moments.sum() == pytest.approx(total) and len(moments) == len(atoms)


@pytest.mark.parametrize(
    ("more", "words"), [({"charge": 1}, "charge of 1 e"), ({"spin": 2}, "cannot have the multiplicity 2")]
)
def test_what_it_cannot_do_is_refused_before_it_runs(more, words):
    with pytest.raises(UnsupportedStructureError, match=words):
        asked(structure(molecule("H2O"), **more), GpawSettings())


@pytest.mark.parametrize(
    "given",
    [
        {"cutoff_eV": 20},
        {"cutoff_eV": "many"},
        {"xc": "B3LYP"},
        {"spin": "up"},
        {"max_iterations": 2.5},
        {"vacuum_A": True},
    ],
)
def test_settings_out_of_range(given):
    with pytest.raises(UsageError):
        GpawSettings(**given)


# ---- the program itself --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_pbe_of_water_and_salt():
    """Forces are the derivative of the energy, the net force is small at 700 eV, and an unconverged density is told. The bond of
    water under PBE is 0.970 Å and its angle 104.2 degrees (e.g. Xu and Goddard 2004)."""
    problem = envs.obstacle("gpaw")
    if problem is not None:
        pytest.fail(str(problem))
    found = reference.reference("gpaw")
    angle, length = np.radians(104.2) / 2, 0.970
    arm = length * np.array([0, np.sin(angle), -np.cos(angle)])
    relaxed = np.array([[0, 0, 0], arm, arm * [1, -1, 1]])
    displacement = np.array([[0, 0, 0], [0, 0.01, 0], [0, 0, 0]])
    water = structure(ase.Atoms("OH2", relaxed))
    moved = [structure(ase.Atoms("OH2", relaxed + sign * displacement)) for sign in (-1, 1)]
    at, low, high = (t for t in reference.truths(found, [water, *moved]))
    for t in (at, low, high):
        assert not isinstance(t, FdcoreError)
        assert t.details["net_force_eV_per_A"] < 0.01
    assert np.abs(at.forces_reference).max() < 0.15, "near the minimum of PBE"
    slope = (low.energy - high.energy) / 2
    assert slope == pytest.approx(float((at.forces_reference * displacement).sum()), abs=2e-3)
    salt = bulk("NaCl", "rocksalt", a=5.64)
    salt.positions[0] += [0.05, 0.02, 0.0]
    [t] = reference.truths(reference.reference("gpaw", {"cutoff_eV": 400.0}), [structure(salt)])
    assert not isinstance(t, FdcoreError) and t.details["spin_polarised"] is False
    np.testing.assert_allclose(t.forces_reference[0], -t.forces_reference[1], atol=0.01)
    [t] = reference.truths(reference.reference("gpaw", {"max_iterations": 3}), [water])
    assert isinstance(t, UnconvergedError)
