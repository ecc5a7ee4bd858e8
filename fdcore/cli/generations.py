"""`fdcore generations`: the task that the engine runs, in this process."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any, TextIO

from fdcore import drift_report, generations, services
from fdcore.cli.finetune import opened, replay_of
from fdcore.cli.local import carry_out, record
from fdcore.cli.output import (
    EXIT_OK,
    EXIT_PARTLY,
    EXIT_STOPPED,
    print_failures,
    require_writable,
    write,
)
from fdcore.cli.stability import register
from fdcore.generations import Loop
from fdcore.label_files import as_extxyz
from fdcore.labels import LabelledSet
from fdcore.models import finetuned
from fdcore.records import Failure
from fdcore.services import dynamics
from fdcore.services import generations as loops
from fdcore.spec import ModelChoice, Spec


def run(arguments: argparse.Namespace, results: TextIO) -> int:
    """`fdcore generations`."""
    for name in ("json", "record"):
        require_writable(getattr(arguments, name))
    given = {
        name: getattr(arguments, flag.replace("-", "_"))
        for name, flag in loops.FLAGS.items()
        if hasattr(arguments, flag.replace("-", "_"))
    }
    register(given.get("reference"))
    loops.check_settings(given)
    parsed, card = opened(arguments)
    structures, refused = dynamics.movable(card, parsed.structures)
    failures = [*parsed.failures, *refused]
    print_failures(failures)
    if not structures:
        return EXIT_PARTLY
    replay = replay_of(arguments.replay, card, structures)
    spec = loops.spec_of(
        structures, replay, ModelChoice(card.id, arguments.dtype, arguments.device), given, seed=arguments.seed
    )
    print(
        f"{len(structures)} structures with {card.id}: {loops.estimate(spec, [*structures, *replay]).text}",
        file=sys.stderr,
    )

    def load(_: Spec) -> Any:
        return services.load_model(card.id, arguments.device, arguments.dtype, arguments.weights)

    with record(arguments.record, spec) as (folder, previous):
        outcome = carry_out(spec, [*structures, *replay], load, folder, previous, unit="%")
        found = generations.read(folder, spec, [*structures, *replay])
        provenance = loops.provenance(spec, outcome.summary)
        _keep(found, Path(arguments.out), provenance)
        # The folders of models may be gone afterwards.
        trained = {t.title: None if t.folder is None else finetuned.read(t.folder)[0].id for t in found.trainings}
    write(arguments.json, lambda: _json(found, failures, provenance, trained), results)
    if arguments.json != "-":
        for sentence in generations.sentences(found):
            print(sentence, file=results)
        print(f"models, labelled structures and the report are in {arguments.out}", file=results)
    if outcome.state == "failed":
        print(f"fdcore: {outcome.error} {outcome.hint or ''}".rstrip(), file=sys.stderr)
    if outcome.state == "cancelled":
        return EXIT_STOPPED
    return EXIT_PARTLY if failures or outcome.state == "failed" else EXIT_OK


def _keep(found: Loop, out: Path, provenance: dict[str, Any]) -> None:
    """Everything that a person wants to have, also of a loop that was stopped."""
    out.mkdir(parents=True, exist_ok=True)
    for training in found.trainings:
        if training.folder is not None:
            shutil.copytree(
                training.folder, out / training.stage.product, dirs_exist_ok=True, copy_function=shutil.copyfile
            )
    for generation in found.generations:
        known = LabelledSet.of(generation.structures)
        (out / f"generation-{generation.number}.extxyz").write_text(as_extxyz(known), encoding="utf-8")
    if any(m.runs or m.bands for m in found.measured.models):
        (out / "report.zip").write_bytes(drift_report.archive(found.measured, provenance, generations.story(found)))
        (out / "report.html").write_text(
            drift_report.html(found.measured, provenance, generations.story(found)), encoding="utf-8"
        )


def _json(found: Loop, failures: list[Failure], provenance: dict[str, Any], trained: dict[str, str | None]) -> str:
    document = drift_report.document(found.measured, provenance)
    document["sentences"] = generations.sentences(found)
    document["errors_before_and_after"] = generations.error_rows(found)
    document["trained"] = trained
    document["errors"] = [{"file": f.file, "error": f.error, "hint": f.hint} for f in failures]
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
