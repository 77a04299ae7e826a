"""How unlike the reference a cell is: three measures, each against its reference distribution."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.types import CellChunk, Float32

__all__ = ["FALSE_NOVEL_RATE", "Novelty", "depth", "signals"]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

#: Fraction of cells of known types that may be called novel, where a user names none.
FALSE_NOVEL_RATE = 0.05
#: How many cells a class must have before its own spread outweighs that of all classes together.
PRIOR_CELLS = 5.0
#: How much each sign counts, in the order of :func:`signals`. The distance alone has each class's own spread
#: as its yardstick, and near siblings differ in little else. Between 1 and 2 the missing types of the
#: pancreas are found equally well, and those of the blood a little better the more it counts.
WEIGHTS = np.array([2.0, 1.0, 0.5])
#: A cosine further off than in this share of held-out cells is enough by itself: cells of another tissue,
#: or with their genes shuffled, may lie anywhere in the few directions that the other two signs see.
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
    the class in the cell space. None is enough alone: a new type may express much of what its nearest class
    does, lie where known types lie, or be on the right side of all borders, but rarely all three.

    Parameters
    ----------
    distances
        (n, n_classes, 3) of :meth:`scvec.model.members.Members.distances`.
    predicted
        (n,) int64 classes the cells are given.
    """
    found = distances[np.arange(len(predicted)), predicted].astype(np.float64)
    found[:, 1] = np.log(np.maximum(found[:, 1], 1e-6))
    return found


@dataclass(frozen=True, slots=True)
class Novelty:
    """Signals of novelty on one scale, and their weighted mean compared to a threshold.

    Each sign is standardised by held-out cells of known types, with the yardstick that it needs. The cosine
    of a shallow cell is low whatever its type: it is compared to cells of that depth. The distance is in
    standard deviations of the class already. The membership is compared to cells given the same class:
    near siblings are never full members, and only less than that is a sign.

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
        What is taken from the cosine's sign where it speaks by itself.
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
        cls,
        found: Float64,
        depths: Float64,
        predicted: Int64,
        n_classes: int,
        *,
        shrink: float = 1.0,
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
            How far new cells are from the reference, against how far the held-out ones were from the part
            of it that they were compared with: above the median the quantiles are moved towards it.
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
        # At the default rate the two bars are of one height.
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
