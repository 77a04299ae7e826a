"""Arrays of many cells in little memory: categories, Arrow strings, and temporary files for large arrays.

An array of objects takes 8 bytes a cell for a label, and 70 for a name. A category takes one or two, Arrow 8
more than the characters of a name. The array of objects is made on first use.
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

#: Bytes from which on an array lies in a file.
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


T = TypeVar("T")
#: A text of a few for each cell; only texts that occur are categories, by the alphabet.
Texts: TypeAlias = "pd.Categorical[Any]"
Strings = npt.NDArray[np.object_]

#: Cells whose names are objects at a time while they are written.
BLOCK_ROWS = 2**16


def blocks(n: int, size: int = BLOCK_ROWS) -> Iterator[slice]:
    """Yield slices of at most ``size`` that cover ``n`` rows."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def code_type(n_texts: int) -> np.dtype[Any]:
    """Return the smallest signed type of numbers below ``n_texts``."""
    return np.dtype(next(t for t in (np.int8, np.int16, np.int32) if n_texts <= np.iinfo(t).max + 1))


def coded(codes: npt.NDArray[Any], texts: Iterable[Any]) -> Texts:
    """Return n texts that are given as numbers into a few.

    Parameters
    ----------
    codes
        (n,) numbers into ``texts``, whole and not negative.
    texts
        What the numbers stand for; several may be the same.
    """
    import pandas as pd

    names = np.array([str(t) for t in texts], dtype=object)
    occurring = np.flatnonzero(np.bincount(codes, minlength=len(names)))
    few = pd.Categorical(names[occurring])
    number = np.zeros(len(names), dtype=few.codes.dtype)
    number[occurring] = few.codes
    return pd.Categorical.from_codes(number[codes], dtype=few.dtype)


def counts(texts: Texts) -> dict[str, int]:
    """Return how many cells have each text, most first, then by the alphabet."""
    found = np.bincount(texts.codes, minlength=len(texts.categories))
    return {str(texts.categories[i]): int(found[i]) for i in np.argsort(-found, kind="stable") if found[i]}


class Packed:
    """Names of n cells, in UTF-8 one behind the other.

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
            # Not of Arrow's own pool, which gives nothing back.
            self._values = pa.array(given, pa.large_string(), memory_pool=pa.system_memory_pool())
        except (UnicodeError, pa.ArrowException):
            return  # half a surrogate pair has no UTF-8: such names stay objects

    @classmethod
    def gather(cls, parts: Iterable[Any]) -> Packed:
        """Return the names of parts as one; each is let go once it is packed."""
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
        """Return whether no two names are the same."""
        import pandas as pd

        if isinstance(self._values, np.ndarray):
            return len(set(self._values)) == len(self)
        # Names that are the same have the same hash; a table of all names would take ten times as much.
        hashes = np.empty(len(self), dtype=np.uint64)
        for rows in blocks(len(self)):
            hashes[rows] = pd.util.hash_array(self.part(rows), categorize=False)
        hashes.sort()
        return not (hashes[1:] == hashes[:-1]).any() or len(set(self.to_array())) == len(self)

    def __getitem__(self, row: int) -> str:
        return str(self._values[int(row)])

    def part(self, rows: slice) -> Strings:
        """Return the names of some rows as objects."""
        return np.asarray(self._values[rows], dtype=object)

    def to_array(self) -> Strings:
        """Return (n,) strings, as objects."""
        return np.array(self._values, dtype=object)


class TextAttribute:
    """An attribute that is an array of objects to whoever looks at it, and compact until somebody does.

    What is put into it stays in ``vars(instance)`` under its name; the array that is made of it takes its
    place, so that it is made once and what is changed in it is kept.
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
    """Make attributes of a dataclass :class:`TextAttribute`; above ``@dataclass``.

    Not as values of its fields: those would be taken for defaults.
    """

    def changed(owner: type[T]) -> type[T]:
        for name in names:
            setattr(owner, name, TextAttribute(name))
        return owner

    return changed


def texts_of(instance: Any, name: str) -> Texts:
    """Return what a :class:`TextAttribute` of labels holds as categories; no array of objects is made."""
    import pandas as pd

    held = vars(instance)[name]
    return held if isinstance(held, pd.Categorical) else pd.Categorical(np.asarray(held, dtype=object))
