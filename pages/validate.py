"""Validate: errors of both forces against labels or a reference, and what U_Delta says of them."""

from __future__ import annotations

import streamlit as st

from pages.parts import running, session, validate_settings, validate_view, validating
from pages.parts.model_picker import model_picker
from pages.parts.structure_picker import structure_picker

running.be_ready()
run = validating.at_address()

st.title("Does U_Delta tell the truth here?", anchor=False)
structures, model = st.columns([3, 2], gap="large")
with structures:
    structure_picker()
    validate_settings.shipped_labels()
with model:
    model_picker()

if session.choice() is None:
    validate_settings.what_will_come()
    st.stop()

if not session.structures():
    validate_settings.nothing_readable()
    st.stop()

if run is None:
    validate_settings.ask()
else:
    validate_view.show(run)
