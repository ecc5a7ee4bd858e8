"""Models in memory: loaded once per server in the background, shared by everybody.

The default model starts loading when the first page is drawn, and evaluates one small structure so that the kernels of the
neighbour list are compiled before a person asks for the first number.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future

import streamlit as st

from fdcore import services
from fdcore.errors import FdcoreError


# Weights are large: more than this many models in memory would surprise a laptop.
@st.cache_resource(max_entries=3, show_spinner=False)
def _slot(model_id: str, device: str, dtype: str) -> Future:
    """A model that is loading or loaded. Returns at once; the work is done by a thread of its own."""
    slot: Future = Future()
    # Not a pool: a daemon thread never keeps the server from stopping.
    threading.Thread(target=_fill, args=(slot, model_id, device, dtype), daemon=True, name=f"load {model_id}").start()
    return slot


def _fill(slot: Future, model_id: str, device: str, dtype: str) -> None:
    try:
        model = services.load_model(model_id, device, dtype)
        _first_evaluation(model)
        slot.set_result(model)
    except BaseException as error:  # handed to the page that waits for the model
        slot.set_exception(error)


def _first_evaluation(model) -> None:
    """Compile what is compiled on first use; an example that this model cannot read is no error."""
    for example in services.examples()[:1]:
        for _ in services.score(model, services.read_sources([services.example_source(example)]).structures):
            pass


def start_default() -> None:
    """Begin to load the embedded model; cheap to call on every run of a page."""
    _slot(services.default_model_id(), "auto", "float32")


def is_done(model_id: str, device: str, dtype: str) -> bool:
    """Whether loading has ended, well or badly. Starts it where it has not begun."""
    return _slot(model_id, device, dtype).done()


def loaded(model_id: str, device: str, dtype: str):
    """The model if it is in memory already, else None; never waits and never starts a download."""
    if not services.model_is_here(services.card(model_id)):
        return None
    slot = _slot(model_id, device, dtype)
    return slot.result() if slot.done() and slot.exception() is None else None


def model(model_id: str, device: str, dtype: str):
    """The loaded model; waits for it. Raises ModelError as `load_model` does, and tries again the next time."""
    slot = _slot(model_id, device, dtype)
    try:
        return slot.result()
    except FdcoreError:
        _slot.clear(model_id, device, dtype)
        raise
