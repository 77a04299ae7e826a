"""Tests of the import of texts and vectors of earlier systems into a store."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_store import tree

from scvec.base.errors import InputError
from scvec.base.types import Description, Gene
from scvec.stores.store.store import Store
from scvec.workflows.import_legacy import import_legacy

GENES = [
    Gene("HGNC:6081", "human", "INS", 3630, "insulin", ensembl_ids=("ENSG00000254647",), previous=("IDDM2",)),
    Gene("HGNC:4191", "human", "GCG", 2641, "glucagon"),
    Gene("HGNC:9751", "human", "QARS1", 5859, aliases=("QARS",)),
    Gene("HGNC:3418", "human", "EPRS1", 2058, aliases=("QARS",)),
    Gene("MGI:96573", "mouse", "Ins2", 16334),
]
VECTORS = {
    "INS": [1.0, 0.0, 0.0],
    "GCG": [0.0, 1.0, 0.0],
    "QARS": [0, 0, 1.0],
    "IDDM2": [9.0, 9, 9],
    "WHAT": [1.0, 1, 1],
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    with Store.open(folder, create=True).begin("fill") as txn:
        kb = txn.open_knowledge()
        kb.upsert_genes(GENES)
        kb.upsert_descriptions(
            [Description("HGNC:6081", "Insulin, of NCBI.", "ncbi", "1", "2026-01-01T00:00:00", "human")]
        )
        txn.commit()
    return folder


def texts(folder: Path) -> dict[str, list[Description]]:
    with Store(folder).knowledge() as kb:
        return {g.gene_id: kb.all_descriptions(g.gene_id) for g in GENES if kb.all_descriptions(g.gene_id)}


def test_texts_become_descriptions_with_where_they_come_from(store: Path, tmp_path: Path) -> None:
    pages = {
        "17": {
            "Official Symbol": "GCG",
            "Primary source": "HGNC:HGNC:4191",
            "Organism": "Homo sapiens",
            "Summary": "Glucagon. [provided by RefSeq, Jul 2008]",
            "Expression": "pancreas",
        },
        "2641": {
            "error": "none",
            "Official Symbol": "QARS1",
            "Organism": "Homo sapiens",
            "gpt_Summary": "QARS1 is.",
        },
        "3": {"Official Symbol": "INS", "Primary source": "HGNC:HGNC:4191", "Summary": "Whose?"},
        "4": {},
    }
    path = tmp_path / "Human genes.json"
    path.write_text(json.dumps(pages))
    report = import_legacy(store, [path])
    [file] = report.files
    assert (file.read, file.matched, file.skipped["refused"], file.dim) == (4, 2, 2, 0)
    assert report.generation == "2" and "3: " in " ".join(file.examples["refused"])
    got = texts(store)
    [gcg] = got["HGNC:4191"]
    assert (gcg.text, gcg.kind, gcg.source) == ("Glucagon.", "human", "legacy:human-genes")
    assert gcg.source_version == "Jul 2008" and gcg.retrieved_at == ""
    origin = json.loads(gcg.provenance)
    assert origin["provided_by"] == "RefSeq" and origin["key"] == "17" and len(origin["file_sha256"]) == 64
    [model] = got["HGNC:9751"]
    assert (model.kind, model.model) == ("llm", "unknown")
    assert [d.source for d in got["HGNC:6081"]] == ["ncbi"]


def test_a_text_with_a_date_is_preferred_to_a_legacy_one(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"INS": "Insulin, of long ago."}))
    import_legacy(store, [path])
    with Store(store).knowledge() as kb:
        assert kb.descriptions(["HGNC:6081"])["HGNC:6081"].source == "ncbi"
        assert len(kb.all_descriptions("HGNC:6081")) == 2


def write_vectors(path: Path, vectors: dict[str, Any]) -> Path:
    path.write_bytes(pickle.dumps(vectors))
    return path


def test_vectors_become_a_space_with_each_vector_on_its_gene(store: Path, tmp_path: Path) -> None:
    report = import_legacy(store, [write_vectors(tmp_path / "GenePT.pickle", VECTORS)])
    [file] = report.files
    assert (file.matched, file.read) == (2, 5)
    assert file.skipped == {"unknown": 1, "ambiguous": 1, "refused": 0, "repeated": 1}
    space = Store(store).space(file.space)
    assert space is not None
    assert (space.space.backbone, space.space.template, space.space.pooling) == (
        "legacy:genept",
        "unknown",
        "unknown",
    )
    assert space.space.normalized and len(space.space.weights_sha256) == 64
    rows = dict(zip(space.genes["gene_id"], space.vectors.tolist(), strict=True))
    assert rows == {"HGNC:6081": [1, 0, 0], "HGNC:4191": [0, 1, 0]}
    assert space.genes["text_sha256"].is_unique
    lines = "\n".join(report.lines())
    assert "IDDM2: as INS" in lines and "QARS: HGNC:3418 or HGNC:9751" in lines and "WHAT" in lines
    assert "--backbone stored:genept" in lines


def test_importing_twice_changes_nothing(store: Path, tmp_path: Path) -> None:
    files = [write_vectors(tmp_path / "v.pkl", VECTORS), tmp_path / "t.json"]
    files[1].write_text(json.dumps({"GCG": "Glucagon."}))
    first = import_legacy(store, files)
    again = import_legacy(store, files)
    assert first.generation == again.generation == "2"


def test_dry_run_changes_nothing_and_says_the_same(store: Path, tmp_path: Path) -> None:
    path = write_vectors(tmp_path / "v.pkl", VECTORS)
    before = tree(store)
    dry = import_legacy(store, [path], dry_run=True)
    assert tree(store) == before
    assert dry.generation == "" and "nothing was changed" in dry.lines()[-2]
    assert import_legacy(store, [path]).files == dry.files


def test_nothing_is_taken_of_several_files_when_one_is_refused(store: Path, tmp_path: Path) -> None:
    good = write_vectors(tmp_path / "v.pkl", VECTORS)
    bad = tmp_path / "bad.pkl"
    bad.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    before = tree(store)
    with pytest.raises(InputError, match=r"os\.system"):
        import_legacy(store, [good, bad])
    assert tree(store) == before


def test_no_known_gene_is_a_warning(store: Path, tmp_path: Path) -> None:
    report = import_legacy(store, [write_vectors(tmp_path / "v.pkl", {"A1": [1.0, 2.0]})])
    assert report.notes[0].startswith("warning: v.pkl: no gene is known")
    assert report.files[0].space == ""


def test_names_and_options(store: Path, tmp_path: Path) -> None:
    path = write_vectors(tmp_path / "v.pkl", VECTORS)
    assert import_legacy(store, [path], name="mine", dry_run=True).files[0].name == "mine"
    for files, options, code, where in (
        ([path], {"name": "a/b"}, "bad-name", "--name"),
        ([path], {"species": "rart"}, "unknown-choice", "--species"),
        ([path, path], {"name": "x"}, "bad-name", "x, x"),
        ([path, tmp_path / "v.json"], {}, "bad-name", "v, v"),
    ):
        with pytest.raises(InputError) as caught:
            import_legacy(store, files, **options)  # type: ignore[arg-type]
        assert (caught.value.code, caught.value.where) == (code, where)


def test_a_stored_space_serves_as_backbone(store: Path, tmp_path: Path) -> None:
    from scvec.backbones import load_backbone, parse_spec
    from scvec.model.gene_vectors import stored_genes

    [file] = import_legacy(store, [write_vectors(tmp_path / "v.pkl", VECTORS)], name="gpt").files
    wanted = ["HGNC:9751", "HGNC:4191", "HGNC:6081"]
    with Store(store).begin("look") as txn:
        kb = txn.open_knowledge()
        for name in ("gpt", "legacy:gpt", file.space):
            got = stored_genes(txn, kb, wanted, parse_spec(f"stored:{name}"))
            np.testing.assert_allclose(got.vectors, [[0.5, 0.5, 0], [0, 1, 0], [1, 0, 0]])
            assert got.table["symbol"].tolist() == ["QARS1", "GCG", "INS"]
            assert got.space.fingerprint == file.space and (got.n_encoded, got.n_cached) == (0, 2)
        assert "1 of 3 genes have no vector" in txn.notes[0]
        shuffled = stored_genes(txn, kb, wanted, parse_spec("permuted:stored:gpt")).vectors
        assert sorted(map(tuple, shuffled.tolist())) == sorted(map(tuple, got.vectors.tolist()))
        with pytest.raises(InputError, match="1 genes") as caught:
            stored_genes(txn, kb, ["MGI:96573"], parse_spec("stored:gpt"))
        assert caught.value.code == "unknown-space"
        with pytest.raises(InputError, match="'other'") as caught:
            stored_genes(txn, kb, wanted, parse_spec("stored:other"))
        assert caught.value.code == "unknown-space" and "gpt" in caught.value.fix
    with pytest.raises(InputError, match="stored:gpt"):
        load_backbone(parse_spec("stored:gpt"))


def test_two_spaces_of_one_name_are_told_apart_by_fingerprint(store: Path, tmp_path: Path) -> None:
    from scvec.backbones import parse_spec
    from scvec.model.gene_vectors import stored_genes

    prints = [
        import_legacy(store, [write_vectors(tmp_path / "v.pkl", {"INS": [k, 1.0]})]).files[0].space
        for k in (1.0, 2.0)
    ]
    with Store(store).begin("look") as txn:
        kb = txn.open_knowledge()
        with pytest.raises(InputError, match="2 spaces") as caught:
            stored_genes(txn, kb, ["HGNC:6081"], parse_spec("stored:v"))
        assert caught.value.code == "space-not-named"
        assert all(p in caught.value.fix for p in prints)
        got = stored_genes(txn, kb, ["HGNC:6081"], parse_spec(f"stored:{prints[1]}"))
        assert got.vectors.tolist() == [[2.0, 1.0]]


def test_a_reference_of_stored_vectors(tmp_path: Path, tiny_adata: Any) -> None:
    from scvec.workflows.ingest_cells import ingest_cells
    from scvec.workflows.query import query

    adata = tiny_adata(60, 3)
    folder = tmp_path / "store"
    with Store.open(folder, create=True).begin("fill") as txn:
        txn.open_knowledge().upsert_genes(
            [Gene(f"HGNC:{i}", "human", name) for i, name in enumerate(adata.var_names, 1)]
        )
        txn.commit()
    rng = np.random.default_rng(0)
    vectors = {name: rng.normal(size=16).tolist() for name in adata.var_names[5:]}
    import_legacy(folder, [write_vectors(tmp_path / "gpt.pkl", vectors)])
    before = Store(folder).spaces()
    report = ingest_cells(
        folder, [adata], name="r", label_key="cell_type", backbone="stored:gpt", encoder="weighted"
    )
    assert any("no vector in the space gpt" in note for note in report.notes)
    after = Store(folder).spaces()
    assert {f: s.n for f, s in after.items()} == {f: s.n for f, s in before.items()}
    assert len(query(folder, tiny_adata(30, 3, seed=1), reference="r").to_table()) == 30
