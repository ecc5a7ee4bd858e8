"""What a person has set on the Dynamics page, and the run that is shown there. Kept over page changes, like the choice itself."""

from __future__ import annotations

from typing import Any

import streamlit as st

from fdcore.motion import TASKS, Motion
from fdcore.records import Structure
from fdcore.services import dynamics, runs
from pages.parts import session
from pages.parts.followed import Followed

KINDS = {"md": "Dynamics", "relax": "Relaxation", "mts-advisor": "MTS advisor"}
MOST_IN_A_BATCH = 64


# ---- what is asked for ---------------------------------------------------------------------------------------------


def kind() -> str:
    """Which of the three tasks."""
    return st.session_state.setdefault("fd_motion_kind", "md")


def set_kind(new: str) -> None:
    if new != kind():
        st.session_state["fd_motion_kind"] = new
        forget()


def preset() -> str:
    return st.session_state.setdefault("fd_motion_preset", "quick")


def set_preset(new: str) -> None:
    """A whole protocol: what was changed by hand goes, the driver stays."""
    st.session_state["fd_motion_preset"] = new
    known = changes()
    st.session_state["fd_motion_changes"] = {
        **_all_changes(),
        "md": {k: known[k] for k in ("driver", "mts_stride") if k in known},
    }


def changes() -> dict[str, Any]:
    """Parameters of the present task that were set by hand."""
    return _all_changes().setdefault(kind(), {})


def _all_changes() -> dict[str, dict[str, Any]]:
    return st.session_state.setdefault("fd_motion_changes", {})


def change(name: str, value: Any) -> None:
    changes()[name] = value


def parameters(structures: list[Structure]) -> dict[str, Any]:
    """The preset with its changes, steps raised to whole strides. Raises UsageError."""
    given = dict(dynamics.PRESETS[preset()].parameters(structures)) if kind() == "md" else {}
    return dynamics.parameters_of(kind(), dynamics.in_whole_rounds({**given, **changes()}))


def seed() -> int:
    return st.session_state.setdefault("fd_motion_seed", 0)


def which() -> int | None:
    """Index of the structure to move, None for all of them as one batch."""
    return st.session_state.setdefault("fd_motion_which", 0)


def chosen() -> list[Structure]:
    """The structures to move."""
    listed = list(session.structures())
    number = which()
    if number is None:
        return listed[:MOST_IN_A_BATCH]
    return listed[number : number + 1] or listed[:1]


# ---- the run that is shown -----------------------------------------------------------------------------------------

_followed = Followed("motion", TASKS, "The simulation", ("fd_motion_paused", "fd_motion_moment"))
forget, shown, share_key = _followed.forget, _followed.shown, _followed.share_key


def follow(run: runs.Run, share: str = "") -> None:
    """Show this run; the address names it."""
    _followed.follow(run, share)
    st.session_state["fd_motion_kind"] = run.task


def open_run(run: runs.Run, share: str = "") -> None:
    """Take a run of the history with its structures, its model and its parameters into use."""
    session.open_run(run, share)
    st.session_state["fd_motion_kind"] = run.task
    st.session_state["fd_motion_seed"] = run.spec.seed
    st.session_state["fd_motion_which"] = None if run.spec.n_structures > 1 else 0
    # All of them: what is at its default in the run must not come from a preset.
    st.session_state["fd_motion_changes"] = {**_all_changes(), run.task: dynamics.all_parameters(run.spec)}
    follow(run, share)


def at_address() -> runs.Run | None:
    """The run that is shown, the address being read and written."""
    return _followed.at_address(open_run)


def motion(run: runs.Run) -> Motion:
    """What a run has recorded."""
    return _followed.read(run, runs.motion_of)


def moment() -> int | None:
    """The frame at which the trajectory was stopped."""
    return st.session_state.get("fd_motion_moment")


def set_moment(frame: int) -> None:
    st.session_state["fd_motion_moment"] = frame


def title(structures: list[Structure]) -> str:
    """How the history names a run of these structures."""
    named = session.title()
    return named if len(structures) != 1 or len(session.structures()) == 1 else f"{named}, frame {structures[0].index}"
