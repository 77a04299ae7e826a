"""Sets of labels as one text a cell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from scvec.base.arrays import Texts, blocks, coded
from scvec.base.scratch import release
from scvec.base.types import Float32

__all__ = ["set_names"]


def set_names(proba: Float32, sets: npt.NDArray[np.bool_], classes: Sequence[str]) -> Texts:
    """Return n texts: each cell's labels, likeliest first, as ``alpha|beta``; empty where it has none.

    Parameters
    ----------
    proba
        (n, n_classes) float32.
    sets
        (n, n_classes), which labels belong to a cell's set.
    """
    number = {"": 0}
    codes = np.zeros(len(proba), dtype=np.int32)
    for rows in blocks(len(proba)):
        order = np.argsort(-proba[rows], axis=1, kind="stable")
        here = sets[rows]
        for row in np.flatnonzero(here.any(axis=1)):
            said = "|".join(classes[k] for k in order[row] if here[row, k])
            codes[rows.start + row] = number.setdefault(said, len(number))
        release(proba)
        release(sets)
    return coded(codes, list(number))
