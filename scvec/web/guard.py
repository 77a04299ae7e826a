"""Who may ask, for what host, how much may be sent, and what browsers may do with the answers."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

__all__ = ["Guard"]

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Under this policy a page runs scripts of this server, and talks to nobody else.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
}
#: Bytes of any request but an upload, and what a form adds to an upload.
SMALL = 64 * 1024


class _TooLarge(Exception):
    pass


class Guard:
    """Lets through what has the token, is meant for this host, and is not too large.

    Parameters
    ----------
    hosts
        Values of the Host header that are ours. Another one comes from a name that somebody let point here
        (DNS rebinding).
    token
        What to ask for; None for nothing.
    cookie
        Name of the cookie that holds the token.
    max_upload
        Bytes of an upload.
    """

    def __init__(
        self, app: App, *, hosts: frozenset[str], token: str | None, cookie: str, max_upload: int
    ) -> None:
        self.app, self.hosts, self.token, self.cookie = app, hosts, token, cookie
        self.max_upload = max_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        if headers.get("host", "") not in self.hosts:
            return await _refuse(send, 421, "this server has another name", code="host-refused")
        if not self._same_origin(scope, headers):
            return await _refuse(send, 403, "requests from other pages are refused", code="origin-refused")
        if scope["path"] == "/" and scope["method"] == "GET" and self._by_address(scope):
            return await self._welcome(send)
        if not self._known(headers):
            return await _refuse(
                send, 401, "open the address that scvec serve printed: it holds a token", code="token-needed"
            )
        await self._limited(scope, headers, receive, _dressed(send))

    def _same_origin(self, scope: Scope, headers: dict[str, str]) -> bool:
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return True
        origin = headers.get("origin")
        # Programs send none; browsers always do with what changes something.
        return origin is None or origin.split("://", 1)[-1] == headers["host"]

    def _fits(self, given: str) -> bool:
        return self.token is None or hmac.compare_digest(given.encode(), self.token.encode())

    def _by_address(self, scope: Scope) -> bool:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        return self.token is not None and len(given) == 1 and self._fits(given[0])

    def _known(self, headers: dict[str, str]) -> bool:
        if self.token is None:
            return True
        kind, _, value = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._fits(value.strip()):
            return True
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return False
        return found is not None and self._fits(found.value)

    async def _welcome(self, send: Send) -> None:
        """Keep the token in a cookie and take it out of the address, which ends up in histories."""
        cookie = f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict"
        headers = [(b"location", b"/"), (b"set-cookie", cookie.encode()), (b"content-length", b"0")]
        await _dressed(send)({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def _limited(self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send) -> None:
        upload = scope["method"] == "POST" and scope["path"] == "/api/jobs"
        most = SMALL + (self.max_upload if upload else 0)
        length = headers.get("content-length", "0")
        told = f"at most {most:,} bytes are taken"
        if not length.isdigit() or int(length) > most:
            return await _refuse(send, 413, told, code="upload-too-large")
        seen, too_large, started = 0, False, False

        async def counted() -> Message:
            nonlocal seen, too_large
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > most:
                    too_large = True
                    raise _TooLarge
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            # Whatever the application makes of a body that broke off is not the answer.
            if not too_large or started:
                started = True
                await send(message)

        with suppress(_TooLarge):
            await self.app(scope, counted, watched)
        if too_large and not started:
            await _refuse(send, 413, told, code="upload-too-large")


def _dressed(send: Send) -> Send:
    """Return ``send`` with headers added that keep browsers on a short leash."""

    async def dressed(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = {k.decode("latin-1").lower() for k, _ in message["headers"]}
            extra = {"content-security-policy": POLICY, **HEADERS}
            added = [(k.encode(), v.encode()) for k, v in extra.items() if k not in there]
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return dressed


async def _refuse(send: Send, status: int, what: str, *, code: str) -> None:
    import json

    body = json.dumps({"error": {"code": code, "what": what, "where": "", "fix": ""}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await _dressed(send)({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
