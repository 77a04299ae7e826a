"""Vectors of a server: matched by index, checked, kept as they arrive, and whose they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_faults import QUICK, Faults
from fake_server import FakeServer
from remote_parts import KEY, MODEL, N_PROBES, Kept, make, same, texts

from scvec.backbones.remote import RemoteBackbone
from scvec.backbones.spec import load_backbone, parse_spec
from scvec.errors import InputError
from scvec.protocols import StreamingBackbone
from scvec.settings import Settings
from scvec.types import Space

#: Faults of an answer that came.
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

# what comes back


def test_vectors_are_each_text_s_own(server: FakeServer) -> None:
    backbone = make(server, inputs=16)
    given = texts(100)
    got = backbone.encode(given)
    assert got.dtype == np.float32 and isinstance(backbone, StreamingBackbone)
    same(got, given)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-6)
    assert backbone.space == Space(f"openai:{MODEL}", "@localhost", "", "default", "api", 32, True)
    assert backbone.notes == [] and backbone.n_calls == N_PROBES + 7 == len(server.requests)
    assert {r.headers["Authorization"] for r in server.requests} == {f"Bearer {KEY}"}
    # A second call asks for no probes.
    same(backbone.encode(given[:5]), given[:5])
    assert len(server.requests) == N_PROBES + 8
    assert backbone.encode([]).shape == (0, 32)


@pytest.mark.parametrize("fault", ["reorder", "ignores-base64"])
def test_the_index_says_whose_vector_it_is(server: FakeServer, fault: str) -> None:
    server.faults = Faults.always(fault)
    same(make(server, inputs=16).encode(texts(40)), texts(40))


@pytest.mark.parametrize("fault", UNFIT)
def test_answers_that_are_not_what_was_asked_for_are_asked_for_again(server: FakeServer, fault: str) -> None:
    server.faults = Faults.script([None] * N_PROBES + [fault, None, fault])
    kept = Kept(40)
    outcome = make(server, inputs=10).encode_each(texts(40), kept)
    assert outcome.failures == {} and not outcome.stopped
    same(kept.vectors, texts(40))
    assert len(server.requests) == N_PROBES + 4 + 2


@pytest.mark.parametrize("fault", UNFIT)
def test_a_server_that_never_gives_proper_vectors_is_left(server: FakeServer, fault: str) -> None:
    server.faults = Faults.after(N_PROBES, fault)
    kept = Kept(40)
    outcome = make(server, inputs=10, concurrency=1).encode_each(texts(40), kept)
    # Nothing wrong is kept. (Alone, a text has a right index.)
    same(kept.vectors[kept.rows], [texts(40)[i] for i in kept.rows])
    if fault == "bad-index":
        assert len(kept.rows) == 40 and not outcome.stopped
    else:
        assert kept.rows == [] and isinstance(outcome.error, InputError) and "in a row" in outcome.stopped
        assert len(server.requests) == N_PROBES + 20


@pytest.mark.parametrize("fault", ["nan", "wrong-dim", "no-data", "zero", "short"])
def test_probes_are_checked_as_well(server: FakeServer, fault: str) -> None:
    server.faults = Faults.script([fault])
    same(make(server).encode(texts(3)), texts(3))
    if fault == "wrong-dim":
        return  # all answers agree on a dimension: it is theirs
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


def test_timeouts_and_drips_are_asked_for_again(server: FakeServer) -> None:
    server.faults = Faults.script([None] * N_PROBES + ["timeout", None, "drip", None, "reset"])
    same(make(server, inputs=10, timeout=0.4).encode(texts(40)), texts(40))


# names


def test_whose_space_it_may_be() -> None:
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
