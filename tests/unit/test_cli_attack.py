"""`fdcore attack` as a person types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule

from fdcore import adversarial_files
from fdcore import reference as references
from fdcore.cli import main
from fdcore.cli.parser import DFT_SETS, build_parser
from fdcore.services import adversarial as attacks
from fdcore.services import runs
from fdcore.spec import ModelChoice
from fdcore.store.series import read_table
from fdcore.tasks.attack import AttackParameters

ROOT = Path(__file__).parents[2]
QUICK = ["--device", "cpu", "--steps", "6", "--starts", "2", "--count", "3", "--rise", "1.5", "--relax-fmax", "none"]


@pytest.fixture
def salt(tmp_path):
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.rattle(0.05, seed=3)
    path = tmp_path / "salt.extxyz"
    ase.io.write(path, atoms)
    return path


def test_attack_writes_every_format_and_a_document(salt, tmp_path, capfd):
    places = {name: tmp_path / f"d.{name}" for name in ("extxyz", "db", "cif", "csv", "zip", "json", "parents")}
    options = [f"--{n if n != 'extxyz' else 'out'}" for n in places]
    arguments = [x for pair in zip(options, map(str, places.values()), strict=True) for x in pair]
    code = main(
        ["attack", str(salt), *QUICK, *arguments, "--vasp", str(tmp_path / "vasp"), "--dft-set", "MatPESStaticSet"]
    )
    assert code == 0
    printed = capfd.readouterr()
    assert "3 structures on which the two forces disagree" in printed.out
    document = json.loads(places["json"].read_text())
    assert document["spec"]["parameters"]["count"] == 3 and len(document["results"]) == 3
    assert document["provenance"]["seed"] == 0
    [parent] = ase.io.read(places["parents"], ":", format="extxyz")
    assert parent.info["model_energy_eV"] == document["origins"][0]["model_energy_eV"]
    frames = ase.io.read(places["extxyz"], ":")
    assert {a.info["origin_energy_eV"] for a in frames} == {parent.info["model_energy_eV"]}
    assert [a.info["id"] for a in frames] == [r["id"] for r in document["results"]]
    assert all(p.stat().st_size > 100 for p in places.values())
    folders = sorted(p.name for p in (tmp_path / "vasp").iterdir())
    assert folders == sorted(r["id"] for r in document["results"])
    # Unlike the default set, MatPES has a cutoff of 680 eV and KSPACING.
    incar = (tmp_path / "vasp" / folders[0] / "INCAR").read_text()
    assert "680" in incar and "KSPACING" in incar and "METAGGA" not in incar


def test_a_molecule_is_attacked_with_a_model_of_molecules(tmp_path, capfd):
    ase.io.write(tmp_path / "water.extxyz", molecule("H2O"))
    assert main(["attack", str(tmp_path / "water.extxyz"), *QUICK, "--json", "-"]) == 0
    printed = capfd.readouterr()
    assert json.loads(printed.out)["spec"]["model"]["id"] == "fd-orb-molecules-v1"
    assert "model fd-orb-molecules-v1, chosen for these structures" in printed.err


def test_json_to_standard_output_is_one_document(salt, capfd):
    assert main(["attack", str(salt), *QUICK, "--json", "-"]) == 0
    assert len(json.loads(capfd.readouterr().out)["results"]) == 3


def test_interrupted_it_goes_on_from_its_record_and_finds_the_same(salt, tmp_path, capfd):
    """Ctrl-C, then the same command: the dataset is that of a run nobody touched."""
    asked = ["attack", str(salt), *QUICK, "--steps", "60", "--patience", "60"]
    kept = ["--record", str(tmp_path / "kept"), "--json", "-"]
    command = [sys.executable, "-P", "-m", "fdcore.cli", *asked, "--record", "kept"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 120
    while len(read_table(tmp_path / "kept" / "1", "steps").get("step", ())) < 4:
        assert time.monotonic() < end and process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on from here" in said, said
    assert "visited by" in out and "()" not in out
    before = len(read_table(tmp_path / "kept" / "1", "steps")["step"])
    assert main([*asked, *kept]) == 0
    again = json.loads(capfd.readouterr().out)
    assert main([*asked, "--json", "-"]) == 0
    whole = json.loads(capfd.readouterr().out)
    assert 4 <= before < whole["visited"] == again["visited"]
    assert again["results"] == whole["results"] and again["starts"] == whole["starts"]
    capfd.readouterr()
    assert main([*asked, "--seed", "1", *kept]) == 2
    assert "record of another run" in capfd.readouterr().err


def test_ended_by_a_signal_it_keeps_what_it_made(salt, tmp_path):
    """SIGTERM, output to a pipe, no --record: the dataset so far is in the file that was named."""
    asked = [
        "attack",
        str(salt),
        *QUICK,
        "--steps",
        "2000",
        "--patience",
        "2000",
        "--rise",
        "1.0",
        "--out",
        "kept.extxyz",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "fdcore.cli", *asked],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 400

    def steps() -> int:
        folders = list(tmp_path.glob("fdcore-*/1"))
        return len(read_table(folders[0], "steps").get("step", ())) if folders else 0

    while steps() < 12:
        assert time.monotonic() < end and process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.terminate()
    out, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "what was made is kept" in said and "visited by" in out
    frames = ase.io.read(tmp_path / "kept.extxyz", ":")
    assert frames and all(a.info["force_delta_eV_per_A"] > 0 for a in frames)
    assert not list(tmp_path.glob("fdcore-*"))


def test_one_structure_is_shown_in_words(salt, capfd):
    assert main(["validate", str(salt), "--device", "cpu", "--reference", "ase.calculators.lj:LennardJones"]) == 0
    printed = capfd.readouterr().out
    assert "1 structure was compared with ase.calculators.lj:LennardJones" in printed and "needs 3 or more" in printed
    assert "salt.extxyz, Na4Cl4: U_Delta " in printed and "error of F_nc" in printed
    assert "–" not in printed
    # What was named here is no name to offer afterwards.
    assert main(["validate", str(salt), "--reference", "gfn3"]) == 2
    assert "LennardJones" not in capfd.readouterr().err


def test_reference_named_on_the_command_line(salt, tmp_path, capfd):
    out = tmp_path / "d.extxyz"
    code = main(
        [
            "attack",
            str(salt),
            *QUICK,
            "--reference",
            "ase.calculators.lj:LennardJones",
            "--out",
            str(out),
            "--json",
            "-",
        ]
    )
    assert code == 0
    document = json.loads(capfd.readouterr().out)
    assert document["reference"]["bands"][0]["n"] >= 3
    assert all(r["error_conservative_eV_per_A"] > 0 for r in document["results"])
    # The labels are those of the reference.
    frames = ase.io.read(out, ":")
    assert all("forces" in a.calc.results for a in frames)


def test_reference_that_cannot_be_made_leaves_the_dataset(salt, tmp_path, capfd, monkeypatch):
    (tmp_path / "broken_refs.py").write_text("def broken():\n    raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    named, out = ["--reference", "broken_refs:broken"], tmp_path / "kept.extxyz"
    assert main(["attack", str(salt), *QUICK, *named, "--out", str(out)]) == 1
    printed = capfd.readouterr()
    assert len(ase.io.read(out, ":")) == 3 and "3 structures on which" in printed.out
    assert "could not be made (RuntimeError: no licence)" in printed.err and "Traceback" not in printed.err
    assert main(["validate", str(salt), *named, "--device", "cpu"]) == 1
    assert "no licence" in capfd.readouterr().err


def test_reference_that_fails_alike_is_told_once(salt, capfd, monkeypatch):
    class Strict:
        def get_potential_energy(self, atoms, **_):
            raise KeyError("Na")

    monkeypatch.setitem(references.REFERENCES, "strict", references.Reference("strict", "Strict", "", "", "", Strict))
    assert main(["attack", str(salt), *QUICK, "--reference", "strict"]) == 1
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("failed:")]
    assert len(said) == 1 and " structures: Strict failed on Cl4Na4" in said[0].replace("Na4Cl4", "Cl4Na4")


@pytest.fixture
def water(tmp_path):
    path = tmp_path / "water.xyz"
    ase.io.write(path, molecule("H2O"))
    return path


def test_molecules_are_left_out_of_crystal_files(salt, water, tmp_path, capfd):
    asked = ["attack", str(salt), str(water), *QUICK, "--rise", "1.0", "--count", "4", "--starts", "4"]
    places = {n: tmp_path / f"d.{n}" for n in ("cif", "zip", "json")}
    files = [x for n, path in places.items() for x in (f"--{n}", str(path))]
    assert main([*asked, *files, "--vasp", str(tmp_path / "vasp")]) == 1
    assert "H2O is a molecule: left out" in capfd.readouterr().err
    document = json.loads(places["json"].read_text())
    # Both files give as many.
    assert sorted(Path(r["parent"]).stem for r in document["results"]) == ["salt", "salt", "water", "water"]
    assert "is a molecule" in document["errors"][0]["error"] and document["without"] == []
    assert len(list((tmp_path / "vasp").iterdir())) == len(ase.io.read(places["cif"], ":")) == 2
    alone = ["attack", str(water), *QUICK, "--rise", "1.0", "--cif", str(tmp_path / "none.cif")]
    assert main(alone) == 1
    assert "nothing was written for --cif" in capfd.readouterr().err and not (tmp_path / "none.cif").exists()


def test_only_crystals_are_strained(salt, water, tmp_path, capfd):
    out = tmp_path / "d.extxyz"
    assert main(["attack", str(salt), str(water), *QUICK, "--strain", "--out", str(out)]) == 1
    said = capfd.readouterr().err
    assert "water.xyz" in said and "Only a crystal has a cell that can be strained" in said
    assert {Path(a.info["parent"]).name for a in ase.io.read(out, ":")} == {"salt.extxyz"}


def test_no_structure_is_no_file(salt, tmp_path, capfd):
    out = tmp_path / "d.extxyz"
    assert main(["attack", str(salt), *QUICK, "--rise", "500", "--steps", "1", "--out", str(out)]) == 1
    assert "nothing was written for --out" in capfd.readouterr().err and not out.exists()


def test_labels_come_back(salt, tmp_path, capfd):
    out, labelled = tmp_path / "d.extxyz", tmp_path / "labelled.extxyz"
    assert main(["attack", str(salt), *QUICK, "--out", str(out)]) == 0
    frames = ase.io.read(out, ":")
    from ase.calculators.singlepoint import SinglePointCalculator

    made = []
    for atoms in frames:
        fresh = atoms.copy()
        forces = fresh.arrays["forces_conservative"].copy()
        for name in ("forces_direct", "forces_conservative", "force_delta_per_atom"):
            del fresh.arrays[name]
        fresh.info = {}
        fresh.calc = SinglePointCalculator(fresh, energy=-1.0, forces=forces)
        made.append(fresh)
    ase.io.write(labelled, made)
    capfd.readouterr()
    assert main(["attack", str(salt), *QUICK, "--labels", str(labelled), "--json", "-"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["reference"]["bands"][0]["n"] == 3
    # Labelled with F_c: its error is rounding, and that of F_nc is U_Delta.
    for row in document["results"]:
        assert row["error_conservative_eV_per_A"] < 2e-3
        assert row["error_direct_eV_per_A"] == pytest.approx(row["force_delta_eV_per_A"], rel=0.02)
    assert main(["validate", str(labelled), "--json", "-", "--device", "cpu"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert len(found["results"]) == 3 and found["results"][0]["error_conservative_eV_per_A"] < 2e-3
    for atoms in made:
        atoms.positions[0] += 0.3
    ase.io.write(labelled, made)
    assert main(["attack", str(salt), *QUICK, "--labels", str(labelled)]) == 1
    assert "None of its frames" in capfd.readouterr().err


def test_wrong_usage_is_known_before_anything_runs(salt, tmp_path, capfd):
    for options, words in (
        (["--reference", "dance"], "no reference"),
        (["--reference", "lj", "--labels", "x.extxyz"], "Give one of them"),
        (["--reference", "builtins:dict"], "has no get_potential_energy"),
        (["--reference", "no.module:Thing"], "cannot be imported"),
        (["--db", "-"], "needs a path"),
        (["--out", "-", "--json", "-"], "Only one document"),
        (["--closest", "3"], "closest"),
        (["--vasp", str(tmp_path)], "exists already"),
        (["--out", str(tmp_path / "no" / "x.extxyz")], "Nothing can be written"),
    ):
        assert main(["attack", str(salt), *options]) == 2
        assert words in capfd.readouterr().err


def test_every_parameter_has_an_option_and_repeats_itself():
    assert set(attacks.flags()) == set(AttackParameters.__dataclass_fields__)
    assert tuple(adversarial_files.DFT_SETS) == DFT_SETS
    given = {"alpha": 0.01, "count": 7, "strain": True, "relax_fmax_eV_per_A": None, "starts": 9}
    spec = runs.spec_of("attack", [], ModelChoice("fd-orb-small-v1", "float64"), attacks.parameters_of(given), seed=4)
    line = attacks.command_line(["a b.cif"], spec).split()
    assert line[:2] == ["fdcore", "attack"]
    parsed = build_parser().parse_args(["attack", "x.cif", *line[4:]])
    assert (parsed.alpha, parsed.count, parsed.strain, parsed.relax_fmax, parsed.starts) == (0.01, 7, True, None, 9)
    assert (parsed.seed, parsed.dtype, parsed.out) == (4, "float64", "dataset.extxyz")


def test_single_precision_is_enough_to_find_the_same(salt, capfd):
    found = []
    for dtype in ("float32", "float64"):
        assert main(["attack", str(salt), *QUICK, "--steps", "2", "--dtype", dtype, "--json", "-"]) == 0
        document = json.loads(capfd.readouterr().out)
        found.append([s["force_delta_eV_per_A"][-1] for s in document["starts"]])
    np.testing.assert_allclose(found[0], found[1], rtol=0.02)
