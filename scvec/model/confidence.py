"""From the probability of both members together to the chance that their label is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.types import Float32

__all__ = ["UNIFORM_MIXING", "Confidence"]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

#: Fraction of labels that are wrong for reasons that no cell of the same batch can show: the next study
#: draws its types otherwise, or the chemistry moves one onto another. The best classifiers lose 0.02 to 0.1
#: of their F1 from within a data set to across data sets (Abdelaal et al. 2019,
#: doi:10.1186/s13059-019-1795-z).
UNIFORM_MIXING = 0.05
#: Probabilities closer to 0 or 1 than this count as this.
EDGE = 1e-6
#: Fewer held-out cells than this cannot tell one curve from another.
MIN_CELLS = 100


@dataclass(frozen=True, slots=True)
class Confidence:
    """A monotone curve from the top probability to the chance that it is right, and a uniform mixing.

    The pool has its temperature already (Guo et al. 2017, arXiv:1706.04599). Two curves may recalibrate it
    further: Platt's (1999), a logistic regression on the log odds, and an isotonic regression (Zadrozny and
    Elkan 2002, doi:10.1145/775047.775151). Whichever has the least log loss on folds that it was not fitted
    on is taken, the simpler unless the gain is beyond chance.

    Where only cells of the reference's own batch could be held out, the fraction ``mixing`` of every answer
    is spread evenly over the classes: nothing in such a reference tells how its labels fare elsewhere.

    Attributes
    ----------
    method
        ``temperature``, ``platt`` or ``isotonic``.
    x, y
        Knots of the curve, in log odds and in probability; empty for ``temperature``.
    mixing
        0 to 1.
    losses
        Held-out log loss per cell of each method.
    """

    method: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    mixing: float
    losses: dict[str, float]

    @classmethod
    def fit(cls, proba: Float32, labels: Int64, folds: Int64, *, mixing: float = 0.0) -> Confidence:
        """Learn from pooled probabilities (n, n_classes) of held-out cells, their classes and folds (n,)."""
        top = proba.max(axis=1).astype(np.float64)
        right = proba.argmax(axis=1) == labels
        names = np.unique(folds)
        plain = cls("temperature", (), (), mixing, {})
        if len(names) < 2 or len(right) < MIN_CELLS or right.all() or not right.any():
            return plain
        loss = {"temperature": _log_loss(top, right)}
        for method in ("platt", "isotonic"):
            each = np.empty(len(top))
            for fold in names:
                here = folds == fold
                curve = _curve(method, top[~here], right[~here])
                each[here] = _log_loss(_recalibrated(top[here], *curve), right[here])
            loss[method] = each
        best = "temperature"
        for method in ("platt", "isotonic"):
            gain = loss[best] - loss[method]
            # the standard error over cells, which takes them for independent: hence two of them
            if gain.mean() > 2.0 * gain.std() / np.sqrt(len(gain)):
                best = method
        x, y = _curve(best, top, right) if best != "temperature" else ((), ())
        return cls(best, x, y, mixing, {name: float(each.mean()) for name, each in loss.items()})

    def apply(self, proba: Float32) -> Float32:
        """Return (n, n_classes) probabilities with the calibrated chance at the top; the order stays."""
        found = proba.astype(np.float64)
        if self.x and found.shape[1] > 1:
            rows, best = np.arange(len(found)), found.argmax(axis=1)
            top = found[rows, best]
            found[rows, best] = 0.0
            # The rest is summed, not taken as 1 - top: in a float32 row that is nearly certain, rounding is
            # a large part of it. Where all but one are 0, the others share evenly.
            found[~found.any(axis=1)] = 1.0
            found[rows, best] = 0.0
            found /= found.sum(axis=1, keepdims=True)
            second = found.max(axis=1)
            # What is given stays the likeliest, however little it is trusted.
            raised = np.maximum(_recalibrated(top, self.x, self.y), second / (1.0 + second))
            found *= (1.0 - raised)[:, None]
            found[rows, best] = raised
        if self.mixing:
            found = (1.0 - self.mixing) * found + self.mixing / found.shape[1]
        return np.asarray(found, dtype=np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "method": self.method,
            "x": list(self.x),
            "y": list(self.y),
            "mixing": self.mixing,
            "losses": self.losses,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Confidence:
        """Rebuild from :meth:`to_dict`."""
        return cls(data["method"], tuple(data["x"]), tuple(data["y"]), data["mixing"], dict(data["losses"]))


def _log_odds(p: Float64) -> Float64:
    p = np.clip(p, EDGE, 1.0 - EDGE)
    return np.asarray(np.log(p / (1.0 - p)))


def _log_loss(p: Float64, right: npt.NDArray[np.bool_]) -> Float64:
    p = np.clip(p, EDGE, 1.0 - EDGE)
    return np.asarray(-np.log(np.where(right, p, 1.0 - p)))


def _recalibrated(p: Float64, x: tuple[float, ...], y: tuple[float, ...]) -> Float64:
    return np.asarray(np.interp(_log_odds(p), x, y))


def _curve(
    method: str, top: Float64, right: npt.NDArray[np.bool_]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the knots of a curve: log odds, ascending, and probabilities."""
    odds = _log_odds(top)
    if right.all() or not right.any():
        share = (right.sum() + 1.0) / (len(right) + 2.0)
        return (0.0,), (float(share),)
    if method == "platt":
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=1e3).fit(odds[:, None], right)
        x = np.linspace(_log_odds(np.array([EDGE]))[0], _log_odds(np.array([1.0 - EDGE]))[0], 121)
        # More probability never means less confidence.
        y = 1.0 / (1.0 + np.exp(-(max(float(model.coef_[0, 0]), 0.0) * x + float(model.intercept_[0]))))
    else:
        from sklearn.isotonic import IsotonicRegression

        # One right and one wrong cell at each end: no stretch of cells proves a chance of 0 or 1.
        ends = np.array([odds.min(), odds.max(), odds.min(), odds.max()])
        model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
        model.fit(np.append(odds, ends), np.append(right, [True, True, False, False]).astype(float))
        x, y = model.X_thresholds_, model.y_thresholds_
    return tuple(float(v) for v in np.round(x, 6)), tuple(float(v) for v in np.round(y, 6))
