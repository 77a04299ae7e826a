"""Differences between two versions, and that only changed texts are encoded again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_store import cells
from some_answers import answer, genes

import scvec.model.gene_vectors as texts
from scvec.backbones import parse_spec
from scvec.backbones.controls import RandomBackbone
from scvec.base.errors import InputError
from scvec.base.types import Description, Gene
from scvec.stores.store.store import Store
from scvec.workflows.diff import diff


class Counting(RandomBackbone):
    """Notes which texts it was given."""

    def __init__(self) -> None:
        super().__init__(8, "default")
        self.seen: list[str] = []

    def encode(self, texts: Sequence[str]) -> Any:
        self.seen += texts
        return super().encode(texts)


@pytest.fixture
def backbone(monkeypatch: pytest.MonkeyPatch) -> Counting:
    made = Counting()
    monkeypatch.setattr(texts, "load_backbone", lambda spec, *args, **kwargs: made)
    return made


def described(n: int, text: str, kind: Any = "human") -> Description:
    return Description(f"HGNC:{n}", text, "refseq" if kind == "human" else "made", "1", "2026-01-01", kind)


def encode(store: Store, backbone: Counting) -> list[str]:
    """Encode all genes of a store as a command does; return the texts that went through the backbone."""
    backbone.seen.clear()
    with store.begin("ingest embeddings") as txn:
        kb = txn.open_knowledge()
        done = texts.encode_genes(kb, txn.vectors(), kb.genes().gene_id.tolist(), parse_spec("random:8"))
        txn.put_space(done.space, done.table, done.vectors)
        txn.commit()
    return sorted(backbone.seen)


@pytest.fixture
def store(tmp_path: Path, backbone: Counting) -> Store:
    """Generation 1: twenty genes with texts and vectors, and a reference."""
    store = Store.open(tmp_path / "store", create=True)
    with store.begin("ingest genes") as txn:
        kb = txn.open_knowledge()
        kb.upsert_genes(genes(20))
        kb.upsert_descriptions([described(n, f"Text {n}.") for n in range(20)])
        done = texts.encode_genes(kb, txn.vectors(), kb.genes().gene_id.tolist(), parse_spec("random:8"))
        txn.put_space(done.space, done.table, done.vectors)
        txn.put_reference("a", **cells())
        txn.put_reference("b", **cells())
        txn.commit()
    return store


def change(store: Store) -> None:
    with store.begin("ingest genes --source ncbi") as txn:
        kb = txn.open_knowledge()
        kb.upsert_descriptions([described(n, f"New text {n}.") for n in (3, 5, 7)])
        txn.commit()


def test_changed_texts_alone_are_encoded_again(store: Store, backbone: Counting) -> None:
    assert len(backbone.seen) == 20
    assert encode(store, backbone) == []
    change(store)
    assert encode(store, backbone) == ["New text 3.", "New text 5.", "New text 7."]
    assert encode(store, backbone) == []
    report = diff(store.path, 1)
    (space,) = report.spaces
    assert (space.added, space.changed, space.removed) == (0, 3, 0)
    assert space.what == f"{next(iter(store.spaces()))} (random:8)"
    (changed,) = report.descriptions
    assert (changed.what, changed.added, changed.changed, changed.removed) == ("human refseq", 0, 3, 0)
    assert [(e.before, e.after) for e in report.examples] == [
        (f"Text {n}.", f"New text {n}.") for n in (3, 5, 7)
    ]


def test_an_answer_that_says_the_same_encodes_nothing(store: Store, backbone: Counting) -> None:
    with store.begin("ingest genes") as txn:
        kb = txn.open_knowledge()
        same = kb.descriptions(["HGNC:4"])["HGNC:4"]
        kb.upsert_descriptions([replace(same, source="ncbi", retrieved_at="2027-01-01", source_version="9")])
        txn.commit()
    assert encode(store, backbone) == []


def test_all_that_can_differ(store: Store, backbone: Counting) -> None:
    with store.begin("ingest genes") as txn:
        kb = txn.open_knowledge()
        kb.upsert_genes([Gene("HGNC:99", "human", "G99"), Gene("MGI:1", "mouse", "g1")])
        kb._con.execute("UPDATE genes SET symbol = 'RENAMED' WHERE gene_id = 'HGNC:1'")
        kb._con.execute("DELETE FROM genes WHERE gene_id = 'HGNC:2'")
        kb._con.execute("DELETE FROM descriptions WHERE gene_id = 'HGNC:2'")
        kb.upsert_descriptions([described(99, "Composed.", "composed"), described(3, "New.")])
        txn.journal().write([answer(4)])
        kb.absorb(txn.journal())
        txn.remove_reference("b")
        txn.put_reference("a", **cells(seed=2))
        txn.put_reference("c", **cells())
        txn.commit()
    encode(store, backbone)
    report = diff(store.path, "1", "current")
    assert (report.old, report.new, report.same) == (1, 3, False)
    assert {c.what: (c.added, c.changed, c.removed) for c in report.genes} == {
        "human": (1, 1, 1),
        "mouse": (1, 0, 0),
    }
    assert {c.what: (c.added, c.changed, c.removed) for c in report.descriptions} == {
        "human refseq": (0, 1, 1),
        "human ncbi": (1, 0, 0),
        "composed made": (1, 0, 0),
    }
    assert [(c.what, c.added) for c in report.facts] == [("ncbi", 1)]
    assert report.references == {"added": ["c"], "replaced": ["a"], "removed": ["b"]}
    (space,) = report.spaces
    # HGNC:3 by its file's text, HGNC:4 by NCBI's, and two genes that have a name only or a new text.
    assert (space.added, space.changed, space.removed) == (2, 2, 1)
    examples = {(e.state, e.gene_id): e for e in report.examples}
    assert examples["renamed", "HGNC:1"].before == "G1" and examples["renamed", "HGNC:1"].after == "RENAMED"
    assert examples["removed", "HGNC:2"].symbol == "G2"
    text = str(report)
    for part in (
        "genes, human: 1 added, 1 changed, 1 removed",
        "references replaced: a",
        "- Text 3.",
        "+ New.",
    ):
        assert part in text, part
    assert json.loads(json.dumps(report.to_dict()))["same"] is False
    # The other way round, what came goes.
    back = diff(store.path, "current", 1, limit=0)
    assert {c.what: (c.added, c.changed, c.removed) for c in back.genes}["human"] == (1, 1, 1)
    assert back.references == {"added": ["b"], "replaced": ["a"], "removed": ["c"]} and back.examples == []


def test_the_same_and_the_empty(store: Store) -> None:
    report = diff(store.path, 1, 1)
    assert report.same and report.lines()[-1] == "nothing differs"
    first = diff(store.path, 0, limit=2)
    assert first.descriptions[0].added == 20 and first.spaces[0].added == 20
    assert first.references["added"] == ["a", "b"] and len(first.examples) == 4
    assert diff(store.path, "current", 0).descriptions[0].removed == 20


def test_deleted_versions_are_an_error(store: Store) -> None:
    change(store)
    for number in (7, -1, 3):
        with pytest.raises(InputError, match="it has: 0, 1, 2"):
            diff(store.path, number)
    with pytest.raises(InputError, match="not the number"):
        diff(store.path, "yesterday")
    with pytest.raises(InputError):
        diff(store.path, 1, limit=-1)
    store.compact()
    with pytest.raises(InputError, match="it has: 2;"):
        diff(store.path, 1)
    assert diff(store.path, 2).same


def test_an_older_generation_is_held_while_it_is_read(store: Store) -> None:
    change(store)
    older = store.at(1)
    assert store.compact().kept == [1]
    with older.knowledge() as kb:
        assert kb.descriptions(["HGNC:3"])["HGNC:3"].text == "Text 3."
    with store.knowledge() as kb:
        assert kb.descriptions(["HGNC:3"])["HGNC:3"].text == "New text 3."


def test_long_texts_are_shown_from_where_they_differ(store: Store) -> None:
    long = "The same beginning of a text. " * 20
    for end in ("Old end.", "New end."):
        with store.begin("ingest genes") as txn:
            txn.open_knowledge().upsert_descriptions([described(1, long + end)])
            txn.commit()
    lines = diff(store.path, 2, 3).lines()
    assert lines[-2].endswith("Old end.") and lines[-1].endswith("New end.") and max(map(len, lines)) <= 100
