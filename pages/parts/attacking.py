"""What a person has set on the Adversarial page, and the attack that is shown there. Kept over page changes, like the choice itself."""

from __future__ import annotations

from typing import Any

import streamlit as st

from fdcore.adversarial import TASK, Adversarial
from fdcore.errors import FdcoreError, UnknownRunError
from fdcore.records import Structure
from fdcore.services import adversarial, runs
from pages.parts import owner, session

# Attacks read per person.
KEPT = 4
MOST_AT_ONCE = 200


def changes() -> dict[str, Any]:
    """Parameters that were set by hand."""
    return st.session_state.setdefault("fd_attack_changes", {})


def change(name: str, value: Any) -> None:
    changes()[name] = value


def parameters() -> dict[str, Any]:
    """What was set, without what is at its default. Raises UsageError."""
    return adversarial.parameters_of(changes())


def seed() -> int:
    return st.session_state.setdefault("fd_attack_seed", 0)


def structures() -> list[Structure]:
    """The structures that copies are taken of."""
    return list(session.structures()[:MOST_AT_ONCE])


# ---- the attack that is shown --------------------------------------------------------------------------------------


def follow(run: runs.Run, share: str = "") -> None:
    """Show this attack; the address names it."""
    st.session_state["fd_attack_run"] = (run.id, share)
    st.session_state["fd_attack_question"] = _question()
    st.session_state.pop("fd_attack_row", None)
    st.session_state.pop("fd_attack_truth", None)


def forget() -> None:
    """Show none: another question is about to be asked."""
    st.session_state.pop("fd_attack_run", None)


def _question() -> tuple[str, session.Settings]:
    current = session.choice()
    return (current.key if current else "", session.settings())


def shown() -> runs.Run | None:
    """The attack that is shown, as it is now; None when there is none, or when another structure or model was chosen since."""
    known = st.session_state.get("fd_attack_run")
    if known is None:
        return None
    if st.session_state.get("fd_attack_question") != _question():
        forget()
        return None
    try:
        return runs.get(owner.viewer(), *known)
    except UnknownRunError:
        forget()
        return None


def share_key() -> str:
    known = st.session_state.get("fd_attack_run")
    return known[1] if known else ""


def open_run(run: runs.Run, share: str = "") -> None:
    """Take an attack of the history with its structures, its model and its parameters into use."""
    session.open_run(run, share)
    st.session_state["fd_attack_seed"] = run.spec.seed
    st.session_state["fd_attack_changes"] = dict(run.spec.parameters)
    follow(run, share)


def read_address() -> None:
    """Once per session: /adversarial?run=... shows that attack (&key=... somebody else's, shared)."""
    wanted = st.query_params.get("run")
    if wanted and not st.session_state.get("fd_address_read"):
        try:
            run = runs.get(owner.viewer(), wanted, st.query_params.get("key", ""))
        except FdcoreError:
            run = None
        if run is not None and run.task == TASK:
            st.session_state["fd_address_read"] = True
            open_run(run, st.query_params.get("key", ""))
            return
    session.read_address()


def show_address() -> None:
    """Name what is shown, so that it can be kept and reloaded."""
    known = st.session_state.get("fd_attack_run")
    if known is None:
        session.show_address()
        return
    wanted = {"run": known[0], **({"key": known[1]} if known[1] else {})}
    if st.query_params.to_dict() != wanted:
        st.query_params.from_dict(wanted)


def attack(run: runs.Run) -> Adversarial:
    """What an attack has recorded; an ended one is read once."""
    kept: dict[str, Adversarial] = st.session_state.setdefault("fd_attacks", {})
    if run.id in kept:
        return kept[run.id]
    found = adversarial.of_run(run)
    if not run.active:
        kept[run.id] = found
        while len(kept) > KEPT:
            kept.pop(next(iter(kept)))
    return found


def row() -> int | None:
    """The visited structure that is shown in 3D; None: the first of the dataset."""
    return st.session_state.get("fd_attack_row")


def show_row(row: int | None) -> None:
    st.session_state["fd_attack_row"] = row


# ---- the comparison with a reference -------------------------------------------------------------------------------


def truth() -> runs.Run | None:
    """The comparison that belongs to the attack that is shown."""
    known = st.session_state.get("fd_attack_truth")
    if known is None:
        return None
    try:
        return runs.get(owner.viewer(), known)
    except UnknownRunError:
        st.session_state.pop("fd_attack_truth", None)
        return None


def follow_truth(run: runs.Run) -> None:
    st.session_state["fd_attack_truth"] = run.id
