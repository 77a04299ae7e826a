"""Compact arrays for many cells: categories, Arrow strings, and temporary files for large arrays.

An array of Python objects takes 8 bytes a cell for a label, and 70 for a name. A category takes one or two
bytes; an Arrow string takes 8 bytes more than its characters. The array of objects is made on first use.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Packed",
    "Texts",
    "blocks",
    "code_type",
    "coded",
    "counts",
    "empty",
    "holds_texts",
    "release",
    "reserved",
    "texts_of",
    "trim",
    "zeros_of_cells",
]

#: Arrays of at least this many bytes lie in a file.
LARGE = 64 << 20


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return an uninitialized array in a temporary file, or in memory if the disk is full.

    The file has no name, so the system deletes it with the array, also when the process is killed.
    """
    try:
        return reserved(shape, dtype)
    except OSError:  # the disk is full or read-only
        return np.empty(shape, dtype)


def reserved(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return an uninitialized array in a temporary file without a name; its disk space is reserved.

    Raises
    ------
    OSError
        If the disk is full, or there is no folder for temporary files.
    """
    n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if not n_bytes:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="scvec-") as file:
        _reserve(file.fileno(), n_bytes)
        return np.memmap(file, dtype=dtype, mode="r+", shape=shape)


def zeros_of_cells(n: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return (n,) zeros, one for each cell. Arrays of 4 MiB or more lie in a temporary file."""
    if n * np.dtype(dtype).itemsize < LARGE // 16:
        return np.zeros(n, dtype)
    made = empty((n,), dtype)
    if not isinstance(made, np.memmap):  # a new file reads as zeros
        made[:] = 0
    return made


def release(array: npt.NDArray[Any]) -> None:
    """Free the memory pages of an array that lies in a file. The values stay."""
    mapped = getattr(array, "_mmap", None)
    if isinstance(mapped, mmap.mmap) and hasattr(mapped, "madvise"):
        mapped.madvise(mmap.MADV_DONTNEED)


def trim() -> None:
    """Return freed memory to the system. The C library glibc keeps it otherwise."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _reserve(fd: int, n_bytes: int) -> None:
    """Set the size of a file and reserve its disk space.

    Without a reservation, a disk that becomes full later ends the process with a bus error.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, n_bytes)
        return
    if shutil.disk_usage(tempfile.gettempdir()).free < 2 * n_bytes:
        raise OSError("the disk is nearly full")
    os.ftruncate(fd, n_bytes)


T = TypeVar("T")
#: One text for each cell, of few different texts. The categories are the texts that occur, sorted.
Texts: TypeAlias = "pd.Categorical[Any]"
Strings = npt.NDArray[np.object_]

#: Number of cells whose names become Python objects at once during writing.
BLOCK_ROWS = 2**16


def blocks(n: int, size: int = BLOCK_ROWS) -> Iterator[slice]:
    """Yield slices of at most ``size`` rows that cover ``n`` rows."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def code_type(n_texts: int) -> np.dtype[Any]:
    """Return the smallest signed integer type that holds the numbers below ``n_texts``."""
    return np.dtype(next(t for t in (np.int8, np.int16, np.int32) if n_texts <= np.iinfo(t).max + 1))


def coded(codes: npt.NDArray[Any], texts: Iterable[Any]) -> Texts:
    """Return n texts as categories, from codes into a short list of texts.

    Parameters
    ----------
    codes
        (n,) integers from 0: positions in ``texts``.
    texts
        The text of each code. Texts may repeat.
    """
    import pandas as pd

    names = np.array([str(t) for t in texts], dtype=object)
    occurring = np.flatnonzero(np.bincount(codes, minlength=len(names)))
    few = pd.Categorical(names[occurring])
    number = np.zeros(len(names), dtype=few.codes.dtype)
    number[occurring] = few.codes
    return pd.Categorical.from_codes(number[codes], dtype=few.dtype)


def counts(texts: Texts) -> dict[str, int]:
    """Return text -> number of cells, the largest number first, ties in alphabetical order."""
    found = np.bincount(texts.codes, minlength=len(texts.categories))
    return {str(texts.categories[i]): int(found[i]) for i in np.argsort(-found, kind="stable") if found[i]}


class Packed:
    """Names of n cells, packed as UTF-8 in one Arrow array.

    Parameters
    ----------
    values
        (n,) strings.
    """

    def __init__(self, values: Any) -> None:
        import pyarrow as pa

        given = np.asarray(values, dtype=object)
        if given.ndim != 1:
            raise ValueError(f"names of shape {given.shape}")
        self._values: Any = given
        try:
            # Arrow's own memory pool does not return memory to the system.
            self._values = pa.array(given, pa.large_string(), memory_pool=pa.system_memory_pool())
        except (UnicodeError, pa.ArrowException):
            return  # half of a surrogate pair has no UTF-8 form: such names stay Python objects

    @classmethod
    def gather(cls, parts: Iterable[Any]) -> Packed:
        """Return the names of several parts as one. Each part is packed before the next one is read."""
        import pyarrow as pa

        found = [cls(part)._values for part in parts]
        packed = cls([])
        if any(isinstance(values, np.ndarray) for values in found):
            packed._values = np.concatenate([np.asarray(values, dtype=object) for values in found])
        elif found:
            packed._values = pa.concat_arrays(found, memory_pool=pa.system_memory_pool())
        return packed

    def __len__(self) -> int:
        return len(self._values)

    def all_differ(self) -> bool:
        """Return whether all names are different."""
        import pandas as pd

        if isinstance(self._values, np.ndarray):
            return len(set(self._values)) == len(self)
        # Equal names have equal hashes. A set of all names would take ten times the memory.
        hashes = np.empty(len(self), dtype=np.uint64)
        for rows in blocks(len(self)):
            hashes[rows] = pd.util.hash_array(self.part(rows), categorize=False)
        hashes.sort()
        return not (hashes[1:] == hashes[:-1]).any() or len(set(self.to_array())) == len(self)

    def __getitem__(self, row: int) -> str:
        return str(self._values[int(row)])

    def part(self, rows: slice) -> Strings:
        """Return the names of the given rows as Python strings."""
        return np.asarray(self._values[rows], dtype=object)

    def to_array(self) -> Strings:
        """Return all names as an (n,) object array of strings."""
        return np.array(self._values, dtype=object)


class TextAttribute:
    """An attribute that stores texts in compact form and returns them as an object array.

    The compact value lies in ``vars(instance)`` under the attribute's name. The first read replaces it with
    the array, so the array is made once and changes in it are kept.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        held = vars(instance)[self._name]
        if isinstance(held, Packed):
            held = vars(instance)[self._name] = held.to_array()
        elif hasattr(held, "categories"):
            held = vars(instance)[self._name] = np.asarray(held, dtype=object)
        return held

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[self._name] = value


def holds_texts(*names: str) -> Callable[[type[T]], type[T]]:
    """Return a decorator that makes attributes of a dataclass :class:`TextAttribute`.

    Write it above ``@dataclass``. Field values would not work: ``@dataclass`` takes them for defaults.
    """

    def changed(owner: type[T]) -> type[T]:
        for name in names:
            setattr(owner, name, TextAttribute(name))
        return owner

    return changed


def texts_of(instance: Any, name: str) -> Texts:
    """Return the labels in a :class:`TextAttribute` as categories, without making the object array."""
    import pandas as pd

    held = vars(instance)[name]
    return held if isinstance(held, pd.Categorical) else pd.Categorical(np.asarray(held, dtype=object))
