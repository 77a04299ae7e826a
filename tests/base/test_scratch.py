"""Large arrays lie in unnamed files and are written block by block."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata.io import read_elem, write_elem

import scvec
from scvec.base import arrays
from scvec.ingest.cells import write


def test_an_array_lies_in_an_unnamed_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(arrays.tempfile, "tempdir", str(tmp_path))
    array = arrays.empty((1000, 2), np.float32)
    assert isinstance(array, np.memmap) and array.shape == (1000, 2)
    assert list(tmp_path.iterdir()) == []
    array[:] = np.arange(2)
    arrays.release(array)
    assert (array == np.arange(2)).all()
    arrays.release(np.ones(3))
    assert arrays.empty((0, 3), np.float32).shape == (0, 3)
    arrays.trim()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_falls_back_to_memory(code: int, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(arrays, "_reserve", full)
    found = arrays.empty((4, 1), np.uint8)
    assert not isinstance(found, np.memmap) and found.shape == (4, 1)


HELD = """
import sys
import numpy as np
import scvec
from scvec.base import arrays

def held():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])

before = held()
large = arrays.empty((64, 1 << 20), np.uint8) if sys.argv[1] == "file" else np.empty((64, 1 << 20), np.uint8)
for row in large:
    row[:] = 1
    arrays.release(large)
print(held() - before, isinstance(large, np.memmap))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted otherwise there")
def test_arrays_in_files_take_no_memory():
    def kilobytes(where: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", HELD, where], capture_output=True, text=True, check=True, timeout=500
        )
        held, mapped = done.stdout.split()
        assert mapped == str(where == "file")
        return int(held)

    assert kilobytes("memory") > 60_000 and kilobytes("file") < 20_000


@pytest.mark.parametrize("packed", [{}, write._GZIP], ids=["plain", "packed"])
def test_blocks_are_written_as_anndata_writes(
    tmp_path: Path, packed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(write, "_BLOCK_ROWS", 7)
    values = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    mapped = arrays.empty(values.shape, values.dtype)
    mapped[:] = values
    with h5py.File(tmp_path / "x.h5", "w") as file:
        group = file.create_group("obsm")
        group["X"] = [1]
        write._add_blocks(group, "X", mapped, packed)
        write_elem(group, "Y", values, dataset_kwargs=packed)
        np.testing.assert_array_equal(read_elem(group["X"]), values)
        assert dict(group["X"].attrs) == dict(group["Y"].attrs)
        assert group["X"].dtype == group["Y"].dtype and group["X"].compression == group["Y"].compression


@pytest.mark.slow
def test_arrays_in_files_equal_arrays_in_memory(
    tmp_path: Path, tiny_adata: Callable[..., Any], new_store: Callable[[Path], Path], monkeypatch: Any
):
    """All that is made of an annotation, for files and for objects."""
    store = new_store(tmp_path / "store")
    scvec.ingest_cells(store, [tiny_adata(60)], name="tiny", label_key="cell_type", encoder="pca")
    new = tiny_adata(20, seed=1)
    new.write_h5ad(tmp_path / "new.h5ad")

    def made(name: str) -> tuple[Any, ...]:
        out, of_object = tmp_path / f"{name}.h5ad", tmp_path / f"{name}-object.h5ad"
        found = scvec.query(store, tmp_path / "new.h5ad", output=out, coverage=0.9)
        scvec.query(store, new, output=of_object)
        marked = scvec.annotate(new, store, copy=True)
        assert type(marked.obsm["X_scvec"]) is np.ndarray
        marked.write_h5ad(tmp_path / f"{name}-marked.h5ad")
        scvec.write_report(found, tmp_path / f"{name}.html")
        assert found.explain(cell=found.cells[0]).lines()
        return found, [anndata.read_h5ad(p) for p in (out, of_object, tmp_path / f"{name}-marked.h5ad")]

    plain, files = made("plain")
    monkeypatch.setattr(arrays, "LARGE", 0)
    mapped, again = made("mapped")
    assert type(plain.vectors) is np.ndarray and isinstance(mapped.vectors, np.memmap)
    pd.testing.assert_frame_equal(plain.to_table(), mapped.to_table())
    np.testing.assert_array_equal(plain.neighbors.indices, mapped.neighbors.indices)
    for one, other in zip(files, again, strict=True):
        pd.testing.assert_frame_equal(one.obs, other.obs)
        assert set(one.obsm) == set(other.obsm) >= {"X_scvec", "scvec_proba"}
        for key in one.obsm:
            np.testing.assert_array_equal(one.obsm[key], other.obsm[key])


def test_zeros_of_cells_are_zero_in_files_and_in_memory(monkeypatch: pytest.MonkeyPatch):
    many = arrays.LARGE // 16 // 8
    assert isinstance(arrays.zeros_of_cells(many, np.int64), np.memmap)
    assert type(arrays.zeros_of_cells(many - 1, np.int64)) is np.ndarray
    monkeypatch.setattr(arrays, "_reserve", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    monkeypatch.setattr(np, "empty", lambda shape, dtype: np.full(shape, 7, dtype))
    found = arrays.zeros_of_cells(many, np.float64)
    assert type(found) is np.ndarray and not found.any()
