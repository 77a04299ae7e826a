"""Large arrays kept in files that nobody sees, so that they need no memory while nothing looks at them."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import shutil
import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["empty", "release", "reserved", "trim", "zeros_of_cells"]

#: Bytes of arrays that are worth files.
LARGE = 64 << 20


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return an array to fill, in a temporary file if there is room on the disk, else in memory.

    The file has no name, so that it is gone with the array, and with a process that is killed.
    """
    try:
        return reserved(shape, dtype)
    except OSError:  # a full or a read-only disk: memory is what is left
        return np.empty(shape, dtype)


def reserved(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return an array to fill, in a temporary file without a name whose place on the disk is reserved.

    Raises
    ------
    OSError
        If there is no room, or no folder for temporary files.
    """
    n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if not n_bytes:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="scvec-") as file:
        _reserve(file.fileno(), n_bytes)
        return np.memmap(file, dtype=dtype, mode="r+", shape=shape)


def zeros_of_cells(n: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return (n,) zeros, one a cell, in a temporary file from half a million cells on."""
    if n * np.dtype(dtype).itemsize < LARGE // 16:
        return np.zeros(n, dtype)
    made = empty((n,), dtype)
    if not isinstance(made, np.memmap):  # a new file reads as zeros
        made[:] = 0
    return made


def release(array: npt.NDArray[Any]) -> None:
    """Let go of the memory that looking at an array took, if it lies in a file. Nothing in it changes."""
    mapped = getattr(array, "_mmap", None)
    if isinstance(mapped, mmap.mmap) and hasattr(mapped, "madvise"):
        mapped.madvise(mmap.MADV_DONTNEED)


def trim() -> None:
    """Give memory that was freed back to the system, where the C library is one that keeps it (glibc)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _reserve(fd: int, n_bytes: int) -> None:
    """Give a file its size and its place on the disk: one that filled up later would end the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, n_bytes)
        return
    if shutil.disk_usage(tempfile.gettempdir()).free < 2 * n_bytes:
        raise OSError("the disk is nearly full")
    os.ftruncate(fd, n_bytes)
