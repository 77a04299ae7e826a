"""One word on how far a label can be trusted."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["COVERAGE", "STATUSES", "low_quality_floor", "status_codes", "statuses"]

STATUSES = ("confident", "ambiguous", "novel", "low_quality")

#: Below an even chance, another answer is about as likely.
CONFIDENCE_BAR = 0.5
#: Coverage of the label sets that say whether another label fits a cell as well.
COVERAGE = 0.9


def status_codes(
    *,
    confidence: npt.NDArray[np.float32],
    novelty: npt.NDArray[np.float32],
    n_labels: npt.NDArray[np.integer[Any]],
    low_quality: npt.NDArray[np.bool_],
) -> npt.NDArray[np.int8]:
    """Return (n,) numbers into :data:`STATUSES`; the gravest that applies.

    Parameters
    ----------
    confidence, novelty
        (n,) 0 to 1.
    n_labels
        (n,) labels in the set of each cell at :data:`COVERAGE`.
    low_quality
        (n,) cells with too little in them to say anything.
    """
    status = np.full(len(confidence), STATUSES.index("ambiguous"), dtype=np.int8)
    status[(n_labels <= 1) & (confidence >= CONFIDENCE_BAR)] = STATUSES.index("confident")
    status[novelty > 0.5] = STATUSES.index("novel")
    status[low_quality] = STATUSES.index("low_quality")
    return status


def statuses(**measures: npt.NDArray[Any]) -> npt.NDArray[np.object_]:
    """Return (n,) statuses, as objects; parameters as of :func:`status_codes`."""
    return np.array(STATUSES, dtype=object)[status_codes(**measures)]


def low_quality_floor(n_detected: npt.NDArray[np.int64]) -> float:
    """Return how many of its genes a reference cell has at the least, halved.

    The 1st percentile, so that one odd reference cell does not set the bar.

    Parameters
    ----------
    n_detected
        (n,) number of the reference's genes found in each labelled cell.
    """
    return float(max(1.0, 0.5 * np.quantile(n_detected, 0.01)))
