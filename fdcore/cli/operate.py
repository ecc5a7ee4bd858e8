"""`fdcore worker` and `fdcore doctor`: for whoever keeps the program running."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import asdict, replace
from typing import Any, TextIO

from fdcore import config as configuration
from fdcore.cli.output import require_writable, write
from fdcore.errors import UsageError
from fdcore.jobs import queue

_SIGNS = {"ok": "ok  ", "look": "look", "fail": "FAIL"}


def add_verbs(verbs: Any) -> None:
    worker = verbs.add_parser("worker", help="serve waiting runs on this machine, in the foreground")
    worker.add_argument("--name", help="of this worker among those that share a database")
    worker.add_argument("--lanes", help=f"only these, with commas: {','.join(queue.LANES)}")
    worker.set_defaults(run=_worker)

    doctor = verbs.add_parser(
        "doctor", help="look at the installation: versions, device, memory, database, workers, disk"
    )
    doctor.add_argument("--drill", action="store_true", help="also send a short run through the engine")
    doctor.add_argument("--json", metavar="PATH", help="write JSON; - for standard output and nothing else")
    doctor.set_defaults(run=_doctor)


def _worker(arguments: argparse.Namespace, results: TextIO) -> int:
    del results
    from fdcore.jobs.supervisor import AlreadyRunning, Supervisor

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
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stderr, datefmt="%H:%M:%S")
    logging.getLogger("fdcore").setLevel(logging.INFO)
    try:
        supervisor = Supervisor(config)
    except AlreadyRunning as error:
        raise UsageError(
            f"A worker called {config.name} is running already on this machine.",
            "The app starts one by itself; FDCORE_WORKER=none leaves that to you.",
        ) from error
    print(
        f"fdcore: worker {config.name}, {supervisor.lanes}; Ctrl-C ends it, and its runs go on later", file=sys.stderr
    )
    supervisor.run()
    print("fdcore: ended; what was running has gone back to its lane and goes on with the next worker", file=sys.stderr)
    return 0


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


def _doctor(arguments: argparse.Namespace, results: TextIO) -> int:
    require_writable(arguments.json)
    from fdcore import doctor

    checks = []
    for check in doctor.look(drill=arguments.drill):
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
    return 1 if any(c.status == "fail" for c in checks) else 0
