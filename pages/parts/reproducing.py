"""What a person has chosen on the Reproduce page, and the reproduction that is shown there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import streamlit as st

from fdcore import services
from fdcore.records import ModelCard
from fdcore.reproduction import TASK, Reproduced
from fdcore.services import reproduce, runs
from pages.parts import session
from pages.parts.followed import Followed

# Before anybody chooses: the figure that the paper is about, and what it is held against.
FIRST = ("fig2", "table1")


def _always() -> None:
    """A reproduction is shown until another is asked for: it does not depend on what other pages have chosen."""


_followed = Followed("reproduce", (TASK,), "The reproduction", question=_always)
follow, forget, shown = _followed.follow, _followed.forget, _followed.shown


def chosen() -> dict[str, Any]:
    """Targets, preset, models in place of the preset's (none: its own), whether the person's own structures, and who labels (None: what
    fits)."""
    first = {"targets": list(FIRST), "preset": "quick", "models": [], "own": False, "reference": None, "seed": 0}
    return st.session_state.setdefault("fd_reproduce", first)


def choose(**what: Any) -> None:
    st.session_state["fd_reproduce"] = {**chosen(), **what}


def targets() -> Sequence[str]:
    return [t for t in chosen()["targets"] if t in reproduce.TARGETS]


def offered_models() -> dict[str, ModelCard]:
    """Models with both forces whose weights are on this machine, the person's own included."""
    return {i: c for i, c in session.models().items() if c.kind == "direct" and services.model_is_here(c)}


def chosen_models() -> Sequence[str]:
    """Those of the chosen ones that are still here; none: the preset's own."""
    return [i for i in chosen()["models"] if i in offered_models()]


def open_run(run: runs.Run, share: str = "") -> None:
    """Show a reproduction of the history, what it was asked being in the settings."""
    p = run.spec.parameters
    choose(
        targets=list(p["targets"]),
        preset=p.get("preset", "quick"),
        models=list(p.get("models", ())),
        own=bool(p.get("own", False)),
        reference=None,
        seed=run.spec.seed,
    )
    if run.spec.model is not None:
        session.set_settings(replace(session.settings(), dtype=run.spec.model.dtype, device=run.spec.model.device))
    follow(run, share)


def at_address() -> runs.Run | None:
    """The reproduction that is shown, the address being read and written."""
    return _followed.at_address(open_run)


def found(run: runs.Run) -> Reproduced:
    """What it has found."""
    return _followed.read(run, reproduce.of_run)
