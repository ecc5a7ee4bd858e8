"""Adversarial: make the structures on which the two forces disagree most, and take them to DFT and fine-tuning."""

from __future__ import annotations

import streamlit as st

from pages.parts import attack_settings, attack_view, attacking, running, session
from pages.parts.model_picker import model_picker
from pages.parts.structure_picker import structure_picker

running.be_ready()
run = attacking.at_address()

st.title("Where does this model contradict itself most?", anchor=False)
structures, model = st.columns([3, 2], gap="large")
with structures:
    structure_picker()
with model:
    model_picker()

if session.choice() is None:
    attack_settings.what_will_come()
    st.stop()

if not session.structures():
    attack_settings.nothing_readable()
    st.stop()

if run is None:
    attack_settings.ask()
else:
    attack_view.show(run)
