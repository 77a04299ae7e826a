"""How unlike the reference a cell is, measured with the yardstick of its own class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.types import Float32, Neighbors

__all__ = ["Novelty", "mean_distance"]

#: How many cells a class must have before its own spread outweighs that of all classes together.
PRIOR_CELLS = 5.0


def mean_distance(neighbors: Neighbors) -> Float32:
    """Return (n,) mean Euclidean distance to the neighbours found."""
    found = neighbors.indices >= 0
    distances = np.sqrt(np.where(found, neighbors.distances, 0.0))
    return np.asarray(distances.sum(axis=1) / np.maximum(found.sum(axis=1), 1), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Novelty:
    """Neighbour distance standardised within the predicted class.

    A left-out type with a near sibling looks closer to the reference than an average cell of a loose class
    does; only the class's own spread tells.

    Attributes
    ----------
    mean, sd
        (n_classes,) float64 of the neighbour distances of held-out cells given that class.
    threshold
        Standardised distance above which a cell is novel.
    """

    mean: npt.NDArray[np.float64]
    sd: npt.NDArray[np.float64]
    threshold: float

    @classmethod
    def fit(
        cls,
        distances: Float32,
        predicted: npt.NDArray[np.int64],
        n_classes: int,
        *,
        false_novel_rate: float = 0.05,
    ) -> Novelty:
        """Learn from held-out cells of known types: that share of them would be called novel.

        Parameters
        ----------
        distances
            (n,) mean neighbour distances.
        predicted
            (n,) int64 classes they were given.
        """
        d = distances.astype(np.float64)
        counts = np.bincount(predicted, minlength=n_classes)
        overall, spread = d.mean(), max(d.std(), 1e-6)
        sums = np.bincount(predicted, weights=d, minlength=n_classes)
        mean = (sums + PRIOR_CELLS * overall) / (counts + PRIOR_CELLS)
        squares = np.bincount(predicted, weights=(d - mean[predicted]) ** 2, minlength=n_classes)
        sd = np.sqrt((squares + PRIOR_CELLS * spread**2) / (counts + PRIOR_CELLS))
        z = (d - mean[predicted]) / sd[predicted]
        return cls(mean, sd, float(np.quantile(z, 1.0 - false_novel_rate)))

    def score(self, distances: Float32, predicted: npt.NDArray[np.int64]) -> Float32:
        """Return (n,) novelty, 0 to 1; 0.5 is the threshold."""
        z = (distances - self.mean[predicted]) / self.sd[predicted]
        return np.asarray(1.0 / (1.0 + np.exp(-np.clip(z - self.threshold, -30, 30))), dtype=np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"mean": self.mean.tolist(), "sd": self.sd.tolist(), "threshold": self.threshold}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Novelty:
        """Rebuild from :meth:`to_dict`."""
        return cls(np.array(data["mean"]), np.array(data["sd"]), float(data["threshold"]))
