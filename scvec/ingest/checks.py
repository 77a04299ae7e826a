"""Look into an h5ad before anything reads it.

HDF5 can point out of its file: external links, external storage and virtual datasets make a reader
open other files without a word, and a few bytes can claim a matrix of terabytes. anndata follows all of
that, so every file is walked here first with the low-level API, which reads metadata only.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import h5py

from scvec.errors import InputError
from scvec.ingest.borders import parse_memory, reading, size_text
from scvec.ingest.file_kinds import foreign_hdf5, guess_kind, is_tenx
from scvec.ingest.global_heaps import broken_heap

__all__ = ["check_h5ad", "open_h5ad"]

MAX_DEPTH = 64
MAX_OBJECTS = 1_000_000
# gzip cannot shrink more than 1,032 to 1. Datasets under the floor cannot hurt whatever they claim.
MAX_RATIO = 5_000
RATIO_FLOOR = 64 * 2**20
_READ = ("X", "layers", "raw", "raw.X", "raw.var", "obs", "var")
_AGAIN = "copy or download it again"
_ANEW = "copy or download it again, or write it anew with adata.write_h5ad()"
_SHARED_FIX = "write a self-contained copy with adata.write_h5ad(), if you trust where it points"


def check_h5ad(path: str | os.PathLike[str], *, memory: str | int | None = None) -> None:
    """Refuse a file that is no h5ad, is damaged, points out of itself, or claims what it cannot hold.

    Parameters
    ----------
    path
        The file. It is read through once at the speed of the disk; nothing is unpacked.
    memory
        What may be used, see :func:`scvec.ingest.borders.parse_memory`; a file that is stored in pieces
        of more than a quarter of it is refused.

    Raises
    ------
    InputError
        With what is wrong and how to mend it.
    """
    open_h5ad(path, memory=memory).close()


def open_h5ad(
    path: str | os.PathLike[str], *, memory: str | int | None = None, others: bool = False
) -> h5py.File:
    """Check a file as :func:`check_h5ad` does and return it open for reading.

    Parameters
    ----------
    others
        Files of Cell Ranger are let through too.
    """
    path = Path(path)
    _check_regular_file(path)
    try:
        file = h5py.File(path, "r", locking="best-effort")
    except Exception as error:
        raise _open_error(path, error) from error
    try:
        with reading(path):
            heap = broken_heap(path)
            if heap is not None:
                raise InputError(
                    f"the file is damaged: its texts cannot be read (at byte {heap:,})", str(path), _ANEW
                )
            foreign = foreign_hdf5(list(file))
            tenx = others and is_tenx(file)
            if foreign and not tenx:
                raise InputError(f"this is {foreign[0]}", str(path), foreign[1])
            read = tuple(file) if tenx else _READ
            _Walk(path, path.stat().st_size, parse_memory(memory), read).walk(file.id)
    except BaseException:
        file.close()
        raise
    return file


def _check_regular_file(path: Path) -> None:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            fix = "give the .h5ad file itself, or a zarr or 10x Genomics folder"
            raise InputError("this is a folder, not a file", str(path), fix)
        if not stat.S_ISREG(status.st_mode):
            # Opening a pipe would wait for ever.
            raise InputError("this is a pipe or a device, not a file", str(path), "give an .h5ad file")
        if status.st_size == 0:
            raise InputError("the file is empty (0 bytes)", str(path), _AGAIN)
        with path.open("rb") as handle:
            head = handle.read(512)
    except (OSError, ValueError) as error:
        raise _stat_error(path, error) from error
    if not h5py.is_hdf5(path):
        if head.startswith(b"\x89HDF"):
            raise InputError("the HDF5 file is damaged at its very start", str(path), _AGAIN)
        what, fix = guess_kind(path, head)
        raise InputError(f"this is no h5ad file: it looks like {what}", str(path), fix)


def _stat_error(path: Path, error: OSError | ValueError) -> InputError:
    code = getattr(error, "errno", None)
    if code in (errno.ENOENT, errno.ENOTDIR):
        if not path.parent.is_dir():
            return InputError("no such file", str(path), f"check the path: there is no folder {path.parent}")
        near = _similar_files(path)
        return InputError("no such file", str(path), f"did you mean {near}?" if near else "check the path")
    if code in (errno.EACCES, errno.EPERM):
        fix = "ask for read permission: chmod +r FILE"
        return InputError("the file may not be read (permission denied)", str(path), fix)
    reason = os.strerror(code) if code else str(error)
    return InputError(f"the file cannot be read: {reason}", str(path), "check the path")


def _similar_files(path: Path) -> str:
    import difflib

    try:
        names = [entry.name for entry in os.scandir(path.parent)][:5000]
    except OSError:
        return ""
    return ", ".join(difflib.get_close_matches(path.name, names, n=2))


def _open_error(path: Path, error: Exception) -> InputError:
    text = str(error)
    if "truncated file" in text:
        size = size_text(path.stat().st_size)
        return InputError(f"the file is truncated: it breaks off after {size}", str(path), _AGAIN)
    if "unable to lock" in text or "already open for write" in text:
        return InputError(
            "another program has the file open for writing, or left it open when it died",
            str(path),
            "close that program; if there is none, clear the mark with: h5clear -s FILE",
        )
    return InputError(f"the HDF5 file is damaged: {text.splitlines()[0]}", str(path), _AGAIN)


@dataclass
class _Walk:
    """A walk over every object of a file, each visited once however many links lead to it."""

    path: Path
    file_size: int
    memory: int
    read: tuple[str, ...] = _READ
    seen: set[int] = field(default_factory=set)

    def walk(self, root: h5py.h5g.GroupID) -> None:
        """Visit all groups and datasets, or raise ``InputError`` at the first that is not safe."""
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
            return False  # it stays in the file, where its target is walked or refused under its own name
        if kind == h5py.h5l.TYPE_EXTERNAL:
            target = group.links.get_val(name)[0].decode("utf-8", "replace")
            what = f"the file links to another file ({target}), which scvec does not open"
            raise self._refuse(what, where, _SHARED_FIX)
        raise self._refuse("the file holds a user-defined link, which may lead anywhere", where, _SHARED_FIX)

    def _check_types(self, item: h5py.h5g.GroupID | h5py.h5d.DatasetID | h5py.h5t.TypeID, where: str) -> None:
        # A variable-length string that damage turned into a sequence makes HDF5 write through a null
        # pointer. anndata stores no sequences, so there is none to miss.
        types = [h5py.h5a.open(item, index=k).get_type() for k in range(h5py.h5a.get_num_attrs(item))]
        if isinstance(item, h5py.h5d.DatasetID):
            types.append(item.get_type())
        if any(isinstance(kind, h5py.h5t.TypeVlenID) for kind in types):
            raise self._refuse("the file holds values of a type that no h5ad has, or is damaged", where)

    def _check_dataset(self, dataset: h5py.h5d.DatasetID, where: str) -> None:
        made = dataset.get_create_plist()
        if made.get_layout() == h5py.h5d.VIRTUAL:
            raise self._refuse("a virtual dataset takes its values from other files", where, _SHARED_FIX)
        if made.get_external_count() > 0:
            target = made.get_external(0)[0].decode("utf-8", "replace")
            what = f"the values lie outside the file, in {target} (external storage)"
            raise self._refuse(what, where, _SHARED_FIX)
        item_size = dataset.get_type().get_size()
        logical = dataset.get_space().get_simple_extent_npoints() * item_size
        stored = dataset.get_storage_size()
        if stored > self.file_size:
            raise self._refuse("a dataset claims more bytes than the file has: the file is damaged", where)
        if logical > RATIO_FLOOR and logical > MAX_RATIO * stored:
            claim = f"a dataset claims {size_text(logical)} but stores only {size_text(stored)}"
            raise self._refuse(claim, where)
        if made.get_layout() == h5py.h5d.CHUNKED and where.split("/")[1] in self.read:
            self._check_chunks(made, item_size, where)

    def _check_chunks(self, made: h5py.h5p.PropDCID, item_size: int, where: str) -> None:
        chunk = item_size
        for length in made.get_chunk():
            chunk *= length
        if chunk > max(self.memory // 4, RATIO_FLOOR):
            what = f"the values are stored in pieces of {size_text(chunk)}, too large to read"
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
        return InputError(what, f"{self.path} ({shown})", fix)
