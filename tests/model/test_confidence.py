"""Confidence: the curve with the least held-out loss, and what it may not do."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scvec.model.confidence import UNIFORM_MIXING, Confidence
from scvec.model.metrics import expected_calibration_error

Cells = tuple[np.ndarray, np.ndarray, np.ndarray]


def cells(n: int, seed: int, truth: str) -> Cells:
    """Top probabilities from 0.45 to 1 of three classes, right as often as ``truth`` says; folds."""
    rng = np.random.default_rng(seed)
    top = rng.uniform(0.45, 0.999, n)
    chance = {
        "calibrated": top,
        "overconfident": 1 / (1 + np.exp(-0.4 * np.log(top / (1 - top)))),
        "a step": np.where(top > 0.8, 0.97, 0.45),
    }[truth]
    proba = np.column_stack([top, 0.7 * (1 - top), 0.3 * (1 - top)])
    labels = np.where(rng.random(n) < chance, 0, 1 + (rng.random(n) < 0.3))
    return proba.astype(np.float32), labels, np.arange(n) % 3


@pytest.mark.parametrize(
    ("truth", "method"),
    [("calibrated", "temperature"), ("overconfident", "platt"), ("a step", "isotonic")],
)
def test_the_curve_that_fits_is_found_and_calibrates(truth: str, method: str) -> None:
    fitted = Confidence.fit(*cells(6000, 0, truth))
    assert fitted.method == method
    assert set(fitted.losses) == {"temperature", "platt", "isotonic"}
    proba, labels, _ = cells(6000, 1, truth)
    bent = fitted.apply(proba)
    assert expected_calibration_error(bent.max(axis=1), labels == 0) < 0.035
    if method == "temperature":
        np.testing.assert_allclose(bent, proba, atol=1e-6)
    else:
        assert expected_calibration_error(proba.max(axis=1), labels == 0) > 0.08


@settings(max_examples=30)
@example(85532, "overconfident", False)  # the top probabilities are within 1e-6 of 1, in float32
@given(st.integers(0, 10**6), st.sampled_from(["calibrated", "overconfident", "a step"]), st.booleans())
def test_probabilities_stay_probabilities_and_keep_their_order(seed: int, truth: str, mixed: bool) -> None:
    fitted = Confidence.fit(*cells(300, seed, truth), mixing=UNIFORM_MIXING if mixed else 0.0)
    rng = np.random.default_rng(seed)
    proba = rng.dirichlet(np.full(4, 0.3), 200).astype(np.float32)
    bent = fitted.apply(proba)
    np.testing.assert_allclose(bent.sum(axis=1), 1.0, atol=1e-5)
    assert bent.min() >= 0
    rows, best = np.arange(200), proba.argmax(axis=1)
    assert (bent[rows, best] >= bent.max(axis=1) - 1e-6).all()
    # surer before is surer after, where there is room above the second label
    order = np.argsort(proba.max(axis=1), kind="stable")
    top = bent.max(axis=1)[order]
    floor = proba.max(axis=1)[order] > 0.85
    assert (np.diff(top[floor]) > -1e-5).all()
    again = Confidence.from_dict(json.loads(json.dumps(fitted.to_dict())))
    np.testing.assert_array_equal(again.apply(proba), bent)


def test_certainty_is_recalibrated_too() -> None:
    curve = Confidence("platt", (-13.0, 13.0), (0.2, 0.9), 0.0, {})
    got = curve.apply(np.array([[1, 0, 0, 0], [1 - 1e-7, 1e-7, 0, 0]], np.float32))
    np.testing.assert_allclose(got, [[0.9, *[0.1 / 3] * 3], [0.9, 0.1, 0, 0]], atol=1e-6)


def test_no_answer_from_one_batch_is_surer_than_the_mixing_allows() -> None:
    fitted = Confidence.fit(*cells(300, 0, "calibrated"), mixing=UNIFORM_MIXING)
    proba = np.array([[1.0, 0.0, 0.0, 0.0]], np.float32)
    np.testing.assert_allclose(
        fitted.apply(proba), [[1 - UNIFORM_MIXING * 3 / 4, *[UNIFORM_MIXING / 4] * 3]], rtol=1e-5
    )


def test_few_cells_or_nothing_wrong_teach_no_curve() -> None:
    proba, labels, folds = cells(400, 0, "a step")
    assert Confidence.fit(proba[:60], labels[:60], folds[:60]).method == "temperature"
    assert Confidence.fit(proba, np.zeros(400, np.int64), folds).method == "temperature"
    assert Confidence.fit(proba, labels, np.zeros(400, np.int64)).method == "temperature"
