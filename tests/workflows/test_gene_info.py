"""What is known of a gene: every text with its source, which one is encoded, and where its vectors are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from some_answers import AT, answer, failure, written

from scvec.base.errors import InputError
from scvec.base.types import Description, Gene, Space
from scvec.model.gene_vectors import gene_table
from scvec.stores.store.store import Store
from scvec.workflows.gene_info import gene_info

GENES = [
    Gene("HGNC:1", "human", "G1", None, "", "protein-coding", ("ENSG00000000001",), ("TWIN",), ("OLD1",)),
    Gene("HGNC:2", "human", "G2", 1002, "gene 2", aliases=("TWIN",)),
    Gene("MGI:3", "mouse", "G3", 1003, "gene 3"),
    Gene("HGNC:4", "human", "INSULIN", 4),
]
COMPOSED = Description("HGNC:1", "G1 takes part in things.", "scvec-snapshot", "2026.06", "", "composed")
DEFAULT = Space("minilm", "r1", "ab" * 32, "default", "mean", 4, True)
NAMES = Space("minilm", "r1", "ab" * 32, "{symbol} of {species}", "mean", 4, True)
STRANGE = Space("minilm", "r1", "ab" * 32, "{of a newer scvec}", "mean", 4, True)


def put_vectors(txn, space: Space, gene_ids: list[str]) -> None:
    if space is STRANGE:
        table = pd.DataFrame(
            {
                "gene_id": gene_ids,
                "species": "human",
                "symbol": "x",
                "text_sha256": ["0" * 64] * len(gene_ids),
            }
        )
    else:
        table = gene_table(txn.open_knowledge(), gene_ids, space.template)
    txn.put_space(space, table, np.ones((len(gene_ids), 4), np.float32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Store.open(tmp_path_factory.mktemp("info") / "store", create=True)
    with store.begin("ingest embeddings") as txn:
        kb = txn.open_knowledge()
        kb.upsert_genes(GENES, source="file", source_version="7")
        kb.upsert_descriptions([COMPOSED])
        put_vectors(txn, DEFAULT, ["HGNC:1", "HGNC:2"])
        put_vectors(txn, NAMES, ["HGNC:1"])
        put_vectors(txn, STRANGE, ["HGNC:1"])
        txn.commit()
    with store.begin("ingest genes") as txn:
        txn.journal().write([answer(1), written(1)], [failure(1, "mygene", final=True, reason="not found")])
        txn.open_knowledge().absorb(txn.journal())
        txn.commit()
    return store.path


def test_every_text_and_where_it_comes_from(folder: Path) -> None:
    report = gene_info(folder, ["G1"])
    (gene,) = report.genes
    assert (gene.asked, gene.gene_id, gene.symbol, gene.entrez_id) == ("G1", "HGNC:1", "G1", 1001)
    assert (gene.ensembl_ids, gene.previous) == (["ENSG00000000001"], ["OLD1"])
    assert gene.aliases == ["A1", "TWIN"] and (gene.source, gene.source_version) == ("file", "7")
    assert [(t.kind, t.source, t.best) for t in gene.texts] == [
        ("human", "ncbi", True),
        ("llm", "llm", False),
        ("composed", "scvec-snapshot", False),
    ]
    human, llm, _ = gene.texts
    assert human.text == answer(1).descriptions[0].text and human.sha256 == answer(1).descriptions[0].sha256
    assert (human.source_version, human.retrieved_at) == ("2026", AT)
    assert human.provenance == {"provided_by": "RefSeq"}
    assert (llm.model, llm.prompt, llm.provenance["tokens"]) == ("m", "p1", 7)
    assert gene.facts[0].facts == dict(answer(1).note.facts) and gene.facts[0].source == "ncbi"
    (failed,) = gene.failures
    assert (failed.source, failed.reason, failed.final) == ("mygene", "not found", True)
    # The vector was made of the composed text, before NCBI's came.
    states = {v.fingerprint: v.state for v in gene.vectors}
    assert states == {
        DEFAULT.fingerprint: "older", NAMES.fingerprint: "current", STRANGE.fingerprint: "unknown"
    }  # fmt: skip


def test_a_vector_of_the_current_text(folder: Path) -> None:
    (gene,) = gene_info(folder, ["1002"]).genes
    assert gene.asked == "1002" and gene.texts == [] and gene.facts == []
    assert [(v.fingerprint, v.state) for v in gene.vectors] == [(DEFAULT.fingerprint, "current")]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("HGNC:1", ["HGNC:1"]), ("OLD1", ["HGNC:1"]), ("ENSG00000000001.3", ["HGNC:1"]), ("g1", ["HGNC:1"]),
     ("entrez:1003", ["MGI:3"]), ("MGI:3", ["MGI:3"]), ("TWIN", ["HGNC:1", "HGNC:2"])],
)  # fmt: skip
def test_any_kind_of_name_is_accepted(folder: Path, name: str, expected: list[str]) -> None:
    report = gene_info(folder, [name])
    assert [g.gene_id for g in report.genes] == expected
    assert {g.asked for g in report.genes} == {name}
    assert bool(report.notes) == (len(expected) > 1)


def test_names_that_are_not_known(folder: Path) -> None:
    report = gene_info(folder, ["INSULN", "G2", "G2"])
    assert [g.gene_id for g in report.genes] == ["HGNC:2"]
    assert report.unknown == {"INSULN": ["INSULIN"]} and "INSULN" in report.notes[0]
    with pytest.raises(InputError, match="INSULN") as caught:
        gene_info(folder, ["INSULN"])
    assert "INSULIN" in caught.value.fix
    with pytest.raises(InputError):
        gene_info(folder, ["G3"], species="human")
    with pytest.raises(InputError):
        gene_info(folder, [])
    with pytest.raises(InputError):
        gene_info(folder, ["G3"], species="rat")


def test_as_text_and_as_json(folder: Path) -> None:
    report = gene_info(folder, ["G1", "G2"])
    lines = report.lines()
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    for part in ("G1 (human): gene 1", "Entrez 1001", "* human text from ncbi 2026", "RefSeq", "model m",
                 "summary: Gene 1", "of an older text", "mygene has no answer (final): not found",
                 "no text", "previous symbols: OLD1"):  # fmt: skip
        assert part in text, part
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["genes"][0]["texts"][0]["provenance"] == {"provided_by": "RefSeq"}
    assert data["genes"][0]["facts"][0]["facts"]["lineage"] is None


def test_no_escape_code_reaches_the_terminal(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    with store.begin("x") as txn:
        kb = txn.open_knowledge()
        kb.upsert_genes([Gene("HGNC:1", "human", "G1", name="a\x1b[2Jb")])
        kb.upsert_descriptions([Description("HGNC:1", "t\x1b]0;x\x07 e\nx", "s", "", "", "human")])
        txn.commit()
    assert not any("\x1b" in line or "\x07" in line for line in gene_info(store.path, ["G1"]).lines())
