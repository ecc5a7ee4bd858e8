"""`fdcore label`: labels out of files, and the task that the engine runs, in this process."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from fdcore import label_files, reference, services
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
from fdcore.labels import TOLERANCE_A, LabelledSet
from fdcore.records import Failure
from fdcore.services import labels
from fdcore.spec import Spec
from fdcore.tasks import label as label_task
from fdcore.tasks.run import Outcome

TEXTS = ("json", "out", "unlabelled")


def run(arguments: argparse.Namespace, results: TextIO) -> int:
    """`fdcore label`."""
    settings = _begin(arguments)
    parsed = read_structures(arguments.files)
    failures = list(parsed.failures)
    complete = [services.with_charge_spin(s, arguments.charge, arguments.spin) for s in parsed.structures]
    known = labels.of_files(complete)
    matching = None
    if arguments.sources:
        tolerance = TOLERANCE_A if arguments.tolerance_A is None else arguments.tolerance_A
        attached = labels.attach_paths(known, arguments.sources, reorder=arguments.reorder, tolerance_A=tolerance)
        known, matching = attached.known, attached.matching
        failures += attached.failures
    if arguments.again:
        known = labels.unlabelled(known.structures)
    wanted = known.without
    spec: Spec | None = None
    outcome: Outcome | None = None
    if arguments.reference is not None and wanted:
        spec = labels.spec_of(wanted, arguments.reference, settings)
        with record(arguments.record, spec) as (folder, previous):
            outcome = carry_out(spec, wanted, lambda _: None, folder, previous, unit="structure")
            known = labels.merged(known, label_task.read(folder, spec, wanted))
    refused = _write_vasp(arguments, known)
    described = None if spec is None else json.loads(spec.to_json())
    write(arguments.json, lambda: label_files.document_json(known, [*failures, *refused], matching, described), results)
    _write_labelled(arguments, known, results)
    if not any(getattr(arguments, place) == "-" for place in TEXTS):
        _print(known, matching, results)
    unused = () if matching is None else matching.unused
    print_failures([*failures, *unused, *refused, *known.failed])
    if len(known.methods) > 1:
        print("fdcore: the labels are of different methods; do not train on them together:", file=sys.stderr)
        for method in known.methods:
            print(f"        {method}", file=sys.stderr)
    _say(outcome, arguments.record)
    if outcome is not None and outcome.state == "cancelled":
        return EXIT_STOPPED
    whole = len(known) > 0 and not failures and len(known.labelled) == len(known)
    return EXIT_OK if whole and (outcome is None or outcome.state == "done") else EXIT_PARTLY


def _begin(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings of the reference; UsageError for what cannot work, before anything is read."""
    if sum(getattr(arguments, place) == "-" for place in TEXTS) > 1:
        raise UsageError("Only one document can be written to standard output.", "Give the others a path.")
    for place in (*TEXTS, "record", "vasp_inputs"):
        require_writable(getattr(arguments, place))
    if arguments.vasp_inputs is not None and Path(arguments.vasp_inputs).exists():
        raise UsageError(f"{arguments.vasp_inputs} exists already.", "Name a new folder for --vasp-inputs.")
    if arguments.reference is None and (arguments.set or arguments.again):
        raise UsageError("--set and --again are about a reference.", "Name one with --reference.")
    if not arguments.sources and (arguments.reorder or arguments.tolerance_A is not None):
        raise UsageError("--reorder and --tolerance-A are about labels from files.", "Name the files with --from.")
    settings = dict(map(_setting, arguments.set))
    if arguments.reference is not None:
        # Known by its name or registered now, so that a mistake in it is known before an hour of computing.
        reference.reference(reference.register(arguments.reference).id, settings)
    return settings


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--set {text} is no setting.", "Write NAME=VALUE, e.g. cutoff_eV=600.")
    try:
        number = float(value)
    except ValueError:
        return name, value
    return name, int(value) if value.lstrip("+-").isdigit() else number


def _write_labelled(arguments: argparse.Namespace, known: LabelledSet, results: TextIO) -> None:
    if arguments.out is not None and not known.labelled:
        print("fdcore: nothing has a label, so nothing was written for --out", file=sys.stderr)
    elif arguments.out is not None and arguments.out.endswith(".db"):
        Path(arguments.out).write_bytes(label_files.as_database(known))
    else:
        write(arguments.out, lambda: label_files.as_extxyz(known), results)
    write(arguments.unlabelled, lambda: label_files.unlabelled_extxyz(known), results)


def _write_vasp(arguments: argparse.Namespace, known: LabelledSet) -> Sequence[Failure]:
    """A folder for each crystal without a label; those that are no crystals."""
    if arguments.vasp_inputs is None:
        return ()
    folders, refused = label_files.vasp_folders(known.without, arguments.dft_set)
    for name, files in folders.items():
        folder = Path(arguments.vasp_inputs) / name
        folder.mkdir(parents=True)
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
    return refused


def _print(known: LabelledSet, matching: Any, out: TextIO) -> None:
    if matching is not None:
        print(matching.text, file=out)
    print(
        f"{len(known.labelled)} of {len(known)} structure{'' if len(known) == 1 else 's'} labelled, "
        f"{len(known.failed)} failed, {len(known.unlabelled)} without",
        file=out,
    )
    for method in known.methods:
        print(f"  {method}", file=out)


def _say(outcome: Outcome | None, kept: str | None) -> None:
    if outcome is None:
        return
    if outcome.note:
        print(f"fdcore: {outcome.note}", file=sys.stderr)
    if outcome.state == "failed":
        print(f"fdcore: {outcome.error} {outcome.hint or ''}".rstrip(), file=sys.stderr)
    if outcome.state == "cancelled":
        way = "the same command goes on from here" if kept else "with --record FOLDER it could be gone on with"
        print(f"fdcore: stopped; what was labelled is kept, {way}", file=sys.stderr)
