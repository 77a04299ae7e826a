"""Exact search with FAISS, made independent of the batch."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from scvec.base.errors import ResourceError, StoreError
from scvec.base.types import Float32, Int64, Neighbors
from scvec.stores.index import index
from scvec.stores.index.distances import (
    BLOCK_BYTES,
    Float64,
    Index,
    as_neighbors,
    checked_vectors,
    nearest_by_scan,
    pair_distances,
    row_distances,
)

__all__ = ["FaissFlatIndex"]

#: Candidates asked for beyond k: room for the rounding of float32 scores at the cut.
EXTRA = 16
#: Batches from here on are faster as a matrix product (128 to 384 dimensions, one core: level at 8 to 16).
BLAS_QUERIES = 16
#: Queries per call into FAISS.
BLOCK_QUERIES = 4096

_blas_lock = threading.Lock()
_blas_users = 0
_blas_before: Any = None


def _faiss() -> Any:
    # Any: only newer versions carry types, and those miss arguments that the library documents.
    import faiss

    return faiss


def read_faiss(path: Path) -> Any:
    """Read a FAISS file, or raise StoreError. FAISS notices no damage: its SHA-256 has been checked."""
    try:
        return _faiss().read_index(str(path))
    except MemoryError as error:
        raise ResourceError("out of memory while loading an index", str(path)) from error
    except RuntimeError as error:
        raise StoreError("an index of the store cannot be read", str(path), "ingest again") from error


@contextmanager
def _matrix_products(n_queries: int) -> Iterator[None]:
    """Let FAISS use BLAS for this batch, and put its global setting back.

    FAISS 1.15 leaves BLAS below ``n_queries * dim = 128,000`` (older versions: below 20 queries), which makes
    batches of some dozens to hundreds several times slower than they need be. The setting is a global of
    the library; several threads may be inside, the last one out restores it. It changes speed, never results:
    distances are recomputed.
    """
    global _blas_users, _blas_before
    faiss, name = _faiss(), "distance_compute_blas_threshold"
    if n_queries < BLAS_QUERIES or not hasattr(faiss.cvar, name):
        yield
        return
    with _blas_lock:
        if _blas_users == 0:
            _blas_before = getattr(faiss.cvar, name)
            setattr(faiss.cvar, name, 1)
        _blas_users += 1
    try:
        yield
    finally:
        with _blas_lock:
            _blas_users -= 1
            if _blas_users == 0:
                setattr(faiss.cvar, name, _blas_before)


@index("flat", extension="faiss", exact=True)
class FaissFlatIndex(Index):
    """Exact nearest rows by squared Euclidean distance.

    FAISS proposes candidates by float32 scores, whose last digits depend on the batch; their distances
    are then recomputed in float64 row by row. If rounding could have kept a row out at the cut, that query
    asks for more candidates and at last looks at all rows. So a query gets the same neighbours, in the same
    order and with the same bits, alone, in any batch, in any order and with any number of threads.

    A process that has searched with more than one OpenMP thread must not ``fork``: the child hangs in its
    first search. Use ``spawn``. On shared machines set ``OMP_WAIT_POLICY=PASSIVE`` before start.

    Parameters
    ----------
    dim
        Length of a vector.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self._index: Any = _faiss().IndexFlatL2(dim)
        self._max_norm: float | None = 0.0
        # Rows that lie elsewhere, as in a file that is mapped; the index of FAISS is empty then.
        self._view: Float32 | None = None

    @classmethod
    def over(cls, vectors: Float32) -> FaissFlatIndex:
        """Return an index over (n, dim) float32 rows that copies none of them, mapped from a file say.

        The rows must not change, and none can be added.
        """
        made = cls(int(vectors.shape[1]))
        made._view, made._max_norm = vectors, None
        return made

    @property
    def n(self) -> int:
        """Number of vectors held."""
        return int(self._index.ntotal) if self._view is None else len(self._view)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._index.d)

    def vectors(self) -> Float32:
        """Return the (n, dim) float32 rows held: a read-only view, valid until the next ``add``."""
        if self._view is not None:
            return self._view
        if self.n == 0:
            return np.empty((0, self.dim), dtype=np.float32)
        flat = _faiss().rev_swig_ptr(self._index.get_xb(), self.n * self.dim)
        rows: Float32 = flat.reshape(self.n, self.dim)
        rows.flags.writeable = False
        return rows

    def add(self, vectors: Float32) -> None:
        """Append (n, dim) float32 rows; InputError on another shape or type, NaN or infinity."""
        ready = checked_vectors(vectors, self.dim, "vectors")
        if self._view is not None:
            raise RuntimeError("nothing can be added to rows that lie elsewhere")
        if len(ready):
            self._index.add(ready)
            self._max_norm = None

    def _search(self, queries: Float32, k: int, rows: Int64 | None) -> Neighbors:
        found_rows: list[Int64] = []
        found: list[Float64] = []
        for start in range(0, len(queries), BLOCK_QUERIES):
            block = queries[start : start + BLOCK_QUERIES]
            numbers, distances = self._exact(block, min(k, self.n if rows is None else len(rows)), rows)
            found_rows += numbers
            found += distances
        return as_neighbors(found_rows, found, k)

    def save(self, path: Path) -> None:
        """Write a FAISS file."""
        if self._view is not None:
            raise RuntimeError("rows that lie elsewhere are not written again")
        _faiss().write_index(self._index, str(path))

    @classmethod
    def load(
        cls, path: Path, vectors: Float32 | None = None, settings: Mapping[str, Any] | None = None
    ) -> FaissFlatIndex:
        """Read what :meth:`save` wrote (see `Index.load`)."""
        faiss, loaded = _faiss(), read_faiss(path)
        flat = isinstance(loaded, faiss.IndexFlat) and loaded.metric_type == faiss.METRIC_L2
        if not flat or loaded.d < 1 or loaded.codes.size() != 4 * loaded.d * loaded.ntotal:
            raise StoreError(
                f"an index of the store is a {type(loaded).__name__}, not a flat one by Euclidean distance",
                str(path),
                "ingest again",
            )
        made = cls(int(loaded.d))
        made._index, made._max_norm = loaded, None
        return made

    def _exact(self, queries: Float32, k: int, rows: Int64 | None) -> tuple[list[Int64], list[Float64]]:
        """Nearest ``k`` rows per query, exact; ``k`` is at most the number of rows searched."""
        n_rows = self.n if rows is None else len(rows)
        numbers: list[Int64] = [np.empty(0, dtype=np.int64)] * len(queries)
        distances: list[Float64] = [np.empty(0, dtype=np.float64)] * len(queries)
        if k == 0:
            return numbers, distances
        base = self.vectors()
        open_queries = np.arange(len(queries))
        for n_candidates in (k + EXTRA, 8 * (k + EXTRA)):
            if len(open_queries) == 0 or n_candidates > max(2048, k + EXTRA):
                break
            n_candidates = min(n_candidates, n_rows)
            scores, candidates = self._propose(queries[open_queries], n_candidates, rows)
            least = self._least(scores[:, -1], queries[open_queries])
            candidates.sort(axis=1)  # by row, so that a stable sort leaves the lower row first
            exact = pair_distances(base, candidates, queries[open_queries])
            order = np.argsort(exact, axis=1, kind="stable")[:, :k]
            found = np.take_along_axis(candidates, order, axis=1)
            exact = np.take_along_axis(exact, order, axis=1)
            sure = candidates[:, 0] >= 0  # float32 overflowed inside FAISS where not
            if n_candidates < n_rows:
                # Whatever was not proposed scored no better than the last proposed one.
                sure &= exact[:, -1] < least
            for i in np.flatnonzero(sure):
                numbers[open_queries[i]], distances[open_queries[i]] = found[i], exact[i]
            open_queries = open_queries[~sure]
        for query in open_queries:
            numbers[query], distances[query] = nearest_by_scan(base, queries[query], k, rows)
        return numbers, distances

    def _propose(self, queries: Float32, k: int, rows: Int64 | None) -> tuple[Float64, Int64]:
        """Scores and rows that FAISS finds, (n, k) each, ascending by score."""
        faiss = _faiss()
        with _matrix_products(len(queries)):
            if rows is None:
                if self._view is not None:
                    scores, found = faiss.knn(queries, self._view, k)
                else:
                    scores, found = self._index.search(queries, k)
                return scores.astype(np.float64), found
            if len(queries) < BLAS_QUERIES and self._view is None:
                bits = np.zeros((self.n + 7) // 8 * 8, dtype=np.uint8)
                bits[rows] = 1
                packed = np.packbits(bits, bitorder="little")
                selector = faiss.IDSelectorBitmap(packed)
                scores, found = self._index.search(queries, k, params=faiss.SearchParameters(sel=selector))
                return scores.astype(np.float64), found
            # With a selector FAISS never uses BLAS: for a batch, copying the rows out in blocks is faster.
            step = max(k, BLOCK_BYTES // (4 * self.dim))
            best = np.empty((len(queries), 0), dtype=np.float64)
            best_rows = np.empty((len(queries), 0), dtype=np.int64)
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                scores, found = faiss.knn(queries, self.vectors()[part], min(k, len(part)))
                best = np.concatenate([best, scores.astype(np.float64)], axis=1)
                best_rows = np.concatenate([best_rows, np.where(found < 0, -1, part[found])], axis=1)
                order = np.argsort(best, axis=1, kind="stable")[:, :k]
                best = np.take_along_axis(best, order, axis=1)
                best_rows = np.take_along_axis(best_rows, order, axis=1)
            return best, best_rows

    def _least(self, scores: Float64, queries: Float32) -> Float64:
        """Return the least distance (n,) that rows with no better score than these (n,) may have."""
        return np.asarray(scores - self._rounding(queries), dtype=np.float64)

    def _rounding(self, queries: Float32) -> Float64:
        """Bound (n,) on the error of FAISS scores, which are |x|^2 + |y|^2 - 2xy in float32."""
        if self._max_norm is None:
            base = self.vectors()
            step = max(1, BLOCK_BYTES // (8 * self.dim))
            blocks = (base[s : s + step] for s in range(0, self.n, step))
            self._max_norm = max(float(np.sqrt(row_distances(b, np.zeros(1)).max())) for b in blocks)
        norms = np.sqrt(row_distances(queries, np.zeros(1)))
        unit = float(np.finfo(np.float32).eps) / 2
        largest = (norms + self._max_norm) ** 2
        bound: Float64 = (self.dim + 4) * (unit * largest + float(np.finfo(np.float32).tiny))
        bound[largest > 1e37] = np.inf  # float32 squares may overflow: trust no score
        return bound
