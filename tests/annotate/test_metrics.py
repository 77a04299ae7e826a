"""Metrics against scikit-learn, and calibration error by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.annotate.metrics import accuracy, expected_calibration_error, macro_f1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), min_size=1, max_size=30))
def test_accuracy_and_f1_are_those_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    truth, predicted = (np.array(side) for side in zip(*pairs, strict=True))
    assert accuracy(truth, predicted) == pytest.approx(accuracy_score(truth, predicted))
    # A label that is only predicted costs precision elsewhere, and has no F1 of its own.
    names = sorted(set(truth))
    _, _, f1, _ = precision_recall_fscore_support(truth, predicted, labels=names, zero_division=0)
    assert macro_f1(truth, predicted) == pytest.approx(f1.mean())


def test_f1_by_hand() -> None:
    truth, predicted = np.array(["a", "a", "b", "c"]), np.array(["a", "b", "b", "x"])
    assert macro_f1(truth, predicted) == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert accuracy(truth, predicted) == 0.5
    assert math.isnan(accuracy(np.array([]), np.array([])))


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.15, 1.0])
    correct = np.array([True, True, False, True, False, True])
    # Ten bins: 0.9-1 holds five cells, 4/5 right at a mean confidence of 0.96; 0.1-0.2 holds one, wrong.
    expected = 5 / 6 * abs(0.96 - 0.8) + 1 / 6 * 0.15
    assert expected_calibration_error(confidence, correct, n_bins=10) == pytest.approx(expected)


def test_bounds_of_bins() -> None:
    for n_bins in (1, 7, 15):
        assert expected_calibration_error(
            np.array([0.0, 1.0]), np.array([False, True]), n_bins
        ) == pytest.approx(0.0)
    assert expected_calibration_error(np.array([1.0, 1.0]), np.array([False, False])) == pytest.approx(1.0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 200), st.integers(1, 20))
def test_calibration_error_is_that_of_a_loop(seed: int, n: int, n_bins: int) -> None:
    rng = np.random.default_rng(seed)
    confidence, correct = rng.random(n).astype(np.float32), rng.random(n) < 0.6
    total = 0.0
    for b in range(n_bins):
        members = [i for i in range(n) if min(int(confidence[i] * n_bins), n_bins - 1) == b]
        if members:
            gap = abs(np.mean(confidence[members], dtype=float) - np.mean(correct[members]))
            total += len(members) / n * gap
    assert expected_calibration_error(confidence, correct, n_bins) == pytest.approx(total, abs=1e-5)
