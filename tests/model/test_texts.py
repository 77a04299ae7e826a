"""Tests of texts of genes: templates, and the texts that the backbone encodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import scvec.model.gene_vectors as texts
from scvec.backbones import parse_spec
from scvec.backbones.controls import RandomBackbone, permutation
from scvec.base.errors import InputError
from scvec.base.types import Description, text_sha256
from scvec.model.gene_vectors import check_template, encode_genes, gene_table
from scvec.stores.store.vector_cache import VectorCache

GENES = pd.DataFrame(
    [
        ("HGNC:6081", "human", "INS", "insulin", "protein-coding"),
        ("HGNC:4191", "human", "GCG", "glucagon", "protein-coding"),
        ("MGI:96573", "mouse", "Ins2", "insulin II", "protein-coding"),
        ("entrez:7", "human", "LOC7", None, None),
        ("HGNC:1", "human", "TWIN1", "twin", "other"),
        ("HGNC:2", "human", "TWIN2", "twin", "other"),
    ],
    columns=["gene_id", "species", "symbol", "name", "gene_type"],
)
SAME = "A gene like its twin (one of 2), {symbol} and all."
DESCRIPTIONS = {
    "HGNC:6081": "INS (insulin) takes part in glucose homeostasis, a longer text than the others have.",
    "HGNC:4191": "GCG (glucagon).",
    "HGNC:1": SAME,
    "HGNC:2": SAME,
}
IDS = GENES["gene_id"].tolist()


class Knowledge:
    """The part of the knowledge base that the tests need."""

    def genes(self) -> pd.DataFrame:
        return GENES.iloc[::-1].assign(entrez_id=1)

    def descriptions(self, gene_ids: Sequence[str] | None = None) -> dict[str, Description]:
        return {
            g: Description(g, t, "test", "1", "2026-01-01", "composed")
            for g, t in DESCRIPTIONS.items()
            if gene_ids is None or g in gene_ids
        }


KB: Any = Knowledge()


class Spy(RandomBackbone):
    """A backbone with random vectors that records its texts."""

    def __init__(self, template: str = "default") -> None:
        super().__init__(8, template)
        self.batches: list[list[str]] = []

    def encode(self, texts: Sequence[str]) -> Any:
        self.batches.append(list(texts))
        return super().encode(texts)

    @property
    def seen(self) -> list[str]:
        return [text for batch in self.batches for text in batch]


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    backbone = Spy()
    monkeypatch.setattr(texts, "load_backbone", lambda spec, **options: backbone)
    return backbone


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[VectorCache]:
    opened = VectorCache({}, tmp_path / "work.duckdb")
    yield opened
    opened.close()


# templates


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("default", DESCRIPTIONS["HGNC:6081"]),
        ("{description}", DESCRIPTIONS["HGNC:6081"]),
        ("name", "INS (insulin)"),
        ("{symbol}/{species}/{gene_type}", "INS/human/protein-coding"),
        ("{{{symbol}}}", "{INS}"),
    ],
)
def test_templates(template: str, expected: str) -> None:
    table = gene_table(KB, ["HGNC:6081"], template)
    assert table["text"].tolist() == [expected]
    assert table["text_sha256"].tolist() == [text_sha256(expected)]


@pytest.mark.parametrize(
    "template",
    ["", "no field", "{", "{symbol", "symbol}", "{}", "{0}", "{gene_id}", "{symbols}", "{symbol.__class__}",
     "{symbol[0]}", "{description.__init__.__globals__}", "{symbol} {secret}", "Default"],
)  # fmt: skip
def test_what_is_no_template_is_refused(template: str) -> None:
    with pytest.raises(InputError) as caught:
        check_template(template)
    assert len(caught.value.lines()) <= 3


@pytest.mark.parametrize(
    "template", ["{symbol:{description.__class__}}", "{symbol:d}", "{symbol:>999999999}"]
)
def test_formats_of_fields_are_refused(template: str) -> None:
    with pytest.raises(InputError):
        check_template(template)


def test_every_gene_has_a_text_in_the_order_asked_for() -> None:
    table = gene_table(KB, IDS[::-1], "default")
    assert table.columns.tolist() == ["gene_id", "species", "symbol", "text", "text_sha256"]
    assert table["gene_id"].tolist() == IDS[::-1]
    by_id = dict(zip(table["gene_id"], table["text"], strict=True))
    assert by_id["MGI:96573"] == "Ins2 (insulin II)"  # without a description, the text has the names
    assert by_id["entrez:7"] == "LOC7"  # without a name, it has the symbol
    assert by_id["HGNC:1"] == by_id["HGNC:2"] == SAME  # braces in a description are not fields


# encoding


def encode(cache: Any, ids: Sequence[str] = IDS, spec: str = "random:8", **options: Any) -> Any:
    return encode_genes(KB, cache, ids, parse_spec(spec), **options)


def test_vectors_are_those_of_each_gene_s_text(spy: Spy, cache: VectorCache) -> None:
    got = encode(cache)
    expected = RandomBackbone(8).encode(gene_table(KB, IDS, "default")["text"].tolist())
    np.testing.assert_array_equal(got.vectors, expected)
    assert got.table["gene_id"].tolist() == IDS and "text" not in got.table
    assert got.space == spy.space
    # A text of two genes is encoded once.
    assert (got.n_encoded, got.n_cached) == (5, 0) and sorted(spy.seen) == sorted(set(spy.seen))


def test_only_new_texts_go_through_the_backbone(spy: Spy, cache: VectorCache) -> None:
    first = encode(cache, IDS[:3])
    spy.batches.clear()
    again = encode(cache, IDS[:3])
    assert spy.seen == [] and (again.n_encoded, again.n_cached) == (0, 3)
    np.testing.assert_array_equal(again.vectors, first.vectors)
    more = encode(cache, IDS[::-1])
    assert sorted(spy.seen) == sorted({"LOC7", SAME}) and (more.n_encoded, more.n_cached) == (2, 3)
    np.testing.assert_array_equal(more.vectors[::-1][:3], first.vectors)


def test_a_killed_run_loses_one_batch_at_most(
    spy: Spy, cache: VectorCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "BATCH", 2)
    real, calls = spy.encode, []

    def dies(batch: Sequence[str]) -> Any:
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(batch)

    monkeypatch.setattr(spy, "encode", dies)
    with pytest.raises(KeyboardInterrupt):
        encode(cache)
    monkeypatch.setattr(spy, "encode", real)
    spy.batches.clear()
    resumed = encode(cache)
    assert (resumed.n_encoded, resumed.n_cached) == (1, 4) and len(spy.seen) == 1
    expected = RandomBackbone(8).encode(gene_table(KB, IDS, "default")["text"].tolist())
    np.testing.assert_array_equal(resumed.vectors, expected)


def test_long_texts_come_first_and_progress_is_told(
    spy: Spy, cache: VectorCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "BATCH", 2)
    steps: list[tuple[int, int | None]] = []
    encode(cache, progress=lambda stage, done, total: steps.append((done, total)))
    assert [len(t) for t in spy.seen] == sorted((len(t) for t in spy.seen), reverse=True)
    assert sorted(set(steps)) == [(0, 5), (2, 5), (4, 5), (5, 5)] and steps == sorted(steps)


def test_another_template_is_another_space(cache: VectorCache) -> None:
    default, name = encode(cache), encode(cache, spec="name:random:8")
    assert default.space.fingerprint != name.space.fingerprint
    assert (name.n_encoded, name.n_cached) == (6, 0)
    expected = RandomBackbone(8).encode(gene_table(KB, IDS, "name")["text"].tolist())
    np.testing.assert_array_equal(name.vectors, expected)


def test_permuted_genes_get_each_other_s_vectors(cache: VectorCache) -> None:
    plain, permuted = encode(cache), encode(cache, spec="permuted:random:8")
    np.testing.assert_array_equal(permuted.vectors, plain.vectors[permutation(IDS)])
    assert permuted.n_encoded == 0 and permuted.table.equals(plain.table)
    # The permutation does not depend on the order of the list.
    other = encode(cache, IDS[::-1], spec="permuted:random:8")
    np.testing.assert_array_equal(other.vectors[::-1], permuted.vectors)


def test_no_genes(spy: Spy, cache: VectorCache) -> None:
    got = encode(cache, [])
    assert got.vectors.shape == (0, 8) and spy.batches == [] and len(got.table) == 0
