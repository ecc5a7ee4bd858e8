"""Every verb and its options. Nothing heavy is imported until a verb is used: a worker must not carry what scoring needs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from typing import TextIO

from fdcore import __version__
from fdcore.jobs.queue import LANES
from fdcore.store.records import ACTIVE, ENDED

Verb = Callable[[argparse.Namespace, TextIO], int]


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="fdcore", description="When to stop trusting a direct-force machine-learned potential."
    )
    parser.add_argument("--version", action="version", version=f"fdcore {__version__}")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for add in (_score, _models, _runs, _worker, _doctor, _app):
        add(verbs)
    return parser


def _verb(module: str, name: str) -> Verb:
    """What a verb does, imported when it is done."""
    return lambda arguments, results: getattr(import_module(f"fdcore.cli.{module}"), name)(arguments, results)


def _score(verbs: argparse._SubParsersAction) -> None:
    score = verbs.add_parser("score", help="U_Delta, the verdict and the atoms that cause it, for structure files")
    score.add_argument("files", nargs="+", metavar="FILE", help="CIF, POSCAR, xyz or extxyz; - reads standard input")
    _model_options(score)
    score.add_argument("--charge", type=int, help="total charge in e, where a file is silent")
    score.add_argument("--spin", type=int, help="spin multiplicity 2S+1, where a file is silent")
    _json(score)
    score.add_argument("--csv", metavar="PATH", help="write one row per structure; - for standard output")
    score.add_argument("--extxyz", metavar="PATH", help="write structures with per-atom arrays; - for standard output")
    score.set_defaults(run=_verb("score", "run"))


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="ID", default=None, help="`fdcore models` lists them; default: the embedded one"
    )
    parser.add_argument("--weights", metavar="PATH", help="a local checkpoint of that model, from a source you trust")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", metavar="PATH", help="write one JSON document; - for standard output and nothing else"
    )


def _models(verbs: argparse._SubParsersAction) -> None:
    models = verbs.add_parser("models", help="list the models, or check one by finite differences")
    models.add_argument(
        "--check", metavar="ID", help="compare F_c and grad U_Delta with central differences in float64"
    )
    models.add_argument("--weights", metavar="PATH", help="a local checkpoint of the model to check")
    models.add_argument("--device", default="auto", help="auto, cpu, cuda")
    _json(models)
    models.set_defaults(run=_verb("models", "run"))


def _runs(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("runs", help="list, show, cancel, export or prune runs")
    acts = parser.add_subparsers(title="acts", required=True, metavar="ACT")

    listing = acts.add_parser("list", help="newest first")
    listing.add_argument("--state", help=f"only these, with commas: {','.join((*ACTIVE, *ENDED))}")
    listing.add_argument("--owner", help="only this owner's")
    listing.add_argument("--limit", type=int, default=50)
    _json(listing)
    listing.set_defaults(run=_verb("runs", "listing"))

    show = acts.add_parser("show", help="everything about one run")
    show.add_argument("id", metavar="ID", help="the run's id, or its beginning")
    _json(show)
    show.set_defaults(run=_verb("runs", "show"))

    cancel = acts.add_parser("cancel", help="stop runs; what they recorded stays")
    cancel.add_argument("ids", nargs="+", metavar="ID")
    cancel.set_defaults(run=_verb("runs", "cancel"))

    export = acts.add_parser("export", help="one run as a zip, with its provenance")
    export.add_argument("id", metavar="ID")
    export.add_argument("--out", metavar="PATH", help="default: run-<id>.zip here; - for standard output")
    export.add_argument("--force", action="store_true", help="overwrite a file that exists")
    export.set_defaults(run=_verb("runs", "export"))

    prune = acts.add_parser("prune", help="delete ended runs that are old")
    prune.add_argument("--older-than", required=True, metavar="AGE", help="such as 12h, 30d, 8w")
    prune.add_argument("--state", help=f"only these, with commas: {','.join(ENDED)}")
    prune.add_argument("--dry-run", action="store_true", help="say what would be deleted, and delete nothing")
    prune.add_argument("--yes", action="store_true", help="do not ask")
    prune.set_defaults(run=_verb("runs", "prune"))


def _worker(verbs: argparse._SubParsersAction) -> None:
    worker = verbs.add_parser("worker", help="serve waiting runs on this machine, in the foreground")
    worker.add_argument("--name", help="of this worker among those that share a database")
    worker.add_argument("--lanes", help=f"only these, with commas: {','.join(LANES)}")
    worker.set_defaults(run=_verb("operate", "worker"))


def _doctor(verbs: argparse._SubParsersAction) -> None:
    doctor = verbs.add_parser(
        "doctor", help="look at the installation: versions, device, memory, database, workers, disk"
    )
    doctor.add_argument("--drill", action="store_true", help="also send a short run through the engine")
    _json(doctor)
    doctor.set_defaults(run=_verb("operate", "doctor"))


def _app(verbs: argparse._SubParsersAction) -> None:
    app = verbs.add_parser("app", help="open the app in the browser")
    app.add_argument("--port", type=int, default=8501)
    app.add_argument("--address", default="localhost", help="0.0.0.0 serves other machines too")
    app.add_argument("--headless", action="store_true", help="do not open a browser")
    app.set_defaults(run=_verb("operate", "app"))
