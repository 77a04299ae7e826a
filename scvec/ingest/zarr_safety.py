"""Look into a zarr folder before anything reads it.

A zarr store is a folder of small JSON files and of pieces of arrays. Links in it lead out of it, its
metadata may claim arrays of any size that no piece backs, and one of its codecs unpickles. All of that is
refused here, by metadata alone.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from scvec.errors import InputError
from scvec.ingest.borders import parse_memory, reading, size_text
from scvec.ingest.checks import MAX_DEPTH, MAX_OBJECTS, MAX_RATIO, RATIO_FLOOR

__all__ = ["is_zarr", "open_zarr"]

_METADATA = (".zarray", ".zgroup", ".zattrs", "zarr.json")
_MAX_METADATA = 2**24
#: Codecs that turn bytes into numbers and texts, and nothing else. ``pickle``, ``json2`` and ``msgpack2``
#: make objects.
_CODECS = frozenset(
    "bytes transpose sharding_indexed crc32c crc32 adler32 fletcher32 gzip zlib zstd blosc lz4 bz2 lzma "
    "shuffle delta fixedscaleoffset packbits bitround vlen-utf8 vlen-bytes numcodecs.blosc numcodecs.zstd "
    "numcodecs.zlib numcodecs.gzip numcodecs.lz4 numcodecs.bz2 numcodecs.lzma numcodecs.shuffle "
    "numcodecs.delta".split()
)
_ANEW = "copy it again, or write it anew with adata.write_zarr()"


def is_zarr(path: Path) -> bool:
    """Return whether a folder is a zarr group."""
    return any((path / name).is_file() for name in (".zgroup", "zarr.json"))


def open_zarr(path: Path, *, memory: str | int | None = None) -> Any:
    """Check a zarr folder and return its root group, open for reading.

    Raises
    ------
    InputError
        If it is damaged, leads out of itself, claims what it does not hold, or holds pickled objects.
    """
    _check(path, parse_memory(memory))
    import zarr

    with reading(path):
        # Metadata gathered in one place could differ from those that were checked.
        return zarr.open_group(str(path), mode="r", use_consolidated=False)


def _check(root: Path, memory: int) -> None:
    """Go through all files once; sizes of pieces are added up per array."""
    claims: dict[str, _Claim] = {}
    stored: dict[str, int] = {}
    pieces: dict[str, int] = {}
    arrays: list[str] = []
    n_files = 0

    def fail(error: OSError) -> None:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise InputError(f"a folder cannot be read: {reason}", str(error.filename or root), _ANEW)

    for folder, folders, files in os.walk(root, onerror=fail):
        here = os.path.relpath(folder, root)
        if here.count(os.sep) > MAX_DEPTH:
            raise _refuse(root, here, f"folders are nested more than {MAX_DEPTH} deep")
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                raise _refuse(root, os.path.join(here, name), "a link leads out of the folder")
        n_files += len(files)
        if n_files > MAX_OBJECTS:
            raise _refuse(root, here, f"the folder holds more than {MAX_OBJECTS:,} files")
        if ".zarray" in files or "zarr.json" in files:
            claim = _claim(Path(folder), root, here, memory)
            if claim is not None:
                claims[here] = claim
                arrays.append(here)
        # Pieces of an array lie in its folder or below it; walks come to it first.
        owner = next((a for a in reversed(arrays) if here == a or here.startswith(a + os.sep)), None)
        for name in files:
            status = os.lstat(os.path.join(folder, name))
            if not stat.S_ISREG(status.st_mode):
                raise _refuse(root, os.path.join(here, name), "it is a link, pipe or device, not a file")
            if owner is not None:
                stored[owner] = stored.get(owner, 0) + status.st_size
                pieces[owner] = pieces.get(owner, 0) + (name not in _METADATA)
    for here, claim in claims.items():
        size = stored.get(here, 0)
        if claim.n_bytes > RATIO_FLOOR and claim.n_bytes > MAX_RATIO * size:
            told = f"an array claims {size_text(claim.n_bytes)} ({claim.shape})"
            raise _refuse(root, here, f"{told} but stores only {size_text(size)}")
        # A piece that is not there reads as zeros. Columns and values of sparse matrices are never that.
        if os.path.basename(here) in ("data", "indices") and pieces.get(here, 0) < claim.n_pieces:
            lacking = claim.n_pieces - pieces.get(here, 0)
            raise _refuse(root, here, f"{lacking:,} of {claim.n_pieces:,} pieces of the array are missing")


@dataclass(frozen=True)
class _Claim:
    """What the metadata of an array say of it."""

    n_bytes: int
    n_pieces: int
    shape: str


def _claim(folder: Path, root: Path, here: str, memory: int) -> _Claim | None:
    """Return what an array claims; None for a group."""
    name = ".zarray" if (folder / ".zarray").exists() else "zarr.json"
    path = folder / name
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _MAX_METADATA:
        raise _refuse(root, here, f"{name} is no plain file of a sensible size")
    with reading(root, here):
        described: dict[str, Any] = json.loads(path.read_bytes())
        if name == "zarr.json" and described.get("node_type") == "group":
            return None
        shape = [int(n) for n in described["shape"]]
        if name == ".zarray":
            pieces = [int(n) for n in described["chunks"]]
            codecs = [described.get("compressor"), *(described.get("filters") or [])]
            names = [str(codec["id"]) for codec in codecs if codec]
            item = np.dtype(described["dtype"]).itemsize
            if np.dtype(described["dtype"]).hasobject and "vlen-utf8" not in names:
                raise _refuse(root, here, "the array holds pickled or unknown objects, which are not loaded")
        else:
            pieces = [int(n) for n in described["chunk_grid"]["configuration"]["chunk_shape"]]
            names = _codec_names(described["codecs"])
            kind = described["data_type"]
            item = 16 if kind in ("string", "bytes") or not isinstance(kind, str) else np.dtype(kind).itemsize
        if min([*shape, *pieces], default=0) < 0 or len(shape) != len(pieces):
            raise _refuse(root, here, "the array's shape makes no sense")
    odd = sorted(set(names) - _CODECS)
    if odd:
        raise _refuse(root, here, f"the array is packed by '{odd[0]}', which scvec does not open")
    piece = prod(pieces) * item
    if piece > max(memory // 4, RATIO_FLOOR):
        raise _refuse(root, here, f"the values are stored in pieces of {size_text(piece)}, too large to read")
    n_pieces = prod(-(-n // max(k, 1)) for n, k in zip(shape, pieces, strict=True))
    return _Claim(prod(shape) * item, n_pieces, " x ".join(f"{n:,}" for n in shape))


def _codec_names(codecs: list[dict[str, Any]]) -> list[str]:
    """Return the names of codecs, of those within shards too."""
    names = []
    for codec in codecs:
        names.append(str(codec["name"]))
        inner = codec.get("configuration") or {}
        for key in ("codecs", "index_codecs"):
            names += _codec_names(inner.get(key, []))
    return names


def _refuse(root: Path, here: str, what: str) -> InputError:
    return InputError(what, f"{root} ({os.path.normpath(here)})", _ANEW)
