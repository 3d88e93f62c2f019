"""Who may reach the review page: this machine's own pages only, or holders of a token."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_COOKIE = "his2lip_captions"


class Gate:
    """Passes requests and websockets on to `app`, or answers 403.

    Without a token, only addresses of this machine are answered, so that a name which another site points at
    it is not. With one, the first address has it as `?token=`, and a cookie keeps it. A page of another
    origin is refused in both cases.
    """

    def __init__(self, app: App, token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        if self._is_foreign(headers):
            await _refuse(scope, send)
        elif self._token is None or self._matches(_cookie(headers)):
            await self._app(scope, receive, send)
        elif scope["type"] == "http" and self._matches(given):
            cookie = f"{_COOKIE}={self._token}; HttpOnly; SameSite=Lax; Path=/"
            await _answer(send, 303, [(b"location", b"/"), (b"set-cookie", cookie.encode())])
        else:
            await _refuse(scope, send)

    def _matches(self, given: str) -> bool:
        return self._token is not None and secrets.compare_digest(given.encode(), self._token.encode())

    def _is_foreign(self, headers: MutableMapping[str, str]) -> bool:
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return True
        return self._token is None and urlsplit(f"//{host}").hostname not in LOOPBACK


def _cookie(headers: MutableMapping[str, str]) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(_COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


async def _refuse(scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
    else:
        await _answer(send, 403, [])


async def _answer(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    plain = (b"content-type", b"text/plain; charset=utf-8")
    await send({"type": "http.response.start", "status": status, "headers": [plain, *headers]})
    body = b"open the address that his2lip captions review printed\n" if status == 403 else b""
    await send({"type": "http.response.body", "body": body})
