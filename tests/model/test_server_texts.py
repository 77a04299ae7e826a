"""Tests of gene vectors from a server: saved as they arrive, requested once, from one model only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_faults import Faults
from fake_openai import add_openai, fake_vector
from fake_server import FakeServer

import scvec.model.gene_vectors as texts
from scvec.backbones import parse_spec
from scvec.backbones.remote import RemoteBackbone, Requests
from scvec.base.errors import AuthError, InputError, NetworkError, StoreError
from scvec.base.settings import Price, Secret, ServiceSettings, Settings
from scvec.base.types import Description, text_sha256
from scvec.ingest.sources.retry import Caller
from scvec.model.gene_vectors import encode_genes, gene_table, plan_encoding
from scvec.stores.store.vector_cache import VectorCache

MODEL = "text-embedding-3-small"
N = 60
N_PROBES = 4
GENES = pd.DataFrame(
    [(f"HGNC:{i}", "human", f"G{i}", f"gene number {i}", "protein-coding") for i in range(N)],
    columns=["gene_id", "species", "symbol", "name", "gene_type"],
)
IDS = GENES["gene_id"].tolist()


class Knowledge:
    """The part of the knowledge base that the tests need."""

    def genes(self) -> pd.DataFrame:
        return GENES.assign(entrez_id=1)

    def descriptions(self, gene_ids: Sequence[str] | None = None) -> dict[str, Description]:
        texts = {g: f"{g} does a thing. " * (40 if i == 5 else 1 + i % 4) for i, g in enumerate(IDS)}
        return {g: Description(g, t, "test", "1", "2026-01-01", "composed") for g, t in texts.items()}


KB: Any = Knowledge()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(extra=[add_openai]) as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[VectorCache]:
    opened = VectorCache({}, tmp_path / "work.duckdb")
    yield opened
    opened.close()


@pytest.fixture
def load(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of the backbone that is loaded."""
    settings = Settings(
        openai=ServiceSettings(
            api_key=Secret("sk-canary-of-gene-texts"), base_url=f"{server.url}/v1", timeout=60
        ),
        prices={MODEL: Price(1000.0)},
    )
    requests = Requests(10, 1, lambda host: Caller(host, pace=0.002, seed=0))
    options: dict[str, Any] = {"settings": settings, "requests": requests}

    def loaded(spec: Any, **given: Any) -> RemoteBackbone:
        return RemoteBackbone(spec.argument, spec.template, max_cost=given.get("max_cost"), **options)

    monkeypatch.setattr(texts, "load_backbone", loaded)
    return options


def oracle(ids: Sequence[str], model: str = MODEL) -> np.ndarray:
    return np.stack([fake_vector(t, model=model) for t in gene_table(KB, ids, "default")["text"]])


def encode(cache: Any, ids: Sequence[str] = IDS, model: str = MODEL, **options: Any) -> Any:
    return encode_genes(KB, cache, ids, parse_spec(f"openai:{model}"), **options)


def test_vectors_are_those_of_each_gene_s_text(server: FakeServer, cache: VectorCache, load: Any) -> None:
    steps: list[tuple[int, int | None, str]] = []
    got = encode(cache, progress=lambda s, done, total, detail="": steps.append((done, total, detail)))
    np.testing.assert_allclose(got.vectors, oracle(IDS), atol=1e-6)
    assert got.table["gene_id"].tolist() == IDS and (got.n_encoded, got.n_cached) == (N, 0)
    assert got.n_requests == len(server.requests) == N_PROBES + N // 10 and got.cost > 0
    assert [done for done, _, _ in steps] == [10, 20, 30, 40, 50, 60]
    assert "a minute, $" in steps[-1][2] and {total for _, total, _ in steps} == {N}


def test_what_is_known_is_not_asked_for(server: FakeServer, cache: VectorCache, load: dict[str, Any]) -> None:
    encode(cache, IDS[:20])
    server.requests.clear()
    more = encode(cache, IDS[:30])
    assert (more.n_encoded, more.n_cached) == (10, 20) and len(server.requests) == N_PROBES + 1
    np.testing.assert_allclose(more.vectors, oracle(IDS[:30]), atol=1e-6)
    # All vectors are in the cache, so neither the server nor the key is needed.
    server.requests.clear()
    load["settings"] = Settings(openai=ServiceSettings(base_url="http://127.0.0.1:9/v1"))
    again = encode(cache, IDS[:30])
    np.testing.assert_array_equal(again.vectors, more.vectors)
    assert (again.n_encoded, again.n_cached, again.n_requests) == (0, 30, 0) and server.requests == []
    assert again.space == more.space


def test_a_plan_sends_no_request(server: FakeServer, cache: VectorCache, load: dict[str, Any]) -> None:
    plan = plan_encoding(KB, cache, IDS, parse_spec(f"openai:{MODEL}"))
    assert (plan.space, plan.n_todo, plan.n_cached) == (None, N, 0)
    assert plan.estimate is not None and plan.estimate.requests == N_PROBES + N // 10
    assert plan.estimate.cost == pytest.approx(plan.estimate.tokens / 1000) and server.requests == []
    done = encode(cache, IDS[:20])
    server.requests.clear()
    load["settings"] = Settings(openai=ServiceSettings(base_url="http://127.0.0.1:9/v1"))
    plan = plan_encoding(KB, cache, IDS, parse_spec(f"openai:{MODEL}"))
    assert (plan.space, plan.n_todo, plan.n_cached) == (done.space, N - 20, 20) and server.requests == []


def test_a_plan_of_a_local_backbone_has_no_cost(cache: VectorCache) -> None:
    plan = plan_encoding(KB, cache, IDS[:3], parse_spec("random:8"))
    assert plan.space is not None and (plan.n_todo, plan.n_cached, plan.estimate) == (3, 0, None)
    encode_genes(KB, cache, IDS[:2], parse_spec("random:8"))
    assert plan_encoding(KB, cache, IDS[:3], parse_spec("random:8")).n_cached == 2


@pytest.mark.parametrize(("fault", "error"), [("401", AuthError), ("500", NetworkError)])
def test_what_arrived_before_an_end_is_kept(
    server: FakeServer, cache: VectorCache, load: Any, fault: str, error: type[Exception]
) -> None:
    server.faults = Faults.after(N_PROBES + 3, fault)
    with pytest.raises(error, match="30 of 60 genes"):
        encode(cache)
    server.faults, server.requests[:] = Faults.none(), []
    rest = encode(cache)
    assert (rest.n_encoded, rest.n_cached) == (30, 30) and len(server.requests) == N_PROBES + 3
    np.testing.assert_allclose(rest.vectors, oracle(IDS), atol=1e-6)


def test_a_part_can_be_had(server: FakeServer, cache: VectorCache, load: Any) -> None:
    server.faults = Faults.after(N_PROBES + 3, "401")
    got = encode(cache, partial=True)
    assert isinstance(got.error, AuthError) and got.stopped and len(got.table) == 30 == got.n_encoded
    np.testing.assert_allclose(got.vectors, oracle(got.table["gene_id"].tolist()), atol=1e-6)


def test_genes_that_failed_are_named(
    server: FakeServer, cache: VectorCache, load: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("fake_openai.LONGEST", 150)
    got = encode(cache, IDS[:8], partial=True)
    assert list(got.failures) == ["HGNC:5"] and "150 tokens" in got.failures["HGNC:5"] and not got.stopped
    assert got.table["gene_id"].tolist() == [g for g in IDS[:8] if g != "HGNC:5"]
    np.testing.assert_allclose(got.vectors, oracle(got.table["gene_id"].tolist()), atol=1e-6)
    with pytest.raises(NetworkError, match="1 of 8 genes") as caught:
        encode(cache, IDS[:8])
    assert caught.value.code == "texts-missing" and caught.value.where == "G5"


def test_the_limit_of_cost(server: FakeServer, cache: VectorCache, load: Any, tmp_path: Path) -> None:
    whole = encode(VectorCache({}, tmp_path / "other.duckdb"))
    plan = plan_encoding(KB, cache, IDS, parse_spec(f"openai:{MODEL}"))
    assert plan.estimate is not None and plan.estimate.cost is not None and whole.cost is not None
    assert plan.estimate.cost >= whole.cost * 0.95
    limit = whole.cost * 0.9
    got = encode(cache, max_cost=limit, partial=True)
    assert 0 < len(got.table) < N and got.cost <= limit and got.error is None and "may cost" in got.stopped
    for cost in (limit / 20, 0):
        with pytest.raises(InputError) as caught:
            encode(cache, max_cost=cost)
        assert caught.value.code == "cost-limit" and "--max-cost" in str(caught.value)
    assert encode(cache).n_cached >= len(got.table)


def test_ctrl_c_keeps_what_arrived(server: FakeServer, cache: VectorCache, load: Any) -> None:
    def interrupt(stage: str, done: int, total: int | None, detail: str = "") -> None:
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(cache, progress=interrupt)
    assert encode(cache).n_cached == 30


def test_another_model_behind_the_same_name_is_refused(
    server: FakeServer, cache: VectorCache, load: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(cache, IDS[:20])
    # The same name, address and dimension.
    monkeypatch.setattr("fake_openai.fake_vector", lambda t, dim, model: fake_vector(t, dim, model="other"))
    with pytest.raises(StoreError) as caught:
        encode(cache)
    assert caught.value.code == "model-changed"
    # Without the vectors of the probes, as after a copy of the store without its cache, genes are compared.
    known = {text_sha256(t) for t in gene_table(KB, IDS, "default")["text"]}
    cache._log.keep([e.at for e in cache._log.entries() if e.head[0] == "space" or e.head[2] in known])
    cache = VectorCache({}, cache._log.path)
    with pytest.raises(StoreError) as caught:
        encode(cache)
    assert caught.value.code == "model-changed"
    monkeypatch.undo()


def test_the_same_model_on_another_port_goes_on(
    server: FakeServer, cache: VectorCache, load: dict[str, Any]
) -> None:
    first = encode(cache, IDS[:20])
    with FakeServer(extra=[add_openai]) as other:
        load["settings"] = Settings(
            openai=ServiceSettings(base_url=f"{other.url}/v1".replace("127.0.0.1", "localhost"))
        )
        got = encode(cache, IDS[:30])
    assert got.space == first.space and got.n_cached == 20


def test_permuted_and_named(server: FakeServer, cache: VectorCache, load: Any) -> None:
    plain = encode(cache)
    permuted = encode_genes(KB, cache, IDS, parse_spec(f"permuted:openai:{MODEL}"))
    assert permuted.n_encoded == 0 and not np.allclose(permuted.vectors, plain.vectors)
    assert sorted(map(bytes, permuted.vectors)) == sorted(map(bytes, plain.vectors))
    named = encode_genes(KB, cache, IDS[:3], parse_spec(f"name:openai:{MODEL}"))
    np.testing.assert_allclose(named.vectors[0], fake_vector("G0 (gene number 0)"), atol=1e-6)
    assert named.space.fingerprint != plain.space.fingerprint
