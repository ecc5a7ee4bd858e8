"""`fdcore reproduce`: the task that the engine runs, in this process."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, TextIO

from fdcore import models, reproduction, reproduction_report, services
from fdcore.cli.local import carry_out, record, say
from fdcore.cli.output import (
    EXIT_OK,
    EXIT_PARTLY,
    EXIT_STOPPED,
    print_failures,
    read_structures,
    require_writable,
    write,
)
from fdcore.cli.stability import register
from fdcore.errors import UsageError
from fdcore.services import reproduce


def run(arguments: argparse.Namespace, results: TextIO) -> int:
    """`fdcore reproduce`."""
    require_writable(arguments.json)
    require_writable(arguments.out)
    services.check_device(arguments.device)
    reproduce.targets_of(tuple(arguments.targets))
    weights = _weights(arguments.weights)
    failures, own = [], ()
    if arguments.structures:
        parsed = read_structures(arguments.structures)
        own, failures = parsed.structures, list(parsed.failures)
        print_failures(failures)
        if not own:
            return EXIT_PARTLY
    if arguments.reference not in (None, reproduce.NOBODY):
        register(arguments.reference)
    asked = reproduce.question(
        arguments.targets,
        preset=arguments.preset,
        structures=own,
        chosen=arguments.models,
        reference=arguments.reference,
        effort=dict(arguments.set),
        dtype=arguments.dtype,
        device=arguments.device,
        seed=arguments.seed,
    )
    for note in asked.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"fdcore: {reproduce.cost(asked)}", file=sys.stderr)
    if arguments.plan:
        _plan(asked, arguments.json, results)
        return EXIT_OK
    out = Path(arguments.out)
    out.mkdir(exist_ok=True)

    def load(spec: Any) -> Any:
        return services.load_model(spec.model.id, arguments.device, arguments.dtype, weights.get(spec.model.id))

    def further(model_id: str) -> Any:
        return models.load_predictor(model_id, arguments.device, arguments.dtype, weights.get(model_id))

    with record(str(out / "record"), asked.spec) as (folder, previous):
        outcome = carry_out(asked.spec, asked.structures, load, folder, previous, unit=" ", load_further=further)
        found = reproduction.read(folder, asked.spec, asked.structures)
        provenance = reproduce.provenance(asked.spec, outcome.summary)
        for name, content in reproduction_report.files(found, provenance).items():
            (out / name).write_bytes(content.encode() if isinstance(content, str) else content)
        document = reproduction_report.document(found, provenance)
    document["errors"] = [{"file": f.file, "error": f.error, "hint": f.hint} for f in failures]
    write(arguments.json, lambda: json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n", results)
    if arguments.json != "-":
        for sentence in reproduction.sentences(found):
            print(sentence, file=results)
        print(f"\nnumbers, figures and the page are in {out}: {out / 'report.html'}", file=results)
    for name, reason in found.failed.items():
        print(f"not done: {name}: {reason}", file=sys.stderr)
    say(outcome, arguments.out, len(found.seconds))
    if outcome.state == "cancelled":
        return EXIT_STOPPED
    return EXIT_PARTLY if failures or found.failed or outcome.state == "failed" else EXIT_OK


def _plan(asked: reproduce.Question, path: str | None, results: TextIO) -> None:
    rows = [
        {"part": p.name, "task": p.task, "model": p.model or None, "parameters": dict(p.parameters)}
        for p in asked.parts
    ]
    write(path, lambda: json.dumps({"parts": rows}, indent=1, allow_nan=False) + "\n", results)
    if path != "-":
        for row in rows:
            print(f"{row['task']:<12} {row['part']}", file=results)


def _weights(given: list[str]) -> dict[str, str]:
    out: dict[str, str] = {}
    for text in given:
        model_id, equals, path = text.partition("=")
        if not equals:
            raise UsageError(f"--weights {text} names no model.", "Write ID=PATH.")
        if not Path(path).is_file():
            raise UsageError(f"There is no file {path}.", "Check the path given with --weights.")
        out[services.card(model_id).id] = path
    return out
