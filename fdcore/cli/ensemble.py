"""`fdcore ensemble`: the task that the engine runs, in this process."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from fdcore import ensemble, ensemble_files, models, services
from fdcore.cli.local import carry_out, record
from fdcore.cli.output import (
    EXIT_OK,
    EXIT_PARTLY,
    EXIT_STOPPED,
    print_failures,
    read_structures,
    require_writable,
    say_unread,
    write,
)
from fdcore.ensemble import Compared
from fdcore.errors import UsageError
from fdcore.human import duration, three_digits
from fdcore.records import Structure
from fdcore.services import ensemble as ensembles
from fdcore.services import runs
from fdcore.spec import ModelChoice

# Times of less than this are those of a busy machine as much as of the models.
WELL_MEASURED_S = 3.0
OUTPUTS = ("json", "csv", "extxyz")


def run(arguments: argparse.Namespace, results: TextIO) -> int:
    """`fdcore ensemble`."""
    on_stdout = [name for name in OUTPUTS if getattr(arguments, name) == "-"]
    if len(on_stdout) > 1:
        raise UsageError("Only one of the outputs can be standard output.", "Give the others a path.")
    for name in (*OUTPUTS, "record"):
        require_writable(getattr(arguments, name))
    services.check_device(arguments.device)
    parsed = read_structures(arguments.files)
    judged, members = _who(arguments, parsed.structures)
    weights = _weights(arguments.weights, [judged, *members])
    complete = [services.with_charge_spin(s, arguments.charge, arguments.spin) for s in parsed.structures]
    say_unread(arguments, [judged, *members])
    structures, refused = ensembles.comparable(services.card(judged), complete)
    failures = [*parsed.failures, *refused]
    model = ModelChoice(judged, arguments.dtype, arguments.device)
    parameters = ensembles.parameters_of(members, arguments.mix_methods)
    compared = Compared(judged, tuple(members), (), (), {})
    settings: dict[str, Any] | None = None
    outcome = None
    spec = runs.spec_of("ensemble", structures, model, parameters)
    # Members that must not be mixed are a wrong question whatever the files hold.
    ensembles.check(spec)
    if structures:
        first: list[Any] = []

        def load(_: object) -> Any:
            first.append(services.load_model(judged, arguments.device, arguments.dtype, weights.get(judged)))
            return first[0]

        def further(model_id: str) -> Any:
            return models.load_predictor(model_id, arguments.device, arguments.dtype, weights.get(model_id))

        with record(arguments.record, spec) as (folder, previous):
            outcome = carry_out(spec, structures, load, folder, previous, unit="structure", load_further=further)
            compared = ensemble.read(folder, judged, members, structures)
        if first:
            settings = {**services.settings(first[0]), "members_sha256": (outcome.summary or {}).get("members_sha256")}
    write(arguments.json, lambda: ensemble_files.as_json(compared, failures, settings), results)
    write(arguments.csv, lambda: ensemble_files.as_csv(compared), results)
    if compared.spreads:
        write(arguments.extxyz, lambda: ensemble_files.as_extxyz(compared), results)
    if not on_stdout:
        _print(compared, results)
    print_failures([*failures, *compared.failures])
    for name, reason in compared.unloadable.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    if outcome is not None and outcome.state == "failed":
        print(f"fdcore: {outcome.error} {outcome.hint or ''}".rstrip(), file=sys.stderr)
    if outcome is not None and outcome.state == "cancelled":
        return EXIT_STOPPED
    whole = outcome is not None and outcome.state == "done" and not failures and not compared.failures
    return EXIT_OK if whole and not compared.unloadable else EXIT_PARTLY


def _who(arguments: argparse.Namespace, structures: Sequence[Structure]) -> tuple[str, list[str]]:
    """The model that is judged, and the members."""
    members = arguments.models or list(
        ensembles.default_members(arguments.model or services.suggested_model(structures))
    )
    # A fine-tuned one may be named by its path; a run knows models by name.
    cards = [services.card(m) for m in members]
    members = [c.id for c in cards]
    if arguments.model is not None:
        return services.card(arguments.model).id, members
    direct = [c.id for c in cards if c.kind == "direct"]
    if not direct:
        raise UsageError(
            "None of the members has two forces.", "Name with --model the direct model that is to be judged."
        )
    return direct[0], members


def _weights(given: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    out: dict[str, str] = {}
    for text in given:
        model_id, equals, path = text.partition("=")
        if not equals or model_id not in known:
            raise UsageError(
                f"--weights {text} names no member.", f"Write ID=PATH with one of {', '.join(dict.fromkeys(known))}."
            )
        if not Path(path).is_file():
            raise UsageError(f"There is no file {path}.", "Check the path given with --weights.")
        out[model_id] = path
    return out


def _print(compared: Compared, out: TextIO) -> None:
    if not compared.spreads:
        return
    width = max(9, *(len(s.structure.file) + 4 for s in compared.spreads))
    print(f"{'structure':<{width}}  {'formula':<14}  U_Delta  U_var   confidence  members  outlier", file=out)
    for s in compared.spreads:
        label = f"{s.structure.file}:{s.structure.index}" if s.structure.index else s.structure.file
        left = f"  without {', '.join(s.left_out)}" if s.left_out else ""
        print(
            f"{label:<{width}}  {s.structure.formula:<14.14}  {three_digits(s.evaluation.force_delta):<7}  "
            f"{_shown(s.ensemble_spread):<6}  {_shown(s.confidence):<10}  {len(s.members):<7}  {s.outlier or '-'}{left}",
            file=out,
        )
    print(f"all in eV/Å; U_Delta of {compared.model_id}; members:", file=out)
    for method, ids in ensembles.reference_groups(compared.members).items():
        print(f"  {', '.join(ids)} [{method}]", file=out)
    print(file=out)
    if compared.relative_cost is not None:
        print(
            f"U_Delta of {compared.model_id} took {duration(compared.seconds_both)}, U_var of {len(compared.members)} models "
            f"{duration(compared.seconds_ensemble)}: {compared.relative_cost:.2f} of it"
            + (" (roughly: too short to be measured well)" if compared.seconds_ensemble < WELL_MEASURED_S else ""),
            file=out,
        )
    found = ensemble.agreement(compared)
    if found.r_s is not None:
        print(f"r_s of U_Delta with U_var {found.text}, n = {found.n}", file=out)
    for r in ensemble.rankings(compared):
        if r.found.r_s is not None:
            print(
                f"r_s of {ensemble.ESTIMATES[r.estimate]} with {ensemble.ERRORS[r.error]} {r.found.text}, "
                f"n = {r.found.n}",
                file=out,
            )


def _shown(value: float | None) -> str:
    return "-" if value is None else three_digits(value)
