"""Tests of half-open, slow and too many connections, with real sockets and short limits."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from scvec.web.guard import Guard
from scvec.web.process import Limits
from scvec.web.server import http_server

TOKEN = "secret-token"
KNOWN = f"Authorization: Bearer {TOKEN}\r\n"


async def reads(scope: Any, receive: Any, send: Any) -> None:
    """An application that reads a body and returns its length."""
    n, more = 0, True
    while more:
        message = await receive()
        n += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = str(n).encode()
    head = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})


class Door:
    """A running server, and sockets to it."""

    def __init__(self, port: int, stack: ExitStack) -> None:
        self.port, self.stack = port, stack

    def open(self, sent: str = "") -> socket.socket:
        made = self.stack.enter_context(socket.create_connection(("127.0.0.1", self.port), timeout=60))
        made.sendall(sent.encode())
        return made

    def head(self, request: str, *lines: str) -> str:
        return f"{request} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n" + "".join(lines) + "\r\n"

    def ask(self, *lines: str) -> tuple[int, Any]:
        return answer(self.open(self.head("GET /api/info", "Connection: close\r\n", *lines)))


def answer(sock: socket.socket) -> tuple[int, Any]:
    """Read until the server closes the connection; status 0 means no answer."""
    said = b""
    try:
        while part := sock.recv(65536):
            said += part
    except ConnectionError:
        pass
    if not said:
        return 0, None
    head, _, body = said.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@contextmanager
def running(limits: Limits, app: Any = reads) -> Iterator[Door]:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        port = listening.getsockname()[1]
        guard = Guard(app, hosts=frozenset({f"127.0.0.1:{port}"}), token=TOKEN, cookie="c", limits=limits)
        made = http_server(guard, limits)
        thread = threading.Thread(target=made.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            with ExitStack() as stack:
                yield Door(port, stack)
        finally:
            made.should_exit = True
            thread.join(60)
        assert not thread.is_alive()


def check_refusal(found: tuple[int, Any], status: int, code: str) -> None:
    assert found[0] == status and found[1]["error"]["code"] == code, found
    assert set(found[1]["error"]) == {"code", "what", "where", "fix"} and found[1]["error"]["what"]


def test_half_open_requests_do_not_hold_the_server():
    with running(Limits(connections=50, head=2.0)) as door:
        held = [door.open("GET / HTT") for _ in range(200)]
        began = time.monotonic()
        assert door.ask(KNOWN) == (200, 0)
        assert time.monotonic() - began < 2.0  # at once, without waiting for the other connections
        found = [answer(sock) for sock in held]
        codes = {error["error"]["code"] for status, error in found if status}
        assert {status for status, _ in found} <= {0, 408, 503} and codes == {"busy", "too-slow"}
        # Accepted connections stayed open until their time limit.
        assert 40 <= sum(status == 408 for status, _ in found) <= 50


def drip(sock: socket.socket, byte: bytes, seconds: float = 30.0) -> float:
    """Send a byte repeatedly until the server closes the connection; return the time in seconds."""
    began = time.monotonic()
    sock.settimeout(0.05)
    while (took := time.monotonic() - began) < seconds:
        try:
            sock.sendall(byte)
            while part := sock.recv(65536):
                assert part
            return took
        except TimeoutError:
            continue
        except ConnectionError:
            return took
    return took


def test_a_byte_now_and_then_does_not_set_the_clock_back():
    with running(Limits(head=1.0)) as door:
        assert drip(door.open("GET / HTTP/1.1\r\nX: "), b"x") < 15
        # The same holds for the body of a refused request, and for a second head.
        refused = door.open(door.head("POST /api/jobs", "Content-Length: 100000\r\n"))
        assert drip(refused, b"x") < 15
        second = door.open(door.head("GET /api/info", KNOWN) + "GET / HTTP/1.1\r\nX: ")
        assert drip(second, b"x") < 15


def test_slow_uploads_do_not_hold_the_server():
    limits = Limits(uploads=3, grace=2.0, rate=10_000, head=2.0, connections=300)
    with running(limits) as door:
        start = door.head("POST /api/jobs", KNOWN, "Content-Length: 100000\r\n") + "x"
        held = [door.open(start) for _ in range(200)]
        began = time.monotonic()
        assert door.ask(KNOWN) == (200, 0) and time.monotonic() - began < 2.0
        found = [answer(sock) for sock in held]
        slow = [f for f in found if f[0] == 408]
        assert len(slow) == 3 and len([f for f in found if f[0] == 503]) == 197
        check_refusal(slow[0], 408, "too-slow")
        check_refusal(next(f for f in found if f[0] == 503), 503, "busy")
        whole = door.head("POST /api/jobs", KNOWN, "Connection: close\r\nContent-Length: 100000\r\n")
        assert answer(door.open(whole + "x" * 100_000)) == (200, 100_000)


def test_an_upload_that_keeps_its_rate_may_take_longer_than_the_grace():
    with running(Limits(grace=1.0, rate=1000)) as door:
        sock = door.open(door.head("POST /api/jobs", KNOWN, "Connection: close\r\nContent-Length: 20000\r\n"))
        for _ in range(10):
            sock.sendall(b"x" * 2000)
            time.sleep(0.2)
        assert answer(sock) == (200, 20_000)


def test_where_all_are_being_answered_the_next_is_refused():
    go = threading.Event()

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        import asyncio

        while not go.is_set():
            await asyncio.sleep(0.02)
        await reads(scope, receive, send)

    with running(Limits(connections=2), waits) as door:
        asked = [door.open(door.head("GET /api/info", KNOWN, "Connection: close\r\n")) for _ in range(2)]
        time.sleep(0.3)
        check_refusal(answer(door.open()), 503, "busy")
        go.set()
        assert [answer(sock) for sock in asked] == [(200, 0), (200, 0)]


@pytest.mark.parametrize(
    "sent",
    [lambda door: "nonsense\r\n\r\n", lambda door: "GET / HTTP/1.1\r\nX: " + "x" * 100_000],
    ids=["no-http", "endless-head"],
)
def test_what_is_no_request_gets_the_same_body(sent: Callable[[Door], str]):
    with running(Limits()) as door:
        check_refusal(answer(door.open(sent(door))), 400, "usage")
