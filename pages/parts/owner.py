"""Who is in front of the page: an account where the operator has configured a login, else this browser."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping

import streamlit as st

from fdcore.errors import FdcoreError
from fdcore.human import count
from fdcore.services import runs
from pages.parts import browser, cookies
from pages.parts.words import plain

# Where a tab without a cookie remembers who it is.
_OWN_PLACE = "fd_session_owner"


def viewer() -> runs.Viewer:
    """In whose name the page asks."""
    return runs.Viewer(_account() or _browser())


def is_lasting() -> bool:
    """Whether the person will be the same after a reload: False where the browser keeps no cookie and nobody logged in."""
    return _account() is not None or cookies.is_valid(browser.cookie(cookies.NAME))


def may_change(run: runs.Run) -> bool:
    """Whether the run is the person's own; a shared one can be looked at and downloaded."""
    return run.owner == viewer().owner


def account() -> None:
    """Log in, or who is logged in and log out; nothing where the operator has configured no login."""
    if not _login_is_configured():
        return
    if st.user.is_logged_in:
        _take_over()
        with st.popover(plain(_name()), icon=":material/account_circle:", key="account"):
            st.caption("Your runs are found in every browser in which you log in.")
            st.button("Log out", icon=":material/logout:", on_click=st.logout, key="log-out")
        return
    providers = _providers()
    if len(providers) < 2:
        st.button("Log in", icon=":material/login:", on_click=st.login, args=tuple(providers), key="log-in")
        return
    with st.popover("Log in", icon=":material/login:", key="account"):
        for name in providers:
            label = name.replace("_", " ").capitalize()
            st.button(f"with {plain(label)}", on_click=st.login, args=(name,), key=f"log-in-{name}")


def _browser() -> str:
    cookie = browser.cookie(cookies.NAME)
    if cookie is None or not cookies.is_valid(cookie):
        # No cookie came (refused, or a test): the tab is its own owner.
        return st.session_state.setdefault(_OWN_PLACE, f"tab:{secrets.token_hex(32)}")
    return f"browser:{hashlib.sha256(cookie.encode()).hexdigest()}"


def _account() -> str | None:
    if not _login_is_configured() or not st.user.is_logged_in:
        return None
    # The subject is unique for its issuer only (OpenID Connect Core, section 2).
    text = f"{st.user.get('iss', '')}\0{st.user.get('sub', '')}"
    return f"oidc:{hashlib.sha256(text.encode()).hexdigest()}"


def _login_is_configured() -> bool:
    return st.secrets.load_if_toml_exists() and bool(st.secrets.get("auth"))


def _providers() -> list[str]:
    """The names of [auth.<name>] tables; none where [auth] itself is the only provider."""
    return [name for name, value in st.secrets["auth"].items() if isinstance(value, Mapping)]


def _name() -> str:
    return str(st.user.get("name") or st.user.get("email") or "Logged in")


def _take_over() -> None:
    """What this browser did before its person logged in goes to the account: once per session, and said."""
    account_owner = _account()
    if account_owner is None or st.session_state.get("fd_taken_over") == account_owner:
        return
    st.session_state["fd_taken_over"] = account_owner
    try:
        taken = runs.take_over(_browser(), account_owner)
    except FdcoreError:
        return  # the pages that need the store say what is wrong with it
    if taken:
        st.toast(f"{count(taken, 'run')} of this browser now belong to your account.", icon=":material/history:")
