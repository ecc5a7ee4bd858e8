"""Screen: a whole collection ranked by how much the model's forces disagree, while it is being computed."""

from __future__ import annotations

import streamlit as st

from pages.parts import running, screen_settings, screen_view, screening

running.be_ready()
run = screening.at_address()

st.title("Which of many can be trusted?", anchor=False)
if run is None:
    screen_settings.ask()
else:
    screen_view.show(run)
