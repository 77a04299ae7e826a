"""Status of a cell, which says how reliable its label is, and colours of labels and statuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "COVERAGE",
    "GREY",
    "PALETTE",
    "STATUSES",
    "STATUS_COLORS",
    "label_colors",
    "low_quality_floor",
    "status_codes",
    "statuses",
]

STATUSES = ("confident", "ambiguous", "novel", "low_quality")
#: Cells with a lower confidence are ambiguous: other labels together are as probable as the predicted one.
MIN_CONFIDENCE = 0.5
#: Coverage of the label sets. A set with several labels makes a cell ambiguous.
COVERAGE = 0.9


def status_codes(
    *,
    confidence: npt.NDArray[np.float32],
    novelty: npt.NDArray[np.float32],
    n_labels: npt.NDArray[np.integer[Any]],
    low_quality: npt.NDArray[np.bool_],
) -> npt.NDArray[np.int8]:
    """Return (n,) indices into :data:`STATUSES`, the worst status that applies to each cell.

    Parameters
    ----------
    confidence, novelty
        (n,) values from 0 to 1.
    n_labels
        (n,) number of labels in the label set of each cell at :data:`COVERAGE`.
    low_quality
        (n,) bool, cells with too few detected genes.
    """
    status = np.full(len(confidence), STATUSES.index("ambiguous"), dtype=np.int8)
    status[(n_labels <= 1) & (confidence >= MIN_CONFIDENCE)] = STATUSES.index("confident")
    status[novelty > 0.5] = STATUSES.index("novel")
    status[low_quality] = STATUSES.index("low_quality")
    return status


def statuses(**measures: npt.NDArray[Any]) -> npt.NDArray[np.object_]:
    """Return (n,) status names as an object array; parameters as in :func:`status_codes`."""
    return np.array(STATUSES, dtype=object)[status_codes(**measures)]


def low_quality_floor(n_detected: npt.NDArray[np.int64]) -> float:
    """Return the threshold for low quality: half of the 1st percentile of detected genes per reference cell.

    A percentile instead of the minimum, so that one odd cell does not set the threshold.

    Parameters
    ----------
    n_detected
        (n,) int64 number of detected genes in each labelled reference cell.
    """
    return float(max(1.0, 0.5 * np.quantile(n_detected, 0.01)))


#: The colours of Okabe and Ito (2008, https://jfly.uni-koeln.de/color). Each further colour has the largest
#: distance, in Oklab, to all before it for normal vision, deuteranopia and protanopia (Machado et al. 2009,
#: doi:10.1109/TVCG.2009.113). The first twelve are easy to distinguish; more need the legend.
PALETTE = tuple(
    "#0072B2 #E69F00 #009E73 #CC79A7 #56B4E9 #D55E00 #700033 #3D00A3 #00EBAD #7014FF #854700 #8F7AFF #AD1470 "
    "#D6D600 #8FB885 #B8CCFF #D600C2 #5C0A70 #145C5C #0000D6 #474799 #00CCC2 #F54766 #EBC27A #5C66E0 #AD523D "
    "#A35C85 #70290A #99003D #7A528F #F57047 #858FD6 #FF85FF #8F0085 #52335C #66E0D6 #003DB8 #1F85D6 #E0A3AD "
    "#EB9966".split()
)
#: Colour of cells without a label.
GREY = "#BBBBBB"
STATUS_COLORS = {"confident": "#0072B2", "ambiguous": "#E69F00", "novel": "#D55E00", "low_quality": GREY}


def label_colors(classes: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Return a colour for each label. A label of a reference has the same colour in every query.

    Parameters
    ----------
    classes
        All labels of the reference. Colours repeat after 40 labels.
    """
    number = {name: i for i, name in enumerate(classes)}
    return [PALETTE[number[name] % len(PALETTE)] if name in number else GREY for name in labels]
