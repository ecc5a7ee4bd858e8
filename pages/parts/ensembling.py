"""The members that a person has chosen on the Ensemble page, and the comparison that is shown there."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from fdcore.ensemble import TASK, Compared
from fdcore.records import Structure
from fdcore.services import ensemble, runs
from pages.parts import session
from pages.parts.followed import Followed

MOST_AT_ONCE = 500


def members() -> list[str]:
    """The chosen members; before a choice, those on this machine that fit the model."""
    known = st.session_state.get("fd_ensemble_members")
    return list(ensemble.default_members(session.settings().model_id)) if known is None else list(known)


def set_members(ids: Sequence[str]) -> None:
    st.session_state["fd_ensemble_members"] = list(ids)


def mixing() -> bool:
    """Whether members of different methods are accepted."""
    return st.session_state.get("fd_ensemble_mixing", False)


def set_mixing(on: bool) -> None:
    st.session_state["fd_ensemble_mixing"] = on


def structures() -> list[Structure]:
    return list(session.structures()[:MOST_AT_ONCE])


_followed = Followed("ensemble", (TASK,), "The comparison", ("fd_ensemble_row",))
follow, forget, shown = _followed.follow, _followed.forget, _followed.shown


def open_run(run: runs.Run, share: str = "") -> None:
    """Take a comparison of the history with its structures, its model and its members into use."""
    session.open_run(run, share)
    set_members(run.spec.parameters["members"])
    set_mixing(bool(run.spec.parameters.get("mix_methods", False)))
    follow(run, share)


def at_address() -> runs.Run | None:
    """The comparison that is shown, the address being read and written."""
    return _followed.at_address(open_run)


def compared(run: runs.Run) -> Compared:
    """What it has found."""
    return _followed.read(run, ensemble.of_run)


def row() -> int:
    """The structure that is shown in 3D: its place in the table."""
    return st.session_state.get("fd_ensemble_row", 0)


def show_row(row: int) -> None:
    st.session_state["fd_ensemble_row"] = row
