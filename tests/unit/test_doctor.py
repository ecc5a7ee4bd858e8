"""What `fdcore doctor` says of things that are broken: the right row, a next step, no secret, and never a traceback."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from fdcore import config as configuration
from fdcore import doctor, models
from fdcore.cli import main
from fdcore.jobs.engine import Engine
from fdcore.models import orb_cards
from fdcore.spec import Spec
from fdcore.store import database, schema
from fdcore.store.files import attempt_folder
from fdcore.store.series import read_table
from fdcore.tasks.run import execute

SECRET = "hunter2"


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The settings of this test, without a worker."""
    for name in ("FDCORE_DATABASE_URL", "FDCORE_WORKER_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FDCORE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FDCORE_WORKER", "none")
    made = configuration.from_environment()
    yield made
    database.dispose(made)


def rows(name: str, **keywords) -> list[doctor.Check]:
    """The rows of that name among all that the doctor says."""
    return [c for c in doctor.look(**keywords) if c.name == name]


# ---- the database --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (f"postgresql://fd:{SECRET}@127.0.0.1:1/x", "127.0.0.1"),
        (f"postgresql://127.0.0.1:1/x?user=fd&password={SECRET}", "127.0.0.1"),
        (f"postgresql://fd:{SECRET}@127.0.0.1:port/x", "not an address"),
        (f"postgresql://fd:{SECRET}@127.0.0.1/x?{SECRET}=1", "cannot be used"),
        (f"{SECRET} is no address", "no database address"),
        (f"mysql://fd:{SECRET}@127.0.0.1/x", "mysql"),
    ],
)
def test_a_database_that_cannot_be_used_is_told_without_its_secrets(config, monkeypatch, capfd, address, says):
    monkeypatch.setenv("FDCORE_DATABASE_URL", address)
    started = time.monotonic()
    assert main(["doctor"]) == 1
    assert time.monotonic() - started < 60
    told = capfd.readouterr()
    assert SECRET not in told.out + told.err
    assert "Traceback" not in told.err
    [database_row] = [line for line in told.out.splitlines() if line.startswith("FAIL  database")]
    assert says in database_row
    assert "ok    data" in told.out and "FAIL  runs" in told.out


def test_a_damaged_database_is_one_row_with_a_way_out(config, capfd):
    config.data.mkdir()
    (config.data / "fdcore.sqlite").write_bytes(b"this is not a database file. " * 100)
    assert main(["doctor"]) == 1
    out = capfd.readouterr().out
    assert "FAIL  database" in out and "file is not a database" in out and ".recover" in out
    assert "FAIL  runs         not looked at: it needs the database" in out
    assert [c.status for c in rows("drill", drill=True)] == ["fail"]


def test_migrations_of_both_kinds_are_counted(config):
    engine = Engine(config)
    [check] = rows("database")
    assert check.status == "ok" and f"up to date (tables {len(schema.MIGRATIONS)}, job engine " in check.text
    with engine.store.begin() as connection:
        connection.execute(sa.text("UPDATE dbos_migrations SET version = version - 2"))
    [check] = rows("database")
    assert check.status == "look" and "0 migrations of ours and 2 of the job engine" in check.text
    with engine.store.begin() as connection:
        row = {"number": len(schema.MIGRATIONS) + 1, "name": "later", "applied_at": 0.0}
        connection.execute(sa.insert(schema.migrations).values(row))
    [check] = rows("database")
    assert check.status == "fail" and "newer version" in check.text and check.hint


# ---- machine, program and settings ---------------------------------------------------------------------------------


def test_settings_that_do_nothing_are_named(config, monkeypatch):
    monkeypatch.setenv("FDCORE_POLL_SECONDS", "0.5")
    monkeypatch.setenv("FDCORE_THREAD", "3")
    in_force, unknown = rows("settings")
    assert in_force.text == "FDCORE_WORKER=none, FDCORE_POLL_SECONDS=0.5"
    assert unknown.status == "look" and unknown.text.startswith("FDCORE_THREAD ")
    assert unknown.hint == "Did you mean FDCORE_THREADS?"


def test_a_folder_to_be_screened_that_is_not_there_is_a_failure(config, monkeypatch, tmp_path):
    monkeypatch.setenv("FDCORE_SCREEN_FOLDER", str(tmp_path))
    assert [c.status for c in rows("data")] == ["ok"]
    monkeypatch.setenv("FDCORE_SCREEN_FOLDER", str(tmp_path / "none"))
    _, failed = rows("data")
    assert failed.status == "fail" and "none cannot be read" in failed.text and "FDCORE_SCREEN_FOLDER" in failed.hint


def test_threads_and_memory_are_those_of_this_machine(config, monkeypatch):
    monkeypatch.setenv("FDCORE_THREADS", "7")
    [cpu], [memory] = rows("cpu"), rows("memory")
    assert "7 thread(s) per run" in cpu.text
    assert " free of " in memory.text


def test_damaged_weights_are_a_failure(config, monkeypatch):
    monkeypatch.setattr(doctor, "file_sha256", lambda path: "0" * 64)
    shipped, _ = rows("models")
    assert shipped.status == "fail" and models.DEFAULT_MODEL in shipped.text and shipped.hint


def test_downloaded_models_are_listed_with_their_size(config, monkeypatch, tmp_path):
    weights = tmp_path / "weights"
    weights.write_bytes(b"0" * 3_000_000)
    monkeypatch.setattr(orb_cards, "cached_file", lambda card: weights if card.id == "orb-v2" else None)
    _, downloaded = rows("models")
    assert downloaded.text.endswith("downloadable models are on this machine: orb-v2 (3.0 MB)")


def test_a_file_system_on_which_records_cannot_be_followed_is_a_failure(config, monkeypatch):
    [check] = rows("hdf5")
    assert (check.status == "ok" and "HDF5 1." in check.text) or "HDF5 2." in check.text
    monkeypatch.setattr(doctor, "read_table", lambda folder, table: {})
    [check] = rows("hdf5")
    assert check.status == "fail" and check.hint
    assert not [p for p in config.data.iterdir() if p.name.startswith("doctor-")], "the trial leaves nothing"


def test_sqlite_on_a_network_file_system_is_pointed_out(config, monkeypatch):
    monkeypatch.setattr(doctor, "_file_system", lambda path: "nfs4")
    _, warning = rows("data")
    assert warning.status == "look" and "nfs4" in warning.text and "FDCORE_DATABASE_URL" in warning.hint


def test_an_sqlite_that_is_too_old_is_a_failure(config, monkeypatch):
    monkeypatch.setattr(database, "SQLITE_NEEDED", (99, 0))
    [check] = rows("sqlite")
    assert check.status == "fail" and "pysqlite3" in check.hint


# ---- the drill -----------------------------------------------------------------------------------------------------


def test_a_drill_without_a_worker_fails_at_once_and_leaves_nothing(config):
    started = time.monotonic()
    [check] = rows("drill", drill=True)
    assert time.monotonic() - started < 30
    assert check.status == "fail" and check.hint == "Start one: `fdcore worker`."
    assert Engine(config).store.count_runs(doctor.OPERATOR) == 0


def test_a_drill_is_judged_by_what_it_recorded(config):
    engine = Engine(config)
    spec = Spec("drill", None, "", 0, {"steps": doctor.DRILL_STEPS, "step_seconds": 0.0}, seed=1)
    run_id = engine.submit("doctor", spec, title="drill", lane="quick")
    begun = engine.store.begin_attempt(run_id, "w")
    assert begun is not None
    folder = attempt_folder(config, run_id, 1)
    outcome = execute(spec, (), lambda spec: None, folder)
    assert engine.store.end(run_id, 1, outcome.state, summary=outcome.summary, size=outcome.size)
    run = engine.store.run(doctor.OPERATOR, run_id)
    assert len(read_table(folder, "steps")["step"]) == doctor.DRILL_STEPS
    assert doctor._wrong(engine, run) == ""
    assert "not what the run computed" in doctor._wrong(engine, replace(run, summary={"end": [0.0, 0.0, 0.0]}))
    assert "not what the run computed" in doctor._wrong(engine, replace(run, spec=replace(spec, seed=2)))
    assert "ended as failed: no luck" in doctor._wrong(engine, replace(run, state="failed", error="no luck"))
    for file in folder.iterdir():
        Path(file).unlink()
    assert f"0 points were read back, not {doctor.DRILL_STEPS}" in doctor._wrong(engine, run)
