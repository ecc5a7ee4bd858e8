"""What a person has set on the Adversarial page, and the attack that is shown there. Kept over page changes, like the choice itself."""

from __future__ import annotations

from typing import Any

import streamlit as st

from fdcore.adversarial import TASK, Adversarial
from fdcore.errors import UnknownRunError
from fdcore.records import Structure
from fdcore.services import adversarial, runs
from pages.parts import owner, session
from pages.parts.followed import Followed

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

_followed = Followed("attack", (TASK,), "The attack", ("fd_attack_row", "fd_attack_truth"))
follow, forget, shown, share_key = _followed.follow, _followed.forget, _followed.shown, _followed.share_key


def open_run(run: runs.Run, share: str = "") -> None:
    """Take an attack of the history with its structures, its model and its parameters into use."""
    session.open_run(run, share)
    st.session_state["fd_attack_seed"] = run.spec.seed
    st.session_state["fd_attack_changes"] = dict(run.spec.parameters)
    follow(run, share)


def at_address() -> runs.Run | None:
    """The attack that is shown, the address being read and written."""
    return _followed.at_address(open_run)


def attack(run: runs.Run) -> Adversarial:
    """What an attack has recorded."""
    return _followed.read(run, adversarial.of_run)


def row() -> int | None:
    """The visited structure that is shown in 3D; None: the first of the dataset."""
    return st.session_state.get("fd_attack_row")


def show_row(row: int | None) -> None:
    st.session_state["fd_attack_row"] = row


# ---- the comparison with a reference -------------------------------------------------------------------------------


def truth(run: runs.Run, found: Adversarial) -> runs.Run | None:
    """The comparison that belongs to the attack that is shown: the one that was just asked for, or else the newest that its owner has
    asked for, so that a reload, another day or the Runs page find it again."""
    known = st.session_state.get("fd_attack_truth")
    if known is not None:
        try:
            return runs.get(owner.viewer(), known)
        except UnknownRunError:
            st.session_state.pop("fd_attack_truth", None)
    if run.active or run.spec.model is None:
        return None
    asked = st.session_state.get("fd_attack_comparisons")
    if asked is None or asked[0] != run.id:
        # Which structures are compared follows from the attack, but not in no time.
        asked = (run.id, adversarial.comparison_specs(found, run.spec.model))
        st.session_state["fd_attack_comparisons"] = asked
    newest = adversarial.comparisons(run, asked[1])
    return newest[0] if newest else None


def follow_truth(run: runs.Run) -> None:
    st.session_state["fd_attack_truth"] = run.id
