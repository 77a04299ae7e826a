"""Vectors of a server: matched by index, checked, kept as they arrive, and assigned to a space."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from fake_faults import QUICK, Faults
from fake_openai import fake_vector
from fake_server import FakeServer
from hypothesis import given
from hypothesis import strategies as st

from scvec.backbones import load_backbone, parse_spec, remote
from scvec.backbones.remote import RemoteBackbone, vectors_of
from scvec.base.errors import AuthError, InputError, NetworkError, ScvecError
from scvec.base.settings import Price, Secret, ServiceSettings, Settings
from scvec.base.types import Space, StreamingBackbone, text_sha256
from scvec.ingest.sources.retry import Caller, ServiceError

MODEL = "text-embedding-3-small"
KEY = "sk-canary-of-the-embedding-tests"
#: Number of requests of the probe: three single texts and one batch.
N_PROBES = 4


def texts(n: int) -> list[str]:
    return [
        f"G{i} (gene number {i}) takes part in process {i % 7}. " + "It is known. " * (i % 5)
        for i in range(n)
    ]


def rows_of(given: list[str]) -> list[dict[str, Any]]:
    return [{"index": i, "embedding": [float(x) for x in fake_vector(t)]} for i, t in enumerate(given)]


def oracle(given: list[str], dim: int = 32, model: str = MODEL) -> np.ndarray:
    return np.array([fake_vector(t, dim, model=model) for t in given], np.float32).reshape(-1, dim)


def make(server: FakeServer, model: str = MODEL, **options: Any) -> RemoteBackbone:
    price = options.pop("price", None)
    timeout = options.pop("timeout", 60.0)
    settings = Settings(
        openai=ServiceSettings(api_key=Secret(KEY), base_url=f"{server.url}/v1", timeout=timeout),
        prices={} if price is None else {model: Price(price)},
    )
    options.setdefault("caller", lambda host: Caller(host, pace=0.002, seed=0))
    asked = {name: options.pop(name) for name in ("inputs", "concurrency", "caller") if name in options}
    requests = remote.Requests(**asked)
    return RemoteBackbone(model, "default", settings=settings, requests=requests, **options)


class Kept:
    """Records the calls of ``keep``; refuses a text twice."""

    def __init__(self, n: int, dim: int = 32) -> None:
        self.vectors = np.full((n, dim), np.nan, np.float32)
        self.sizes: list[int] = []

    def __call__(self, rows: list[int], vectors: np.ndarray) -> None:
        assert vectors.dtype == np.float32 and np.isnan(self.vectors[rows]).all()
        self.vectors[rows] = vectors
        self.sizes.append(len(rows))

    @property
    def rows(self) -> list[int]:
        return np.flatnonzero(~np.isnan(self.vectors).any(axis=1)).tolist()


def same(got: np.ndarray, given: list[str]) -> None:
    np.testing.assert_allclose(got, oracle(given), atol=1e-6)


#: Faults in answers that arrived.
UNFIT = (
    "short",
    "bad-index",
    "index-beyond",
    "duplicate",
    "wrong-dim",
    "one-wrong-dim",
    "nan",
    "zero",
    "no-data",
)

# answers


def test_each_text_gets_its_own_vector(server: FakeServer) -> None:
    backbone = make(server, inputs=16)
    given = texts(100)
    got = backbone.encode(given)
    assert got.dtype == np.float32 and isinstance(backbone, StreamingBackbone)
    same(got, given)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-6)
    assert backbone.space == Space(f"openai:{MODEL}", "@localhost", "", "default", "api", 32, True)
    assert backbone.notes == [] and backbone.n_calls == N_PROBES + 7 == len(server.requests)
    assert {r.headers["Authorization"] for r in server.requests} == {f"Bearer {KEY}"}
    # A second call sends no probes.
    same(backbone.encode(given[:5]), given[:5])
    assert len(server.requests) == N_PROBES + 8
    assert backbone.encode([]).shape == (0, 32)


@pytest.mark.parametrize("fault", ["reorder", "ignores-base64"])
def test_vectors_are_matched_by_index(server: FakeServer, fault: str) -> None:
    server.faults = Faults.always(fault)
    same(make(server, inputs=16).encode(texts(40)), texts(40))


@pytest.mark.parametrize("fault", UNFIT)
def test_unusable_answers_are_requested_again(server: FakeServer, fault: str) -> None:
    server.faults = Faults.script([None] * N_PROBES + [fault, None, fault])
    kept = Kept(40)
    outcome = make(server, inputs=10).encode_each(texts(40), kept)
    assert outcome.failures == {} and not outcome.stopped
    same(kept.vectors, texts(40))
    assert len(server.requests) == N_PROBES + 4 + 2


@pytest.mark.parametrize("fault", UNFIT)
def test_a_server_that_never_gives_valid_vectors_ends_the_run(server: FakeServer, fault: str) -> None:
    server.faults = Faults.after(N_PROBES, fault)
    kept = Kept(40)
    outcome = make(server, inputs=10, concurrency=1).encode_each(texts(40), kept)
    # Nothing wrong is kept. (The index of a single text is always right.)
    same(kept.vectors[kept.rows], [texts(40)[i] for i in kept.rows])
    if fault == "bad-index":
        assert len(kept.rows) == 40 and not outcome.stopped
    else:
        assert kept.rows == [] and isinstance(outcome.error, InputError) and "in a row" in outcome.stopped
        assert len(server.requests) == N_PROBES + 20


def test_a_batch_is_halved_to_single_texts_before_the_run_ends(server: FakeServer) -> None:
    server.faults = Faults.after(N_PROBES, "bad-index")
    kept = Kept(64)
    outcome = make(server, inputs=64, concurrency=1).encode_each(texts(64), kept)
    assert len(kept.rows) == 64 and not outcome.stopped


@pytest.mark.parametrize("fault", ["nan", "wrong-dim", "no-data", "zero", "short"])
def test_probes_are_checked_as_well(server: FakeServer, fault: str) -> None:
    server.faults = Faults.script([fault])
    same(make(server).encode(texts(3)), texts(3))
    if fault == "wrong-dim":
        return  # all answers have the same length, which is accepted
    server.faults = Faults.always(fault)
    with pytest.raises(InputError):
        _ = make(server).space


SHARE = 0.3


@pytest.mark.parametrize("seed", [0, 1])
def test_thousand_texts_with_three_faulty_calls_in_ten(server: FakeServer, seed: int) -> None:
    server.faults = Faults.random(SHARE, seed=seed, kinds=(*QUICK, *UNFIT, "error200"))
    given, kept = texts(1000), Kept(1000)
    backbone = make(server, inputs=8)
    outcome = backbone.encode_each(given, kept)
    assert outcome.failures == {} and outcome.error is None
    same(kept.vectors, given)
    assert sum(r.fault is not None for r in server.requests) > 0.2 * len(server.requests)
    assert len(server.requests) <= 1.6 * (125 + N_PROBES)


def test_timeouts_and_slow_answers_are_retried(server: FakeServer) -> None:
    server.faults = Faults.script([None] * N_PROBES + ["timeout", None, "drip", None, "reset"])
    same(make(server, inputs=10, timeout=0.4).encode(texts(40)), texts(40))


# names


def test_fits_recognises_spaces_of_the_backbone() -> None:
    def at(url: str | None, **options: Any) -> RemoteBackbone:
        return RemoteBackbone("m", "default", settings=Settings(), base_url=url, **options)

    here = Space("openai:m", "@localhost", "", "default", "api", 32, True)
    for url in ("http://127.0.0.1:8000/v1", "http://localhost:9/v1", "http://[::1]:1/v1"):
        assert at(url).fits(here)
    assert not at("http://gpu1:8000/v1").fits(here) and not at(None).fits(here)
    there = Space("openai:m", "other name@gpu1", "", "default", "api", 32, True)
    assert at("http://GPU1:8000/v1").fits(there) and not at("http://gpu2/v1").fits(there)
    openai = Space("openai:m", "", "", "default", "api", 32, True)
    assert at(None).fits(openai) and at("https://api.openai.com/v1").fits(openai)
    assert at(None, dimensions=32).fits(openai) and not at(None, dimensions=16).fits(openai)
    assert not at(None).fits(Space("openai:n", "", "", "default", "api", 32, True))
    assert not at(None).fits(Space("openai:m", "", "", "name", "api", 32, True))


def test_the_spec_reaches_the_backbone(server: FakeServer) -> None:
    spec = parse_spec(f"openai:{MODEL},dimensions=8,max_tokens=50", base_url=f"{server.url}/v1")
    backbone = load_backbone(spec, max_cost=1.0)
    assert isinstance(backbone, RemoteBackbone) and server.requests == []
    assert (backbone.space.dim, backbone.space.pooling) == (8, "api, 50 tokens")


# sizes


def sized(most: int, *, status: int = 413, too_long: int = 10**6) -> Callable[[Any, Any], None]:
    """A server that accepts few texts and no long ones."""

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
        # The size is learned once, not for every batch.
        assert len(refused) <= 2 * 6
        assert (most == 1) == any("one text per request" in note for note in backbone.notes)


def test_one_refused_text_does_not_fail_the_others() -> None:
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


# early ends


@pytest.mark.parametrize(("fault", "error"), [("401", AuthError), ("403", AuthError), ("quota", AuthError)])
def test_a_refused_key_ends_the_run_and_arrived_vectors_are_kept(
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


def test_a_server_that_is_gone_ends_the_run(server: FakeServer) -> None:
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


def test_an_error_of_keep_ends_the_run(server: FakeServer) -> None:
    for error in (OSError("disk full"), KeyboardInterrupt()):
        n_kept = []

        def keep(rows: list[int], vectors: Any, error: BaseException = error, n_kept: Any = n_kept) -> None:
            n_kept.append(len(rows))
            if len(n_kept) == 2:
                raise error

        with pytest.raises(type(error)):
            make(server, inputs=10, concurrency=1).encode_each(texts(100), keep)
        assert n_kept == [10, 10]


# cost


def test_the_cost_limit_holds_and_paid_vectors_are_kept(server: FakeServer) -> None:
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
    # The cost follows the server's token count.
    n_tokens = sum(len(t) // 4 + 1 for r in server.requests for t in r.body["input"])
    assert backbone.spent == pytest.approx(n_tokens * 1000 / 1e6)
    with pytest.raises(InputError, check=lambda e: e.code == "cost-limit"):
        make(server, price=1000.0, max_cost=0.0).encode(given)
    with pytest.raises(InputError, match="-1", check=lambda e: e.code == "option-out-of-range"):
        make(server, max_cost=-1)


def test_failed_calls_that_may_have_cost_money_count(server: FakeServer) -> None:
    server.faults = Faults.script([None] * N_PROBES, then="malformed")
    backbone = make(server, price=1000.0, max_cost=0.6, inputs=5, concurrency=1)
    outcome = backbone.encode_each(texts(100), Kept(100))
    assert outcome.stopped
    assert len(server.requests) * 5 * 10 * 1e-3 < 0.6 + 5  # the run ended


def test_an_estimate_sends_no_request_and_needs_no_key() -> None:
    backbone = RemoteBackbone("text-embedding-3-small", "default", settings=Settings())
    estimate = backbone.estimate(texts(1000))
    assert estimate.requests == 4 + N_PROBES and estimate.tokens > 10_000
    assert estimate.cost == pytest.approx(estimate.tokens * 0.02 / 1e6) and estimate.seconds > 0
    with pytest.raises(AuthError, check=lambda e: e.code == "key-missing"):
        backbone.check()
    with pytest.raises(AuthError, check=lambda e: e.code == "key-missing"):
        backbone.encode(["a"])
    unknown = RemoteBackbone("m", "default", settings=Settings(), base_url="https://example.org/v1")
    assert unknown.estimate(["a"]).cost is None
    with pytest.raises(InputError, match="price", check=lambda e: e.code == "cost-limit"):
        RemoteBackbone("m", "default", settings=Settings(), base_url="https://example.org/v1", max_cost=1.0)
    local = RemoteBackbone("m", "default", settings=Settings(), base_url="http://127.0.0.1:1/v1")
    assert local.estimate(["a"]).cost == 0.0


def joined(app: web.Application, server: Any) -> None:
    """A server that joins concurrent requests to a batch and computes batches wrongly."""
    under_way = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal under_way
        given = request["body"]["input"]
        under_way += len(given)
        try:
            await asyncio.sleep(0.01)
            wrong = " padded" * (under_way > 1)
            return web.json_response({"data": rows_of([text + wrong for text in given])})
        finally:
            under_way -= len(given)

    app.router.add_post("/v1/embeddings", answer)


def alone_only(app: web.Application, server: Any) -> None:
    """Like :func:`joined`, and refuses requests with several texts."""
    inner = web.Application()
    joined(inner, server)
    (route,) = [r for r in inner.router.routes() if r.method == "POST"]

    async def answer(request: web.Request) -> Any:
        if len(request["body"]["input"]) > 1:
            return web.json_response({"error": {"message": "one input only"}}, status=422)
        return await route.handler(request)

    app.router.add_post("/v1/embeddings", answer)


def test_batches_that_change_vectors_are_detected_and_not_sent(server: FakeServer) -> None:
    server.faults = Faults.always("bad-batch")
    backbone = make(server)
    same(backbone.encode(texts(20)), texts(20))
    (note,) = backbone.notes
    assert "(cosine " in note and "one text at a time" in note
    assert max(len(r.body["input"]) for r in server.requests[N_PROBES:]) == 1


@pytest.mark.parametrize("add", [joined, alone_only])
def test_batches_made_by_the_server_are_detected_too(add: Any) -> None:
    with FakeServer(extra=[add]) as llama:
        backbone = make(llama)
        same(backbone.encode(texts(12)), texts(12))
        assert backbone.concurrency == 1 and "at a time" in backbone.notes[-1]


def test_one_bad_batch_among_good_ones_costs_only_speed(server: FakeServer) -> None:
    server.faults = Faults.script([None, None, None, "bad-batch"])
    same(make(server).encode(texts(20)), texts(20))


def wobbling(size: float) -> Callable[[Any, Any], None]:
    def add(app: web.Application, server: Any) -> None:
        rng = np.random.default_rng(0)

        async def answer(request: web.Request) -> web.Response:
            given = request["body"]["input"]
            vectors = [fake_vector(t) + size * rng.standard_normal(32) / 32**0.5 for t in given]
            rows = [{"index": i, "embedding": [float(x) for x in v]} for i, v in enumerate(vectors)]
            return web.json_response({"data": rows, "model": "/models/dir/Wobble 1.gguf"})

        app.router.add_post("/v1/embeddings", answer)

    return add


def test_vectors_that_differ_each_time(server: FakeServer) -> None:
    with FakeServer(extra=[wobbling(0.01)]) as steady:
        backbone = make(steady)
        # The path on the server's disk is not part of the name.
        assert backbone.space.revision == "Wobble 1.gguf@localhost" and backbone.notes == []
        assert backbone.fits(backbone.space)
    with FakeServer(extra=[wobbling(0.07)]) as loose:
        backbone = make(loose)
        assert backbone.space.dim == 32 and "each time" in backbone.notes[0]
    with (
        FakeServer(extra=[wobbling(1.0)]) as wild,
        pytest.raises(InputError, match=r"\(cosine -?0\.\d{3}\)"),
    ):
        _ = make(wild).space


def test_one_vector_for_all_texts_is_refused() -> None:
    def add(app: web.Application, server: Any) -> None:
        async def answer(request: web.Request) -> web.Response:
            rows = [{"index": i, "embedding": [1, 2, 3]} for i in range(len(request["body"]["input"]))]
            return web.json_response({"data": rows})

        app.router.add_post("/v1/embeddings", answer)

    with FakeServer(extra=[add]) as same_for_all, pytest.raises(InputError, match="the same vector"):
        _ = make(same_for_all).space


def test_dimensions_are_requested_and_checked(server: FakeServer) -> None:
    backbone = make(server, dimensions=8)
    np.testing.assert_allclose(backbone.encode(texts(3)), oracle(texts(3), 8), atol=1e-6)
    assert backbone.space.dim == 8 and server.requests[0].body["dimensions"] == 8
    with pytest.raises(InputError, match="does not support specifying dimensions"):
        _ = make(server, "old", dimensions=8).space
    with FakeServer(extra=[wobbling(0.0)]) as deaf, pytest.raises(InputError, match=r"32 .* instead of 8"):
        _ = make(deaf, dimensions=8).space
    make(server).encode(["a"])
    assert "dimensions" not in server.requests[-1].body


def test_a_server_that_refuses_base64_is_asked_for_lists() -> None:
    def add(app: web.Application, server: Any) -> None:
        async def answer(request: web.Request) -> web.Response:
            body = request["body"]
            if body.get("encoding_format") == "base64":
                return web.json_response({"error": {"message": "unknown encoding_format"}}, status=422)
            return web.json_response({"data": rows_of(body["input"])})

        app.router.add_post("/v1/embeddings", answer)

    with FakeServer(extra=[add]) as plain:
        same(make(plain).encode(texts(9)), texts(9))
        assert [r.body["encoding_format"] for r in plain.requests].count("base64") == 1


def test_probes_are_texts_of_different_lengths() -> None:
    assert len(set(remote.BATCH)) == 6 and remote.BATCH[::2] == remote.ALONE
    assert max(map(len, remote.BATCH)) > 20 * min(map(len, remote.BATCH))


def test_the_probe_vectors_belong_to_the_probe_texts(server: FakeServer) -> None:
    space, vectors = make(server).probe()
    assert space.dim == 32 and list(vectors) == [text_sha256(t) for t in remote.ALONE]
    same(np.stack(list(vectors.values())), list(remote.ALONE))
    json.dumps(space.to_dict())


def packed(*numbers: float) -> str:
    return base64.b64encode(np.array(numbers, "<f4").tobytes()).decode()


def row(index: Any, embedding: Any) -> dict[str, Any]:
    return {"object": "embedding", "index": index, "embedding": embedding}


def test_rows_are_put_in_order_and_scaled() -> None:
    answer = {"data": [row(2, [0, 5.0]), row(0, packed(3.0, 4.0)), row(1, [-2, 0])]}
    got = vectors_of(answer, 3, "host")
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [[0.6, 0.8], [-1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_array_equal(vectors_of(answer, 3, "host", 2), got)


def test_large_numbers_are_numbers() -> None:
    # Their squares overflow single precision.
    np.testing.assert_allclose(vectors_of({"data": [row(0, [3e38, 4e38])]}, 1, "host"), [[0.6, 0.8]])


@pytest.mark.parametrize(
    "data",
    [
        None, "x", {}, 3, [], [None], [[1.0]], ["x"], [{}],
        [row(0, [1.0, 2.0])] * 2,
        [row(None, [1.0, 2.0])], [row("0", [1.0, 2.0])], [row(False, [1.0, 2.0])], [row(0.0, [1.0, 2.0])],
        [row(-1, [1.0, 2.0])], [row(1, [1.0, 2.0])], [row(10**30, [1.0, 2.0])],
        [row(0, None)], [row(0, [])], [row(0, "")], [row(0, {})], [row(0, 1.0)], [row(0, True)],
        [row(0, ["1", "2"])], [row(0, [[1.0, 2.0]])], [row(0, [1.0, None])], [row(0, [True, 2.0])],
        [row(0, [1.0, 10**400])], [row(0, [1.0, float("nan")])], [row(0, [1.0, float("inf")])],
        [row(0, [0.0, 0.0])], [row(0, [1e-200, 0.0])], [row(0, [1.0] * 3)], [row(0, [1.0])],
        [row(0, "no base64!")], [row(0, "AAAA")], [row(0, packed(1.0, 2.0)[:-1])], [row(0, "\u00e9" * 8)],
        [row(0, packed(float("nan"), 1.0))], [row(0, packed(float("inf"), 1.0))], [row(0, packed(0.0, 0.0))],
        [row(0, [1.0] * 65537)],
    ],
    ids=lambda data: repr(data)[:40],
)  # fmt: skip
def test_invalid_vectors_are_refused(data: Any) -> None:
    with pytest.raises(ServiceError) as caught:
        vectors_of({"data": data}, 1, "host", 2)
    assert caught.value.kind == "unfit" and len(caught.value.reason) < 120
    assert caught.value.__cause__ is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["data", "index", "embedding", "x"]), inner, max_size=3
    ),
    max_leaves=12,
)  # fmt: skip


@given(JSON, st.integers(1, 3))
def test_any_json_gives_vectors_or_is_refused(data: Any, n: int) -> None:
    try:
        got = vectors_of({"data": data}, n, "host")
    except ServiceError as error:
        assert error.kind == "unfit"
    else:
        assert len(got) == n and np.isfinite(got).all()


@given(st.permutations(range(5)), st.integers(1, 4))
def test_each_text_gets_its_vector_in_any_order(order: list[int], dim: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((5, dim)).astype(np.float32)
    data = [row(i, packed(*vectors[i]) if i % 2 else [float(x) for x in vectors[i]]) for i in order]
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors_of({"data": data}, 5, "host"), expected, rtol=1e-6)
