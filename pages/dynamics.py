"""Dynamics: move the atoms with either force, or both, and watch what the disagreement does."""

from __future__ import annotations

import streamlit as st

from pages.parts import motion_settings, motion_view, moving, running, session
from pages.parts.model_picker import model_picker
from pages.parts.structure_picker import structure_picker

running.be_ready()
run = moving.at_address()

st.title("What does the disagreement do to a simulation?", anchor=False)
structures, model = st.columns([3, 2], gap="large")
with structures:
    structure_picker()
with model:
    model_picker()

if session.choice() is None:
    motion_settings.what_will_come()
    st.stop()

if not session.structures():
    motion_settings.nothing_readable()
    st.stop()

if run is None:
    motion_settings.ask()
else:
    motion_view.show(run)
