"""Novelty scores: distances of cells to their class, reference distributions, and the shift of a query."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.types import CellChunk, Float32, Float64, Int64

__all__ = ["CONTRAST_CELLS", "FALSE_NOVEL_RATE", "Novelty", "Shift", "Spread", "contrast", "depth", "signals"]

#: Default fraction of cells of known types that may be called novel.
FALSE_NOVEL_RATE = 0.05
#: With more cells than this, the spread of a class outweighs the spread over all classes.
PRIOR_CELLS = 5.0
#: Weight of each signal, in the order of :func:`signals`. Only the Mahalanobis distance is relative to the
#: spread of the class, and similar types differ in little else. Missing types of the pancreas are detected
#: equally well with weights from 1 to 2; missing types of the blood are detected better with 2.
WEIGHTS = np.array([2.0, 1.0, 0.5])
#: A cosine distance above this quantile of held-out cells makes a cell novel by itself. The other two signals
#: measure few directions, in which cells of another tissue or with shuffled genes may lie anywhere.
ALONE = 0.99
#: Number of stored quantiles of held-out scores. They give thresholds for rates down to 1 in 400.
N_QUANTILES = 401


def depth(chunk: CellChunk) -> Float64:
    """Return (n,) log of the number of detected genes, extrapolated from the measured genes to all genes."""
    return np.asarray(np.log1p(np.diff(chunk.X.indptr) / max(float(chunk.measured.mean()), 1e-6)))


def signals(distances: Float32, predicted: Int64) -> Float64:
    """Return the novelty signals of each cell, (n, 3) float64: distances to its predicted class.

    The signals are: one minus the cosine to the mean expression of the class; the log of the Mahalanobis
    distance to the class over principal components; and one minus the cosine to the class in the cell space.
    Principal components show types that no discriminant axis separates. One signal is not enough: a new type
    may share many genes with its nearest class, or lie near known types in one space, but rarely all of
    these.

    Parameters
    ----------
    distances
        (n, n_classes, 3) from :meth:`scvec.model.classifiers.Members.distances`.
    predicted
        (n,) int64 predicted classes.
    """
    found = distances[np.arange(len(predicted)), predicted].astype(np.float64)
    found[:, 1] = np.log(np.maximum(found[:, 1], 1e-6))
    return found


@dataclass(frozen=True, slots=True)
class Novelty:
    """Novelty score: the weighted mean of standardised signals, relative to a threshold.

    Held-out cells of known types give the reference distribution of each signal. Cells of low depth have a
    low cosine whatever their type, so the cosine signal is compared with cells of the same depth. The
    Mahalanobis distance is in standard deviations of the class already. The cosine in the cell space is
    compared with cells of the same class, because similar types always have some distance from each other.

    Attributes
    ----------
    curve
        (3,) float64 polynomial of the expected cosine signal by depth, constant first.
    range
        (2,) float64 smallest and largest depth for which the polynomial holds.
    mean, sd
        (n_classes, n_signals) float64 of the reference distribution.
    quantiles
        (N_QUANTILES,) float64 ascending quantiles of the combined signal over held-out cells.
    offset
        Subtracted from the cosine signal when that signal alone decides.
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
        """Fit the reference distributions on held-out cells of known types.

        Parameters
        ----------
        found
            (n, 3) signals.
        depths
            (n,) from :func:`depth`.
        predicted
            (n,) int64 predicted classes.
        shrink
            Expected distance of new cells from the reference, relative to the distance of held-out cells from
            the other folds. Quantiles above the median are moved towards the median by this factor.
        """
        span = np.array([depths.min(), depths.max()])
        # A curve through few depths would fit noise.
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
        """Return (n,) weighted means of the standardised signals, or the cosine signal if it is extreme."""
        return np.asarray(np.maximum(z @ (WEIGHTS / WEIGHTS.sum()), z[:, 0] - self.offset))

    def threshold(self, rate: float = FALSE_NOVEL_RATE) -> float:
        """Return the combined signal that a fraction ``rate`` (0-1) of held-out cells exceeds."""
        return float(np.interp(1.0 - rate, np.linspace(0.0, 1.0, len(self.quantiles)), self.quantiles))

    def score(self, z: npt.NDArray[np.floating], *, rate: float = FALSE_NOVEL_RATE) -> Float32:
        """Return (n,) float32 novelty scores (0-1) from standardised signals (n, 3); the threshold is 0.5."""
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


#: Number of principal components for the distances, enough to separate the types of a tissue.
N_COMPONENTS = 20
#: Largest z-score, and lower limit of a gene's standard deviation, as in the encoders.
CLIP, MIN_SD = 5.0, 0.05


class Spread:
    """Mahalanobis distances to classes over principal components of standardised log expression.

    The method is that of Lee et al. 2018 (arXiv:1807.03888), but with one covariance per class, because types
    differ in their variance. Each covariance is shrunk towards the mean covariance within classes, more
    strongly for classes with few cells (Friedman 1989, doi:10.1080/01621459.1989.10478752). The components
    are fitted without labels, so that they also separate types that the labels do not.

    Parameters
    ----------
    mean, sd
        (n_genes,) float32 of log expression in the reference.
    components
        (n_genes, n_components) float32.
    centers
        (n_classes, n_components) float32; NaN for a class without cells.
    whitening
        (n_classes, n_components, n_components) float32. Deviations from the center times this matrix have
        unit covariance over the cells of the class.
    centroids
        (n_classes, n_genes) float32 mean log expression. It is not standardised, so that a changed spread of
        genes in another species or platform does not make cells look novel.
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
        """Fit on labelled cells with class numbers ``labels`` (n,) int64; -1 marks an unlabelled cell."""
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
        # With few cells, avoid the eigenvectors of a gene covariance, which take seconds.
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
        # With one cell per class there is no variance within classes; use the variance of all cells.
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
        """Return (n, n_components) float32 component scores; unmeasured genes get their mean."""
        C = np.ascontiguousarray(self.components * chunk.measured[:, None], dtype=np.float32)
        difference, zero = _standardised(chunk.X, self.mean, self.sd)
        return np.asarray(difference @ C + zero @ C, dtype=np.float32)

    def away(self, chunk: CellChunk) -> Float32:
        """Return (n, n_classes, 2) float32: one minus the cosine to the centroids, and :meth:`distances`."""
        C = self.centroids * chunk.measured
        C = C / np.maximum(np.linalg.norm(C, axis=1, keepdims=True), 1e-9)
        X = chunk.X if chunk.measured.all() else chunk.X.multiply(chunk.measured).tocsr()
        norms = np.sqrt(np.asarray(X.multiply(X).sum(axis=1))).reshape(-1, 1)
        apart = 1.0 - np.asarray(X @ C.T) / np.maximum(norms, 1e-9)
        return np.stack([apart.astype(np.float32), self.distances(chunk)], axis=-1)

    def distances(self, chunk: CellChunk) -> Float32:
        """Return (n, n_classes) float32 distances in standard deviations; inf for a class without cells."""
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
    """Return clipped z-scores of cells X (n, n_genes) CSR, as a sparse matrix plus one row for all cells.

    The cells stay sparse, because z differs from the z of a zero only where there are counts.
    """
    zero = np.clip(-mean / sd, -CLIP, CLIP)
    z = np.clip((X.data - mean[X.indices]) / sd[X.indices], -CLIP, CLIP)
    return type(X)((z - zero[X.indices], X.indices, X.indptr), shape=X.shape), zero


def _centroids(X: Any, labels: npt.NDArray[np.int64], n_classes: int) -> Float32:
    """Return (n_classes, n_genes) float32 class means of cells X; zeros for a class without cells."""
    from scipy.sparse import csr_matrix

    weights = 1.0 / np.bincount(labels, minlength=n_classes)[labels]
    membership = csr_matrix((weights, (labels, np.arange(len(labels)))), shape=(n_classes, len(labels)))
    return np.asarray((membership @ X).toarray(), dtype=np.float32)


#: Quantile of the signals of a class that is compared with the reference. It is below the median, because
#: cells of a missing type have higher signals than cells of their predicted class.
QUANTILE, EXPECTED = 0.3, -0.5244
#: A lower quantile. The difference of the two quantiles measures the spread.
LOW_QUANTILE, LOW_EXPECTED = 0.05, -1.6449
#: Quantile over classes that counts as common to the query. With the median, missing types in half of the
#: classes would look like another platform.
COMMON = 0.35
#: Number of cells of a class for the estimate of its spread, and largest factor on the spread.
SPREAD_CELLS, MAX_SPREAD = 20, 2.0
#: The estimate uses cells with at least this probability, in classes with at least this number of them.
MIN_PROBABILITY, MIN_CELLS = 0.5, 8
#: From this number of classes on, the whole common part is subtracted. With this number of cells it is
#: halved.
FULL_CLASSES, HALF_CELLS = 4, 10.0
#: A common part below this, in standard deviations, is not reported.
WORTH_SAYING = 0.5


@dataclass(frozen=True, slots=True)
class Shift:
    """Shift of a query: the part of the novelty signals common to all its cells. It is subtracted.

    Another platform, chemistry or species moves the cells of all classes away from the reference, but does
    not make them novel. For each signal and class, a low quantile is compared with the same quantile of
    held-out cells. A low quantile of these differences over classes is the common part. In a class that moved
    less, less is subtracted; more is never subtracted. If the signals below that quantile have a larger
    spread than those of held-out cells, signals are divided by the ratio. With a single class nothing is
    subtracted, because its cells may belong to a missing type. With few classes or cells, less is subtracted.

    Attributes
    ----------
    offsets
        (n_classes, n_signals) float64, at least 0, in standard deviations of held-out cells.
    spread
        (n_signals,) float64, at least 1: ratio of the spread of the signals to that of held-out cells.
    n_cells, n_supporting
        Number of cells and classes behind the estimate.
    """

    offsets: Float64
    spread: Float64
    n_cells: int
    n_supporting: int

    @classmethod
    def none(cls, n_classes: int, n_signals: int = 3) -> Shift:
        """Return a shift without effect."""
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
            (n,) predicted class number of each cell, and its probability.
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
        trust = n_cells / (n_cells + HALF_CELLS) * min(1.0, (len(supporting) - 1) / (FULL_CLASSES - 1))
        spread = np.ones(signals.shape[1])
        large = counts[supporting] >= SPREAD_CELLS
        if large.any():
            below = (quantiles[large, 1] - quantiles[large, 0]) / (EXPECTED - LOW_EXPECTED)
            spread = 1.0 + trust * (np.clip(np.median(below, axis=0), 1.0, MAX_SPREAD) - 1.0)
        return cls(np.maximum(offsets, 0.0) * trust, spread, n_cells, len(supporting))

    def relative(self, signals: npt.NDArray[np.floating], given: npt.NDArray[np.integer[Any]]) -> Float64:
        """Return (n, n_signals) float64 signals after subtraction of the common part."""
        moved = signals - self.offsets[given]
        return np.asarray(moved + (moved - EXPECTED) * (1.0 / self.spread - 1.0), dtype=np.float64)

    @property
    def size(self) -> float:
        """Mean offset, in standard deviations of held-out cells."""
        return float(self.offsets.mean()) if self.offsets.size else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values for `uns`."""
        return {
            "size": round(self.size, 4),
            "offsets": np.round(self.offsets, 4).tolist(),
            "spread": np.round(self.spread, 4).tolist(),
            "n_cells": self.n_cells,
            "n_classes": self.n_supporting,
        }

    @property
    def message(self) -> str:
        """One sentence for the user; empty if the shift is small."""
        if self.size < WORTH_SAYING:
            return ""
        return (
            "all cells of this data set are shifted from the reference, as by another platform or species "
            f"({self.size:.1f} standard deviations, {self.n_cells:,} cells of {self.n_supporting} labels); "
            "novelty is scored relative to this shift"
        )


#: Most cells and genes for :func:`contrast`: enough for the median.
CONTRAST_CELLS, CONTRAST_GENES = 500, 3000


def contrast(X: Any, means: Float32) -> float:
    """Return how large the differences between labels are in a query: 1 if as large as in the reference.

    Cells are seen from the mean over cells, and labels from the mean over labels, so a platform or species
    that shifts all cells does not count. A half of the genes gives each cell the label in whose direction it
    lies. The other half measures how far it lies in that direction: the slope of its deviations on those of
    the label. The median over cells is 1 for cells like those of the reference, and near 0 where the label is
    chance, as in another tissue. Noise and the depth of a cell do not change a slope. Cells of one type do
    not differ by labels, so they are near 0 too.

    Parameters
    ----------
    X
        (n, n_genes) CSR float32, log1p CP10k.
    means
        (n_classes, n_genes) class means; zeros for a class without cells.

    Returns
    -------
    NaN with fewer than two cells or classes.
    """
    means = means[means.any(axis=1)].astype(np.float64)
    if X.shape[0] < 2 or len(means) < 2:
        return float("nan")
    chosen = np.sort(np.argsort(-means.var(axis=0), kind="stable")[:CONTRAST_GENES])
    Y, C = X[:, chosen].toarray().astype(np.float64), means[:, chosen]
    Y, C = Y - Y.mean(axis=0), C - C.mean(axis=0)
    half = np.random.default_rng(0).random(len(chosen)) < 0.5
    slopes = []
    for one, other in ((half, ~half), (~half, half)):
        own = C[:, one] - C[:, one].mean(axis=1, keepdims=True)
        label = (Y[:, one] @ own.T / np.maximum(np.linalg.norm(own, axis=1), 1e-9)).argmax(axis=1)
        size = np.maximum((C[:, other] ** 2).sum(axis=1), 1e-9)
        slopes.append(np.einsum("ij,ij->i", Y[:, other], C[label][:, other]) / size[label])
    return float(np.mean(np.median(slopes, axis=1)))
