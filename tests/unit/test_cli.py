"""The command line as a user runs it: a process, its exit code, its stdout to the last byte."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule

import fdcore
from fdcore import cli, data, services
from fdcore.cli.output import say_unread
from fdcore.errors import UsageError

EXAMPLES = data.path("examples")


@dataclass(frozen=True)
class Done:
    """What a run left: exit code, and every byte that reached the two descriptors."""

    returncode: int
    stdout: bytes
    stderr: bytes


def fdcore_command(*arguments: str, cwd: Path | None = None) -> Done:
    """Run in this process, whose imports are paid for, with real descriptors: C libraries write to those."""
    kept, here = (os.dup(1), os.dup(2)), Path.cwd()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        try:
            os.chdir(cwd or here)
            with (
                open(os.dup(1), "w", encoding="utf-8") as to_out,
                open(os.dup(2), "w", encoding="utf-8") as to_err,
                contextlib.redirect_stdout(to_out),
                contextlib.redirect_stderr(to_err),
            ):
                try:
                    code = cli.main(arguments)
                except SystemExit as stopped:
                    code = stopped.code
        finally:
            os.chdir(here)
            for descriptor, old in enumerate(kept, start=1):
                os.dup2(old, descriptor)
                os.close(old)
        out.seek(0)
        err.seek(0)
        return Done(int(code or 0), out.read(), err.read())


def fdcore_process(*arguments: str, cwd: Path | None = None, stdin: bytes | None = None) -> Done:
    """Run as a user does."""
    done = subprocess.run(
        [sys.executable, "-m", "fdcore.cli", *arguments], capture_output=True, cwd=cwd, input=stdin, timeout=300
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two good files, one of them with three frames, and a broken one."""
    folder = tmp_path_factory.mktemp("files")
    atoms = bulk("NaCl", "rocksalt", a=5.7, cubic=True)
    frames = []
    for seed in range(3):
        frame = atoms.copy()
        frame.rattle(0.02 * (seed + 1), seed=seed)
        frames.append(frame)
    ase.io.write(folder / "three.extxyz", frames)
    ase.io.write(folder / "salt.cif", frames[1])
    (folder / "broken.cif").write_text("data_x\n_cell_length_a ?\n")
    return folder


@pytest.fixture(scope="module")
def scored(files):
    """One run on all of them."""
    return fdcore_process(
        "score", "three.extxyz", "broken.cif", "salt.cif", "missing.xyz",
        "--json", "-", "--csv", "out.csv", "--extxyz", "out.extxyz", cwd=files,
    )  # fmt: skip


def test_stdout_is_one_json_document_and_nothing_else(scored):
    document = json.loads(scored.stdout)
    assert document["model"] == "fd-orb-small-v1"
    assert [(r["file"], r["index"]) for r in document["results"]] == [
        ("three.extxyz", 0),
        ("three.extxyz", 1),
        ("three.extxyz", 2),
        ("salt.cif", 0),
    ]
    assert {e["file"] for e in document["errors"]} == {"broken.cif", "missing.xyz"}
    assert all(e["hint"] for e in document["errors"])
    assert document["provenance"]["weights_sha256"] == fdcore.card("fd-orb-small-v1").sha256


def test_exit_code_says_that_some_failed(scored):
    assert scored.returncode == 1


def test_numbers_are_those_of_the_package(scored, files):
    results = json.loads(scored.stdout)["results"]
    model = fdcore.load_model()
    for row, atoms in zip(results, ase.io.read(files / "three.extxyz", ":"), strict=False):
        (ev,) = model.evaluate(atoms)
        assert row["force_delta_eV_per_A"] == pytest.approx(ev.force_delta, rel=1e-3)
        np.testing.assert_allclose(row["force_delta_per_atom_eV_per_A"], ev.force_delta_per_atom, rtol=2e-2, atol=1e-4)
        assert row["energy_eV"] == pytest.approx(ev.energy, abs=1e-3)


def test_csv_and_extxyz_agree_with_the_json(scored, files):
    results = json.loads(scored.stdout)["results"]
    rows = list(csv.DictReader(io.StringIO((files / "out.csv").read_text())))
    assert len(rows) == 6
    values = {(r["file"], r["index"]): r["force_delta_eV_per_A"] for r in rows}
    frames = ase.io.read(files / "out.extxyz", ":")
    for row, atoms in zip(results, frames, strict=True):
        index = next(i for f, i in values if f == row["file"] and float(i or -1) == row["index"])
        assert float(values[row["file"], index]) == pytest.approx(row["force_delta_eV_per_A"], rel=1e-9)
        assert atoms.info["force_delta_eV_per_A"] == pytest.approx(row["force_delta_eV_per_A"], abs=1e-7)
        difference = atoms.arrays["forces_direct"] - atoms.arrays["forces_conservative"]
        assert np.sqrt((difference**2).mean()) == pytest.approx(row["force_delta_eV_per_A"], abs=1e-6)


def test_all_good_is_exit_zero_with_a_readable_table(files):
    done = fdcore_command("score", "salt.cif", cwd=files)
    assert done.returncode == 0
    text = done.stdout.decode()
    assert "U_Delta eV/Å" in text
    assert "salt.cif" in text
    assert "Agreement of the two forces" in text


def test_all_failed_is_exit_one_and_still_a_document(files):
    done = fdcore_command("score", "broken.cif", "--json", "-", cwd=files)
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document["results"] == []
    assert len(document["errors"]) == 1


def test_standard_input(files):
    done = fdcore_process("score", "-", "--json", "-", stdin=(files / "salt.cif").read_bytes())
    assert done.returncode == 0
    assert json.loads(done.stdout)["results"][0]["n_atoms"] == 8


def test_json_and_lines_of_it_are_scored_like_the_same_structure(tmp_path):
    atoms = bulk("NaCl", "rocksalt", a=5.7, cubic=True)
    atoms.rattle(0.05, seed=1)
    plain = {key: np.asarray(value).tolist() for key, value in atoms.todict().items()} | {"material_id": "mp-1"}
    ase.io.write(tmp_path / "x.extxyz", atoms)
    (tmp_path / "x.json").write_text(json.dumps(plain))
    (tmp_path / "x.jsonl").write_text(f"{json.dumps(plain)}\n{{broken\n{json.dumps({'structure': plain})}\n")
    done = fdcore_command("score", "x.extxyz", "x.json", "x.jsonl", "--json", "-", cwd=tmp_path)
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert [(r["file"], r["index"]) for r in document["results"]] == [
        ("x.extxyz", 0),
        ("x.json", 0),
        ("x.jsonl", 0),
        ("x.jsonl", 2),
    ]
    deltas = [r["force_delta_eV_per_A"] for r in document["results"]]
    assert deltas[0] > 0 and deltas == pytest.approx([deltas[0]] * 4, rel=1e-4)
    (error,) = document["errors"]
    assert error["file"] == "x.jsonl" and "JSON is broken" in error["error"]


def test_float64_gives_nearly_the_same(files):
    single, double = (
        json.loads(fdcore_command("score", "salt.cif", "--json", "-", "--dtype", t, cwd=files).stdout)["results"][0]
        for t in ("float32", "float64")
    )
    assert single["force_delta_eV_per_A"] == pytest.approx(double["force_delta_eV_per_A"], rel=1e-3)
    assert single["force_delta_eV_per_A"] != double["force_delta_eV_per_A"]


@pytest.fixture
def mixed(tmp_path) -> Path:
    """A molecule between two crystals."""
    atoms = bulk("NaCl", "rocksalt", a=5.7, cubic=True)
    atoms.rattle(0.05, seed=1)
    ase.io.write(tmp_path / "salt.extxyz", atoms)
    ase.io.write(tmp_path / "water.extxyz", molecule("H2O"))
    ase.io.write(tmp_path / "metal.extxyz", bulk("Al", cubic=True))
    return tmp_path


MIXED = ("salt.extxyz", "water.extxyz", "metal.extxyz")


def test_every_structure_is_scored_by_a_model_that_has_seen_its_like(mixed):
    done = fdcore_command("score", *MIXED, "--json", "-", "--csv", "t.csv", "--extxyz", "t.extxyz", cwd=mixed)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    crystals, molecules = "fd-orb-small-v1", "fd-orb-molecules-v1"
    assert document["model"] is None
    assert [(r["file"], r["model"]) for r in document["results"]] == [
        ("salt.extxyz", crystals),
        ("water.extxyz", molecules),
        ("metal.extxyz", crystals),
    ]
    assert [p["model"] for p in document["provenance"]] == [crystals, molecules]
    (ev,) = fdcore.load_model(molecules).evaluate(molecule("H2O"))
    assert document["results"][1]["force_delta_eV_per_A"] == pytest.approx(ev.force_delta, rel=1e-3)
    rows = csv.DictReader(io.StringIO((mixed / "t.csv").read_text()))
    assert {r["file"]: r["model"] for r in rows}["water.extxyz"] == molecules
    frames = ase.io.read(mixed / "t.extxyz", ":")
    assert [a.info["weights_sha256"] for a in frames] == [fdcore.card(a.info["model"]).sha256 for a in frames]
    assert [a.info["model"] for a in frames] == [crystals, molecules, crystals]


def test_the_table_names_the_models_where_there_are_several(mixed):
    done = fdcore_command("score", *MIXED, cwd=mixed)
    lines = {line.split()[0]: line for line in done.stdout.decode().splitlines() if line}
    assert lines["water.extxyz"].endswith("fd-orb-molecules-v1")
    assert lines["salt.extxyz"].endswith("fd-orb-small-v1")
    assert b"U_Delta of different models is not on one scale" in done.stdout


def test_a_named_model_scores_all_of_them(mixed):
    done = fdcore_command("score", *MIXED, "--model", "fd-orb-small-v1", "--json", "-", cwd=mixed)
    document = json.loads(done.stdout)
    assert document["model"] == document["provenance"]["model"] == "fd-orb-small-v1"
    assert {r["model"] for r in document["results"]} == {"fd-orb-small-v1"}
    assert [e["file"] for e in document["errors"]] == []


def test_an_element_that_the_model_does_not_know_is_refused_by_name():
    done = fdcore_command("score", str(EXAMPLES / "MOF-5.cif"), "--json", "-")
    assert done.returncode == 1
    (error,) = json.loads(done.stdout)["errors"]
    assert "C and Zn" in error["error"]
    assert "orb-v3-direct-inf-mpa" in error["hint"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["score"], "FILE"),
        (["score", "x.cif", "--dtype", "float16"], "float16"),
        (["score", "x.cif", "--model", "orb-v9"], "no model 'orb-v9'"),
        (["score", "x.cif", "--model", "orb-v2", "--weights", "none.ckpt"], "no file none.ckpt"),
        (["score", "x.cif", "--json", "/no/such/folder/x.json"], "Nothing can be written"),
        (["score", "x.cif", "--json", "-", "--csv", "-"], "Only one of"),
        (["score", "-", "x.cif"], "cannot be mixed"),
        (["score", "x.cif", "--device", "toaster"], "toaster"),
        (["fly"], "fly"),
    ],
)
def test_wrong_usage_is_exit_two(arguments, says, tmp_path):
    done = fdcore_command(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr.decode()
    assert done.stdout == b""


def test_models_lists_every_model_and_its_state():
    done = fdcore_command("models")
    text = done.stdout.decode()
    assert done.returncode == 0
    assert "fd-orb-small-v1" in text
    assert "orb-d3-xs-v2" in text
    cards = json.loads(fdcore_command("models", "--json", "-").stdout)
    assert cards[0]["here"] is True
    assert {c["kind"] for c in cards} == {"direct", "conservative"}


def test_models_check_proves_the_gradients():
    done = fdcore_command("models", "--check", "fd-orb-small-v1", "--json", "-")
    assert done.returncode == 0
    check = json.loads(done.stdout)
    assert check["passed"]
    assert check["forces_conservative_error"] < 1e-6 * check["forces_conservative_scale"] + 1e-7


def test_a_reader_that_goes_away_is_not_an_error(files):
    done = subprocess.run(
        f"{sys.executable} -m fdcore.cli score three.extxyz | head -1", shell=True, capture_output=True, cwd=files
    )
    assert b"Traceback" not in done.stderr


def test_version():
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0


VERBS = {
    "score": [],
    "md": ["--steps", "2"],
    "report": ["--parts", "symmetry"],
    "screen": ["--workers", "1"],
    "validate": ["--reference", "chgnet"],
    "ensemble": ["--models", "fd-orb-small-v1-s1,fd-orb-small-v1-s2"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_charge_that_the_model_does_not_read_is_told_once(verb, tmp_path, capfd, monkeypatch):
    """The verbs go wherever they go afterwards; no model is loaded."""
    monkeypatch.setattr(services, "load_model", _no_model)
    monkeypatch.setattr("fdcore.cli.screen.screen", _no_model)
    file = str(data.path("examples", "NaCl.cif"))
    more = [*VERBS[verb], *(["--out", str(tmp_path / "out")] if verb == "screen" else [])]
    for charged in (["--charge", "1"], ["--spin", "2"]):
        cli.main([verb, file, *more, "--model", "fd-orb-small-v1", *charged])
        err = capfd.readouterr().err
        assert err.count("not read charge or spin") == 1
        assert re.search(r"^fdcore: fd-orb-small-v1.* (does|do) not read charge or spin$", err, re.MULTILINE)
    cli.main([verb, file, *more, "--model", "fd-orb-small-v1"])
    assert "charge or spin" not in capfd.readouterr().err


def _no_model(*_, **__):
    raise UsageError("No model is loaded here.")


def test_a_model_that_reads_the_charge_is_not_named(capfd):
    given = argparse.Namespace(charge=1, spin=None)
    say_unread(given, ["esen-sm-direct-all-omol"])
    assert capfd.readouterr().err == ""
    say_unread(given, ["esen-sm-direct-all-omol", "fd-orb-small-v1", "fd-orb-molecules-v1"])
    assert capfd.readouterr().err == "fdcore: fd-orb-small-v1, fd-orb-molecules-v1 do not read charge or spin\n"
