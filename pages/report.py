"""Report: is this model conservative on this structure? Plain words first, then every figure with what others published."""

from __future__ import annotations

import streamlit as st

from pages.parts import report_settings, report_view, reporting, running, session
from pages.parts.model_picker import model_picker
from pages.parts.structure_picker import structure_picker

running.be_ready()
run = reporting.at_address()

st.title("Is this model conservative here?", anchor=False)
structures, model = st.columns([3, 2], gap="large")
with structures:
    structure_picker()
with model:
    model_picker()

if session.choice() is None:
    report_settings.what_will_come()
    st.stop()

if not session.structures():
    report_settings.nothing_readable()
    st.stop()

if run is None:
    report_settings.ask()
else:
    report_view.show(run)
