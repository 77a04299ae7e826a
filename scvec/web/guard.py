"""Who may ask, for what host, how much and how slowly, and what browsers may do with the answers."""

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

from scvec.base.errors import InputError
from scvec.web.bodies import error_bytes
from scvec.web.process import Limits

__all__ = ["Connection", "Guard"]

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


#: Seconds that a connection stays after an answer that ends it: closed at once, clients may lose the answer.
LINGER = 1.0


class _Broken(Exception):
    """The rest of a body is not read."""


class Connection(H11Protocol):
    """A connection that must bring its requests in time and is one of a bounded number.

    uvicorn has a clock for connections that rest between requests, none for a head that never ends, and no
    limit on connections that have not asked. Here, a clock runs whenever no request is being answered, and no
    byte sets it back. Where too many connections are open, the one that has not asked for longest gives way.
    """

    limits = Limits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or refuse it."""
        super().connection_made(transport)
        self._clock: asyncio.TimerHandle | None = None
        self._ended = False
        self._since = self.loop.time()
        every: list[Any] = list(self.connections)
        others = [c for c in every if not c._ended]
        if len(others) > self.limits.connections:
            idle = [c for c in others if not c._asked and c is not self]
            error = InputError("too many connections are open", fix="try again", code="busy")
            min(idle, key=_since, default=self)._end(503, error)
        if len(every) > 2 * self.limits.connections:
            # One that was answered stays no longer. It is told so late that it must not count until then.
            answered = min((c for c in every if c._ended), key=_since)
            self.connections.discard(answered)
            answered.transport.abort()
        self._mind()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clock."""
        self._ended = True
        self._mind()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes, but for those that come after the end."""
        if not self._ended:
            super().data_received(data)

    def handle_events(self) -> None:
        """Begin a request, or go on with one."""
        super().handle_events()
        self._mind()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._since = self.loop.time()
        self._mind()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        if self._asked:
            self.transport.close()
        else:
            self._end(400, InputError(msg, fix="send HTTP/1.1", code="usage"))

    def shutdown(self) -> None:
        """Close with the server."""
        if self._ended:
            self.transport.abort()
        else:
            super().shutdown()

    @property
    def _asked(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _mind(self) -> None:
        """Let the clock run where no request is being answered."""
        if self._clock is not None and (self._asked or self._ended):
            self._clock.cancel()
            self._clock = None
        elif self._clock is None and not (self._asked or self._ended):
            self._clock = self.loop.call_later(self.limits.head, self._late)

    def _late(self) -> None:
        what = f"no request came within {self.limits.head:g} seconds"
        self._end(408, InputError(what, fix="send the request again", code="too-slow"))

    def _end(self, status: int, error: InputError) -> None:
        self._ended = True
        self._mind()
        self._unset_keepalive_if_required()
        if self.cycle is not None:  # it got its answer; another would be taken for that of the next request
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


def _since(connection: Connection) -> float:
    return connection._since


class Guard:
    """Lets through what has the token, is meant for this host, is not too large and not too slow.

    Parameters
    ----------
    hosts
        Values of the Host header that are ours. Another one comes from a name that somebody let point here
        (DNS rebinding).
    token
        What to ask for; None for nothing.
    cookie
        Name of the cookie that holds the token.
    limits
        Bytes of an upload, how many may be under way, and how slow a body may be.
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
        if scope["path"] == "/" and scope["method"] == "GET" and self._by_address(scope):
            return await self._welcome(send)
        if not self._known(headers):
            return await _refuse(
                send, 401, "open the address that scvec serve printed: it holds a token", code="token-needed"
            )
        if scope["method"] != "POST" or scope["path"] != "/api/jobs":
            return await self._limited(scope, headers, receive, _dressed(send), SMALL)
        if self._uploads >= self.limits.uploads:
            return await _refuse(
                send,
                503,
                f"{self.limits.uploads} uploads are under way already",
                fix="try again when some have ended",
                code="busy",
            )
        self._uploads += 1
        try:
            await self._limited(scope, headers, receive, _dressed(send), SMALL + self.limits.upload)
        finally:
            self._uploads -= 1

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

    async def _limited(
        self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send, most: int
    ) -> None:
        length = headers.get("content-length", "0")
        told = f"at most {most:,} bytes are taken"
        if not length.isdigit() or int(length) > most:
            return await _refuse(send, 413, told, code="upload-too-large")
        seen, waited, more = 0, 0.0, True
        broken, started = 0, False
        now = asyncio.get_running_loop().time

        async def counted() -> Message:
            nonlocal seen, waited, more, broken
            if not more:  # this waits for the end of the connection, however long the answer takes
                return await receive()
            # What the application does in between is not the client's time.
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
                if seen > most:
                    broken = 413
                    raise _Broken
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            # Whatever the application makes of a body that broke off is not the answer.
            if not broken or started:
                started = True
                await send(message)

        with suppress(_Broken):
            await self.app(scope, counted, watched)
        if broken == 413 and not started:
            await _refuse(send, 413, told, code="upload-too-large")
        elif broken == 408 and not started:
            what = f"the request came at less than {self.limits.rate:,} bytes per second"
            await _refuse(send, 408, what, fix="use a faster connection", code="too-slow")


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


async def _refuse(send: Send, status: int, what: str, *, fix: str = "", code: str) -> None:
    body = error_bytes(InputError(what, fix=fix, code=code))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 408:
        headers.append((b"connection", b"close"))
    await _dressed(send)({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
