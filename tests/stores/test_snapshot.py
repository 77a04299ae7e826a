"""The shipped snapshot: complete, small, and correct for well-known genes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from scvec.base.errors import StoreError
from scvec.stores.knowledge.snapshot import Snapshot


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    return Snapshot.open()


@pytest.fixture(scope="module")
def genes(snapshot: Snapshot) -> pd.DataFrame:
    return snapshot.table("genes").to_pandas().set_index("gene_id")


def test_it_is_small_and_lists_its_sources(snapshot: Snapshot) -> None:
    facts = [f for f in snapshot.path.iterdir() if not f.name.startswith("gene_vector")]
    assert sum(f.stat().st_size for f in facts) < 10_000_000
    assert all(s["licence"] and s["version"] and s["url"] for s in snapshot.sources)
    for name, entry in snapshot.manifest["tables"].items():
        assert snapshot.table(name).num_rows == entry["rows"] > 0


def test_well_known_genes(genes: pd.DataFrame) -> None:
    ins = genes.loc["HGNC:6081"]
    assert (ins.symbol, ins.species, ins.entrez_id, ins["name"]) == ("INS", "human", 3630, "insulin")
    assert genes.loc["MGI:96572"].symbol == "Ins1"
    assert genes.loc["HGNC:11998"].entrez_id == 7157  # TP53
    assert genes.loc["HGNC:12029"].gene_type == "TR"  # TRAC
    assert genes.index.is_unique
    assert not genes["symbol"].str.strip().eq("").any()
    assert genes[genes.species == "mouse"].entrez_id.isna().all()


def test_entrez_ids_are_unique(genes: pd.DataFrame) -> None:
    assert not genes["entrez_id"].dropna().duplicated().any()


@pytest.mark.parametrize(
    ("human", "mouse"),
    [("INS", "Ins1"), ("INS", "Ins2"), ("PPY", "Ppy"), ("PRSS1", "Prss1"), ("TP53", "Trp53"),
     ("PPIA", "Ppia"),     ("FCGR3A", "Fcgr4"), ("MALAT1", "Malat1")],
)  # fmt: skip
def test_orthologs(snapshot: Snapshot, genes: pd.DataFrame, human: str, mouse: str) -> None:
    pairs = snapshot.table("orthologs").to_pandas()
    named = set(zip(pairs.gene_id.map(genes.symbol), pairs.other_id.map(genes.symbol), strict=True))
    assert (human, mouse) in named


def test_one_to_one_means_one_to_one(snapshot: Snapshot, genes: pd.DataFrame) -> None:
    pairs = snapshot.table("orthologs").to_pandas()
    single = pairs[pairs.kind == "one2one"]
    for column in ("gene_id", "other_id"):
        assert not pairs[column][pairs[column].isin(single[column])].duplicated().any()
        assert pairs[column].isin(genes.index).all()
    assert not pairs.duplicated(["gene_id", "other_id"]).any()


def test_every_gene_has_one_short_description(snapshot: Snapshot, genes: pd.DataFrame) -> None:
    texts = snapshot.table("descriptions").to_pandas().set_index("gene_id")
    assert texts.index.is_unique
    assert set(texts.index) == set(genes.index)
    assert "insulin" in texts.loc["HGNC:6081"].text
    assert texts.loc["HGNC:6081"].kind == "composed"
    assert texts.loc["MGI:96572"].kind == "borrowed"
    assert texts.loc["MGI:96572"].text.startswith("Ins1, a protein-coding mouse gene; ortholog of human INS")
    assert texts.text.str.len().quantile(0.99) <= 310


def test_go_has_no_annotations_without_data_and_is_closed(snapshot: Snapshot) -> None:
    annotations, terms, parents = (
        snapshot.table(t).to_pandas() for t in ("go_annotations", "go_terms", "go_parents")
    )
    assert not annotations.evidence.str.split("|").map(lambda e: "ND" in e).any()
    known = set(terms.go_id)
    assert set(annotations.go_id) <= known
    assert set(parents.parent_id) <= known
    ins = set(annotations[annotations.gene_id == "HGNC:6081"].go_id)
    assert "GO:0005179" in ins  # hormone activity


def test_cell_ontology(snapshot: Snapshot) -> None:
    terms = dict(snapshot.table("cl_terms").to_pandas().itertuples(index=False))
    assert terms["CL:0000236"] == "B cell"
    above = snapshot.table("cl_ancestors").to_pandas()
    above = above[above.cl_id == "CL:0000236"].set_index("ancestor_id").distance
    assert above["CL:0000945"] == 1  # lymphocyte of B lineage
    assert above["CL:0000542"] > 1  # lymphocyte


def test_a_damaged_table_is_refused(snapshot: Snapshot, tmp_path: Path) -> None:
    copy = tmp_path / "snapshot"
    shutil.copytree(snapshot.path, copy)
    raw = bytearray((copy / "cl_terms.parquet").read_bytes())
    raw[len(raw) // 2] ^= 1
    (copy / "cl_terms.parquet").write_bytes(raw)
    with pytest.raises(StoreError, match="damaged"):
        Snapshot.open(copy).table("cl_terms")
    (copy / "genes.parquet").unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        Snapshot.open(copy).table("genes")


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"format": 99})])
def test_another_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "snapshot.json").write_text(text)
    with pytest.raises(StoreError):
        Snapshot.open(tmp_path)
