"""The client: retries, errors without a retry, and that no key is shown."""

from __future__ import annotations

import asyncio
import io
import logging
import traceback
from typing import Any

import pytest
from fake_faults import Faults
from fake_openai import add_openai
from fake_server import FakeServer

from scvec.base.errors import AuthError, InputError
from scvec.base.settings import Secret, ServiceSettings, is_loopback
from scvec.ingest.sources.openai import LlmService
from scvec.ingest.sources.retry import Caller, ServiceError

KEY = "sk-canary-0123456789abcdefgh"
BODY = {"model": "text-embedding-3-small", "input": ["INS"]}


def settings(**given: Any) -> ServiceSettings:
    return ServiceSettings(**{"api_key": Secret(KEY), **given})


def service(server: FakeServer, **given: Any) -> LlmService:
    given.setdefault("caller", Caller("fake", pace=0.001, seed=1))
    return LlmService(settings(), base_url=f"{server.url}/v1", **given)


def post(server: FakeServer, body: dict[str, Any] = BODY, path: str = "/embeddings", **given: Any) -> Any:
    async def main() -> Any:
        async with service(server, **given) as llm:
            return await llm.call(lambda: llm.send(path, body))

    return asyncio.run(main())


def failure(faults: Faults, **given: Any) -> tuple[ServiceError, FakeServer]:
    with FakeServer(extra=[add_openai], faults=faults) as server, pytest.raises(ServiceError) as caught:
        post(server, **given)
    return caught.value, server


def test_a_request_carries_the_key_and_asks_once() -> None:
    with FakeServer(extra=[add_openai]) as server:
        answer = post(server)
    assert answer["data"][0]["index"] == 0
    (request,) = server.requests
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.body == BODY


@pytest.mark.parametrize(
    "fault", ["429", "429-after", "500", "503", "409", "reset", "malformed", "html", "error200"]
)
def test_passing_faults_are_asked_again(fault: str) -> None:
    with FakeServer(extra=[add_openai], faults=Faults.script([fault, fault])) as server:
        assert post(server)["object"] == "list"
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("401", "auth"),
        ("403", "auth"),
        ("quota", "quota"),
        ("400", "rejected"),
        ("404", "rejected"),
        ("413", "rejected"),
        ("422", "rejected"),
        ("redirect", "address"),
        ("redirect-loop", "address"),
    ],
)
def test_other_refusals_are_asked_once(fault: str, kind: str) -> None:
    error, server = failure(Faults.always(fault))
    assert error.kind == kind
    assert len(server.requests) == 1


def test_a_redirect_is_not_followed() -> None:
    with (
        FakeServer(extra=[add_openai]) as other,
        FakeServer(extra=[add_openai], faults=Faults.always("redirect")) as server,
    ):
        server.redirect_to = f"{other.url}/v1/embeddings"
        with pytest.raises(ServiceError):
            post(server)
    assert not other.requests


def test_a_server_that_hangs_is_left_in_time() -> None:
    error, server = failure(Faults.always("timeout"), timeout=0.2, caller=Caller("fake", attempts=1))
    assert "within 0.2 s" in error.reason
    assert len(server.requests) == 1


def test_a_server_that_drips_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # A byte now and then keeps each read short: only the deadline of the whole call ends it.
    monkeypatch.setattr("scvec.ingest.sources.openai.CONNECT", 0.3)
    error, server = failure(Faults.always("drip"), timeout=0.2, caller=Caller("fake", attempts=1))
    assert "within 0.2 s" in error.reason
    assert len(server.requests) == 1


def test_a_gone_server_is_given_up_after_a_few_calls() -> None:
    error, server = failure(Faults.always("503"))
    assert error.kind == "gone"
    assert len(server.requests) == 5


def test_retry_after_is_passed_on() -> None:
    with (
        FakeServer(extra=[add_openai], faults=Faults.always("429-after"), retry_after=999) as server,
        pytest.raises(ServiceError) as caught,
    ):
        post(server)
    assert caught.value.kind == "gone"
    assert "999" in caught.value.reason
    assert len(server.requests) == 1


def test_an_endless_answer_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scvec.ingest.sources.openai.LARGEST_ANSWER", 2**20)
    error, _ = failure(Faults.always("huge"), caller=Caller("fake", attempts=1))
    assert error.kind == "transient"


def test_a_deep_answer_does_no_harm() -> None:
    error, _ = failure(Faults.always("deep"), caller=Caller("fake", attempts=1))
    assert error.kind == "transient"


def test_a_check_that_fails_in_passing_is_asked_again() -> None:
    seen: list[dict[str, Any]] = []

    def check(answer: dict[str, Any]) -> int:
        seen.append(answer)
        if len(seen) < 3:
            raise ServiceError("transient", "not what was asked for")
        return len(seen)

    async def main(server: FakeServer) -> int:
        async with service(server) as llm:

            async def request() -> int:
                return check(await llm.send("/embeddings", BODY))

            return await llm.call(request)

    with FakeServer(extra=[add_openai]) as server:
        assert asyncio.run(main(server)) == 3


@pytest.mark.parametrize(
    "fault", ["401", "403", "quota", "echo", "500", "error200", "reset", "malformed", "timeout"]
)
def test_no_key_shows_whatever_fails(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The server says the key back in its message; every logger writes all it has.
    monkeypatch.setenv("OPENAI_LOG", "debug")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-somebody")
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    root = logging.getLogger()
    root.addHandler(handler)
    level = root.level
    root.setLevel(logging.DEBUG)
    try:
        with FakeServer(extra=[add_openai], faults=Faults.always(fault)) as server:
            try:
                post(server, timeout=0.3, caller=Caller("fake", attempts=2, pace=0.001))
            except ServiceError as error:
                caught: BaseException = error
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    shown = traceback.TracebackException.from_exception(caught, capture_locals=True)
    # This test's own frame knows the key; those of the library must not say it.
    frames = [f for f in shown.stack if "/tests/" not in f.filename]
    texts = [
        written.getvalue(),
        repr(caught),
        str(caught),
        str(caught.translated("fake")),  # type: ignore[attr-defined]
        "".join(traceback.format_exception(caught)),
        repr([f.locals for f in frames]),
    ]
    assert "HTTP Request" in texts[0] or fault in ("reset", "timeout")
    assert frames
    for text in texts:
        assert KEY not in text
        assert KEY[10:] not in text
        assert "api_key=" not in text.replace("api_key=[hidden]", "")
    # No library's error, which holds the request with its headers, hangs on ours.
    link: BaseException | None = caught
    while link is not None:
        assert isinstance(link, ServiceError)
        link = link.__cause__ or link.__context__
    assert all(r.headers["Authorization"].endswith(KEY) for r in server.requests)


def test_the_words_of_a_server_are_cut_and_cleaned() -> None:
    error, _ = failure(Faults.always("echo"))
    assert error.kind == "rejected"
    assert "user:" not in error.reason
    assert "?" not in error.reason
    assert len(error.reason) < 300
    assert error.reason.isprintable()


def test_another_server_learns_nothing_of_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-somebody")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-somebody")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-admin-0123456789abcdef")

    async def main(server: FakeServer) -> None:
        async with service(server) as llm:
            assert not llm.client.admin_api_key
            await llm.call(lambda: llm.send("/embeddings", BODY))

    with FakeServer(extra=[add_openai]) as server:
        asyncio.run(main(server))
    headers = str(server.requests[0].headers)
    assert "somebody" not in headers
    assert "sk-admin" not in headers


def test_a_server_of_ones_own_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)  # settings decide, not the client

    async def main(server: FakeServer) -> None:
        async with LlmService(ServiceSettings(base_url=f"{server.url}/v1/")) as llm:
            await llm.call(lambda: llm.send("/embeddings", BODY))

    with FakeServer(extra=[add_openai]) as server:
        asyncio.run(main(server))
    assert server.requests[0].headers["Authorization"] == "Bearer none"
    assert server.requests[0].path == "/v1/embeddings"


def test_proxies_are_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    with FakeServer(extra=[add_openai]) as server:
        assert post(server)


def test_addresses() -> None:
    assert LlmService(settings()).base_url == "https://api.openai.com/v1"
    assert LlmService(settings()).is_openai
    eu = LlmService(settings(base_url="https://eu.api.openai.com/v1"))
    assert eu.is_openai and eu.host == "eu.api.openai.com"
    argued = LlmService(settings(base_url="https://a.example/v1"), base_url="https://b.example:8443/v1")
    assert argued.host == "b.example:8443" and not argued.is_openai and not argued.is_local
    assert not LlmService(settings(), base_url="https://evilopenai.com/v1").is_openai
    local = LlmService(settings(), base_url="http://[::1]:8000/v1")
    assert local.host == "[::1]:8000" and local.is_local and not local.notes
    lab = LlmService(settings(), base_url="http://gpu01:8000/v1")
    assert "unencrypted" in lab.notes[0]
    assert LlmService(settings(timeout=120.0)).caller.patience == 130
    assert LlmService(settings(), timeout=10).timeout == 10


@pytest.mark.parametrize(
    "url",
    [
        "http://api.openai.com/v1",
        "ftp://host/v1",
        "host/v1",
        "https://",
        f"https://user:{KEY}@host/v1",
        f"https://host/v1?api_key={KEY}",
        "https://host/v1#x",
        "https://host:99999/v1",
        "https://ho st/v1",
    ],
)
def test_addresses_that_cannot_be_used(url: str) -> None:
    with pytest.raises(InputError) as caught:
        LlmService(settings(), base_url=url)
    assert KEY not in str(caught.value)


def test_a_missing_or_broken_key_is_said_at_once() -> None:
    with pytest.raises(AuthError, match="OPENAI_API_KEY"):
        LlmService(ServiceSettings())
    for key in ("sk-ключ-0123456789", "sk-one two-0123456789", "sk-a\nb-0123456789"):
        with pytest.raises(AuthError) as caught:
            LlmService(ServiceSettings(api_key=Secret(key)))
        assert key not in str(caught.value)


def test_loopback() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "x.localhost"]))
    assert not any(map(is_loopback, ["", "10.0.0.1", "0.0.0.0", "localhost.example", "127.0.0.1.example"]))
