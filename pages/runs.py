"""Runs: what is running, waiting and done; open, stop, repeat, compare, share, download, delete."""

from __future__ import annotations

import streamlit as st

from fdcore.errors import FdcoreError
from pages.parts import history, owner
from pages.parts.words import plain

st.title("Runs", anchor=False)
try:
    if not owner.is_lasting():
        st.info(
            "This browser keeps no cookie of this page, so the history ends with this tab.",
            icon=":material/cookie_off:",
        )
    history.show()
except FdcoreError as error:
    st.error(f"**{plain(error.message)}** {plain(error.hint)}", icon=":material/error:")
    if st.button("Try again", icon=":material/refresh:"):
        st.rerun()
