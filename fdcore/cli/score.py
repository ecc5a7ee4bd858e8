"""`fdcore score`: the task that the engine runs, in this process."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, TextIO

from tqdm import tqdm

from fdcore import export, services
from fdcore.cli.output import (
    EXIT_OK,
    EXIT_PARTLY,
    named_model,
    print_failures,
    read_structures,
    require_writable,
    say_unread,
    write,
)
from fdcore.errors import UsageError
from fdcore.records import Failure, ModelCard, Score


def run(arguments: argparse.Namespace, results: TextIO) -> int:
    if arguments.calculator is not None:
        from fdcore.cli import probing

        return probing.run(arguments, results)
    on_stdout = [name for name in ("json", "csv", "extxyz") if getattr(arguments, name) == "-"]
    if len(on_stdout) > 1:
        raise UsageError(
            "Only one of --json, --csv and --extxyz can write to standard output.", "Give the others a path."
        )
    # Output places are tried before anything is computed, so that a long run does not end in a typing mistake.
    for name in ("json", "csv", "extxyz"):
        require_writable(getattr(arguments, name))
    # Wrong names are usage errors whatever the files hold, and known before anything is read.
    asked = named_model(arguments)
    parsed = read_structures(arguments.files)
    structures = [services.with_charge_spin(s, arguments.charge, arguments.spin) for s in parsed.structures]
    # Where nobody named a model, each structure is scored by one that has seen its like.
    chosen = [asked.id if asked else services.suggested_model([s]) for s in structures]
    used = list(dict.fromkeys(chosen)) or [asked.id if asked else services.default_model_id()]
    say_unread(arguments, used)
    settings: list[dict[str, Any]] = []
    # Results in the order of the files, whichever model made them.
    answers: dict[int, Score | Failure] = {}
    try:
        with tqdm(total=len(structures), unit="structure", file=sys.stderr, disable=len(structures) < 2 or None) as bar:
            for model_id in used if structures else ():
                places = [place for place, its in enumerate(chosen) if its == model_id]
                model = services.load_model(model_id, arguments.device, arguments.dtype, arguments.weights)
                settings.append(services.settings(model))
                items = services.score(model, [structures[place] for place in places])
                for place, item in zip(places, items, strict=True):
                    answers[place] = item
                    bar.update()
    except KeyboardInterrupt:
        print("fdcore: stopped; what was scored is kept", file=sys.stderr)
        for place, s in enumerate(structures):
            stopped = Failure(file=s.file, error="Not scored: stopped.", hint="Run it again.", index=s.index)
            answers.setdefault(place, stopped)
    found = [answers[place] for place in range(len(structures))]
    scores = [item for item in found if isinstance(item, Score)]
    failures = [*parsed.failures, *(item for item in found if isinstance(item, Failure))]
    one = used[0] if len(used) == 1 else None
    provenance = settings if one is None else next(iter(settings), None)
    write(arguments.json, lambda: export.scores_json(scores, failures, one, provenance), results)
    write(arguments.csv, lambda: export.scores_csv(scores, failures), results)
    if scores:
        write(arguments.extxyz, lambda: export.scores_extxyz(scores, provenance), results)
    if not on_stdout:
        _print_scores(scores, failures, [services.card(i) for i in used], results, chosen_here=asked is None)
    else:
        print_failures(failures)
    return EXIT_PARTLY if failures else EXIT_OK


def _print_scores(
    scores: Sequence[Score], failures: Sequence[Failure], used: Sequence[ModelCard], out: TextIO, *, chosen_here: bool
) -> None:
    if scores:
        frames = Counter(s.structure.file for s in scores)
        labels = {id(s): _label(s, frames[s.structure.file] > 1) for s in scores}
        width = max(9, *map(len, labels.values()))
        # One column more where there are several; two of them are not on one scale.
        longest = max(len(c.id) for c in used) if len(used) > 1 else 0
        heading = f"{'structure':<{width}}  {'formula':<16} atoms  U_Delta eV/Å  worst atom     {'verdict':<12}"
        print(f"{heading}  model" if longest else heading.rstrip(), file=out)
        for score in sorted(scores, key=lambda s: -s.evaluation.force_delta):
            per_atom = score.evaluation.force_delta_per_atom
            worst = int(per_atom.argmax())
            print(
                f"{labels[id(score)]:<{width}}  {score.structure.formula:<16.16} {score.structure.n_atoms:5d}  "
                f"{score.evaluation.force_delta:12.4g}  {score.structure.symbols[worst] + str(worst):<6} "
                f"{per_atom[worst]:<6.3g}  "
                + (f"{score.verdict.level:<12}  {score.model_id}" if longest else score.verdict.level),
                file=out,
            )
        if len(scores) == 1:
            print(f"\n{scores[0].verdict.sentence}", file=out)
            for item in scores[0].verdict.evidence:
                print(f"  {item.status:<7} {item.name}: {item.text}", file=out)
        for score in scores:
            for warning in score.structure.warnings:
                print(f"note: {labels[id(score)]}: {warning}", file=sys.stderr)
        print(file=out)
        chosen = chosen_here and [c.id for c in used] != [services.default_model_id()]
        why = " (chosen for these structures)" if chosen else ""
        for card in used:
            print(f"model {card.id}{why}; training reference: {card.reference_method}", file=out)
        if longest:
            print("U_Delta of different models is not on one scale; --model ID scores all of them by one.", file=out)
    print_failures(failures)


def _label(score: Score, several: bool) -> str:
    return f"{score.structure.file}:{score.structure.index}" if several else score.structure.file
