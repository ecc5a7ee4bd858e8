"""The run that a page shows, until another structure or model is chosen. Its address names it, so that it can be kept, reloaded and shared."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import streamlit as st

from fdcore.errors import FdcoreError, UnknownRunError
from fdcore.services import runs
from pages.parts import owner, session

Read = TypeVar("Read")
# What was read of runs, per person and page: enough to compare several without reading them again.
KEPT = 8


class Followed:
    """One page's run. `name` keeps it apart from those of other pages in a person's session; `tasks` are what the page can show; `also`
    are further entries of the session that belong to the run, and go with it. `question` is what the run answers: another one, and it is
    no longer shown."""

    def __init__(
        self,
        name: str,
        tasks: tuple[str, ...],
        goes_on: str,
        also: tuple[str, ...] = (),
        question: Callable[[], object] | None = None,
    ) -> None:
        self._question_now = _question if question is None else question
        self._run, self._question, self._kept = f"fd_{name}_run", f"fd_{name}_question", f"fd_{name}_read"
        self._tasks, self._goes_on, self._also = tasks, goes_on, also

    def follow(self, run: runs.Run, share: str = "") -> None:
        """Show this run."""
        self.forget()
        st.session_state[self._run] = (run.id, share)
        st.session_state[self._question] = self._question_now()

    def forget(self) -> None:
        """Show none: another question is about to be asked."""
        for key in (self._run, *self._also):
            st.session_state.pop(key, None)

    def shown(self) -> runs.Run | None:
        """The run as it is now; None when there is none, or when another structure or model was chosen since."""
        known = st.session_state.get(self._run)
        if known is None:
            return None
        try:
            run = runs.get(owner.viewer(), *known)
        except UnknownRunError:
            self.forget()
            return None
        if st.session_state.get(self._question) == self._question_now():
            return run
        self.forget()
        if run.active:
            st.toast(f"{self._goes_on} goes on; the Runs page has it.", icon=":material/history:")
        return None

    def share_key(self) -> str:
        return st.session_state.get(self._run, ("", ""))[1]

    def at_address(self, open_run: Callable[[runs.Run, str], None]) -> runs.Run | None:
        """What `shown` says, after the address was read (once per session: ?run=..., with &key=... somebody else's, shared), and the
        address names it."""
        wanted, key = st.query_params.get("run"), st.query_params.get("key", "")
        if wanted and not st.session_state.get("fd_address_read"):
            try:
                run = runs.get(owner.viewer(), wanted, key)
            except FdcoreError:
                run = None
            if run is not None and run.task in self._tasks:
                st.session_state["fd_address_read"] = True
                open_run(run, key)
        session.read_address()
        run = self.shown()
        if run is None:
            session.show_address()
            return None
        share = self.share_key()
        named = {"run": run.id, **({"key": share} if share else {})}
        if st.query_params.to_dict() != named:
            st.query_params.from_dict(named)
        return run

    def read(self, run: runs.Run, how: Callable[[runs.Run], Read]) -> Read:
        """What a run has recorded; an ended one is read once."""
        kept: dict[str, Read] = st.session_state.setdefault(self._kept, {})
        if run.id in kept:
            return kept[run.id]
        found = how(run)
        if not run.active:
            kept[run.id] = found
            while len(kept) > KEPT:
                kept.pop(next(iter(kept)))
        return found


def _question() -> tuple[str, session.Settings]:
    current = session.choice()
    return (current.key if current else "", session.settings())
