"""`fdcore worker`, `doctor` and `app`: for whoever keeps the program running."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TextIO

from fdcore import config as configuration
from fdcore.cli.output import EXIT_OK, EXIT_PARTLY, require_writable, write
from fdcore.errors import FdcoreError, StoreError, UsageError
from fdcore.jobs import queue, supervisor
from fdcore.jobs.compute import slots

_SIGNS = {"ok": "ok  ", "look": "look", "fail": "FAIL"}


def worker(arguments: argparse.Namespace, results: TextIO) -> int:
    del results
    config = configuration.from_environment()
    if arguments.name:
        if config.sqlite:
            raise UsageError(
                "A worker on SQLite has no name of its own: one file has one worker.",
                "Leave --name out, or set FDCORE_DATABASE_URL to a PostgreSQL that several machines share.",
            )
        config = configuration.named(config, arguments.name)
    if arguments.lanes:
        config = _only(config, arguments.lanes)
    lanes = ", ".join(f"{count} {lane}" for lane, count in slots(config).items() if count)
    if not lanes:
        raise UsageError(
            "This worker would serve nothing: none of its lanes has a slot on this machine.",
            "The gpu lane needs a CUDA device; FDCORE_QUICK_SLOTS and FDCORE_LONG_SLOTS count the runs at once.",
        )
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stderr, datefmt="%H:%M:%S")
    logging.getLogger("fdcore").setLevel(logging.INFO)
    try:
        serving = supervisor.Supervisor(config)
    except supervisor.AlreadyRunning as error:
        raise UsageError(
            f"A worker called {config.name} is running already on this machine.",
            "The app starts one by itself; FDCORE_WORKER=none leaves that to you.",
        ) from error
    except OSError as error:
        raise StoreError(
            f"The data folder {config.data} cannot be written ({error.strerror}).", "Set FDCORE_DATA to another."
        ) from error
    print(f"fdcore: worker {config.name} serves {lanes}; Ctrl-C ends it, and its runs go on later", file=sys.stderr)
    serving.run()
    print("fdcore: ended; what was running has gone back to its lane and goes on with the next worker", file=sys.stderr)
    return EXIT_OK


def _only(config: configuration.Config, text: str) -> configuration.Config:
    lanes = set(filter(None, text.split(",")))
    unknown = sorted(lanes - set(queue.LANES))
    if unknown or not lanes:
        raise UsageError(
            f"There is no lane {', '.join(unknown) or repr(text)}.", f"Known are {', '.join(queue.LANES)}."
        )
    return replace(
        config,
        quick_slots=config.quick_slots if "quick" in lanes else 0,
        long_slots=config.long_slots if "long" in lanes else 0,
        gpu_slots=config.gpu_slots if "gpu" in lanes else 0,
    )


def doctor(arguments: argparse.Namespace, results: TextIO) -> int:
    require_writable(arguments.json)
    from fdcore.doctor import look

    checks = []
    for check in look(drill=arguments.drill):
        checks.append(check)
        if arguments.json != "-":
            print(f"{_SIGNS[check.status]}  {check.name:<12} {check.text}", file=results, flush=True)
            if check.hint:
                print(f"{'':19}-> {check.hint}", file=results, flush=True)
    write(
        arguments.json,
        lambda: json.dumps({"checks": [asdict(c) for c in checks]}, indent=1, ensure_ascii=False) + "\n",
        results,
    )
    return EXIT_PARTLY if any(c.status == "fail" for c in checks) else EXIT_OK


def app(arguments: argparse.Namespace, results: TextIO) -> int:
    del results
    package = Path(__file__).resolve().parents[1]
    places = (package.parent / "app.py", package / "_app" / "app.py")
    script = next((p for p in places if p.is_file()), None)
    if script is None:
        raise UsageError("app.py is not installed beside fdcore.", "Install the package again, or run from a checkout.")
    command = [sys.executable, "-m", "streamlit", "run", str(script)]
    command += ["--server.port", str(arguments.port), "--server.address", arguments.address]
    if arguments.headless:
        command += ["--server.headless", "true"]
    # Loading a model takes longest: it begins before the server does.
    with contextlib.suppress(FdcoreError, OSError):  # the pages say what is wrong with the data folder
        supervisor.app_is_open(configuration.from_environment())
    # Streamlit reads .streamlit/config.toml from the working directory.
    return subprocess.call(command, cwd=script.parent)
