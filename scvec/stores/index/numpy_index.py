"""Brute-force search in float64: slow and simple, the standard of comparison for all other indices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scvec.base.errors import StoreError
from scvec.base.types import Float32, Int64, Neighbors
from scvec.stores.index import index
from scvec.stores.index.distances import Index, as_neighbors, checked_vectors, nearest_by_scan

__all__ = ["NumpyIndex"]


@index("numpy", extension="npy", exact=True)
class NumpyIndex(Index):
    """Exact nearest rows by brute force; ``dim`` is the length of a vector."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self._vectors: Float32 = np.empty((0, dim), dtype=np.float32)

    @property
    def n(self) -> int:
        """Number of vectors held."""
        return len(self._vectors)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._vectors.shape[1])

    def vectors(self) -> Float32:
        """Return the (n, dim) float32 vectors of the index."""
        return self._vectors

    def add(self, vectors: Float32) -> None:
        """Append (n, dim) float32 vectors; raise InputError for a wrong shape or dtype, NaN or infinity."""
        ready = checked_vectors(vectors, self.dim, "vectors")
        self._vectors = np.concatenate([self._vectors, ready]) if self.n else ready.copy()

    def _search(self, queries: Float32, k: int, rows: Int64 | None) -> Neighbors:
        found = [nearest_by_scan(self._vectors, query, k, rows) for query in queries]
        return as_neighbors([f[0] for f in found], [f[1] for f in found], k)

    def save(self, path: Path) -> None:
        """Write the vectors as .npy."""
        with open(path, "wb") as handle:
            np.save(handle, self._vectors, allow_pickle=False)

    @classmethod
    def load(
        cls, path: Path, vectors: Float32 | None = None, settings: Mapping[str, Any] | None = None
    ) -> NumpyIndex:
        """Read a file that :meth:`save` wrote (see `Index.load`)."""
        try:
            with open(path, "rb") as handle:
                held = np.load(handle, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise StoreError("an index of the store cannot be read", str(path), "ingest again") from error
        if held.ndim != 2 or held.dtype != np.float32 or held.shape[1] < 1:
            what = f"an index of the store holds {held.dtype} {held.shape}, not (n, dim) float32"
            raise StoreError(what, str(path), "ingest again")
        made = cls(int(held.shape[1]))
        made._vectors = np.ascontiguousarray(held)
        return made
