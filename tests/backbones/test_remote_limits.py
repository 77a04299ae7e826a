"""Where asking a server ends: sizes of requests, keys that are refused, money."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from fake_faults import Faults
from fake_server import FakeServer
from remote_parts import KEY, N_PROBES, Kept, make, rows_of, same, texts

from scvec.backbones import remote
from scvec.backbones.remote import RemoteBackbone
from scvec.errors import AuthError, InputError, NetworkError, ScvecError
from scvec.settings import Settings

# sizes


def sized(most: int, *, status: int = 413, too_long: int = 10**6) -> Callable[[Any, Any], None]:
    """A server that takes few texts, and none that is long."""

    def add(app: web.Application, server: Any) -> None:
        async def answer(request: web.Request) -> web.Response:
            given = request["body"]["input"]
            if len(given) > most:
                return web.json_response({"error": {"message": "batch size"}}, status=status)
            if max(map(len, given)) > too_long:
                message = "input (702 tokens) is too large to process. increase the physical batch size"
                return web.json_response({"error": {"message": message, "code": 500}}, status=500)
            return web.json_response({"data": rows_of(given)})

        app.router.add_post("/v1/embeddings", answer)

    return add


@pytest.mark.parametrize("most", [1, 8, 31])
@pytest.mark.parametrize("status", [400, 413, 422])
def test_requests_that_are_too_large_are_halved(most: int, status: int) -> None:
    with FakeServer(extra=[sized(most, status=status)]) as small:
        backbone = make(small, inputs=64, concurrency=2)
        same(backbone.encode(texts(200)), texts(200))
        refused = [len(r.body["input"]) for r in small.requests if len(r.body["input"]) > most]
        # It is learned once, and not with every batch.
        assert len(refused) <= 2 * 6
        assert (most == 1) == any("takes one text a request" in note for note in backbone.notes)


def test_one_text_that_is_refused_does_not_take_the_others_with_it() -> None:
    given = texts(64)
    given[20] = "long " * 400
    with FakeServer(extra=[sized(256, too_long=1000)]) as small:
        kept = Kept(64)
        outcome = make(small, inputs=16).encode_each(given, kept)
        assert list(outcome.failures) == [20] and "too large" in outcome.failures[20] and not outcome.stopped
        assert kept.rows == [i for i in range(64) if i != 20]
        same(kept.vectors[kept.rows], [given[i] for i in kept.rows])
        assert len(small.requests) < 20
        with pytest.raises(NetworkError, match="1 of 64 texts"):
            make(small, inputs=16).encode(given)


def test_texts_are_cut_and_packed_by_their_tokens(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MOST_TOKENS", 900)
    backbone = make(server, max_tokens=100)
    given = ["glucose homeostasis " * 200 + str(i) for i in range(20)]
    assert backbone.encode(given).shape == (20, 32)
    assert backbone.notes == ["20 texts were longer than 100 tokens and were cut"]
    bodies = [r.body["input"] for r in server.requests[N_PROBES:]]
    assert {len(b) for b in bodies} == {9, 2} and all(given[0].startswith(t) for b in bodies for t in b)
    assert backbone.space.pooling == "api, 100 tokens" and not make(server).fits(backbone.space)


def test_empty_texts_are_not_sent(server: FakeServer) -> None:
    kept = Kept(3)
    outcome = make(server).encode_each(["", "insulin", " \n"], kept)
    assert outcome.failures == {0: "the text is empty", 2: "the text is empty"} and kept.rows == [1]
    assert server.requests[-1].body["input"] == ["insulin"]


def test_the_size_of_a_request_follows_the_speed_of_the_server() -> None:
    sizes = remote.Sizes(inputs=256, tokens=300_000, seconds=15.0)
    assert sizes.budget == 300_000
    sizes.took(1, 100, 1.0)
    assert sizes.budget == 1500
    for _ in range(20):
        sizes.took(16, 1500, 0.5)
    assert 44_000 < sizes.budget <= 45_000


# ends


@pytest.mark.parametrize(("fault", "error"), [("401", AuthError), ("403", AuthError), ("quota", AuthError)])
def test_a_key_that_is_refused_ends_it_and_what_arrived_is_kept(
    server: FakeServer, fault: str, error: type[ScvecError]
) -> None:
    server.faults = Faults.after(N_PROBES + 3, fault)
    kept = Kept(100)
    outcome = make(server, inputs=10, concurrency=1).encode_each(texts(100), kept)
    assert isinstance(outcome.error, error) and outcome.stopped and len(kept.rows) == 30
    same(kept.vectors[kept.rows], [texts(100)[i] for i in kept.rows])
    assert len(server.requests) == N_PROBES + 4
    assert KEY not in str(outcome.error) + repr(outcome)
    with pytest.raises(error) as caught:
        make(server).encode(texts(3))
    assert KEY not in "".join(map(str, (caught.value, caught.value.__cause__, caught.value.__context__)))


def test_a_server_that_is_gone_ends_it(server: FakeServer) -> None:
    server.faults = Faults.after(N_PROBES + 3, "500")
    kept = Kept(100)
    outcome = make(server, inputs=10).encode_each(texts(100), kept)
    assert isinstance(outcome.error, NetworkError) and len(kept.rows) == 30
    assert len(server.requests) <= N_PROBES + 3 + 4 + 5


def test_an_unknown_model_or_address_is_an_input_error(server: FakeServer) -> None:
    with pytest.raises(InputError, match="does not exist"):
        make(server, "nonsense").encode(["a"])
    for url in ("ftp://x", "http://user:pw@host/v1", "nonsense"):
        with pytest.raises(InputError):
            make(server, base_url=url).encode(["a"])


def test_whatever_keep_raises_ends_it(server: FakeServer) -> None:
    for error in (OSError("disk full"), KeyboardInterrupt()):
        n_kept = []

        def keep(rows: list[int], vectors: Any, error: BaseException = error, n_kept: Any = n_kept) -> None:
            n_kept.append(len(rows))
            if len(n_kept) == 2:
                raise error

        with pytest.raises(type(error)):
            make(server, inputs=10, concurrency=1).encode_each(texts(100), keep)
        assert n_kept == [10, 10]


# money


def test_the_limit_of_cost_holds_and_what_was_paid_for_is_kept(server: FakeServer) -> None:
    given = ["glucose homeostasis and more of it " * 10 for _ in range(100)]
    given = [f"{text} {i}" for i, text in enumerate(given)]
    whole = make(server, price=1000.0).estimate(given)
    assert whole.cost is not None and whole.requests == N_PROBES + 1
    assert server.requests == []
    limit = whole.cost / 2
    backbone = make(server, price=1000.0, max_cost=limit, inputs=5)
    kept = Kept(100)
    outcome = backbone.encode_each(given, kept)
    assert outcome.stopped and outcome.error is None and 0 < len(kept.rows) < 100
    assert backbone.spent is not None and 0 < backbone.spent <= limit
    # What the server counted is what was paid.
    n_tokens = sum(len(t) // 4 + 1 for r in server.requests for t in r.body["input"])
    assert backbone.spent == pytest.approx(n_tokens * 1000 / 1e6)
    with pytest.raises(InputError, match="next call may cost"):
        make(server, price=1000.0, max_cost=0.0).encode(given)
    with pytest.raises(InputError, match="cannot be -1"):
        make(server, max_cost=-1)


def test_failed_calls_that_may_have_cost_count(server: FakeServer) -> None:
    server.faults = Faults.script([None] * N_PROBES, then="malformed")
    backbone = make(server, price=1000.0, max_cost=0.6, inputs=5, concurrency=1)
    outcome = backbone.encode_each(texts(100), Kept(100))
    assert outcome.stopped
    assert len(server.requests) * 5 * 10 * 1e-3 < 0.6 + 5  # it ended


def test_an_estimate_asks_nobody_and_needs_no_key() -> None:
    backbone = RemoteBackbone("text-embedding-3-small", "default", settings=Settings())
    estimate = backbone.estimate(texts(1000))
    assert estimate.requests == 4 + N_PROBES and estimate.tokens > 10_000
    assert estimate.cost == pytest.approx(estimate.tokens * 0.02 / 1e6) and estimate.seconds > 0
    with pytest.raises(AuthError, match="no key"):
        backbone.check()
    with pytest.raises(AuthError, match="no key"):
        backbone.encode(["a"])
    unknown = RemoteBackbone("m", "default", settings=Settings(), base_url="https://example.org/v1")
    assert unknown.estimate(["a"]).cost is None
    with pytest.raises(InputError, match="price"):
        RemoteBackbone("m", "default", settings=Settings(), base_url="https://example.org/v1", max_cost=1.0)
    local = RemoteBackbone("m", "default", settings=Settings(), base_url="http://127.0.0.1:1/v1")
    assert local.estimate(["a"]).cost == 0.0
