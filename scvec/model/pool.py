"""Weighing the voices by how well each did on held-out reference cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scvec.types import Float32

__all__ = ["LINEAR", "PRIORS", "VOICES", "Pool", "log_softmax"]

VOICES = ("head", "knn", "prototype", "linear", "centroid")
LINEAR = VOICES.index("linear")
#: Shares of the voices that the weights are drawn to, in that order. Head and neighbours hear with one
#: encoder, and what that learned from one data set is what shifts spoil first, more than simulated ones show.
#: Over pairs of real data sets, no weights learned on held-out cells beat equal ones of the prototypes and
#: the linear voice by more than the noise. The linear voice knows fixed genes: where few of them were
#: measured it has little to say. Another species is what no reference cell stands in for: what was trained
#: on the reference is left out there, and plain centroids, which do not trust the spread that genes have in
#: the reference, speak as much as prototypes, which do.
PRIORS = {
    "same": (0.05, 0.05, 0.5, 0.4, 0.0),
    "panel": (0.05, 0.05, 0.5, 0.4, 0.0),
    "few": (0.0, 0.0, 0.8, 0.2, 0.0),
    "species": (0.0, 0.0, 0.5, 0.0, 0.5),
    "species_few": (0.0, 0.0, 0.5, 0.0, 0.5),
}
Float64 = npt.NDArray[np.float64]


def log_softmax(scores: npt.NDArray[np.floating]) -> Float64:
    """Return the log of softmax over the last axis, in float64."""
    z = scores.astype(np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=-1, keepdims=True)))


@dataclass(frozen=True, slots=True)
class Pool:
    """A log-linear opinion pool: p(class) proportional to exp(sum over voices of weight x score).

    Heskes 1998 ("Selecting weighting factors in logarithmic opinion pools", NIPS 10); the weights are
    learned by stacking (Wolpert 1992) and so carry the calibration: they include each voice's temperature
    (Guo et al. 2017, arXiv:1706.04599).

    Attributes
    ----------
    weights
        Factor of each voice's scores, in the order of ``VOICES``.
    temperatures
        Factor that calibrates each voice on its own.
    shares
        How much each voice counts, summing to 1, for people to read: its mean margin between its two best
        classes, in the log odds it adds to the sum. A calibrated voice that knows nothing adds none, whatever
        its weight.
    """

    weights: tuple[float, ...]
    temperatures: tuple[float, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.weights) == len(self.temperatures) == len(self.shares) == len(VOICES):
            raise ValueError("one weight, temperature and share per voice")

    @classmethod
    def fit(
        cls,
        scores: list[Float32],
        labels: npt.NDArray[np.int64],
        *,
        prior: tuple[float, ...] = PRIORS["same"],
        pull: float = 0.2,
    ) -> Pool:
        """Learn from held-out cells.

        Parameters
        ----------
        scores
            Per voice, (n, n_classes) of held-out cells.
        labels
            (n,) int64 true classes.
        prior
            Shares of the voices that the weights are drawn to, summing to 1; a voice of share 0 is not heard.
        pull
            Penalty on the divergence of the weights from the prior: held-out cells are few, and of the
            reference.
        """
        from scipy.optimize import minimize

        n_classes = scores[0].shape[1]
        counts = np.bincount(labels, minlength=n_classes)
        sample = 1.0 / np.sqrt(counts[labels])
        sample = sample / sample.sum()
        rows = np.arange(len(labels))

        def loss(z: Float64) -> float:
            # reads ``sample`` as it is at the time of the call
            return float(-(log_softmax(z)[rows, labels] * sample).sum())

        def factor(z: Float64, reach: float) -> float:
            """Return the factor on ``z`` of least loss, between exp(-reach) and exp(reach)."""

            def of_log(t: Float64) -> float:
                return loss(np.exp(t[0]) * z)

            return float(np.exp(minimize(of_log, [0.0], bounds=[(-reach, reach)]).x[0]))

        temperatures = [factor(voice.astype(np.float64), 6.0) for voice in scores]
        scaled = [t * v.astype(np.float64) for t, v in zip(temperatures, scores, strict=True)]

        def objective(a: Float64) -> float:
            w = np.exp(a)
            share = w / w.sum()
            divergence = float((share * np.log(np.maximum(share / expected[heard], 1e-12))).sum())
            return loss(mixed(w)) + pull * divergence

        def mixed(w: Float64) -> Float64:
            return np.asarray(sum(wi * scaled[i] for wi, i in zip(w, heard, strict=True)))

        expected = np.array(prior)
        heard = np.flatnonzero(expected > 0)
        w = np.zeros(len(scores))
        w[heard] = np.exp(minimize(objective, np.log(expected[heard]), bounds=[(-8.0, 3.0)] * len(heard)).x)
        pooled = sum(wi * v for wi, v in zip(w, scaled, strict=True))
        # The weights were learned with rare classes lifted; confidence has to hold for cells as they come.
        sample = np.full(len(labels), 1.0 / len(labels))
        sharpness = factor(np.asarray(pooled), 3.0)
        margins = [np.diff(np.partition(v, -2, axis=1)[:, -2:]).mean() for v in scaled]
        push = np.maximum(w * margins, 1e-12)
        return cls(
            tuple(float(wi * t * sharpness) for wi, t in zip(w, temperatures, strict=True)),
            tuple(temperatures),
            tuple(float(s) for s in push / push.sum()),
        )

    def combine(self, scores: list[Float32]) -> Float32:
        """Return (n, n_classes) float32 probabilities of all voices together."""
        z = sum(w * s.astype(np.float64) for w, s in zip(self.weights, scores, strict=True))
        return np.asarray(np.exp(log_softmax(np.asarray(z))), dtype=np.float32)

    def alone(self, voice: str, scores: Float32) -> Float32:
        """Return (n, n_classes) float32 calibrated probabilities of one voice."""
        factor = self.temperatures[VOICES.index(voice)]
        return np.asarray(np.exp(log_softmax(factor * scores)), dtype=np.float32)
