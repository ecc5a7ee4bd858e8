"""Ensemble: one model's disagreement with itself beside the disagreement of several models, with what each costs."""

from __future__ import annotations

import streamlit as st

from pages.parts import ensemble_settings, ensemble_view, ensembling, running, session
from pages.parts.model_picker import model_picker
from pages.parts.structure_picker import structure_picker

running.be_ready()
run = ensembling.at_address()

st.title("Do other models agree?", anchor=False)
structures, model = st.columns([3, 2], gap="large")
with structures:
    structure_picker()
with model:
    model_picker()

if session.choice() is None:
    ensemble_settings.what_will_come()
    st.stop()

if not session.structures():
    ensemble_settings.nothing_readable()
    st.stop()

if run is None:
    ensemble_settings.ask()
else:
    ensemble_view.show(run)
