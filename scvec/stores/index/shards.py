"""Indices over several shards or segments, with the same results as one index."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from scvec.base.types import Float32, Float64, Int64, Neighbors
from scvec.stores.index.distances import Index, pair_distances

__all__ = ["Ask", "Found", "SegmentedIndex", "ShardedIndex", "merged", "search_rows", "spans"]


@dataclass(frozen=True, slots=True)
class Found:
    """Neighbours that one shard found.

    Attributes
    ----------
    rows
        (n, k) int64 row numbers in the complete index, nearest first; padded with -1.
    distances
        (n, k) float64 squared Euclidean distances, ascending; padded with infinity. float32 would lose the
        last digits, and the order of rows from two shards could then differ from that of one index.
    """

    rows: Int64
    distances: Float64


#: Function that searches all shards. Its arguments are queries (n, dim), the number of neighbours, and for
#: each shard the rows to search, numbered within the shard (None: all). It returns the results in shard
#: order.
Ask = Callable[[Float32, int, Sequence[Int64 | None]], Sequence[Found]]


def spans(n: int, parts: int) -> list[tuple[int, int]]:
    """Divide ``n`` rows into at most ``parts`` ranges of nearly equal size; none is empty if ``n`` > 0."""
    parts = max(1, min(parts, n))
    cuts = [n * i // parts for i in range(parts + 1)]
    return list(itertools.pairwise(cuts))


def search_rows(
    index: Index, rows: Float32, first: int, queries: Float32, k: int, subset: Int64 | None
) -> Found:
    """Search a shard with consecutive rows of a larger index.

    Parameters
    ----------
    index
        Exact index of ``rows``.
    rows
        (m, dim) float32 vectors of the shard.
    first
        Row number of the shard's first row in the complete index.
    queries
        (n, dim) float32.
    k
        Number of neighbours.
    subset
        Rows to search, numbered within the shard; None means all.
    """
    near = index.search(queries, min(k, max(1, index.n)), subset=subset).indices
    # The index uses the same function, so the distances have the same bits.
    distances = pair_distances(rows, near, queries)
    return Found(np.where(near >= 0, near + first, -1), np.where(near >= 0, distances, np.inf))


def merged(found: Sequence[Found], k: int) -> Neighbors:
    """Merge the results of shards; return the ``k`` nearest rows by (squared distance, row number).

    Parameters
    ----------
    found
        Results of the shards, in the order of their rows; (n, any number of neighbours) each.
    k
        Number of neighbours.
    """
    rows = np.concatenate([f.rows for f in found], axis=1)
    distances = np.concatenate([f.distances for f in found], axis=1)
    # Shards and equal distances within a shard are in row order, so a stable sort puts lower rows first.
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    rows, distances = np.take_along_axis(rows, order, axis=1), np.take_along_axis(distances, order, axis=1)
    missing = ((0, 0), (0, k - rows.shape[1]))
    with np.errstate(over="ignore"):  # distances above 3e38, the float32 limit, become infinity
        near = np.pad(distances, missing, constant_values=np.inf).astype(np.float32)
    return Neighbors(np.pad(rows, missing, constant_values=-1), near)


class ShardedIndex(Index):
    """An index whose shards are searched by other processes.

    With exact shards, the neighbours are bit-identical to those of one
    :class:`scvec.stores.index.flat.FaissFlatIndex` over all rows, because an exact distance depends only on
    the row and the query. A search never returns a partial result: if a shard does not answer, NetworkError
    names it.

    Parameters
    ----------
    dim
        Length of a vector.
    held
        (first row, last row + 1) of each shard, in order and without gaps.
    ask
        Function that searches all shards; None if only the size of the index is needed.
    """

    kind = "sharded"

    def __init__(self, dim: int, held: Sequence[tuple[int, int]], ask: Ask | None = None) -> None:
        super().__init__(dim)
        ends = [0, *(last for _, last in held)]
        if [first for first, _ in held] != ends[:-1] or any(first >= last for first, last in held[1:]):
            raise ValueError(f"shards must hold consecutive rows, not {list(held)}")
        self._dim, self._held, self._ask = dim, list(held), ask

    @property
    def n(self) -> int:
        """Number of vectors in all shards."""
        return self._held[-1][1] if self._held else 0

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._dim

    def _search(self, queries: Float32, k: int, rows: Int64 | None) -> Neighbors:
        if self._ask is None:
            raise TypeError("this index cannot be searched in this process")
        subsets: list[Int64 | None] = [None] * len(self._held)
        if rows is not None:
            subsets = [rows[(rows >= first) & (rows < last)] - first for first, last in self._held]
        if len(queries) == 0:
            return Neighbors(np.empty((0, k), np.int64), np.empty((0, k), np.float32))
        return merged(self._ask(queries, k, subsets), k)


#: Extra rows to request from a segment with deleted rows: a fixed number, plus a multiple of the number that
#: is expected to be deleted among the neighbours.
SPARE, SPARE_FACTOR = 8, 3.0


class SegmentedIndex(Index):
    """Several indices searched as one index, without deleted rows.

    Each segment is searched for its nearest remaining rows, and the results are merged by float64 distances.
    So with exact segments the neighbours are bit-identical to those of one exact index over the remaining
    rows.

    Parameters
    ----------
    segments
        At least one index; all have the same dimension. Their rows follow one another.
    deleted
        Sorted numbers of the deleted rows, numbered through all segments. The remaining rows get new
        consecutive numbers in the same order.
    """

    kind = "segmented"

    def __init__(self, segments: Sequence[Index], deleted: Int64) -> None:
        if not segments or len({segment.dim for segment in segments}) > 1:
            raise ValueError("segments must have the same dimension")
        ends = np.cumsum([segment.n for segment in segments])
        if len(deleted) and (deleted[0] < 0 or deleted[-1] >= ends[-1] or (np.diff(deleted) <= 0).any()):
            raise ValueError("deleted rows must be sorted, unique and in the index")
        self.segments = tuple(segments)
        self.takes_turns = any(segment.takes_turns for segment in segments)
        self._first: Int64 = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        self._last: Int64 = ends.astype(np.int64)
        self._deleted = deleted
        self._left: Int64 = np.setdiff1d(np.arange(ends[-1], dtype=np.int64), deleted, assume_unique=True)

    @property
    def n(self) -> int:
        """Number of remaining rows."""
        return len(self._left)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.segments[0].dim

    def with_segments(self, segments: Sequence[Index]) -> SegmentedIndex:
        """Return an index of the same rows with other segment indices."""
        return SegmentedIndex(segments, self._deleted)

    def _search(self, queries: Float32, k: int, rows: Int64 | None) -> Neighbors:
        among = self._left if rows is None else self._left[rows]
        found: list[Found] = []
        for segment, first, last in zip(self.segments, self._first, self._last, strict=True):
            lo, hi = np.searchsorted(among, [first, last])
            if lo == hi:
                continue
            left = None if hi - lo == segment.n else among[lo:hi] - first
            if rows is None and left is not None:
                found.append(_search_without_deleted(segment, int(first), left, queries, k))
            else:
                found.append(search_rows(segment, segment.vectors(), int(first), queries, k, left))
        if not found or not len(queries):
            none = np.full((len(queries), k), -1, np.int64)
            return Neighbors(none, np.full(none.shape, np.inf, np.float32))
        near = merged(found, k)
        at = np.searchsorted(self._left, near.indices)
        return Neighbors(np.where(near.indices < 0, -1, at), near.distances)


def _search_without_deleted(segment: Index, first: int, left: Int64, queries: Float32, k: int) -> Found:
    """Search a segment for more rows than needed, and discard the deleted ones.

    A search restricted to the remaining rows is many times slower, because FAISS cannot use its fast scan
    with a selector. It is used only for queries with too few remaining rows, for example if a whole cell type
    is deleted.
    """
    deleted = np.ones(segment.n, dtype=bool)
    deleted[left] = False
    wanted = k + SPARE + int(np.ceil(SPARE_FACTOR * k * (1.0 - len(left) / segment.n)))
    near = search_rows(segment, segment.vectors(), first, queries, min(wanted, segment.n), None)
    passed = (near.rows < 0) | deleted[np.maximum(near.rows - first, 0)]
    distances = np.where(passed, np.inf, near.distances)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    rows = np.take_along_axis(np.where(passed, -1, near.rows), order, axis=1)
    distances = np.take_along_axis(distances, order, axis=1)
    short = np.flatnonzero((rows >= 0).sum(axis=1) < min(k, len(left)))
    if len(short):
        again = search_rows(segment, segment.vectors(), first, queries[short], k, left)
        rows[short], distances[short] = again.rows, again.distances
    return Found(rows, distances)
