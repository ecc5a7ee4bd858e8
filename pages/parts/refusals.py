"""A structure that was not scored: what happened to which file, why, and what to do, where the person is looking."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from fdcore import services
from fdcore.records import Failure
from pages.parts import session
from pages.parts.model_picker import place
from pages.parts.words import plain

MOST_OFFERED = 4


def refusal(known: session.Results) -> None:
    """The reason of the only structure, and the models that could read it."""
    if not known.failures:
        st.error("There is no structure in what was given.", icon=":material/error:")
    missing = _missing_elements()
    for failure in known.failures:
        # Where other models are offered as buttons, a sentence that lists them says it twice.
        failed(failure, hint=not missing)
    if missing:
        _other_models(missing)


def failed(failure: Failure, *, hint: bool = True, done: str = "scored") -> None:
    """One file or frame that was not `done`: which, why, and what to do."""
    frame = f" (frame {failure.index})" if failure.index else ""
    st.error(f"**{plain(failure.file)}**{frame} was not {done}. {plain(failure.error)}", icon=":material/error:")
    if failure.hint and hint:
        st.markdown(f":material/arrow_forward: {plain(failure.hint)}")


def _numbers() -> list[int]:
    return sorted({int(z) for s in session.structures() for z in s.numbers})


def _missing_elements() -> tuple[str, ...]:
    """The elements of the structures in use that the chosen model was not trained on."""
    numbers = _numbers()
    return services.card(session.settings().model_id).covers(numbers) if numbers else ()


def _other_models(missing: tuple[str, ...]) -> None:
    others = services.models_covering(_numbers())
    if not others:
        st.markdown(f"No model known here was trained on all of its elements; {', '.join(missing)} is missing.")
        return
    st.markdown("Models that were trained on all of its elements:")
    for other in others[:MOST_OFFERED]:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.button(f"Use {other.id}", key=f"use-{other.id}", on_click=_use, args=(other.id,))
            st.caption(f"{other.training_data} · {place(other)}")
    if len(others) > MOST_OFFERED:
        st.caption(f"and {len(others) - MOST_OFFERED} more in the list of models above")


def _use(model_id: str) -> None:
    session.set_settings(replace(session.settings(), model_id=model_id))
