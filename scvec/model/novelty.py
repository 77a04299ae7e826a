"""Novelty of cells: distances from their class, reference distributions, and the shift of a query."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.types import CellChunk, Float32, Float64, Int64

__all__ = ["FALSE_NOVEL_RATE", "Novelty", "Shift", "Spread", "depth", "signals"]

#: Fraction of cells of known types that may be called novel, where a user names none.
FALSE_NOVEL_RATE = 0.05
#: Cells that a class needs before its own spread outweighs that of all classes together.
PRIOR_CELLS = 5.0
#: Weight of each signal, in the order of :func:`signals`. Only the Mahalanobis distance is relative to the
#: spread of the class, and near siblings differ in little else. With a weight between 1 and 2 the missing
#: types of the pancreas are found equally well; those of the blood are found better with 2.
WEIGHTS = np.array([2.0, 1.0, 0.5])
#: A cosine distance beyond this quantile of held-out cells is enough by itself: cells of another tissue, or
#: with shuffled genes, may lie anywhere in the few directions that the other two signals measure.
ALONE = 0.99
#: Quantiles kept of the held-out scores: the threshold of any rate down to 1 in 400 can be read off.
N_QUANTILES = 401


def depth(chunk: CellChunk) -> Float64:
    """Return (n,) log of the number of genes found, as if all genes had been measured."""
    return np.asarray(np.log1p(np.diff(chunk.X.indptr) / max(float(chunk.measured.mean()), 1e-6)))


def signals(distances: Float32, predicted: Int64) -> Float64:
    """Return (n, 3) measures of how unlike a cell is to the class it is given; the larger, the less it fits.

    One minus its cosine to the mean cell of the class; log of its Mahalanobis distance from the class, over
    principal components, in which a type may differ that no discriminant axis shows; one minus its cosine to
    the class in the cell space. One alone is not enough: a new type may express many genes of its nearest
    class, or lie near known types in either space, but rarely all three.

    Parameters
    ----------
    distances
        (n, n_classes, 3) of :meth:`scvec.model.classifiers.Members.distances`.
    predicted
        (n,) int64 classes the cells are given.
    """
    found = distances[np.arange(len(predicted)), predicted].astype(np.float64)
    found[:, 1] = np.log(np.maximum(found[:, 1], 1e-6))
    return found


@dataclass(frozen=True, slots=True)
class Novelty:
    """Novelty signals on one scale, and their weighted mean compared with a threshold.

    Held-out cells of known types are the reference distribution of each signal. The cosine of a shallow cell
    is low whatever its type, so it is compared with cells of that depth. The Mahalanobis distance is in
    standard deviations of the class already. The cosine in the cell space is compared with cells of the same
    class: near siblings always lie a little apart.

    Attributes
    ----------
    curve
        (3,) float64: the cosine's signal expected at a depth, a polynomial, constant first.
    range
        (2,) float64 least and largest depth that it holds for.
    mean, sd
        (n_classes, n_signals) float64.
    quantiles
        (N_QUANTILES,) float64 of the whole signal over held-out cells, ascending.
    offset
        Subtracted from the cosine signal where that signal alone decides.
    """

    curve: Float64
    range: Float64
    mean: Float64
    sd: Float64
    quantiles: Float64
    offset: float = float("inf")

    def __post_init__(self) -> None:
        if self.mean.ndim != 2 or self.mean.shape != self.sd.shape:
            raise ValueError(f"mean {self.mean.shape} and sd {self.sd.shape} must be (n_classes, n_signals)")

    @classmethod
    def fit(
        cls, found: Float64, depths: Float64, predicted: Int64, n_classes: int, *, shrink: float = 1.0
    ) -> Novelty:
        """Learn from held-out cells of known types.

        Parameters
        ----------
        found
            (n, 3) signals.
        depths
            (n,) from :func:`depth`.
        predicted
            (n,) int64 classes they were given.
        shrink
            Expected distance of new cells from the reference, relative to that of held-out cells from the
            other folds. Quantiles above the median are moved towards the median by this factor.
        """
        span = np.array([depths.min(), depths.max()])
        # A curve through a handful of depths would be noise.
        degree = 2 if len(np.unique(depths)) >= 20 else 0
        curve = np.zeros(3)
        curve[: degree + 1] = np.polynomial.polynomial.polyfit(depths, found[:, 0], degree)
        flat = found.copy()
        flat[:, 0] -= np.polynomial.polynomial.polyval(depths, curve)
        counts = np.bincount(predicted, minlength=n_classes)
        overall, spread = flat.mean(axis=0), np.maximum(flat.std(axis=0), 1e-6)
        mean, sd = np.tile(overall, (n_classes, 1)), np.tile(spread, (n_classes, 1))
        outside = flat[:, 2]
        sums = np.bincount(predicted, outside, minlength=n_classes)
        mean[:, 2] = (sums + PRIOR_CELLS * overall[2]) / (counts + PRIOR_CELLS)
        squares = np.bincount(predicted, (outside - mean[predicted, 2]) ** 2, minlength=n_classes)
        sd[:, 2] = np.sqrt((squares + PRIOR_CELLS * spread[2] ** 2) / (counts + PRIOR_CELLS))
        fitted = cls(curve, span, mean, sd, np.zeros(N_QUANTILES))
        z = fitted.standardised(found, depths, predicted)
        # At the default rate both thresholds are equal.
        weighted = z @ (WEIGHTS / WEIGHTS.sum())
        offset = float(np.quantile(z[:, 0], ALONE) - np.quantile(weighted, 1.0 - FALSE_NOVEL_RATE))
        z = replace(fitted, offset=offset).whole_signal(z)
        quantiles = np.quantile(z, np.linspace(0.0, 1.0, N_QUANTILES))
        middle = float(np.median(z))
        quantiles = np.where(quantiles > middle, middle + shrink * (quantiles - middle), quantiles)
        return cls(curve, span, mean, sd, quantiles, offset)

    def standardised(self, found: Float64, depths: Float64, predicted: Int64) -> Float64:
        """Return (n, 3) signals in standard deviations of held-out cells."""
        flat = found.copy()
        flat[:, 0] -= np.polynomial.polynomial.polyval(np.clip(depths, *self.range), self.curve)
        return np.asarray((flat - self.mean[predicted]) / self.sd[predicted])

    def whole_signal(self, z: Float64) -> Float64:
        """Return (n,) weighted mean of standardised signals, or the cosine's where that is far off."""
        return np.asarray(np.maximum(z @ (WEIGHTS / WEIGHTS.sum()), z[:, 0] - self.offset))

    def threshold(self, rate: float = FALSE_NOVEL_RATE) -> float:
        """Return the signal that the fraction ``rate`` (0-1) of held-out cells of known types exceeds."""
        return float(np.interp(1.0 - rate, np.linspace(0.0, 1.0, len(self.quantiles)), self.quantiles))

    def score(self, z: npt.NDArray[np.floating], *, rate: float = FALSE_NOVEL_RATE) -> Float32:
        """Return (n,) novelty, 0 to 1, of cells with standardised signals (n, 3); 0.5 is the threshold."""
        above = self.whole_signal(z.astype(np.float64)) - self.threshold(rate)
        return np.asarray(1.0 / (1.0 + np.exp(-np.clip(above, -30, 30))), dtype=np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "curve": self.curve.tolist(),
            "range": self.range.tolist(),
            "mean": self.mean.tolist(),
            "sd": self.sd.tolist(),
            "quantiles": self.quantiles.tolist(),
            "offset": self.offset,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Novelty:
        """Rebuild from :meth:`to_dict`."""
        names = ("curve", "range", "mean", "sd", "quantiles")
        return cls(**{name: np.array(data[name]) for name in names}, offset=float(data["offset"]))


#: Principal components of the distances: enough to separate the types of a tissue.
N_COMPONENTS = 20
#: As in the encoders: z-scores are clipped, and a gene that hardly varies does not get huge ones.
CLIP, MIN_SD = 5.0, 0.05


class Spread:
    """Class-wise Mahalanobis distances over principal components of standardised log expression.

    Lee et al. 2018 (arXiv:1807.03888), with one covariance per class, since types differ in how much their
    cells vary. Each covariance is shrunk to the mean covariance within classes, more so for classes of few
    cells (Friedman 1989, doi:10.1080/01621459.1989.10478752). The components are fitted without labels: a
    type that no classifier had to separate is still apart here.

    Parameters
    ----------
    mean, sd
        (n_genes,) float32 of the reference.
    components
        (n_genes, n_components) float32.
    centers
        (n_classes, n_components) float32; NaN for a class without cells.
    whitening
        (n_classes, n_components, n_components) float32; a deviation from the center times this has unit
        covariance over the cells of the class.
    centroids
        (n_classes, n_genes) float32 mean cells on log expression, not standardised: another species
        or platform changes the spread of a gene, and no cell looks new by that.
    """

    def __init__(
        self,
        mean: Float32,
        sd: Float32,
        components: Float32,
        centers: Float32,
        whitening: Float32,
        centroids: Float32,
    ) -> None:
        r = components.shape[1]
        if components.shape != (len(mean), r) or sd.shape != mean.shape:
            raise ValueError(f"components {components.shape}, mean {mean.shape} and sd {sd.shape} do not fit")
        if centers.shape[1:] != (r,) or whitening.shape != (len(centers), r, r):
            raise ValueError(f"centers {centers.shape} and whitening {whitening.shape} do not fit")
        if centroids.shape != (len(centers), len(mean)):
            raise ValueError(f"centroids {centroids.shape} must be of {len(centers)} classes")
        self.mean, self.sd, self.components, self.centroids = mean, sd, components, centroids
        self.centers, self.whitening = centers, whitening

    @classmethod
    def fit(cls, chunk: CellChunk, labels: npt.NDArray[np.int64], n_classes: int, *, seed: int = 0) -> Spread:
        """Learn from labelled cells; ``labels`` (n,) int64, -1 for none."""
        from sklearn.decomposition import PCA

        rows = np.flatnonzero(labels >= 0)
        X, y = chunk.X[rows], labels[rows]
        sums = [
            np.bincount(X.indices, X.data.astype(np.float64) ** power, minlength=X.shape[1])
            for power in (1, 2)
        ]
        mean = (sums[0] / len(rows)).astype(np.float32)
        variance = np.maximum(sums[1] / len(rows) - (sums[0] / len(rows)) ** 2, 0.0)
        sd = np.maximum(np.sqrt(variance), MIN_SD).astype(np.float32)
        Z, _ = _standardised(X, mean, sd)
        r = max(1, min(N_COMPONENTS, len(rows) - 1, Z.shape[1]))
        few = min(Z.shape) < 500
        # The eigenvectors of a covariance of thousands of genes take seconds; few cells do not need it.
        exact = "covariance_eigh" if Z.shape[1] < len(rows) else "full"
        pca = PCA(r, svd_solver=exact if few else "arpack", random_state=seed)
        pca.fit(Z.toarray() if few else Z)
        components = np.ascontiguousarray(pca.components_.T, dtype=np.float32)
        self = cls(
            mean,
            sd,
            components,
            np.full((n_classes, r), np.nan, dtype=np.float32),
            np.zeros((n_classes, r, r), dtype=np.float32),
            _centroids(X, y, n_classes),
        )
        T = self.project(CellChunk(X, chunk.measured)).astype(np.float64)
        scatter = np.zeros((n_classes, r, r))
        counts = np.bincount(y, minlength=n_classes)
        for k in np.flatnonzero(counts):
            members = T[y == k]
            self.centers[k] = members.mean(axis=0)
            deviation = members - members.mean(axis=0)
            scatter[k] = deviation.T @ deviation
        within = scatter.sum(axis=0) / len(rows)
        # One cell per class leaves no spread within classes: the variance of all cells replaces it.
        floor = 1e-3 * max(float(np.trace(within)) / r, 1e-3 * float(T.var(axis=0).mean()), 1e-9)
        for k in np.flatnonzero(counts):
            covariance = (scatter[k] + r * within) / (counts[k] + r) + floor * np.eye(r)
            values, vectors = np.linalg.eigh(covariance)
            self.whitening[k] = vectors / np.sqrt(values)
        return self

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.centers)

    def project(self, chunk: CellChunk) -> Float32:
        """Return (n, n_components) float32 components; genes that were not measured are at the mean."""
        C = np.ascontiguousarray(self.components * chunk.measured[:, None], dtype=np.float32)
        difference, zero = _standardised(chunk.X, self.mean, self.sd)
        return np.asarray(difference @ C + zero @ C, dtype=np.float32)

    def away(self, chunk: CellChunk) -> Float32:
        """Return (n, n_classes, 2) float32: one minus the cosine to each centroid, and :meth:`distances`."""
        C = self.centroids * chunk.measured
        C = C / np.maximum(np.linalg.norm(C, axis=1, keepdims=True), 1e-9)
        X = chunk.X if chunk.measured.all() else chunk.X.multiply(chunk.measured).tocsr()
        norms = np.sqrt(np.asarray(X.multiply(X).sum(axis=1))).reshape(-1, 1)
        apart = 1.0 - np.asarray(X @ C.T) / np.maximum(norms, 1e-9)
        return np.stack([apart.astype(np.float32), self.distances(chunk)], axis=-1)

    def distances(self, chunk: CellChunk) -> Float32:
        """Return (n, n_classes) float32 distances, in standard deviations; inf to a class without cells."""
        T = self.project(chunk)
        found = np.full((len(T), self.n_classes), np.inf, dtype=np.float32)
        for k in np.flatnonzero(np.isfinite(self.centers[:, 0])):
            found[:, k] = np.linalg.norm((T - self.centers[k]) @ self.whitening[k], axis=1)
        return found

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays that ``Spread`` takes, by name."""
        return {
            "mean": self.mean,
            "sd": self.sd,
            "components": self.components,
            "centers": self.centers,
            "whitening": self.whitening,
            "centroids": self.centroids,
        }


def _standardised(X: Any, mean: Float32, sd: Float32) -> tuple[Any, Float32]:
    """Return clipped z-scores of cells X (n, n_genes) CSR as a sparse matrix plus one row for all of them.

    Cells stay sparse: only where there are counts does z differ from the z of none.
    """
    zero = np.clip(-mean / sd, -CLIP, CLIP)
    z = np.clip((X.data - mean[X.indices]) / sd[X.indices], -CLIP, CLIP)
    return type(X)((z - zero[X.indices], X.indices, X.indptr), shape=X.shape), zero


def _centroids(X: Any, labels: npt.NDArray[np.int64], n_classes: int) -> Float32:
    """Return (n_classes, n_genes) float32 means of the cells X of each class; zeros for one without cells."""
    from scipy.sparse import csr_matrix

    weights = 1.0 / np.bincount(labels, minlength=n_classes)[labels]
    membership = csr_matrix((weights, (labels, np.arange(len(labels)))), shape=(n_classes, len(labels)))
    return np.asarray((membership @ X).toarray(), dtype=np.float32)


#: Quantile of a class's signals that is compared with that of the reference: below the middle, since cells
#: of a missing type stand above those of the class that they are given.
QUANTILE, EXPECTED = 0.3, -0.5244
#: The same for the lower quantile; the difference of both measures the spread.
LOW_QUANTILE, LOW_EXPECTED = 0.05, -1.6449
#: Quantile over classes that is common to the query. With the median, cells of missing types in half of the
#: classes would pass for another platform.
COMMON = 0.35
#: Cells of a class that its spread is estimated from, and the largest factor on the spread.
SPREAD_CELLS, MAX_SPREAD = 20, 2.0
#: Least probability of a cell, and least number of such cells in a class, that the estimate uses.
MIN_PROBABILITY, MIN_CELLS = 0.5, 8
#: Number of classes from which on the whole common part is subtracted, and number of cells that halves it.
FULL_CLASSES, HALF_CELLS = 4, 10.0
#: A common part of less than this, in standard deviations, is not worth a sentence.
WORTH_SAYING = 0.5


@dataclass(frozen=True, slots=True)
class Shift:
    """The part of the novelty signals that all cells of a query share, subtracted before novelty is scored.

    Another platform, chemistry or species moves the cells of all classes away from the reference, and does
    not make them new. For each signal, a low quantile of the cells of each class is compared with that of
    held-out cells. A low quantile of these differences over classes is common to the query. Less is
    subtracted in a class that moved less; more is never subtracted. Where the cells of a class spread more
    below that quantile than held-out cells do, signals are divided by the ratio. From one class alone nothing
    is subtracted, since its cells may be of a missing type. With few classes or few cells, less is
    subtracted.

    Attributes
    ----------
    offsets
        (n_classes, n_signals) float64, at least 0, in standard deviations of held-out cells.
    spread
        (n_signals,) float64, at least 1: how much wider the signals are than those of held-out cells.
    n_cells, n_supporting
        Cells and classes that it was estimated from.
    """

    offsets: Float64
    spread: Float64
    n_cells: int
    n_supporting: int

    @classmethod
    def none(cls, n_classes: int, n_signals: int = 3) -> Shift:
        """Return the shift that changes nothing."""
        return cls(np.zeros((n_classes, n_signals)), np.ones(n_signals), 0, 0)

    @classmethod
    def estimate(
        cls,
        signals: npt.NDArray[np.floating],
        given: npt.NDArray[np.integer[Any]],
        probability: npt.NDArray[np.floating],
        n_classes: int,
    ) -> Shift:
        """Estimate the shift of a query.

        Parameters
        ----------
        signals
            (n, n_signals) in standard deviations of held-out cells.
        given, probability
            (n,) the class number of each cell, and how probable it is.
        """
        sure = probability >= MIN_PROBABILITY
        counts = np.bincount(given[sure], minlength=n_classes)
        supporting = np.flatnonzero(counts >= MIN_CELLS)
        n_cells = int(counts[supporting].sum())
        if len(supporting) < 2:
            nothing = cls.none(n_classes, signals.shape[1])
            return replace(nothing, n_cells=n_cells, n_supporting=len(supporting))
        quantiles = np.stack(
            [np.quantile(signals[sure & (given == k)], [LOW_QUANTILE, QUANTILE], axis=0) for k in supporting]
        ).astype(np.float64)
        moved = quantiles[:, 1] - EXPECTED
        common = np.maximum(np.quantile(moved, COMMON, axis=0), 0.0)
        offsets = np.tile(common, (n_classes, 1))
        own = (counts[supporting] / (counts[supporting] + HALF_CELLS))[:, None]
        offsets[supporting] += own * np.minimum(moved - common, 0.0)
        taken = n_cells / (n_cells + HALF_CELLS) * min(1.0, (len(supporting) - 1) / (FULL_CLASSES - 1))
        spread = np.ones(signals.shape[1])
        large = counts[supporting] >= SPREAD_CELLS
        if large.any():
            below = (quantiles[large, 1] - quantiles[large, 0]) / (EXPECTED - LOW_EXPECTED)
            spread = 1.0 + taken * (np.clip(np.median(below, axis=0), 1.0, MAX_SPREAD) - 1.0)
        return cls(np.maximum(offsets, 0.0) * taken, spread, n_cells, len(supporting))

    def relative(self, signals: npt.NDArray[np.floating], given: npt.NDArray[np.integer[Any]]) -> Float64:
        """Return (n, n_signals) float64 signals without the common part."""
        moved = signals - self.offsets[given]
        return np.asarray(moved + (moved - EXPECTED) * (1.0 / self.spread - 1.0), dtype=np.float64)

    @property
    def size(self) -> float:
        """Mean offset, in standard deviations of held-out cells."""
        return float(self.offsets.mean()) if self.offsets.size else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as `uns` keeps them."""
        return {
            "size": round(self.size, 4),
            "offsets": np.round(self.offsets, 4).tolist(),
            "spread": np.round(self.spread, 4).tolist(),
            "n_cells": self.n_cells,
            "n_classes": self.n_supporting,
        }

    @property
    def message(self) -> str:
        """One sentence for people; empty where there is little to say."""
        if self.size < WORTH_SAYING:
            return ""
        return (
            "this data set differs from the reference as another platform or species does "
            f"({self.size:.1f} standard deviations, {self.n_cells:,} cells of {self.n_supporting} labels); "
            "novelty is judged relative to that"
        )
