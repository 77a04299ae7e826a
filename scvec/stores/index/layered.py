"""The index of a reference that has grown and shrunk: what was built first, what came later, what is gone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scvec.base.types import Float32, Int64, Neighbors
from scvec.stores.index.distances import checked_neighbors, checked_subset, checked_vectors
from scvec.stores.index.shards import Found, merged, search_rows

if TYPE_CHECKING:
    from scvec.stores.index import AnyIndex

__all__ = ["LayeredIndex"]

#: Rows asked for beyond the neighbours wanted where some are gone: so many, and so many times those that
#: would be gone if they lay anywhere.
SPARE, SPARE_SHARE = 8, 3.0


class LayeredIndex:
    """Several indices searched as one, but for rows that were taken out (`scvec.base.protocols.VectorIndex`).

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
