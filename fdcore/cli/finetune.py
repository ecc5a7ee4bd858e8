"""`fdcore finetune`: the task that the engine runs, in this process."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from fdcore import finetuning, services
from fdcore.cli.local import carry_out, record
from fdcore.cli.output import (
    EXIT_OK,
    EXIT_PARTLY,
    EXIT_STOPPED,
    print_failures,
    read_structures,
    require_writable,
    write,
)
from fdcore.errors import UsageError
from fdcore.export import failure_row
from fdcore.finetuning import Trained
from fdcore.finetuning_files import errors_csv
from fdcore.models import finetuned
from fdcore.records import Failure, ModelCard, Structure
from fdcore.services import finetune
from fdcore.spec import ModelChoice, Spec
from fdcore.structures import Parsed

NO_REPLAY = "none"


def run(arguments: argparse.Namespace, results: TextIO) -> int:
    """`fdcore finetune`."""
    outputs = [name for name in ("json", "csv") if getattr(arguments, name) == "-"]
    if len(outputs) > 1:
        raise UsageError("Only one of --json and --csv can write to standard output.", "Give the other a path.")
    for name in ("json", "csv", "record"):
        require_writable(getattr(arguments, name))
    given = {name: getattr(arguments, name) for name in finetune.FLAGS if hasattr(arguments, name)}
    # What cannot be asked for is told before files are read; how many groups there must be, they say.
    finetune.check_settings({name: value for name, value in given.items() if name != "groups"})
    parsed, card = opened(arguments)
    structures, refused = finetune.trainable(card, parsed.structures)
    failures = [*parsed.failures, *refused]
    print_failures(failures)
    if not structures:
        raise UsageError("None of the structures has labels that can be trained on.", "Label them first: fdcore label.")
    replay = replay_of(arguments.replay, card, structures)
    choice = ModelChoice(card.id, arguments.dtype, arguments.device)
    groups = given.pop("groups", None)
    spec = finetune.spec_of(structures, replay, choice, given, seed=arguments.seed, groups=groups)
    print(
        f"{len(structures)} labelled structures, {len(replay)} to look at; {finetune.estimate(card, spec, structures).text}",
        file=sys.stderr,
    )

    def load(_: Spec) -> Any:
        return services.load_model(card.id, arguments.device, arguments.dtype, arguments.weights)

    with record(arguments.record, spec) as (folder, previous):
        outcome = carry_out(spec, [*structures, *replay], load, folder, previous)
        found = finetuning.read(folder)
        place = _keep(found, arguments.out)
        write(arguments.json, lambda: _json(found, place, failures, spec), results)
        write(arguments.csv, lambda: errors_csv(found), results)
        if not outputs:
            _print(found, place, results)
    if outcome.state == "failed":
        print(f"fdcore: {outcome.error} {outcome.hint or ''}".rstrip(), file=sys.stderr)
    if outcome.state == "cancelled":
        kept = arguments.record is not None
        print(
            "fdcore: stopped; " + ("repeat the command to go on" if kept else "nothing is kept without --record"),
            file=sys.stderr,
        )
        return EXIT_STOPPED
    return EXIT_PARTLY if failures or outcome.state == "failed" else EXIT_OK


def opened(arguments: argparse.Namespace) -> tuple[Parsed, ModelCard]:
    """The structures, and the base model named by `--base` or the one that suits them. UsageError for what cannot be done with it, or
    where the result cannot be put."""
    services.check_device(arguments.device)
    if arguments.weights is not None and not Path(arguments.weights).is_file():
        raise UsageError(f"There is no file {arguments.weights}.", "Check the path given with --weights.")
    require_free(arguments.out)
    parsed = read_structures(arguments.files)
    card = services.card(arguments.base or services.suggested_model(parsed.structures))
    problem = finetune.can_train(card)
    if problem:
        raise UsageError(problem, "Name another base model.")
    return parsed, card


def require_free(out: str | None) -> None:
    if out is None:
        return
    require_writable(out)
    if Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        raise UsageError(f"{out} already holds something.", "Name a new folder.")


def replay_of(given: str | None, card: ModelCard, structures: Sequence[Structure]) -> list[Structure]:
    if given == NO_REPLAY:
        return []
    if given is None:
        seen = {s.content_id for s in structures}
        return [s for s in finetune.shipped_replay(card.id) if s.content_id not in seen]
    found, refused = finetune.trainable(card, services.read_paths([given]).structures)
    print_failures(refused)
    if not found:
        raise UsageError(f"No structure of {given} can be looked at.", "Give labelled structures, or --replay none.")
    return found


def _keep(found: Trained, out: str | None) -> Path | None:
    """Copy the model to where it was asked for, or among this machine's models; the place."""
    if found.model_folder is None:
        return None
    card, _ = finetuned.read(found.model_folder)
    place = Path(out) if out is not None else finetuned.models_folder() / card.id
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(found.model_folder, place, dirs_exist_ok=True, copy_function=shutil.copyfile)
    return place


def _json(found: Trained, place: Path | None, failures: Sequence[Failure], spec: Spec) -> str:
    document = {
        "base": None if spec.model is None else spec.model.id,
        "model": None if found.result is None else found.result["model"],
        "path": None if place is None else str(place),
        "errors_before_and_after": finetuning.error_rows(found),
        "warning": finetuning.warning(found),
        "forgetting": finetuning.forgetting(found),
        "result": None if found.result is None else dict(found.result),
        "epochs": {name: column.tolist() for name, column in finetuning.loss_per_epoch(found).items()},
        "errors": [failure_row(f) for f in failures],
        "spec": json.loads(spec.to_json()),
    }
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _print(found: Trained, place: Path | None, out: TextIO) -> None:
    if found.result is None or place is None:
        print("not finished", file=out)
        return
    result = found.result
    print(
        f"{result['model']}: {result['epochs_done']} epoch{'' if result['epochs_done'] == 1 else 's'}, the weights are those after epoch {result['best_epoch']}",
        file=out,
    )
    print(f"{'':10s}{'':24s}{'before':>10s}{'after':>10s}", file=out)
    for row in finetuning.error_rows(found):
        after = "-" if row["after"] is None else f"{row['after']:.4g}"
        print(f"{row['part']:10s}{row['quantity']:24s}{row['before']:>10.4g}{after:>10s}", file=out)
    for text in (finetuning.sentence(found), finetuning.warning(found), finetuning.forgetting(found)):
        if text:
            print(text, file=out)
    print(
        f"use it: fdcore score FILE --model {result['model'] if place.parent == finetuned.models_folder() else place}",
        file=out,
    )
