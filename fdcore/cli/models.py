"""`fdcore models`: what can be scored with, and whether its gradients are right."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TextIO

from fdcore import services
from fdcore.cli.output import EXIT_OK, EXIT_PARTLY, require_writable, write
from fdcore.models import finetuned


def run(arguments: argparse.Namespace, results: TextIO) -> int:
    require_writable(arguments.json)
    if arguments.check:
        return _check_model(arguments, results)
    # Those of this machine's own command line and, where it is also a server, of everybody's runs: whoever reads this owns the machine.
    cards = [*services.all_models(), *finetuned.named()]
    if arguments.json:
        rows = [{**asdict(c), "here": services.model_is_here(c)} for c in cards]
        write(arguments.json, lambda: json.dumps(rows, indent=1, default=dict) + "\n", results)
        if arguments.json == "-":
            return EXIT_OK
    print(
        f"{'model':<31} {'force':<12} {'weights':<9} {'MB':>4} {'cutoff':>6} {'cap':>4}  {'elements':>8}  trained on",
        file=results,
    )
    for c in cards:
        here = "here" if services.model_is_here(c) else c.weights if services.extra_is_here(c) else "extra"
        cap = "-" if c.neighbour_cap is None else str(c.neighbour_cap)
        # A model that comes as a file says these when it is loaded.
        cutoff, known = f"{c.cutoff_A:.0f} Å" if c.cutoff_A else "-", len(c.elements) or "-"
        size = f"{c.download_MB:.0f}" if c.download_MB else "-"
        print(
            f"{c.id:<31} {c.kind:<12} {here:<9} {size:>4} {cutoff:>6} {cap:>4}  {known:>8}  {c.training_data} "
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
