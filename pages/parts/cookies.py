"""A cookie that says which browser this is: unguessable, unreadable for scripts, set once with the page.

The store never holds the cookie itself (`pages.parts.owner` hashes it), so that whoever reads the database cannot become
somebody else.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

NAME = "fd_owner"
# 256 random bits.
TOKEN_BYTES = 32
YEAR_S = 365 * 24 * 3600
_VALID = re.compile(r"[A-Za-z0-9_-]{43}")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def is_valid(value: str | None) -> bool:
    """Whether this can be a cookie of ours."""
    return value is not None and _VALID.fullmatch(value) is not None


class OwnerCookie:
    """ASGI middleware: a page that is asked for without a valid cookie answers with a new one."""

    def __init__(self, app: App, path: str = "/") -> None:
        self.app, self.path = app, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_valid(_sent(scope)):
            await self.app(scope, receive, send)
            return

        async def add_cookie(message: Message) -> None:
            if message["type"] == "http.response.start" and _is_page(scope, message):
                message["headers"] = [*message.get("headers", ()), (b"set-cookie", self._cookie(scope))]
            await send(message)

        await self.app(scope, receive, add_cookie)

    def _cookie(self, scope: Scope) -> bytes:
        # Lax: a link to a shared run, followed from a mail, still comes with it.
        parts = [f"{NAME}={secrets.token_urlsafe(TOKEN_BYTES)}", f"Path={self.path}", f"Max-Age={YEAR_S}"]
        parts += ["HttpOnly", "SameSite=Lax"]
        if _is_https(scope):
            parts.append("Secure")
        return "; ".join(parts).encode()


def _headers(scope: Scope, name: bytes) -> str:
    return "; ".join(value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name)


def _sent(scope: Scope) -> str | None:
    try:
        morsel = SimpleCookie(_headers(scope, b"cookie")).get(NAME)
    except CookieError:
        return None
    return None if morsel is None else morsel.value


def _is_page(scope: Scope, message: Message) -> bool:
    if message["status"] == 304:
        # "Not changed" names no kind: a browser that forgot its cookies may still remember the page.
        return "." not in scope["path"].rsplit("/", 1)[-1]
    kinds = [value for key, value in message.get("headers", ()) if key.lower() == b"content-type"]
    return any(kind.startswith(b"text/html") for kind in kinds)


def _is_https(scope: Scope) -> bool:
    # A proxy in front of us ends TLS and says so here. Claiming it falsely only makes the cookie stricter.
    return scope.get("scheme") == "https" or _headers(scope, b"x-forwarded-proto").split(",")[0].strip() == "https"
