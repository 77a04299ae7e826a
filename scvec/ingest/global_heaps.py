"""Check the global heaps of an HDF5 file, where strings of any length live, before HDF5 reads them.

HDF5 (to 2.0.0 at least) never returns from reading a heap in which an object claims to be 0 bytes long:
it steps by that length until the end of the heap. One flipped byte in a file is enough, and nothing can
interrupt it. So the heaps are found by their signature and stepped through here first.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
from pathlib import Path

__all__ = ["broken_heap"]

_SIGNATURE = b"GCOL\x01\x00\x00\x00"
_HEADER = 16
_SIZE = struct.Struct("<Q")
# Of an object: its number, 6 bytes that do not matter here, and its length.
_OBJECT = struct.Struct("<H6xQ")
#: Bytes of the file that are looked at in one go. What was looked at is given back, or a large file would
#: count as memory of this process.
_PIECE = 2**25


def broken_heap(path: Path) -> int | None:
    """Return where the first heap lies that HDF5 could not step through, or None.

    Runs at the speed of the disk. Files with lengths of other than 8 bytes, which nobody writes, are not
    looked into.
    """
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for piece in range(0, len(data), _PIECE):
            # A signature that begins in this piece may end in the next one.
            end = min(piece + _PIECE + len(_SIGNATURE) - 1, len(data))
            start = data.find(_SIGNATURE, piece, end)
            while start >= 0:
                if not _is_sound(data, start):
                    return start
                start = data.find(_SIGNATURE, start + len(_SIGNATURE), end)
            with contextlib.suppress(AttributeError, OSError):  # not on every system
                data.madvise(mmap.MADV_DONTNEED, piece, min(_PIECE, len(data) - piece))
    return None


def _is_sound(data: mmap.mmap, start: int) -> bool:
    if start + _HEADER > len(data):
        return False
    (length,) = _SIZE.unpack_from(data, start + 8)
    if length < _HEADER or start + length > len(data):
        return False
    position, end = start + _HEADER, start + length
    while position + _HEADER <= end:
        number, size = _OBJECT.unpack_from(data, position)
        # Number 0 is the free space at the end, whose length counts its header.
        step = size if number == 0 else _HEADER + (size + 7 & ~7)
        if step < _HEADER or position + step > end:
            return False
        position += step
    return True
