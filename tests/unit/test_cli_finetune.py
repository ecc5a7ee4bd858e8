"""`fdcore finetune`, `fdcore stability`, `fdcore generations` as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import pandas as pd
import pytest
from ase import Atoms

from fdcore import data, reference, services
from fdcore.cli import main
from fdcore.labels import LabelledSet
from fdcore.models import finetuned
from fdcore.store.series import CHECKPOINT

LABELS = str(data.path("labels", "fd-orb-small-v1.extxyz"))
QUICK = ["--epochs", "2", "--batch", "4", "--held-out", "0.2", "--replay", "none"]


@pytest.fixture(autouse=True)
def _own_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("FDCORE_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(finetuned, "_places", {})
    monkeypatch.setattr(reference, "REFERENCES", dict(reference.REFERENCES))


@pytest.fixture
def labelled(tmp_path) -> Path:
    frames = [a for a in ase.io.read(LABELS, ":") if len(a) <= 12][:8]
    path = tmp_path / "labelled.extxyz"
    ase.io.write(path, frames)
    return path


def test_a_model_by_path(labelled, tmp_path, capfd):
    out, table = tmp_path / "mine", tmp_path / "errors.csv"
    assert main(["finetune", str(labelled), *QUICK, "--out", str(out), "--json", "-", "--csv", str(table)]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["base"] == "fd-orb-small-v1" and document["path"] == str(out) and document["errors"] == []
    rows = {(r["part"], r["quantity"]): r for r in document["errors_before_and_after"]}
    assert {p for p, _ in rows} == {"train", "held-out"}
    csv = pd.read_csv(table)
    assert csv["after"].tolist() == pytest.approx([r["after"] for r in document["errors_before_and_after"]])
    model = services.load_model(str(out))
    assert model.card.id == document["model"]
    structures = services.read_paths([str(labelled)]).structures
    assert rows["train", "U_Delta (eV/Å)"]["after"] > 0
    # Everywhere like any other model.
    assert main(["score", str(labelled), "--model", str(out), "--json", "-"]) == 0
    scored = json.loads(capfd.readouterr().out)
    assert scored["model"] == document["model"]
    expected = [e.force_delta for e in model.evaluate(structures)]
    assert [r["force_delta_eV_per_A"] for r in scored["results"]] == pytest.approx(expected, rel=1e-5)
    assert main(["finetune", str(labelled), *QUICK, "--out", str(out)]) == 2
    assert "already holds something" in capfd.readouterr().err


def test_a_model_by_name_with_the_shipped_replay_set(labelled, capfd):
    arguments = [
        "finetune",
        str(labelled),
        "--epochs",
        "1",
        "--train",
        "direct",
        "--labelled-by",
        "a teacher",
        "--seed",
        "3",
    ]
    assert main(arguments) == 0
    said = capfd.readouterr().out
    name = said.split(":")[0]
    assert name.startswith("ft-fd-orb-small-v1-") and f"fdcore score FILE --model {name}" in said
    assert "replay" in said and "forgotten" in said, "the guard against forgetting speaks"
    finetuned._places.clear()
    card = services.card(name)
    assert "labelled by a teacher" in card.training_data and "F_nc only" in card.summary
    assert main(["models", "--json", "-"]) == 0
    assert name in {m["id"] for m in json.loads(capfd.readouterr().out)}


def test_what_is_not_labelled_is_left_out_in_words(labelled, tmp_path, capfd):
    frames = ase.io.read(labelled, ":")
    bare = [Atoms(frames[0].numbers, positions=frames[0].positions, cell=frames[0].cell, pbc=True)]
    gold = Atoms("Au2", positions=[[0, 0, 0], [0, 0, 2.5]], cell=[9, 9, 9], pbc=True)
    ase.io.write(tmp_path / "bare.extxyz", bare)
    ase.io.write(tmp_path / "gold.extxyz", gold)
    files = [str(labelled), str(tmp_path / "bare.extxyz"), str(tmp_path / "gold.extxyz")]
    assert main(["finetune", *files, *QUICK, "--json", "-"]) == 1
    captured = capfd.readouterr()
    document = json.loads(captured.out)
    assert document["model"] and {Path(e["file"]).name for e in document["errors"]} == {"bare.extxyz", "gold.extxyz"}
    assert "no reference energy or no reference force" in captured.err
    assert main(["finetune", str(tmp_path / "bare.extxyz"), *QUICK]) == 2
    assert "fdcore label" in capfd.readouterr().err


def test_a_family_that_cannot_is_refused(labelled, capfd):
    assert main(["finetune", str(labelled), "--base", "eqV2_31M_mp"]) == 2
    assert "trains with its own launcher" in capfd.readouterr().err


def test_killed_in_the_middle_it_ends_in_the_same_weights(labelled, tmp_path, capfd):
    """SIGKILL, and the same command again."""
    long = [
        "finetune",
        str(labelled),
        "--epochs",
        "70",
        "--patience",
        "0",
        "--batch",
        "2",
        "--held-out",
        "0.2",
        "--replay",
        "none",
    ]
    record = tmp_path / "record"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fdcore.cli", *long, "--record", str(record), "--out", str(tmp_path / "a")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (record / "1" / CHECKPOINT).is_file():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "a").exists()
    done = subprocess.run(
        [*command[:-1], str(tmp_path / "b"), "--json", "-"], env=environment, capture_output=True, text=True, check=True
    )
    resumed = json.loads(done.stdout)
    whole = subprocess.run(
        [sys.executable, "-m", "fdcore.cli", *long, "--out", str(tmp_path / "c"), "--json", "-"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    undisturbed = json.loads(whole.stdout)
    assert resumed["result"]["steps_done"] > 100
    assert resumed["model"] == undisturbed["model"]
    assert (tmp_path / "b" / finetuned.WEIGHTS).read_bytes() == (tmp_path / "c" / finetuned.WEIGHTS).read_bytes()


def test_stability_of_a_model_by_path(labelled, tmp_path, capfd):
    out, html = tmp_path / "mine", tmp_path / "report.html"
    assert main(["finetune", str(labelled), *QUICK, "--out", str(out), "--json", str(tmp_path / "x.json")]) == 0
    start = str(data.path("examples", "NaCl.cif"))
    arguments = [
        "stability",
        start,
        "--models",
        f"fd-orb-small-v1,{out}",
        "--picoseconds",
        "0.02",
        "--seeds",
        "2",
        "--sigmas",
        "0.05,0.1",
    ]
    arguments += ["--per-sigma", "2", "--relax-steps", "2", "--reference", "springs:Springs"]
    capfd.readouterr()
    assert main([*arguments, "--json", "-", "--html", str(html)]) == 0
    document = json.loads(capfd.readouterr().out)
    assert [m["nve_runs"] for m in document["models"]] == [2, 2]
    assert document["models"][1]["model"].startswith("ft-fd-orb-small-v1-")
    assert len(document["bands"]) == 4 and all(b["error_direct_eV_per_A"] > 0 for b in document["bands"])
    starts = {(r["model"], r["seed"]): r["energy_meV_per_atom"][0] for r in document["runs"]}
    assert set(starts.values()) == {0.0}
    assert document["models"][0]["model"] in html.read_text()
    assert main(["stability", start, "--models", "orb-v3-conservative-inf-mpa"]) == 2
    assert "no direct force" in capfd.readouterr().err


def test_the_whole_loop(tmp_path, capfd):
    out = tmp_path / "loop"
    arguments = [
        "generations",
        str(data.path("examples", "NaCl.cif")),
        "--out",
        str(out),
        "--reference",
        "springs:Springs",
        "--replay",
        "none",
    ]
    arguments += [
        "--count",
        "3",
        "--starts",
        "3",
        "--attack-steps",
        "3",
        "--attack-relax-fmax",
        "none",
        "--apart",
        "0",
        "--window",
        "0.4",
    ]
    arguments += [
        "--epochs",
        "1",
        "--held-out",
        "0",
        "--picoseconds",
        "0.01",
        "--seeds",
        "2",
        "--sigmas",
        "0.05",
        "--per-sigma",
        "2",
    ]
    arguments += ["--relax-steps", "2", "--json", "-"]
    assert main(arguments) == 0
    document = json.loads(capfd.readouterr().out)
    names = ["generation 1, F_nc only", "generation 1, both forces", "generation 2, both forces"]
    assert list(document["trained"]) == names
    assert [m["model"] for m in document["models"]] == ["fd-orb-small-v1", *names]
    assert all(m["drift_abs_meV_per_atom_per_ps"] is not None for m in document["models"])
    for number in (1, 2):
        structures = services.read_paths([str(out / f"generation-{number}.extxyz")]).structures
        assert len(structures) == 3
        [(structure, label)] = LabelledSet.of(structures[:1]).labelled
        assert label.provenance.reference == "springs:Springs"
        # E = k/2 sum r^2, of positions as they are written.
        assert label.energy == pytest.approx(0.05 * (structure.positions**2).sum(), abs=1e-6)
    second = services.load_model(str(out / "model-2-both"))
    assert second.card.id == document["trained"][names[2]]
    assert len(finetuned.lineage_of(second.card)) == 2
    assert "Generation 1: 3 structures" in (out / "report.html").read_text()
    assert (out / "report.zip").is_file()
