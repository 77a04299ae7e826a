"""Tests of the ensemble: equal weights, and one scale per member fitted on held-out cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.model.calibration import Ensemble, expected_calibration_error
from scvec.model.classifiers import MEMBERS, log_softmax

N_CLASSES = 4


def member(labels: Any, strength: float, seed: int, scale: float = 1.0) -> Any:
    """Return the Bayes scores of Gaussian classes, whose softmax is calibrated, times ``scale``."""
    rng = np.random.default_rng(seed)
    x = strength * np.eye(N_CLASSES)[labels] + rng.normal(size=(len(labels), N_CLASSES))
    return (scale * strength * x).astype(np.float32)


def draw(n: int, seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, N_CLASSES, n)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.01, 300))
def test_log_softmax_is_that_of_scipy(seed: int, scale: float) -> None:
    from scipy.special import log_softmax as expected

    z = (np.random.default_rng(seed).normal(size=(5, 6)) * scale).astype(np.float32)
    np.testing.assert_allclose(log_softmax(z), expected(z.astype(np.float64), axis=1), atol=1e-9)


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("place", range(len(MEMBERS)))
def test_temperatures_undo_the_scale_of_a_member(place: int, scale: float) -> None:
    labels, unseen = draw(1500, 0), draw(1500, 1)
    scores = [member(labels, 1.5, seed) for seed in range(len(MEMBERS))]
    scores[place] = scores[place] * np.float32(scale)
    ensemble = Ensemble.fit(scores, labels)
    # With balanced classes all cells have equal weight, and the factor that undoes the scale is known.
    assert ensemble.temperatures[place] == pytest.approx(1 / scale, rel=0.15)
    later = member(unseen, 1.5, 9, scale)

    def ece(p: Any) -> float:
        return expected_calibration_error(p.max(axis=1), p.argmax(axis=1) == unseen)

    before, after = ece(np.exp(log_softmax(later))), ece(ensemble.alone(MEMBERS[place], later))
    assert after < 0.05
    if scale != 1.0:
        assert after < 0.5 * before


@pytest.mark.parametrize("sharpness", [1.0, 2.0])
def test_all_members_have_equal_weight(sharpness: float) -> None:
    temperatures = (0.5, 3.0)
    ensemble = Ensemble(temperatures, sharpness)
    rng = np.random.default_rng(0)
    scores = [rng.normal(size=(7, N_CLASSES)).astype(np.float32) * 10 for _ in MEMBERS]
    calibrated = [log_softmax(t * s.astype(float)) for t, s in zip(temperatures, scores, strict=True)]
    mean = np.exp(sharpness * np.mean(calibrated, axis=0))
    got = ensemble.combine(scores)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, mean / mean.sum(axis=1, keepdims=True), atol=1e-6)
    # A better member has no more weight than the scale of its scores gives it.
    for w, t in zip(ensemble.weights, temperatures, strict=True):
        assert w == pytest.approx(sharpness * t / len(MEMBERS))
    for name, log_p in zip(MEMBERS, calibrated, strict=True):
        alone = ensemble.alone(name, scores[MEMBERS.index(name)])
        np.testing.assert_allclose(alone, np.exp(log_p), atol=1e-5)


def test_the_mean_is_calibrated_on_other_cells_and_better_than_each_member() -> None:
    labels, unseen = draw(1500, 0), draw(3000, 1)
    parts = [(1.2, 8.0), (1.6, 0.1)]
    seen = [member(labels, s, i, k) for i, (s, k) in enumerate(parts)]
    new = [member(unseen, s, 50 + i, k) for i, (s, k) in enumerate(parts)]
    ensemble = Ensemble.fit(seen, labels)
    # If members make independent errors, the ensemble is more confident than their mean.
    assert ensemble.sharpness > 1.3
    p = ensemble.combine(new)
    correct = p.argmax(axis=1) == unseen
    assert expected_calibration_error(p.max(axis=1), correct) < 0.04
    assert correct.mean() > max((s.argmax(axis=1) == unseen).mean() for s in new) + 0.01


def test_confidence_holds_for_cells_as_they_come() -> None:
    # 19 of 20 cells belong to one class, and the members are overconfident for this class alone. Rare cells
    # have more weight for the temperatures, but confidence uses equal weights.
    rng = np.random.default_rng(0)
    labels = (rng.random(3000) < 0.05).astype(np.int64)
    loud = np.where(labels == 0, 4.0, 0.5)[:, None]
    scores = [(member(labels, 1.0, seed) * loud).astype(np.float32) for seed in range(len(MEMBERS))]
    log_p = log_softmax(Ensemble.fit(scores, labels).logits(scores))
    rows = np.arange(3000)
    loss = -log_p[rows, labels].mean()
    for factor in (0.97, 1.03):
        assert -log_softmax(factor * log_p)[rows, labels].mean() > loss


def test_scores_out_of_reach_have_no_probability() -> None:
    labels = draw(300, 0)
    scores = [member(labels, s, i, k) for i, (s, k) in enumerate([(1.0, 30.0), (1.5, 0.02)])]
    ensemble = Ensemble.fit(scores, labels)
    for s in scores:
        s[:, 2] = -1e4
    assert ensemble.combine(scores)[:, 2].max() < 1e-6
    for name, s in zip(MEMBERS, scores, strict=True):
        assert ensemble.alone(name, s)[:, 2].max() < 1e-6


def test_few_cells_and_a_member_that_is_always_right_are_no_trouble() -> None:
    labels = np.array([0, 1, 0])
    scores = [np.eye(2, dtype=np.float32)[labels] * 5, np.zeros((3, 2), np.float32)]
    ensemble = Ensemble.fit(scores, labels)
    assert min(ensemble.weights) > 0 and np.isfinite(ensemble.weights).all()
    assert max(ensemble.temperatures) <= np.exp(6) * 1.001 and ensemble.sharpness <= np.exp(3) * 1.001
    assert (ensemble.combine(scores).argmax(axis=1) == labels).all()


@pytest.mark.parametrize(
    ("temperatures", "sharpness"),
    [
        ((1.0,), 1.0),
        ((1.0, 1.0, 1.0), 1.0),
        ((1.0, 0.0), 1.0),
        ((1.0, 1.0), -1.0),
        ((1.0, np.nan), 1.0),
    ],
)
def test_one_positive_number_for_each_member(temperatures: Any, sharpness: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        Ensemble(temperatures, sharpness)


def test_an_unknown_member_is_refused() -> None:
    with pytest.raises(ValueError):
        Ensemble().alone("tenor", np.zeros((1, 2), np.float32))
