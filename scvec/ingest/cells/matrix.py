"""Read rows of an expression matrix from a file or from memory, and check its pointers."""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from scvec.base.errors import InputError, reading
from scvec.ingest.cells.transpose import Origin, Piece, Transposed, by_cell, index_dtype, values_within

__all__ = [
    "MAX_ROWS",
    "MatrixReader",
    "StoredRows",
    "is_array",
    "is_group",
    "is_only_here",
    "open_matrix",
]

#: Largest number of rows of one read; and the bytes that a stored value needs until it is log1p CP10k: as
#: stored, as float64 with its column, and one or two copies.
MAX_ROWS = 2048
BYTES_PER_VALUE = 64
_NUMERIC = "biuf"
_BROKEN_FIX = "the file is damaged or was written incorrectly: write it again with adata.write_h5ad()"


class MatrixReader(ABC):
    """Rows of a cells-by-genes matrix as scipy CSR, float64, canonical and without stored zeros.

    Attributes
    ----------
    shape
        (n_obs, n_vars).
    where
        Name of the matrix for messages: the file and the place in it.
    stored_dtype
        float32 if values are stored in four bytes or fewer, else float64.
    n_unsorted, n_duplicates
        Of all rows read so far: the rows whose column numbers were not ascending, and the values that had
        the cell and gene of another value and were added to it.
    """

    def __init__(self, shape: tuple[int, int], where: str, dtype: Any = np.float64) -> None:
        self.shape = shape
        small = np.dtype(dtype).itemsize <= 4
        self.stored_dtype: np.dtype[Any] = np.dtype(np.float32 if small else np.float64)
        self.where = where
        self.n_unsorted = 0
        self.n_duplicates = 0

    def rows_within(self, n_bytes: int) -> int:
        """Return how many rows can be read at once so that they and their copies fit in ``n_bytes``.

        At least one, at most ``MAX_ROWS``.
        """
        most = max(1, n_bytes // BYTES_PER_VALUE)
        step = MAX_ROWS
        while step > 1 and self._values_in(step) > most:
            step //= 2
        return step

    @property
    def n_values(self) -> int:
        """Upper bound of the number of stored values."""
        return self._values_in(max(1, self.shape[0]))

    def _values_in(self, step: int) -> int:
        """Return the largest number of values in ``step`` rows that start at a multiple of ``step``."""
        return step * self.shape[1]

    @abstractmethod
    def _read(self, start: int, stop: int) -> sp.csr_matrix[Any]:
        """Return rows as CSR of any dtype; columns may be unsorted."""

    def rows(self, start: int, stop: int) -> sp.csr_matrix[Any]:
        """Return rows ``start`` to ``stop`` as (stop - start, n_vars) CSR float64."""
        with reading(self.where):
            read = self._read(start, stop)
            # Not astype(): scipy would sum duplicates in the old dtype, so that they could not be counted.
            arrays: Any = (read.data.astype(np.float64), read.indices, read.indptr)
            block = sp.csr_matrix(arrays, shape=read.shape)
        tidy = block.has_canonical_format
        if not tidy or not block.data.all():
            block = block.copy()  # the next steps work in place, and the arrays may belong to the user
        if not tidy:
            before = block.nnz
            self.n_unsorted += _n_unsorted(block)
            block.sum_duplicates()
            self.n_duplicates += before - block.nnz
        block.eliminate_zeros()
        return block


@dataclass(frozen=True)
class StoredRows:
    """A CSR matrix of which only ``data``, ``indices``, ``indptr`` and the shape are known."""

    parts: Mapping[str, Any]
    shape: tuple[int, int]


class _Stored(MatrixReader):
    """A CSR group of an h5ad file or a zarr folder: three one-dimensional arrays."""

    def __init__(self, group: Any, shape: tuple[int, int], where: str) -> None:
        super().__init__(shape, where, group["data"].dtype)
        with reading(where):
            self._data, self._indices = group["data"], group["indices"]
            self._indptr = _checked_indptr(group, shape[0], where)

    def _values_in(self, step: int) -> int:
        return _fullest(self._indptr, step)

    def _read(self, start: int, stop: int) -> sp.csr_matrix[Any]:
        a, b = int(self._indptr[start]), int(self._indptr[stop])
        indices = _checked_indices(self._indices[a:b], self.shape[1], self.where)
        data = _plain(self._data[a:b])
        return sp.csr_matrix(
            (data, indices, self._indptr[start : stop + 1] - a), (stop - start, self.shape[1])
        )


class _Dense(MatrixReader):
    """A two-dimensional dataset, of which at most 2,048 rows are dense in memory at a time."""

    def __init__(self, values: Any, where: str, memory: int) -> None:
        super().__init__((int(values.shape[0]), int(values.shape[1])), where, values.dtype)
        self._values = values
        row_bytes = max(1, self.shape[1] * values.dtype.itemsize)
        self._step = int(np.clip(min(memory // 8, 2**26) // row_bytes, 1, 2048))

    def _read(self, start: int, stop: int) -> sp.csr_matrix[Any]:
        starts = range(start, stop, self._step)
        blocks = [sp.csr_matrix(_plain(self._values[a : min(a + self._step, stop)])) for a in starts]
        if not blocks:
            return sp.csr_matrix((0, self.shape[1]))
        return blocks[0] if len(blocks) == 1 else sp.vstack(blocks, format="csr")


class _InMemory(MatrixReader):
    """A scipy or NumPy matrix in memory."""

    def __init__(self, values: Any, where: str) -> None:
        super().__init__((int(values.shape[0]), int(values.shape[1])), where, values.dtype)
        self._values = values

    def _values_in(self, step: int) -> int:
        indptr = getattr(self._values, "indptr", None)  # dense values have none
        return super()._values_in(step) if indptr is None else _fullest(indptr, step)

    def _read(self, start: int, stop: int) -> sp.csr_matrix[Any]:
        rows = self._values[start:stop]
        if hasattr(rows, "compute"):  # a dask array
            rows = rows.compute()
        return sp.csr_matrix(_plain(rows) if isinstance(rows, np.ndarray) else rows)


class _Transposed(MatrixReader):
    """A matrix that was transposed to CSR."""

    def __init__(self, transposed: Transposed, where: str) -> None:
        super().__init__(transposed.shape, where, transposed.data.dtype)
        self._matrix = transposed

    def _values_in(self, step: int) -> int:
        return _fullest(self._matrix.indptr, step)

    def _read(self, start: int, stop: int) -> sp.csr_matrix[Any]:
        transposed = self._matrix
        a, b = int(transposed.indptr[start]), int(transposed.indptr[stop])
        arrays: Any = (np.array(transposed.data[a:b]), np.array(transposed.indices[a:b]))
        transposed.release()
        block: sp.csr_matrix[Any] = sp.csr_matrix(
            (*arrays, transposed.indptr[start : stop + 1] - a), (stop - start, self.shape[1])
        )
        block.sort_indices()  # transposing gives no order within a cell, so these rows are not counted
        return block


def is_only_here(reader: MatrixReader) -> bool:
    """Return whether only this process has the values: in memory, or in its temporary files."""
    return isinstance(reader, _InMemory | _Transposed)


def open_matrix(item: Any, where: str, n_obs: int, n_vars: int, memory: int) -> MatrixReader:
    """Open a matrix and check its shape, pointers and dtype.

    Parameters
    ----------
    item
        A group (CSR or CSC) or array of HDF5 or zarr, :class:`StoredRows`, :class:`Transposed`, a scipy
        sparse matrix or array, a NumPy array, or a function that returns one of them.
    where
        Name for messages.
    n_obs, n_vars
        Its shape according to obs and var.
    memory
        Bytes that may be used. A CSC matrix is transposed here; a large one in temporary files.

    Raises
    ------
    InputError
        If the shape is not ``n_obs`` x ``n_vars``, pointers are wrong, or values are not real numbers.
    ResourceError
        If the disk has no room for the temporary files of a CSC matrix.
    """
    if callable(item):  # readers pass a function, so that only the matrices in use are opened
        item = item()
    if type(item).__name__ in ("_CSRDataset", "_CSCDataset"):  # anndata.io.sparse_dataset
        item = item.group
    with reading(where):
        item = _numbers(item)
        shape, dtype, layout = _describe(item, where, n_obs, n_vars)
    if len(shape) != 2 or shape != (n_obs, n_vars):
        claimed = " x ".join(f"{n:,}" for n in shape)
        raise InputError(
            f"the matrix is {claimed}, but there are {n_obs:,} cells and {n_vars:,} genes",
            where,
            _BROKEN_FIX,
            code="damaged-file",
        )
    if dtype.kind not in _NUMERIC:
        kind = "text" if dtype.kind in "SUO" else f"{dtype} values"
        raise InputError(
            f"the matrix holds {kind}, not real numbers",
            where,
            "store the expression values as numbers",
            code="wrong-format",
        )
    if layout == "memory":
        return _InMemory(_to_rows(item, where), where)
    if layout == "dense":
        return _Dense(item, where, memory)
    if layout == "csr":
        return _Stored(item.parts if isinstance(item, StoredRows) else item, (n_obs, n_vars), where)
    if layout == "transposed":
        return _Transposed(item, where)
    return _Transposed(_transpose(item, n_obs, n_vars, where, memory), where)


def _numbers(item: Any) -> Any:
    """Convert an array of Python objects to float64 if all of them are numbers."""
    is_sparse = bool(sp.issparse(item))
    if not (isinstance(item, np.ndarray) or is_sparse) or item.dtype.kind != "O":
        return item
    values = item.data if is_sparse else item.ravel()
    return item.astype(np.float64) if all(isinstance(v, numbers.Real) for v in values) else item


def _describe(item: Any, where: str, n_obs: int, n_vars: int) -> tuple[tuple[int, ...], np.dtype[Any], str]:
    if isinstance(item, StoredRows):
        return item.shape, item.parts["data"].dtype, "csr"
    if isinstance(item, Transposed):
        return item.shape, item.data.dtype, "transposed"
    if is_array(item):
        return tuple(int(n) for n in item.shape or ()), np.dtype(item.dtype), "dense"
    if not is_group(item):
        return tuple(int(n) for n in item.shape), np.dtype(item.dtype), "memory"
    kind = item.attrs.get("encoding-type", item.attrs.get("h5sparse_format", ""))
    layout = str(kind.decode() if isinstance(kind, bytes) else kind)[:3]
    if not layout and "indptr" in item:  # R packages write no encoding-type: the length of indptr decides
        layout = {n_obs + 1: "csr", n_vars + 1: "csc"}.get(int(item["indptr"].shape[0]), "")
    if layout not in ("csr", "csc"):
        raise InputError(
            f"the matrix has an unknown encoding ({kind or 'no encoding-type'})",
            where,
            _BROKEN_FIX,
            code="wrong-format",
        )
    missing = [part for part in ("data", "indices", "indptr") if part not in item]
    if missing:
        raise InputError(
            f"the sparse matrix has no {' and no '.join(missing)}", where, _BROKEN_FIX, code="damaged-file"
        )
    claimed = [item.attrs[name] for name in ("shape", "h5sparse_shape") if name in item.attrs]
    shape = claimed[0] if claimed else (n_obs, n_vars)
    return tuple(int(n) for n in shape), item["data"].dtype, layout


def is_group(item: Any) -> bool:
    """Return whether ``item`` is a group of HDF5 or zarr."""
    return isinstance(item, h5py.Group) or _is_zarr(item, "Group")


def is_array(item: Any) -> bool:
    """Return whether ``item`` is an array stored by HDF5 or zarr."""
    return isinstance(item, h5py.Dataset) or _is_zarr(item, "Array")


def _is_zarr(item: Any, kind: str) -> bool:
    # Compare the name: importing zarr is slow, and few files need it.
    return type(item).__module__.split(".")[0] == "zarr" and type(item).__name__ == kind


def _checked_indptr(group: Any, n_major: int, where: str) -> npt.NDArray[np.int64]:
    """Return the row (CSR) or column (CSC) pointers; raise ``InputError`` if they are inconsistent."""
    data, indices, pointers = group["data"], group["indices"], group["indptr"]

    def lie(what: str) -> InputError:
        return InputError(
            f"the sparse matrix is inconsistent: {what}", where, _BROKEN_FIX, code="damaged-file"
        )

    for name, array in (("data", data), ("indices", indices), ("indptr", pointers)):
        if not is_array(array) or array.ndim != 1:
            raise lie(f"{name} is not one-dimensional")
        if name != "data" and array.dtype.kind not in "iu":
            raise lie(f"{name} holds {array.dtype}, not whole numbers")
    if pointers.shape[0] != n_major + 1:
        raise lie(f"indptr has {pointers.shape[0]:,} entries instead of {n_major + 1:,}")
    if data.shape[0] != indices.shape[0]:
        raise lie(f"{data.shape[0]:,} values but {indices.shape[0]:,} indices")
    indptr: npt.NDArray[np.int64] = pointers[:].astype(np.int64)
    if indptr[0] != 0:
        raise lie(f"indptr starts at {indptr[0]:,}, not at 0")
    if np.any(indptr[1:] < indptr[:-1]):
        raise lie("indptr is not ascending")
    if indptr[-1] != data.shape[0]:
        raise lie(f"indptr ends at {indptr[-1]:,}, but there are {data.shape[0]:,} values")
    return indptr


def _checked_indices(indices: npt.NDArray[Any], n_minor: int, where: str) -> npt.NDArray[Any]:
    if len(indices):
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= n_minor:
            wrong = low if low < 0 else high
            what = f"the sparse matrix is inconsistent: index {wrong:,} is outside 0 to {n_minor - 1:,}"
            raise InputError(what, where, _BROKEN_FIX, code="damaged-file")
    return indices.astype(index_dtype(n_minor), copy=False)


def _transpose(group: Any, n_obs: int, n_vars: int, where: str, memory: int) -> Transposed:
    """Transpose a CSC group: count the values of each cell, then put them in place."""
    with reading(where):
        indptr = _checked_indptr(group, n_vars, where)
        most = values_within(memory)
        counts = np.zeros(n_obs, np.int64)
        for a, b in _stretches(group["indices"], group["data"].shape[0], most):
            np.add.at(counts, _checked_indices(group["indices"][a:b], n_obs, where), 1)
        dtype = _plain(np.empty(0, group["data"].dtype)).dtype
        origin = Origin(where, "is CSC (stored by gene)", "store it as CSR: adata.X = adata.X.tocsr()")
        pieces = _values_of_columns(group, indptr, n_obs, where, most)
        return by_cell(pieces, counts, n_vars, dtype, origin, memory)


def _values_of_columns(
    group: Any, indptr: npt.NDArray[np.int64], n_obs: int, where: str, most: int
) -> Iterator[Piece]:
    """Yield the values of a CSC group in file order."""
    genes = np.arange(len(indptr) - 1, dtype=index_dtype(len(indptr)))
    for a, b in _stretches(group["indices"], group["data"].shape[0], most):
        rows = _checked_indices(group["indices"][a:b], n_obs, where)
        data = _plain(group["data"][a:b])
        for c in range(a, b, most):
            d = min(c + most, b)
            first, last = np.searchsorted(indptr, [c, d], side="right") - [1, 0]
            inside: npt.NDArray[np.int64] = np.clip(indptr[first : last + 1], c, d)
            sizes = inside[1:] - inside[:-1]
            yield rows[c - a : d - a], np.repeat(genes[first:last], sizes), data[c - a : d - a]


def _stretches(array: Any, n: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield the bounds of parts of ``n`` stored values, about ``most`` each, that do not split HDF5 chunks.

    HDF5 decompresses a whole chunk even if only a part of it is read.
    """
    piece = int((array.chunks or (1,))[0])
    step = max(1, most // piece) * piece
    for a in range(0, n, step):
        yield a, min(a + step, n)


def _to_rows(values: Any, where: str) -> Any:
    """Return an in-memory matrix, with its pointers checked, in a form whose rows can be sliced."""
    if sp.issparse(values):
        with reading(where):
            matrix: Any = values
            if matrix.format not in ("csr", "csc"):
                matrix = matrix.tocsr()
            matrix.check_format(full_check=True)
            return sp.csr_matrix(matrix)
    if isinstance(values, np.ndarray):
        return np.asarray(values)
    if hasattr(values, "compute"):
        return values
    raise InputError(
        f"the matrix is a {type(values).__name__}, which scvec cannot read",
        where,
        "use scipy CSR",
        code="wrong-format",
    )


def _plain(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Convert values to a dtype that scipy.sparse supports: not float16, and native byte order."""
    if values.dtype.kind == "f" and values.dtype.itemsize not in (4, 8):
        return values.astype(np.float64)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _fullest(indptr: npt.NDArray[np.integer[Any]], step: int) -> int:
    """Return the largest number of values in any block of ``step`` rows."""
    return int(np.diff(np.append(indptr[:-1:step], indptr[-1])).max(initial=0))


def _n_unsorted(block: sp.csr_matrix[Any]) -> int:
    """Number of rows whose column numbers are not ascending (repeats do not count)."""
    falls = np.flatnonzero(np.diff(block.indices) < 0)
    row = np.searchsorted(block.indptr, falls, side="right") - 1
    # A fall between the last value of a row and the first of the next is normal.
    inside = falls + 1 < block.indptr[row + 1]
    return len(np.unique(row[inside]))
