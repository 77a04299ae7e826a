"""Cells come in chunks: how many at a time, and how much memory there is, changes no answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

import scvec
from scvec.ingest.cells.source import CellSource
from scvec.model.training import (
    MAX_TRAINING_CELLS,
    MIN_TRAINING_CELLS,
    Labelled,
    training_budget,
    training_workers,
)
from scvec.stores.store.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory: Any, new_store: Callable, tiny_adata: Callable) -> tuple[Path, Path]:
    """A store with a reference of the default encoder, and a file of new cells."""
    folder = tmp_path_factory.mktemp("streaming")
    store = new_store(folder / "store")
    tiny_adata(90, 3).write_h5ad(folder / "ref.h5ad")
    tiny_adata(70, 3, seed=5).write_h5ad(folder / "new.h5ad")
    scvec.ingest_cells(
        store, [folder / "ref.h5ad"], name="r", label_key="cell_type", batch_key="donor", backbone="random:32"
    )
    return store, folder / "new.h5ad"


@pytest.fixture
def chunks_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def set_size(size: int) -> None:
        monkeypatch.setattr(CellSource, "chunk_size", size)

    return set_size


def same(a: Any, b: Any) -> None:
    for name in ("label", "label_knn", "label_head", "label_broad", "cl_id", "status", "cells"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(a.neighbors.indices, b.neighbors.indices)
    for name in ("vectors", "proba", "novelty", "confidence"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_annotations_do_not_depend_on_the_chunk(
    size: int, made: tuple[Path, Path], chunks_of: Callable
) -> None:
    whole = scvec.query(*made)
    chunks_of(size)
    same(scvec.query(*made), whole)


def test_chunks_that_are_worked_on_at_once_come_in_their_order(
    made: tuple[Path, Path], chunks_of: Callable, tmp_path: Path, new_store: Callable, monkeypatch: Any
) -> None:
    """Bit for bit: with one core or with several, each chunk is computed alone."""
    chunks_of(7)
    alone = scvec.query(*made)
    stores = [new_store(tmp_path / name) for name in ("one", "three")]
    options = {"name": "r", "label_key": "cell_type", "encoder": "pca"}
    scvec.ingest_cells(stores[0], [made[1]], **options)
    for module in ("engines", "model.training"):
        monkeypatch.setattr(f"scvec.{module}.n_cores", lambda: 3)
    together = scvec.query(*made)
    same(together, alone)
    np.testing.assert_array_equal(together.proba, alone.proba)
    scvec.ingest_cells(stores[1], [made[1]], **options)
    a, b = (json.loads(Store(store).generation.manifest.to_bytes()) for store in stores)
    assert {**a, "run": {}} == {**b, "run": {}}


def test_queries_of_one_cell_and_of_a_few(made: tuple[Path, Path], tmp_path: Path) -> None:
    cells = anndata.read_h5ad(made[1])
    whole = scvec.query(*made)
    cells[3:4].copy().write_h5ad(tmp_path / "one.h5ad")
    one = scvec.query(made[0], tmp_path / "one.h5ad", output=tmp_path / "out.h5ad")
    assert len(one) == 1 and one.label[0] == whole.label[3]
    np.testing.assert_array_equal(one.neighbors.indices[0], whole.neighbors.indices[3])
    assert anndata.read_h5ad(tmp_path / "out.h5ad").obs["scvec_label"].iloc[0] == whole.label[3]


def test_a_reference_does_not_depend_on_the_chunk_nor_on_the_memory(
    made: tuple[Path, Path], tmp_path: Path, new_store: Callable, chunks_of: Callable
) -> None:
    options = {"name": "r", "label_key": "cell_type", "encoder": "pca"}
    found = []
    for i, (size, memory) in enumerate([(2048, None), (7, "300M"), (13, "4G")]):
        chunks_of(size)
        store = new_store(tmp_path / str(i))
        scvec.ingest_cells(store, [made[1]], memory=memory, **options)
        found.append(scvec.stores.store.store.Store(store).reference("r"))
    for other in found[1:]:
        np.testing.assert_array_equal(other.vectors, found[0].vectors)
        assert other.meta["classes"] == found[0].meta["classes"]
        for name, values in found[0].tensors.items():
            np.testing.assert_allclose(other.tensors[name], values, rtol=1e-12, err_msg=name)


def test_only_a_small_memory_that_was_named_cuts_the_cells_trained_on() -> None:
    assert training_budget(None, 3000, 1000.0) == MAX_TRAINING_CELLS
    assert training_budget("4G", 3000, 1000.0) == MAX_TRAINING_CELLS
    assert MIN_TRAINING_CELLS < training_budget("2G", 3000, 1000.0) < MAX_TRAINING_CELLS
    assert training_budget("100M", 3000, 1000.0) == MIN_TRAINING_CELLS


def test_trainings_at_once_go_by_cores_and_by_the_memory_that_was_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("scvec.model.training.n_cores", lambda: 4)
    named = [training_workers(memory) for memory in (None, "100M", "2G", "4G", "64G")]
    assert named == [4, 1, 1, 3, 4]


def test_a_sample_for_training_keeps_rare_labels_and_the_seed() -> None:
    codes = np.r_[np.zeros(5000, np.int64), np.ones(60, np.int64), np.full(40, -1)]
    labelled = Labelled([], codes, ["a", "b"], None)
    rows = labelled.training_rows(3, 500)
    assert np.bincount(codes[rows]).tolist() == [440, 60]
    np.testing.assert_array_equal(rows, labelled.training_rows(3, 500))
    assert not np.array_equal(rows, labelled.training_rows(4, 500))


def test_less_memory_means_smaller_chunks(tiny_adata: Callable) -> None:
    cells = tiny_adata(600, 3)
    with CellSource.open(cells, memory="4G") as much, CellSource.open(cells, memory="1M") as little:
        assert 1 <= little.chunk_size < 600 < much.chunk_size
        most = np.diff(cells.X.indptr).max()
        assert little.chunk_size * most * 64 <= 2 * 2**20 / 16
        a, b = (np.concatenate([c.toarray() for c in s.chunks()]) for s in (much, little))
        np.testing.assert_array_equal(a, b)
