"""Check texts of any length in an HDF5 file before HDF5 reads them.

Such texts lie in global heaps, and a value is a reference: a length, the address of a heap and a number.

HDF5 (to 2.0.0 at least) never returns from reading a heap in which an object claims to be 0 bytes long: it
steps by that length until the end of the heap. One flipped byte in a file is enough, and nothing can
interrupt it. And it asks for as much memory as a reference claims before it looks at the heap: one byte
costs 4 GB. So heaps are found by their signature and stepped through, and references are compared with them.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

__all__ = ["Heaps", "broken_heap"]

_HEAP = b"GCOL\x01\x00\x00\x00"
_HEAP_HEADER = 16
_HEAP_SIZE = struct.Struct("<Q")
# Of an object: its number, 6 bytes that do not matter here, and its length.
_HEAP_OBJECT = struct.Struct("<H6xQ")
#: Bytes of the file that are looked at in one go. What was looked at is given back, or a large file would
#: count as memory of this process.
_PIECE = 2**25
_REFERENCE = np.dtype([("length", "<u4"), ("heap", "<u8"), ("number", "<u4")])
_ATTRIBUTE, _CONTINUED, _VARIABLE = 0x0C, 0x10, 9


def broken_heap(path: Path) -> int | None:
    """Return where the first heap lies that HDF5 could not step through, or None.

    Runs at the speed of the disk. Files with lengths of other than 8 bytes, which nobody writes, are not
    looked into.
    """
    return next((start for start, length in _heaps(path) if length is None), None)


def _heaps(path: Path) -> Iterator[tuple[int, int | None]]:
    """Yield the address and the length of every heap; no length where it is broken."""
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for piece in range(0, len(data), _PIECE):
            # A signature that begins in this piece may end in the next one.
            end = min(piece + _PIECE + len(_HEAP) - 1, len(data))
            start = data.find(_HEAP, piece, end)
            while start >= 0:
                yield start, _sound_length(data, start)
                start = data.find(_HEAP, start + len(_HEAP), end)
            with contextlib.suppress(AttributeError, OSError):  # not on every system
                data.madvise(mmap.MADV_DONTNEED, piece, min(_PIECE, len(data) - piece))


def _sound_length(data: mmap.mmap, start: int) -> int | None:
    """Return the length of a heap; None where stepping through it does not end at its end."""
    if start + _HEAP_HEADER > len(data):
        return None
    (length,) = _HEAP_SIZE.unpack_from(data, start + 8)
    if length < _HEAP_HEADER or start + length > len(data):
        return None
    position, end = start + _HEAP_HEADER, start + length
    while position + _HEAP_HEADER <= end:
        number, size = _HEAP_OBJECT.unpack_from(data, position)
        # Number 0 is the free space at the end, whose length counts its header.
        step = size if number == 0 else _HEAP_HEADER + (size + 7 & ~7)
        if step < _HEAP_HEADER or position + step > end:
            return None
        position += step
    return int(length)


@dataclass(frozen=True)
class Heaps:
    """The heaps of a file.

    Attributes
    ----------
    path
        The file.
    starts, lengths
        (n,) uint64 addresses, ascending, and lengths in bytes; of sound heaps.
    broken
        Address of the first heap that HDF5 could not step through, or None.
    """

    path: Path
    starts: npt.NDArray[np.uint64]
    lengths: npt.NDArray[np.uint64]
    broken: int | None = None

    @classmethod
    def of(cls, path: Path) -> Heaps:
        """Find the heaps of a file."""
        found: list[tuple[int, int]] = []
        for start, length in _heaps(path):
            if length is None:
                return cls(path, np.empty(0, np.uint64), np.empty(0, np.uint64), start)
            found.append((start, length))
        starts, lengths = np.array(found, dtype=np.uint64).reshape(-1, 2).T
        return cls(path, starts, lengths)

    def hold(self, dataset: h5py.h5d.DatasetID) -> bool:
        """Return whether the heaps hold texts as long as a dataset of texts of any length claims."""
        claimed = 0
        for references in _references(dataset, self.path):
            if not self._fit(references):
                return False
            claimed += int(references["length"].sum(dtype=np.uint64))
        # No two references are to the same text.
        return claimed <= int(self.lengths.sum())

    def hold_attributes(self, item: Any) -> bool:
        """Return whether the heaps hold texts as long as the attributes of a group or dataset claim."""
        address = h5py.h5o.get_info(item).addr
        with self.path.open("rb") as handle:
            return all(self._fit(np.frombuffer(raw, _REFERENCE)) for raw in _attributes(handle, address))

    def _fit(self, references: npt.NDArray[Any]) -> bool:
        used = references[references["length"] > 0]
        if not len(used):
            return True
        at = np.searchsorted(self.starts, used["heap"])
        known = at < len(self.starts)
        if not known.all() or np.any(self.starts[at] != used["heap"]):
            return False
        return not np.any(used["length"] > self.lengths[at])


def _references(dataset: h5py.h5d.DatasetID, path: Path) -> Iterator[npt.NDArray[Any]]:
    """Yield the references that a dataset stores, as they lie in the file."""
    made, n = dataset.get_create_plist(), int(dataset.get_space().get_simple_extent_npoints())
    with path.open("rb") as handle:
        if made.get_layout() == h5py.h5d.CHUNKED:
            unpack = _unpacker(made)
            for k in range(dataset.get_num_chunks()):
                chunk = dataset.get_chunk_info(k)
                handle.seek(chunk.byte_offset)
                yield unpack(handle.read(chunk.size), chunk.filter_mask)
        elif (offset := dataset.get_offset()) is not None:
            handle.seek(offset)
            raw = handle.read(n * _REFERENCE.itemsize)
            yield np.frombuffer(raw[: len(raw) - len(raw) % _REFERENCE.itemsize], _REFERENCE)


def _unpacker(made: h5py.h5p.PropDCID) -> Any:
    """Return a function that undoes the filters of a chunk: HDF5 does it, in a file in memory."""
    n = prod(made.get_chunk())
    if made.get_nfilters() == 0:
        return lambda raw, _: np.frombuffer(raw[: n * _REFERENCE.itemsize], _REFERENCE)
    kind = h5py.h5t.py_create(np.dtype(f"V{_REFERENCE.itemsize}"))

    filters = [made.get_filter(k)[:3] for k in range(made.get_nfilters())]

    def unpack(raw: bytes, mask: int) -> npt.NDArray[Any]:
        used = [made for k, made in enumerate(filters) if not mask >> k & 1]
        if [code for code, _, _ in used] == [h5py.h5z.FILTER_DEFLATE]:  # nearly all files, and fast
            size = n * _REFERENCE.itemsize
            plain = zlib.decompressobj().decompress(raw, size)
            return np.frombuffer(plain[: len(plain) // _REFERENCE.itemsize * _REFERENCE.itemsize], _REFERENCE)
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((n,))
        for code, flags, values in used:
            plist.set_filter(code, flags, values)
        with h5py.File("chunk", "w", driver="core", backing_store=False) as file:
            held = h5py.h5d.create(file.id, b"x", kind, h5py.h5s.create_simple((n,)), plist)
            held.write_direct_chunk((0,), raw)
            return np.frombuffer(h5py.Dataset(held)[()].tobytes(), _REFERENCE)

    return unpack


def _attributes(handle: Any, address: int) -> Iterator[bytes]:
    """Yield the references of the attributes of an object whose header is of version 1.

    Headers of version 2 have checksums that HDF5 compares, so that chance cannot change them.
    """
    handle.seek(address)
    head = handle.read(16)
    if len(head) < 16 or head[0] != 1:
        return
    blocks, seen = [(address + 16, int.from_bytes(head[8:12], "little"))], 0
    while blocks and seen < 1000:
        start, size = blocks.pop()
        handle.seek(start)
        block, position, seen = handle.read(min(size, 2**20)), 0, seen + 1
        while position + 8 <= len(block):
            kind, length, flags = struct.unpack_from("<HHB", block, position)
            message = block[position + 8 : position + 8 + length]
            if kind == _CONTINUED and len(message) >= 16:
                blocks.append(struct.unpack_from("<QQ", message))
            elif kind == _ATTRIBUTE and not flags & 2:
                yield _attribute(message)
            position += 8 + length


def _attribute(message: bytes) -> bytes:
    """Return the references that an attribute message ends with; none if it is of another type."""
    if len(message) < 9:
        return b""
    version, _, *sizes = struct.unpack_from("<BBHHH", message)
    padded = [size + 7 & ~7 for size in sizes] if version == 1 else sizes
    start = 9 if version == 3 else 8
    kind, end = start + padded[0], start + sum(padded)
    if kind >= len(message) or message[kind] & 15 != _VARIABLE:
        return b""
    space = message[kind + padded[1] : end]
    n = 1
    if len(space) > 8 and space[1]:
        n = prod(struct.unpack_from(f"<{space[1]}Q", space + bytes(8 * space[1]), 8 if space[0] == 1 else 4))
    return message[end : end + 16 * min(n, 2**16)][: (len(message) - end) // 16 * 16]
