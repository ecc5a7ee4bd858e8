"""Options of `fdcore reproduce`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from fdcore.reproduce.settings import ALL, PRESETS, TARGETS


def add_reproduce(verbs: argparse._SubParsersAction, run: Any) -> None:
    listed = "\n".join(f"  {t.id:<8} {t.where}: {t.title}" for t in TARGETS.values())
    reproduce = verbs.add_parser(
        "reproduce",
        help="figures and tables of the paper, with any model, structure and reference",
        description=f"Figures and tables of the paper:\n{listed}\n  {ALL:<8} every one of them",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    reproduce.add_argument("targets", nargs="+", metavar="TARGET", help=f"fig1 ... fig8, nvt, table1, table2, or {ALL}")
    reproduce.add_argument(
        "--preset",
        choices=PRESETS,
        default="quick",
        help="quick: minutes, with the embedded models; paper: the full protocol, the paper's models, labels by DFT (default quick)",
    )
    reproduce.add_argument(
        "--structures",
        nargs="+",
        default=[],
        metavar="FILE",
        help="in place of the shipped examples; every target then looks at all of them",
    )
    reproduce.add_argument(
        "--models", type=lambda text: text.split(","), default=[], metavar="ID,ID,...", help="in place of the preset's"
    )
    reproduce.add_argument(
        "--weights", action="append", default=[], metavar="ID=PATH", help="a local checkpoint, from a source you trust"
    )
    reproduce.add_argument(
        "--reference",
        help="chgnet, gfn1, gfn2, gpaw, MODULE:CALLABLE, or none: who labels (default: what fits each structure and is installed)",
    )
    reproduce.add_argument(
        "--set", action="append", default=[], type=_setting, metavar="NAME=VALUE", help="one number of the protocol"
    )
    reproduce.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    reproduce.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    reproduce.add_argument("--seed", type=int, default=0, help="of everything that is random (default 0)")
    reproduce.add_argument(
        "--out",
        metavar="DIR",
        default="reproduction",
        help="numbers, figures and the page; the record is in DIR/record, and the same command goes on (default reproduction)",
    )
    reproduce.add_argument(
        "--plan", action="store_true", help="say what would be done and what it costs, and do nothing"
    )
    reproduce.add_argument(
        "--json", metavar="PATH", help="write one JSON document; - for standard output and nothing else"
    )
    reproduce.set_defaults(run=run)


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"the value of {name} is not a number or a list") from error
