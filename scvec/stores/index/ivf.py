"""Approximate search for many vectors: lists of codes, and exact distances at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError, ResourceError, StoreError
from scvec.base.types import Float32, Int64, Neighbors
from scvec.stores.index.distances import (
    Float64,
    checked_neighbors,
    checked_subset,
    checked_vectors,
    pair_distances,
    row_distances,
)
from scvec.stores.index.flat import FaissFlatIndex, _faiss, _matrix_products
from scvec.stores.index.ivf_codes import IvfCodes
from scvec.stores.index.ivf_tuning import FLAT_BELOW, Effort, IvfSettings

__all__ = ["IvfIndex"]

#: Candidates whose distances are computed in float64, beyond k: room for the rounding of float32.
EXTRA = 4
#: Lists proposed beyond those asked for: room for rounding again.
EXTRA_LISTS = 8
#: Numbers (float32) that one block of queries may hold.
BLOCK_NUMBERS = 1 << 23
MAX_BLOCK = 4096


class IvfIndex:
    """Nearest rows by squared Euclidean distance, most of them (see `scvec.base.types.VectorIndex`).

    FAISS' inverted lists propose candidates by short codes (`scvec.stores.index.ivf_codes.IvfCodes`). Their
    distances are then computed from the float32 vectors themselves, which lie in a file of the store and are
    mapped: the index holds codes only. Distances returned have the bits that `FaissFlatIndex` would return;
    what may differ is that a neighbour is missed, at a rate that is measured.

    Every step looks at one query alone: which lists are opened is settled by distances that do not depend
    on the batch, where FAISS would take those of a matrix product, which do. So a query gets the same
    neighbours alone, in any batch and in any order.

    Parameters
    ----------
    codes
        Of the vectors.
    vectors
        (n, dim) float32, C-contiguous, perhaps mapped. They must not change.
    settings
        How many lists and candidates to look at, and what recall was measured.
    """

    kind = "ivf"

    def __init__(self, codes: IvfCodes, vectors: Float32, settings: IvfSettings) -> None:
        if (codes.n, codes.dim) != vectors.shape:
            raise ValueError(f"{codes.n} x {codes.dim} vectors in the index for {vectors.shape}")
        self.codes = codes
        self._vectors = vectors
        self.settings = settings
        self.effort = Effort(settings.nprobe, settings.factor, settings.reach)
        self._longest = float(np.sqrt(row_distances(codes.centroids, np.zeros(1)).max()))

    @classmethod
    def build(
        cls,
        vectors: Float32,
        *,
        recall: float = 0.95,
        seed: int = 0,
        n_lists: int | None = None,
        batches: Int64 | None = None,
    ) -> IvfIndex:
        """Return an index of vectors, tuned to a recall on queries held out of themselves.

        Parameters
        ----------
        vectors
            (n, dim) float32; they are used in place and must not change.
        recall
            Share (0-1) of the 15 and of the 50 nearest rows to be found.
        n_lists
            Number of lists; goes by n when None.
        batches
            (n,) number of the batch that each row came from: the recall is then also reached for batches that
            the index lacks (see `scvec.stores.index.ivf_tuning`).

        Raises
        ------
        InputError
            Vectors of another shape or type, NaN or infinity, too few of them, a recall outside 0..1.
        """
        from scvec.stores.index.ivf_tuning import tuned

        if not 0.0 < recall <= 1.0:
            raise InputError(
                f"recall is a share between 0 and 1, not {recall:g}",
                fix="give one such as 0.95",
                code="option-out-of-range",
            )
        ready = checked_vectors(vectors, int(vectors.shape[1]) if vectors.ndim == 2 else 0, "vectors")
        n = len(ready)
        lists = n_lists or IvfSettings.lists_for(n)
        if n < lists:
            raise InputError(f"{n:,} vectors are too few for {lists:,} lists", fix="use a flat index")
        codes = IvfCodes.build(ready, n_lists=lists, seed=seed)
        first = IvfSettings(n_lists=lists, nprobe=1, factor=2, target=recall)
        made = cls(codes, ready, first)
        made.settings = tuned(made, recall, seed=seed, batches=batches)
        return cls(codes, ready, made.settings)

    @property
    def n(self) -> int:
        """Number of vectors held."""
        return self.codes.n

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.codes.dim

    def vectors(self) -> Float32:
        """Return the (n, dim) float32 rows; read-only where they are mapped."""
        return self._vectors

    def add(self, vectors: Float32) -> None:
        """Append (n, dim) float32 rows, without training or tuning again.

        All rows are then held in memory.
        """
        ready = checked_vectors(vectors, self.dim, "vectors")
        self.codes.add(ready)
        self._vectors = np.concatenate([self._vectors, ready])

    def exact(self) -> FaissFlatIndex:
        """Return an index that looks at every one of the same vectors."""
        return FaissFlatIndex.over(self._vectors)

    def at_recall(self, recall: float) -> IvfIndex:
        """Return the same index, looking as far as another recall takes by what was measured when tuning.

        Raises
        ------
        InputError
            The recall is no share.
        """
        return self.at_effort(self.settings.effort(recall))

    def at_effort(self, effort: Effort) -> IvfIndex:
        """Return the same index, looking as far as said."""
        other = IvfIndex(self.codes, self._vectors, self.settings)
        other.effort = effort
        return other

    def search(
        self, vectors: Float32, n_neighbors: int, *, subset: npt.NDArray[np.int64] | None = None
    ) -> Neighbors:
        """Return near rows by (squared distance, row number).

        Parameters
        ----------
        vectors
            (n, dim) float32 queries.
        n_neighbors
            Columns of the result; padded with -1 and infinity where there are fewer rows.
        subset
            Row numbers to search among. Few (`FLAT_BELOW`, or a twentieth) are all looked at; else as many
            more lists are opened as the subset is smaller than the whole.

        Raises
        ------
        InputError
            Queries of another shape or type, NaN or infinity, a row number that does not exist.
        StoreError
            The index names rows that are not there.
        """
        queries = checked_vectors(vectors, self.dim, "queries")
        k = checked_neighbors(n_neighbors)
        effort, selector, rows = self.effort, None, None
        if subset is not None:
            rows = checked_subset(subset, self.n)
            if len(rows) <= max(min(FLAT_BELOW, self.n // 4), self.n // 20, k * effort.factor):
                return self.exact().search(queries, k, subset=rows)
            nprobe = min(self.settings.n_lists, -(-effort.nprobe * self.n // len(rows)))
            effort = Effort(nprobe, effort.factor)
            bits = np.zeros(self.n, dtype=bool)
            bits[rows] = True
            packed = np.packbits(bits, bitorder="little")
            selector = _faiss().IDSelectorBitmap(packed)
        if k * 2 > self.n:
            return self.exact().search(queries, k, subset=rows)
        n_candidates = min(effort.factor * k, self.n)
        step = max(1, min(MAX_BLOCK, BLOCK_NUMBERS // max(self.dim * (k + EXTRA), n_candidates * 4)))
        parts = [
            self._block(queries[start : start + step], k, effort, n_candidates, selector, rows)
            for start in range(0, len(queries), step)
        ]
        return Neighbors.concatenate(parts) if parts else self.exact().search(queries, k)

    def candidates(
        self,
        queries: Float32,
        nprobe: int,
        n_candidates: int,
        selector: Any = None,
        *,
        reach: float | None = None,
        enough: int = 0,
    ) -> Int64:
        """Return (n, n_candidates) rows by their estimated distance, ascending; -1 pads.

        ``reach`` closes lists as long as the others hold ``enough`` rows.
        """
        prepared = self.codes.prepared(queries)
        lists, distances = self.lists(prepared, nprobe)
        opened = self.codes.within(lists, distances, reach, enough)
        return self.scan(prepared, opened, distances, n_candidates, selector)

    def scan(
        self, prepared: Float32, lists: Int64, distances: Float32, n_candidates: int, selector: Any = None
    ) -> Int64:
        """Return candidates as `candidates` does, from (n, m) lists and the distances to their centroids."""
        found = self.codes.scan(prepared, lists, distances, n_candidates, selector)
        if found.size and (found.max() >= self.n or found.min() < -1):
            raise StoreError("an index of the store names rows that are not there", fix="ingest again")
        return found

    def _block(
        self, queries: Float32, k: int, effort: Effort, n_candidates: int, selector: Any, rows: Int64 | None
    ) -> Neighbors:
        found = self.candidates(
            queries, effort.nprobe, n_candidates, selector, reach=effort.reach, enough=n_candidates
        )
        kept = self._best(queries, found, min(n_candidates, k + EXTRA))
        kept.sort(axis=1)  # by row, so that a stable sort leaves the lower row first; -1 in front
        there = kept >= 0
        exact: Float64 = np.where(there, pair_distances(self._vectors, kept, queries), np.inf)
        order = np.argsort(exact, axis=1, kind="stable")[:, :k]
        indices = np.take_along_axis(kept, order, axis=1)
        with np.errstate(over="ignore"):
            distances = np.take_along_axis(exact, order, axis=1).astype(np.float32)
        # Lists may hold fewer rows than are asked for.
        short = np.flatnonzero((indices < 0).any(axis=1))
        if len(short):
            whole = self.exact().search(queries[short], k, subset=rows)
            indices[short], distances[short] = whole.indices, whole.distances
        return Neighbors(indices, distances)

    def _best(self, queries: Float32, found: Int64, k: int) -> Int64:
        """Return the ``k`` of each query's candidates that are nearest by float32 distances, in no order."""
        if found.shape[1] <= k:
            return found
        distances = _pair_distances(queries, self._vectors, found)
        distances[found < 0] = np.inf
        best = np.argpartition(distances, k - 1, axis=1)[:, :k]
        return np.take_along_axis(found, best, axis=1)

    def lists(self, prepared: Float32, nprobe: int) -> tuple[Int64, Float32]:
        """Return the lists to open, (n, nprobe), and the distances to their centroids, ascending.

        Parameters
        ----------
        prepared
            From `IvfCodes.prepared`.
        """
        faiss, centroids = _faiss(), self.codes.centroids
        queries, n_lists = self.codes.on_axes(prepared), len(centroids)
        n_proposed = min(n_lists, nprobe + EXTRA_LISTS)
        with _matrix_products(len(queries)):
            scores, proposed = faiss.knn(queries, centroids, n_proposed)
        proposed.sort(axis=1)
        distances = _pair_distances(queries, centroids, proposed)
        order = np.argsort(distances, axis=1, kind="stable")[:, :nprobe]
        lists, nearest = np.take_along_axis(proposed, order, axis=1), np.take_along_axis(distances, order, 1)
        if n_proposed < n_lists:
            # Both kinds of float32 distances may be off by as much; a list left out could then be nearer.
            norms = np.sqrt(row_distances(queries, np.zeros(1)))
            unit = float(np.finfo(np.float32).eps) / 2
            bound = 2 * (centroids.shape[1] + 4) * (unit * (norms + self._longest) ** 2)
            unsure = np.flatnonzero(~(nearest[:, -1] < scores[:, -1].astype(np.float64) - bound))
            every = np.arange(n_lists, dtype=np.int64)[None]
            for i in unsure:
                whole = _pair_distances(queries[i : i + 1], centroids, every)[0]
                first = np.argsort(whole, kind="stable")[:nprobe]
                lists[i], nearest[i] = first, whole[first]
        return np.ascontiguousarray(lists), np.ascontiguousarray(nearest)

    def save(self, path: Path) -> None:
        """Write a FAISS file, without the vectors."""
        self.codes.save(path)

    @classmethod
    def load(cls, path: Path, vectors: Float32, settings: Mapping[str, Any]) -> IvfIndex:
        """Read what :meth:`save` wrote; the vectors stay mapped.

        The caller has checked the file's SHA-256: FAISS would not notice.

        Parameters
        ----------
        vectors
            (n, dim) float32, from their own file.
        settings
            From `IvfSettings.to_dict`.

        Raises
        ------
        StoreError
            Unreadable, another kind of index, or of other vectors.
        """
        faiss = _faiss()
        try:
            found = IvfSettings.from_dict(settings)
            loaded = faiss.read_index(str(path))
        except MemoryError as error:
            raise ResourceError("out of memory while loading an index", str(path)) from error
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise StoreError("an index of the store cannot be read", str(path), "ingest again") from error
        try:
            codes = IvfCodes(loaded)
            if (codes.n, codes.dim, len(codes.centroids)) != (*vectors.shape, found.n_lists):
                raise ValueError("an index of other vectors")
        except ValueError as error:
            raise StoreError(
                f"an index of the store is a {type(loaded).__name__} that does not fit its vectors",
                str(path),
                "ingest again",
            ) from error
        return cls(codes, vectors, found)


def _pair_distances(queries: Float32, base: Float32, rows: Int64) -> Float32:
    """Return float32 distances (n, m) between query i and the rows ``rows[i]``; -1 stands for row 0.

    FAISS computes one pair after another, so that no distance depends on what else is asked.
    """
    faiss = _faiss()
    safe = np.ascontiguousarray(np.maximum(rows, 0))
    distances = np.empty(safe.shape, dtype=np.float32)
    faiss.fvec_L2sqr_by_idx(
        faiss.swig_ptr(distances),
        faiss.swig_ptr(queries),
        faiss.swig_ptr(base),
        faiss.swig_ptr(safe),
        queries.shape[1],
        len(queries),
        safe.shape[1],
    )
    return distances
