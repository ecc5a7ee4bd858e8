"""Cost before a run, progress and a stop during it, results after it."""

from __future__ import annotations

import time

import streamlit as st

from fdcore import services
from fdcore.errors import FdcoreError
from fdcore.records import Score
from pages.parts import session, warm
from pages.parts.words import count, plain

# What is expected to take longer asks first.
START_AT_ONCE_S = 20.0
# How often a page that waits for a model looks up.
TICK_S = 0.2


def results() -> session.Results | None:
    """Results of the choice in use: kept ones at once, small ones after computing them, large ones after a question."""
    known = session.results()
    if known is not None and (known.complete or st.session_state.get("fd_stopped")):
        _stopped_line(known)
        return known
    structures = session.structures()
    if not structures:
        known = session.start_results(0)
        known.complete = True
        return known
    if known is None and not _may_start(structures):
        return None
    known = known or session.start_results(len(structures))
    try:
        _run(known, structures)
    except FdcoreError as error:
        session.forget_results()
        st.error(f"**{plain(error.message)}** {plain(error.hint)}", icon=":material/error:")
        if st.button("Try again", icon=":material/refresh:"):
            st.rerun()
        return None
    return known


def _may_start(structures) -> bool:
    """True for what is quick and already here, and after a click. Everything else states its cost first."""
    if session.agreed():
        return True
    now = session.settings()
    card = services.card(now.model_id)
    model = warm.loaded(now.model_id, now.device, now.dtype) or card
    cost = services.estimate(model, structures, now.dtype)
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
            st.info(
                f"The weights of {card.id} are not on this machine: {card.download_MB:.0f} MB are fetched from their publisher "
                f"once ({card.licence}).",
                icon=":material/download:",
            )
            label = f"Download {card.download_MB:.0f} MB and score"
        st.button(label, type="primary", key="start", on_click=session.agree)
        return False


def _run(known: session.Results, structures) -> None:
    now = known.settings
    place = st.empty()
    with place.container(border=True):
        line = st.empty()
        st.button("Stop", icon=":material/stop_circle:", on_click=_stop, key="stop")
    started = time.monotonic()
    while not warm.is_done(now.model_id, now.device, now.dtype):
        line.progress(0.0, text=f"Loading {now.model_id}, once after a start: {time.monotonic() - started:.0f} s")
        time.sleep(TICK_S)
    model = warm.model(now.model_id, now.device, now.dtype)
    known.provenance = services.settings(model)
    parsed_failures = len(session.parsed().failures)
    done = len(known.scores) + len(known.failures) - parsed_failures
    line.progress(done / known.total, text=_progress_text(done, known.total, 0.0))
    started = time.monotonic()
    for number, item in enumerate(services.score(model, structures[done:]), start=done + 1):
        if isinstance(item, Score):
            known.scores.append(item)
        else:
            known.failures.append(item)
        spent = time.monotonic() - started
        left = spent / (number - done) * (known.total - number)
        line.progress(number / known.total, text=_progress_text(number, known.total, left))
    known.seconds += time.monotonic() - started
    known.complete = True
    place.empty()


def _progress_text(done: int, total: int, left: float) -> str:
    text = f"Scored {done} of {count(total, 'structure')}"
    return f"{text}, about {left:.0f} s left" if left >= 2 else text


def _stop() -> None:
    st.session_state["fd_stopped"] = True


def _go_on() -> None:
    st.session_state["fd_stopped"] = False


def _stopped_line(known: session.Results) -> None:
    if known.complete:
        st.session_state["fd_stopped"] = False
        return
    done = len(known.scores) + len(known.failures) - len(session.parsed().failures)
    with st.container(horizontal=True, border=True, vertical_alignment="center"):
        st.markdown(f":material/stop_circle: Stopped after {done} of {count(known.total, 'structure')}.")
        st.button("Go on", on_click=_go_on, key="go_on")
