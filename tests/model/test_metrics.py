"""Tests of metrics against scikit-learn, and of calibration error computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.model.calibration import (
    accuracy,
    brier_score,
    expected_calibration_error,
    fpr_at_tpr,
    macro_f1,
    novelty_auroc,
    on_lineage,
    ontology_similarity,
    reliability,
    risk_coverage,
    set_coverage,
)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), min_size=1, max_size=30))
def test_accuracy_and_f1_are_those_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    truth, predicted = (np.array(side) for side in zip(*pairs, strict=True))
    assert accuracy(truth, predicted) == pytest.approx(accuracy_score(truth, predicted))
    # A label that is only predicted lowers the F1 of other labels, but has no F1 itself.
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


@settings(max_examples=40)
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


def test_brier_risk_and_novelty_by_hand() -> None:
    p, right = np.array([0.9, 0.8, 0.6]), np.array([True, False, True])
    assert brier_score(p, right) == pytest.approx((0.01 + 0.64 + 0.16) / 3)
    assert math.isnan(brier_score(p[:0], right[:0])) and brier_score(p[:1], right[:1]) == pytest.approx(0.01)
    np.testing.assert_allclose(risk_coverage(p, right), [0, 1 / 2, 1 / 3])
    # Two cells with equal confidence enter the curve together, in any order.
    for order in ([0, 1], [1, 0]):
        np.testing.assert_allclose(risk_coverage(np.full(2, 0.5), right[order]), [0.5, 0.5])
    novelty, new = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    assert novelty_auroc(novelty, new) == pytest.approx(0.75)
    assert fpr_at_tpr(novelty, new) == pytest.approx(0.5) and fpr_at_tpr(novelty, new, 0.5) == 0.0
    assert math.isnan(novelty_auroc(novelty, np.zeros(4, bool)))


def test_terms_on_the_same_lineage_are_correct_and_siblings_similar() -> None:
    lineage = {"cell": ["cell"], "T": ["T", "cell"], "CD4": ["CD4", "T", "cell"], "CD8": ["CD8", "T", "cell"]}
    truth, said = ["CD4", "CD4", "T", "CD4", "", "CD4"], ["CD4", "T", "CD4", "CD8", "T", ""]
    assert on_lineage(truth, said, lineage).tolist() == [True, True, True, False, False, False]
    got = ontology_similarity(truth, said, lineage)
    np.testing.assert_allclose(got, [1, 2 / 3, 2 / 3, 1 / 2, 0, 0])


def test_set_coverage_counts_what_no_class_stands_for_as_missed() -> None:
    sets = np.array([[True, True], [True, False], [False, False], [True, True]])
    got = set_coverage(sets, np.array([0, 1, 0, -1]))
    assert got == {"observed": 0.25, "mean_size": 1.25, "empty": 0.25}


def test_reliability_adds_up_to_the_calibration_error() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(500)
    right = rng.random(500) < p**2
    bins = reliability(p, right)
    assert sum(b["share"] for b in bins) == pytest.approx(1.0)
    gap = sum(b["share"] * abs(b["confidence"] - b["accuracy"]) for b in bins)
    assert gap == pytest.approx(expected_calibration_error(p, right))
