"""The codes that an approximate index compares in place of vectors, and how a query is put to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.types import Float32, Int64
from scvec.stores.index.distances import Float64
from scvec.stores.index.flat import _faiss

__all__ = ["IvfCodes"]

#: Fraction of the variance that the axes kept must hold, and the step by which more are kept.
HELD, AXES = 0.97, 64
#: Rows that axes and centre are computed from.
SAMPLE = 50_000
#: Four-bit numbers that hold what no query has a part in (`_rests`), and the levels of one. The last one's
#: are a sixteenth of the others'.
RESTS, LEVELS = 8, 16
ROUNDS = 10
#: Training vectors for each list. FAISS asks for 39 at least.
PER_LIST = 50
#: Rows worked on at once, in float64.
BLOCK_ROWS = 1 << 14
#: One way to keep the best candidates, whatever their number: FAISS would choose by it and by the threads.
RESERVOIR = 13
#: Axes are whole multiples of 2**-20, and queries of 2**-20 of four times the longest centroid, so that
#: their products are sums of whole numbers below 2**53, which no order of summation changes.
AXIS_BITS, QUERY_BITS = 20, 22


class IvfCodes:
    """Lists of codes in FAISS.

    A vector is moved to the centre of all, put on principal axes, fewer than it has dimensions, and these
    are rotated at random so that all carry as much. What it differs from the centroid of its list is coded by
    product quantisation, four bits an axis or two, which are compared in registers (André et al. 2015,
    doi:10.14778/2856318.2856324).

    With a query :math:`q`, a centroid :math:`c` and a decoded difference :math:`r`

    .. math:: |q - c - r|^2 = |q - c|^2 - 2 q r + (2 c r + |r|^2),

    so that one table of :math:`q r` serves all lists, where distances to residuals would take a table for
    each list that is opened: longer than to look at its codes. The last term has no part of the query and is
    coded by `RESTS` numbers more. For FAISS all this is an inner product of longer vectors.

    Parameters
    ----------
    whole
        ``faiss.IndexPreTransform`` of a centring and of a linear transform to the axes, over an
        ``IndexIVFPQFastScan`` of inner products.

    Raises
    ------
    ValueError
        It is something else.
    """

    def __init__(self, whole: Any) -> None:
        faiss = _faiss()
        self._whole = whole
        index: Any = whole
        if isinstance(whole, faiss.IndexPreTransform):
            index = self.index = faiss.downcast_index(whole.index)
        quantizer = faiss.downcast_index(index.quantizer) if isinstance(index, faiss.IndexIVF) else None
        if not (
            index is not whole
            and isinstance(index, faiss.IndexIVFPQFastScan)
            and isinstance(quantizer, faiss.IndexFlat)
            and (quantizer.ntotal, quantizer.d) == (index.nlist, index.d)
            and quantizer.codes.size() == 4 * index.d * index.nlist
            and index.pq.M * index.pq.dsub == index.d
            and index.pq.centroids.size() == LEVELS * index.d
            and whole.ntotal == index.ntotal
        ):
            raise ValueError(f"a {type(index).__name__} that is not ours")
        index.implem = RESERVOIR
        self._sizes: Int64 | None = None
        centroids = np.ascontiguousarray(quantizer.reconstruct_n(0, index.nlist), dtype=np.float32)
        self._mean, self._axes = self._read_axes()
        self.dim = int(whole.d)
        self.centroids = np.ascontiguousarray(centroids[:, : self._axes.shape[1]])
        longest = float(np.sqrt((self.centroids.astype(np.float64) ** 2).sum(axis=1).max()))
        reach = np.frexp(longest)[1] + 2 if 0 < longest < np.inf else 0
        self._unit = float(np.ldexp(1.0, int(reach) - QUERY_BITS))

    def _read_axes(self) -> tuple[Float32, Float64]:
        """Return the centre, and (dim, m) axes in whole numbers."""
        faiss, whole, index = _faiss(), self._whole, self.index
        chain = [faiss.downcast_VectorTransform(whole.chain.at(i)) for i in range(whole.chain.size())]
        kinds = [type(step) for step in chain]
        n_axes = index.d - RESTS * index.pq.dsub
        if (
            kinds != [faiss.CenteringTransform, faiss.LinearTransform]
            or (chain[0].d_in, chain[1].d_in, chain[1].d_out) != (whole.d, whole.d, index.d)
            or n_axes < 1
            or index.metric_type != faiss.METRIC_INNER_PRODUCT
            or not index.by_residual
            or chain[0].mean.size() != whole.d
            or chain[1].A.size() != whole.d * index.d
        ):
            raise ValueError("transforms that are not ours")
        mean: Float32 = faiss.vector_to_array(chain[0].mean)
        axes = faiss.vector_to_array(chain[1].A).reshape(index.d, whole.d)[:n_axes].astype(np.float64)
        numbers: Float64 = np.ascontiguousarray(np.rint(np.ldexp(axes, AXIS_BITS)).T)
        if not (np.isfinite(mean).all() and np.abs(numbers).max() <= 1 << AXIS_BITS):
            raise ValueError("transforms that are not ours")
        return mean, numbers

    @classmethod
    def build(cls, vectors: Float32, *, n_lists: int, seed: int) -> IvfCodes:
        """Return trained codes of (n, dim) float32 vectors, which are finite and as many as lists or more."""
        faiss = _faiss()
        rng = np.random.default_rng(seed)
        n, dim = vectors.shape
        mean, axes, per_code = _principal(vectors[np.sort(rng.permutation(n)[:SAMPLE])], rng)
        n_axes = axes.shape[1]
        wide = n_axes + RESTS * per_code
        rotated = np.zeros((wide, dim), dtype=np.float32)
        rotated[:n_axes] = np.ldexp(np.rint(np.ldexp(axes.T, AXIS_BITS)), -AXIS_BITS)
        centring, linear = faiss.CenteringTransform(dim), faiss.LinearTransform(dim, wide, True)
        faiss.copy_array_to_vector(mean, centring.mean)
        faiss.copy_array_to_vector(rotated.ravel(), linear.A)
        bias = np.zeros(wide, dtype=np.float32)
        bias[n_axes::per_code] = -1.0
        faiss.copy_array_to_vector(bias, linear.b)
        centring.is_trained = linear.is_trained = True

        rows = np.sort(rng.permutation(n)[: PER_LIST * n_lists])
        blocks = [rows[start : start + BLOCK_ROWS] for start in range(0, len(rows), BLOCK_ROWS)]
        training = np.concatenate([(vectors[block] - mean) @ rotated[:n_axes].T for block in blocks])
        lists = faiss.Kmeans(
            n_axes, n_lists, niter=ROUNDS, seed=1 + seed % (1 << 30), min_points_per_centroid=1
        )
        lists.train(np.ascontiguousarray(training))
        quantizer = faiss.IndexFlatL2(wide)
        centroids = np.zeros((n_lists, wide), dtype=np.float32)
        centroids[:, :n_axes] = lists.centroids
        quantizer.add(centroids)
        index = faiss.IndexIVFPQFastScan(
            quantizer, wide, n_lists, wide // per_code, 4, faiss.METRIC_INNER_PRODUCT
        )
        index.by_residual = True
        index.pq.cp.seed, index.pq.cp.min_points_per_centroid = lists.cp.seed, 1
        # Noise, as the rests have no levels yet; what is trained on it is replaced.
        noise = rng.normal(size=(len(training), wide)).astype(np.float32)
        noise[:, :n_axes] = training
        index.train(noise)
        whole = faiss.IndexPreTransform(index)
        whole.prepend_transform(linear)
        whole.prepend_transform(centring)
        # Python lets go of what the index owns from here on.
        for part in (quantizer, index, linear, centring):
            part.this.disown()
        index.own_fields = whole.own_fields = True
        made = cls(whole)
        rests = [made._rests(vectors[block], made._placed(vectors[block])) for block in blocks]
        made._set_levels(np.concatenate(rests))
        made.add(vectors)
        return made

    @property
    def n(self) -> int:
        """Number of codes."""
        return int(self.index.ntotal)

    def add(self, vectors: Float32) -> None:
        """Append (n, dim) float32 vectors, without training."""
        for start in range(0, len(vectors), BLOCK_ROWS):
            rows = vectors[start : start + BLOCK_ROWS]
            placed = self._placed(rows)
            placed[:, self.centroids.shape[1] :: self.index.pq.dsub] = self._levels_of(
                self._rests(rows, placed)
            )
            self.index.add(placed)
        self._whole.ntotal = self.index.ntotal

    def prepared(self, queries: Float32) -> Float32:
        """Return (n, m) float32, what lists and codes are asked with; the same for a query in any batch."""
        placed = self._placed(queries)
        placed[:, self.centroids.shape[1] :: self.index.pq.dsub] = -1.0
        return placed

    def on_axes(self, prepared: Float32) -> Float32:
        """Return the part of `prepared` that is compared with centroids."""
        return np.ascontiguousarray(prepared[:, : self.centroids.shape[1]])

    def scan(
        self, prepared: Float32, lists: Int64, distances: Float32, n_candidates: int, selector: Any = None
    ) -> Int64:
        """Return (n, n_candidates) rows by their estimated distance, ascending; -1 pads.

        Parameters
        ----------
        prepared
            From `prepared`.
        lists, distances
            (n, m) lists to open, and the squared distances to their centroids.
        """
        faiss = _faiss()
        scores = np.ascontiguousarray(-0.5 * distances, np.float32)
        estimates = np.empty((len(prepared), n_candidates), dtype=np.float32)
        found = np.empty((len(prepared), n_candidates), dtype=np.int64)
        options = {} if selector is None else {"sel": selector}
        parameters = faiss.IVFSearchParameters(nprobe=lists.shape[1], **options)
        # The wrapper of Python takes no parameters here.
        self.index.search_preassigned_c(
            len(prepared),
            faiss.swig_ptr(prepared),
            n_candidates,
            faiss.swig_ptr(lists),
            faiss.swig_ptr(scores),
            faiss.swig_ptr(estimates),
            faiss.swig_ptr(found),
            False,
            parameters,
        )
        return found

    def within(self, lists: Int64, distances: Float32, reach: float | None, enough: int) -> Int64:
        """Return lists with -1 for those further off than the first by more than ``reach``.

        Those stay that are needed to hold ``enough`` rows.
        """
        if reach is None:
            return lists
        if self._sizes is None or self._sizes.sum() != self.n:
            sizes = [self.index.invlists.list_size(i) for i in range(self.index.nlist)]
            self._sizes = np.array(sizes, dtype=np.int64)
        size = self._sizes[lists]
        closed = (distances - distances[:, :1] > reach) & (np.cumsum(size, axis=1) - size >= enough)
        return np.where(closed, -1, lists)

    def list_of(self) -> Int64:
        """Return (n,) the list that each row is in."""
        faiss, inverted = _faiss(), self.index.invlists
        found = np.zeros(self.n, dtype=np.int64)
        for number in range(self.index.nlist):
            size = inverted.list_size(number)
            if size:
                found[faiss.rev_swig_ptr(inverted.get_ids(number), size)] = number
        return found

    def save(self, path: Path) -> None:
        """Write a FAISS file."""
        _faiss().write_index(self._whole, str(path))

    def _placed(self, vectors: Float32) -> Float32:
        """Return (n, m) float32 vectors on the axes, and zeros.

        The product is one of whole numbers: else its last digits would depend on the batch. What lies further
        off than four times the longest centroid is cut there; it is proposed candidates, no distances.
        """
        most = float(1 << QUERY_BITS)
        with np.errstate(over="ignore"):
            whole = (vectors - self._mean).astype(np.float64)
        np.clip(np.rint(whole / self._unit, out=whole), -most, most, out=whole)
        placed = np.zeros((len(vectors), self.index.d), dtype=np.float32)
        placed[:, : self.centroids.shape[1]] = (whole @ self._axes) * (self._unit * np.ldexp(1.0, -AXIS_BITS))
        return placed

    def _rests(self, vectors: Float32, placed: Float32) -> Float64:
        """Return (n,) half of what the squared distance has beside the query's part, axes left out too."""
        n_axes, pq = self.centroids.shape[1], self.index.pq
        lists = self.index.quantizer.search(placed, 1)[1][:, 0]
        residuals = np.zeros_like(placed)
        residuals[:, :n_axes] = placed[:, :n_axes] - self.centroids[lists]
        decoded = pq.decode(pq.compute_codes(residuals))[:, :n_axes].astype(np.float64)
        beside = np.square(vectors - self._mean, dtype=np.float64).sum(axis=1)
        beside -= np.square(placed, dtype=np.float64).sum(axis=1)
        rests: Float64 = (self.centroids[lists] * decoded).sum(axis=1) + 0.5 * np.square(decoded).sum(axis=1)
        return np.asarray(rests + 0.5 * np.maximum(beside, 0.0), dtype=np.float64)

    def _set_levels(self, rests: Float64) -> None:
        """Spread the levels of the numbers that code the rests over these."""
        faiss, pq = _faiss(), self.index.pq
        low, high = (float(v) for v in np.quantile(rests, [0.0005, 0.9995]))
        margin = 0.05 * (high - low)
        low, high = low - margin, high + margin
        step = max(high - low, float(np.finfo(np.float32).tiny)) / ((LEVELS - 1) * (RESTS - 1))
        books = faiss.vector_to_array(pq.centroids).reshape(pq.M, LEVELS, pq.dsub)
        books[-RESTS:] = 0.0
        books[-RESTS:-1, :, 0] = np.arange(LEVELS) * step
        books[-RESTS, :, 0] += low
        books[-1, :, 0] = np.arange(LEVELS) * (step / LEVELS)
        faiss.copy_array_to_vector(books.ravel(), pq.centroids)

    def _levels_of(self, rests: Float64) -> npt.NDArray[np.floating[Any]]:
        """Return (n, RESTS) levels that sum up to the rests."""
        pq = self.index.pq
        books = _faiss().vector_to_array(pq.centroids).reshape(pq.M, LEVELS, pq.dsub)[-RESTS:, :, 0]
        low, step = float(books[0, 0]), float(books[1, 1])
        most = (LEVELS - 1) * (RESTS - 1)
        steps = np.clip((rests - low) / step if step > 0 else np.zeros_like(rests), 0, most)
        coarse = np.floor(steps).astype(np.int64)
        digits = np.clip(coarse[:, None] - (LEVELS - 1) * np.arange(RESTS), 0, LEVELS - 1)
        digits[:, -1] = np.minimum((steps - coarse) * LEVELS, LEVELS - 1)
        return np.asarray(books[np.arange(RESTS), digits])


def _principal(sample: Float32, rng: np.random.Generator) -> tuple[Float32, Float64, int]:
    """Return the mean, (dim, m) axes rotated at random among themselves, and how many share a code."""
    dim = sample.shape[1]
    mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
    scatter = np.zeros((dim, dim))
    for start in range(0, len(sample), BLOCK_ROWS):
        off = sample[start : start + BLOCK_ROWS].astype(np.float64) - mean
        scatter += off.T @ off
    values, axes = np.linalg.eigh(scatter)
    held = np.cumsum(np.maximum(values[::-1], 0.0))
    n_axes = min(AXES, dim)
    while n_axes < dim and held[n_axes - 1] < HELD * held[-1]:
        n_axes = min(n_axes + AXES, dim)
    per_code = 1 if n_axes <= AXES else 2
    n_axes -= n_axes % per_code
    turn, _ = np.linalg.qr(rng.normal(size=(n_axes, n_axes)))
    return mean, axes[:, ::-1][:, :n_axes] @ turn, per_code
