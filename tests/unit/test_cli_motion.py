"""`fdcore md`, `relax` and `mts-advisor` as a user runs them."""

from __future__ import annotations

import csv
import io
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

from fdcore.services import dynamics
from fdcore.store.series import read_table
from tests.unit.test_cli import fdcore_command

ROOT = Path(__file__).parents[2]


@pytest.fixture
def salt(tmp_path) -> Path:
    atoms = bulk("NaCl", "rocksalt", a=5.65, cubic=True)
    atoms.rattle(0.05, seed=1)
    ase.io.write(tmp_path / "salt.xyz", atoms, format="extxyz")
    return tmp_path / "salt.xyz"


def document(*arguments: str, cwd: Path) -> dict:
    """What --json - printed, which must be one document and nothing else."""
    done = fdcore_command(*arguments, "--json", "-", cwd=cwd)
    assert done.returncode in (0, 1), done.stderr.decode()
    return json.loads(done.stdout)


def test_md_prints_one_document_with_the_names_of_the_design(salt):
    found = document("md", salt.name, "--ensemble", "nve", "--driver", "direct", "--steps", "20", cwd=salt.parent)
    assert found["spec"]["parameters"] == {"steps": 20}, "what is at its default is left out"
    assert found["summary"]["steps_done"] == 20 and found["summary"]["stopped_because"] == "completed"
    assert {"drift_meV_per_atom_per_ps", "drift_ci", "temperature_K", "force_delta_mean"} <= set(found["summary"])
    assert {"time_ps", "energy_total_eV", "temperature_K", "force_delta_eV_per_A"} <= set(found["series"])
    assert found["series"]["time_ps"][-1] == pytest.approx(0.02)
    assert found["errors"] == []


def test_a_molecule_is_moved_by_a_model_of_molecules(tmp_path):
    ase.io.write(tmp_path / "water.xyz", molecule("H2O"))
    done = fdcore_command("md", "water.xyz", "--steps", "3", "--json", "-", cwd=tmp_path)
    assert json.loads(done.stdout)["spec"]["model"]["id"] == "fd-orb-molecules-v1"
    assert b"model fd-orb-molecules-v1, chosen for these structures" in done.stderr
    named = document("md", "water.xyz", "--steps", "3", "--model", "fd-orb-small-v1", cwd=tmp_path)
    assert named["spec"]["model"]["id"] == "fd-orb-small-v1"


def test_bad_file_does_not_stop_the_good_one(salt, tmp_path):
    (tmp_path / "bad.xyz").write_text("garbage\n")
    done = fdcore_command("md", "bad.xyz", salt.name, "--steps", "4", "--json", "out.json", cwd=tmp_path)
    assert done.returncode == 1
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["summary"]["steps_done"] == 4 and [e["file"] for e in found["errors"]] == ["bad.xyz"]
    assert b"failed: bad.xyz" in done.stderr


def test_csv_and_trajectory_are_written(salt, tmp_path):
    arguments = ["--steps", "16", "--driver", "mts", "--mts-stride", "4", "--frame-every", "8"]
    done = fdcore_command("md", salt.name, *arguments, "--csv", "s.csv", "--extxyz", "t.extxyz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO((tmp_path / "s.csv").read_text())))
    assert [int(r["step"]) for r in rows] == [0, 4, 8, 12, 16]
    frames = ase.io.read(tmp_path / "t.extxyz", ":")
    assert [a.info["step"] for a in frames] == [0, 8, 16]
    assert "forces_direct" in frames[-1].arrays and frames[-1].get_kinetic_energy() > 0
    assert b"NVE driven by mts" in done.stdout and b"meV/atom/ps" in done.stdout


def test_replicas_are_one_batch_with_velocities_of_their_own(salt):
    found = document("md", salt.name, "--replicas", "3", "--steps", "10", cwd=salt.parent)
    assert [s["replica"] for s in found["systems"]] == [0, 1, 2]
    temperatures = {s["summary"]["temperature_K"]["all"] for s in found["systems"]}
    assert len(temperatures) == 3 and found["summary"]["n_systems"] == 3


def test_same_seed_same_numbers_other_seed_others(salt):
    def energies(seed: str) -> list[float]:
        arguments = ["--steps", "8", "--ensemble", "nvt", "--thermostat", "langevin", "--seed", seed]
        return document("md", salt.name, *arguments, cwd=salt.parent)["series"]["energy_total_eV"]

    assert energies("3") == energies("3") != energies("4")


def test_stop_above_ends_with_what_was_computed(salt):
    found = document("md", salt.name, "--steps", "50", "--stop-above", "1e-6", cwd=salt.parent)
    assert found["summary"]["stopped_because"] == "force-delta" and found["summary"]["steps_done"] < 50
    assert "above the bound" in found["summary"]["stopped_text"] and len(found["series"]["step"]) >= 1


def test_preset_can_be_changed_in_part(salt):
    arguments = ["--preset", "paper", "--steps", "6", "--equilibrate-steps", "4", "--relax-steps", "3"]
    found = document("md", salt.name, *arguments, cwd=salt.parent)
    parameters = found["spec"]["parameters"]
    assert parameters["thermostat_time_fs"] == 10.0 and parameters["timestep_fs"] == 0.5 and parameters["steps"] == 6
    [system] = found["systems"]
    assert [leg["ensemble"] for leg in system["legs"]] == ["nvt"] and found["relaxation"][0]["iterations"] <= 3


def test_preset_comes_in_whole_rounds(salt):
    arguments = ["--preset", "quick", "--driver", "mts", "--mts-stride", "7", "--wall-seconds", "0"]
    found = document("md", salt.name, *arguments, cwd=salt.parent)
    assert found["summary"]["steps_asked"] % 7 == 0


def test_relax_says_whether_the_other_force_agrees(salt, tmp_path):
    found = document("relax", salt.name, "--driver", "conservative", "--extxyz", "r.extxyz", cwd=tmp_path)
    [result] = found["results"]
    assert result["converged"] and result["fmax_eV_per_A"] < 0.05
    assert "Both forces" in result["text"] or "disagree about the minimum" in result["text"]
    relaxed = ase.io.read(tmp_path / "r.extxyz")
    np.testing.assert_allclose(relaxed.positions, result["positions_A"], atol=1e-7)
    done = fdcore_command("relax", salt.name, "--optimiser", "lbfgs", cwd=tmp_path)
    assert done.returncode == 0 and b"relaxed in" in done.stdout


def test_advisor_recommends_or_says_why_not(salt):
    arguments = [
        "--strides",
        "1,2",
        "--steps",
        "60",
        "--timestep-fs",
        "5",
        "--equilibrate-steps",
        "5",
        "--relax-steps",
        "5",
    ]
    found = document("mts-advisor", salt.name, *arguments, "--tolerance", "10000", cwd=salt.parent)
    assert [a["name"] for a in found["arms"]] == ["conservative", "M = 1", "M = 2", "direct"]
    assert found["recommended_mts_stride"] == 2
    assert all(a["ns_per_day"] > 0 for a in found["arms"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["md", "salt.xyz", "--steps", "10", "--driver", "mts"], b"Take 16 steps"),
        (["md", "salt.xyz", "--temperature-K", "-5"], b"temperature"),
        (["md", "salt.xyz", "--json", "-", "--csv", "-"], b"standard output"),
        (["md", "salt.xyz", "--weights", "none.ckpt"], b"no file"),
        (["md", "salt.xyz", "--json", "no/such/folder.json"], b"no/such"),
        (["mts-advisor", "salt.xyz", "--strides", "1,x"], b"strides"),
        (["relax", "salt.xyz", "--fmax", "0"], b"fmax"),
        (["md", "salt.xyz", "--seed", "99999999999999999999999"], b"seed"),
        (["mts-advisor", "salt.xyz", "salt.xyz"], b"one structure at a time"),
    ],
)
def test_wrong_usage_is_refused_before_anything_runs(salt, arguments, said):
    done = fdcore_command(*arguments, cwd=salt.parent)
    assert done.returncode == 2 and said in done.stderr and not done.stdout


def test_element_the_model_does_not_know(tmp_path):
    ase.io.write(tmp_path / "gold.xyz", bulk("Au", cubic=True), format="extxyz")
    done = fdcore_command("md", "gold.xyz", "--steps", "4", cwd=tmp_path)
    assert done.returncode == 1 and b"Au" in done.stderr


def test_interrupted_it_goes_on_to_the_same_bits(salt, tmp_path):
    """Ctrl-C, then the same command: the document is that of a run nobody touched, but for how fast it was."""
    common = ["md", salt.name, "--ensemble", "nvt", "--thermostat", "langevin", "--steps", "400", "--seed", "7"]
    command = [sys.executable, "-P", "-m", "fdcore.cli", *common, "--record", "kept", "--json", "first.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
    end = time.monotonic() + 120
    while len(read_table(tmp_path / "kept" / "1", "series").get("step", ())) < 20:
        assert time.monotonic() < end and process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and b"goes on from here" in said, said
    first = json.loads((tmp_path / "first.json").read_text())
    assert 0 < first["summary"]["steps_done"] < 400 and first["summary"]["stopped_because"] == "cancelled"

    again = document(*common, "--record", "kept", cwd=tmp_path)
    whole = document(*common, cwd=tmp_path)
    assert again["summary"]["steps_done"] == 400
    assert again["series"] == whole["series"]
    refused = fdcore_command(*common, "--record", "kept", "--timestep-fs", "0.5", cwd=tmp_path)
    assert refused.returncode == 2 and b"another run" in refused.stderr


def test_every_parameter_has_an_option():
    for task in ("md", "relax", "mts-advisor"):
        assert set(dynamics.flags(task)) == set(dynamics.PARAMETERS[task].__dataclass_fields__)
