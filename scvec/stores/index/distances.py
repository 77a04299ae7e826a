"""Exact squared Euclidean distances that do not depend on the batch, and the base class of indices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.types import Bool, Float32, Float64, Int64, Neighbors

__all__ = ["Index", "as_neighbors", "checked_vectors", "nearest_by_scan", "pair_distances", "row_distances"]


#: Size in bytes of a block of float64 differences.
BLOCK_BYTES = 32 << 20
#: Size in bytes of a block that must stay in the CPU cache, because several steps read it.
CACHED_BYTES = 512 << 10


def checked_vectors(vectors: object, dim: int, what: str) -> Float32:
    """Check vectors and return them as C-contiguous (n, dim) float32.

    Raises
    ------
    InputError
        The vectors are not two-dimensional float32, have another length than ``dim``, or hold NaN or
        infinity.
    """
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype != np.float32:
        kind: object = type(vectors).__name__
        if isinstance(vectors, np.ndarray):
            kind = f"{vectors.dtype} {vectors.shape}"
        raise InputError(f"{what} must be an (n, {dim}) float32 array, not {kind}")
    if vectors.shape[1] != dim:
        raise InputError(
            f"{what} have {vectors.shape[1]} dimensions, the index has {dim}",
            fix="use the backbone and encoder that the index was built with",
        )
    ready: Float32 = np.ascontiguousarray(vectors)
    step = max(1, BLOCK_BYTES // max(1, dim))
    for start in range(0, len(ready), step):
        finite: Bool = np.asarray(np.isfinite(ready[start : start + step]).all(axis=1))
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise InputError(f"{what} hold NaN or infinity (first in row {row})")
    return ready


def checked_neighbors(n_neighbors: int) -> int:
    """Return ``n_neighbors`` as int; raise InputError if it is not a positive integer."""
    if isinstance(n_neighbors, bool) or not isinstance(n_neighbors, (int, np.integer)) or n_neighbors < 1:
        raise InputError(
            f"n_neighbors must be a positive integer, not {n_neighbors!r}", code="option-out-of-range"
        )
    return int(n_neighbors)


def checked_subset(subset: npt.ArrayLike, n: int) -> Int64:
    """Return sorted unique row numbers (int64); raise InputError if one is outside 0..n-1."""
    rows = np.asarray(subset)
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise InputError(f"subset must be a list of row numbers, not {rows.dtype} {rows.shape}")
    unique = np.unique(rows.astype(np.int64))
    if unique.size and (unique[0] < 0 or unique[-1] >= n):
        raise InputError(f"subset holds row numbers outside 0..{n - 1}")
    return unique


def row_distances(rows: npt.NDArray[np.floating[Any]], query: npt.NDArray[np.floating[Any]]) -> Float64:
    """Return squared distances (m,) float64 between ``rows`` (m, dim) and ``query`` (dim,) or (m, dim).

    Each row is summed separately along its contiguous axis, so its distance has the same bits in any batch. A
    matrix product would not do: its order of summation changes with the batch size.
    """
    difference = np.subtract(rows, query, dtype=np.float64)
    np.multiply(difference, difference, out=difference)
    result: Float64 = difference.sum(axis=1)
    return result


def pair_distances(base: Float32, rows: Int64, queries: Float32) -> Float64:
    """Return squared distances (n, m) float64 between query i and ``base[rows[i]]``.

    The values are bit-identical to those of `row_distances`. A row number of -1 means the last row. If
    ``base`` is empty, all distances are infinite.
    """
    if not len(base):
        return np.full(rows.shape, np.inf)
    result = np.empty(rows.shape, dtype=np.float64)
    # Blocks that fit in the CPU cache are three times as fast.
    step = max(1, CACHED_BYTES // (8 * max(1, rows.shape[1] * base.shape[1])))
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        difference = base[rows[block]].astype(np.float64)
        difference -= queries[block, None].astype(np.float64)
        np.multiply(difference, difference, out=difference)
        difference.sum(axis=2, out=result[block])
    return result


def nearest_by_scan(
    base: Float32, query: Float32, k: int, rows: Int64 | None = None
) -> tuple[Int64, Float64]:
    """Return the ``k`` nearest rows of ``base`` to one query (dim,), by a scan of every row.

    ``rows`` (ascending) restricts the scan. The result, row numbers (int64) and squared distances (float64),
    is sorted by (distance, row number). It is shorter than ``k`` if there are fewer rows.
    """
    total = len(base) if rows is None else len(rows)
    step = max(1, BLOCK_BYTES // (8 * max(1, base.shape[1])))
    best_rows = np.empty(0, dtype=np.int64)
    best = np.empty(0, dtype=np.float64)
    for start in range(0, total, step):
        stop = min(total, start + step)
        numbers = np.arange(start, stop, dtype=np.int64) if rows is None else rows[start:stop]
        block = base[start:stop] if rows is None else base[numbers]
        best_rows = np.concatenate([best_rows, numbers])
        best = np.concatenate([best, row_distances(block, query)])
        order = np.argsort(best, kind="stable")[:k]  # rows ascend, so a stable sort puts the lower row first
        best_rows, best = best_rows[order], best[order]
    return best_rows, best


def brute_force(base: Float32, queries: Float32, k: int, rows: Int64 | None = None) -> Neighbors:
    """Return the ``k`` nearest rows (n, k) by `nearest_by_scan`: slow, the standard of comparison."""
    found = [nearest_by_scan(base, query, k, rows) for query in queries]
    return as_neighbors([f[0] for f in found], [f[1] for f in found], k)


def as_neighbors(rows: list[Int64], distances: list[Float64], k: int) -> Neighbors:
    """Join the results of n queries, padded to (n, k) with -1 and infinity."""
    indices = np.full((len(rows), k), -1, dtype=np.int64)
    padded = np.full((len(rows), k), np.inf, dtype=np.float32)
    for i, (found, values) in enumerate(zip(rows, distances, strict=True)):
        indices[i, : len(found)] = found
        with np.errstate(over="ignore"):  # distances above 3e38, the float32 limit, become infinity
            padded[i, : len(found)] = values
    return Neighbors(indices, padded)


class Index:
    """Base class of all indices (squared Euclidean distance): checks queries; a subclass searches.

    A subclass defines ``n``, ``dim``, ``vectors`` and ``_search``. A registered subclass also defines
    ``add``, ``save`` and ``load``, and ``build`` if building is more than adding rows to an empty index.
    """

    #: Set by `scvec.stores.index.index`: name of the kind, file extension, and whether it is exact.
    kind: ClassVar[str] = ""
    extension: ClassVar[str] = ""
    is_exact: ClassVar[bool] = True
    #: True if only one thread may search at a time.
    takes_turns: bool = False

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"dim must be positive, not {dim}")

    @property
    def n(self) -> int:
        """Number of vectors held."""
        raise NotImplementedError

    @property
    def dim(self) -> int:
        """Length of a vector."""
        raise NotImplementedError

    def vectors(self) -> Float32:
        """Return the (n, dim) float32 vectors: a read-only view, valid until the next ``add``."""
        raise NotImplementedError

    def add(self, vectors: Float32) -> None:
        """Append (n, dim) float32 vectors; raise InputError for a wrong shape or dtype, NaN or infinity."""
        raise TypeError(f"rows cannot be added to a {self.kind} index")

    def save(self, path: Path) -> None:
        """Write the index to a file."""
        raise TypeError(f"a {self.kind} index cannot be saved")

    @classmethod
    def build(cls, vectors: Float32, *, recall: float, seed: int, batches: Int64 | None) -> Self:
        """Build an index of (n, dim) float32 vectors (see `build_index`); exact kinds ignore the options."""
        made = cls(int(vectors.shape[1]))
        made.add(vectors)
        return made

    @classmethod
    def load(
        cls, path: Path, vectors: Float32 | None = None, settings: Mapping[str, Any] | None = None
    ) -> Self:
        """Read a file that :meth:`save` wrote. The caller has checked the SHA-256 of the file.

        Parameters
        ----------
        path
            The file.
        vectors, settings
            For approximate kinds: the (n, dim) float32 vectors, and ``settings.to_dict()`` of the saved
            index.

        Raises
        ------
        StoreError
            The file cannot be read, or holds another kind of index.
        """
        raise NotImplementedError

    def exact(self) -> Index:
        """Return an exact index of the same vectors."""
        return self

    def at_recall(self, recall: float) -> Index:
        """Return the same index tuned to another recall (0-1); exact kinds return themselves."""
        return self

    def search(
        self, vectors: Float32, n_neighbors: int, *, subset: npt.NDArray[np.int64] | None = None
    ) -> Neighbors:
        """Return the nearest rows by (squared distance, row number).

        Parameters
        ----------
        vectors
            (n, dim) float32 queries.
        n_neighbors
            Number of columns of the result; padded with -1 and infinity if there are fewer rows.
        subset
            Row numbers to search; None means all.

        Raises
        ------
        InputError
            The queries have a wrong shape or dtype, or hold NaN or infinity; or a row number does not exist.
        """
        queries = checked_vectors(vectors, self.dim, "queries")
        k = checked_neighbors(n_neighbors)
        return self._search(queries, k, None if subset is None else checked_subset(subset, self.n))

    def _search(self, queries: Float32, k: int, rows: Int64 | None) -> Neighbors:
        """Search ``rows`` (ascending, unique), or all rows if None."""
        raise NotImplementedError
