"""Open whatever holds cells on a disk, checked, by what it is and not by what it is called."""

from __future__ import annotations

import os
from pathlib import Path

import h5py

from scvec.ingest.cells.readers.anndata import Contents, contents_of_file
from scvec.ingest.cells.readers.checks import is_tenx, is_zarr, open_h5ad, open_zarr
from scvec.ingest.cells.readers.tenx import contents_of_mtx, contents_of_tenx, is_mtx

__all__ = ["contents_of", "is_h5ad"]


def is_h5ad(path: str | os.PathLike[str]) -> bool:
    """Return whether a file that was checked is an h5ad, and not one of Cell Ranger's."""
    with h5py.File(path, "r", locking="best-effort") as file:
        return not is_tenx(file)


def contents_of(path: str | os.PathLike[str], memory: int) -> Contents:
    """Check and open an h5ad, a zarr folder, or a file or folder of Cell Ranger.

    Raises
    ------
    InputError
        If it is none of them or damaged.
    ResourceError
        If it needs more than ``memory``.
    """
    path = Path(path)
    if path.is_dir() and is_zarr(path):
        return contents_of_file(open_zarr(path, memory=memory), path, memory)
    if path.is_dir() and is_mtx(path):
        return contents_of_mtx(path, memory)
    file = open_h5ad(path, memory=memory, others=True)
    try:
        return contents_of_tenx(file, path, memory) if is_tenx(file) else contents_of_file(file, path, memory)
    except BaseException:
        file.close()
        raise
