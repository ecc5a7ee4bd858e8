"""What the browser says of itself with every request. One place, so that tests can be a browser."""

from __future__ import annotations

import streamlit as st


def cookie(name: str) -> str | None:
    return st.context.cookies.get(name)


def timezone() -> str:
    """An IANA name, UTC where the browser does not tell."""
    return st.context.timezone or "UTC"


def base_address() -> str:
    """The address of the app as this browser sees it, without page, query or slash at the end."""
    address = (st.context.url or "").split("?")[0].rstrip("/")
    return address.removesuffix("/runs")
