"""Exact search with FAISS, independent of the batch; on a GPU with FAISS or torch."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scvec.base.errors import ResourceError, StoreError
from scvec.base.types import Float32, Float64, Int64, Neighbors
from scvec.stores.index import index
from scvec.stores.index.distances import (
    BLOCK_BYTES,
    Index,
    as_neighbors,
    checked_vectors,
    nearest_by_scan,
    pair_distances,
    row_distances,
)
from scvec.stores.index.shards import SegmentedIndex

if TYPE_CHECKING:
    import torch

__all__ = ["FaissFlatIndex", "TorchIndex", "on_device"]

#: Number of candidates beyond k, because float32 rounding may reorder rows near the k-th place.
EXTRA = 16
#: Batch size from which a matrix product is faster (128 to 384 dimensions, one core: equal at 8 to 16).
BLAS_QUERIES = 16
#: Queries per call into FAISS.
BLOCK_QUERIES = 4096

_blas_lock = threading.Lock()
#: Held while a file is read: the bounds on it are global, too.
_reading = threading.Lock()
_blas_users = 0
_blas_before: Any = None


def _faiss() -> Any:
    # Any: only newer versions of FAISS have types, and these lack some documented arguments.
    import faiss

    return faiss


#: Largest precomputed table of a product quantizer, in bytes: FAISS makes none beyond this size.
MAX_TABLE = 2**31


def read_faiss(path: Path) -> Any:
    """Read a FAISS file; raise StoreError if it cannot be read.

    FAISS does not detect damaged files, so the caller must have checked the SHA-256. A file of strangers may
    claim vectors of terabytes, so vectors must not be larger than the file. Product quantizers alone have a
    table that is computed and may be larger. FAISS checks it last, so it gets a second try with more room.
    """
    n_bytes = path.stat().st_size
    try:
        try:
            with _bounded(n_bytes):
                return _faiss().read_index(str(path))
        except RuntimeError as error:
            if "precomputed_table" not in str(error):
                raise
        with _bounded(n_bytes + MAX_TABLE):
            return _faiss().read_index(str(path))
    except MemoryError as error:
        raise ResourceError("out of memory while loading an index", str(path)) from error
    except (RuntimeError, OSError) as error:
        raise StoreError("an index of the store cannot be read", str(path), "ingest again") from error


@contextmanager
def _bounded(n_bytes: int) -> Iterator[None]:
    """Let FAISS read no vector of more bytes, nor lists of more entries. Versions before 1.14 cannot."""
    faiss = _faiss()
    if not hasattr(faiss, "set_deserialization_vector_byte_limit"):
        yield
        return
    with _reading:
        limits = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
        faiss.set_deserialization_vector_byte_limit(n_bytes)
        faiss.set_deserialization_loop_limit(n_bytes)
        try:
            yield
        finally:
            faiss.set_deserialization_vector_byte_limit(limits[0])
            faiss.set_deserialization_loop_limit(limits[1])


@contextmanager
def _matrix_products(n_queries: int) -> Iterator[None]:
    """Make FAISS use BLAS for this batch, and restore its global setting afterwards.

    FAISS 1.15 does not use BLAS below ``n_queries * dim = 128,000`` (older versions: below 20 queries), which
    makes batches of dozens to hundreds of queries several times slower. The setting is a global variable of
    FAISS; of several threads in the block, the last one restores it. It changes only the speed, because
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

    FAISS proposes candidates by float32 scores, whose last digits depend on the batch. The index recomputes
    the distances of candidates in float64, row by row. If rounding may have excluded a true neighbour of a
    query, the index asks for more candidates, and finally scans all rows. So the neighbours of a query, their
    order and their bits do not depend on the batch or the number of threads.

    A process that has searched with more than one OpenMP thread must not ``fork``, because the child hangs in
    its first search. Use ``spawn``. On shared machines set ``OMP_WAIT_POLICY=PASSIVE`` before start.

    Parameters
    ----------
    dim
        Length of a vector.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self._index: Any = _faiss().IndexFlatL2(dim)
        self._max_norm: float | None = 0.0
        # Vectors outside FAISS, such as a memory-mapped file; the FAISS index is then empty.
        self._view: Float32 | None = None

    @classmethod
    def over(cls, vectors: Float32) -> FaissFlatIndex:
        """Return an index over (n, dim) float32 vectors without copying them, such as a memory-mapped file.

        The vectors must not change, and :meth:`add` is not possible.
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
        """Return the (n, dim) float32 vectors: a read-only view, valid until the next ``add``."""
        if self._view is not None:
            return self._view
        if self.n == 0:
            return np.empty((0, self.dim), dtype=np.float32)
        flat = _faiss().rev_swig_ptr(self._index.get_xb(), self.n * self.dim)
        rows: Float32 = flat.reshape(self.n, self.dim)
        rows.flags.writeable = False
        return rows

    def add(self, vectors: Float32) -> None:
        """Append (n, dim) float32 vectors; raise InputError for a wrong shape or dtype, NaN or infinity."""
        ready = checked_vectors(vectors, self.dim, "vectors")
        if self._view is not None:
            raise RuntimeError("rows cannot be added to an index over vectors of another file")
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
            raise RuntimeError("an index over vectors of another file cannot be saved")
        _faiss().write_index(self._index, str(path))

    @classmethod
    def load(
        cls, path: Path, vectors: Float32 | None = None, settings: Mapping[str, Any] | None = None
    ) -> FaissFlatIndex:
        """Read a file that :meth:`save` wrote (see `Index.load`)."""
        faiss, loaded = _faiss(), read_faiss(path)
        flat = isinstance(loaded, faiss.IndexFlat) and loaded.metric_type == faiss.METRIC_L2
        if not flat or loaded.d < 1 or loaded.codes.size() != 4 * loaded.d * loaded.ntotal:
            raise StoreError(
                f"an index of the store is a {type(loaded).__name__}, not a flat Euclidean index",
                str(path),
                "ingest again",
            )
        made = cls(int(loaded.d))
        made._index, made._max_norm = loaded, None
        return made

    def _exact(self, queries: Float32, k: int, rows: Int64 | None) -> tuple[list[Int64], list[Float64]]:
        """Return the exact nearest ``k`` rows of each query; ``k`` is at most the number of searched rows."""
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
            candidates.sort(axis=1)  # by row, so that the stable sort below puts the lower row first
            exact = pair_distances(base, candidates, queries[open_queries])
            order = np.argsort(exact, axis=1, kind="stable")[:, :k]
            found = np.take_along_axis(candidates, order, axis=1)
            exact = np.take_along_axis(exact, order, axis=1)
            sure = candidates[:, 0] >= 0  # -1 means that float32 overflowed inside FAISS
            if n_candidates < n_rows:
                # Rows that were not proposed have no better score than the last proposed row.
                sure &= exact[:, -1] < least
            for i in np.flatnonzero(sure):
                numbers[open_queries[i]], distances[open_queries[i]] = found[i], exact[i]
            open_queries = open_queries[~sure]
        for query in open_queries:
            numbers[query], distances[query] = nearest_by_scan(base, queries[query], k, rows)
        return numbers, distances

    def _propose(self, queries: Float32, k: int, rows: Int64 | None) -> tuple[Float64, Int64]:
        """Return the scores and rows that FAISS finds, (n, k) each, ascending by score."""
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
            # FAISS never uses BLAS with a selector. For a batch, copying the rows in blocks is faster.
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
        """Return a lower bound (n,) on the distances of rows whose scores are not better than ``scores``."""
        return np.asarray(scores - self._rounding(queries), dtype=np.float64)

    def _rounding(self, queries: Float32) -> Float64:
        """Return a bound (n,) on the error of FAISS scores, which are |x|^2 + |y|^2 - 2xy in float32."""
        if self._max_norm is None:
            base = self.vectors()
            step = max(1, BLOCK_BYTES // (8 * self.dim))
            blocks = (base[s : s + step] for s in range(0, self.n, step))
            self._max_norm = max(float(np.sqrt(row_distances(b, np.zeros(1)).max())) for b in blocks)
        norms = np.sqrt(row_distances(queries, np.zeros(1)))
        unit = float(np.finfo(np.float32).eps) / 2
        largest = (norms + self._max_norm) ** 2
        bound: Float64 = (self.dim + 4) * (unit * largest + float(np.finfo(np.float32).tiny))
        bound[largest > 1e37] = np.inf  # squares may overflow float32, so no score is reliable
        return bound


#: Number of scores of one tile in memory.
TILE_SCORES = 1 << 26
#: Fraction of a GPU's free memory that vectors may fill. Larger sets are copied to the GPU tile by tile.
MEMORY_FRACTION = 0.7


def on_device(index: Index, device: str) -> Index:
    """Return the index itself for ``cpu``, and an exact index on the GPU for ``cuda``.

    An exact index finds the same neighbours on both. A GPU is fast enough to search an approximate index
    exactly.
    """
    if device != "cuda":
        return index
    if isinstance(index, SegmentedIndex):
        return index.with_segments([on_gpu(segment) for segment in index.segments])
    return on_gpu(index)


def on_gpu(index: Index) -> Index:
    """Return an index that searches exactly on a GPU; an index that is empty or not flat stays on the CPU."""
    index = index.exact()
    if not isinstance(index, FaissFlatIndex) or index.n == 0:
        return index
    return TorchIndex(index, "cuda")


class TorchIndex(FaissFlatIndex):
    """A flat index with candidates from torch: fp16 storage, fp32 scores, tile by tile.

    The index stores the differences of vectors from their mean as fp16, and measures the largest rounding
    error. This gives a lower bound on the distance of rows that were not proposed. Distances of candidates
    are recomputed in float64 from the float32 vectors. Queries for which rounding may matter get more
    candidates. The neighbours are bit-identical to those of :class:`FaissFlatIndex`.

    Parameters
    ----------
    index
        Index with the float32 vectors; no rows may be added afterwards.
    device
        ``cuda``, or ``cpu``, which gives the same results but is slower than FAISS.
    tile_rows
        Number of rows in a tile; None for the default.
    """

    takes_turns = True  # a GPU runs one search at a time

    def __init__(self, index: FaissFlatIndex, device: str = "cpu", *, tile_rows: int | None = None) -> None:
        import torch

        super().__init__(index.dim)
        self._index, self._view, self._max_norm = index._index, index._view, None
        self._device, self._tile_rows = device, tile_rows or max(4096, TILE_SCORES // 4096)
        base = self.vectors()
        self._mean: Float64 = base.mean(axis=0, dtype=np.float64)
        largest = max((float(np.abs(block - self._mean).max()) for block in self._blocks(base)), default=0.0)
        # Scale by a power of two, which is exact, so that the largest absolute value is below 2.
        exponent = np.frexp(largest)[1] - 1 if np.isfinite(largest) and largest > 0 else 0
        self._scale = float(np.ldexp(1.0, -int(exponent)))
        self._error = self._norm = 0.0
        self._tiles: list[torch.Tensor] = []
        resident = self._fits(base.size * 2)
        for block in self._blocks(base):
            centred = (block - self._mean) * self._scale
            half = centred.astype(np.float16)
            rounded = half.astype(np.float64) - centred
            self._error = max(self._error, float(np.sqrt((rounded**2).sum(axis=1).max())))
            self._norm = max(self._norm, float(np.sqrt((half.astype(np.float64) ** 2).sum(axis=1).max())))
            tile = torch.from_numpy(half)
            if device != "cpu":
                tile = tile.to(device) if resident else tile.pin_memory()
            self._tiles.append(tile)

    def _blocks(self, base: Float32) -> Any:
        return (base[start : start + self._tile_rows] for start in range(0, len(base), self._tile_rows))

    def _fits(self, n_bytes: int) -> bool:
        if self._device == "cpu":
            return True
        import torch

        return n_bytes < MEMORY_FRACTION * torch.cuda.mem_get_info()[0]

    def _centred(self, queries: Float32) -> Float64:
        return np.asarray((queries - self._mean) * self._scale, dtype=np.float64)

    def _propose(self, queries: Float32, k: int, rows: Int64 | None) -> tuple[Float64, Int64]:
        import torch

        asked = torch.from_numpy(self._centred(queries).astype(np.float32)).to(self._device)
        step = len(queries)
        while True:
            try:
                parts = [self._nearest(asked[i : i + step], k, rows) for i in range(0, len(asked), step)]
                break
            except RuntimeError as error:
                if "memory" not in str(error):
                    raise
                if step == 1:
                    fix = "free memory on it, or leave out --device cuda"
                    raise ResourceError("out of memory while searching on the GPU", "", fix) from error
            step = max(1, step // 2)
            torch.cuda.empty_cache()
        scores = np.concatenate([s for s, _ in parts]).astype(np.float64)
        return scores / self._scale**2, np.concatenate([r for _, r in parts])

    def _nearest(self, asked: torch.Tensor, k: int, rows: Int64 | None) -> tuple[Float32, Int64]:
        """Return scaled scores and rows, (n, k) each, ascending by score."""
        import torch

        squares = (asked * asked).sum(dim=1, keepdim=True)
        best = torch.empty(len(asked), 0, device=asked.device)
        numbers = torch.empty(len(asked), 0, dtype=torch.int64, device=asked.device)
        start = 0
        for tile in self._tiles:
            stop = start + len(tile)
            here = torch.arange(start, stop)
            if rows is not None:
                here = torch.from_numpy(rows[(rows >= start) & (rows < stop)])
                tile = tile[(here - start).to(tile.device)]
            start = stop
            if len(tile) == 0:
                continue
            # Convert fp16 to fp32 first, because a product of fp16 matrices would be rounded to fp16.
            full = tile.to(asked.device, non_blocking=True).float()
            scores = squares + (full * full).sum(dim=1) - 2.0 * (asked @ full.T)
            found = scores.topk(min(k, len(full)), dim=1, largest=False)
            best = torch.cat([best, found.values], dim=1)
            numbers = torch.cat([numbers, here.to(asked.device)[found.indices]], dim=1)
            kept = best.topk(min(k, best.shape[1]), dim=1, largest=False)
            best, numbers = kept.values, numbers.gather(1, kept.indices)
        return best.cpu().numpy(), numbers.cpu().numpy()

    def _least(self, scores: Float64, queries: Float32) -> Float64:
        """Return a lower bound (n,) on the distances of rows whose scores are not better than ``scores``.

        Let ``y'`` be the fp16 version of a row ``y``. Then ``|x - y| >= |x - y'| - |y - y'|``, and the score
        is ``|x - y'|^2`` up to float32 rounding.
        """
        unit = float(np.finfo(np.float32).eps) / 2
        norms = np.sqrt(row_distances(self._centred(queries), np.zeros(1)))
        rounding = (self.dim + 8) * unit * (norms + self._norm) ** 2
        shortest = np.sqrt(np.maximum(scores * self._scale**2 - rounding, 0.0))
        least = np.maximum(shortest - self._error - unit * norms, 0.0) ** 2 / self._scale**2
        # Scores are not reliable if float32 squares overflow.
        trusted = np.isfinite(scores) & ((norms + self._norm) ** 2 < 1e37)
        return np.asarray(np.where(trusted, least, -np.inf), dtype=np.float64)
