"""`fdcore label`: from structures to labelled files, and from labelled files to structures."""

from __future__ import annotations

import json
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule

from fdcore import reference
from fdcore.cli import main

CORPUS = Path(__file__).parents[1] / "corpus"


@pytest.fixture
def dataset(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(3):
        atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
        atoms.positions += rng.normal(scale=0.05, size=(4, 3))
        frames.append(atoms)
    ase.io.write(tmp_path / "set.extxyz", frames)
    return tmp_path / "set.extxyz"


@pytest.fixture(autouse=True)
def _references(monkeypatch):
    monkeypatch.setattr(reference, "REFERENCES", dict(reference.REFERENCES))


LJ = "ase.calculators.lj:LennardJones"


def test_from_a_reference_to_files_and_back(dataset, tmp_path, capfd):
    out, table = tmp_path / "labelled.extxyz", tmp_path / "labelled.db"
    assert main(["label", str(dataset), "--reference", LJ, "--out", str(out)]) == 0
    assert "3 of 3 structures labelled" in capfd.readouterr().out
    for atoms in ase.io.read(out, index=":"):
        from ase.calculators.lj import LennardJones

        own = atoms.copy()
        own.calc = LennardJones()
        np.testing.assert_allclose(atoms.get_forces(), own.get_forces(), atol=1e-6)
        assert atoms.info["label_reference"] == LJ
    # Labels of a file, by content, to the structures without; and as a database.
    assert main(["label", str(dataset), "--from", str(out), "--out", str(table), "--json", "-"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert len(document["results"]) == 3 and document["unlabelled"] == [] and document["errors"] == []
    assert len(document["matching"]["matches"]) == 3 and document["methods"] == [
        f"{LJ} {reference.register(LJ).version}".strip()
    ]
    assert main(["label", str(table)]) == 0, "labels that a file brings along"


def test_half_labelled(dataset, tmp_path, capfd):
    frames = ase.io.read(dataset, index=":")
    ase.io.write(tmp_path / "one.extxyz", frames[1])
    assert main(["label", str(tmp_path / "one.extxyz"), "--reference", LJ, "--out", str(tmp_path / "l.extxyz")]) == 0
    rest, inputs = tmp_path / "rest.extxyz", tmp_path / "vasp"
    argv = [
        "label",
        str(dataset),
        "--from",
        str(tmp_path / "l.extxyz"),
        "--unlabelled",
        str(rest),
        "--vasp-inputs",
        str(inputs),
    ]
    assert main(argv) == 1
    assert "1 of 3 structures labelled, 0 failed, 2 without" in capfd.readouterr().out
    assert len(ase.io.read(rest, index=":")) == 2
    assert len(list(inputs.glob("*/POSCAR"))) == 2
    # What is there is not computed again.
    assert main(["label", str(dataset), "--from", str(tmp_path / "l.extxyz"), "--reference", LJ, "--json", "-"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["spec"]["n_structures"] == 2 and len(document["results"]) == 3


def test_vasp_outputs_label_their_own_structures(tmp_path, capfd):
    frames = ase.io.read(CORPUS / "good" / "vasprun_MgCl2.xml", index=":", format="vasp-xml")
    for atoms in frames:
        atoms.calc = None
    ase.io.write(tmp_path / "set.extxyz", frames)
    for name in ("vasprun_MgCl2.xml", "OUTCAR_MgCl2"):
        argv = ["label", str(tmp_path / "set.extxyz"), "--from", str(CORPUS / "good" / name), "--json", "-"]
        assert main(argv) == 0
        document = json.loads(capfd.readouterr().out)
        assert [r["energy_reference_eV"] for r in document["results"]] == [-8.91234567, -9.01234567]
        assert all(0 <= m["distance_A"] < 2e-5 for m in document["matching"]["matches"])
        assert document["results"][0]["provenance"]["reference"] == "VASP"
    argv = ["label", str(tmp_path / "set.extxyz"), "--from", str(CORPUS / "good" / "OUTCAR_unconverged"), "--json", "-"]
    assert main(argv) == 1
    read = capfd.readouterr()
    document = json.loads(read.out)
    assert len(document["results"]) == 1 and len(document["unlabelled"]) == 1
    assert "did not become self-consistent" in read.err


def test_a_failed_label_is_told(dataset, tmp_path, capfd):
    (tmp_path / "moody.py").write_text(
        "from ase.calculators.lj import LennardJones\n\n\nclass Moody(LennardJones):\n"
        "    def calculate(self, atoms=None, *rest):\n"
        "        if len(atoms) == 3:\n            raise RuntimeError('SCF did not converge')\n        super().calculate(atoms, *rest)\n"
    )
    import sys

    sys.path.insert(0, str(tmp_path))
    ase.io.write(tmp_path / "water.xyz", molecule("H2O"))
    argv = ["label", str(tmp_path / "water.xyz"), str(dataset), "--reference", "moody:Moody", "--json", "-"]
    assert main(argv) == 1
    read = capfd.readouterr()
    document = json.loads(read.out)
    assert len(document["results"]) == 3 and "SCF did not converge" in document["errors"][0]["error"]
    assert "failed: " in read.err
    sys.path.remove(str(tmp_path))


def test_different_methods_are_told(dataset, tmp_path, capfd):
    frames = ase.io.read(dataset, index=":")
    ase.io.write(tmp_path / "one.extxyz", frames[0])
    assert main(["label", str(tmp_path / "one.extxyz"), "--reference", LJ, "--out", str(tmp_path / "l.extxyz")]) == 0
    other = "ase.calculators.morse:MorsePotential"
    assert main(["label", str(dataset), "--from", str(tmp_path / "l.extxyz"), "--reference", other]) == 0
    assert "of different methods" in capfd.readouterr().err
    assert main(["label", str(tmp_path / "l.extxyz"), "--reference", other, "--again"]) == 0
    read = capfd.readouterr()
    assert other in read.out and LJ not in read.out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--reference", "dance"], "no reference 'dance'"),
        (["--reference", "gfn2", "--set", "cutoff_eV=3"], "has no setting"),
        (["--reference", "gfn2", "--set", "cutoff"], "is no setting"),
        (["--set", "a=1"], "Name one with --reference"),
        (["--reorder"], "Name the files with --from"),
        (["--json", "-", "--out", "-"], "Only one document"),
        (["--out", "/no/such/folder/x.extxyz"], "Nothing can be written"),
    ],
)
def test_wrong_usage(dataset, argv, words, capfd):
    assert main(["label", str(dataset), *argv]) == 2
    assert words in capfd.readouterr().err


def test_a_record_goes_on(dataset, tmp_path, capfd):
    argv = ["label", str(dataset), "--reference", LJ, "--record", str(tmp_path / "kept"), "--json", "-"]
    assert main(argv) == 0
    first = json.loads(capfd.readouterr().out)
    # The time of making has seconds.
    time.sleep(1.1)
    assert main(argv) == 0
    again = json.loads(capfd.readouterr().out)
    assert again["results"] == first["results"], "not computed again: the same time of making"
