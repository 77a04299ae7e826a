"""Tests of the guard: token, host, origin, size, and the headers of every answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvec.web.guard import POLICY, Guard
from scvec.web.jobs import shown_name
from scvec.web.process import Limits

TOKEN = "secret-token"
HOST = "127.0.0.1:8765"


def guarded(token: str | None = TOKEN, swallow: bool = False) -> tuple[Guard, list[bytes]]:
    """A guard around an application that records the bodies it read."""
    bodies: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        try:
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
        except Exception:
            if not swallow:
                raise
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b"cannot be parsed"})
            return
        bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"in"})

    names = frozenset({HOST, "localhost:8765"})
    return Guard(app, hosts=names, token=token, cookie="scvec", limits=Limits(upload=1000)), bodies


def ask(
    guard: Guard,
    path: str = "/api/info",
    *,
    method: str = "GET",
    query: str = "",
    body: tuple[bytes, ...] = (b"",),
    **headers: str,
) -> tuple[int, dict[str, str]]:
    parts = list(body)
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    lines = {"host": HOST, **{k.replace("_", "-"): v for k, v in headers.items()}}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(k.encode(), v.encode("latin-1")) for k, v in lines.items()],
    }
    asyncio.run(guard(scope, receive, send))
    starts = [m for m in sent if m["type"] == "http.response.start"]
    assert len(starts) == 1
    return starts[0]["status"], {k.decode(): v.decode() for k, v in starts[0]["headers"]}


def test_the_token_opens():
    guard, bodies = guarded()
    assert ask(guard)[0] == 401 and bodies == []
    for wrong in ({"authorization": "Bearer x"}, {"authorization": f"Basic {TOKEN}"}, {"cookie": "scvec=x"}):
        assert ask(guard, **wrong)[0] == 401
    assert ask(guard, query=f"token={TOKEN}")[0] == 401  # a token in the address works for the page only
    assert ask(guard, authorization=f"Bearer {TOKEN}")[0] == 200
    assert ask(guard, cookie=f"a=b; scvec={TOKEN}")[0] == 200
    assert ask(guarded(token=None)[0])[0] == 200


def test_the_address_becomes_a_cookie():
    guard, _ = guarded()
    status, headers = ask(guard, "/", query=f"token={TOKEN}")
    assert (status, headers["location"]) == (303, "/")
    assert headers["set-cookie"] == f"scvec={TOKEN}; Path=/; HttpOnly; SameSite=Strict"
    assert ask(guard, "/", query="token=x")[0] == 401
    assert ask(guard, "/", query=f"token={TOKEN}&token=x")[0] == 401


@pytest.mark.parametrize(
    "host", ["evil.example:8765", "127.0.0.1", "127.0.0.1:8766", "", "127.0.0.1:8765.evil"]
)
def test_other_hosts_are_turned_away(host: str):
    guard, bodies = guarded()
    assert ask(guard, authorization=f"Bearer {TOKEN}", host=host)[0] == 421 and bodies == []


def test_other_pages_change_nothing():
    guard, bodies = guarded()
    known = {"authorization": f"Bearer {TOKEN}", "method": "POST"}
    assert ask(guard, origin="http://evil.example", **known)[0] == 403
    assert ask(guard, origin="null", **known)[0] == 403 and bodies == []
    assert ask(guard, origin=f"http://{HOST}", **known)[0] == 200
    assert ask(guard, **known)[0] == 200


@pytest.mark.parametrize("swallow", [False, True], ids=["raises", "answers-itself"])
def test_what_is_too_large_is_not_read_to_the_end(swallow: bool):
    guard, bodies = guarded(swallow=swallow)
    known = {"authorization": f"Bearer {TOKEN}", "method": "POST"}
    most = 64 * 1024
    assert ask(guard, content_length=str(most + 1), **known)[0] == 413
    assert ask(guard, content_length="-1", **known)[0] == 413
    assert ask(guard, "/api/jobs", content_length=str(most + 1000), **known)[0] == 200
    assert ask(guard, "/api/jobs", content_length=str(most + 1001), **known)[0] == 413
    # a client that does not state the length of its body
    bodies.clear()
    assert ask(guard, body=(b"x" * most, b"x", b"x"), **known)[0] == 413 and bodies == []
    assert ask(guard, body=(b"x" * (most - 1), b"x"), **known)[0] == 200


def test_every_answer_has_security_headers():
    guard, _ = guarded()
    for headers in (ask(guard)[1], ask(guard, authorization=f"Bearer {TOKEN}")[1], ask(guard, host="x")[1]):
        assert headers["content-security-policy"] == POLICY and "unsafe" not in POLICY
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"


@given(st.text(max_size=300))
def test_a_client_s_name_is_only_text(name: str):
    shown = shown_name(name)
    assert 0 < len(shown) <= 100 and shown.isprintable() and not set(shown) & set("/\\")


def test_names_of_files_lose_their_folders():
    assert shown_name("../../etc/passwd") == "passwd" and shown_name("C:\\x\\y.h5ad") == "y.h5ad"
    assert shown_name("") == "cells.h5ad" and shown_name("a\x00\nb") == "ab"
