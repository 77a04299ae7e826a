"""A kind of index is one class, registered in one file, and one line in the table of kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from scvec.base.errors import InputError, StoreError
from scvec.base.types import Float32, Int64, Neighbors
from scvec.stores import index as registry
from scvec.stores.index import build_index, index, index_class, index_kinds, open_index
from scvec.stores.index.distances import Index
from scvec.stores.store.store import Store

# -- a toy index, like a new file in scvec/stores/index --------------------------------------------


@index("toy", extension="txt", exact=True)
class ToyIndex(Index):
    """Brute force over vectors that are stored as decimal text."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self._rows = np.empty((0, dim), dtype=np.float32)

    @property
    def n(self) -> int:
        return len(self._rows)

    @property
    def dim(self) -> int:
        return int(self._rows.shape[1])

    def vectors(self) -> Float32:
        return self._rows

    def add(self, vectors: Float32) -> None:
        self._rows = np.concatenate([self._rows, vectors])

    def _search(self, queries: Float32, k: int, rows: Int64 | None) -> Neighbors:
        among = range(self.n) if rows is None else rows.tolist()
        indices = np.full((len(queries), k), -1, dtype=np.int64)
        distances = np.full((len(queries), k), np.inf, dtype=np.float32)
        for i, query in enumerate(queries):
            near = sorted((float(((self._rows[r] - query) ** 2).sum()), r) for r in among)[:k]
            for j, (distance, row) in enumerate(near):
                indices[i, j], distances[i, j] = row, distance
        return Neighbors(indices, distances)

    def save(self, path: Path) -> None:
        np.savetxt(path, self._rows, fmt="%d", header=str(self.dim))

    @classmethod
    def load(cls, path: Path, vectors: Float32 | None = None, settings: object = None) -> ToyIndex:
        made = cls(int(path.read_text().split()[1]))
        made.add(np.loadtxt(path, dtype=np.float32, ndmin=2).reshape(-1, made.dim))
        return made


# -- use of the toy
# ----------------------------------------------------------------------------------------------


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.MODULES, "toy", __name__)


def vectors(n: int, seed: int) -> Float32:
    return np.random.default_rng(seed).integers(0, 4, (n, 6)).astype(np.float32)


@pytest.mark.usefixtures("toy")
def test_a_toy_is_built_saved_and_opened(tmp_path: Path) -> None:
    made, truth = build_index(vectors(40, 0), "toy"), build_index(vectors(40, 0), "flat")
    assert isinstance(made, Index) and (made.kind, made.extension) == ("toy", "txt")
    made.save(tmp_path / "i.txt")
    again = open_index(tmp_path / "i.txt", "toy", n=40, dim=6)
    for subset in (None, np.array([3, 9, 30, 9])):
        found, wanted = (
            again.search(vectors(9, 1), 7, subset=subset),
            truth.search(vectors(9, 1), 7, subset=subset),
        )
        np.testing.assert_array_equal(found.indices, wanted.indices)
        np.testing.assert_array_equal(found.distances, wanted.distances)
    with pytest.raises(StoreError):
        open_index(tmp_path / "i.txt", "toy", n=41, dim=6)


@pytest.mark.usefixtures("toy")
def test_a_store_holds_grows_verifies_and_searches_a_toy(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    table = pd.DataFrame({"x": range(45)}, index=[f"c{i}" for i in range(45)])
    with store.begin("put") as txn:
        made = build_index(vectors(40, 0), "toy")
        tensors = {"w": np.ones(1, dtype=np.float32)}
        txn.put_reference("r", meta={}, tensors=tensors, obs=table[:40], vectors=vectors(40, 0), index=made)
        txn.add_cells("r", meta={}, obs=table, vectors=vectors(5, 2))
        txn.drop_cells("r", np.array([1, 42]), meta={}, tensors=tensors, obs=table.drop(index=["c1", "c42"]))
        txn.commit()
    stored = Store(store.path).reference("r")
    assert stored.index_kind == "toy" and isinstance(stored.index.segments[0], ToyIndex)
    left = np.delete(np.concatenate([vectors(40, 0), vectors(5, 2)]), [1, 42], axis=0)
    found, truth = (
        stored.searcher(exact=True).search(vectors(9, 1), 7),
        build_index(left).search(vectors(9, 1), 7),
    )
    np.testing.assert_array_equal(found.indices, truth.indices)
    assert store.verify().problems == []


@pytest.mark.usefixtures("toy")
def test_choices_and_messages_list_the_toy() -> None:
    assert index_kinds()[-1] == "toy"
    with pytest.raises(InputError) as error:
        index_class("hnsw")
    assert "toy" in error.value.fix
    from scvec.model.cell_index import check_index, index_kind

    check_index("toy", 0.9)
    assert index_kind("toy", vectors(3, 0), None) == "toy"
    with pytest.raises(InputError) as error:
        check_index("hnsw", 0.9)
    assert "toy" in error.value.fix


def test_the_command_line_offers_every_kind() -> None:
    from scvec.cli.main import cli

    shown = CliRunner().invoke(cli, ["ingest", "cells", "--help"], env={"COLUMNS": "200"}).output
    assert "|".join(("auto", *index_kinds())) in shown


def test_every_kind_in_the_table_registers_itself() -> None:
    for kind in index_kinds():
        assert index_class(kind).kind == kind
    with pytest.raises(StoreError):
        open_index(Path("nowhere"), "hnsw")
