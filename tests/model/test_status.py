"""Tests of the statuses of cells, and of the threshold for low quality."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from scvec.model.calibration import STATUSES, low_quality_floor, statuses


def word(confidence: float, novelty: float, n_labels: int, low: bool) -> str:
    if low:
        return "low_quality"
    if novelty > 0.5:
        return "novel"
    return "confident" if n_labels < 2 and confidence >= 0.5 else "ambiguous"


def test_truth_table() -> None:
    table = list(itertools.product([0.0, 0.49, 0.5, 1.0], [0.0, 0.5, 0.51, 1.0], [0, 1, 2, 5], [False, True]))
    confidence, novelty, n_labels, low = (np.array(column) for column in zip(*table, strict=True))
    got = statuses(
        confidence=confidence.astype(np.float32),
        novelty=novelty.astype(np.float32),
        n_labels=n_labels.astype(np.int32),
        low_quality=low.astype(bool),
    )
    assert got.tolist() == [word(*row) for row in table]
    assert set(got) == set(STATUSES)


def test_no_cells() -> None:
    none = np.zeros(0, np.float32)
    assert (
        statuses(confidence=none, novelty=none, n_labels=none.astype(int), low_quality=none > 1).tolist()
        == []
    )


def test_the_floor_is_half_the_first_percentile() -> None:
    n_detected = np.concatenate([[0], np.arange(1000, 1999)])
    assert low_quality_floor(n_detected) == pytest.approx(0.5 * np.percentile(n_detected, 1))
    assert low_quality_floor(n_detected) > 480  # one empty cell does not set the threshold
    assert low_quality_floor(np.zeros(5, np.int64)) == 1.0
