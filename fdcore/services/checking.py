"""What a page may ask about models themselves: a self-check, and what earlier ones found."""

from __future__ import annotations

from dataclasses import fields

from fdcore import models
from fdcore.models.selfcheck import GradientCheck
from fdcore.services import runs
from fdcore.spec import ModelChoice

TASK = "check"


def submit(viewer: runs.Viewer, model_id: str, device: str = "auto", *, again: bool = False) -> runs.Run:
    """Queue the finite-difference self-check of a model with two forces, or return the one that was made (`again`: do not).
    Raises QuotaError, UnknownModelError, UsageError."""
    card = models.card(model_id)
    spec = runs.spec_of(TASK, (), ModelChoice(card.id, "float64", device))
    # Loading, perhaps downloading, a large model is not quick.
    lane = runs.lane_of(device, 0.0 if card.weights == "embedded" else 1e9)
    return runs.submit(viewer, spec, (), title=f"Self-check of {card.id}", lane=lane, again=again)


def latest(viewer: runs.Viewer) -> dict[str, runs.Run]:
    """The newest self-check of every model that this viewer has asked for."""
    found: dict[str, runs.Run] = {}
    for run in runs.list_runs(viewer, limit=200):
        if run.task == TASK and run.spec.model is not None:
            found.setdefault(run.spec.model.id, run)
    return found


def found(run: runs.Run) -> GradientCheck | None:
    """What a self-check has found; None before it ended well."""
    if run.state != "done" or not run.summary:
        return None
    return GradientCheck(**{f.name: run.summary[f.name] for f in fields(GradientCheck)})
