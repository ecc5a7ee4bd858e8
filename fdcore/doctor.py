"""What an operator asks first when something is wrong: what is here, what is missing, what to do about it.

Each check looks at one thing and never raises: what it could not look at is a row that says so. Nothing secret is shown.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from fdcore import config as configuration
from fdcore import models
from fdcore.config import Config
from fdcore.errors import FdcoreError, RunStateError, StoreError, UsageError
from fdcore.human import duration, size
from fdcore.jobs import queue
from fdcore.jobs.compute import count_gpus, environment_of, slots
from fdcore.jobs.engine import Engine
from fdcore.jobs.supervisor import is_running
from fdcore.models.base import available_bytes, file_sha256
from fdcore.screening.inputs import offered
from fdcore.spec import Spec
from fdcore.store import database, schema
from fdcore.store.files import folder_size
from fdcore.store.records import ACTIVE, ENDED, Run, Viewer
from fdcore.store.runs import Store
from fdcore.store.series import Column, Recorder, read_table
from fdcore.tasks.drill import DrillTask

PACKAGES = ("force-delta", "torch", "orb-models", "fairchem-core", "ase", "streamlit", "dbos", "sqlalchemy", "h5py")
LOW_DISK, LOW_MEMORY = 2e9, 2e9
DRILL_STEPS, DRILL_SECONDS = 20, 90.0
# A worker that is starting, and a database on a machine that does not answer.
START_SECONDS, CONNECT_SECONDS = 60.0, 5
# SQLite's locks and HDF5's are not to be trusted there.
NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "fuse.sshfs", "9p", "ceph", "glusterfs")
OPERATOR = Viewer.operator()


@dataclass(frozen=True)
class Check:
    """One row. ok: as it should be; look: works, but somebody may want to know; fail: something will not work."""

    name: str
    status: Literal["ok", "look", "fail"]
    text: str
    hint: str = ""


def look(*, drill: bool = False) -> Iterator[Check]:
    """All checks, one after another; `drill` also sends a short run through the engine and deletes it again."""
    yield from _safely("program", _program)
    yield from _safely("device", _device)
    yield from _safely("memory", _memory)
    yield from _safely("models", _models)
    try:
        config = configuration.from_environment()
    except FdcoreError as error:
        yield Check("settings", "fail", error.message, f"{error.hint} Data, database and workers were not looked at.")
        return
    yield from _safely("settings", lambda: _settings(config))
    yield from _safely("data", lambda: _data(config))
    yield from _safely("hdf5", lambda: _hdf5(config))
    with _connecting_soon_or_never():
        found = list(_safely("database", lambda: _database(config)))
        yield from found
        steps: dict[str, Callable[[Config], Iterator[Check]]] = {"worker": _workers, "runs": _runs}
        if drill:
            steps["drill"] = _drill
        for name, step in steps.items():
            if any(check.status == "fail" for check in found):
                yield Check(name, "fail", "not looked at: it needs the database")
            else:
                yield from _safely(name, lambda step=step: step(config))


@contextlib.contextmanager
def _connecting_soon_or_never() -> Iterator[None]:
    """A PostgreSQL that does not answer is told within seconds; without a limit it takes minutes."""
    kept = os.environ.get("PGCONNECT_TIMEOUT")
    os.environ["PGCONNECT_TIMEOUT"] = kept or str(CONNECT_SECONDS)
    try:
        yield
    finally:
        if kept is None:
            del os.environ["PGCONNECT_TIMEOUT"]


def _safely(name: str, step: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    try:
        yield from step()
    except FdcoreError as error:
        yield Check(name, "fail", error.message, error.hint)
    except Exception as error:  # a check must not take the others with it
        yield Check(name, "fail", f"could not be looked at ({type(error).__name__}: {str(error)[:200]})")


def _program() -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    found, missing = [], []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    yield Check("packages", "ok", ", ".join(found))
    if missing:
        yield Check("packages", "fail", f"missing: {', '.join(missing)}", "Install the program again (`make install`).")
    used = database.sqlite_module()
    recent = used.sqlite_version_info >= database.SQLITE_NEEDED
    yield Check(
        "sqlite",
        "ok" if recent else "fail",
        f"{used.sqlite_version} of {used.__name__}",
        "" if recent else "The job engine needs SQLite 3.42: install pysqlite3.",
    )


def _device() -> Iterator[Check]:
    yield Check("cpu", "ok", _cores())
    import torch

    if not torch.cuda.is_available():
        unseen = count_gpus()
        yield Check(
            "gpu",
            "look" if unseen else "ok",
            f"{unseen} on the machine, but torch cannot use it" if unseen else "none: models run on the CPU",
            "Install a CUDA build of torch that fits the driver." if unseen else "",
        )
        return
    for k in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(k)
        yield Check("gpu", "ok", f"cuda:{k} {torch.cuda.get_device_name(k)}, {size(free)} of {size(total)} free")


def _cores() -> str:
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    text = f"{cores} cores" + (f", {usable} of them for this process" if usable < cores else "")
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            text += f", container limit {int(quota) / int(period):g}"
    with contextlib.suppress(FdcoreError):
        text += f"; {environment_of(configuration.from_environment(), 'quick', 0)['OMP_NUM_THREADS']} thread(s) per run"
    return text


def _memory() -> Iterator[Check]:
    free = available_bytes("cpu")
    low = free < LOW_MEMORY
    text = f"{size(free)} free of {size(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))}"
    with contextlib.suppress(OSError, ValueError):
        text += f", container limit {size(int(Path('/sys/fs/cgroup/memory.max').read_text()))}"
    yield Check("memory", "look" if low else "ok", text, "A full-size model needs 1 to 4 GB." if low else "")


def _models() -> Iterator[Check]:
    from fdcore import data

    card = models.card(models.DEFAULT_MODEL)
    file = data.path("models", f"{card.id}.safetensors")
    right = file_sha256(Path(str(file))) == card.sha256
    yield Check(
        "models",
        "ok" if right else "fail",
        f"{card.id} comes with the program" + ("" if right else ", but its file is not the one it should be"),
        "" if right else "Install the program again.",
    )
    others = [c for c in models.list_models() if c.weights in ("download", "gated") and c.kind == "direct"]
    here = {c.id: file for c in others if (file := import_module(models.FAMILIES[c.family].cards).cached_file(c))}
    text = f"{len(here)} of {len(others)} downloadable models are on this machine"
    if here:
        text += f": {', '.join(here)} ({size(sum(f.stat().st_size for f in here.values()))})"
    yield Check("models", "ok", text)


def _settings(config: Config) -> Iterator[Check]:
    """What differs from the default; the data folder and the database have rows of their own."""
    known = {configuration.variable(f.name): f for f in fields(Config)}
    changed = [
        f"{name}={getattr(config, field.name)}"
        for name, field in known.items()
        if field.name not in ("data", "database_url") and getattr(config, field.name) != field.default
    ]
    yield Check("settings", "ok", ", ".join(changed) or "as shipped")
    for name in sorted(os.environ):
        if name.startswith("FDCORE_") and name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else "docs/operating.md lists those that there are."
            yield Check("settings", "look", f"{name} is not a setting and does nothing", hint)


def _data(config: Config) -> Iterator[Check]:
    try:
        config.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=config.data):
            pass
    except OSError as error:
        hint = "Set FDCORE_DATA to a folder that can be written, or mend its owner and permissions."
        yield Check("data", "fail", f"{config.data} cannot be written ({error.strerror})", hint)
        return
    free = shutil.disk_usage(config.data).free
    low = free < LOW_DISK
    yield Check(
        "data",
        "look" if low else "ok",
        f"{config.data}: runs hold {size(folder_size(config.runs) + folder_size(config.screens))}, {size(free)} free on the disk",
        "Delete old runs: `fdcore runs prune --older-than 30d`." if low else "",
    )
    try:
        offered(config.screen_folder)
    except UsageError:
        yield Check(
            "data", "fail", f"{config.screen_folder} cannot be read", "Correct FDCORE_SCREEN_FOLDER, or unset it."
        )
    kind = _file_system(config.data)
    if config.sqlite and kind in NETWORK_FILE_SYSTEMS:
        yield Check(
            "data",
            "look",
            f"SQLite on a network file system ({kind}) can be damaged",
            "Put FDCORE_DATA on a local disk, or set FDCORE_DATABASE_URL to a PostgreSQL.",
        )


def _file_system(path: Path) -> str:
    """The kind of file system that holds a path; empty where the system does not say."""
    mounts: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, place, kind, *_ = line.split()
            mounts[place.replace("\\040", " ")] = kind
    real = path.resolve()
    return next((mounts[str(p)] for p in (real, *real.parents) if str(p) in mounts), "")


def _hdf5(config: Config) -> Iterator[Check]:
    """Whether a growing record can be read on this file system while it is written: what every run relies on."""
    import h5py

    text = f"h5py {h5py.version.version}, HDF5 {h5py.version.hdf5_version}"
    place = config.data if os.access(config.data, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place, prefix="doctor-", ignore_cleanup_errors=True) as folder:
        recorder = Recorder(Path(folder) / "trial", {"t": {"x": Column()}})
        try:
            recorder.append("t", {"x": [1.0, 2.0]})
            recorder.flush()
            seen = read_table(recorder.folder, "t").get("x", np.zeros(0)).tolist()
        finally:
            recorder.close()
    good = seen == [1.0, 2.0]
    yield Check(
        "hdf5",
        "ok" if good else "fail",
        text + ("" if good else f": what is being written to {config.data} cannot be read meanwhile"),
        "" if good else "Put FDCORE_DATA on a local disk, or a file system with POSIX semantics.",
    )


def _database(config: Config) -> Iterator[Check]:
    address, hint = _address(config), ""
    try:
        store = Store(config)
        with store.engine.begin() as connection:
            connection.execute(sa.text("SELECT 1"))
            if not sa.inspect(connection).has_table(schema.migrations.name):
                yield Check("database", "ok", f"{address}, empty: the first run or worker prepares it")
                return
            applied = set(connection.execute(sa.select(schema.migrations.c.number)).scalars())
        theirs, newest_of_engine = queue.migrations(config)
    except (SQLAlchemyError, ValueError) as error:
        if config.sqlite:
            hint = (
                "Move the file away (a copy may be mended by `sqlite3 FILE .recover`), or set FDCORE_DATA to another."
            )
        else:
            hint = "Check that the server runs and that FDCORE_DATABASE_URL has the right host, name and password."
        yield Check("database", "fail", f"{address} cannot be used: {_reason(error, config)}", hint)
        return
    newest = len(schema.MIGRATIONS)
    if max(applied, default=0) > newest:
        yield Check(
            "database", "fail", f"{address} was made by a newer version", "Install that version, or a newer one."
        )
    elif len(applied) < newest or theirs < newest_of_engine:
        yield Check(
            "database",
            "look",
            f"{address}: {newest - len(applied)} migrations of ours and {max(0, newest_of_engine - theirs)} of the job "
            "engine are still to come",
            "They are made at the next start.",
        )
    else:
        yield Check("database", "ok", f"{address}, up to date (tables {newest}, job engine {theirs})")


def _address(config: Config) -> str:
    """Where the database is, without what only its users may know."""
    try:
        url = make_url(config.url)
        return url.set(query={}).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return "FDCORE_DATABASE_URL"


def _reason(error: Exception, config: Config) -> str:
    """The first line of what the driver says. It may quote what it was given: every secret of the address is taken out."""
    cause = getattr(error, "orig", None) or error
    text = (str(cause).strip().splitlines() or [type(cause).__name__])[0][:200]
    try:
        url = make_url(config.url)
    except (ArgumentError, ValueError):
        return "it is not an address such as postgresql+psycopg://user:password@host/database"
    secrets = [str(url.password or ""), *(str(v) for v in url.query.values())]
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return text


def _workers(config: Config) -> Iterator[Check]:
    known = _existing(config)
    listed = known.workers() if known is not None else ()
    for worker in listed:
        lanes = ", ".join(f"{count} {lane}" for lane, count in worker.lanes.items() if count)
        yield Check(
            "worker",
            "ok" if worker.alive else "look",
            f"{worker.name} on {worker.host}: {'serves ' + lanes if worker.alive else 'is not running'}, "
            f"last heard of {duration(worker.silent_seconds)} ago",
        )
    if not any(w.alive for w in listed) and not is_running(config):
        starts = config.worker == "auto"
        here = ", ".join(f"{count} {lane}" for lane, count in slots(config).items() if count)
        yield Check(
            "worker",
            "ok" if starts else "look",
            f"none runs; this machine would serve {here or 'nothing'}",
            "The app starts one when it is opened." if starts else "Start one: `fdcore worker`.",
        )


def _runs(config: Config) -> Iterator[Check]:
    known = _existing(config)
    counts = {} if known is None else {state: known.count_runs(OPERATOR, (state,)) for state in (*ACTIVE, *ENDED)}
    yield Check("runs", "ok", ", ".join(f"{n} {state}" for state, n in counts.items() if n) or "none yet")


def _existing(config: Config) -> Store | None:
    """The store where there is one: looking must not make it."""
    store = Store(config)
    with store.begin() as connection:
        return store if sa.inspect(connection).has_table(schema.runs.name) else None


# ---- the drill -----------------------------------------------------------------------------------------------------


def _drill(config: Config) -> Iterator[Check]:
    """A run without a model through the real engine, from submitting to reading back; then it is deleted."""
    engine = Engine(config)
    engine.app_is_open()
    lane = _served_lane(engine)
    if lane is None:
        hint = "Start one: `fdcore worker`." if config.worker == "none" else f"Its log is in {config.data / 'workers'}."
        yield Check("drill", "fail", "no worker serves a lane of the CPU", hint)
        return
    spec = Spec(DrillTask.name, None, "", 0, {"steps": DRILL_STEPS}, seed=1)
    run_id = engine.submit("doctor", spec, title="doctor's drill", lane=lane)
    try:
        try:
            run = engine.wait(OPERATOR, run_id, DRILL_SECONDS)
        except RunStateError:
            run = engine.store.run(OPERATOR, run_id)
            text = f"not done after {duration(DRILL_SECONDS)}: {run.state}, {run.text or 'not begun'}"
            yield Check("drill", "fail", text, f"The worker may be busy; its log is in {config.data / 'workers'}.")
            return
        wrong = _wrong(engine, run)
        started = duration(None if run.started_at is None else run.started_at - run.created_at)
        yield Check(
            "drill",
            "fail" if wrong else "ok",
            wrong
            or f"started after {started}, done after {duration(_since(run))}, {DRILL_STEPS} of {DRILL_STEPS} "
            "points read back, the end is right",
            f"{run.hint or ''} The worker's log is in {config.data / 'workers'}.".strip() if wrong else "",
        )
    finally:
        _forget(engine, run_id)


def _served_lane(engine: Engine) -> str | None:
    """A lane of the CPU that a live worker serves; one that is starting is waited for."""
    until = time.monotonic() + START_SECONDS
    while True:
        served = {lane for w in engine.store.workers() if w.alive for lane, count in w.lanes.items() if count}
        if served & {"quick", "long"}:
            return "quick" if "quick" in served else "long"
        starting = engine.config.worker == "auto" or is_running(engine.config)
        if not starting or time.monotonic() > until:
            return None
        time.sleep(0.1)


def _wrong(engine: Engine, run: Run) -> str:
    """What is not as it should be about a drill that has ended; empty where all is well."""
    if run.state != "done":
        return f"the run ended as {run.state}: {run.error or run.text}"
    folder = engine.folder(run)
    table = {} if folder is None else read_table(folder, "steps")
    steps = list(table.get("step", ()))
    if steps != list(range(DRILL_STEPS)):
        return f"{len(steps)} points were read back, not {DRILL_STEPS}"
    # The walk is made here once more: what was recorded must be it, and not only have its length.
    walk = np.random.Generator(np.random.PCG64(run.spec.seed)).standard_normal((DRILL_STEPS, 3)).cumsum(axis=0)
    end = (run.summary or {}).get("end")
    if not np.allclose(table["position"], walk) or end is None or not np.allclose(end, walk[-1]):
        return "what was read back is not what the run computed"
    return ""


def _since(run: Run) -> float | None:
    return None if run.ended_at is None else run.ended_at - run.created_at


def _forget(engine: Engine, run_id: str) -> None:
    """Leave nothing behind; a run that cannot be stopped now is left to the history rather than to a second error."""
    with contextlib.suppress(RunStateError, StoreError):
        if engine.store.run(OPERATOR, run_id).active:
            engine.cancel(OPERATOR, run_id)
            engine.wait(OPERATOR, run_id, 30)
        engine.delete(OPERATOR, run_id)
