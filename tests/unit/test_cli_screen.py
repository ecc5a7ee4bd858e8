"""`fdcore screen` as a person gives it: several processes, broken files, interruptions, and a second command that joins."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from ase.build import bulk

from fdcore import services
from fdcore.cli import main
from fdcore.records import Score
from fdcore.screening.chunks import list_chunks
from fdcore.screening.scoring import How
from fdcore.screening.screen import Order, screen

ROOT = Path(__file__).parents[2]
TABLES = ("results.parquet", "results.csv")


def crystals(folder: Path, count: int, seed: int = 0) -> Path:
    """Half of them a file each, half of them frames of one."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    frames = []
    for k in range(count):
        formula, a = (("NaCl", 5.64), ("MgO", 4.21), ("LiF", 4.03))[k % 3]
        atoms = bulk(formula, "rocksalt", a=a) * (1 + k % 2, 1, 1)
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        if k % 2:
            frames.append(atoms)
        else:
            ase.io.write(folder / f"{k:04d}.cif", atoms)
    ase.io.write(folder / "frames.extxyz", frames)
    return folder


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "fdcore.cli", "screen", *map(str, words)]


def family(pid: int) -> list[int]:
    """A process and all below it."""
    below = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [pid, *(p for child in below for p in family(int(child)))]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = crystals(tmp_path_factory.mktemp("screened") / "in", 36)
    (folder / "broken.cif").write_text("data_x\n_cell_length_a 3\nloop_\n_atom_site_label\n")
    ase.io.write(folder / "gold.cif", bulk("Au", a=4.08))
    return folder


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory) -> Path:
    """Where an undisturbed screening has put its results."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    done = subprocess.run(
        command(inputs, "--out", out, "--workers", 2, "--chunk", 6, "--check", 0.2), capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert "36 scored, 2 failed" in done.stdout and "failed: 1 x" in done.stderr
    return out


def test_every_structure_has_its_row(inputs, undisturbed):
    table = pd.read_csv(undisturbed / "results.csv")
    assert len(table) == 38 and pq.read_table(undisturbed / "results.parquet").num_rows == 38
    failed = table[table["verdict"] == "failed"].set_index("file")
    assert set(failed.index) == {"broken.cif", "gold.cif"} and "Au" in failed.loc["gold.cif", "error"]
    assert failed["error"].str.len().min() > 10 and failed["hint"].notna().all()
    model = services.load_model("fd-orb-small-v1", "cpu")
    answers = [
        a
        for a in services.score(model, services.read_paths([str(inputs / "frames.extxyz")]).structures)
        if isinstance(a, Score)
    ]
    frames = table[table["file"] == "frames.extxyz"].sort_values("index")
    assert list(frames["index"]) == list(range(18))
    np.testing.assert_allclose(
        frames["force_delta_eV_per_A"], [a.evaluation.force_delta for a in answers], rtol=2e-4, atol=1e-6
    )
    assert list(frames["verdict"]) == [a.verdict.level for a in answers]
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert (summary["complete"], summary["scored"], summary["failed"]) == (True, 36, 2)
    assert summary["worst"][0]["force_delta_eV_per_A"] == pytest.approx(table["force_delta_eV_per_A"].max())
    checked = table["alone_difference_eV_per_A"].dropna()
    assert len(checked) == summary["checked_alone"] > 0
    assert summary["largest_alone_difference_eV_per_A"] == pytest.approx(checked.max(), abs=1e-12) and checked.max() < 1e-5  # fmt: skip


def test_killed_at_any_moment_it_ends_in_the_same_bytes(inputs, undisturbed, tmp_path):
    out = tmp_path / "out"
    words = command(inputs, "--out", out, "--workers", 2, "--chunk", 6, "--check", 0.2)
    for least in (1, 3, 5):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        # In the middle of its work: some parts are there, more than at the last time.
        while len(list(out.glob("parts/*/*.parquet"))) < least and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.02)
        for pid in reversed(family(process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    left = {p.name: p.stat().st_mtime_ns for p in out.glob("parts/*/*.parquet")}
    assert left and not (out / "results.csv").exists()
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    for name in TABLES:
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes()
    again = {p.name: p.stat().st_mtime_ns for p in out.glob("parts/*/*.parquet")}
    assert {name: again[name] for name in left} == left, "what was done is not done again"


def test_one_process_that_is_killed_is_replaced(inputs, undisturbed, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(inputs, "--out", out, "--workers", 1, "--chunk", 6, "--check", 0.2),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 120
    while not list(out.glob("parts/*/*.parquet")):
        assert time.monotonic() < until
        time.sleep(0.02)
    worker = next(p for p in family(process.pid)[1:] if b"screening.process" in Path(f"/proc/{p}/cmdline").read_bytes())
    os.kill(worker, signal.SIGKILL)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 1, errors
    assert (out / "results.csv").read_bytes() == (undisturbed / "results.csv").read_bytes()


def test_new_files_are_added_and_the_others_kept(tmp_path, capfd):
    folder, out = crystals(tmp_path / "in", 6), tmp_path / "out"
    assert main(["screen", str(folder), "--out", str(out), "--workers", "1", "--json", "-"]) == 0
    assert json.loads(capfd.readouterr().out)["scored"] == 6
    crystals(folder, 10, seed=1)
    # Files of the first are written anew: other content, other rows.
    assert main(["screen", str(folder), "--out", str(out), "--workers", "1", "--json", "-"]) == 0
    summary = json.loads(capfd.readouterr().out)
    assert summary["scored"] == 10 and len(pd.read_csv(out / "results.csv")) == 10
    assert main(["screen", str(folder), "--out", str(out), "--dtype", "float64"]) == 2
    said = capfd.readouterr().err
    assert "holds results with another dtype (dtype float32)" in said and "--out" in said


def test_interrupted_it_keeps_what_it_had(inputs, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(inputs, "--out", out, "--workers", 1, "--chunk", 4),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 120
    while not list(out.glob("parts/*/*.parquet")):
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "the same command goes on from here" in errors
    summary = json.loads((out / "summary.json").read_text())
    assert not summary["complete"] and 0 < summary["structures"] < 38
    assert len(pd.read_csv(out / "results.csv")) == summary["structures"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", "0"], "0 processes cannot work"),
        (["--check", "2"], "not a share"),
        (["--chunk", "0"], "Chunks of 0"),
        (["--chunk", "6000"], "Chunks of 6,000"),
        (["--shared"], "FDCORE_DATABASE_URL"),
        (["--model", "nonsense"], "nonsense"),
    ],
)
def test_wrong_usage_is_said_before_anything_is_made(words, said, tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("FDCORE_DATABASE_URL", raising=False)
    assert main(["screen", str(tmp_path), "--out", str(tmp_path / "out"), *words]) == 2
    assert said in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_inputs_that_are_not_there_are_rows(tmp_path, capfd):
    assert main(["screen", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"), "--workers", "1"]) == 1
    assert "0 scored, 1 failed" in capfd.readouterr().out
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    assert list(table["verdict"]) == ["failed"] and "nowhere" in table["file"][0]


def test_a_command_that_is_refused_binds_nothing(tmp_path, capfd):
    """The model refuses, which its process finds; a path that is not there need not be named again."""
    (tmp_path / "in").mkdir()
    ase.io.write(tmp_path / "in" / "salt.cif", bulk("NaCl", "rocksalt", a=5.6))
    words = ["screen", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--workers", "1", "--json", "-"]
    assert main([*words, "--compile"]) == 2
    assert "Leave --compile out" in capfd.readouterr().err
    assert main([words[0], str(tmp_path / "nowhere"), *words[1:]]) == 1
    assert main(words) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["scored"] == 1


def test_an_empty_path_is_not_the_present_folder(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["screen", "", "--out", str(tmp_path / "out")]) == 2
    assert "empty" in capfd.readouterr().err and not (tmp_path / "out").exists()


def test_its_own_results_are_no_inputs(tmp_path, capfd, monkeypatch):
    crystals(tmp_path / "in", 4)
    monkeypatch.chdir(tmp_path / "in")
    for _ in range(2):
        assert main(["screen", ".", "--workers", "1", "--json", "-"]) == 0
        assert json.loads(capfd.readouterr().out)["scored"] == 4


def test_a_damaged_part_is_made_again(inputs, undisturbed, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    torn, foreign = sorted(out.glob("parts/*/*.parquet"))[:2]
    torn.write_bytes(torn.read_bytes()[:200])
    pq.write_table(pq.read_table(foreign).select(["file"]), foreign)
    words = command(inputs, "--out", out, "--workers", 2, "--chunk", 6, "--check", 0.2)
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    for name in TABLES:
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes()


def test_other_inputs_do_not_replace_a_table(inputs, undisturbed, tmp_path, capfd):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    other = crystals(tmp_path / "other", 2)
    words = ["--out", str(out), "--workers", "1", "--chunk", "6", "--check", "0.2"]
    assert main(["screen", str(other), *words]) == 2
    assert "holds results of" in capfd.readouterr().err
    assert (out / "results.csv").read_bytes() == (undisturbed / "results.csv").read_bytes()
    assert main(["screen", str(inputs), str(other), *words]) == 1
    assert len(pd.read_csv(out / "results.csv")) == 40


def test_an_interruption_takes_nothing_from_a_table_that_is_there(inputs, undisturbed, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    order = Order(
        folder=out,
        inputs=[str(inputs)],
        listed=lambda: list_chunks([inputs], 6),
        model={"id": "fd-orb-small-v1", "dtype": "float32", "weights": None, "compile": False,
               "weights_sha256": services.card("fd-orb-small-v1").sha256},
        devices=("cpu",),
        how=How(0.2),
        chunk=6,
    )  # fmt: skip
    seen: list[bool] = []
    list(screen(order, lambda: len(seen) > 2 or seen.append(True) is not None))
    assert (out / "results.csv").read_bytes() == (undisturbed / "results.csv").read_bytes()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_said(inputs, tmp_path, capfd):
    assert main(["screen", str(inputs), "--out", str(tmp_path / "out"), "--device", "cuda"]) == 2
    assert "No CUDA device" in capfd.readouterr().err and not (tmp_path / "out").exists()


def test_places_and_folders_that_cannot_be(tmp_path, capfd):
    (tmp_path / "void").mkdir()
    assert main(["screen", str(tmp_path / "void"), "--out", str(tmp_path / "o"), "--workers", "1"]) == 1
    assert "there are no structures in" in capfd.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["screen", str(tmp_path / "void"), "--out", str(tmp_path / "file" / "o"), "--workers", "1"]) == 2
    assert "Nothing can be written to" in capfd.readouterr().err
