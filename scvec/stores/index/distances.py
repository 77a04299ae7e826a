"""Exact squared Euclidean distances, the same for a query alone and in any batch, and the base of indices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.types import Bool, Float32, Float64, Int64, Neighbors

__all__ = ["Index", "as_neighbors", "checked_vectors", "nearest_by_scan", "pair_distances", "row_distances"]


#: Memory that one block of float64 differences may take.
BLOCK_BYTES = 32 << 20
#: And one that is worked on several times.
CACHED_BYTES = 512 << 10


def checked_vectors(vectors: object, dim: int, what: str) -> Float32:
    """Return ``vectors`` as C-contiguous (n, dim) float32.

    Raises
    ------
    InputError
        Not two-dimensional float32, another number of dimensions, or NaN or infinity inside.
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
    """Return ``n_neighbors``, or raise InputError if it is not a positive whole number."""
    if isinstance(n_neighbors, bool) or not isinstance(n_neighbors, (int, np.integer)) or n_neighbors < 1:
        raise InputError(
            f"n_neighbors must be a positive whole number, not {n_neighbors!r}", code="option-out-of-range"
        )
    return int(n_neighbors)


def checked_subset(subset: npt.ArrayLike, n: int) -> Int64:
    """Return row numbers ascending and without repeats, or raise InputError if one is not in 0..n-1."""
    rows = np.asarray(subset)
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise InputError(f"subset must be a list of row numbers, not {rows.dtype} {rows.shape}")
    unique = np.unique(rows.astype(np.int64))
    if unique.size and (unique[0] < 0 or unique[-1] >= n):
        raise InputError(f"subset holds row numbers outside 0..{n - 1}")
    return unique


def row_distances(rows: npt.NDArray[np.floating[Any]], query: npt.NDArray[np.floating[Any]]) -> Float64:
    """Squared distances (m,) float64 between ``rows`` (m, dim) and ``query`` (dim,) or (m, dim).

    Each row is summed on its own along its contiguous axis, so its distance has the same bits whatever else
    is in the batch. No matrix multiplication: that one changes its order of summation with the batch size.
    """
    difference = np.subtract(rows, query, dtype=np.float64)
    np.multiply(difference, difference, out=difference)
    result: Float64 = difference.sum(axis=1)
    return result


def pair_distances(base: Float32, rows: Int64, queries: Float32) -> Float64:
    """Squared distances (n, m) float64 between query i and ``base[rows[i]]``.

    They have the bits of `row_distances`. -1 stands for the last row; of no rows all is infinitely far.
    """
    if not len(base):
        return np.full(rows.shape, np.inf)
    result = np.empty(rows.shape, dtype=np.float64)
    # What is worked on must not leave the cache: it is three times as fast so.
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
    """Return the ``k`` nearest rows of ``base`` to one query (dim,), by looking at every row.

    ``rows`` (ascending) restricts the scan. The result is sorted by (distance, row number) and shorter than
    ``k`` if there are fewer rows.
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
        order = np.argsort(best, kind="stable")[:k]  # rows ascend already: stable keeps the lower one first
        best_rows, best = best_rows[order], best[order]
    return best_rows, best


def as_neighbors(rows: list[Int64], distances: list[Float64], k: int) -> Neighbors:
    """Pad per-query results to (n, k) with -1 and infinity."""
    indices = np.full((len(rows), k), -1, dtype=np.int64)
    padded = np.full((len(rows), k), np.inf, dtype=np.float32)
    for i, (found, values) in enumerate(zip(rows, distances, strict=True)):
        indices[i, : len(found)] = found
        with np.errstate(over="ignore"):  # float32 ends at 3e38; beyond, infinity is the honest answer
            padded[i, : len(found)] = values
    return Neighbors(indices, padded)


class Index:
    """The base of all indices: it checks queries, a subclass searches (`scvec.base.types.VectorIndex`).

    A subclass has ``n``, ``dim``, ``vectors`` and ``_search``; a registered one has ``add``, ``save`` and
    ``load`` too, and ``build`` where an index is more than an empty one with rows added.
    """

    #: Set by `scvec.stores.index.index`: name of the kind, extension of its files, whether it finds all.
    kind: ClassVar[str] = ""
    extension: ClassVar[str] = ""
    is_exact: ClassVar[bool] = True
    #: True where one thread at a time may search.
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
        """Return the (n, dim) float32 rows: a read-only view, valid until the next ``add``."""
        raise NotImplementedError

    def add(self, vectors: Float32) -> None:
        """Append (n, dim) float32 rows; InputError on another shape or type, NaN or infinity."""
        raise TypeError(f"nothing can be added to a {self.kind} index")

    def save(self, path: Path) -> None:
        """Write the index to a file."""
        raise TypeError(f"a {self.kind} index is not saved")

    @classmethod
    def build(cls, vectors: Float32, *, recall: float, seed: int, batches: Int64 | None) -> Self:
        """Return an index of (n, dim) float32 vectors (see `build_index`); exact ones need no options."""
        made = cls(int(vectors.shape[1]))
        made.add(vectors)
        return made

    @classmethod
    def load(
        cls, path: Path, vectors: Float32 | None = None, settings: Mapping[str, Any] | None = None
    ) -> Self:
        """Read what :meth:`save` wrote. The caller has checked the file's SHA-256.

        Parameters
        ----------
        vectors, settings
            For approximate kinds: the (n, dim) float32 rows, and ``settings.to_dict()`` of the saved index.

        Raises
        ------
        StoreError
            The file is unreadable or holds another kind of index.
        """
        raise NotImplementedError

    def exact(self) -> Index:
        """Return an index that looks at every one of the same vectors."""
        return self

    def at_recall(self, recall: float) -> Index:
        """Return the same index at another recall (0-1); exact kinds stay as they are."""
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
            Columns of the result; padded with -1 and infinity where there are fewer rows.
        subset
            Row numbers to search among; all by default.

        Raises
        ------
        InputError
            Queries of another shape or type, NaN or infinity, a row number that does not exist.
        """
        queries = checked_vectors(vectors, self.dim, "queries")
        k = checked_neighbors(n_neighbors)
        return self._search(queries, k, None if subset is None else checked_subset(subset, self.n))

    def _search(self, queries: Float32, k: int, rows: Int64 | None) -> Neighbors:
        """Search among ``rows`` (ascending, without repeats), or all rows where None."""
        raise NotImplementedError
