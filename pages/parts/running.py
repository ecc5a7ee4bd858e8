"""Cost before a run, progress and a cancel during it, results after it. The work is done by the engine, not by the page."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import streamlit as st

from fdcore import services
from fdcore.errors import FdcoreError, RunStateError
from fdcore.human import count
from fdcore.services import runs
from pages.parts import owner, session, words
from pages.parts.words import plain

# What is expected to take longer asks first.
START_AT_ONCE_S = 20.0
# A result that comes within this is shown without ever drawing a progress bar.
PATIENCE_S = 1.5
# How often a page that watches a run looks up.
TICK_S = 0.5
# How often the worker is told that a person is here, and that there is something to do.
READY_AGAIN_S, WANTED_AGAIN_S = 20.0, 2.0


def be_ready() -> None:
    """Let the worker load the default model while the person still chooses; at most once in a while per session."""
    _say("fd_ready_at", READY_AGAIN_S, runs.page_is_open)


def be_there() -> None:
    """While runs are active: where their worker was killed, this starts another."""
    _say("fd_wanted_at", WANTED_AGAIN_S, runs.app_is_open)


def _say(place: str, again_s: float, what: Callable[[], None]) -> None:
    if time.monotonic() - st.session_state.get(place, -again_s) < again_s:
        return
    st.session_state[place] = time.monotonic()
    # A run that is submitted says what is wrong.
    with contextlib.suppress(FdcoreError):
        what()


def results() -> session.Results | None:
    """Results of the choice in use: known ones at once, small ones after a moment, large ones after a question."""
    if not session.structures():
        return session.only_refusals()
    try:
        run = session.run() or _submitted()
        if run is None:
            return None
        if run.active:
            run = _wait(run)
        if run.active:
            _watch()
            return None
        return _ended(run)
    except FdcoreError as error:
        session.forget_run()
        st.error(f"**{plain(error.message)}** {plain(error.hint)}", icon=":material/error:")
        if st.button("Try again", icon=":material/refresh:"):
            st.rerun()
        return None


def _submitted() -> runs.Run | None:
    """A new run for the choice (or the earlier one that answers the same); None while the person has not agreed."""
    structures, now = session.structures(), session.settings()
    if not _may_start(structures):
        return None
    run = runs.submit_score(
        owner.viewer(), structures, now.model, title=session.title(), refusals=session.parsed().failures
    )
    session.follow(run)
    be_there()
    return run


def _may_start(structures) -> bool:
    """True for what is quick and already here, and after a click. Everything else states its cost first."""
    if session.agreed():
        return True
    now = session.settings()
    card = services.card(now.model_id)
    cost = services.estimate(card, structures, now.dtype)
    here = services.model_is_here(card)
    if here and cost.fits and cost.seconds <= START_AT_ONCE_S:
        return True
    with st.container(border=True):
        atoms = sum(s.n_atoms for s in structures)
        st.markdown(f"**{count(len(structures), 'structure')}, {count(atoms, 'atom')}**: {cost.text}.")
        if not cost.fits:
            st.warning(
                f"The largest structure needs about {cost.memory_MB:,.0f} MB and {cost.available_MB:,.0f} MB are free. It will be "
                "listed as failed; a smaller model or float32 may fit.",
                icon=":material/memory:",
            )
        label = f"Score {count(len(structures), 'structure')}"
        if not here:
            size = f" ({card.download_MB:.0f} MB)" if card.download_MB else ""
            st.info(
                f"The weights of {card.id}{size} are not on this machine: they are fetched from their publisher once. Licence: {card.licence}.",
                icon=":material/download:",
            )
            label = f"{services.download_of(card)} and score"
        st.button(label, type="primary", key="start", on_click=session.agree)
        return False


def _wait(run: runs.Run) -> runs.Run:
    """The run after at most a moment: most end within it."""
    until = time.monotonic() + PATIENCE_S
    with st.spinner("Scoring", show_time=False):
        while run.active and time.monotonic() < until:
            time.sleep(0.03)
            run = session.run(fresh=True) or run
    return run


@st.fragment(run_every=TICK_S)
def _watch() -> None:
    """Progress of the followed run; the whole page is drawn once more when it has ended."""
    run = session.run(fresh=True)
    if run is None or not run.active:
        st.rerun()
        return
    be_there()
    with st.container(border=True, key="progress"):
        words.run_progress(run)
        with st.container(horizontal=True, vertical_alignment="center"):
            if run.cancel_requested:
                st.button("Stopping", icon=":material/stop_circle:", key="stop", disabled=True)
            else:
                st.button("Stop", icon=":material/stop_circle:", on_click=_stop, args=(run.id,), key="stop")
            st.caption("It goes on when this page is closed; the Runs page keeps it.")


def _stop(run_id: str) -> None:
    try:
        runs.cancel(owner.viewer(), run_id)
    except FdcoreError as error:
        # That it has just ended is what was wanted.
        if not isinstance(error, RunStateError):
            st.toast(f"{plain(error.message)} {plain(error.hint)}", icon=":material/error:")


def _ended(run: runs.Run) -> session.Results | None:
    known = session.results_of(run)
    if run.state == "done":
        return known
    done = f"{len(known.scores):,} of {count(run.spec.n_structures, 'structure')}"
    with st.container(border=True, key="not-finished"):
        if run.state == "failed":
            st.error(f"**{plain(run.error or 'The run failed.')}** {plain(run.hint or '')}", icon=":material/error:")
        else:
            st.markdown(f":material/stop_circle: Stopped after {done}.")
        if owner.may_change(run):
            st.button("Go on", icon=":material/play_arrow:", on_click=_go_on, args=(run.id,), key="go_on")
    return known if known.scores or run.state == "cancelled" else None


def _go_on(run_id: str) -> None:
    try:
        session.follow(runs.retry(owner.viewer(), run_id))
    except FdcoreError as error:
        st.toast(f"{plain(error.message)} {plain(error.hint)}", icon=":material/error:")
