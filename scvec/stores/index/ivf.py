"""Approximate search in many vectors: inverted lists of short codes, exact final distances, tuned recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError, StoreError
from scvec.base.types import Bool, Float32, Float64, Int64, Neighbors
from scvec.stores.index import index
from scvec.stores.index.distances import Index, checked_vectors, pair_distances, row_distances
from scvec.stores.index.flat import FaissFlatIndex, _faiss, _matrix_products, read_faiss

__all__ = [
    "FLAT_BELOW",
    "Effort",
    "IvfCodes",
    "IvfIndex",
    "IvfSettings",
    "can_approximate",
    "kind_for",
    "places",
]

#: Fraction of the variance that the kept principal axes must explain, and the step in their number.
HELD, AXES = 0.97, 64
#: Number of rows for computing axes and centre.
SAMPLE = 50_000
#: Number of 4-bit codes for the query-independent part of a distance (`_rests`), and the levels of each code.
#: The step of the last code is 1/16 of the step of the others.
RESTS, LEVELS = 8, 16
ROUNDS = 10
#: Number of training vectors for each list. FAISS wants at least 39.
PER_LIST = 50
#: Number of rows in a float64 block.
BLOCK_ROWS = 1 << 14
#: FAISS algorithm for keeping the best candidates. By default FAISS chooses it by the number of candidates
#: and of threads, so results could differ.
RESERVOIR = 13
#: Axes are rounded to multiples of 2**-20, and queries to multiples of 2**-20 of four times the longest
#: centroid. So their products are sums of integers below 2**53, which are exact in any order of summation.
AXIS_BITS, QUERY_BITS = 20, 22


class IvfCodes:
    """Inverted lists of codes in FAISS.

    Each vector is centred and projected to its principal axes. The number of axes is smaller than the number
    of dimensions, and a random rotation makes their variances similar. The difference of a vector from the
    centroid of its list is coded by product quantisation, with 4 bits for one or two axes. FAISS compares
    such codes in CPU registers (André et al. 2015, doi:10.14778/2856318.2856324).

    For a query :math:`q`, a centroid :math:`c` and a decoded difference :math:`r`

    .. math:: |q - c - r|^2 = |q - c|^2 - 2 q r + (2 c r + |r|^2),

    so one lookup table of :math:`q r` serves all lists. Distances to residuals would need a table for each
    opened list, and computing it takes longer than scanning the codes. The last term does not depend on the
    query; `RESTS` further codes hold it. For FAISS the sum is an inner product of longer vectors.

    Parameters
    ----------
    whole
        ``faiss.IndexPreTransform`` with a centring and a linear transform to the axes, over an
        ``IndexIVFPQFastScan`` with inner products.

    Raises
    ------
    ValueError
        ``whole`` has another structure.
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
            raise ValueError(f"a {type(index).__name__} that scvec did not write")
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
        """Return the centre (dim,), and the axes (dim, m) as integers in float64."""
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
            raise ValueError("transforms that scvec did not write")
        mean: Float32 = faiss.vector_to_array(chain[0].mean)
        axes = faiss.vector_to_array(chain[1].A).reshape(index.d, whole.d)[:n_axes].astype(np.float64)
        numbers: Float64 = np.ascontiguousarray(np.rint(np.ldexp(axes, AXIS_BITS)).T)
        if not (np.isfinite(mean).all() and np.abs(numbers).max() <= 1 << AXIS_BITS):
            raise ValueError("transforms that scvec did not write")
        return mean, numbers

    @classmethod
    def build(cls, vectors: Float32, *, n_lists: int, seed: int) -> IvfCodes:
        """Train codes on finite (n, dim) float32 vectors, n at least ``n_lists``, and add the vectors."""
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
        # FAISS trains all codes. The codes of the rests train on noise here; _set_levels replaces them below.
        noise = rng.normal(size=(len(training), wide)).astype(np.float32)
        noise[:, :n_axes] = training
        index.train(noise)
        whole = faiss.IndexPreTransform(index)
        whole.prepend_transform(linear)
        whole.prepend_transform(centring)
        # The index owns these objects now, so Python must not delete them.
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
        """Append (n, dim) float32 vectors, without new training."""
        for start in range(0, len(vectors), BLOCK_ROWS):
            rows = vectors[start : start + BLOCK_ROWS]
            placed = self._placed(rows)
            placed[:, self.centroids.shape[1] :: self.index.pq.dsub] = self._levels_of(
                self._rests(rows, placed)
            )
            self.index.add(placed)
        self._whole.ntotal = self.index.ntotal

    def prepared(self, queries: Float32) -> Float32:
        """Return queries as (n, m) float32 for the search in lists and codes, independent of the batch."""
        placed = self._placed(queries)
        placed[:, self.centroids.shape[1] :: self.index.pq.dsub] = -1.0
        return placed

    def on_axes(self, prepared: Float32) -> Float32:
        """Return the columns of `prepared` queries that are compared with centroids."""
        return np.ascontiguousarray(prepared[:, : self.centroids.shape[1]])

    def scan(
        self, prepared: Float32, lists: Int64, distances: Float32, n_candidates: int, selector: Any = None
    ) -> Int64:
        """Return (n, n_candidates) rows, ascending by estimated distance; padded with -1.

        Parameters
        ----------
        prepared
            Queries from `prepared`.
        lists, distances
            (n, m) lists to open, and squared distances to their centroids.
        n_candidates
            Number of rows per query.
        selector
            FAISS selector of allowed rows, or None.
        """
        faiss = _faiss()
        scores = np.ascontiguousarray(-0.5 * distances, np.float32)
        estimates = np.empty((len(prepared), n_candidates), dtype=np.float32)
        found = np.empty((len(prepared), n_candidates), dtype=np.int64)
        options = {} if selector is None else {"sel": selector}
        parameters = faiss.IVFSearchParameters(nprobe=lists.shape[1], **options)
        # The Python wrapper of this function does not accept search parameters.
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
        """Close distant lists: replace them with -1.

        A list is distant if its squared distance exceeds that of the first list by more than ``reach``. Lists
        stay open until the open ones hold ``enough`` rows.
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
        """Return the list number (n,) of each row."""
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
        """Project vectors to the axes; return (n, m) float32, with zeros in the columns of the rests.

        The product uses integers, because the last digits of a float product depend on the batch. Values
        beyond four times the longest centroid are clipped. This affects only candidates, not final distances.
        """
        most = float(1 << QUERY_BITS)
        with np.errstate(over="ignore"):
            whole = (vectors - self._mean).astype(np.float64)
        np.clip(np.rint(whole / self._unit, out=whole), -most, most, out=whole)
        placed = np.zeros((len(vectors), self.index.d), dtype=np.float32)
        placed[:, : self.centroids.shape[1]] = (whole @ self._axes) * (self._unit * np.ldexp(1.0, -AXIS_BITS))
        return placed

    def _rests(self, vectors: Float32, placed: Float32) -> Float64:
        """Return (n,) half of the query-independent part of the squared distance, omitted axes included."""
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
        """Set the levels of the codes of the rests, so that they cover the range of ``rests``."""
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
        """Return (n, RESTS) levels that sum to the rests."""
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
    """Return the mean (dim,), randomly rotated principal axes (dim, m), and the number of axes per code."""
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


#: Number of candidates beyond k with float64 distances, because float32 rounding may reorder rows near place
#: k.
EXTRA = 4
#: Number of proposed lists beyond ``nprobe``, for the same reason.
EXTRA_LISTS = 8
#: Number of float32 values in one block of queries.
BLOCK_NUMBERS = 1 << 23
MAX_BLOCK = 4096


#: Number of vectors below which exact search is used, because it is as fast as approximate search.
FLAT_BELOW = 200_000
#: With at least ``TIGHT_FROM`` rows, a flat index larger than this fraction of the memory is replaced by
#: ``ivf``.
MEMORY_FRACTION, TIGHT_FROM = 0.5, 20_000
#: Smallest number and length of vectors for training lists and codes.
FEWEST_EVER, SHORTEST = 1_000, 8


def kind_for(n: int, dim: int, memory: int | None = None) -> str:
    """Return the kind of index for (n, dim) float32 vectors: ``flat``, or ``ivf`` for many.

    Parameters
    ----------
    n, dim
        Number and length of the vectors.
    memory
        Bytes of memory that may be used; None means no limit. A flat index needs all its vectors in memory.
    """
    if not can_approximate(n, dim):
        return "flat"
    tight = memory is not None and 4 * n * dim > MEMORY_FRACTION * memory
    return "ivf" if n >= FLAT_BELOW or (tight and n >= TIGHT_FROM) else "flat"


def can_approximate(n: int, dim: int) -> bool:
    """Return whether (n, dim) vectors are enough for an approximate index."""
    return n >= FEWEST_EVER and dim >= SHORTEST


def _check_recall(recall: float) -> None:
    if not 0.0 < recall <= 1.0:
        raise InputError(
            f"recall must be a fraction between 0 and 1, not {recall:g}",
            fix="give a value such as 0.95",
            code="option-out-of-range",
        )


class Effort(NamedTuple):
    """Effort of a search: the largest number of opened lists, and the number of candidates per neighbour.

    A list stays closed if its squared distance exceeds that of the nearest list by more than ``reach``. None
    opens all ``nprobe`` lists.
    """

    nprobe: int
    factor: int
    reach: float | None = None


@dataclass(frozen=True, kw_only=True)
class IvfSettings:
    """Settings of an `scvec.stores.index.ivf.IvfIndex`, and the measured recall.

    Attributes
    ----------
    n_lists
        Number of lists.
    nprobe, factor, reach
        Effort of a search (see `Effort`).
    target
        Requested recall (0-1).
    recall
        Recall against exact search, on queries that were not used for tuning. ``at_15`` and ``at_50``:
        vectors of the index, each without itself. ``unseen_15`` and ``unseen_50``: vectors of batches,
        searched without their batch. ``shifted_15`` and ``shifted_50`` (only without batches): vectors that
        were moved as far as cells of another sample may lie.
    n_queries
        Number of queries of each kind for measuring.
    n_batches
        Number of batches that were left out, one at a time.
    curve
        ``(recall, nprobe, factor, reach)``, ascending by cost; recall is the lowest of the four recalls on
        the tuning queries.
    """

    n_lists: int
    nprobe: int
    factor: int
    target: float
    recall: Mapping[str, float] = field(default_factory=dict)
    n_queries: int = 0
    n_batches: int = 0
    curve: tuple[tuple[float, int, int, float | None], ...] = ()
    reach: float | None = None

    def __post_init__(self) -> None:
        all_efforts = [(self.nprobe, self.factor, self.reach), *(point[1:] for point in self.curve)]
        for nprobe, factor, reach in all_efforts:
            whole = all(isinstance(v, int) and not isinstance(v, bool) for v in (nprobe, factor))
            if not whole or not 1 <= nprobe <= self.n_lists or not 1 <= factor <= 1024:
                raise ValueError(f"invalid settings of an index: nprobe {nprobe!r}, factor {factor!r}")
            if reach is not None and not (isinstance(reach, float) and 0.0 <= reach < inf):
                raise ValueError(f"invalid settings of an index: reach {reach!r}")

    @staticmethod
    def lists_for(n: int) -> int:
        """Return the number of lists for ``n`` vectors: the smallest power of two above sqrt(2 n)."""
        lists = 1
        while lists * lists <= 2 * n:
            lists *= 2
        return lists

    def effort(self, recall: float) -> Effort:
        """Return the smallest effort that reached a recall during tuning, or the largest effort if none did.

        Raises
        ------
        InputError
            The recall is not between 0 and 1.
        """
        _check_recall(recall)
        for point in self.curve:
            if point[0] >= recall:
                return Effort(*point[1:])
        return Effort(*self.curve[-1][1:]) if self.curve else Effort(self.nprobe, self.factor, self.reach)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "recall": dict(self.recall), "curve": [list(point) for point in self.curve]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> IvfSettings:
        """Rebuild settings from :meth:`to_dict`; raise KeyError, TypeError or ValueError if invalid."""
        return cls(
            n_lists=int(values["n_lists"]),
            nprobe=values["nprobe"],
            factor=values["factor"],
            target=float(values["target"]),
            recall={str(k): float(v) for k, v in values["recall"].items()},
            n_queries=int(values["n_queries"]),
            n_batches=int(values["n_batches"]),
            curve=tuple((float(r), p, f, reach) for r, p, f, reach in values["curve"]),
            reach=values["reach"],
        )


@index("ivf", extension="faiss", exact=False)
class IvfIndex(Index):
    """Approximate nearest rows by squared Euclidean distance.

    FAISS proposes candidates from inverted lists of short codes (`scvec.stores.index.ivf.IvfCodes`). The
    index computes their distances from the float32 vectors, which are memory-mapped from a file of the store;
    the index itself holds only codes. The distances are bit-identical to those of `FaissFlatIndex`. The index
    may miss neighbours, at a measured rate.

    Every step treats each query separately. In particular, the choice of lists uses distances that do not
    depend on the batch; FAISS would use a matrix product, which does. So the neighbours of a query are the
    same in every batch.

    Parameters
    ----------
    codes
        Codes of the vectors.
    vectors
        (n, dim) float32, C-contiguous, may be memory-mapped. They must not change.
    settings
        Effort of a search, and the measured recall.
    """

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
        """Build an index and tune it to a recall on held-out queries.

        Parameters
        ----------
        vectors
            (n, dim) float32; the index uses them in place, so they must not change.
        recall
            Fraction (0-1) of the 15 and of the 50 nearest rows to find.
        seed
            Seed of training and tuning.
        n_lists
            Number of lists; None chooses it by n.
        batches
            (n,) batch number of each row. If given, tuning also reaches the recall for unseen batches.

        Raises
        ------
        InputError
            The vectors have a wrong shape or dtype, hold NaN or infinity, or are too few; or the recall is
            not between 0 and 1.
        """
        _check_recall(recall)
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
        """Return the (n, dim) float32 vectors; read-only if they are memory-mapped."""
        return self._vectors

    def add(self, vectors: Float32) -> None:
        """Append (n, dim) float32 vectors, without new training or tuning. All vectors are then in memory."""
        ready = checked_vectors(vectors, self.dim, "vectors")
        self.codes.add(ready)
        self._vectors = np.concatenate([self._vectors, ready])

    def exact(self) -> FaissFlatIndex:
        """Return an exact index of the same vectors."""
        return FaissFlatIndex.over(self._vectors)

    def at_recall(self, recall: float) -> IvfIndex:
        """Return the same index with the effort that reached another recall (0-1) during tuning."""
        return self.at_effort(self.settings.effort(recall))

    def at_effort(self, effort: Effort) -> IvfIndex:
        """Return the same index with another effort."""
        other = IvfIndex(self.codes, self._vectors, self.settings)
        other.effort = effort
        return other

    def _search(self, queries: Float32, k: int, rows: Int64 | None) -> Neighbors:
        """Search ``rows`` (ascending, unique), or all rows if None.

        A small subset (below `FLAT_BELOW` rows or a twentieth of the index) is searched exactly. For a larger
        subset, the number of opened lists grows in proportion.
        """
        effort, selector = self.effort, None
        if rows is not None:
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
        """Return (n, n_candidates) rows, ascending by estimated distance; padded with -1.

        ``reach`` closes distant lists, unless the open lists hold fewer than ``enough`` rows.
        """
        prepared = self.codes.prepared(queries)
        lists, distances = self.lists(prepared, nprobe)
        opened = self.codes.within(lists, distances, reach, enough)
        return self.scan(prepared, opened, distances, n_candidates, selector)

    def scan(
        self, prepared: Float32, lists: Int64, distances: Float32, n_candidates: int, selector: Any = None
    ) -> Int64:
        """Return candidates like `candidates`, from given (n, m) lists and distances to their centroids."""
        found = self.codes.scan(prepared, lists, distances, n_candidates, selector)
        if found.size and (found.max() >= self.n or found.min() < -1):
            raise StoreError("an index of the store names rows that do not exist", fix="ingest again")
        return found

    def _block(
        self, queries: Float32, k: int, effort: Effort, n_candidates: int, selector: Any, rows: Int64 | None
    ) -> Neighbors:
        found = self.candidates(
            queries, effort.nprobe, n_candidates, selector, reach=effort.reach, enough=n_candidates
        )
        kept = self._best(queries, found, min(n_candidates, k + EXTRA))
        kept.sort(axis=1)  # by row, -1 first, so that the stable sort below puts the lower row first
        there = kept >= 0
        exact: Float64 = np.where(there, pair_distances(self._vectors, kept, queries), np.inf)
        order = np.argsort(exact, axis=1, kind="stable")[:, :k]
        indices = np.take_along_axis(kept, order, axis=1)
        with np.errstate(over="ignore"):
            distances = np.take_along_axis(exact, order, axis=1).astype(np.float32)
        # The opened lists may hold fewer than k rows: search these queries exactly.
        short = np.flatnonzero((indices < 0).any(axis=1))
        if len(short):
            whole = self.exact().search(queries[short], k, subset=rows)
            indices[short], distances[short] = whole.indices, whole.distances
        return Neighbors(indices, distances)

    def _best(self, queries: Float32, found: Int64, k: int) -> Int64:
        """Return the ``k`` candidates of each query with the smallest float32 distances, unsorted."""
        if found.shape[1] <= k:
            return found
        distances = _pair_distances(queries, self._vectors, found)
        distances[found < 0] = np.inf
        best = np.argpartition(distances, k - 1, axis=1)[:, :k]
        return np.take_along_axis(found, best, axis=1)

    def lists(self, prepared: Float32, nprobe: int) -> tuple[Int64, Float32]:
        """Return the lists to open, (n, nprobe), and squared distances to their centroids, ascending.

        Parameters
        ----------
        prepared
            Queries from `IvfCodes.prepared`.
        nprobe
            Number of lists per query.
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
            # Both kinds of float32 distances have rounding errors up to `bound`, so a list that was not
            # proposed may be nearer. Compare such queries with all centroids.
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
    def load(
        cls, path: Path, vectors: Float32 | None = None, settings: Mapping[str, Any] | None = None
    ) -> IvfIndex:
        """Read a file that :meth:`save` wrote; the vectors stay memory-mapped (see `Index.load`)."""
        if vectors is None or not isinstance(settings, Mapping):
            raise StoreError("the settings of an index of the store are missing", str(path), "ingest again")
        try:
            found = IvfSettings.from_dict(settings)
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError("an index of the store cannot be read", str(path), "ingest again") from error
        loaded = read_faiss(path)
        try:
            codes = IvfCodes(loaded)
            if (codes.n, codes.dim, len(codes.centroids)) != (*vectors.shape, found.n_lists):
                raise ValueError("the index does not belong to these vectors")
        except ValueError as error:
            raise StoreError(
                f"an index of the store ({type(loaded).__name__}) does not match its vectors",
                str(path),
                "ingest again",
            ) from error
        return cls(codes, vectors, found)


def _pair_distances(queries: Float32, base: Float32, rows: Int64) -> Float32:
    """Return float32 squared distances (n, m) between query i and ``base[rows[i]]``; -1 is read as row 0.

    This FAISS function computes each pair separately, so a distance does not depend on the other pairs.
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


#: Number of queries of each kind for tuning, and again for measuring.
N_QUERIES = 500
#: Numbers of neighbours at which recall is measured.
AT = (15, 50)
FACTORS = (2, 3, 4, 6, 8, 12, 16, 24)
#: Largest number of batches to leave out, and smallest number of rows of such a batch.
N_BATCHES, BATCH_ROWS = 8, 50
#: Largest fraction of the other rows in the lists that are closed because they belong to the left-out batch.
CLOSED_FRACTION = 0.001
#: Without batches, queries of the second kind are moved by ``SHIFT`` times the distance to the nearest of
#: ``SPARSE`` vectors. Cells of other donors are about as hard with 50,000 vectors (Baron et al. 2016), and
#: harder with a million.
SHIFT, SPARSE = 1.5, 2000
#: Costs in nanoseconds for comparing settings; only their ratios matter. Measured at 128 dimensions on one
#: core: opening a list, comparing one code, and one candidate (sorting, fetching and comparing it).
LIST, CODE, CANDIDATE = 300.0, 1.1, 200.0
#: Fractions of queries of the second kind that may open all lists; they define the values of ``reach`` to
#: try.
REACHES = (0.3, 0.6)
#: Tuning stops at recall ``ENOUGH``, or if the last ``STEPS`` steps (about twice the lists) gained less than
#: ``SMALL_GAIN``.
ENOUGH, STEPS, SMALL_GAIN = 0.998, 3, 0.002


def held_out(vectors: Float32, rows: Int64, *, shift: float, seed: int) -> Float32:
    """Return queries (n, dim) float32: vectors of the index, moved by ``shift``.

    The direction of the move is the difference of two random vectors. It simulates a cell of another sample,
    which lies beside the cells of the reference. Samples differ in the same directions as cells, where the
    codes are coarsest. Queries moved in random directions overestimated the recall for other donors.
    """
    queries = np.array(vectors[rows], dtype=np.float32)
    if shift > 0:
        ends = np.random.default_rng(seed).integers(0, len(vectors), (2, len(rows)))
        moved = vectors[ends[0]].astype(np.float64) - vectors[ends[1]]
        moved *= shift / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12)
        queries += moved.astype(np.float32)
    return queries


def places(found: Int64, truth: Int64) -> Int64:
    """Return the position (n, k) of each ``truth`` (n, k) in its row of ``found`` (n, m); m if not found."""
    n, m = found.shape
    # Code each pair (query, row) as one integer, so that one sorted search handles all queries.
    width = int(max(found.max(initial=0), truth.max(initial=0))) + 2
    first = np.arange(n, dtype=np.int64)[:, None] * width
    keys, wanted = (found + 1 + first).ravel(), (truth + 1 + first).ravel()
    order = np.argsort(keys, kind="stable")
    at = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
    hit = (keys[order][at] == wanted) & (truth.ravel() >= 0)
    found_at: Int64 = np.where(hit, order[at] % m, m).reshape(truth.shape)
    return found_at


def tuned(index: IvfIndex, target: float, *, seed: int = 0, batches: Int64 | None = None) -> IvfSettings:
    """Return the cheapest settings that reach recall ``target``, with their recall on other queries.

    There are two kinds of queries. The first kind are vectors of the index, each without itself as a
    neighbour. The second kind simulate cells of another sample. If ``batches`` (n,) is given, they are
    vectors of batches that are left out of the search (`_LeftOut`); otherwise they are moved vectors
    (`SHIFT`). Tuning uses the lowest recall over both kinds, at 15 and at 50 neighbours.
    """
    rng = np.random.default_rng(seed)
    n_each = min(N_QUERIES, index.n // 2)
    rows = rng.choice(index.n, 2 * n_each, replace=False)
    for_tuning, for_measuring = np.sort(rows[:n_each]), np.sort(rows[n_each:])
    left_out = [] if batches is None else _left_out(index, batches, seed=seed + 3)
    name = "unseen" if left_out else "shifted"
    far: list[_Queries]
    if left_out:
        far = [_SeveralBatches([part.half(i) for part in left_out]) for i in (0, 1)]
    else:
        far = [_moved(index, for_tuning, seed=seed + 1), _moved(index, for_measuring, seed=seed + 2)]
    settings = index.settings
    curve = _curve(index, (_own(index, for_tuning), far[0]))
    settings = replace(settings, curve=tuple(_frontier(index, curve)))
    effort = settings.effort(target)
    measured = {
        f"{kind}_{k}": round(value, 4)
        for kind, queries in (("at", _own(index, for_measuring)), (name, far[1]))
        for k, value in zip(
            AT, _recalls(queries, effort.nprobe, effort.reach, [effort.factor])[0], strict=True
        )
    }
    return replace(settings, **effort._asdict(), n_queries=n_each, n_batches=len(left_out), recall=measured)


class _Queries(Protocol):
    """Queries with known true neighbours."""

    def places(self, nprobe: int, reach: float | None, n_candidates: int) -> Int64:
        """Return the position (n, 50) of each true neighbour among candidates; n_candidates if missing."""
        ...

    def further(self, nprobe: int) -> Float32:
        """Return the distances (n, nprobe or fewer) of lists minus that of the nearest list, ascending."""
        ...


class _Rows:
    """Queries made from rows of the index; a row is not a neighbour of its own query."""

    def __init__(self, index: IvfIndex, rows: Int64, queries: Float32) -> None:
        self._index, self._rows, self._queries = index, rows, queries
        near = index.exact().search(queries, min(AT[-1] + 1, index.n))
        self._truth = self._without_self(near.indices)

    def _without_self(self, found: Int64) -> Int64:
        """Return the neighbours (n, m - 1) without the row that the query was made from."""
        mine = found == self._rows[:, None]
        # If that row was not found, remove the last neighbour instead.
        mine[~mine.any(axis=1), -1] = True
        others: Int64 = found[~mine].reshape(len(found), -1)
        return others

    def places(self, nprobe: int, reach: float | None, n_candidates: int) -> Int64:
        n = min(n_candidates + 1, self._index.n)
        found = self._index.candidates(self._queries, nprobe, n, reach=reach)
        return places(self._without_self(found), self._truth)

    def further(self, nprobe: int) -> Float32:
        _, distances = self._index.lists(self._index.codes.prepared(self._queries), nprobe)
        return np.asarray(distances - distances[:, :1], dtype=np.float32)


def _own(index: IvfIndex, rows: Int64) -> _Rows:
    """Return unchanged rows of the index as queries."""
    return _Rows(index, rows, held_out(index.vectors(), rows, shift=0.0, seed=0))


def _moved(index: IvfIndex, rows: Int64, *, seed: int) -> _Rows:
    """Return moved rows of the index as queries."""
    own = held_out(index.vectors(), rows, shift=0.0, seed=seed)
    few = np.random.default_rng(seed).choice(index.n, min(SPARSE, index.n // 2), replace=False)
    sparse = index.exact().search(own, 2, subset=few)
    off = np.where(sparse.indices[:, 0] == rows, sparse.distances[:, 1], sparse.distances[:, 0])
    shift = SHIFT * float(np.sqrt(np.median(off.astype(np.float64))))
    return _Rows(index, rows, held_out(index.vectors(), rows, shift=shift, seed=seed))


class _LeftOut:
    """Queries of one batch; their true neighbours are rows of the other batches.

    An index trained without the batch would have no lists with only its rows. So lists with almost no rows of
    other batches are closed here, and the same fraction of the remaining lists is opened.
    """

    def __init__(self, index: IvfIndex, rows: Int64, mine: Bool, list_of: Int64) -> None:
        n_lists = index.settings.n_lists
        own = np.bincount(list_of[mine], minlength=n_lists)
        others = np.bincount(list_of[~mine], minlength=n_lists)
        order = np.argsort(-own / np.maximum(own + others, 1), kind="stable")
        n_lost = np.cumsum(others[order])
        alone = (n_lost <= CLOSED_FRACTION * n_lost[-1]) & (own[order] > others[order])
        closed = np.zeros(n_lists, dtype=bool)
        closed[order[alone]] = True
        self._index = index
        self._fraction = 1.0 - closed.mean()
        # A FAISS selector only points to these bits, so this object must keep them.
        self._bits = np.packbits(~mine, bitorder="little")
        self._queries = held_out(index.vectors(), rows, shift=0.0, seed=0)
        self._truth = index.exact().search(self._queries, AT[-1], subset=np.flatnonzero(~mine)).indices
        self._prepared = index.codes.prepared(self._queries)
        lists, distances = index.lists(self._prepared, n_lists)
        kept = ~closed[lists]
        self._lists = lists[kept].reshape(len(rows), -1)
        self._distances = distances[kept].reshape(len(rows), -1)

    def half(self, which: int) -> _LeftOut:
        """Return every second query, starting with number ``which`` (0 or 1)."""
        part = copy(self)
        for name in ("_queries", "_prepared", "_truth", "_lists", "_distances"):
            setattr(part, name, np.ascontiguousarray(getattr(self, name)[which::2]))
        return part

    def _opened(self, nprobe: int) -> int:
        return max(1, round(nprobe * float(self._fraction)))

    def further(self, nprobe: int) -> Float32:
        distances = self._distances[:, : self._opened(nprobe)]
        return np.asarray(distances - distances[:, :1], dtype=np.float32)

    def places(self, nprobe: int, reach: float | None, n_candidates: int) -> Int64:
        opened = self._opened(nprobe)
        distances: Float32 = np.ascontiguousarray(self._distances[:, :opened])
        lists: Int64 = np.ascontiguousarray(
            self._index.codes.within(self._lists[:, :opened], distances, reach, 0)
        )
        selector = _faiss().IDSelectorBitmap(self._bits)
        n = min(n_candidates, self._index.n)
        return places(self._index.scan(self._prepared, lists, distances, n, selector), self._truth)


class _SeveralBatches:
    """Queries of several left-out batches."""

    def __init__(self, parts: Sequence[_LeftOut]) -> None:
        self._parts = parts

    def places(self, nprobe: int, reach: float | None, n_candidates: int) -> Int64:
        return np.concatenate([part.places(nprobe, reach, n_candidates) for part in self._parts])

    def further(self, nprobe: int) -> Float32:
        rows = [part.further(nprobe) for part in self._parts]
        most = max(row.shape[1] for row in rows)
        # Batches have different numbers of open lists; pad with infinity, which means closed.
        padded = [np.pad(r, ((0, 0), (0, most - r.shape[1])), constant_values=np.inf) for r in rows]
        return np.concatenate(padded)


def _left_out(index: IvfIndex, batches: Int64, *, seed: int) -> list[_LeftOut]:
    """Return queries of some batches, about equally many of each; none if no batch is large enough."""
    rng = np.random.default_rng(seed)
    sizes = np.bincount(batches)
    others = index.n - sizes
    fit = np.flatnonzero((sizes >= BATCH_ROWS) & (others >= max(4 * AT[-1], index.n // 4)))
    chosen = np.sort(rng.permutation(fit)[:N_BATCHES])
    list_of = index.codes.list_of()
    parts = []
    for number in chosen:
        mine = batches == number
        n = min(2 * -(-N_QUERIES // len(chosen)), int(sizes[number]))
        parts.append(_LeftOut(index, rng.choice(np.flatnonzero(mine), n, replace=False), mine, list_of))
    return parts


def _recalls(
    queries: _Queries, nprobe: int, reach: float | None, factors: Sequence[int]
) -> list[list[float]]:
    """Return for each factor the recall at each number of neighbours in ``AT``."""
    where = queries.places(nprobe, reach, max(factors) * AT[-1])
    return [[float((where[:, :k] < factor * k).mean()) for k in AT] for factor in factors]


#: Lowest recall, mean number of opened lists, and the effort.
_Point = tuple[float, float, Effort]


def _curve(index: IvfIndex, kinds: Sequence[_Queries]) -> list[_Point]:
    """Return recall and cost on a grid of efforts.

    Queries among the vectors need few lists. Queries of another sample need many lists, whose distances
    differ little. So ``reach`` closes lists that are much farther than the nearest one. The values of
    ``reach`` are chosen so that the fractions `REACHES` of the second kind of queries still open all
    ``nprobe`` lists.
    """
    points = []
    nprobe, bests = 1, [0.0] * STEPS
    while True:
        best = 0.0
        further = [queries.further(nprobe) for queries in kinds]
        last = further[-1][:, -1]
        last = last[np.isfinite(last)]
        reaches = np.quantile(last, REACHES).tolist() if nprobe > 1 and len(last) else []
        for reach in (None, *reaches):
            opened = float(
                np.mean([(f <= (np.inf if reach is None else reach)).sum(1).mean() for f in further])
            )
            of_kinds = [_recalls(queries, nprobe, reach, FACTORS) for queries in kinds]
            for i, factor in enumerate(FACTORS):
                lowest = min(min(recalls[i]) for recalls in of_kinds)
                points.append((round(lowest, 4), opened, Effort(nprobe, factor, reach)))
                best = max(best, lowest)
        if best >= ENOUGH or best < bests[-STEPS] + SMALL_GAIN or nprobe >= index.settings.n_lists:
            return points
        bests.append(best)
        nprobe = min(max(nprobe + 1, nprobe * 4 // 3), index.settings.n_lists)


def _frontier(index: IvfIndex, points: list[_Point]) -> list[tuple[float, int, int, float | None]]:
    """Return (recall, effort) of the points with a higher recall than every cheaper point, cheapest first."""

    def cost(point: _Point) -> float:
        _, opened, effort = point
        scanned = opened * (LIST + CODE * index.n / index.settings.n_lists)
        return scanned + CANDIDATE * effort.factor * AT[0]

    kept: list[tuple[float, int, int, float | None]] = []
    for point in sorted(points, key=lambda p: (cost(p), -p[0])):
        if not kept or point[0] > kept[-1][0]:
            kept.append((point[0], *point[2]))
    return kept
