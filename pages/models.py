"""Models: every model there is, what it is, whether it is here, and whether its gradients are right."""

from __future__ import annotations

import streamlit as st

from fdcore.errors import FdcoreError
from pages.parts import model_list, running
from pages.parts.words import plain

running.be_ready()
st.title("Models", anchor=False)
try:
    model_list.show()
except FdcoreError as error:
    st.error(f"**{plain(error.message)}** {plain(error.hint)}", icon=":material/error:")
