"""Families that need an optional package: shown as such, refused with the command that installs it, and right where it is there."""

from __future__ import annotations

import sys

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule

import fdcore
from fdcore.cli import main
from fdcore.errors import UnsupportedStructureError, UsageError, WeightsError
from fdcore.models import is_here, list_models, load_predictor

EXTRAS = sorted({c.extra for c in list_models() if c.extra})


@pytest.mark.parametrize("extra", EXTRAS)
def test_without_the_package_the_way_to_it_is_said(extra, monkeypatch, capfd):
    """As if it had never been installed."""
    monkeypatch.setitem(sys.modules, extra, None)
    for card in (c for c in list_models() if c.extra == extra):
        assert not is_here(card)
        with pytest.raises(UsageError, match=f"optional package {extra}") as caught:
            load_predictor(card.id, "cpu")
        assert extra in caught.value.hint and "pip install" in caught.value.hint
        assert main(["models"]) == 0
        row = next(line for line in capfd.readouterr().out.splitlines() if line.startswith(card.id + " "))
        assert row.split()[1:3] == [card.kind, "extra"]


def test_listing_all_models_imports_none_of_the_packages():
    import subprocess

    code = "import sys, fdcore; [fdcore.models.is_here(c) for c in fdcore.list_models()]; "
    code += f"assert not {{'torch', 'fairchem', {', '.join(map(repr, EXTRAS))}}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def chgnet():
    pytest.importorskip("chgnet", reason="the optional extra chgnet is not installed")
    return load_predictor("chgnet-0.3.0", "cpu", "float32")


class TestChgnet:
    def test_the_package_says_the_same(self, chgnet):
        from chgnet.model.dynamics import CHGNetCalculator

        atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
        atoms.rattle(0.1, seed=1)
        (found,) = chgnet.predict_each([atoms])
        atoms.calc = CHGNetCalculator(use_device="cpu")
        assert found.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
        np.testing.assert_allclose(found.forces_driving, atoms.get_forces(), atol=1e-4)
        # Rock salt binds by about 3.4 eV per atom in these settings.
        assert -4.5 < found.energy / len(atoms) < -2.5

    def test_only_crystals_without_lone_atoms(self, chgnet):
        with pytest.raises(UnsupportedStructureError, match="crystals only"):
            chgnet.check(molecule("H2O"))
        lone = bulk("Cu", cubic=True)
        lone.set_cell(3 * lone.cell.array, scale_atoms=False)
        lone += ase.Atoms("O", [[9.0, 9.0, 9.0]])
        lone.set_cell(lone.cell.array * 2)
        with pytest.raises(UnsupportedStructureError, match="1 of the 5 atoms"):
            chgnet.check(lone)

    def test_more_than_a_batch_of_the_package(self, chgnet):
        several = []
        for seed in range(10):
            atoms = bulk("MgO", "rocksalt", a=4.2)
            atoms.rattle(0.05, seed=seed)
            several.append(atoms)
        found = list(chgnet.predict_each(several))
        assert len({round(f.energy, 4) for f in found}) == 10

    def test_its_own_count(self, chgnet):
        count = sum(p.numel() for p in chgnet.module.parameters()) + sum(
            p.numel() for p in chgnet._references.parameters()
        )
        assert count == pytest.approx(fdcore.card("chgnet-0.3.0").n_parameters, rel=0.01)

    def test_a_file_that_is_none(self, tmp_path):
        pytest.importorskip("chgnet", reason="the optional extra chgnet is not installed")
        (tmp_path / "bad.pth.tar").write_bytes(b"no")
        with pytest.raises(WeightsError, match="cannot be loaded"):
            load_predictor("chgnet-0.3.0", "cpu", weights=tmp_path / "bad.pth.tar")


class TestMetatomic:
    @pytest.fixture(autouse=True)
    def _there(self):
        pytest.importorskip("metatomic", reason="the optional extra metatomic is not installed")

    def test_the_package_says_the_same(self, random_checkpoint):
        """Of both forces; its calculator takes the net direct force out as well."""
        from metatomic_ase import MetatomicCalculator

        path = random_checkpoint("metatomic-float64")
        atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
        atoms.rattle(0.1, seed=1)
        (found,) = fdcore.load_model("metatomic", "cpu", "float64", path).evaluate(atoms)
        for forces, direct in ((found.forces_conservative, False), (found.forces_direct, True)):
            atoms.calc = MetatomicCalculator(path, device="cpu", non_conservative="forces" if direct else False)
            assert found.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
            np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-9)
        assert found.force_delta > 0.01

    def test_what_a_file_says_of_itself(self, random_checkpoint):
        model = fdcore.load_model("metatomic", "cpu", "float64", random_checkpoint("metatomic-float64"))
        assert model.card.elements == ("H", "C", "N", "O", "Na", "Cl")
        assert (model.card.cutoff_A, model.card.summary) == (5.0, "pairs")
        with pytest.raises(UsageError, match="exported in float64") as caught:
            fdcore.load_model("metatomic", "cpu", "float32", random_checkpoint("metatomic-float64"))
        assert "--dtype float64" in caught.value.hint

    def test_older_names_and_missing_forces(self, tmp_path):
        import metatomic_weights

        metatomic_weights.save(tmp_path / "old.pt", force="non_conservative_forces")
        model = fdcore.load_model("metatomic", "cpu", "float64", tmp_path / "old.pt")
        assert model.evaluate(molecule("H2O"))[0].force_delta > 0
        metatomic_weights.save(tmp_path / "energy.pt", force=None)
        with pytest.raises(WeightsError, match="gives no non_conservative_force"):
            fdcore.load_model("metatomic", "cpu", "float64", tmp_path / "energy.pt")

    def test_no_file_and_no_model(self, tmp_path):
        with pytest.raises(WeightsError, match="are files") as caught:
            fdcore.load_model("metatomic", "cpu")
        assert "--weights" in caught.value.hint
        (tmp_path / "bad.pt").write_bytes(b"no")
        with pytest.raises(WeightsError, match="cannot be loaded"):
            fdcore.load_model("metatomic", "cpu", weights=tmp_path / "bad.pt")

    def test_scored_from_the_command_line(self, random_checkpoint, tmp_path, capfd):
        import json

        bulk("NaCl", "rocksalt", a=5.6).write(tmp_path / "salt.extxyz")
        path = str(random_checkpoint("metatomic-float32"))
        assert (
            main(["score", str(tmp_path / "salt.extxyz"), "--model", "metatomic", "--weights", path, "--json", "-"])
            == 0
        )
        assert json.loads(capfd.readouterr().out)["results"][0]["formula"] == "NaCl"
