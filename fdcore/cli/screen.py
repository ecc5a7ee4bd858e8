"""`fdcore screen`: thousands to millions of structures ranked, by as many processes and machines as there are."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from fdcore import config as configuration
from fdcore import services
from fdcore.cli.local import stop_asked
from fdcore.cli.output import EXIT_OK, EXIT_PARTLY, EXIT_STOPPED, named_model, require_writable, say_unread, write
from fdcore.errors import UsageError
from fdcore.human import duration
from fdcore.models.base import file_sha256
from fdcore.screening.chunks import MOST, list_chunks
from fdcore.screening.results import TABLE_CSV, TABLE_PARQUET
from fdcore.screening.rows import bin_edges
from fdcore.screening.scoring import How
from fdcore.screening.screen import Order, Standing, devices, screen
from fdcore.screening.summary import SUMMARY


def run(arguments: argparse.Namespace, results: TextIO) -> int:
    if not 0 <= arguments.check <= 1:
        raise UsageError(f"--check {arguments.check:g} is not a share.", "Give a number from 0 to 1.")
    if not 1 <= arguments.chunk <= MOST:
        raise UsageError(
            f"Chunks of {arguments.chunk:,} structures cannot be made.", f"Give --chunk a number from 1 to {MOST:,}."
        )
    if not all(arguments.paths):
        raise UsageError("One of the paths is empty.", "Name a file or a folder; `.` is the present one.")
    require_writable(arguments.json)
    card = named_model(arguments) or services.card(services.default_model_id())
    say_unread(arguments, [card.id])
    folder = Path(arguments.out)
    weights = None if arguments.weights is None else Path(arguments.weights).absolute()
    order = Order(
        folder=folder,
        # What is not there is a row of the table, and not asked for again.
        inputs=[path for path in dict.fromkeys(map(os.path.abspath, arguments.paths)) if os.path.lexists(path)],
        listed=lambda: list_chunks(arguments.paths, arguments.chunk),
        model={
            "id": card.id,
            "dtype": arguments.dtype,
            "weights": None if weights is None else str(weights),
            "compile": arguments.compile,
            "weights_sha256": (None if weights is None else file_sha256(weights)) or card.sha256 or None,
        },
        devices=devices(arguments.device, arguments.workers),
        how=How(arguments.check, arguments.charge, arguments.spin),
        chunk=arguments.chunk,
        database_url=_shared_database() if arguments.shared else "",
    )
    latest = _watched(order)
    if latest is None or not latest.count.listed:
        print("fdcore: stopped while the inputs were listed; the same command begins again", file=sys.stderr)
        return EXIT_STOPPED
    if not (folder / SUMMARY).is_file():
        print("fdcore: stopped before anything was done; the same command begins again", file=sys.stderr)
        return EXIT_STOPPED
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    write(arguments.json, lambda: json.dumps(summary, indent=1, ensure_ascii=False) + "\n", results)
    if arguments.json != "-":
        _print(summary, folder, results)
    if not (latest is not None and latest.count.complete):
        print("fdcore: stopped; what is done is kept, the same command goes on from here", file=sys.stderr)
        return EXIT_STOPPED
    if not summary["structures"]:
        print(f"fdcore: there are no structures in {', '.join(arguments.paths)}", file=sys.stderr)
        return EXIT_PARTLY
    return EXIT_PARTLY if summary["failed"] else EXIT_OK


def _shared_database() -> str:
    config = configuration.from_environment()
    if config.sqlite:
        raise UsageError(
            "--shared needs a database that other machines reach.",
            "Set FDCORE_DATABASE_URL to a PostgreSQL address on every machine, and share the folder of --out.",
        )
    return config.database_url


def _watched(order: Order) -> Standing | None:
    """The screening with a progress bar."""
    latest: Standing | None = None
    with stop_asked() as should_stop, tqdm(total=None, unit="structure", file=sys.stderr, disable=None) as bar:
        for latest in screen(order, should_stop):
            bar.total = max(latest.count.expected, latest.done) or None
            bar.set_description("scoring" if latest.count.listed else "listing", refresh=False)
            bar.set_postfix(failed=latest.count.failed, processes=latest.processes, refresh=False)
            bar.update(latest.done - bar.n)
    return latest


def _print(summary: dict[str, Any], folder: Path, out: TextIO) -> None:
    seconds = summary["seconds"]
    rate = f", {summary['structures'] / seconds:,.1f} a second" if seconds > 0 else ""
    print(f"{summary['structures']:,} structures in {duration(seconds)}{rate}: {summary['scored']:,} scored, {summary['failed']:,} failed", file=out)  # fmt: skip
    print(f"model {summary['settings']['model']}, {summary['settings']['dtype']}", file=out)
    for verdict in ("consistent", "caution", "unreliable", "unknown"):
        if verdict in summary["verdicts"]:
            print(f"  {verdict:<12} {summary['verdicts'][verdict]:>10,}", file=out)
    if summary["worst"]:
        print("\nlargest U_Delta (eV/Å)", file=out)
        for row in summary["worst"][:10]:
            where = f"{row['file']}:{row['index']}"
            atom = f"{row['worst_element']}{row['worst_atom']}"
            print(f"  {row['force_delta_eV_per_A']:10.4g}  {row['formula']:<16.16} {row['n_atoms']:5d} atoms  worst {atom:<6} {where}", file=out)  # fmt: skip
        print(f"\nU_Delta from {_from(summary)} eV/Å (bins of a tenth of a decade in {SUMMARY})", file=out)
    if summary["checked_alone"]:
        difference = summary["largest_alone_difference_eV_per_A"]
        print(f"{summary['checked_alone']:,} were scored a second time, alone: U_Delta differs by at most {difference:.2g} eV/Å", file=out)  # fmt: skip
    if summary["ties"]:
        print(f"{summary['ties']:,} have a tie at the neighbour cut: their U_Delta depends on how it is broken", file=out)  # fmt: skip
    for reason, count in summary["reasons"].items():
        print(f"failed: {count:,} x {reason}", file=sys.stderr)
    others = summary["failed"] - sum(summary["reasons"].values())
    if others:
        print(f"failed: {others:,} x other reasons (in the table)", file=sys.stderr)
    print(f"\n{folder / TABLE_PARQUET}, {folder / TABLE_CSV}, {folder / SUMMARY}", file=out)


def _from(summary: dict[str, Any]) -> str:
    places = sorted(map(int, summary["force_delta_bins"]))
    return f"{bin_edges(places[0])[0]:.2g} to {bin_edges(places[-1])[1]:.2g}"
