"""`fdcore runs`, `worker` and `doctor` as an operator uses them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import fields
from pathlib import Path

import pytest

from fdcore import config as configuration
from fdcore import doctor
from fdcore.cli import main
from fdcore.errors import UsageError
from fdcore.jobs import supervisor
from fdcore.jobs.engine import Engine
from fdcore.services import runs
from fdcore.spec import Spec
from fdcore.store import database
from fdcore.store.records import Viewer

ROOT = Path(__file__).parents[2]
OPERATOR = Viewer.operator()


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """The engine of a data folder of this test, with no worker unless a test starts one."""
    monkeypatch.setenv("FDCORE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FDCORE_WORKER", "none")
    monkeypatch.chdir(tmp_path)
    runs.current.cache_clear()
    made = runs.current()
    yield made
    database.dispose(made.config)
    runs.current.cache_clear()


def submit(engine: Engine, owner="me", **parameters) -> str:
    return engine.submit(owner, Spec("drill", None, "", 0, parameters), title="a drill", lane="quick")


def finish(engine: Engine, run_id: str, state="done", **keywords) -> None:
    begun = engine.store.begin_attempt(run_id, "w")
    assert begun is not None
    assert engine.store.end(run_id, begun[1], state, **keywords)


def test_list_shows_everybodys_runs_newest_first(engine, capfd):
    first, second = submit(engine), submit(engine, owner="other")
    finish(engine, first, "failed", error="It broke.", size=2_500_000)
    assert main(["runs", "list"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [second[:8], first[:8]]
    assert "failed" in lines[2] and "It broke." in lines[2] and "2.5 MB" in lines[2]
    assert main(["runs", "list", "--state", "queued", "--json", "-"]) == 0
    [row] = json.loads(capfd.readouterr().out)
    assert (row["id"], row["owner"], row["state"]) == (second, "other", "queued")
    assert main(["runs", "list", "--owner", "nobody"]) == 0
    assert capfd.readouterr().out == "no runs\n"
    assert main(["runs", "list", "--state", "asleep"]) == 2
    assert "asleep" in capfd.readouterr().err


def test_show_says_everything_about_one(engine, capfd):
    run_id = submit(engine, steps=7)
    assert main(["runs", "show", run_id[:6]]) == 0
    assert "waits for a worker, none serves it" in capfd.readouterr().out
    assert main(["runs", "show", run_id, "--json", "-"]) == 0
    assert json.loads(capfd.readouterr().out)["waiting"] == {"ahead": 0, "holding": 0, "slots": 0}
    finish(engine, run_id, "failed", error="It broke.", hint="Mend it.")
    assert main(["runs", "show", run_id]) == 0
    out = capfd.readouterr().out
    for text in (
        run_id,
        '"steps": 7',
        "It broke. Mend it.",
        "attempt 1",
        engine.store.run(OPERATOR, run_id).spec_sha256,
    ):
        assert text in out
    assert main(["runs", "show", run_id, "--json", "-"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["spec"]["parameters"] == {"steps": 7} and document["hint"] == "Mend it."
    assert document["attempts"][0]["outcome"] == "failed" and document["created"].endswith("+00:00")


@pytest.mark.parametrize("name", ["beef", "0123456789abcdef", "ab", "../etc", "ABCD", ""])
def test_unknown_or_impossible_names_are_refused(engine, capfd, name):
    assert main(["runs", "show", name]) == 2
    assert capfd.readouterr().err


def test_ambiguous_beginning_is_refused(engine, capfd, monkeypatch):
    import itertools

    from fdcore.store import runs as store_runs

    names = (f"abcd{n:028x}" for n in itertools.count())
    monkeypatch.setattr(store_runs, "new_token", lambda: next(names))
    submit(engine)
    submit(engine)
    assert main(["runs", "show", "abcd"]) == 2
    assert "More than one" in capfd.readouterr().err


def test_cancel_all_or_nothing_by_name(engine, capfd):
    waiting, ended = submit(engine), submit(engine)
    finish(engine, ended)
    assert main(["runs", "cancel", waiting, "ffffffff"]) == 2
    assert engine.store.run(OPERATOR, waiting).state == "queued", "a typing mistake changes nothing"
    assert main(["runs", "cancel", waiting, ended]) == 1
    assert engine.store.run(OPERATOR, waiting).state == "cancelled"
    assert "ended already" in capfd.readouterr().err


def test_export_never_overwrites_by_accident(engine, capfd, tmp_path):
    run_id = submit(engine, steps=3)
    finish(engine, run_id)
    assert main(["runs", "export", run_id]) == 0
    path = tmp_path / f"run-{run_id[:8]}.zip"
    with zipfile.ZipFile(path) as archive:
        assert json.loads(archive.read("run.json"))["id"] == run_id
    assert main(["runs", "export", run_id]) == 2
    assert "exists already" in capfd.readouterr().err
    assert main(["runs", "export", run_id, "--force"]) == 0
    assert main(["runs", "export", run_id, "--out", str(tmp_path / "no" / "x.zip")]) == 2
    capfd.readouterr()
    command = [sys.executable, "-m", "fdcore.cli", "runs", "export", run_id, "--out", "-"]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, check=True)
    (tmp_path / "piped.zip").write_bytes(done.stdout)
    assert zipfile.ZipFile(tmp_path / "piped.zip").testzip() is None
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".fdcore")]


def test_prune_asks_says_and_deletes_only_what_is_old(engine, capfd):
    old, active = submit(engine), submit(engine)
    finish(engine, old, size=3_000_000)
    assert main(["runs", "prune", "--older-than", "1h"]) == 0
    assert "0 runs" in capfd.readouterr().out
    time.sleep(0.01)
    assert main(["runs", "prune", "--older-than", "0d", "--dry-run"]) == 0
    out = capfd.readouterr().out
    assert old[:8] in out and "1 run, 3.0 MB; nothing was deleted" in out
    assert main(["runs", "prune", "--older-than", "0d", "--state", "failed", "--yes"]) == 0
    assert engine.store.count_runs(OPERATOR) == 2
    assert main(["runs", "prune", "--older-than", "0d"]) == 2, "no terminal to ask on"
    assert "--yes" in capfd.readouterr().err
    assert main(["runs", "prune", "--older-than", "0d", "--yes"]) == 0
    assert [r.id for r in engine.store.list_runs(OPERATOR)] == [active]
    assert main(["runs", "prune", "--older-than", "soon", "--yes"]) == 2


def test_prune_goes_on_where_somebody_was_quicker(engine, capfd, monkeypatch):
    first, second = submit(engine), submit(engine)
    finish(engine, first)
    finish(engine, second)
    delete = runs.delete

    def quicker(viewer, run_id):
        if run_id == first:
            engine.delete(viewer, run_id)
        delete(viewer, run_id)

    monkeypatch.setattr(runs, "delete", quicker)
    assert main(["runs", "prune", "--older-than", "0h", "--yes"]) == 0
    assert engine.store.count_runs(OPERATOR) == 0


def test_worker_serves_ends_and_gives_back(engine, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FDCORE_POLL_SECONDS": "0.1"}
    command = [sys.executable, "-m", "fdcore.cli", "worker", "--lanes", "quick"]
    worker = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        short = engine.wait(OPERATOR, submit(engine, steps=3), 60)
        assert short.state == "done"
        second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 2 and "running already" in second.stderr
        long = submit(engine, steps=10_000)
        while engine.store.run(OPERATOR, long).done < 5:
            time.sleep(0.05)
        worker.send_signal(signal.SIGINT)
        told = worker.communicate(timeout=30)[1]
        assert worker.returncode == 0
        assert f"run {short.id}: done" in told and "goes on with the next worker" in told
        assert engine.store.run(OPERATOR, long).state == "queued"
    finally:
        worker.kill()


def test_a_worker_carries_nothing_that_only_scoring_needs():
    code = (
        "import sys, fdcore.cli.operate as o; from fdcore.cli import build_parser; build_parser(); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"numpy", "torch", "ase", "h5py", "pandas", "tqdm"}


def test_worker_refuses_what_makes_no_sense(engine, capfd, monkeypatch, tmp_path):
    assert main(["worker", "--lanes", "fast"]) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["worker", "--lanes", "gpu"]) == 2
    assert "would serve nothing" in capfd.readouterr().err
    assert main(["worker", "--name", "two"]) == 2
    assert "PostgreSQL" in capfd.readouterr().err
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FDCORE_DATA", str(tmp_path / "file" / "x"))
    assert main(["worker"]) == 2
    assert "cannot be written" in capfd.readouterr().err


# ---- doctor --------------------------------------------------------------------------------------------------------


def checks_of(capfd, *arguments: str) -> tuple[int, dict[str, list[dict]]]:
    code = main(["doctor", "--json", "-", *arguments])
    found: dict[str, list[dict]] = {}
    for check in json.loads(capfd.readouterr().out)["checks"]:
        found.setdefault(check["name"], []).append(check)
    return code, found


def test_doctor_looks_at_everything(engine, capfd):
    submit(engine)
    code, found = checks_of(capfd)
    assert code == 0
    assert {
        "python",
        "packages",
        "sqlite",
        "cpu",
        "memory",
        "models",
        "settings",
        "data",
        "database",
        "worker",
        "runs",
    } <= set(found)
    assert found["runs"][0]["text"] == "1 queued"
    assert found["settings"][0]["text"] == "FDCORE_WORKER=none"
    assert found["worker"][0]["status"] == "look" and "fdcore worker" in found["worker"][0]["hint"]
    assert "up to date" in found["database"][0]["text"]


def test_doctor_does_not_make_a_database(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("FDCORE_DATA", str(tmp_path / "new"))
    code, found = checks_of(capfd)
    assert code == 0 and found["runs"][0]["text"] == "none yet"
    engine = database.engine(configuration.from_environment())
    import sqlalchemy as sa

    assert sa.inspect(engine).get_table_names() == []


def test_doctor_survives_what_is_broken_and_keeps_secrets(tmp_path, monkeypatch, capfd):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FDCORE_DATA", str(tmp_path / "file" / "x"))
    monkeypatch.setenv("FDCORE_DATABASE_URL", "postgresql://fd:topsecret@127.0.0.1:1/nothing")
    code = main(["doctor"])
    out = capfd.readouterr().out
    assert code == 1
    assert "topsecret" not in out
    rows = [line for line in out.splitlines() if line.startswith("FAIL")]
    assert any("data" in r and "cannot be written" in r for r in rows) and any("database" in r for r in rows)
    assert "ok    python" in out


def test_doctor_names_a_setting_that_cannot_be_read(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("FDCORE_DATA", str(tmp_path))
    monkeypatch.setenv("FDCORE_QUICK_SLOTS", "many")
    code, found = checks_of(capfd)
    assert code == 1 and "FDCORE_QUICK_SLOTS=many" in found["settings"][0]["text"]


def test_doctors_drill_goes_through_a_real_worker_and_leaves_nothing(engine, capfd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FDCORE_POLL_SECONDS": "0.1"}
    worker = subprocess.Popen(
        [sys.executable, "-m", "fdcore.cli", "worker"], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 60
        while not any(w.alive for w in engine.store.workers()):
            assert time.monotonic() < end, "no worker came"
            time.sleep(0.05)
        [check] = [c for c in doctor.look(drill=True) if c.name == "drill"]
    finally:
        worker.send_signal(signal.SIGINT)
        worker.wait(30)
    assert check.status == "ok" and f"{doctor.DRILL_STEPS} of {doctor.DRILL_STEPS} points" in check.text
    assert engine.store.count_runs(OPERATOR) == 0


def test_doctors_drill_starts_a_worker_where_the_operator_lets_it(engine, monkeypatch):
    monkeypatch.setenv("FDCORE_WORKER", "auto")
    try:
        [check] = [c for c in doctor.look(drill=True) if c.name == "drill"]
        [worker] = engine.store.workers()
        assert worker.alive and worker.pid != os.getpid()
    finally:
        for worker in engine.store.workers():
            if worker.alive:
                os.kill(worker.pid, signal.SIGTERM)
    assert check.status == "ok" and check.text.startswith("started after ")
    assert engine.store.count_runs(OPERATOR) == 0
    end = time.monotonic() + 30
    while supervisor.is_running(engine.config):
        assert time.monotonic() < end, "the worker does not end"
        time.sleep(0.05)


# ---- settings ------------------------------------------------------------------------------------------------------


def test_settings_travel_to_a_child_process():
    config = configuration.from_environment(
        {"FDCORE_DATA": "/x", "FDCORE_GPU_SLOTS": "-1", "FDCORE_MAX_RUN_HOURS": "1.5"}
    )
    assert config.max_run_hours == 1.5
    assert configuration.from_environment(config.environment()) == config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LONG_SLOTS", "-1"),
        ("POLL_SECONDS", "fast"),
        ("WORKER", "maybe"),
        ("WORKER_NAME", "a/b"),
        ("WORKER_NAME", ".."),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(name, value):
    with pytest.raises(UsageError) as refused:
        configuration.from_environment({"FDCORE_DATA": "/x", f"FDCORE_{name}": value})
    assert value in str(refused.value)


def test_every_setting_is_explained_with_its_default():
    text = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    assert list(configuration.MEANINGS) == [f.name for f in fields(configuration.Config)]
    for name, meaning in configuration.MEANINGS.items():
        default = getattr(configuration.Config(data=Path("~/.local/share/force-delta")), name)
        assert f"| `FDCORE_{name.upper()}` | {default if default != '' else '–'} | {meaning} |" in text
