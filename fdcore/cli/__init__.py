"""The command line: the same verbs as the pages. Results go to stdout, everything else to stderr.

Exit codes: 0 every file was scored, 1 some were not (the others still are), 2 wrong usage or no model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from fdcore import __version__, services
from fdcore.cli import operate, runs
from fdcore.cli.output import print_failures, require_writable, stdout_for_results, write
from fdcore.errors import FdcoreError, UsageError
from fdcore.records import Failure, ModelCard, Score

EXIT_OK, EXIT_PARTLY, EXIT_USAGE = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `fdcore`."""
    arguments = build_parser().parse_args(argv)
    with stdout_for_results() as results:
        try:
            return arguments.run(arguments, results)
        except FdcoreError as error:
            print(f"fdcore: {error.message}", file=sys.stderr)
            if error.hint:
                print(f"        {error.hint}", file=sys.stderr)
            return EXIT_USAGE
        except BrokenPipeError:
            # `fdcore score ... | head`: the reader has gone, which is not an error of ours.
            os.dup2(os.open(os.devnull, os.O_WRONLY), results.fileno())
            return EXIT_OK
        except KeyboardInterrupt:
            print("\nfdcore: stopped", file=sys.stderr)
            return 130


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="fdcore", description="When to stop trusting a direct-force machine-learned potential."
    )
    parser.add_argument("--version", action="version", version=f"fdcore {__version__}")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    score = verbs.add_parser("score", help="U_Delta, the verdict and the atoms that cause it, for structure files")
    score.add_argument("files", nargs="+", metavar="FILE", help="CIF, POSCAR, xyz or extxyz; - reads standard input")
    _model_options(score)
    score.add_argument("--charge", type=int, help="total charge in e, where a file is silent")
    score.add_argument("--spin", type=int, help="spin multiplicity 2S+1, where a file is silent")
    score.add_argument("--json", metavar="PATH", help="write one JSON document; - for standard output and nothing else")
    score.add_argument("--csv", metavar="PATH", help="write one row per structure; - for standard output")
    score.add_argument("--extxyz", metavar="PATH", help="write structures with per-atom arrays; - for standard output")
    score.set_defaults(run=_score)

    models = verbs.add_parser("models", help="list the models, or check one by finite differences")
    models.add_argument(
        "--check", metavar="ID", help="compare F_c and grad U_Delta with central differences in float64"
    )
    models.add_argument("--weights", metavar="PATH", help="a local checkpoint of the model to check")
    models.add_argument("--device", default="auto", help="auto, cpu, cuda")
    models.add_argument("--json", metavar="PATH", help="write the cards or the check as JSON; - for standard output")
    models.set_defaults(run=_models)

    runs.add_verb(verbs)
    operate.add_verbs(verbs)

    app = verbs.add_parser("app", help="open the app in the browser")
    app.add_argument("--port", type=int, default=8501)
    app.add_argument("--address", default="localhost", help="0.0.0.0 serves other machines too")
    app.add_argument("--headless", action="store_true", help="do not open a browser")
    app.set_defaults(run=_app)
    return parser


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="ID", default=None, help="`fdcore models` lists them; default: the embedded one"
    )
    parser.add_argument("--weights", metavar="PATH", help="a local checkpoint of that model, from a source you trust")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])


# ---- score ---------------------------------------------------------------------------------------------------------


def _score(arguments: argparse.Namespace, results: TextIO) -> int:
    on_stdout = [name for name in ("json", "csv", "extxyz") if getattr(arguments, name) == "-"]
    if len(on_stdout) > 1:
        raise UsageError(
            "Only one of --json, --csv and --extxyz can write to standard output.", "Give the others a path."
        )
    # Output places are tried before anything is computed, so that a long run does not end in a typing mistake.
    for name in ("json", "csv", "extxyz"):
        require_writable(getattr(arguments, name))
    from fdcore import export

    # Wrong names are usage errors whatever the files hold, and known before anything is read.
    card = services.card(arguments.model or services.default_model_id())
    services.check_device(arguments.device)
    if arguments.weights is not None and not Path(arguments.weights).is_file():
        raise UsageError(f"There is no file {arguments.weights}.", "Check the path given with --weights.")
    parsed = _read(arguments.files)
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


def _read(files: Sequence[str]) -> services.Parsed:
    if "-" not in files:
        return services.read_paths(files)
    if len(files) > 1:
        raise UsageError("Standard input (-) cannot be mixed with files.", "Give files only, or - only.")
    return services.read_sources([services.Source(name="standard input", data=sys.stdin.buffer.read())])


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


# ---- models --------------------------------------------------------------------------------------------------------


def _models(arguments: argparse.Namespace, results: TextIO) -> int:
    require_writable(arguments.json)
    if arguments.check:
        return _check_model(arguments, results)
    cards = services.list_models()
    if arguments.json:
        rows = [{**asdict(c), "here": services.model_is_here(c)} for c in cards]
        write(arguments.json, lambda: json.dumps(rows, indent=1, default=dict) + "\n", results)
        if arguments.json == "-":
            return EXIT_OK
    print(f"{'model':<26} {'weights':<9} {'MB':>4} {'cutoff':>6} {'cap':>4}  {'elements':>8}  trained on", file=results)
    for c in cards:
        here = "here" if services.model_is_here(c) else c.weights
        cap = "-" if c.neighbour_cap is None else str(c.neighbour_cap)
        size = f"{c.download_MB:.0f}" if c.download_MB else "-"
        print(
            f"{c.id:<26} {here:<9} {size:>4} {c.cutoff_A:>4.0f} Å {cap:>4}  {len(c.elements):>8}  {c.training_data} "
            f"[{c.reference_method}]",
            file=results,
        )
    return EXIT_OK


def _check_model(arguments: argparse.Namespace, results: TextIO) -> int:
    from fdcore.models.selfcheck import check_gradients

    model = services.load_model(arguments.check, arguments.device, "float64", arguments.weights)
    check = check_gradients(model)
    if arguments.json:
        write(arguments.json, lambda: json.dumps(asdict(check), indent=1) + "\n", results)
    if arguments.json != "-":
        print(
            f"{model.card.id} on {check.structure}, central differences in float64 at fixed graph, h = {check.step_A:g} Å:\n"
            f"  F_c              largest error {check.forces_conservative_error:.2e} of {check.forces_conservative_scale:.3g} eV/Å\n"
            f"  grad U_Delta     largest error {check.force_delta_gradient_error:.2e} of {check.force_delta_gradient_scale:.3g} eV/Å^2\n"
            f"  low-memory grad  largest error {check.low_memory_gradient_error:.2e}\n"
            f"{'agrees' if check.passed else 'DOES NOT AGREE'}",
            file=results,
        )
    return EXIT_OK if check.passed else EXIT_PARTLY


# ---- app -----------------------------------------------------------------------------------------------------------


def _app(arguments: argparse.Namespace, results: TextIO) -> int:
    del results
    package = Path(__file__).resolve().parents[1]
    places = (package.parent / "app.py", package / "_app" / "app.py")
    script = next((p for p in places if p.is_file()), None)
    if script is None:
        raise UsageError("app.py is not installed beside fdcore.", "Install the package again, or run from a checkout.")
    command = [sys.executable, "-m", "streamlit", "run", str(script)]
    command += ["--server.port", str(arguments.port), "--server.address", arguments.address]
    if arguments.headless:
        command += ["--server.headless", "true"]
    # Streamlit reads .streamlit/config.toml from the working directory.
    return subprocess.call(command, cwd=script.parent)


# ---- shared --------------------------------------------------------------------------------------------------------


def _progress[T](items: Iterator[T], total: int) -> Iterator[T]:
    return iter(tqdm(items, total=total, unit="structure", file=sys.stderr, disable=total < 2 or None))
