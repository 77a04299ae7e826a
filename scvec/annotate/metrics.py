"""How good labels and their confidences are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["accuracy", "expected_calibration_error", "macro_f1"]


def accuracy(truth: npt.NDArray[np.str_], predicted: npt.NDArray[np.str_]) -> float:
    """Return the share (0-1) of cells whose label is right."""
    return float(np.mean(truth == predicted)) if len(truth) else float("nan")


def macro_f1(truth: npt.NDArray[np.str_], predicted: npt.NDArray[np.str_]) -> float:
    """Return the mean F1 over the classes that occur in the truth, each class counting alike."""
    from sklearn.metrics import f1_score

    return float(f1_score(truth, predicted, average="macro", labels=np.unique(truth), zero_division=0))


def expected_calibration_error(
    confidence: npt.NDArray[np.floating], correct: npt.NDArray[np.bool_], n_bins: int = 15
) -> float:
    """Return the mean gap between confidence and accuracy over equal-width bins.

    Naeini et al. 2015; Guo et al. 2017 (arXiv:1706.04599), equation 3.
    """
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    gap = 0.0
    for b in np.unique(bins):
        members = bins == b
        gap += members.mean() * abs(float(confidence[members].mean()) - float(correct[members].mean()))
    return gap
