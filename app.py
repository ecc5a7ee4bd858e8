"""The server: the pages of ui.py, a cookie for every browser, and a worker for what runs longer than a page."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import streamlit as st
from starlette.middleware import Middleware
from streamlit.runtime.pages_manager import PagesManager

from fdcore.errors import FdcoreError
from fdcore.services import runs
from pages.parts.cookies import OwnerCookie

# ui.py names the pages. Until it has run once, Streamlit would serve the files of pages/ by itself, without frame and navigation:
# to whoever comes first, by a link to a run.
PagesManager.uses_pages_directory = False

# The worker of this machine ends some time after the last app has fallen silent.
STILL_HERE_S = 30.0


@contextlib.asynccontextmanager
async def _lifespan(app: st.App):
    """Keep this machine's worker informed that an app is open; a database that cannot be reached must not stop the server."""
    telling = asyncio.create_task(_tell())
    yield {}
    telling.cancel()


async def _tell() -> None:
    while True:
        try:
            await asyncio.to_thread(runs.app_is_open)
        except FdcoreError as error:
            logging.getLogger("fdcore").warning("%s", error)
        await asyncio.sleep(STILL_HERE_S)


app = st.App(
    "ui.py",
    lifespan=_lifespan,
    middleware=[Middleware(OwnerCookie, path="/" + str(st.get_option("server.baseUrlPath") or "").strip("/"))],  # pyright: ignore[reportArgumentType]
)
