"""Tests of conformal label sets: coverage overall and per class, and the rule computed by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.model.calibration import MIN_CELLS, N_KEPT, LabelSets


def cells(n: int, seed: int, shares: tuple[float, ...] = (0.7, 0.2, 0.1)) -> tuple[np.ndarray, np.ndarray]:
    """Uncalibrated probabilities and true classes; rare classes are harder."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(shares), n, p=shares)
    z = rng.normal(size=(n, len(shares)))
    z[np.arange(n), labels] += np.array([4.0, 2.0, 1.0])[labels]
    p = np.exp(1.5 * z)
    return (p / p.sum(axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
def test_every_class_is_covered_as_often_as_asked(coverage: float) -> None:
    fitted = LabelSets.fit(*cells(20000, 0))
    proba, labels = cells(20000, 1)
    sets = fitted.sets(proba, coverage)
    hit = sets[np.arange(len(labels)), labels]
    assert hit.mean() == pytest.approx(coverage, abs=0.015)
    for k in range(3):
        assert hit[labels == k].mean() == pytest.approx(coverage, abs=0.04)
    # one bar for all classes would cover the hard class far too rarely
    bar = np.quantile(1 - proba[np.arange(len(labels)), labels], coverage)
    rare = labels == 2
    assert (1 - proba[rare, 2] <= bar).mean() < coverage - 0.1


def test_the_bar_is_the_right_order_statistic() -> None:
    n = MIN_CELLS + 9  # 29 scores 0.01 to 0.29: the ceil(30 x 0.9) = 27th
    truth = np.zeros(n, dtype=np.int64)
    p = 1 - np.arange(1, n + 1) / 100
    fitted = LabelSets.fit(np.column_stack([p, 1 - p]).astype(np.float32), truth)
    assert fitted.thresholds(0.9)[0] == pytest.approx(0.27, abs=1e-6)
    assert fitted.thresholds(0.99)[0] == np.inf  # 29 cells are too few for 99% coverage
    assert fitted.thresholds(0.9)[1] == fitted.thresholds(0.9)[0]  # no cell of the other class
    assert fitted.sets(np.array([[0.74, 0.26], [0.72, 0.28]], np.float32), 0.9).tolist() == [
        [True, False],
        [False, False],
    ]


@settings(max_examples=40)
@given(st.integers(1, 400), st.integers(0, 10**6))
def test_more_coverage_never_takes_a_label_out(n: int, seed: int) -> None:
    fitted = LabelSets.fit(*cells(n, seed))
    again = LabelSets.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert again == fitted
    proba, _ = cells(50, seed + 1)
    smaller, larger = fitted.sets(proba, 0.8), fitted.sets(proba, 0.9)
    assert not (smaller & ~larger).any()


def test_many_cells_are_downsampled_without_moving_the_threshold() -> None:
    proba, labels = cells(30_000, 3)
    fitted = LabelSets.fit(proba, labels)
    assert max(len(s) for s in fitted.scores) == N_KEPT
    score = np.sort(1 - proba[labels == 0, 0].astype(np.float64))
    for coverage in (0.5, 0.9, 0.99):
        share = (score <= fitted.thresholds(coverage)[0]).mean()
        assert share == pytest.approx(coverage, abs=1 / N_KEPT)


def test_a_coverage_must_be_between_0_and_1() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        LabelSets.fit(*cells(30, 0)).thresholds(1.0)


def test_sizes_leave_out_labels_with_too_few_cells() -> None:
    # Class 1 has no held-out cell, and five cells in total are too few for a threshold at 90%.
    few = LabelSets.fit(np.tile(np.float32([0.9, 0.1]), (5, 1)), np.zeros(5, np.int64))
    p = np.array([[0.5, 0.5]], np.float32)
    assert few.sets(p, 0.9).sum() == 2 and few.sizes(p, 0.9).tolist() == [0]
    many = LabelSets.fit(np.tile(np.float32([0.9, 0.1]), (50, 1)), np.zeros(50, np.int64))
    new = np.array([[0.95, 0.05], [0.5, 0.5], [0.9, 0.9]], np.float32)
    assert many.sizes(new, 0.9).tolist() == many.sets(new, 0.9).sum(axis=1).tolist() == [1, 0, 2]
