"""Large arrays lie in files without a name, and are written out block by block."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from anndata.io import read_elem, write_elem

from scvec import scratch
from scvec.ingest import h5ad_output


def test_small_arrays_are_arrays_and_large_ones_lie_in_a_file_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    assert not isinstance(scratch.empty((10, 3), np.float32), np.memmap)
    large = scratch.empty((scratch.LARGE // 8, 2), np.float32)
    assert isinstance(large, np.memmap) and large.shape == (scratch.LARGE // 8, 2)
    assert list(tmp_path.iterdir()) == []
    large[:] = np.arange(2)
    scratch.release(large)
    assert (large == np.arange(2)).all()
    scratch.release(np.ones(3))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_without_room_on_the_disk_memory_is_taken(code: int, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(scratch, "_reserve", full)
    found = scratch.empty((scratch.LARGE, 1), np.uint8)
    assert not isinstance(found, np.memmap) and found.shape == (scratch.LARGE, 1)


HELD = """
import sys
import numpy as np
from scvec import scratch

def held():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])

before = held()
large = scratch.empty((64, 1 << 20), np.uint8) if sys.argv[1] == "file" else np.empty((64, 1 << 20), np.uint8)
for row in large:
    row[:] = 1
    scratch.release(large)
print(held() - before, isinstance(large, np.memmap))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted otherwise there")
def test_what_lies_in_a_file_takes_no_memory():
    def kilobytes(where: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", HELD, where], capture_output=True, text=True, check=True, timeout=500
        )
        held, mapped = done.stdout.split()
        assert mapped == str(where == "file")
        return int(held)

    assert kilobytes("memory") > 60_000 and kilobytes("file") < 20_000


@pytest.mark.parametrize("packed", [{}, h5ad_output._GZIP], ids=["plain", "packed"])
def test_blocks_are_written_as_anndata_writes(
    tmp_path: Path, packed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(h5ad_output, "_BLOCK_ROWS", 7)
    monkeypatch.setattr(scratch, "LARGE", 1)
    values = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    mapped = scratch.empty(values.shape, values.dtype)
    mapped[:] = values
    with h5py.File(tmp_path / "x.h5", "w") as file:
        group = file.create_group("obsm")
        group["X"] = [1]
        h5ad_output._add_blocks(group, "X", mapped, packed)
        write_elem(group, "Y", values, dataset_kwargs=packed)
        np.testing.assert_array_equal(read_elem(group["X"]), values)
        assert dict(group["X"].attrs) == dict(group["Y"].attrs)
        assert group["X"].dtype == group["Y"].dtype and group["X"].compression == group["Y"].compression
