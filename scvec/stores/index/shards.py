"""One index whose rows lie in several places, with the answers of a single one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from scvec.base.types import Float32, Float64, Int64, Neighbors, VectorIndex
from scvec.stores.index.distances import Index, pair_distances

__all__ = ["Ask", "Found", "SegmentedIndex", "ShardedIndex", "merged", "search_rows", "spans"]


@dataclass(frozen=True, slots=True)
class Found:
    """What one shard found.

    Attributes
    ----------
    rows
        (n, k) int64 row numbers of the whole, nearest first; -1 pads.
    distances
        (n, k) float64 squared Euclidean distances, ascending; infinity pads. Not float32: rows of two shards
        that differ in the last digits must come in the order that one index would give them.
    """

    rows: Int64
    distances: Float64


#: Asks all shards: queries (n, dim), neighbours wanted, and per shard its rows to search among, counted from
#: its first one (None: all). Returns what each found, in the order of the shards.
Ask = Callable[[Float32, int, Sequence[Int64 | None]], Sequence[Found]]


def spans(n: int, parts: int) -> list[tuple[int, int]]:
    """Divide rows 0 to ``n`` into at most ``parts`` stretches, none empty, that differ by one row at most."""
    parts = max(1, min(parts, n))
    cuts = [n * i // parts for i in range(parts + 1)]
    return list(itertools.pairwise(cuts))


def search_rows(
    index: VectorIndex, rows: Float32, first: int, queries: Float32, k: int, subset: Int64 | None
) -> Found:
    """Search a shard that holds consecutive rows of a whole.

    Parameters
    ----------
    index
        Exact index of ``rows`` (m, dim).
    first
        Number in the whole of its first row.
    subset
        Rows to search among, counted from the first; all when None.
    """
    near = index.search(queries, min(k, max(1, index.n)), subset=subset).indices
    # The same function that the index decides by, row by row, so the same bits.
    distances = pair_distances(rows, near, queries)
    return Found(np.where(near >= 0, near + first, -1), np.where(near >= 0, distances, np.inf))


def merged(found: Sequence[Found], k: int) -> Neighbors:
    """Return the ``k`` nearest of what shards found, by (squared distance, row number).

    Parameters
    ----------
    found
        In the order of the rows that the shards hold, (n, any) each.
    """
    rows = np.concatenate([f.rows for f in found], axis=1)
    distances = np.concatenate([f.distances for f in found], axis=1)
    # Shards come by row number, and so do equal distances within one: a stable sort keeps lower rows first.
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    rows, distances = np.take_along_axis(rows, order, axis=1), np.take_along_axis(distances, order, axis=1)
    missing = ((0, 0), (0, k - rows.shape[1]))
    with np.errstate(over="ignore"):  # float32 ends at 3e38; beyond, infinity is the honest answer
        near = np.pad(distances, missing, constant_values=np.inf).astype(np.float32)
    return Neighbors(np.pad(rows, missing, constant_values=-1), near)


class ShardedIndex(Index):
    """An index that is searched elsewhere.

    Exact shards give the neighbours of :class:`scvec.stores.index.flat.FaissFlatIndex` over all rows, bit
    for bit: an exact distance belongs to a row and a query, whatever else is in the index. All shards answer
    a search, or none does: NetworkError names the one that did not.

    Parameters
    ----------
    dim
        Length of a vector.
    held
        First row and the one after the last of each shard, in order and without gaps.
    ask
        Asks all shards; None where only the size of the index is needed.
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
        """Number of vectors held by all shards."""
        return self._held[-1][1] if self._held else 0

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._dim

    def _search(self, queries: Float32, k: int, rows: Int64 | None) -> Neighbors:
        if self._ask is None:
            raise TypeError("this index is searched elsewhere")
        subsets: list[Int64 | None] = [None] * len(self._held)
        if rows is not None:
            subsets = [rows[(rows >= first) & (rows < last)] - first for first, last in self._held]
        if len(queries) == 0:
            return Neighbors(np.empty((0, k), np.int64), np.empty((0, k), np.float32))
        return merged(self._ask(queries, k, subsets), k)


#: Rows asked for beyond the neighbours wanted where some are deleted: so many, and so many times the number
#: that would be deleted if they lay anywhere.
SPARE, SPARE_FACTOR = 8, 3.0


class SegmentedIndex(Index):
    """Several indices searched as one, without the rows that were deleted.

    Every segment is searched for the nearest rows left in it; the lists are merged by float64 distances. So
    exact segments give the neighbours of one exact index over the rows left, bit for bit.

    Parameters
    ----------
    segments
        One at least, of one dimension. Their rows follow one another.
    deleted
        Sorted numbers of the deleted rows, counted through all segments. The rows left are numbered anew, in
        the same order.
    """

    kind = "segmented"

    def __init__(self, segments: Sequence[Index], deleted: Int64) -> None:
        if not segments or len({segment.dim for segment in segments}) > 1:
            raise ValueError("segments must have one dimension")
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
        """Number of rows left."""
        return len(self._left)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.segments[0].dim

    def with_segments(self, segments: Sequence[Index]) -> SegmentedIndex:
        """Return the same rows, searched by other indices over them."""
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
                found.append(_passing_over(segment, int(first), left, queries, k))
            else:
                found.append(search_rows(segment, segment.vectors(), int(first), queries, k, left))
        if not found or not len(queries):
            none = np.full((len(queries), k), -1, np.int64)
            return Neighbors(none, np.full(none.shape, np.inf, np.float32))
        near = merged(found, k)
        at = np.searchsorted(self._left, near.indices)
        return Neighbors(np.where(near.indices < 0, -1, at), near.distances)


def _passing_over(segment: Index, first: int, left: Int64, queries: Float32, k: int) -> Found:
    """Search a segment for more rows than are asked for, and pass over the deleted ones.

    Searching among the rows left alone costs many times as much: a selector ends the tricks by which FAISS
    looks at many codes at once. It is for the queries that have too few rows left, as where a whole type of
    cell is deleted.
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
