"""`fdcore score`: the task that the engine runs, in this process."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from fdcore import export, services
from fdcore.cli.output import EXIT_OK, EXIT_PARTLY, print_failures, read_structures, require_writable, write
from fdcore.errors import UsageError
from fdcore.records import Failure, ModelCard, Score


def run(arguments: argparse.Namespace, results: TextIO) -> int:
    on_stdout = [name for name in ("json", "csv", "extxyz") if getattr(arguments, name) == "-"]
    if len(on_stdout) > 1:
        raise UsageError(
            "Only one of --json, --csv and --extxyz can write to standard output.", "Give the others a path."
        )
    # Output places are tried before anything is computed, so that a long run does not end in a typing mistake.
    for name in ("json", "csv", "extxyz"):
        require_writable(getattr(arguments, name))
    # Wrong names are usage errors whatever the files hold, and known before anything is read.
    card = services.card(arguments.model or services.default_model_id())
    services.check_device(arguments.device)
    if arguments.weights is not None and not Path(arguments.weights).is_file():
        raise UsageError(f"There is no file {arguments.weights}.", "Check the path given with --weights.")
    parsed = read_structures(arguments.files)
    structures = [services.with_charge_spin(s, arguments.charge, arguments.spin) for s in parsed.structures]
    failures = list(parsed.failures)
    scores: list[Score] = []
    settings: dict | None = None
    try:
        if structures:
            model = services.load_model(card.id, arguments.device, arguments.dtype, arguments.weights)
            settings = services.settings(model)
            for item in _progress(services.score(model, structures), len(structures)):
                if isinstance(item, Score):
                    scores.append(item)
                else:
                    failures.append(item)
    except KeyboardInterrupt:
        print("fdcore: stopped; what was scored is kept", file=sys.stderr)
        failures += [
            Failure(file=s.file, error="Not scored: stopped.", hint="Run it again.", index=s.index)
            for s in structures[len(scores) + len(failures) - len(parsed.failures) :]
        ]
    write(arguments.json, lambda: export.scores_json(scores, failures, card.id, settings), results)
    write(arguments.csv, lambda: export.scores_csv(scores, failures), results)
    if scores:
        write(arguments.extxyz, lambda: export.scores_extxyz(scores, settings), results)
    if not on_stdout:
        _print_scores(scores, failures, card, results)
    else:
        print_failures(failures)
    return EXIT_PARTLY if failures else EXIT_OK


def _print_scores(scores: Sequence[Score], failures: Sequence[Failure], card: ModelCard, out: TextIO) -> None:
    if scores:
        frames = Counter(s.structure.file for s in scores)
        labels = {id(s): _label(s, frames[s.structure.file] > 1) for s in scores}
        width = max(9, *map(len, labels.values()))
        print(f"{'structure':<{width}}  {'formula':<16} atoms  U_Delta eV/Å  worst atom     verdict", file=out)
        for score in sorted(scores, key=lambda s: -s.evaluation.force_delta):
            per_atom = score.evaluation.force_delta_per_atom
            worst = int(per_atom.argmax())
            print(
                f"{labels[id(score)]:<{width}}  {score.structure.formula:<16.16} {score.structure.n_atoms:5d}  "
                f"{score.evaluation.force_delta:12.4g}  {score.structure.symbols[worst] + str(worst):<6} "
                f"{per_atom[worst]:<6.3g}  {score.verdict.level}",
                file=out,
            )
        if len(scores) == 1:
            print(f"\n{scores[0].verdict.sentence}", file=out)
            for item in scores[0].verdict.evidence:
                print(f"  {item.status:<7} {item.name}: {item.text}", file=out)
        for score in scores:
            for warning in score.structure.warnings:
                print(f"note: {labels[id(score)]}: {warning}", file=sys.stderr)
        print(f"\nmodel {card.id}; training reference: {card.reference_method}", file=out)
    print_failures(failures)


def _label(score: Score, several: bool) -> str:
    return f"{score.structure.file}:{score.structure.index}" if several else score.structure.file


def _progress[T](items: Iterator[T], total: int) -> Iterator[T]:
    return iter(tqdm(items, total=total, unit="structure", file=sys.stderr, disable=total < 2 or None))
