"""One index whose rows lie in several places, with the answers of a single one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scvec.base.types import Float32, Int64, Neighbors
from scvec.stores.index.distances import (
    Float64,
    checked_neighbors,
    checked_subset,
    checked_vectors,
    pair_distances,
)

if TYPE_CHECKING:
    from scvec.base.types import VectorIndex
    from scvec.stores.index import AnyIndex
    from scvec.stores.store.reference_reader import StoredReference

__all__ = ["Ask", "Found", "LayeredIndex", "ShardedIndex", "merged", "search_rows", "spans", "unsearched"]


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


class ShardedIndex:
    """An index that is searched elsewhere (see `scvec.base.types.VectorIndex`).

    Exact shards give the neighbours of :class:`scvec.stores.index.flat.FaissFlatIndex` over all rows, bit
    for bit: an exact distance belongs to a row and a query, whatever else is in the index.

    Parameters
    ----------
    dim
        Length of a vector.
    held
        First row and the one after the last of each shard, in order and without gaps.
    ask
        Asks all shards.
    """

    kind = "sharded"

    def __init__(self, dim: int, held: Sequence[tuple[int, int]], ask: Ask) -> None:
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

    def search(self, vectors: Float32, n_neighbors: int, *, subset: Int64 | None = None) -> Neighbors:
        """Return the nearest rows by (squared distance, row number); all shards answer, or none does.

        Raises
        ------
        InputError
            As any index.
        NetworkError
            If a shard does not answer; it names the shard.
        """
        queries = checked_vectors(vectors, self.dim, "queries")
        k = checked_neighbors(n_neighbors)
        subsets: list[Int64 | None] = [None] * len(self._held)
        if subset is not None:
            rows = checked_subset(subset, self.n)
            subsets = [rows[(rows >= first) & (rows < last)] - first for first, last in self._held]
        if len(queries) == 0:
            return Neighbors(np.empty((0, k), np.int64), np.empty((0, k), np.float32))
        return merged(self._ask(queries, k, subsets), k)

    def add(self, vectors: Float32) -> None:
        """Shards hold what the store holds: nothing can be added."""
        raise TypeError("nothing can be added to a sharded index")

    def save(self, path: Path) -> None:
        """Shards are made from the store: there is nothing to save."""
        raise TypeError("a sharded index is not saved")


def unsearched(stored: StoredReference) -> ShardedIndex:
    """Return the index of a reference that others search: it knows its size and reads nothing."""

    def ask(queries: Float32, k: int, subsets: Sequence[Int64 | None]) -> Sequence[Found]:
        raise TypeError("this index is searched elsewhere")

    return ShardedIndex(stored.dim, [(0, stored.n)], ask)


#: Rows asked for beyond the neighbours wanted where some are gone: so many, and so many times those that
#: would be gone if they lay anywhere.
SPARE, SPARE_SHARE = 8, 3.0


class LayeredIndex:
    """Several indices searched as one, but for rows that were taken out (`scvec.base.types.VectorIndex`).

    Every layer looks for the nearest rows among those that are left in it; the lists are merged by distances
    in float64. So exact layers give the neighbours of one exact index over the rows left, bit for bit.

    Parameters
    ----------
    layers
        One at least, of one dimension. Their rows follow one another.
    gone
        Sorted numbers of the rows that were taken out, counted through all layers. The rows left are numbered
        anew, in the same order.
    """

    kind = "layered"

    def __init__(self, layers: Sequence[AnyIndex], gone: Int64) -> None:
        if not layers or len({layer.dim for layer in layers}) > 1:
            raise ValueError("layers must have one dimension")
        ends = np.cumsum([layer.n for layer in layers])
        if len(gone) and (gone[0] < 0 or gone[-1] >= ends[-1] or (np.diff(gone) <= 0).any()):
            raise ValueError("rows taken out must be sorted, once each, and there")
        self.layers = tuple(layers)
        self._first: Int64 = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        self._last: Int64 = ends.astype(np.int64)
        self._gone = gone
        self._left: Int64 = np.setdiff1d(np.arange(ends[-1], dtype=np.int64), gone, assume_unique=True)

    @property
    def n(self) -> int:
        """Number of rows left."""
        return len(self._left)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.layers[0].dim

    @property
    def takes_turns(self) -> bool:
        """Whether a layer is to be asked by one thread at a time."""
        return any(getattr(layer, "takes_turns", False) for layer in self.layers)

    def with_layers(self, layers: Sequence[AnyIndex]) -> LayeredIndex:
        """Return the same rows, searched by other indices over them."""
        return LayeredIndex(layers, self._gone)

    def search(self, vectors: Float32, n_neighbors: int, *, subset: Int64 | None = None) -> Neighbors:
        """Return the nearest rows by (squared distance, row number), as `FaissFlatIndex.search`.

        Raises
        ------
        InputError
            Queries of another shape or type, NaN or infinity, a row number that does not exist.
        """
        queries = checked_vectors(vectors, self.dim, "queries")
        k = checked_neighbors(n_neighbors)
        among = self._left if subset is None else self._left[checked_subset(subset, self.n)]
        found: list[Found] = []
        for layer, first, last in zip(self.layers, self._first, self._last, strict=True):
            lo, hi = np.searchsorted(among, [first, last])
            if lo == hi:
                continue
            rows = None if hi - lo == layer.n else among[lo:hi] - first
            if subset is None and rows is not None:
                found.append(_passing_over(layer, int(first), rows, queries, k))
            else:
                found.append(search_rows(layer, layer.vectors(), int(first), queries, k, rows))
        if not found or not len(queries):
            none = np.full((len(queries), k), -1, np.int64)
            return Neighbors(none, np.full(none.shape, np.inf, np.float32))
        near = merged(found, k)
        at = np.searchsorted(self._left, near.indices)
        return Neighbors(np.where(near.indices < 0, -1, at), near.distances)

    def add(self, vectors: Float32) -> None:
        """Layers hold what the store holds: a transaction adds one."""
        raise TypeError("nothing can be added to a layered index")

    def save(self, path: Path) -> None:
        """Each layer has its own file."""
        raise TypeError("a layered index is not saved as one")


def _passing_over(layer: AnyIndex, first: int, left: Int64, queries: Float32, k: int) -> Found:
    """Search a layer for more rows than are asked for, and pass over those that are gone.

    Searching among the rows left alone costs many times as much: a selector ends the tricks by which FAISS
    looks at many codes at once. It is for the queries that have too few rows left, as where a whole type of
    cell is gone.
    """
    gone = np.ones(layer.n, dtype=bool)
    gone[left] = False
    wanted = k + SPARE + int(np.ceil(SPARE_SHARE * k * (1.0 - len(left) / layer.n)))
    near = search_rows(layer, layer.vectors(), first, queries, min(wanted, layer.n), None)
    passed = (near.rows < 0) | gone[np.maximum(near.rows - first, 0)]
    distances = np.where(passed, np.inf, near.distances)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    rows = np.take_along_axis(np.where(passed, -1, near.rows), order, axis=1)
    distances = np.take_along_axis(distances, order, axis=1)
    short = np.flatnonzero((rows >= 0).sum(axis=1) < min(k, len(left)))
    if len(short):
        again = search_rows(layer, layer.vectors(), first, queries[short], k, left)
        rows[short], distances[short] = again.rows, again.distances
    return Found(rows, distances)
