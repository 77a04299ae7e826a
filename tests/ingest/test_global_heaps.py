"""Heaps that HDF5 would step through for ever are found first."""

from __future__ import annotations

import struct
from pathlib import Path

import h5py
import pytest

import scvec
from scvec.errors import InputError
from scvec.ingest.checks import check_h5ad
from scvec.ingest.global_heaps import broken_heap

DEMO = Path(scvec.__file__).parent / "data"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "x.h5ad", "w") as file:
        file["X"] = [[1.0]]
        file["obs"] = ["text of one length", "and another"] * 300
        file["var"] = ["more"]
    return tmp_path / "x.h5ad"


def heaps(data: bytes) -> list[int]:
    found = [data.find(b"GCOL")]
    while (following := data.find(b"GCOL", found[-1] + 4)) >= 0:
        found.append(following)
    return found


def objects(data: bytes, heap: int) -> list[tuple[int, int, int]]:
    """Position, number and length of every object of a heap."""
    end, position, found = heap + struct.unpack_from("<Q", data, heap + 8)[0], heap + 16, []
    while position + 16 <= end:
        number, size = struct.unpack_from("<H6xQ", data, position)
        found.append((position, number, size))
        position += size if number == 0 else 16 + (size + 7) // 8 * 8
    return found


def test_sound_heaps_pass(path: Path) -> None:
    assert heaps(path.read_bytes())[0] > 0
    assert broken_heap(path) is None
    assert broken_heap(DEMO / "baron_human.h5ad") is None


def test_heaps_are_stepped_through_as_hdf5_wrote_them(path: Path) -> None:
    data = path.read_bytes()
    texts = [
        data[p + 16 : p + 16 + size].decode()
        for h in heaps(data)
        for p, number, size in objects(data, h)
        if number
    ]
    assert sorted(texts) == sorted(["text of one length", "and another"] * 300 + ["more"])


@pytest.mark.timeout(30)
@pytest.mark.parametrize("size", [0, 8, 2**64 - 16, 2**63, 4096])
@pytest.mark.parametrize("which", ["free", "used"])
def test_lengths_that_lead_nowhere_are_found(path: Path, size: int, which: str) -> None:
    data = bytearray(path.read_bytes())
    heap = heaps(data)[-1]
    free = [p for p, number, _ in objects(data, heap) if number == 0]
    used = [p for p, number, _ in objects(data, heap) if number]
    assert free and used
    struct.pack_into("<Q", data, (free if which == "free" else used)[0] + 8, size)
    path.write_bytes(data)
    if (which, size) in (("used", 0), ("used", 8)):
        # The steps go on from the wrong place: into text, which may or may not make sense.
        assert broken_heap(path) in (heap, None)
        return
    assert broken_heap(path) == heap
    with pytest.raises(InputError, match="texts cannot be read"):
        check_h5ad(path)
