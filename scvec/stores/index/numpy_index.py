"""Brute force in float64: slow, simple, and what every other index is measured against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from scvec.base.errors import StoreError
from scvec.base.types import Float32, Neighbors
from scvec.stores.index.distances import (
    as_neighbors,
    checked_neighbors,
    checked_subset,
    checked_vectors,
    nearest_by_scan,
)

__all__ = ["NumpyIndex"]


class NumpyIndex:
    """Nearest rows by looking at all of them (see `scvec.base.types.VectorIndex`).

    Parameters
    ----------
    dim
        Length of a vector.
    """

    kind = "numpy"

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"dim must be positive, not {dim}")
        self._vectors: Float32 = np.empty((0, dim), dtype=np.float32)

    @property
    def n(self) -> int:
        """Number of vectors held."""
        return int(self._vectors.shape[0])

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._vectors.shape[1])

    def vectors(self) -> Float32:
        """Return the (n, dim) float32 rows held."""
        return self._vectors

    def add(self, vectors: Float32) -> None:
        """Append (n, dim) float32 rows; InputError on another shape or type, NaN or infinity."""
        ready = checked_vectors(vectors, self.dim, "vectors")
        self._vectors = np.concatenate([self._vectors, ready]) if self.n else ready.copy()

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
        rows = None if subset is None else checked_subset(subset, self.n)
        found = [nearest_by_scan(self._vectors, query, k, rows) for query in queries]
        return as_neighbors([f[0] for f in found], [f[1] for f in found], k)

    def save(self, path: Path) -> None:
        """Write the vectors as .npy."""
        with open(path, "wb") as handle:
            np.save(handle, self._vectors, allow_pickle=False)

    @classmethod
    def load(cls, path: Path) -> NumpyIndex:
        """Read what :meth:`save` wrote. The caller has checked the file's SHA-256."""
        try:
            with open(path, "rb") as handle:
                vectors = np.load(handle, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise StoreError("an index of the store cannot be read", str(path), "ingest again") from error
        if vectors.ndim != 2 or vectors.dtype != np.float32 or vectors.shape[1] < 1:
            raise StoreError(f"an index holds {vectors.dtype} {vectors.shape}", str(path), "ingest again")
        index = cls(int(vectors.shape[1]))
        index._vectors = np.ascontiguousarray(vectors)
        return index
