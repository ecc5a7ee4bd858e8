"""What a training leaves: the model's folder, its card in words, and how large U_Delta is on what it should know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fdcore.distribution import reference_distribution
from fdcore.errors import FdcoreError
from fdcore.finetune.training import Checked, Training
from fdcore.models import finetuned
from fdcore.models.base import Model
from fdcore.records import ModelCard

# With fewer structures there is no saying where a U_Delta stands among them.
FEWEST_IN_DISTRIBUTION = 20
TRAINED = {"direct": "F_nc only", "both": "energy, F_nc and F_c"}


def write(folder: Path, training: Training, base: Model, step: Mapping[str, Any]) -> ModelCard:
    """Write the best weights of a training of `base`, with their card and, where there is a replay set, its distribution of U_Delta."""
    model = training.result()
    trained = [training.examples[k].structure for k in training.trained_on]
    n, labels = len(training.trained_on), step["labelled_by"] or "labels of unknown origin"
    before = base.card.training_data
    generation = len(finetuned.lineage_of(base.card)) + 1
    changes = {
        "summary": f"{finetuned.architecture_of(base.card)} fine-tuned {_times(generation)} ({TRAINED[training.settings.train]}).",
        "training_data": f"{before}; then fine-tuned on {n} structures ({', '.join(_formulas(trained))}) labelled by {labels}",
        # The energy is the labels' where its zero was moved there.
        "reference_method": step["labelled_by"]
        if training.shifts and step["labelled_by"]
        else base.card.reference_method,
        "held_out": _figures(step["checks"]),
        "not_for": "Anything far from what it was fine-tuned for, without looking at its errors there. "
        + base.card.not_for,
    }
    card = finetuned.write(folder, model, base.card, base.weights_sha256, step, changes)
    _write_distribution(folder, training, card)
    return card


def _write_distribution(folder: Path, training: Training, card: ModelCard) -> None:
    """In the format of `training/evaluate.py`: U_Delta on the replay set, which is what the base model was made for."""
    if len(training.replay) < FEWEST_IN_DISTRIBUTION:
        return
    found = training.result().evaluate_each([e.structure for e in training.replay])
    values = sorted(round(e.force_delta, 6) for e in found if not isinstance(e, FdcoreError))
    base = reference_distribution(training.base_id)
    document = {
        "values_eV_per_A": values,
        "bands": [],
        "description": f"{len(values)} labelled structures of the base model's own domain, after fine-tuning",
        "closest_A": {} if base is None else dict(base.closest_A),
        "largest_force_eV_per_A": None if base is None else base.largest_force,
    }
    (folder / finetuned.DISTRIBUTION).write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")


def _figures(checks: list[Mapping[str, Any]]) -> dict[str, float]:
    """The card's table of errors: after fine-tuning, on what was held out and on the replay set."""
    out = {}
    for check in (Checked(**c) for c in checks):
        if check.when == "after" and check.part != "train":
            where = {"held-out": "held-out labels", "replay": "replay set"}[check.part]
            out[f"eps_nc, {where} (eV/Å)"] = round(check.error_direct, 4)
            out[f"eps_c, {where} (eV/Å)"] = round(check.error_conservative, 4)
            out[f"energy MAE, {where} (meV/atom)"] = round(check.energy_error, 2)
    return out


def _formulas(structures: list[Any], most: int = 4) -> list[str]:
    kinds = list(dict.fromkeys(s.formula for s in structures))
    return kinds[:most] + (["..."] if len(kinds) > most else [])


def _times(n: int) -> str:
    return {1: "once", 2: "twice"}.get(n, f"{n} times")
