"""How unlike the reference a cell is, measured with the yardstick of its own class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.types import Float32, Neighbors

__all__ = ["Novelty", "mean_distance", "signals"]

Float64 = npt.NDArray[np.float64]

#: How many cells a class must have before its own spread outweighs that of all classes together.
PRIOR_CELLS = 5.0
#: Probabilities closer to 0 or 1 than this differ by rounding only.
ODDS_FLOOR = 1e-4


def mean_distance(neighbors: Neighbors) -> Float32:
    """Return (n,) mean Euclidean distance to the neighbours found."""
    found = neighbors.indices >= 0
    distances = np.sqrt(np.where(found, neighbors.distances, 0.0))
    return np.asarray(distances.sum(axis=1) / np.maximum(found.sum(axis=1), 1), dtype=np.float32)


def signals(neighbors: Neighbors, cosines: Float32, proba: Float32) -> Float64:
    """Return (n, 3) signs of a cell that is unlike the class it is given; the larger, the less it fits.

    Distance to its neighbours; one minus its cosine to the centroid of the class; log odds against the class.
    None is enough alone: a new type may lie where vectors of known types lie (the encoder never learned to
    tell it apart), look like its nearest class, or be named with confidence, but rarely all three.

    Parameters
    ----------
    cosines, proba
        (n, n_classes) scores of the prototypes, and pooled probabilities; the class is the likeliest.
    """
    rows, given = np.arange(len(proba)), proba.argmax(axis=1)
    p = proba[rows, given].astype(np.float64)
    odds = np.log((1.0 - p + ODDS_FLOOR) / (p + ODDS_FLOOR))
    return np.column_stack([mean_distance(neighbors), 1.0 - cosines[rows, given], odds]).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Novelty:
    """Signals of novelty standardised within the predicted class, and their mean compared to a threshold.

    A left-out type with a near sibling looks closer to the reference than an average cell of a loose class
    does; only the class's own spread tells.

    Attributes
    ----------
    mean, sd
        (n_classes, n_signals) float64 over the held-out cells given that class.
    threshold
        Mean standardised signal above which a cell is novel.
    """

    mean: Float64
    sd: Float64
    threshold: float

    def __post_init__(self) -> None:
        if self.mean.ndim != 2 or self.mean.shape != self.sd.shape:
            raise ValueError(f"mean {self.mean.shape} and sd {self.sd.shape} must be (n_classes, n_signals)")

    @classmethod
    def fit(
        cls,
        found: Float64,
        predicted: npt.NDArray[np.int64],
        n_classes: int,
        *,
        false_novel_rate: float = 0.05,
    ) -> Novelty:
        """Learn from held-out cells of known types: that share of them would be called novel.

        Parameters
        ----------
        found
            (n, n_signals) float64.
        predicted
            (n,) int64 classes they were given.
        """
        n_signals = found.shape[1]
        counts = np.bincount(predicted, minlength=n_classes)[:, None]
        overall, spread = found.mean(axis=0), np.maximum(found.std(axis=0), 1e-6)

        def sums(values: Float64) -> Float64:
            columns = [np.bincount(predicted, values[:, j], minlength=n_classes) for j in range(n_signals)]
            return np.column_stack(columns)

        mean = (sums(found) + PRIOR_CELLS * overall) / (counts + PRIOR_CELLS)
        squares = sums((found - mean[predicted]) ** 2)
        sd = np.sqrt((squares + PRIOR_CELLS * spread**2) / (counts + PRIOR_CELLS))
        z = ((found - mean[predicted]) / sd[predicted]).mean(axis=1)
        return cls(mean, sd, float(np.quantile(z, 1.0 - false_novel_rate)))

    def score(self, found: Float64, predicted: npt.NDArray[np.int64]) -> Float32:
        """Return (n,) novelty, 0 to 1, of cells with signals (n, n_signals); 0.5 is the threshold."""
        z = ((found - self.mean[predicted]) / self.sd[predicted]).mean(axis=1)
        return np.asarray(1.0 / (1.0 + np.exp(-np.clip(z - self.threshold, -30, 30))), dtype=np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"mean": self.mean.tolist(), "sd": self.sd.tolist(), "threshold": self.threshold}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Novelty:
        """Rebuild from :meth:`to_dict`."""
        return cls(np.array(data["mean"]), np.array(data["sd"]), float(data["threshold"]))
