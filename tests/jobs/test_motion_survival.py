"""A simulation in the engine, killed in the middle: the trajectory is that of an uninterrupted run, to the last bit."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk

import fdcore
from fdcore.records import Structure
from fdcore.services import runs
from fdcore.spec import ModelChoice
from fdcore.store import structures as stored
from fdcore.store.series import read_table
from fdcore.tasks.run import execute
from tests.jobs.conftest import OPERATOR, submit, until

TABLES = ("series", "relaxation", "frames", "atoms")
PLANS = {
    "direct NVT": {
        "steps": 240,
        "ensemble": "nvt",
        "thermostat": "langevin",
        "relax_fmax_eV_per_A": 0.05,
        "equilibrate_steps": 100,
        "timestep_fs": 1.0,
        "frame_every": 20,
    },
    "multiple time steps": {"steps": 800, "driver": "mts", "mts_stride": 8, "ensemble": "nvt", "timestep_fs": 1.0},
}


def salt() -> Structure:
    atoms = bulk("NaCl", "rocksalt", a=5.65, cubic=True)
    atoms.rattle(0.05, seed=1)
    return Structure.from_atoms(atoms, file="salt.xyz")


@pytest.mark.parametrize("name", PLANS)
def test_killed_simulation_ends_in_the_same_bits(config, engine, workers, tmp_path, name):
    structures = [salt()]
    spec = runs.spec_of("md", structures, ModelChoice(fdcore.list_models()[0].id, device="cpu"), PLANS[name], seed=5)
    worker = workers(replace(config, threads=1))
    run_id = submit(engine, spec, lane="long", also=lambda c, run: stored.add(c, run, structures, []))
    chance = random.Random(name)
    for number in range(2):
        before = engine.store.run(OPERATOR, run_id).done
        until(lambda b=before: engine.store.run(OPERATOR, run_id).done > b + 60, 120, "it moves")
        time.sleep(chance.uniform(0.0, 0.4))
        if number:
            worker.kill_children()
        else:
            worker.kill()
            worker.start()
    run = engine.wait(OPERATOR, run_id, 180)
    assert run.state == "done", run.error
    attempts = engine.store.attempts(run_id)
    assert len(attempts) == 3 and max(a.done_at_start for a in attempts) > 0, attempts

    model = fdcore.load_model(device="cpu")
    alone = execute(spec, structures, lambda _: model, tmp_path / "alone")
    assert alone.state == "done"
    for table in TABLES:
        killed, whole = read_table(engine.folder(run), table), read_table(tmp_path / "alone", table)
        for column, expected in whole.items():
            assert np.array_equal(killed[column], expected, equal_nan=expected.dtype.kind == "f"), (table, column)
