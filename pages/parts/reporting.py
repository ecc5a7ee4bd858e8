"""What a person has set on the Report page, and the report that is shown there. Kept over page changes, like the choice itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import streamlit as st

from fdcore.records import Structure
from fdcore.report import TASK, Report
from fdcore.services import report, runs
from fdcore.spec import ModelChoice, Spec
from pages.parts import session
from pages.parts.followed import Followed

# A report of one takes minutes.
MOST_AT_ONCE = 20
DTYPE = "fd_report_dtype"


def changes() -> dict[str, Any]:
    """Parameters that were set by hand."""
    return st.session_state.setdefault("fd_report_changes", {})


def change(name: str, value: Any) -> None:
    changes()[name] = value


def seed() -> int:
    return st.session_state.setdefault("fd_report_seed", 0)


def dtype() -> str:
    """A report has a precision of its own: most people run models in the single one, whose rounding would hide what is looked for."""
    return st.session_state.setdefault(DTYPE, report.DTYPE)


def model() -> ModelChoice:
    return replace(session.settings().model, dtype=dtype())


def structures() -> list[Structure]:
    return list(session.structures()[:MOST_AT_ONCE])


def spec(good: list[Structure]) -> Spec:
    """What would be asked now. Raises UsageError."""
    return report.spec_of(good, model(), changes(), seed=seed())


_followed = Followed("report", (TASK,), "The report", ("fd_report_which",))
follow, forget, shown = _followed.follow, _followed.forget, _followed.shown


def open_run(run: runs.Run, share: str = "") -> None:
    """Take a report of the history with its structures, its model and its parameters into use."""
    before = session.settings().dtype
    session.open_run(run, share)
    # Its precision is the report's own, and none of the other pages' business.
    session.set_settings(replace(session.settings(), dtype=before))
    if run.spec.model is not None:
        st.session_state[DTYPE] = run.spec.model.dtype
    st.session_state["fd_report_seed"] = run.spec.seed
    st.session_state["fd_report_changes"] = dict(run.spec.parameters)
    follow(run, share)


def at_address() -> runs.Run | None:
    """The report that is shown, the address being read and written."""
    return _followed.at_address(open_run)


def found(run: runs.Run) -> Report:
    """What it has found."""
    return _followed.read(run, report.of_run)
