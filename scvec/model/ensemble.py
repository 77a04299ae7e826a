"""The two classifiers of a reference, each calibrated on held-out cells, and their average."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scvec.base.types import Float32

__all__ = ["MEMBERS", "UNIFORM_MIXING", "Ensemble", "log_softmax"]

#: The trained classifier on cell vectors, and the labels of the nearest reference cells.
MEMBERS = ("head", "knn")
#: Temperatures of the members where no reference cell could be held out: the medians over the references of
#: the development pairs (docs/benchmarks.md).
DEFAULTS = (10.0, 1.0)
#: Fraction of labels that are wrong for reasons that no cell of the same batch can show: the next study
#: draws its types otherwise, or the chemistry moves one onto another. The best classifiers lose 0.02 to 0.1
#: of their F1 from within a data set to across data sets (Abdelaal et al. 2019,
#: doi:10.1186/s13059-019-1795-z).
UNIFORM_MIXING = 0.05
Float64 = npt.NDArray[np.float64]


def log_softmax(scores: npt.NDArray[np.floating]) -> Float64:
    """Return the log of softmax over the last axis, in float64."""
    z = scores.astype(np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=-1, keepdims=True)))


@dataclass(frozen=True, slots=True)
class Ensemble:
    """The mean of the members' log probabilities, all members counting alike.

    Each member's scores are multiplied by a temperature of its own first, and the mean by one more (Guo et
    al. 2017, arXiv:1706.04599). No weight is learned: equal weights can not be tuned to a data set.

    Attributes
    ----------
    temperatures
        Factor of each member's scores, in the order of :data:`MEMBERS`.
    sharpness
        Factor of the mean.
    mixing
        Fraction (0-1) of every answer that is mixed with equal probabilities, where only cells of the
        reference's own batch could be held out: nothing in such a reference tells how its labels fare
        elsewhere.
    has_neighbors
        False for a reference without cells: the head then answers alone.
    """

    temperatures: tuple[float, ...] = DEFAULTS
    sharpness: float = 1.0
    mixing: float = 0.0
    has_neighbors: bool = True

    def __post_init__(self) -> None:
        positive = all(factor > 0 for factor in (*self.temperatures, self.sharpness))
        if len(self.temperatures) != len(MEMBERS) or not positive:
            raise ValueError("one positive temperature for each member, and a positive sharpness")

    @classmethod
    def fit(cls, scores: list[Float32], labels: npt.NDArray[np.int64], *, mixing: float = 0.0) -> Ensemble:
        """Learn from held-out cells.

        Parameters
        ----------
        scores
            For each member, (n, n_classes) of held-out cells.
        labels
            (n,) int64 true classes.
        """
        from scipy.optimize import minimize

        rows = np.arange(len(labels))

        def factor(z: Float64, sample: Float64, reach: float) -> float:
            """Return the factor on ``z`` of least log loss, between exp(-reach) and exp(reach)."""

            def loss(t: Float64) -> float:
                return float(-(log_softmax(np.exp(t[0]) * z)[rows, labels] * sample).sum())

            return float(np.exp(minimize(loss, [0.0], bounds=[(-reach, reach)]).x[0]))

        counts = np.bincount(labels, minlength=scores[0].shape[1])
        rare = 1.0 / np.sqrt(counts[labels])
        temperatures = tuple(factor(s.astype(np.float64), rare / rare.sum(), 6.0) for s in scores)
        # Temperatures count rare classes more; the confidence has to hold for cells as they come.
        mean = cls(temperatures).logits(scores)
        return cls(temperatures, factor(mean, np.full(len(labels), 1.0 / len(labels)), 3.0), mixing)

    @property
    def weights(self) -> tuple[float, ...]:
        """Factor of each member's scores in :meth:`logits`."""
        return tuple(self.sharpness * t / len(MEMBERS) for t in self.temperatures)

    def logits(self, scores: list[Float32]) -> Float64:
        """Return (n, n_classes) float64 of which the softmax are the probabilities."""
        z = sum(w * s.astype(np.float64) for w, s in zip(self.weights, scores, strict=True))
        return np.asarray(z, dtype=np.float64)

    def combine(self, scores: list[Float32]) -> Float32:
        """Return (n, n_classes) float32 calibrated probabilities of all members together."""
        head = MEMBERS.index("head")
        found = (
            np.exp(log_softmax(self.logits(scores)))
            if self.has_neighbors
            else self.alone("head", scores[head])
        )
        if self.mixing:
            found = (1.0 - self.mixing) * found + self.mixing / found.shape[1]
        return np.asarray(found, dtype=np.float32)

    def alone(self, member: str, scores: Float32) -> Float32:
        """Return (n, n_classes) float32 calibrated probabilities of one member."""
        factor = self.temperatures[MEMBERS.index(member)]
        return np.asarray(np.exp(log_softmax(factor * scores)), dtype=np.float32)
