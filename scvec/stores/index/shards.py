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
    from scvec.base.protocols import VectorIndex
    from scvec.stores.store.reference_reader import StoredReference

__all__ = ["Ask", "Found", "ShardedIndex", "merged", "search_rows", "spans", "unsearched"]


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
    """An index that is searched elsewhere (see `scvec.base.protocols.VectorIndex`).

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
