"""What an operator asks first when something is wrong: what is here, what is missing, what to do about it.

Each check looks at one thing and never raises: what it could not look at is a row that says so. Nothing secret is shown.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from fdcore import config as configuration
from fdcore import models
from fdcore.config import Config
from fdcore.errors import FdcoreError
from fdcore.human import duration, size
from fdcore.jobs.compute import count_gpus, slots
from fdcore.jobs.engine import Engine
from fdcore.jobs.supervisor import is_running
from fdcore.models.base import available_bytes, file_sha256
from fdcore.spec import Spec
from fdcore.store import database, schema
from fdcore.store.files import folder_size
from fdcore.store.records import Viewer
from fdcore.store.runs import Store
from fdcore.store.series import read_table

PACKAGES = ("force-delta", "torch", "orb-models", "fairchem-core", "ase", "streamlit", "dbos", "sqlalchemy", "h5py")
LOW_DISK, LOW_MEMORY = 2e9, 2e9
DRILL_STEPS = 20


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
        yield Check("settings", "fail", error.message, error.hint)
        return
    steps: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("settings", lambda: _settings(config)),
        ("data", lambda: _data(config)),
        ("database", lambda: _database(config)),
        ("workers", lambda: _workers(config)),
        ("runs", lambda: _runs(config)),
    ]
    if drill:
        steps.append(("drill", lambda: _drill(config)))
    for name, step in steps:
        yield from _safely(name, step)


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
    import torch

    threads = os.environ.get("OMP_NUM_THREADS")
    set_to = f", OMP_NUM_THREADS={threads}" if threads else ""
    yield Check("cpu", "ok", f"{os.cpu_count()} cores{set_to}")
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


def _memory() -> Iterator[Check]:
    free = available_bytes("cpu")
    low = free < LOW_MEMORY
    yield Check(
        "memory",
        "look" if low else "ok",
        f"{size(free)} free (what a container allows is counted)",
        "A full-size model needs 1 to 4 GB." if low else "",
    )


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
    others = [c for c in models.list_models() if c.weights != "embedded" and c.kind == "direct"]
    here = [c for c in others if models.is_here(c)]
    text = f"{len(here)} of {len(others)} downloadable models are on this machine"
    yield Check("models", "ok", text + (": " + ", ".join(c.id for c in here) if here else ""))


def _settings(config: Config) -> Iterator[Check]:
    usual = {f.name: f.default for f in fields(Config)}
    changed = [
        f"FDCORE_{name.upper()}={getattr(config, name)}"
        for name in configuration.MEANINGS
        if name not in ("data", "database_url") and getattr(config, name) != usual[name]
    ]
    yield Check("settings", "ok", "as shipped" if not changed else ", ".join(changed))


def _data(config: Config) -> Iterator[Check]:
    hint = "Set FDCORE_DATA to a folder that can be written."
    try:
        config.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=config.data):
            pass
    except OSError as error:
        yield Check("data", "fail", f"{config.data} cannot be written ({error.strerror})", hint)
        return
    free = shutil.disk_usage(config.data).free
    low = free < LOW_DISK
    yield Check(
        "data",
        "look" if low else "ok",
        f"{config.data}: runs hold {size(folder_size(config.runs))}, {size(free)} free on the disk",
        "Delete old runs: `fdcore runs prune --older-than 30d`." if low else "",
    )


def _database(config: Config) -> Iterator[Check]:
    address = make_url(config.url).render_as_string(hide_password=True)
    with Store(config).begin() as connection:
        connection.execute(sa.text("SELECT 1"))
        if not sa.inspect(connection).has_table(schema.migrations.name):
            yield Check("database", "ok", f"{address}, empty: the first run or worker prepares it")
            return
        applied = set(connection.execute(sa.select(schema.migrations.c.number)).scalars())
    newest = len(schema.MIGRATIONS)
    if max(applied, default=0) > newest:
        yield Check(
            "database", "fail", f"{address} was made by a newer version", "Install that version, or a newer one."
        )
    elif len(applied) < newest:
        yield Check(
            "database",
            "look",
            f"{address}: {newest - len(applied)} migrations are still to come",
            "They are made at the next start.",
        )
    else:
        yield Check("database", "ok", f"{address}, up to date")


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
        yield Check(
            "worker",
            "ok" if starts else "look",
            f"none runs; this machine would serve {slots(config)}",
            "The app starts one when it is opened." if starts else "Start one: `fdcore worker`.",
        )


def _runs(config: Config) -> Iterator[Check]:
    known = _existing(config)
    counts = (
        {}
        if known is None
        else {
            s: known.count_runs(Viewer.operator(), (s,)) for s in ("queued", "running", "done", "failed", "cancelled")
        }
    )
    yield Check("runs", "ok", ", ".join(f"{n} {s}" for s, n in counts.items() if n) or "none yet")


def _existing(config: Config) -> Store | None:
    """The store where there is one: looking must not make it."""
    store = Store(config)
    with store.begin() as connection:
        return store if sa.inspect(connection).has_table(schema.runs.name) else None


def _drill(config: Config) -> Iterator[Check]:
    engine = Engine(config)
    engine.app_is_open()
    operator = Viewer.operator()
    spec = Spec("drill", None, "", 0, {"steps": DRILL_STEPS}, seed=1)
    submitted = time.time()
    run_id = engine.submit("operator", spec, title="doctor's drill", lane="quick" if config.quick_slots else "long")
    try:
        run = engine.wait(operator, run_id, 90)
        folder = engine.folder(run)
        steps = [] if folder is None else list(read_table(folder, "steps").get("step", ()))
        good = run.state == "done" and steps == list(range(DRILL_STEPS))
        waited = (run.started_at or submitted) - submitted
        yield Check(
            "drill",
            "ok" if good else "fail",
            f"started after {duration(waited)}, {run.state}, {len(steps)} of {DRILL_STEPS} points read back",
            "" if good else f"{run.error or ''} The worker's log is in {config.data / 'workers'}.".strip(),
        )
    finally:
        if engine.store.run(operator, run_id).active:
            engine.cancel(operator, run_id)
            engine.wait(operator, run_id, 30)
        engine.delete(operator, run_id)
