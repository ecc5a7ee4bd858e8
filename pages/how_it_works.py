"""How it works: the method in two screens with one picture."""

import streamlit as st

st.title("How it works", anchor=False)
