"""`fdcore report`: the task that the engine runs, in this process."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, TextIO

from fdcore import report, report_files, services
from fdcore.cli.local import carry_out, record
from fdcore.cli.output import (
    EXIT_OK,
    EXIT_PARTLY,
    EXIT_STOPPED,
    model_for,
    named_model,
    print_failures,
    read_structures,
    require_writable,
    write,
)
from fdcore.errors import UsageError
from fdcore.human import count
from fdcore.report import Report
from fdcore.report_pdf import pdf
from fdcore.report_verdict import sentence
from fdcore.report_words import ANSWER_WORDS, STATUS_WORDS, name_of, said_of
from fdcore.services import report as reports
from fdcore.spec import ModelChoice

OUTPUTS = ("json", "html", "csv")


def run(arguments: argparse.Namespace, results: TextIO) -> int:
    """`fdcore report`."""
    on_stdout = [name for name in OUTPUTS if getattr(arguments, name) == "-"]
    if len(on_stdout) > 1:
        raise UsageError("Only one of the outputs can be standard output.", "Give the others a path.")
    for name in (*OUTPUTS, "pdf", "zip", "record"):
        require_writable(getattr(arguments, name))
    for name in ("pdf", "zip"):
        if getattr(arguments, name) == "-":
            raise UsageError(f"--{name} needs a path, not standard output.")
    named = named_model(arguments)
    parsed = read_structures(arguments.files)
    complete = [services.with_charge_spin(s, arguments.charge, arguments.spin) for s in parsed.structures]
    card = model_for(arguments, named, complete)
    structures, refused = reports.examinable(card, complete)
    failures = [*parsed.failures, *refused]
    print_failures(failures)
    given = {
        name: getattr(arguments, flag.replace("-", "_"))
        for name, flag in reports.FLAGS.items()
        if hasattr(arguments, flag.replace("-", "_"))
    }
    model = ModelChoice(card.id, arguments.dtype, arguments.device)
    spec = reports.spec_of(structures or complete or (), model, given, seed=arguments.seed) if complete else None
    found = Report(card.id, arguments.dtype, report.Examination(), (), (), False)
    provenance: dict[str, Any] | None = None
    outcome = None
    if structures and spec is not None:
        print(f"{card.id}: {reports.estimate(spec, structures).text}", file=sys.stderr)
        loaded: list[Any] = []

        def load(_: object) -> Any:
            loaded.append(services.load_model(card.id, arguments.device, arguments.dtype, arguments.weights))
            return loaded[0]

        with record(arguments.record, spec) as (folder, previous):
            outcome = carry_out(spec, structures, load, folder, previous, unit="evaluation")
            found = report.read(folder, spec, structures)
        if loaded:
            # A local checkpoint has a hash of its own.
            provenance = {**services.settings(loaded[0]), "seed": arguments.seed, "spec_sha256": spec.sha256}
    write(arguments.json, lambda: report_files.as_json(found, failures, provenance), results)
    write(arguments.csv, lambda: report_files.lines_csv(found), results)
    write(arguments.html, lambda: report_files.html(found, failures, provenance), results)
    if arguments.pdf is not None:
        Path(arguments.pdf).write_bytes(pdf(found, failures, provenance))
    if arguments.zip is not None:
        Path(arguments.zip).write_bytes(report_files.archive(found, failures, provenance))
    if not on_stdout:
        _print(found, results)
    print_failures(found.failures)
    if outcome is not None and outcome.note:
        print(f"fdcore: {outcome.note}", file=sys.stderr)
    if outcome is not None and outcome.state == "failed":
        print(f"fdcore: {outcome.error} {outcome.hint or ''}".rstrip(), file=sys.stderr)
    if outcome is not None and outcome.state == "cancelled":
        return EXIT_STOPPED
    whole = outcome is not None and outcome.state == "done" and not failures and not found.failures
    return EXIT_OK if whole else EXIT_PARTLY


def _print(found: Report, out: TextIO) -> None:
    for one in found.examined:
        said, good_for = said_of(one, found)
        print(
            f"\n{name_of(one)}, {count(one.structure.n_atoms, 'atom')}, {found.model_id}, {found.dtype}",
            file=out,
        )
        print(f"{sentence(good_for)}\n", file=out)
        for use in good_for:
            print(f"  {ANSWER_WORDS[use.answer]:<12}  {use.name}: {use.why}", file=out)
        print(file=out)
        for line in said:
            print(
                f"  {STATUS_WORDS[line.status]:<9}  {line.name:<30} {line.figure:<26}  {line.text}",
                file=out,
            )
            if line.published:
                print(f"  {'':<9}  {'':<30} {'published':<26}  {line.published}", file=out)
