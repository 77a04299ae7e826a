"""Check the safety and the format of a file or folder before a reader opens it.

An HDF5 file can refer to other files by external links, external storage and virtual datasets, and a few
bytes can claim a matrix of terabytes. anndata accepts all of these. So every object of a file is visited here
first with the low-level API, which reads metadata only.

A zarr store is a folder of small JSON files and of chunks of arrays. Links may lead out of the folder,
metadata may claim arrays of any size without chunks, and some codecs unpickle. All of these are refused here
from the metadata alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import re
import stat
import struct
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError, reading
from scvec.base.resources import expanded, parse_memory
from scvec.base.results import human_bytes

__all__ = [
    "H5AD_PARTS",
    "Given",
    "Heaps",
    "broken_heap",
    "check_h5ad",
    "check_hdf5",
    "decoded",
    "hard_items",
    "is_h5ad",
    "is_zarr",
    "look_at",
    "open_h5ad",
    "open_zarr",
    "samples_with",
    "unreadable",
]

_HEAP = b"GCOL\x01\x00\x00\x00"
_HEAP_HEADER = 16
_HEAP_SIZE = struct.Struct("<Q")
# Header of a heap object: its number, 6 bytes not used here, and its length.
_HEAP_OBJECT = struct.Struct("<H6xQ")
#: Bytes of the file that are searched at once. Their pages are released afterwards; otherwise a large file
#: would count as memory of this process.
_PIECE = 2**25
_REFERENCE = np.dtype([("length", "<u4"), ("heap", "<u8"), ("number", "<u4")])
_ATTRIBUTE, _CONTINUED, _VARIABLE = 0x0C, 0x10, 9


def broken_heap(path: Path) -> int | None:
    """Return the address of the first heap that HDF5 cannot step through, or None.

    Runs at the speed of the disk. Files whose lengths do not have 8 bytes are rare and not checked.
    """
    return next((start for start, length in _heaps(path) if length is None), None)


def _heaps(path: Path) -> Iterator[tuple[int, int | None]]:
    """Yield the address and the length of every heap; the length is None if the heap is broken."""
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for piece in range(0, len(data), _PIECE):
            # A signature may begin in this piece and end in the next.
            end = min(piece + _PIECE + len(_HEAP) - 1, len(data))
            start = data.find(_HEAP, piece, end)
            while start >= 0:
                yield start, _sound_length(data, start)
                start = data.find(_HEAP, start + len(_HEAP), end)
            with contextlib.suppress(AttributeError, OSError):  # not on every system
                data.madvise(mmap.MADV_DONTNEED, piece, min(_PIECE, len(data) - piece))


def _sound_length(data: mmap.mmap, start: int) -> int | None:
    """Return the length of a heap; None if its objects do not fill it exactly."""
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
        (n,) uint64 addresses, ascending, and lengths in bytes of the intact heaps.
    broken
        Address of the first heap that HDF5 cannot step through, or None.
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
        """Return whether the heaps hold texts as long as a dataset of variable-length text claims."""
        claimed = 0
        for references in _references(dataset, self.path):
            if not self._fit(references):
                return False
            claimed += int(references["length"].sum(dtype=np.uint64))
        # Each reference has its own text, so the lengths can be summed.
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
    """Yield the heap references that a dataset stores, in file order."""
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
    """Return a function that undoes the filters of a chunk, by HDF5 with a file in memory."""
    n = prod(made.get_chunk())
    if made.get_nfilters() == 0:
        return lambda raw, _: np.frombuffer(raw[: n * _REFERENCE.itemsize], _REFERENCE)
    kind = h5py.h5t.py_create(np.dtype(f"V{_REFERENCE.itemsize}"))

    filters = [made.get_filter(k)[:3] for k in range(made.get_nfilters())]

    def unpack(raw: bytes, mask: int) -> npt.NDArray[Any]:
        used = [made for k, made in enumerate(filters) if not mask >> k & 1]
        if [code for code, _, _ in used] == [h5py.h5z.FILTER_DEFLATE]:  # a fast path for nearly all files
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
    """Yield the references of the attributes of an object with a version 1 header.

    Version 2 headers have checksums, by which HDF5 detects damage.
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
    """Return the references at the end of an attribute message; empty if it has another type."""
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


MAX_DEPTH = 64
MAX_OBJECTS = 1_000_000
# gzip compresses at most 1,032 to 1. Datasets below the floor are harmless, whatever they claim.
MAX_RATIO = 5_000
RATIO_FLOOR = 64 * 2**20
#: Groups of an h5ad that are read.
H5AD_PARTS = ("X", "layers", "raw", "raw.X", "raw.var", "obs", "var")
_AGAIN = "copy or download it again"
_ANEW = "copy or download it again, or write it again with adata.write_h5ad()"
_SHARED_FIX = "if you trust the linked file, write a self-contained copy with adata.write_h5ad()"


@dataclass(frozen=True)
class Given:
    """A file or folder of which only the format was read.

    Attributes
    ----------
    path
        The path.
    head
        The first 512 bytes; empty for a folder.
    file
        The open file if it is HDF5. Its links may lead anywhere: follow only hard links
        (:func:`hard_items`) before :func:`check_hdf5`.
    heaps
        The heaps (texts) of an HDF5 file; None if the file was checked before.
    """

    path: Path
    head: bytes = b""
    file: h5py.File | None = None
    heaps: Heaps | None = None

    @property
    def hdf5(self) -> h5py.File:
        """The HDF5 file; ValueError if it is another format."""
        if self.file is None:
            raise ValueError(f"{self.path} is not HDF5")
        return self.file

    @property
    def text(self) -> bytes:
        """The first bytes, decompressed if they are gzip."""
        if not self.head.startswith(b"\x1f\x8b"):
            return self.head
        try:
            return zlib.decompressobj(31).decompress(self.head, 512)
        except zlib.error:
            return b""

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()


def look_at(path: str | os.PathLike[str], *, checked: bool = False) -> Given:
    """Open a file and read its first bytes, for recognising its format.

    Parameters
    ----------
    checked
        The file was checked before; its heaps are not checked again.

    Raises
    ------
    InputError
        If the file does not exist, is not readable, is a pipe, is empty, or is damaged HDF5.
    """
    path = expanded(path)
    if not os.path.lexists(path) and samples_with(path):
        return Given(path)
    head = _head_of(path)
    if head is None:
        return Given(path)
    if not h5py.is_hdf5(path):
        if head.startswith(b"\x89HDF"):
            raise InputError("the HDF5 file is damaged at its start", str(path), _AGAIN, code="damaged-file")
        return Given(path, head)
    try:
        file = h5py.File(path, "r", locking="best-effort")
    except Exception as error:
        raise _open_error(path, error) from error
    try:
        with reading(path):
            heaps = None if checked else Heaps.of(path)
            if heaps is not None and heaps.broken is not None:
                what = f"the file is damaged: its texts cannot be read (at byte {heaps.broken:,})"
                raise InputError(what, str(path), _ANEW, code="damaged-file")
            list(file)
    except BaseException:
        file.close()
        raise
    return Given(path, head, file, heaps)


_MTX = re.compile(r"(.*?)(count_)?(matrix|counts?)\.mtx(\.gz)?$", re.IGNORECASE)


def samples_with(path: Path) -> dict[str, Path]:
    """Return the Matrix Market files named as in public archives, ``PREFIXmatrix.mtx[.gz]``, by prefix.

    Parameters
    ----------
    path
        A folder, or a folder and the start of the prefix (``folder/GSM1_A_``).
    """
    folder, start = (path, "") if path.is_dir() else (path.parent, path.name)
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except (OSError, ValueError):
        return {}
    found = ((match[1], folder / name) for name in names if (match := _MTX.match(name)))
    return {prefix: matrix for prefix, matrix in found if prefix and prefix.startswith(start)}


def check_hdf5(given: Given, memory: int, parts: Collection[str] = ()) -> None:
    """Refuse an HDF5 file that is damaged, refers to other files, or claims more data than it can hold.

    Parameters
    ----------
    memory
        Bytes that may be used; a file with chunks above a quarter of it is refused.
    parts
        Groups of the root that will be read; all if empty.
    """
    with reading(given.path):
        read = frozenset(parts or given.hdf5)
        # After a user block, addresses are not positions in the file.
        heaps = None if given.hdf5.userblock_size else given.heaps
        _Walk(given.path, given.path.stat().st_size, memory, read, heaps).walk(given.hdf5.id)


def check_h5ad(path: str | os.PathLike[str], *, memory: str | int | None = None) -> None:
    """Refuse a file that is not an h5ad, is damaged, refers to other files, or claims more than it can hold.

    The file is read once at the speed of the disk; nothing is decompressed.

    Raises
    ------
    InputError
        With the problem and the fix.
    """
    open_h5ad(path, memory=memory).close()


def open_h5ad(path: str | os.PathLike[str], *, memory: str | int | None = None) -> h5py.File:
    """Check a file like :func:`check_h5ad` and return it open for reading."""
    given = look_at(path)
    try:
        if not is_h5ad(given):
            raise unreadable(given, "give an AnnData file (.h5ad)")
        check_hdf5(given, parse_memory(memory), H5AD_PARTS)
    except BaseException:
        given.close()
        raise
    return given.hdf5


def is_h5ad(given: Given) -> bool:
    """Return whether a file is HDF5 with the groups of an AnnData object."""
    return given.file is not None and foreign_hdf5(list(given.file)) is None


def unreadable(given: Given, fix: str) -> InputError:
    """Return the error for an unknown format: what it looks like, and how to convert it.

    Parameters
    ----------
    fix
        The fix if there is no specific one.
    """
    if given.file is not None:
        what, better = foreign_hdf5(list(given.file)) or ("HDF5 of an unknown format", "")
        return InputError(f"this is {what}", str(given.path), better or fix, code="wrong-format")
    if not given.head:
        inside = [name for name in _names_in(given.path) if name.lower().endswith(_ENDINGS)]
        if inside:
            more = ", ..." if len(inside) > 4 else ""
            what = f"this is a folder; give one of its files: {', '.join(sorted(inside)[:4])}{more}"
            return InputError(what, str(given.path), fix, code="not-a-file")
        return InputError("this is a folder, not a file", str(given.path), fix, code="not-a-file")
    what, better = guess_kind(given.path, given.head)
    message = f"this is not a file of cells: it looks like {what}"
    return InputError(message, str(given.path), better or fix, code="wrong-format")


def _head_of(path: Path) -> bytes | None:
    """Return the first bytes of a regular file; None for a folder."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            return None
        if not stat.S_ISREG(status.st_mode):
            # Opening a pipe would wait forever.
            raise InputError(
                "this is a pipe or a device, not a file", str(path), "give an .h5ad file", code="not-a-file"
            )
        if status.st_size == 0:
            raise InputError("the file is empty (0 bytes)", str(path), _AGAIN, code="empty-file")
        with path.open("rb") as handle:
            return handle.read(512)
    except (OSError, ValueError) as error:
        raise _stat_error(path, error) from error


def _stat_error(path: Path, error: OSError | ValueError) -> InputError:
    code = getattr(error, "errno", None)
    if code in (errno.ENOENT, errno.ENOTDIR):
        if not path.parent.is_dir():
            return InputError(
                "no such file",
                str(path),
                f"check the path: the folder {path.parent} does not exist",
                code="file-not-found",
            )
        near = _similar_files(path)
        return InputError(
            "no such file",
            str(path),
            f"did you mean {near}?" if near else "check the path",
            code="file-not-found",
        )
    if code in (errno.EACCES, errno.EPERM):
        fix = "ask for read permission: chmod +r FILE"
        return InputError(
            "the file is not readable (permission denied)", str(path), fix, code="permission-denied"
        )
    reason = os.strerror(code) if code else str(error)
    return InputError(f"the file cannot be read: {reason}", str(path), "check the path", code="damaged-file")


def _similar_files(path: Path) -> str:
    import difflib

    return ", ".join(difflib.get_close_matches(path.name, _names_in(path.parent), n=2))


#: Suffixes of files of cells, to suggest the files of a folder.
_ENDINGS = (".h5ad", ".h5", ".loom", ".h5mu", ".rds", ".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")


def _names_in(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in islice(entries, 5000) if entry.name.isprintable()]
    except OSError:
        return []


def _open_error(path: Path, error: Exception) -> InputError:
    text = str(error)
    if "truncated file" in text:
        size = human_bytes(path.stat().st_size)
        return InputError(
            f"the file is truncated: it ends after {size}", str(path), _AGAIN, code="damaged-file"
        )
    if "unable to lock" in text or "already open for write" in text:
        return InputError(
            "another program has the file open for writing, or crashed while it was open",
            str(path),
            "close that program; if none is running, unlock the file with: h5clear -s FILE",
        )
    return InputError(
        f"the HDF5 file is damaged: {text.splitlines()[0]}", str(path), _AGAIN, code="damaged-file"
    )


@dataclass
class _Walk:
    """A visit to every object of a file, once each, however many links lead to it."""

    path: Path
    file_size: int
    memory: int
    read: frozenset[str]
    heaps: Heaps | None = None
    seen: set[int] = field(default_factory=set)

    def walk(self, root: h5py.h5g.GroupID) -> None:
        """Visit all groups and datasets; raise ``InputError`` at the first unsafe one."""
        address = h5py.h5o.get_info(root).addr
        self.seen.add(address)
        stack: list[tuple[h5py.h5g.GroupID, str, frozenset[int]]] = [(root, "", frozenset([address]))]
        while stack:
            group, prefix, above = stack.pop()
            if len(above) > MAX_DEPTH:
                raise self._refuse(f"groups are nested more than {MAX_DEPTH} deep", prefix)
            for name in group:
                where = f"{prefix}/{name.decode('utf-8', 'replace')}"
                if not self._is_hard(group, name, where):
                    continue
                address = h5py.h5o.get_info(group, name).addr
                if address in above:
                    raise self._refuse("a group contains itself", where)
                if address in self.seen:
                    continue
                self.seen.add(address)
                if len(self.seen) > MAX_OBJECTS:
                    raise self._refuse(f"the file holds more than {MAX_OBJECTS:,} objects", where)
                item = h5py.h5o.open(group, name)
                if where.split("/")[1] in self.read:
                    self._check_types(item, where)
                if isinstance(item, h5py.h5g.GroupID):
                    stack.append((item, where, above | {address}))
                elif isinstance(item, h5py.h5d.DatasetID):
                    self._check_dataset(item, where)

    def _is_hard(self, group: h5py.h5g.GroupID, name: bytes, where: str) -> bool:
        kind = group.links.get_info(name).type
        if kind == h5py.h5l.TYPE_HARD:
            return True
        if kind == h5py.h5l.TYPE_SOFT:
            return False  # a soft link: its target in this file is checked under its own name
        if kind == h5py.h5l.TYPE_EXTERNAL:
            target = group.links.get_val(name)[0].decode("utf-8", "replace")
            what = f"the file links to another file ({target}), which scvec does not open"
            raise self._refuse(what, where, _SHARED_FIX)
        raise self._refuse("the file has a user-defined link, which may lead anywhere", where, _SHARED_FIX)

    def _check_types(self, item: h5py.h5g.GroupID | h5py.h5d.DatasetID | h5py.h5t.TypeID, where: str) -> None:
        # If damage turns a variable-length string into a sequence, HDF5 writes through a null pointer.
        # anndata stores no sequences, so all of them can be refused.
        types = [h5py.h5a.open(item, index=k).get_type() for k in range(h5py.h5a.get_num_attrs(item))]
        if isinstance(item, h5py.h5d.DatasetID):
            types.append(item.get_type())
        if any(isinstance(kind, h5py.h5t.TypeVlenID) for kind in types):
            raise self._refuse("the file is damaged, or has values of a type that h5ad does not use", where)
        if self.heaps is None:
            return
        sound = isinstance(item, h5py.h5t.TypeID) or self.heaps.hold_attributes(item)
        if isinstance(item, h5py.h5d.DatasetID) and _is_variable(item.get_type()):
            sound = sound and self.heaps.hold(item)
        if not sound:
            raise self._refuse("the file is damaged: texts claim to be longer than the file", where)

    def _check_dataset(self, dataset: h5py.h5d.DatasetID, where: str) -> None:
        made = dataset.get_create_plist()
        if made.get_layout() == h5py.h5d.VIRTUAL:
            raise self._refuse("a virtual dataset reads its values from other files", where, _SHARED_FIX)
        if made.get_external_count() > 0:
            target = made.get_external(0)[0].decode("utf-8", "replace")
            what = f"the values are outside the file, in {target} (external storage)"
            raise self._refuse(what, where, _SHARED_FIX)
        item_size = dataset.get_type().get_size()
        logical = dataset.get_space().get_simple_extent_npoints() * item_size
        stored = dataset.get_storage_size()
        if stored > self.file_size:
            raise self._refuse("the file is damaged: a dataset claims more bytes than the file has", where)
        if logical > RATIO_FLOOR and logical > MAX_RATIO * stored:
            claim = f"a dataset claims {human_bytes(logical)} but stores only {human_bytes(stored)}"
            raise self._refuse(claim, where)
        if made.get_layout() == h5py.h5d.CHUNKED and where.split("/")[1] in self.read:
            self._check_chunks(made, item_size, where)

    def _check_chunks(self, made: h5py.h5p.PropDCID, item_size: int, where: str) -> None:
        chunk = item_size
        for length in made.get_chunk():
            chunk *= length
        if chunk > max(self.memory // 4, RATIO_FLOOR):
            what = f"the values are stored in chunks of {human_bytes(chunk)}, which is too large for --memory"
            raise self._refuse(what, where)
        for k in range(made.get_nfilters()):
            code, _, _, name = made.get_filter(k)
            if not h5py.h5z.filter_avail(code):
                called = name.decode("utf-8", "replace") or f"number {code}"
                raise self._refuse(
                    f"the values are compressed with an HDF5 filter that is not installed ({called})",
                    where,
                    "install hdf5plugin and rewrite the file with compression='gzip'",
                )

    def _refuse(self, what: str, where: str, fix: str = _ANEW) -> InputError:
        shown = where if len(where) <= 80 else f"{where[:39]}...{where[-38:]}"
        code = "file-links-outside" if fix == _SHARED_FIX else "damaged-file"
        return InputError(what, f"{self.path} ({shown})", fix, code=code)


def _is_variable(kind: h5py.h5t.TypeID) -> bool:
    return isinstance(kind, h5py.h5t.TypeStringID) and bool(kind.is_variable_str())


_ZARR_METADATA = (".zarray", ".zgroup", ".zattrs", "zarr.json")
_MAX_ZARR_METADATA = 2**24
#: Codecs that decode only numbers and texts. ``pickle``, ``json2`` and ``msgpack2`` are absent: they create
#: objects.
_ZARR_CODECS = frozenset(
    "bytes transpose sharding_indexed crc32c crc32 adler32 fletcher32 gzip zlib zstd blosc lz4 bz2 lzma "
    "shuffle delta fixedscaleoffset packbits bitround vlen-utf8 vlen-bytes numcodecs.blosc numcodecs.zstd "
    "numcodecs.zlib numcodecs.gzip numcodecs.lz4 numcodecs.bz2 numcodecs.lzma numcodecs.shuffle "
    "numcodecs.delta".split()
)
_ZARR_ANEW = "copy it again, or write it again with adata.write_zarr()"


def is_zarr(path: Path) -> bool:
    """Return whether a folder is a zarr group."""
    return any((path / name).is_file() for name in (".zgroup", "zarr.json"))


def open_zarr(path: Path, *, memory: str | int | None = None) -> Any:
    """Check a zarr folder and return its root group, open for reading.

    Raises
    ------
    InputError
        If the folder is damaged, has links out of it, claims more data than it holds, or has pickled objects.
    """
    lacking = _check_zarr(path, parse_memory(memory))
    import zarr

    with reading(path):
        # Consolidated metadata could differ from the metadata that were checked.
        group: Any = zarr.open_group(str(path), mode="r", use_consolidated=False)
        for here, what in lacking.items():
            # A row that is in the first column alone, as in a file of one gene.
            if np.diff(group[os.path.dirname(here)]["indptr"][:]).max(initial=0) > 1:
                raise _refuse_zarr(path, here, what)
        return group


def _check_zarr(root: Path, memory: int) -> dict[str, str]:
    """Check all files once, and compare each array's claimed size with the sum of its chunks.

    Returns
    -------
    Arrays of indices without some chunks, which read as zeros, and what is missing.
    """
    claims: dict[str, _ZarrClaim] = {}
    lacking: dict[str, str] = {}
    stored: dict[str, int] = {}
    pieces: dict[str, int] = {}
    arrays: list[str] = []
    n_files = 0

    def fail(error: OSError) -> None:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InputError(
            f"a folder cannot be read: {reason}", str(error.filename or root), _ZARR_ANEW, code="damaged-file"
        )

    for folder, folders, files in os.walk(root, onerror=fail):
        here = os.path.relpath(folder, root)
        if here.count(os.sep) > MAX_DEPTH:
            raise _refuse_zarr(root, here, f"folders are nested more than {MAX_DEPTH} deep")
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                raise _refuse_zarr(root, os.path.join(here, name), "a link leads out of the zarr folder")
        n_files += len(files)
        if n_files > MAX_OBJECTS:
            raise _refuse_zarr(root, here, f"the folder holds more than {MAX_OBJECTS:,} files")
        if ".zarray" in files or "zarr.json" in files:
            claim = _zarr_claim(Path(folder), root, here, memory)
            if claim is not None:
                claims[here] = claim
                arrays.append(here)
        # Chunks of an array are in its folder or below; os.walk visits that folder first.
        owner = next((a for a in reversed(arrays) if here == a or here.startswith(a + os.sep)), None)
        for name in files:
            status = os.lstat(os.path.join(folder, name))
            if not stat.S_ISREG(status.st_mode):
                raise _refuse_zarr(root, os.path.join(here, name), "it is a link, pipe or device, not a file")
            if owner is not None:
                stored[owner] = stored.get(owner, 0) + status.st_size
                pieces[owner] = pieces.get(owner, 0) + (name not in _ZARR_METADATA)
    for here, claim in claims.items():
        size = stored.get(here, 0)
        if claim.n_bytes > RATIO_FLOOR and claim.n_bytes > MAX_RATIO * size:
            claimed = f"an array claims {human_bytes(claim.n_bytes)} ({claim.shape})"
            raise _refuse_zarr(root, here, f"{claimed} but stores only {human_bytes(size)}")
        # A missing chunk reads as zeros, which values of a sparse matrix are not, unless all of them are.
        n, (folder, kind) = pieces.get(here, 0), os.path.split(here)
        is_sparse = kind in ("data", "indices") and os.path.join(folder, "indptr") in claims
        if is_sparse and n < claim.n_pieces:
            what = f"{claim.n_pieces - n:,} of {claim.n_pieces:,} chunks of the array are missing"
            if kind == "indices":
                lacking[here] = what
            elif n:
                raise _refuse_zarr(root, here, what)
    return lacking


@dataclass(frozen=True)
class _ZarrClaim:
    """Size and number of chunks of an array, from its metadata."""

    n_bytes: int
    n_pieces: int
    shape: str


def _zarr_claim(folder: Path, root: Path, here: str, memory: int) -> _ZarrClaim | None:
    """Return the claimed size of an array; None for a group."""
    name = ".zarray" if (folder / ".zarray").exists() else "zarr.json"
    path = folder / name
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _MAX_ZARR_METADATA:
        raise _refuse_zarr(root, here, f"{name} is not a regular file, or is too large")
    with reading(root, here):
        described: dict[str, Any] = json.loads(path.read_bytes())
        if name == "zarr.json" and described.get("node_type") == "group":
            return None
        shape = [int(n) for n in described["shape"]]
        if name == ".zarray":
            pieces = [int(n) for n in described["chunks"]]
            codecs = [described.get("compressor"), *(described.get("filters") or [])]
            names = [str(codec["id"]) for codec in codecs if codec]
            dtype = _dtype_of(described["dtype"])
            item = dtype.itemsize
            if dtype.hasobject and "vlen-utf8" not in names:
                raise _refuse_zarr(
                    root, here, "the array holds pickled or unknown objects, which scvec does not load"
                )
        else:
            pieces = [int(n) for n in described["chunk_grid"]["configuration"]["chunk_shape"]]
            names = _codec_names(described["codecs"])
            kind = described["data_type"]
            item = 16 if kind in ("string", "bytes") or not isinstance(kind, str) else np.dtype(kind).itemsize
        if min([*shape, *pieces], default=0) < 0 or len(shape) != len(pieces):
            raise _refuse_zarr(root, here, "the shape of the array is invalid")
    odd = sorted(set(names) - _ZARR_CODECS)
    if odd:
        raise _refuse_zarr(root, here, f"the array is compressed by '{odd[0]}', which scvec does not support")
    piece = prod(pieces) * item
    if piece > max(memory // 4, RATIO_FLOOR):
        raise _refuse_zarr(
            root,
            here,
            f"the values are stored in chunks of {human_bytes(piece)}, which is too large for --memory",
        )
    n_pieces = prod(-(-n // max(k, 1)) for n, k in zip(shape, pieces, strict=True))
    return _ZarrClaim(prod(shape) * item, n_pieces, " x ".join(f"{n:,}" for n in shape))


def _dtype_of(described: Any) -> np.dtype[Any]:
    """Return a dtype from its JSON, in which the fields of a record are lists, as in rank_genes_groups."""
    if isinstance(described, str):
        return np.dtype(described)
    fields: Any = [(str(name), _dtype_of(kind), *map(tuple, shape)) for name, kind, *shape in described]
    record: np.dtype[Any] = np.dtype(fields)
    return record


def _codec_names(codecs: list[dict[str, Any]]) -> list[str]:
    """Return the names of codecs, including those within shards."""
    names = []
    for codec in codecs:
        names.append(str(codec["name"]))
        inner = codec.get("configuration") or {}
        for key in ("codecs", "index_codecs"):
            names += _codec_names(inner.get(key, []))
    return names


def _refuse_zarr(root: Path, here: str, what: str) -> InputError:
    return InputError(what, f"{root} ({os.path.normpath(here)})", _ZARR_ANEW, code="damaged-file")


_GZ_FIX = "unpack it first: gunzip FILE"
_EXCEL_FIX = "save the sheet of genes and cells as text (.csv)"
_R_FIX = "in R: zellkonverter::writeH5AD(as.SingleCellExperiment(object), 'out.h5ad')"
_TABLE_FIX = "make an AnnData with cell and gene names from it, and write it with write_h5ad()"
# (first bytes, what it is, how to fix it)
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"BZh", "a bzip2 file", "unpack it first: bunzip2 FILE"),
    (b"\xfd7zXZ\x00", "an xz file", "unpack it first: unxz FILE"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "unpack it first: unzstd FILE"),
    (b"RDX", "an R data file", _R_FIX),
    (b"X\n\x00\x00", "an R .rds file", _R_FIX),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8: iconv -f utf-16 -t utf-8 FILE > new.csv"),
    (b"PAR1", "a parquet table", _TABLE_FIX),
    (
        b"%%MatrixMarket",
        "a Matrix Market file",
        "give its folder, with features.tsv and barcodes.tsv",
    ),
    (b"\x93NUMPY", "a NumPy array", _TABLE_FIX),
    (b"ARROW1", "a feather table", _TABLE_FIX),
    (b"MATLAB 5.0 MAT", "a MATLAB file", _TABLE_FIX),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook", _EXCEL_FIX),
    (b"%PDF", "a PDF", ""),
    (b"\x0e\x03\x13\x01", "an HDF4 file", "convert it to HDF5 (h5ad) first"),
    (b"version https://git-lfs", "a Git LFS pointer, not the data", "fetch the data with: git lfs pull"),
)


def guess_kind(path: Path, head: bytes) -> tuple[str, str]:
    """Return (the likely format, the fix) from the first bytes of a file and its name.

    Parameters
    ----------
    head
        At least the first 512 bytes, or the whole file if it is shorter.
    """
    if head.startswith(b"\x1f\x8b"):
        if path.suffix.lower() == ".rds":
            return "an R .rds file", _R_FIX
        if path.name.lower().endswith((".tar.gz", ".tgz")):
            return "a tar archive", "unpack it first: tar xf FILE"
        return "a gzip file", _GZ_FIX
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(head)
    for signature, what, fix in _SIGNATURES:
        if head.startswith(signature):
            return what, fix
    text = head.lstrip().lower()
    if text.startswith((b'{"', b"[{", b"{\n", b"{\r")):
        return "JSON", ""
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page, so the download failed", "download the file again"
    if head[257:262] == b"ustar":
        return "a tar archive", "unpack it first: tar xf FILE"
    if not head.strip(b"\x00"):
        return "zero bytes only, so a copy or download was interrupted", "copy or download the file again"
    if b"\x00" not in head:
        line = head.split(b"\n", 1)[0]
        for separator, what in ((b"\t", "a tab-separated text table"), (b",", "a CSV text table")):
            if separator in line:
                return what, "load it with anndata.io.read_csv() (cells as rows), then write_h5ad()"
        return "a text file", ""
    return "an unknown format", ""


def _kind_of_zip(head: bytes) -> tuple[str, str]:
    """Recognise a zip archive by the name of its first member, which is in the first bytes."""
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    if name.startswith((b"[Content_Types]", b"xl/", b"docProps/", b"_rels/")):
        return "an Excel workbook", _EXCEL_FIX
    if name.endswith(b".npy"):
        return "an archive of NumPy arrays", _TABLE_FIX
    return "a zip archive", "unpack it first; for a zarr store, give the folder"


def foreign_hdf5(names: Collection[str]) -> tuple[str, str] | None:
    """Return (format, fix) if the root of an HDF5 file belongs to another format, else None."""
    here = set(names)
    if "matrix" in here and {"row_attrs", "col_attrs"} & here:
        return "a loom file", "convert it: anndata.io.read_loom(FILE, X_name='').write_h5ad('out.h5ad')"
    if "matrix" in here and "obs" not in here:
        return "a 10x Genomics h5 file", "give one that holds a matrix/barcodes, or an .h5ad"
    if "mod" in here:
        return "a MuData file (.h5mu)", "write its RNA part: mudata.read(FILE)['rna'].write_h5ad('out.h5ad')"
    if "assays" in here and ("cell.names" in here or "meta.data" in here):
        return "an h5Seurat file", "in R: SeuratDisk::Convert(FILE, dest = 'h5ad')"
    if not here & {"X", "layers", "raw", "raw.X"} and not {"obs", "var"} <= here:
        shown = ", ".join(sorted(here)[:5]) or "nothing"
        what = f"HDF5 but not an AnnData file (it holds {shown})"
        return what, ""
    return None


def decoded(text: bytes) -> str:
    """Decode UTF-8 text, or Latin-1, which older programs write."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("latin-1")


def hard_items(group: h5py.Group) -> dict[str, Any]:
    """Return the hard-linked members of a group, without links that lead elsewhere."""
    names = [name for name in group if isinstance(group.get(name, getlink=True), h5py.HardLink)]
    return {name: group[name] for name in names}
