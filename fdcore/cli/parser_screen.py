"""Options of `fdcore screen`."""

from __future__ import annotations

import argparse


def add_screen(verbs: argparse._SubParsersAction) -> argparse.ArgumentParser:
    screen = verbs.add_parser(
        "screen",
        help="rank thousands to millions of structures by U_Delta; a bad one costs only itself",
        description="Files, folders, extXYZ, ASE databases, Parquet and JSON lines of structures (pymatgen, OPTIMADE). "
        "The same command goes on after an interruption, looks for new inputs, and joins where it runs on another machine (--shared).",
    )
    screen.add_argument("paths", nargs="+", metavar="PATH", help="files and folders")
    screen.add_argument(
        "--out",
        metavar="DIR",
        default="screening",
        help="results.parquet, results.csv, summary.json (default screening)",
    )
    screen.add_argument("--workers", type=int, help="processes on this machine (default: one per core, or one per GPU)")
    screen.add_argument(
        "--chunk", type=int, default=200, help="structures that are taken and kept at once (default 200)"
    )
    screen.add_argument(
        "--check", type=float, default=0.01, help="share that is scored a second time, alone, to compare (default 0.01)"
    )
    screen.add_argument(
        "--compile",
        action="store_true",
        help="let torch compile the model (Orb family): half a minute once, then about twice as fast on a GPU",
    )
    screen.add_argument(
        "--shared",
        action="store_true",
        help="keep the list of chunks in FDCORE_DATABASE_URL (PostgreSQL), so that other machines can join",
    )
    return screen
