"""`fdcore runs`: the history of this machine (or of the database it shares), as its operator sees it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from fdcore.cli.output import require_writable, write
from fdcore.errors import RunStateError, UnknownRunError, UsageError
from fdcore.human import duration, size
from fdcore.services import runs
from fdcore.store.records import ACTIVE, ENDED

# Whoever can read the database and its files is the operator.
OPERATOR = runs.Viewer.operator()
STATES = (*ACTIVE, *ENDED)
_DAYS = {"h": 1 / 24, "d": 1.0, "w": 7.0}


def listing(arguments: argparse.Namespace, results: TextIO) -> int:
    require_writable(arguments.json)
    viewer = runs.Viewer(arguments.owner) if arguments.owner else OPERATOR
    found = runs.list_runs(viewer, states=_states(arguments.state, STATES), limit=max(arguments.limit, 1))
    if arguments.json:
        rows = [{**runs.document(r), "owner": r.owner} for r in found]
        write(arguments.json, lambda: json.dumps(rows, indent=1, ensure_ascii=False) + "\n", results)
    if arguments.json == "-":
        return 0
    if not found:
        print("no runs", file=results)
        return 0
    print(f"{'id':<9} {'state':<10} {'task':<6} {'submitted':<17} {'took':>7} {'size':>8} att  what", file=results)
    for run in found:
        print(
            f"{run.id[:8]:<9} {run.state:<10} {run.task:<6} {_local(run.created_at):<17} {duration(run.seconds):>7} "
            f"{size(run.bytes):>8} {run.attempt:>3}  {run.title}{_how_far(run)}",
            file=results,
        )
    return 0


def show(arguments: argparse.Namespace, results: TextIO) -> int:
    require_writable(arguments.json)
    run = runs.find(OPERATOR, _beginning(arguments.id))
    waits = asdict(runs.waiting(run)) if run.state == "queued" else None
    document = runs.document(run) | {"owner": run.owner, "worker": run.worker, "folder": _folder(run), "waiting": waits}
    if arguments.json:
        write(arguments.json, lambda: json.dumps(document, indent=1, ensure_ascii=False) + "\n", results)
    if arguments.json == "-":
        return 0
    spec = run.spec
    lines = {
        "run": run.id,
        "what": f"{run.title} ({run.task})",
        "state": run.state + _how_far(run),
        "submitted": _local(run.created_at),
        "started": _local(run.started_at),
        "ended": _local(run.ended_at),
        "took": duration(run.seconds),
        "model": f"{spec.model.id}, {spec.model.dtype}, {spec.model.device}" if spec.model else "none",
        "structures": str(spec.n_structures),
        "parameters": json.dumps(dict(spec.parameters)),
        "seed": str(spec.seed),
        "spec": run.spec_sha256,
        "lane": run.lane + _waits(run),
        "kept": f"{size(run.bytes)} in {_folder(run) or 'no folder yet'}",
        "continues": run.parent or "",
        "error": f"{run.error or ''} {run.hint or ''}".strip(),
        "found": json.dumps(dict(run.summary)) if run.summary else "",
    }
    for name, text in lines.items():
        if text:
            print(f"{name:<11} {text}", file=results)
    for attempt in runs.attempts(run):
        print(
            f"attempt {attempt.number:<3} on {attempt.worker}: from {attempt.done_at_start:g} to {attempt.done_at_end:g}, "
            f"{attempt.outcome}{': ' + attempt.note if attempt.note else ''}",
            file=results,
        )
    return 0


def cancel(arguments: argparse.Namespace, results: TextIO) -> int:
    code = 0
    # All names first: a typing mistake in the last must not leave the others half done.
    for run in [runs.find(OPERATOR, _beginning(i)) for i in arguments.ids]:
        try:
            now = runs.cancel(OPERATOR, run.id)
        except RunStateError as error:
            print(f"fdcore: {run.id[:8]}: {error.message}", file=sys.stderr)
            code = 1
        else:
            print(f"{run.id[:8]} {'cancelled' if now.state == 'cancelled' else 'asked to stop'}", file=results)
    return code


def export(arguments: argparse.Namespace, results: TextIO) -> int:
    run = runs.find(OPERATOR, _beginning(arguments.id))
    if arguments.out == "-":
        runs.export(OPERATOR, run.id, results.buffer)  # pyright: ignore[reportAttributeAccessIssue]
        results.buffer.flush()  # pyright: ignore[reportAttributeAccessIssue]
        return 0
    path = Path(arguments.out or f"run-{run.id[:8]}.zip")
    require_writable(str(path))
    if path.exists() and not arguments.force:
        raise UsageError(f"{path} exists already.", "Give another name with --out, or --force to overwrite it.")
    # A half-written archive must never bear the name of a whole one.
    with tempfile.TemporaryDirectory(dir=path.resolve().parent, prefix=".fdcore-") as folder:
        fresh = Path(folder) / "run.zip"
        with fresh.open("wb") as stream:
            runs.export(OPERATOR, run.id, stream)
        os.replace(fresh, path)
    print(f"{path}: {size(path.stat().st_size)}", file=results)
    return 0


def prune(arguments: argparse.Namespace, results: TextIO) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", arguments.older_than)
    if match is None:
        raise UsageError(f"{arguments.older_than!r} is no age.", "Write 12h, 30d or 8w.")
    days = float(match[1]) * _DAYS[match[2]]
    old = runs.ended_longer_ago(OPERATOR, days, _states(arguments.state, ENDED))
    for run in old:
        print(
            f"{run.id[:8]} {run.state:<10} ended {_local(run.ended_at)} {size(run.bytes):>8}  {run.title}", file=results
        )
    total = f"{len(old)} run{'' if len(old) == 1 else 's'}, {size(sum(r.bytes for r in old))}"
    if arguments.dry_run or not old:
        print(f"{total}; nothing was deleted", file=results)
        return 0
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise UsageError(f"This would delete {total}.", "Say --yes, or --dry-run to look only.")
        print(f"Delete {total} for good? [y/N] ", end="", file=sys.stderr, flush=True)
        if input().strip().lower() not in ("y", "yes"):
            print("nothing was deleted", file=results)
            return 0
    for run in old:
        # The worker's own retention, or its owner, may have been quicker.
        with contextlib.suppress(UnknownRunError):
            runs.delete(OPERATOR, run.id)
    print(f"deleted {total}", file=results)
    return 0


def _beginning(text: str) -> str:
    if re.fullmatch(r"[0-9a-f]{4,32}", text) is None:
        raise UsageError(f"{text!r} is no run.", "Give its id, or at least the first four characters of it.")
    return text


def _states(text: str | None, known: Sequence[str]) -> tuple[Any, ...]:
    wanted = tuple(filter(None, (text or "").split(",")))
    unknown = [w for w in wanted if w not in known]
    if unknown:
        raise UsageError(f"There is no state {unknown[0]!r} here.", f"Known are {', '.join(known)}.")
    return wanted


def _local(seconds: float | None) -> str:
    return "–" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _how_far(run: runs.Run) -> str:
    if run.state == "running":
        left = f", about {duration(run.seconds_left)} left" if run.seconds_left is not None else ""
        return f": {run.text}{left}"
    return f": {run.error}" if run.error else ""


def _waits(run: runs.Run) -> str:
    if run.state != "queued":
        return ""
    waits = runs.waiting(run)
    if not waits.slots:
        return ": waits for a worker, none serves it"
    return f": {waits.ahead} before it, {waits.holding} running in {waits.slots} slot{'' if waits.slots == 1 else 's'}"


def _folder(run: runs.Run) -> str | None:
    found = runs.folder(run)
    return None if found is None else str(found)
