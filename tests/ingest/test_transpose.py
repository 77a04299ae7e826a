"""Matrices that are transposed in temporary files; oracle: scipy, and the same in memory."""

from __future__ import annotations

import errno
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.base import arrays as base_arrays
from scvec.base.errors import InputError, ResourceError
from scvec.ingest.cells import transpose
from scvec.ingest.cells.matrix import is_only_here, open_matrix
from scvec.ingest.cells.source import CellSource

ORIGIN = transpose.Origin("X", "is CSC", "store it as CSR")
PLENTY = 2**30
F4 = np.dtype(np.float32)


def work(n: int) -> int:
    """Memory in which ``n`` values may be in work."""
    return n * transpose._WORK_SHARE * transpose._WORK_BYTES


def in_file(made: transpose.Transposed) -> bool:
    return isinstance(made.data, np.memmap) and isinstance(made.indices, np.memmap)


def cut(columns: tuple[np.ndarray, ...], size: int) -> Iterator[transpose.Piece]:
    for a in range(0, len(columns[0]), size):
        cells, genes, data = (column[a : a + size] for column in columns)
        yield cells, genes, data


@st.composite
def values(draw: st.DrawFn) -> tuple[tuple[np.ndarray, ...], tuple[int, int]]:
    n_obs, n_vars = draw(st.integers(1, 30)), draw(st.integers(1, 9))
    n = draw(st.integers(0, 200))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cells = rng.integers(0, n_obs, n, dtype=np.int32)
    if draw(st.booleans()):
        cells[:] = n_obs // 2  # all of them in one cell, others empty
    if draw(st.booleans()):
        cells.sort()
    data = rng.normal(size=n).astype(np.float32)  # added up in another order they differ
    return (cells, rng.integers(0, n_vars, n, dtype=np.int32), data), (n_obs, n_vars)


@settings(max_examples=150, deadline=None)
@given(values(), st.integers(1, 40), st.integers(1, 60), st.booleans())
def test_however_little_memory_there_is_the_matrix_is_the_same(given_, k, size, once) -> None:
    columns, shape = given_
    counts = np.bincount(columns[0], minlength=shape[0])
    n = len(columns[0])

    def turn(memory: int) -> transpose.Transposed:
        pieces = cut(columns, min(size, transpose.values_within(memory)))
        if once:
            return transpose.collected(pieces, n, shape, F4, ORIGIN, memory)
        return transpose.by_cell(pieces, counts, shape[1], F4, ORIGIN, memory)

    large, small = turn(PLENTY), turn(work(k))
    assert not in_file(large) and in_file(small) == (12 * n > work(k) // 8)
    for part in ("data", "indices", "indptr"):
        assert getattr(large, part).tobytes() == getattr(small, part).tobytes()
    order = np.argsort(columns[0], kind="stable")
    np.testing.assert_array_equal(small.indices, columns[1][order])
    np.testing.assert_array_equal(small.data, columns[2][order])
    np.testing.assert_array_equal(small.indptr, np.append(0, np.cumsum(counts)))

    reader, other = (open_matrix(made, "X", *shape, PLENTY) for made in (small, large))
    rows = [reader.rows(a, min(a + 7, shape[0])) for a in range(0, shape[0], 7)]
    expected = sp.coo_matrix((columns[2].astype(float), columns[:2]), shape=shape).toarray()
    np.testing.assert_allclose(sp.vstack(rows).toarray(), expected, atol=1e-12)
    assert other.rows(0, shape[0]).data.tobytes() == np.concatenate([r.data for r in rows]).tobytes()
    assert reader.n_unsorted == 0
    assert reader.n_duplicates == other.n_duplicates == n - len(set(zip(*columns[:2], strict=True)))


def csc_file(path: Path, matrix: Any, chunk: int | None, dtype: str) -> None:
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csc_matrix", "shape": np.array(matrix.shape)})
        for name, array in (("data", matrix.data.astype(dtype)), ("indices", matrix.indices)):
            group.create_dataset(name, data=array, chunks=None if chunk is None else (chunk,))
        group["indptr"] = matrix.indptr


@pytest.mark.parametrize("dtype", ["f4", "f2", ">f8", "u1"])
@pytest.mark.parametrize("chunk", [None, 5, 64], ids=["whole", "short", "long"])
def test_a_csc_matrix_is_read_by_cell(tmp_path: Path, dtype: str, chunk: int | None) -> None:
    rng = np.random.default_rng(3)
    indptr = np.concatenate([[0, 0], np.cumsum(rng.integers(0, 30, 25)), [0, 0]])
    indptr[-2:] = indptr[-3]  # columns without values at both ends
    n = int(indptr[-1])
    # Neither ascending within a gene nor free of repeats.
    arrays = (rng.integers(1, 9, n).astype(float), rng.integers(0, 20, n).astype(np.int32), indptr)
    matrix = sp.csc_matrix(arrays, shape=(20, len(indptr) - 1))
    csc_file(tmp_path / "x.h5", matrix, chunk, dtype)
    with h5py.File(tmp_path / "x.h5") as file:
        found = {}
        for memory in (PLENTY, work(7), work(20)):
            reader = open_matrix(file["X"], "X", *matrix.shape, memory)
            assert in_file(reader._matrix) == (memory != PLENTY) and is_only_here(reader)
            found[memory] = reader.rows(0, 20)
            np.testing.assert_array_equal(found[memory].toarray(), matrix.toarray())
            assert reader.n_duplicates == n - found[memory].nnz > 0 == reader.n_unsorted
            assert reader.rows_within(1) == 1 and reader.rows_within(2**30) == 2048
    assert len({found[memory].data.tobytes() for memory in found}) == 1


def test_cells_of_a_file_do_not_depend_on_the_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X = sp.csr_matrix(rng.poisson(0.5, (300, 60)))
    adata = anndata.AnnData(
        X.astype(np.float32),
        obs=pd.DataFrame(index=[f"c{i}" for i in range(300)]),
        var=pd.DataFrame(index=[f"G{i}" for i in range(60)]),
    )
    adata.write_h5ad(tmp_path / "csr.h5ad")
    adata.X = adata.X.tocsc()
    adata.layers["other"] = adata.X * 0.5
    adata.write_h5ad(tmp_path / "csc.h5ad")
    backed = anndata.read_h5ad(tmp_path / "csc.h5ad", backed="r")
    with CellSource.open(tmp_path / "csr.h5ad") as source:
        expected = sp.vstack(list(source.chunks(50)))
        totals, notes = source.totals, source.notes
    for given_, memory in [(tmp_path / "csc.h5ad", "200K"), (tmp_path / "csc.h5ad", "1G"), (backed, "200K")]:
        with CellSource.open(given_, memory=memory) as source:
            assert in_file(source.reader._matrix) == (memory == "200K")
            assert source.totals.tobytes() == totals.tobytes() and source.notes == notes
            assert sp.vstack(list(source.chunks(33))).data.tobytes() == expected.data.tobytes()


def test_the_memory_is_kept_to(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    matrix = sp.random(1000, 1000, 0.15, format="csc", dtype=np.float32, rng=rng)
    csc_file(tmp_path / "x.h5", matrix, 1000, "f4")
    memory = 1 << 20
    assert 12 * matrix.nnz > 1.5 * memory
    with h5py.File(tmp_path / "x.h5") as file:
        tracemalloc.start()
        try:
            reader = open_matrix(file["X"], "X", *matrix.shape, memory)
            total = sum(reader.rows(a, a + 10).sum() for a in range(0, 1000, 10))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert total == pytest.approx(matrix.sum(dtype=np.float64)) and peak < memory


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_for_temporary_files_is_an_error(tmp_path: Path, monkeypatch: Any, code: int) -> None:
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(base_arrays, "_reserve", full)
    monkeypatch.setattr(transpose.tempfile, "tempdir", str(tmp_path))
    columns = np.zeros(2000, np.int32), np.zeros(2000, np.int32), np.ones(2000, np.float32)
    with pytest.raises(ResourceError, match=r"needs 24\.0 kB of temporary files") as caught:
        transpose.collected(cut(columns, 9), 2000, (3, 3), F4, ORIGIN, 24_000)
    told = caught.value
    assert str(tmp_path) in told.what and os.strerror(code) in told.what
    assert told.where == "X" and "TMPDIR" in told.fix and "store it as CSR" in told.fix
    # Where there is memory enough it is taken: a full disk alone stops nothing.
    made = transpose.collected(cut(columns, 9), 2000, (3, 3), F4, ORIGIN, 48_000)
    assert not in_file(made) and made.indptr.tolist() == [0, 2000, 2000, 2000]


@pytest.mark.parametrize("claimed", [[2, 1], [0, 3], [1, 1], [4, 0]], ids=["order", "all", "few", "many"])
def test_a_file_that_changes_while_it_is_read_spoils_nothing(claimed: list[int]) -> None:
    columns = np.array([0, 1, 1], np.int32), np.arange(3, dtype=np.int32), np.ones(3, np.float32)
    with pytest.raises(InputError, match="changes while it is read"):
        transpose.by_cell(cut(columns, 1), np.array(claimed), 3, F4, ORIGIN, work(1))
