"""`fdcore stability`: the task that the engine runs, in this process."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from fdcore import drift_report, drifts, models, services
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
from fdcore.drifts import Measured
from fdcore.errors import UsageError
from fdcore.human import plus_minus
from fdcore.services import dynamics, stability


def run(arguments: argparse.Namespace, results: TextIO) -> int:
    """`fdcore stability`."""
    for name in ("json", "html", "zip", "record"):
        require_writable(getattr(arguments, name))
    if arguments.json == "-" and arguments.html == "-":
        raise UsageError("Only one of --json and --html can write to standard output.", "Give the other a path.")
    services.check_device(arguments.device)
    parsed = read_structures(arguments.files)
    structures, failures = parsed.structures, list(parsed.failures)
    for name in arguments.models:
        structures, refused = dynamics.movable(services.card(name), structures)
        failures += refused
    print_failures(failures)
    if not structures:
        return EXIT_PARTLY
    register(getattr(arguments, "reference", None))
    given = {
        name: getattr(arguments, flag.replace("-", "_"))
        for name, flag in stability.FLAGS.items()
        if hasattr(arguments, flag.replace("-", "_"))
    }
    spec = stability.spec_of(
        structures, arguments.models, given, dtype=arguments.dtype, device=arguments.device, seed=arguments.seed
    )
    assert spec.model is not None
    print(f"{len(arguments.models)} models: {stability.estimate(spec, structures).text}", file=sys.stderr)

    def load(_: object) -> Any:
        return services.load_model(arguments.models[0], arguments.device, arguments.dtype)

    def further(model_id: str) -> Any:
        return models.load_model(model_id, arguments.device, arguments.dtype)

    with record(arguments.record, spec) as (folder, previous):
        outcome = carry_out(spec, structures, load, folder, previous, load_further=further)
        found = drifts.read(folder, spec, structures)
    provenance = stability.provenance(spec, outcome.summary)
    document = drift_report.document(found, provenance)
    write(arguments.json, lambda: json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n", results)
    write(arguments.html, lambda: drift_report.html(found, provenance), results)
    if arguments.zip is not None:
        Path(arguments.zip).write_bytes(drift_report.archive(found, provenance))
    if "-" not in (arguments.json, arguments.html):
        _print(found, results)
    if outcome.state == "failed":
        print(f"fdcore: {outcome.error} {outcome.hint or ''}".rstrip(), file=sys.stderr)
    if outcome.state == "cancelled":
        return EXIT_STOPPED
    return EXIT_PARTLY if failures or outcome.state == "failed" else EXIT_OK


def register(name: str | None) -> None:
    if name is not None:
        from fdcore import reference as references

        references.register(name)


def _print(found: Measured, out: TextIO) -> None:
    for row in drifts.model_rows(found):
        drift = _cell(row["drift_abs_meV_per_atom_per_ps"], row["drift_abs_ci"])
        print(f"{row['model']:44s} |drift| {drift} meV/atom/ps over {row['nve_runs']} runs", file=out)
    rows = drifts.band_rows(found)
    if rows:
        print(f"\n{'':44s}{'sigma':>8s}{'U_Delta':>10s}{'eps_nc':>10s}{'eps_c':>10s}   (Å, eV/Å)", file=out)
    for row in rows:
        cells: Sequence[str] = [
            "-" if row[k] is None else f"{row[k]:.3g}"
            for k in ("force_delta_eV_per_A", "error_direct_eV_per_A", "error_conservative_eV_per_A")
        ]
        print(f"{row['model']:44s}{row['sigma_A']:>8g}{cells[0]:>10s}{cells[1]:>10s}{cells[2]:>10s}", file=out)
    print(file=out)
    for sentence in drifts.sentences(found):
        print(sentence, file=out)


def _cell(value: float | None, half: float | None) -> str:
    return "-" if value is None else plus_minus(value, half)
