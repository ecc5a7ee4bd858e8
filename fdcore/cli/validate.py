"""`fdcore validate`: the task that the engine runs, in this process."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from fdcore import models, services, validation, validation_report, validation_words
from fdcore import reference as references
from fdcore.cli.local import Loaded, carry_out, record, say
from fdcore.cli.output import (
    EXIT_OK,
    EXIT_PARTLY,
    EXIT_STOPPED,
    by_reason,
    named_model,
    print_failures,
    read_structures,
    require_writable,
    say_unread,
    write,
)
from fdcore.errors import UsageError
from fdcore.export import failure_row
from fdcore.human import count, three_digits
from fdcore.records import Failure, ModelCard
from fdcore.services import validation as validations
from fdcore.spec import require_seed
from fdcore.structures import Parsed
from fdcore.tasks.validate import LABELS
from fdcore.validation import Validation
from fdcore.validation_report import Report

TEXTS = ("json", "csv", "html")
# Rows of a table on a terminal.
MOST_GROUPS, MOST_LISTED = 25, 20


def run(arguments: argparse.Namespace, results: TextIO) -> int:
    """`fdcore validate`."""
    on_stdout = [place for place in TEXTS if getattr(arguments, place) == "-"]
    if len(on_stdout) > 1:
        raise UsageError("Only one document can be written to standard output.", "Give the others a path.")
    for place in (*TEXTS, "zip", "record"):
        require_writable(getattr(arguments, place))
    for place in ("zip", "record"):
        if getattr(arguments, place) == "-":
            raise UsageError(f"--{place} needs a path, not standard output.")
    if arguments.above is not None and not arguments.above > 0:
        raise UsageError(f"--above {arguments.above} is no error.", "Give a number above zero, in eV/Å.")
    require_seed(arguments.seed)
    named = named_model(arguments)
    # A mistake in it is known before an hour of computing; members are known by name, a fine-tuned one may be named by its path.
    reference = LABELS if arguments.reference == LABELS else references.register(arguments.reference).id
    members = [services.card(m).id for m in arguments.ensemble]
    parsed = _read(arguments)
    structures = [services.with_charge_spin(s, arguments.charge, arguments.spin) for s in parsed.structures]
    failures = list(parsed.failures)
    if not structures:
        write(arguments.json, lambda: _nothing(failures), results)
        print_failures(failures)
        return EXIT_PARTLY
    if arguments.group_by is not None:
        validation.names_of(structures, arguments.group_by)
    judges = validations.suggested(structures) if named is None else validations.one_for_all(named.id, structures)
    spec = validations.spec_of(
        structures,
        judges,
        reference=reference,
        members=members,
        mix_methods=arguments.mix_methods,
        dtype=arguments.dtype,
        device=arguments.device,
    )
    if named is None and judges.ids != (services.default_model_id(),):
        chosen = "; ".join(f"{i} for {count(judges.of.count(k), 'structure')}" for k, i in enumerate(judges.ids))
        print(f"fdcore: {chosen}, chosen for these structures (--model names one for all)", file=sys.stderr)
    say_unread(arguments, [*judges.ids, *members])
    loaded = Loaded(services.card(judges.ids[0]), arguments)

    def further(model_id: str) -> Any:
        return models.load_predictor(model_id, arguments.device, arguments.dtype)

    with record(arguments.record, spec) as (folder, previous):
        outcome = carry_out(spec, structures, loaded, folder, previous, unit="structure", load_further=further)
        compared, failed = validation.read(folder, spec, structures)
    found = validation.validate(compared, group_by=arguments.group_by, above=arguments.above, seed=arguments.seed)
    provenance = {"spec": json.loads(spec.to_json()), "seed": arguments.seed}
    if loaded.model is not None:
        provenance |= services.settings(loaded.model)
    labels = validations.methods_of(compared) if reference == LABELS else ()
    report = Report(tuple(found), validations.reference_title(spec), labels, (*failures, *failed), provenance)
    write(arguments.json, lambda: validation_report.as_json(report), results)
    write(arguments.csv, lambda: validation_report.as_csv(report), results)
    if compared:
        write(arguments.html, lambda: validation_report.html(report), results)
        if arguments.zip is not None:
            Path(arguments.zip).write_bytes(validation_report.archive(report))
    if not on_stdout:
        for one in found:
            _print(one, report, results)
    print_failures([*failures, *by_reason(failed)])
    _print_left_out(found)
    say(outcome, arguments.record, len(compared))
    if outcome.state == "cancelled":
        return EXIT_STOPPED
    return EXIT_PARTLY if failures or failed or outcome.state == "failed" else EXIT_OK


def _read(arguments: argparse.Namespace) -> Parsed:
    """The files; without one, the labels that travel with the package."""
    if arguments.files:
        return read_structures(arguments.files)
    labels = validations.shipped()
    print(f"fdcore: no file given: {labels.title}, {labels.count} structures ({labels.method})", file=sys.stderr)
    return services.read_sources([labels.source()])


def _nothing(failures: Sequence[Failure]) -> str:
    document = {"models": [], "results": [], "errors": [failure_row(f) for f in failures]}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _print_left_out(found: Sequence[Validation]) -> None:
    """Members of the ensemble that failed somewhere, once each with how often."""
    reasons: dict[tuple[str, str], int] = {}
    for one in found:
        for c in one.compared:
            for member in c.left_out.items():
                reasons[member] = reasons.get(member, 0) + 1
    for (member, reason), times in reasons.items():
        print(f"left out: {member} of {count(times, 'structure')}: {reason}", file=sys.stderr)


def _print(found: Validation, report: Report, out: TextIO) -> None:
    card: ModelCard = services.card(found.model_id)
    print(f"model {card.id}: {count(len(found.compared), 'structure')} against {report.reference}", file=out)
    if report.labels:
        print(f"labels: {'; '.join(report.labels)}; the model's training reference: {card.reference_method}", file=out)
    print(file=out)
    for sentence in validation_words.sentences(found, report.reference):
        print(sentence, file=out)
    if found.pooled.conservative.r_s is None or found.pooled.direct.r_s is None:
        # No correlation to show: the structures themselves.
        for c in found.compared:
            print(
                f"{c.structure.file}, {c.structure.formula}: U_Delta {c.force_delta:.4g} eV/Å; error of F_nc {c.error_direct:.4g}, of F_c "
                f"{c.error_conservative:.4g} eV/Å",
                file=out,
            )
        print(file=out)
        return
    cells = validation_report.rank_cells(found)
    width = max(len(row[0]) for row in cells)
    print(f"\n{'':<{width}}{'n':>10}  {'U_Delta (eV/Å)':<18}{'r_s with eps_c':>22}{'r_s with eps_nc':>22}", file=out)
    for row in cells[: MOST_GROUPS + len(found.bands)]:
        print(f"{row[0]:<{width}}{row[1]:>10}  {row[2]:<18}{row[3]:>22}{row[4]:>22}", file=out)
    if len(cells) > MOST_GROUPS + len(found.bands):
        print(f"... and {len(cells) - MOST_GROUPS - len(found.bands)} more (--json has all)", file=out)
    print(validation_words.intervals(found), file=out)
    for row in validation_report.consensus_rows(found)[:MOST_LISTED]:
        print(
            f"consensus failure: {row['file']}:{row['index']}, {row['formula']}: U_Delta "
            f"{three_digits(row['force_delta_eV_per_A'])}, eps_nc {three_digits(row['error_direct_eV_per_A'])}, eps_c "
            f"{three_digits(row['error_conservative_eV_per_A'])} eV/Å",
            file=out,
        )
    print(file=out)
