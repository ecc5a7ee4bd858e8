"""Reproduce: the paper's figures and tables, with the paper's numbers beside what is found here."""

from __future__ import annotations

import streamlit as st

from pages.parts import reproduce_settings, reproduce_view, reproducing, running

running.be_ready()
run = reproducing.at_address()

st.title("Does it hold here?", anchor=False)
if run is None:
    reproduce_settings.ask()
else:
    reproduce_view.show(run)
