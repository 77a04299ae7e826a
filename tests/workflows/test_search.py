"""Tests of searches for genes and cells, against counts by hand and brute force."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import scvec
from scvec.base.errors import InputError
from scvec.base.types import Space
from scvec.stores.knowledge.gene_search import NAME_WEIGHT, words
from scvec.stores.knowledge.knowledge import KnowledgeBase
from scvec.stores.store.store import Store
from scvec.workflows import search_genes as search
from scvec.workflows.search_genes import Ranked, rank_genes, shared_terms

SPACE = Space("minilm", "r1", "ab" * 32, "default", "mean", 8, True)
TOPICS = ("insulin", "glucagon", "trypsin", "keratin")


class ByTopic:
    """Replaces the text model. The vector of a text shows which of four words it has."""

    space = SPACE

    def encode(self, texts: Any) -> Any:
        rows = [[float(t in text.lower()) for t in TOPICS] + [0.01, 0, 0, 0] for text in texts]
        return np.array(rows, dtype=np.float32)


@pytest.fixture(scope="module")
def store(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_adata: Callable[..., Any],
    new_store: Callable[[Path], Path],
) -> Path:
    """A store with a reference of three types, and vectors of a few genes by topic."""
    folder = tmp_path_factory.mktemp("search")
    cells = tiny_adata(120, classes=4, seed=0, depth=4000.0)
    cells.obs["tissue"] = ["pancreas" if i % 8 < 4 else "elsewhere" for i in range(120)]
    cells.write_h5ad(folder / "ref.h5ad")
    scvec.ingest_cells(
        new_store(folder / "store"),
        [folder / "ref.h5ad"],
        name="tiny",
        label_key="cell_type",
        backbone="random:16",
    )
    opened = Store(folder / "store")
    with opened.knowledge() as kb:
        genes = kb.genes("human")
    topics = {"INS": "insulin", "GCG": "glucagon", "PRSS1": "trypsin", "KRT19": "keratin"}
    genes = genes[genes["symbol"].isin(topics)].reset_index(drop=True)
    table = genes[["gene_id", "species", "symbol"]].assign(text_sha256=[f"{i:064x}" for i in range(4)])
    with opened.begin("ingest embeddings", {}) as txn:
        txn.put_space(SPACE, table, ByTopic().encode([topics[s] for s in genes["symbol"]]))
        txn.commit()
    return folder / "store"


@pytest.fixture(scope="module")
def kb(store: Path) -> Iterator[KnowledgeBase]:
    with Store(store).knowledge() as opened:
        yield opened


@pytest.fixture(autouse=True)
def _by_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scvec.workflows.search_genes.load_backbone", lambda spec, **_: ByTopic())
    search._last.clear()


def test_words_are_stemmed_and_stop_words_removed():
    assert words("The secretion of insulins") == ["secret", "insulin"]
    assert words("genes of class MHC2") == ["class", "mhc2"]
    assert words("of the") == ["of", "the"] and words("?!") == []


@pytest.mark.slow
def test_words_are_ranked_as_bm25_by_hand_ranks_them(kb: KnowledgeBase):
    text = "regulation of insulin secretion"
    found = kb.find_words(text, ["human"], limit=50)
    genes = kb.genes("human")
    described = kb.descriptions()
    terms = kb.go_terms_of(list(genes["gene_id"]))
    aliases = kb.aliases("human")
    others = aliases[aliases["kind"].isin(["previous", "alias"])].groupby("gene_id")["name"].agg(list)
    names, bodies = {}, {}
    for row in genes.itertuples(index=False):
        known = [row.symbol, row.name, *sorted(others.get(row.gene_id, []))]
        names[row.gene_id] = " ".join(str(n) for n in known).lower()
        joined = "; ".join(name for _, name in terms.get(row.gene_id, []))
        parts = [p for p in (described[row.gene_id].text, joined) if p]
        bodies[row.gene_id] = " ".join(parts).lower()
    length = {g: len(names[g]) + len(bodies[g]) for g in names}
    mean = sum(length.values()) / len(length)
    score = dict.fromkeys(names, 0.0)
    for word in ("regul", "insulin", "secret"):
        pattern = re.compile(rf"\b{word}[a-z]{{0,6}}\b", re.ASCII)
        tf = {
            g: NAME_WEIGHT * len(pattern.findall(names[g])) + len(pattern.findall(bodies[g])) for g in names
        }
        df = sum(v > 0 for v in tf.values())
        idf = math.log(1 + (len(names) - df + 0.5) / (df + 0.5))
        for g, v in tf.items():
            score[g] += idf * v * 2.2 / (v + 1.2 * (0.25 + 0.75 * length[g] / mean))
    assert "regul" in words(text)
    best = sorted((g for g in score if score[g] > 0), key=lambda g: (-score[g], g))[:50]
    assert [s for _, s in found] == pytest.approx([score[g] for g in best], rel=2e-3)
    assert {g for g, _ in found[:20]} <= set(best)


def test_ranks_are_fused_by_their_places():
    ranked = Ranked({"meaning": ["a", "b"], "words": ["b", "c"]}, "")
    total = {"a": 1 / 61, "b": 1 / 62 + 1 / 61, "c": 1 / 62}
    assert ranked.gene_ids == ["b", "a", "c"]
    assert ranked.scores == pytest.approx([total[g] * 61 / 2 for g in "bac"])
    assert ranked.by["b"] == ["meaning", "words"]


def test_a_named_gene_comes_first(store: Path):
    hits = scvec.search_genes(store, "insulin secretion").hits
    assert hits[0].symbol == "INS" and hits[0].by[0] == "name" and "insulin" in hits[0].terms[0]


def test_what_is_a_name(kb: KnowledgeBase):
    symbols = dict(zip(kb.genes("human")["gene_id"], kb.genes("human")["symbol"], strict=True))
    for text in ("INS", "ins", "insulin secretion", "what does GCG do", "ENSG00000254647"):
        assert symbols[kb.find_names(text, ["human"])[0]] == ("GCG" if "GCG" in text else "INS"), text
    assert (
        kb.find_names("it was on the impact", ["human"]) == []
    )  # English words that are also aliases of genes


def test_meaning_alone_is_the_cosine(store: Path):
    report = scvec.search_genes(store, "trypsin", method="meaning", k=2)
    assert report.hits[0].symbol == "PRSS1" and report.space == SPACE.fingerprint
    assert report.hits[0].similarity == pytest.approx(1.0, abs=1e-6)
    assert report.hits[0].keyword is None and report.hits[0].source.startswith("scvec-snapshot")


def test_a_filter_comes_before_the_best_are_taken(store: Path):
    everything = scvec.search_genes(store, "insulin secretion", k=5).hits
    some = scvec.search_genes(store, "insulin secretion", k=5, where="symbol LIKE 'IGF%'").hits
    assert len(some) == 5 and all(h.symbol.startswith("IGF") for h in some)
    assert not {h.gene_id for h in some} & {h.gene_id for h in everything}
    with pytest.raises(InputError, match="'tissue'") as caught:
        scvec.search_genes(store, "insulin", where="tissue = 'x'")
    assert caught.value.code == "bad-where"


def test_species(store: Path):
    mouse = scvec.search_genes(store, "insulin", species="mouse", method="words", k=50).hits
    assert {h.species for h in mouse} == {"mouse"} and "Ins1" in {h.symbol for h in mouse}
    for species, code in (("rat", "species-not-loaded"), ("rart", "unknown-choice")):
        with pytest.raises(InputError) as caught:
            scvec.search_genes(store, "insulin", species=species)
        assert caught.value.code == code


def test_a_store_without_vectors_is_searched_by_words(store: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Store, "spaces", lambda self: {})
    report = scvec.search_genes(store, "insulin secretion")
    assert report.hits[0].symbol == "INS" and "no gene vectors" in report.notes[0]
    for options in ({"method": "meaning"}, {"backbone": "openai:x"}):
        with pytest.raises(InputError) as caught:
            scvec.search_genes(store, "insulin", **options)
        assert caught.value.code == "unknown-space" and options.get("backbone", "") in caught.value.what


@settings(max_examples=12)
@given(st.text(min_size=1, max_size=40))
@pytest.mark.slow
def test_any_text_is_only_a_text(kb: KnowledgeBase, text: str):
    kb.find_names(text, ["human"])
    for gene_id, score in kb.find_words(text, ["human"], limit=3):
        assert gene_id and score > 0


@pytest.mark.parametrize("text", ["", "   ", "x" * 2001])
def test_texts_that_cannot_be_searched_for(store: Path, text: str):
    with pytest.raises(InputError):
        scvec.search_genes(store, text)


def test_cells_and_labels_that_express_what_a_text_is_about(store: Path):
    report = scvec.search_cells(store, "insulin", method="words", k=15)
    assert report.labels[0].label == "beta" and "INS" in report.labels[0].genes
    assert np.mean([h.label == "beta" for h in report.hits]) >= 0.9
    assert report.hits[0].obs["tissue"] in ("pancreas", "elsewhere") and report.n_searched == 120
    scores = [h.score for h in report.hits]
    assert scores == sorted(scores, reverse=True)


def test_cells_where_a_condition_holds(store: Path):
    wide = scvec.search_cells(store, "glucagon", method="words", k=120)
    narrow = scvec.search_cells(store, "glucagon", method="words", k=10, where="tissue = 'elsewhere'")
    kept = [h.cell for h in wide.hits if h.obs["tissue"] == "elsewhere"]
    assert [h.cell for h in narrow.hits] == kept[:10] and narrow.n_searched == 60


def test_cells_like_a_cell_are_its_nearest_by_cosine(store: Path):
    stored = Store(store).reference("tiny")
    vectors = np.asarray(stored.vectors, dtype=np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit[5]
    cosine[5] = -2
    best = np.argsort(-cosine)[:7]
    report = scvec.search_cells(store, like=str(stored.obs.index[5]), k=7)
    assert [h.row for h in report.hits] == best.tolist()
    assert [h.score for h in report.hits] == pytest.approx(cosine[best], abs=1e-4)
    assert sum(label.n_cells for label in report.labels) == 7


def test_cells_that_cannot_be_searched_for(store: Path):
    for options in ({}, {"text": "x", "like": "cell0-1"}):
        with pytest.raises(InputError) as caught:
            scvec.search_cells(store, **options)
        assert caught.value.code == "usage"
    with pytest.raises(InputError, match="'cell0-1x'") as caught:
        scvec.search_cells(store, like="cell0-1x")
    assert caught.value.code == "unknown-cell" and "did you mean" in caught.value.fix
    with pytest.raises(InputError, match="'zzzz'") as caught:
        scvec.search_cells(store, "zzzz", method="words")
    assert caught.value.code == "unknown-gene"


def test_terms_that_share_words():
    names = [("1", "regulation of insulin secretion"), ("2", "insulin secretion"), ("3", "mitosis")]
    assert shared_terms(names, ["insulin", "secret"]) == [
        "insulin secretion",
        "regulation of insulin secretion",
    ]


def test_without_terms_only_the_description_counts(kb: KnowledgeBase):
    with_terms = rank_genes(kb, "cilium assembly", meaning=None, species=["human"])
    without = rank_genes(kb, "cilium assembly", meaning=None, species=["human"], terms=False)
    assert set(without.keyword) != set(with_terms.keyword)
