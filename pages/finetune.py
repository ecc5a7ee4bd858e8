"""Fine-tune: label structures, teach a model what it got wrong, and see whether its simulations became more stable."""

from __future__ import annotations

import streamlit as st

from fdcore.errors import FdcoreError
from pages.parts import (
    finetune_labels,
    finetune_loop,
    finetune_stability,
    finetune_start,
    finetune_train,
    running,
    session,
    tuning,
)
from pages.parts.words import plain

SHOW = {
    "structures": finetune_start.show,
    "labels": finetune_labels.show,
    "train": finetune_train.show,
    "stability": finetune_stability.show,
    "loop": finetune_loop.show,
}

running.be_ready()
session.replace_lost_model()
tuning.at_address()

st.title("Teach a model what it got wrong", anchor=False)
st.session_state["tune-step"] = tuning.step()
st.radio(
    "Step",
    list(tuning.STEPS),
    format_func=lambda s: tuning.STEPS[s],
    key="tune-step",
    horizontal=True,
    label_visibility="collapsed",
    on_change=lambda: tuning.go(st.session_state["tune-step"]),
)
try:
    SHOW[tuning.step()]()
except FdcoreError as error:
    st.error(f"**{plain(error.message)}** {plain(error.hint)}", icon=":material/error:")
