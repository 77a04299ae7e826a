"""Protection of the server: token, host and origin checks, limits on requests, and security headers."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from uvicorn.protocols.http.h11_impl import H11Protocol

from scvec.base.errors import InputError, error_bytes
from scvec.web.process import Limits

__all__ = ["Connection", "Guard"]

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Under this policy a page runs only scripts of this server, and connects only to this server.
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
#: Largest body of a request that is not an upload, and largest overhead of an upload form, in bytes.
SMALL = 64 * 1024


#: Seconds between an error answer and the end of its connection. An immediate end could lose the answer.
LINGER = 1.0


class _Broken(Exception):
    """A body is too large or too slow; the rest is not read."""


class Connection(H11Protocol):
    """A connection with a time limit for requests. The number of connections is limited, too.

    uvicorn times out connections that are idle between requests. It has no timeout for an unfinished request
    head, and no limit on idle connections. Here, a timer runs whenever no request is being answered, and
    received bytes do not reset it. With too many connections, the one that has been idle longest is closed.
    """

    limits = Limits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection; close the longest idle one if there are too many."""
        super().connection_made(transport)
        self._clock: asyncio.TimerHandle | None = None
        self._closed = False
        self._idle_since = self.loop.time()
        every: list[Any] = list(self.connections)
        others = [c for c in every if not c._closed]
        if len(others) > self.limits.connections:
            idle = [c for c in others if not c._answering and c is not self]
            error = InputError("too many connections are open", fix="try again", code="busy")
            min(idle, key=_idle_since, default=self)._refuse_and_close(503, error)
        if len(every) > 2 * self.limits.connections:
            # End the oldest refused connection now. connection_lost comes later, so discard it here already.
            answered = min((c for c in every if c._closed), key=_idle_since)
            self.connections.discard(answered)
            answered.transport.abort()
        self._update_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._closed = True
        self._update_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Process received bytes, unless the connection was refused."""
        if not self._closed:
            super().data_received(data)

    def handle_events(self) -> None:
        """Process events of a request."""
        super().handle_events()
        self._update_clock()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._idle_since = self.loop.time()
        self._update_clock()

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that is not valid HTTP."""
        if self._answering:
            self.transport.close()
        else:
            self._refuse_and_close(400, InputError(msg, fix="send HTTP/1.1", code="usage"))

    def shutdown(self) -> None:
        """Close the connection because the server stops."""
        if self._closed:
            self.transport.abort()
        else:
            super().shutdown()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _update_clock(self) -> None:
        """Start the timer, or stop it while a request is being answered and after the end."""
        if self._clock is not None and (self._answering or self._closed):
            self._clock.cancel()
            self._clock = None
        elif self._clock is None and not (self._answering or self._closed):
            self._clock = self.loop.call_later(self.limits.head, self._timed_out)

    def _timed_out(self) -> None:
        what = f"no request came within {self.limits.head:g} seconds"
        self._refuse_and_close(408, InputError(what, fix="send the request again", code="too-slow"))

    def _refuse_and_close(self, status: int, error: InputError) -> None:
        self._closed = True
        self._update_clock()
        self._unset_keepalive_if_required()
        if self.cycle is not None:  # a client would take this answer for that of its next request
            self.transport.close()
            return
        body = error_bytes(error)
        own = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        lines = "".join(
            f"{k}: {v}\r\n" for k, v in {**own, "content-security-policy": POLICY, **HEADERS}.items()
        )
        self.transport.write(f"{head}{lines}\r\n".encode() + body)
        self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.abort)


def _idle_since(connection: Connection) -> float:
    return connection._idle_since


class Guard:
    """ASGI middleware that checks the host, origin and token of a request, and limits its size and duration.

    Parameters
    ----------
    hosts
        Accepted values of the Host header. Other values come from names that point to this machine without
        its consent (DNS rebinding).
    token
        The required token; None for no token.
    cookie
        Name of the cookie that holds the token.
    limits
        Size and number of simultaneous uploads, and the lowest transfer rate.
    """

    def __init__(
        self, app: App, *, hosts: frozenset[str], token: str | None, cookie: str, limits: Limits
    ) -> None:
        self.app, self.hosts, self.token, self.cookie = app, hosts, token, cookie
        self.limits = limits
        self._uploads = 0

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
        if scope["path"] == "/" and scope["method"] == "GET" and self._token_in_query(scope):
            return await self._set_cookie(send)
        if not self._authorised(headers):
            return await _refuse(
                send, 401, "open the address that scvec serve printed: it holds a token", code="token-needed"
            )
        if scope["method"] != "POST" or scope["path"] != "/api/jobs":
            return await self._limited(scope, headers, receive, _with_headers(send), SMALL)
        if self._uploads >= self.limits.uploads:
            return await _refuse(
                send,
                503,
                f"{self.limits.uploads} uploads are in progress already",
                fix="try again when some have ended",
                code="busy",
            )
        self._uploads += 1
        try:
            await self._limited(scope, headers, receive, _with_headers(send), SMALL + self.limits.upload)
        finally:
            self._uploads -= 1

    def _same_origin(self, scope: Scope, headers: dict[str, str]) -> bool:
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return True
        origin = headers.get("origin")
        # Browsers always send an origin with requests that change something; other programs send none.
        return origin is None or origin.split("://", 1)[-1] == headers["host"]

    def _token_matches(self, given: str) -> bool:
        return self.token is None or hmac.compare_digest(given.encode(), self.token.encode())

    def _token_in_query(self, scope: Scope) -> bool:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        return self.token is not None and len(given) == 1 and self._token_matches(given[0])

    def _authorised(self, headers: dict[str, str]) -> bool:
        if self.token is None:
            return True
        kind, _, value = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._token_matches(value.strip()):
            return True
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return False
        return found is not None and self._token_matches(found.value)

    async def _set_cookie(self, send: Send) -> None:
        """Move the token from the address to a cookie, because browsers keep addresses in their history."""
        cookie = f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict"
        headers = [(b"location", b"/"), (b"set-cookie", cookie.encode()), (b"content-length", b"0")]
        await _with_headers(send)({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def _limited(
        self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send, max_bytes: int
    ) -> None:
        length = headers.get("content-length", "0")
        limit_text = f"a request may have at most {max_bytes:,} bytes"
        if not length.isdigit() or int(length) > max_bytes:
            return await _refuse(send, 413, limit_text, code="upload-too-large")
        seen, waited, more = 0, 0.0, True
        broken, started = 0, False
        now = asyncio.get_running_loop().time

        async def counted() -> Message:
            nonlocal seen, waited, more, broken
            if not more:  # the body is complete; this waits for the end of the connection, without a limit
                return await receive()
            # Only time spent waiting for the client counts, not time spent in the application.
            left = self.limits.grace + seen / self.limits.rate - waited
            began = now()
            try:
                message = await asyncio.wait_for(receive(), max(left, 0.01))
            except TimeoutError:
                broken = 408
                raise _Broken from None
            waited += now() - began
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                more = message.get("more_body", False)
                if seen > max_bytes:
                    broken = 413
                    raise _Broken
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            # After an incomplete body, the answer of the application is replaced by an error.
            if not broken or started:
                started = True
                await send(message)

        with suppress(_Broken):
            await self.app(scope, counted, watched)
        if broken == 413 and not started:
            await _refuse(send, 413, limit_text, code="upload-too-large")
        elif broken == 408 and not started:
            what = f"the request came at less than {self.limits.rate:,} bytes per second"
            await _refuse(send, 408, what, fix="use a faster connection", code="too-slow")


def _with_headers(send: Send) -> Send:
    """Return ``send`` with security headers added to each answer."""

    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = {k.decode("latin-1").lower() for k, _ in message["headers"]}
            extra = {"content-security-policy": POLICY, **HEADERS}
            added = [(k.encode(), v.encode()) for k, v in extra.items() if k not in there]
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return with_headers


async def _refuse(send: Send, status: int, what: str, *, fix: str = "", code: str) -> None:
    body = error_bytes(InputError(what, fix=fix, code=code))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 408:
        headers.append((b"connection", b"close"))
    await _with_headers(send)({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
