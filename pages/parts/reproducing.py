"""What a person has chosen on the Reproduce page, and the reproduction that is shown there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from fdcore.reproduction import TASK, Reproduced
from fdcore.services import reproduce, runs
from pages.parts.followed import Followed

# Before anybody chooses: the figure that the paper is about, and what it is held against.
FIRST = ("fig2", "table1")


def _always() -> None:
    """A reproduction is shown until another is asked for: it does not depend on what other pages have chosen."""


_followed = Followed("reproduce", (TASK,), "The reproduction", question=_always)
follow, forget, shown = _followed.follow, _followed.forget, _followed.shown


def chosen() -> dict[str, Any]:
    """Targets, preset, whether the person's own structures, and who labels (None: what fits)."""
    return st.session_state.setdefault(
        "fd_reproduce", {"targets": list(FIRST), "preset": "quick", "own": False, "reference": None, "seed": 0}
    )


def choose(**what: Any) -> None:
    st.session_state["fd_reproduce"] = {**chosen(), **what}


def targets() -> Sequence[str]:
    return [t for t in chosen()["targets"] if t in reproduce.TARGETS]


def open_run(run: runs.Run, share: str = "") -> None:
    """Show a reproduction of the history, what it was asked being in the settings."""
    p = run.spec.parameters
    choose(
        targets=list(p["targets"]),
        preset=p.get("preset", "quick"),
        own=bool(p.get("own", False)),
        reference=None,
        seed=run.spec.seed,
    )
    follow(run, share)


def at_address() -> runs.Run | None:
    """The reproduction that is shown, the address being read and written."""
    return _followed.at_address(open_run)


def found(run: runs.Run) -> Reproduced:
    """What it has found."""
    return _followed.read(run, reproduce.of_run)
