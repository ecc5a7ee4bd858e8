"""What a person has set on the Dynamics page, and the run that is shown there. Kept over page changes, like the choice itself."""

from __future__ import annotations

from typing import Any

import streamlit as st

from fdcore.errors import FdcoreError, UnknownRunError
from fdcore.motion import TASKS, Motion
from fdcore.records import Structure
from fdcore.services import dynamics, runs
from pages.parts import owner, session

KINDS = {"md": "Dynamics", "relax": "Relaxation", "mts-advisor": "MTS advisor"}
# Motions read per person: enough to compare several runs without reading again.
KEPT_MOTIONS = 8
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


def follow(run: runs.Run, share: str = "") -> None:
    """Show this run; the address names it."""
    st.session_state["fd_motion_run"] = (run.id, share)
    st.session_state["fd_motion_kind"] = run.task
    st.session_state["fd_motion_question"] = _question()
    st.session_state.pop("fd_motion_moment", None)


def forget() -> None:
    """Show no run: another question is about to be asked."""
    st.session_state.pop("fd_motion_run", None)
    st.session_state.pop("fd_motion_paused", None)


def _question() -> tuple[str, session.Settings]:
    current = session.choice()
    return (current.key if current else "", session.settings())


def shown() -> runs.Run | None:
    """The run that is shown, as it is now; None when there is none, or when another structure or model was chosen since."""
    known = st.session_state.get("fd_motion_run")
    if known is None:
        return None
    try:
        run = runs.get(owner.viewer(), *known)
    except UnknownRunError:
        forget()
        return None
    if st.session_state.get("fd_motion_question") == _question():
        return run
    forget()
    if run.active:
        st.toast("The simulation goes on; the Runs page has it.", icon=":material/history:")
    return None


def share_key() -> str:
    known = st.session_state.get("fd_motion_run")
    return known[1] if known else ""


def open_run(run: runs.Run, share: str = "") -> None:
    """Take a run of the history with its structures, its model and its parameters into use."""
    session.open_run(run, share)
    st.session_state["fd_motion_kind"] = run.task
    st.session_state["fd_motion_seed"] = run.spec.seed
    st.session_state["fd_motion_which"] = None if run.spec.n_structures > 1 else 0
    # All of them: what is at its default in the run must not come from a preset.
    st.session_state["fd_motion_changes"] = {**_all_changes(), run.task: dynamics.all_parameters(run.spec)}
    follow(run, share)


def read_address() -> None:
    """Once per session: /dynamics?run=... shows that run (&key=... somebody else's, shared)."""
    wanted = st.query_params.get("run")
    if wanted and not st.session_state.get("fd_address_read"):
        try:
            run = runs.get(owner.viewer(), wanted, st.query_params.get("key", ""))
        except FdcoreError:
            run = None
        if run is not None and run.task in TASKS:
            st.session_state["fd_address_read"] = True
            open_run(run, st.query_params.get("key", ""))
            return
    session.read_address()


def show_address() -> None:
    """Name what is shown, so that it can be kept and reloaded."""
    known = st.session_state.get("fd_motion_run")
    if known is None:
        session.show_address()
        return
    wanted = {"run": known[0], **({"key": known[1]} if known[1] else {})}
    if st.query_params.to_dict() != wanted:
        st.query_params.from_dict(wanted)


def motion(run: runs.Run) -> Motion:
    """What a run has recorded; an ended one is read once."""
    kept: dict[str, Motion] = st.session_state.setdefault("fd_motions", {})
    if run.id in kept:
        return kept[run.id]
    found = runs.motion_of(run)
    if not run.active:
        kept[run.id] = found
        while len(kept) > KEPT_MOTIONS:
            kept.pop(next(iter(kept)))
    return found


def moment() -> int | None:
    """The frame at which the trajectory was stopped."""
    return st.session_state.get("fd_motion_moment")


def set_moment(frame: int) -> None:
    st.session_state["fd_motion_moment"] = frame


def title(structures: list[Structure]) -> str:
    """How the history names a run of these structures."""
    named = session.title()
    return named if len(structures) != 1 or len(session.structures()) == 1 else f"{named}, frame {structures[0].index}"
