"""Write what a zarr folder or Cell Ranger's files hold as an h5ad, block by block."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from scvec.ingest.borders import parse_memory, reading
from scvec.ingest.contents import Contents
from scvec.ingest.matrices import MatrixReader, open_matrix
from scvec.ingest.openers import contents_of
from scvec.ingest.zarr_safety import is_zarr, open_zarr

__all__ = ["write_as_h5ad"]

#: Parts of an AnnData beside tables and matrices; each is small against the matrices.
_OTHERS = ("obsm", "varm", "obsp", "varp", "uns")
_PIECE = 2**17
#: Share of the memory that a block of rows may take.
_SHARE = 16


def write_as_h5ad(source: Path, target: Path, room: int = 0, memory: str | int | None = None) -> None:
    """Write all that a folder or file other than an h5ad holds to ``target``, an empty file.

    Matrices become CSR, float32 where their values have four bytes or fewer, and are never whole in memory.

    Parameters
    ----------
    room
        Bytes that are going to be added afterwards. Space for all is reserved before HDF5 writes anything:
        it cannot cope with a disk that fills up.
    memory
        What may be used, see :func:`scvec.ingest.borders.parse_memory`.

    Raises
    ------
    InputError, ResourceError
        As :func:`scvec.ingest.openers.contents_of`.
    """
    from anndata.io import read_elem, write_elem

    limit = parse_memory(memory)
    contents = contents_of(source, limit)
    try:
        readers = {name: _open(contents, name, limit) for name in contents.places}
        with h5py.File(target, "w"):
            pass
        _reserve(target, room + sum(_size(reader) for reader in readers.values()))
        with h5py.File(target, "r+", locking="best-effort") as file:
            file.attrs["encoding-type"], file.attrs["encoding-version"] = "anndata", "0.1.0"
            write_elem(file, "obs", contents.obs)
            tables = [place.var() for name, place in contents.places.items() if name != "raw"]
            if tables:
                write_elem(file, "var", tables[0])
            for name, reader in readers.items():
                if name == "raw":
                    write_elem(file, "raw/var", contents.places[name].var())
                _write_rows(file, "raw/X" if name == "raw" else name, reader, limit)
            if source.is_dir() and is_zarr(source):
                root = open_zarr(source, memory=limit)
                for name in _OTHERS:
                    if name in root:
                        with reading(source, name):
                            value = read_elem(root[name])
                        write_elem(file, name, value)
    finally:
        contents.close()


def _open(contents: Contents, name: str, memory: int) -> MatrixReader:
    place = contents.places[name]
    return open_matrix(place.item, f"{contents.name} ({name})", contents.n_obs, len(place.var()), memory)


def _size(reader: MatrixReader) -> int:
    """Return bytes that a matrix may take as CSR, at most."""
    return 12 * reader.n_values + 16 * reader.shape[0]


def _reserve(target: Path, n_bytes: int) -> None:
    if not hasattr(os, "posix_fallocate"):
        return
    with target.open("r+b") as handle, contextlib.suppress(NotImplementedError):
        os.posix_fallocate(handle.fileno(), handle.seek(0, os.SEEK_END), n_bytes)


def _write_rows(file: h5py.File, name: str, reader: MatrixReader, memory: int) -> None:
    """Write a matrix as a CSR group, a block of rows at a time."""
    group = file.create_group(name)
    group.attrs["encoding-type"], group.attrs["encoding-version"] = "csr_matrix", "0.1.0"
    group.attrs["shape"] = np.array(reader.shape)
    options: dict[str, Any] = {"chunks": (_PIECE,), "maxshape": (None,), "compression": "gzip"}
    data = group.create_dataset("data", (0,), dtype=reader.stored_dtype, **options)
    indices = group.create_dataset("indices", (0,), dtype=np.int32, **options)
    indptr = np.zeros(reader.shape[0] + 1, dtype=np.int64)
    step = reader.rows_within(memory // _SHARE)
    for start in range(0, reader.shape[0], step):
        block = reader.rows(start, min(start + step, reader.shape[0]))
        end = int(indptr[start]) + block.nnz
        for stored, values in ((data, block.data), (indices, block.indices)):
            stored.resize((end,))
            stored[end - block.nnz :] = values
        indptr[start + 1 : start + 1 + block.shape[0]] = indptr[start] + block.indptr[1:]
    group.create_dataset("indptr", data=indptr)
