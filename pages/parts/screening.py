"""What a person has set on the Screen page, the screening that is shown there, and what is selected in it."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import streamlit as st

from fdcore.errors import FdcoreError, UnknownRunError
from fdcore.services import runs
from fdcore.services import screening as screenings
from fdcore.services.screening import TASK, Filter, Selected, Standing, Watch, Which
from pages.parts import owner, session
from pages.parts.followed import Followed

# Rows that are sent to a browser; the table as a whole is in the downloads.
MOST_ROWS = 500
# Of the time, while a screening goes on, that looking through its table may take.
LOOKING_SHARE = 0.1
DEFAULTS: dict[str, Any] = {"hands": 1, "chunk": 200, "check_share": 0.01}


# ---- what is asked -------------------------------------------------------------------------------------------------


def chosen() -> dict[str, Any]:
    """How it is to be done; `folder`: one of the operator's, None: files that are brought."""
    return st.session_state.setdefault("fd_screen", {"folder": None, **DEFAULTS})


def choose(**what: Any) -> None:
    st.session_state["fd_screen"] = {**chosen(), **what}


def folders() -> tuple[tuple[str, ...], FdcoreError | None]:
    """What the operator offers, and why it cannot be said where it cannot."""
    try:
        return screenings.offered_folders(), None
    except FdcoreError as error:
        return (), error


# ---- the screening that is shown -----------------------------------------------------------------------------------


def _always() -> None:
    """A screening is shown until another is asked for: it brings its own structures and its own model."""


_followed = Followed(
    "screen",
    (TASK,),
    "The screening",
    ("fd_screen_filter", "fd_screen_rows", "fd_screen_watch", "fd_screen_look"),
    question=_always,
)
follow, forget, shown, share_key = _followed.follow, _followed.forget, _followed.shown, _followed.share_key


def open_run(run: runs.Run, share: str = "") -> None:
    """Show a screening of the history, with its settings and its model."""
    if run.spec.model is not None:
        known = run.spec.model
        p = run.spec.parameters
        session.set_settings(session.Settings(known.id, known.dtype, known.device, p.get("charge"), p.get("spin")))
    choose(**{name: run.spec.parameters.get(name, default) for name, default in DEFAULTS.items()})
    follow(run, share)


def at_address() -> runs.Run | None:
    """The screening that is shown, the address being read and written."""
    return _followed.at_address(open_run)


def standing(run: runs.Run) -> Standing:
    """How far it is. Raises StoreError."""
    known = st.session_state.get("fd_screen_watch")
    if known is None or known[0] != run.id:
        known = (run.id, Watch(run))
        st.session_state["fd_screen_watch"] = known
    return known[1].look()


# ---- the table -----------------------------------------------------------------------------------------------------


def wanted() -> Filter:
    """What is looked for in the table."""
    return st.session_state.get("fd_screen_filter", Filter())


def want(new: Filter) -> None:
    st.session_state["fd_screen_filter"] = new


def rows(run: runs.Run, done: int, keep: bool) -> tuple[Selected, int, str]:
    """The rows that pass, how many chunks were done when they were looked for, and a name for exactly these rows. `keep`: those that are
    shown stay, though more is done by now: something is selected among them."""
    question = (run.id, wanted())
    known = st.session_state.get("fd_screen_rows")
    began = time.monotonic()
    if known is None or known[0] != question or (known[2] != done and not keep and began > known[3]):
        found = screenings.rows(run, wanted(), MOST_ROWS)
        # A large table is looked through less often.
        again = time.monotonic() + (time.monotonic() - began) / LOOKING_SHARE if run.active else 0.0
        known = (question, found, done, again)
        st.session_state["fd_screen_rows"] = known
    return known[1], known[2], f"screen-rows-{run.id[:8]}-{abs(hash(question))}-{known[2]}"


# ---- one of them ---------------------------------------------------------------------------------------------------


def look(run: runs.Run, which: Which) -> runs.Run:
    """The scoring run that shows this structure in detail, begun once. Raises QuotaError, UsageError, StoreError."""
    known = st.session_state.get("fd_screen_look")
    if known is not None and known[0] == (run.id, which):
        # Deleted meanwhile, it is begun anew.
        with contextlib.suppress(UnknownRunError):
            return runs.get(owner.viewer(), known[1])
    scored = screenings.send(owner.viewer(), run, [which])
    st.session_state["fd_screen_look"] = ((run.id, which), scored.id)
    return scored
