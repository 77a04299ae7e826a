"""Transpose matrices that are not stored by cell, with bounded memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from scvec.base import arrays
from scvec.base.errors import InputError, ResourceError
from scvec.base.results import human_bytes

__all__ = ["Origin", "Piece", "Transposed", "by_cell", "collected", "index_dtype", "values_within"]

#: Cell numbers, gene numbers and values, three arrays of equal length.
Piece: TypeAlias = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]

#: Fraction of the memory (1/8) for a matrix in memory; larger ones, and those above `arrays.LARGE`, go to
#: files. Three matrices of one file may be open at once, and a reference may have many files.
_SHARE = 8
#: Fraction of the memory (1/16) for the values being sorted, and the bytes of one value with all copies.
_WORK_SHARE, _WORK_BYTES = 16, 48
#: Most values sorted at a time: more are not faster.
_MOST = 2**22


@dataclass(frozen=True)
class Transposed:
    """A transposed matrix (CSR): arrays in memory, or in unnamed temporary files.

    Attributes
    ----------
    data, indices
        (n_values,) values, and int numbers of their genes, in input order within a cell.
    indptr
        (n_obs + 1,) int64: start of each cell's values.
    shape
        (n_obs, n_vars).
    """

    data: npt.NDArray[Any]
    indices: npt.NDArray[Any]
    indptr: npt.NDArray[np.int64]
    shape: tuple[int, int]

    def release(self) -> None:
        """Release the memory of the file pages that were read."""
        arrays.release(self.data)
        arrays.release(self.indices)


@dataclass(frozen=True)
class Origin:
    """Description of the transposed matrix, for messages.

    Attributes
    ----------
    where
        The file, and the place in it.
    reason
        Why it is transposed, such as "is CSC (stored by gene)".
    fix
        An alternative to freeing disk space.
    """

    where: str
    reason: str
    fix: str


def values_within(memory: int) -> int:
    """Return how many values may be sorted at a time."""
    return int(np.clip(memory // _WORK_SHARE // _WORK_BYTES, 1, _MOST))


def index_dtype(n: int) -> type[np.int32] | type[np.int64]:
    """Return the integer type for numbers of ``n`` cells or genes."""
    return np.int32 if n < 2**31 else np.int64


def by_cell(
    pieces: Iterable[Piece],
    counts: npt.NDArray[np.int64],
    n_vars: int,
    dtype: np.dtype[Any],
    origin: Origin,
    memory: int,
) -> Transposed:
    """Sort values by cell.

    The values are first distributed to ranges of cells, each small enough to be sorted in memory, and then
    sorted within each range. Files are thus written nearly sequentially. The sort is stable, and the result
    does not depend on the memory.

    Parameters
    ----------
    pieces
        The values, in pieces of at most :func:`values_within` values.
    counts
        (n_obs,) number of values of each cell; checked.
    n_vars
        Number of genes.
    dtype
        Dtype of the values.
    memory
        Bytes that may be used. Few values stay in memory; more go to temporary files.

    Raises
    ------
    InputError
        If ``counts`` disagree with the pieces, because the file changes while it is read.
    ResourceError
        If the disk has no room for the files.
    """
    indptr = _pointers(counts)
    shape = len(counts), n_vars
    cells, genes, data = columns = _room(int(indptr[-1]), shape, dtype, origin, memory)
    starts = _stretches(indptr, values_within(memory))
    _deal(pieces, columns, indptr, starts, origin)
    for first, last in pairwise(starts):
        if last - first == 1:  # the values of one cell need no sort
            continue
        a, b = int(indptr[first]), int(indptr[last])
        order = _order(cells[a:b] - cells.dtype.type(first), last - first)
        for column in (genes, data):
            column[a:b] = column[a:b][order]
        _release(columns)
    return Transposed(data, genes, indptr, shape)


def collected(
    pieces: Iterable[Piece],
    n_values: int,
    shape: tuple[int, int],
    dtype: np.dtype[Any],
    origin: Origin,
    memory: int,
) -> Transposed:
    """Sort values by cell if they can be read only once.

    The values are written in input order first. If they are already sorted by cell, as Cell Ranger writes
    them, nothing more is done.

    Parameters
    ----------
    pieces, dtype, origin, memory
        As of :func:`by_cell`.
    n_values
        Number of values; ``pieces`` must yield exactly as many.
    shape
        (n_obs, n_vars).

    Raises
    ------
    ResourceError
        If the disk has no room for temporary files.
    """
    columns = _room(n_values, shape, dtype, origin, memory)
    counts = np.zeros(shape[0], np.int64)
    end, last, in_order = 0, 0, True
    for piece in pieces:
        cells = piece[0]
        if len(cells) == 0:
            continue
        np.add.at(counts, cells, 1)
        in_order = in_order and int(cells[0]) >= last and bool(np.all(cells[1:] >= cells[:-1]))
        last = int(cells[-1])
        for column, values in zip(columns, piece, strict=True):
            column[end : end + len(cells)] = values
        end += len(cells)
        _release(columns)
    if in_order:
        return Transposed(columns[2], columns[1], _pointers(counts), shape)
    return by_cell(_again(columns, values_within(memory)), counts, shape[1], dtype, origin, memory)


def _again(columns: Piece, step: int) -> Iterator[Piece]:
    cells, genes, data = columns
    for a in range(0, len(data), step):
        yield cells[a : a + step], genes[a : a + step], data[a : a + step]
        _release(columns)


def _pointers(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    indptr = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    return indptr


def _release(columns: Piece) -> None:
    for column in columns:
        arrays.release(column)


def _room(n: int, shape: tuple[int, int], dtype: np.dtype[Any], origin: Origin, memory: int) -> Piece:
    """Allocate arrays for ``n`` values: cells, genes, data."""
    kinds = [np.dtype(index_dtype(shape[0])), np.dtype(index_dtype(shape[1])), dtype]
    n_bytes = n * sum(kind.itemsize for kind in kinds)

    def in_memory() -> Piece:
        cells, genes, data = (np.empty(n, kind) for kind in kinds)
        return cells, genes, data

    if n_bytes <= min(memory // _SHARE, arrays.LARGE):
        return in_memory()
    try:
        cells, genes, data = (arrays.reserved((n,), kind) for kind in kinds)
    except OSError as error:
        if n_bytes <= memory // 2:
            return in_memory()
        raise ResourceError(
            f"the matrix {origin.reason}; reading it needs {human_bytes(n_bytes)} of temporary files, "
            f"but {_folder()}: {error.strerror or error}",
            origin.where,
            f"set TMPDIR to a folder on a larger disk, or {origin.fix}",
        ) from error
    return cells, genes, data


def _folder() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:
        return "there is no folder for temporary files"


def _stretches(indptr: npt.NDArray[np.int64], most: int) -> list[int]:
    """Return the bounds of ranges of cells with at most ``most`` values each, or with one cell."""
    starts, n_obs = [0], len(indptr) - 1
    while starts[-1] < n_obs:
        full = int(np.searchsorted(indptr, indptr[starts[-1]] + most, side="right")) - 1
        starts.append(min(max(full, starts[-1] + 1), n_obs))
    return starts


def _deal(
    pieces: Iterable[Piece],
    columns: Piece,
    indptr: npt.NDArray[np.int64],
    starts: list[int],
    origin: Origin,
) -> None:
    """Write values, in input order, to the ranges of their cells."""
    n = len(starts) - 1
    stretch_of = np.repeat(np.arange(n, dtype=np.int32), np.diff(starts))
    ends = indptr[starts]
    ends, free = ends[1:], ends[:-1].copy()
    for piece in pieces:
        stretch = stretch_of[piece[0]]
        sizes = np.bincount(stretch, minlength=n)
        if np.any(free + sizes > ends):
            raise _changing(origin)
        ordered = piece
        if n > 1:
            order = _order(stretch, n)
            cells, genes, data = (part[order] for part in piece)
            ordered = cells, genes, data
        a = 0
        for k in np.flatnonzero(sizes):
            b, at = a + int(sizes[k]), int(free[k])
            for column, part in zip(columns, ordered, strict=True):
                column[at : at + b - a] = part[a:b]
            a = b
        free += sizes
        _release(columns)
    if np.any(free != ends):
        raise _changing(origin)


def _changing(origin: Origin) -> InputError:
    return InputError("the file changes while it is read", origin.where, "wait until it is written")


def _order(numbers: npt.NDArray[np.integer[Any]], n: int) -> npt.NDArray[np.integer[Any]]:
    """Return the stable order that sorts numbers below ``n``.

    scipy's transpose of a sparse matrix with one value per column is a counting sort, which is faster than
    the comparison sort of NumPy.
    """
    pointers = np.arange(len(numbers) + 1, dtype=np.int32)
    arrays: Any = (np.zeros(len(numbers), np.bool_), numbers, pointers)
    order: npt.NDArray[np.integer[Any]] = sp.csc_matrix(arrays, shape=(n, len(numbers))).tocsr().indices
    return order
