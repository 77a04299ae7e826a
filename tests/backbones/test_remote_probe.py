"""The probe: batches that change vectors, vectors that wobble, dimensions and encodings that are refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from fake_faults import Faults
from fake_openai import fake_vector
from fake_server import FakeServer
from remote_parts import N_PROBES, make, oracle, rows_of, same, texts

from scvec.backbones import remote
from scvec.errors import InputError
from scvec.types import text_sha256


def joined(app: web.Application, server: Any) -> None:
    """A server that computes what is asked for at once as a batch, and batches wrongly."""
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
    """As :func:`joined`, and refuses batches that are sent as such."""
    inner = web.Application()
    joined(inner, server)
    (route,) = [r for r in inner.router.routes() if r.method == "POST"]

    async def answer(request: web.Request) -> Any:
        if len(request["body"]["input"]) > 1:
            return web.json_response({"error": {"message": "one input only"}}, status=422)
        return await route.handler(request)

    app.router.add_post("/v1/embeddings", answer)


def test_batches_that_change_vectors_are_seen_and_not_sent(server: FakeServer) -> None:
    server.faults = Faults.always("bad-batch")
    backbone = make(server)
    same(backbone.encode(texts(20)), texts(20))
    (note,) = backbone.notes
    assert "in batches" in note and "one text at a time" in note
    assert max(len(r.body["input"]) for r in server.requests[N_PROBES:]) == 1


@pytest.mark.parametrize("add", [joined, alone_only])
def test_batches_that_the_server_makes_itself_are_no_better(add: Any) -> None:
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
        # The path on the server's disk is no name.
        assert backbone.space.revision == "Wobble 1.gguf@localhost" and backbone.notes == []
        assert backbone.fits(backbone.space)
    with FakeServer(extra=[wobbling(0.07)]) as loose:
        backbone = make(loose)
        assert backbone.space.dim == 32 and "each time" in backbone.notes[0]
    with (
        FakeServer(extra=[wobbling(1.0)]) as wild,
        pytest.raises(InputError, match="another vector each time"),
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


def test_dimensions_are_asked_for_and_checked(server: FakeServer) -> None:
    backbone = make(server, dimensions=8)
    np.testing.assert_allclose(backbone.encode(texts(3)), oracle(texts(3), 8), atol=1e-6)
    assert backbone.space.dim == 8 and server.requests[0].body["dimensions"] == 8
    with pytest.raises(InputError, match="does not support specifying dimensions"):
        _ = make(server, "old", dimensions=8).space
    with FakeServer(extra=[wobbling(0.0)]) as deaf, pytest.raises(InputError, match="8 were asked for"):
        _ = make(deaf, dimensions=8).space
    make(server).encode(["a"])
    assert "dimensions" not in server.requests[-1].body


def test_a_server_that_refuses_base64_is_asked_for_numbers() -> None:
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


def test_the_probe_vectors_are_of_the_probe_texts(server: FakeServer) -> None:
    space, vectors = make(server).probe()
    assert space.dim == 32 and list(vectors) == [text_sha256(t) for t in remote.ALONE]
    same(np.stack(list(vectors.values())), list(remote.ALONE))
    json.dumps(space.to_dict())
