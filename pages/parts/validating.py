"""What a person has set on the Validate page, and the validation that is shown there. Kept over page changes, like the choice itself."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from fdcore import services
from fdcore.errors import FdcoreError
from fdcore.records import Failure, Structure
from fdcore.services import runs, validation
from fdcore.tasks.validate import LABELS
from fdcore.validation import TASK, Compared
from fdcore.validation_report import Report
from pages.parts import session
from pages.parts.followed import Followed

MOST_AT_ONCE = 2000


def structures() -> list[Structure]:
    return list(session.structures()[:MOST_AT_ONCE])


def choose_shipped() -> None:
    """Take the labels that travel with the package into use."""
    try:
        labels = validation.shipped()
        source = labels.source()
    except FdcoreError as error:
        st.session_state["fd_validate_problem"] = error
        return
    session.choose(session.Choice(origin="example", label=labels.title, sources=(source,)))


def problem() -> FdcoreError | None:
    """Why the shipped labels could not be taken; told once."""
    return st.session_state.pop("fd_validate_problem", None)


# ---- what is asked -------------------------------------------------------------------------------------------------


def each_its_own() -> bool:
    """Whether every structure is judged by the embedded model that has seen its like; as long as nobody has named a model."""
    return st.session_state.get("fd_validate_each", not session.model_is_named())


def set_each_its_own(on: bool) -> None:
    st.session_state["fd_validate_each"] = on


def judges(listed: Sequence[Structure]) -> validation.Judges:
    """Which model judges what."""
    own = validation.suggested(listed)
    return own if len(own.ids) > 1 and each_its_own() else validation.one_for_all(session.settings().model_id, listed)


def reference() -> str:
    return st.session_state.get("fd_validate_reference", LABELS)


def set_reference(name: str) -> None:
    st.session_state["fd_validate_reference"] = name


def members() -> list[str]:
    """Whose disagreement is held beside U_Delta; none unless somebody asks."""
    return list(st.session_state.get("fd_validate_members", ()))


def set_members(ids: Sequence[str]) -> None:
    st.session_state["fd_validate_members"] = list(ids)


def mixing() -> bool:
    """Whether members of different methods are accepted."""
    return st.session_state.get("fd_validate_mixing", False)


def set_mixing(on: bool) -> None:
    st.session_state["fd_validate_mixing"] = on


# ---- the validation that is shown ----------------------------------------------------------------------------------

_followed = Followed(
    "validate", (TASK,), "The validation", ("fd_validate_group", "fd_validate_above", "fd_validate_report")
)
follow, forget, shown = _followed.follow, _followed.forget, _followed.shown


def open_run(run: runs.Run, share: str = "") -> None:
    """Take a validation of the history with its structures, its models and its settings into use."""
    session.open_run(run, share)
    given = run.spec.parameters
    set_each_its_own("model_of" in given)
    set_reference(str(given.get("reference", LABELS)))
    set_members(given.get("ensemble", ()))
    set_mixing(bool(given.get("mix_methods", False)))
    follow(run, share)


def at_address() -> runs.Run | None:
    """The validation that is shown, the address being read and written."""
    return _followed.at_address(open_run)


def compared(run: runs.Run) -> tuple[list[Compared], list[Failure]]:
    """What it has compared, and what it could not."""
    return _followed.read(run, validation.of_run)


def group_by() -> str | None:
    """What the groups are; None: what fits."""
    return st.session_state.get("fd_validate_group")


def set_group_by(key: str | None) -> None:
    st.session_state["fd_validate_group"] = key


def above() -> float | None:
    """From which error on a structure counts as bad; None: the usual."""
    return st.session_state.get("fd_validate_above")


def set_above(value: float | None) -> None:
    st.session_state["fd_validate_above"] = value


def report(run: runs.Run) -> Report:
    """Everything about an ended run, as the person groups it; made once for each way to look at it."""
    key = (run.id, group_by(), above())
    known = st.session_state.get("fd_validate_report")
    if known is None or known[0] != key:
        with st.spinner("Drawing bootstrap samples", show_time=False):
            known = (key, validation.report_of(run, group_by=group_by(), above=above()))
        st.session_state["fd_validate_report"] = known
    return known[1]


def is_shipped(listed: Sequence[Structure]) -> bool:
    """Whether these are the labels that travel with the package: the command line needs no file for them."""
    return {s.file for s in listed} == {validation.SHIPPED_FILE}


def card_of(model_id: str) -> str:
    """What a model was trained to reproduce; empty where it is no more."""
    try:
        return services.card(model_id).reference_method
    except FdcoreError:
        return ""
