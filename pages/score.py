"""Score: bring a structure, read whether the model can be trusted on it, and why."""

from __future__ import annotations

import streamlit as st

from pages.parts import many, running, session, single, start
from pages.parts.model_picker import model_picker
from pages.parts.refusals import refusal
from pages.parts.structure_picker import structure_picker

running.be_ready()
session.read_address()
session.show_address()

st.title("Can this model be trusted on my structure?", anchor=False)
structures, model = st.columns([3, 2], gap="large")
with structures:
    structure_picker()
with model:
    model_picker()

if session.choice() is None:
    start.what_will_come()
    st.stop()

known = running.results()
if known is None:
    st.stop()
if len(known.scores) + len(known.failures) > 1:
    many.show(known)
elif known.scores:
    single.show(known.scores[0])
else:
    refusal(known)
