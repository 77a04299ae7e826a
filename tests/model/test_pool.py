"""The pool finds out which voice to trust, and how far."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scvec.model.pool import PRIORS, VOICES, Pool, log_softmax

from scvec.model.metrics import expected_calibration_error

N_CLASSES = 4
EVEN = (1 / len(VOICES),) * len(VOICES)


def voice(labels: Any, strength: float, seed: int, scale: float = 1.0) -> Any:
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


def test_the_good_voice_gets_most_and_the_useless_one_nearly_nothing() -> None:
    labels = draw(800, 0)
    noise = np.random.default_rng(9).normal(size=(800, N_CLASSES)).astype(np.float32)
    scores = [noise, voice(labels, 2.5, 1), voice(labels, 1.0, 2), noise[::-1], noise[:, ::-1]]
    pool = Pool.fit(scores, labels, prior=EVEN, pull=0.01)
    assert sum(pool.shares) == pytest.approx(1.0)
    assert pool.shares[1] > 0.5 > pool.shares[2] > 0.1 > 0.01 > max(pool.shares[0], pool.shares[3])
    # What counts is what a voice adds to the sum: the spread of its scores times its weight.
    push = [w * s.std() for w, s in zip(pool.weights, scores, strict=True)]
    assert push[0] < 0.03 * push[1]


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_temperatures_undo_the_scale_of_a_voice(scale: float) -> None:
    labels, unseen = draw(1500, 0), draw(1500, 1)
    voices = [voice(labels, 1.5, seed, s) for seed, s in ((1, scale), (2, 1.0), (3, 1.0), (4, 1.0), (5, 1.0))]
    pool = Pool.fit(voices, labels)
    # Balanced classes: the sampling weights are even, and the factor that undoes the scale is known.
    assert pool.temperatures[0] == pytest.approx(1 / scale, rel=0.15)
    later = voice(unseen, 1.5, 9, scale)

    def ece(p: Any) -> float:
        return expected_calibration_error(p.max(axis=1), p.argmax(axis=1) == unseen)

    before, after = ece(np.exp(log_softmax(later))), ece(pool.alone("head", later))
    assert after < 0.05
    if scale != 1.0:
        assert after < 0.5 * before


def test_the_pool_is_calibrated_on_other_cells_and_no_worse_than_its_best_voice() -> None:
    labels, unseen = draw(1500, 0), draw(3000, 1)
    strengths, scales = (1.2, 1.6, 0.8, 1.0, 0.5), (8.0, 0.1, 1.0, 2.0, 1.0)
    seen = [voice(labels, s, i, k) for i, (s, k) in enumerate(zip(strengths, scales, strict=True))]
    new = [voice(unseen, s, 50 + i, k) for i, (s, k) in enumerate(zip(strengths, scales, strict=True))]
    pool = Pool.fit(seen, labels, prior=EVEN)
    p = pool.combine(new)
    correct = p.argmax(axis=1) == unseen
    assert expected_calibration_error(p.max(axis=1), correct) < 0.04
    best = max((s.argmax(axis=1) == unseen).mean() for s in new)
    assert correct.mean() > best + 0.03


def test_confidence_holds_for_cells_as_they_come() -> None:
    # 19 in 20 cells are of one class, and the voices exaggerate about it alone: rare cells are lifted for
    # learning the weights, but in the confidence each cell counts once.
    rng = np.random.default_rng(0)
    labels = (rng.random(3000) < 0.05).astype(np.int64)
    loud = np.where(labels == 0, 4.0, 0.5)[:, None]
    scores = [(voice(labels, 1.0, seed) * loud).astype(np.float32) for seed in (1, 2, 3, 4, 5)]
    p = Pool.fit(scores, labels).combine(scores)
    rows = np.arange(3000)
    loss = -np.log(p[rows, labels]).mean()
    log_p = np.log(np.maximum(p.astype(np.float64), 1e-30))
    for factor in (0.97, 1.03):
        assert -log_softmax(factor * log_p)[rows, labels].mean() > loss


def test_combine_is_a_weighted_sum_of_scores() -> None:
    pool = Pool((0.5, 2.0, 0.0, 0.0, 0.0), (1.0, 3.0, 1.0, 1.0, 1.0), (0.2, 0.8, 0.0, 0.0, 0.0))
    rng = np.random.default_rng(0)
    scores = [rng.normal(size=(7, N_CLASSES)).astype(np.float32) * 10 for _ in VOICES]
    z = 0.5 * scores[0].astype(float) + 2.0 * scores[1]
    expected = np.exp(z - z.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    got = pool.combine(scores)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_allclose(got.sum(axis=1), 1.0, atol=1e-5)
    alone = np.exp(3.0 * (scores[1].astype(float) - scores[1].max(axis=1, keepdims=True)))
    np.testing.assert_allclose(
        pool.alone("knn", scores[1]), alone / alone.sum(axis=1, keepdims=True), atol=1e-6
    )


def test_scores_out_of_reach_have_no_probability() -> None:
    labels = draw(300, 0)
    scores = [
        voice(labels, s, i, k)
        for i, (s, k) in enumerate([(1.0, 30.0), (1.5, 0.02), (0.5, 1.0), (1.0, 5.0), (0.7, 1.0)])
    ]
    pool = Pool.fit(scores, labels)
    for s in scores:
        s[:, 2] = -1e4
    assert pool.combine(scores)[:, 2].max() < 1e-6
    for name, s in zip(VOICES, scores, strict=True):
        assert pool.alone(name, s)[:, 2].max() < 1e-6


def test_few_cells_silence_no_voice_and_one_voice_that_is_always_right_is_no_trouble() -> None:
    labels = np.array([0, 1, 0])
    mute = np.zeros((3, 2), np.float32)
    scores = [np.eye(2, dtype=np.float32)[labels] * 5, mute, mute, mute, mute]
    pool = Pool.fit(scores, labels, prior=EVEN)
    assert min(pool.weights) > 0.1 and np.isfinite(pool.weights + pool.temperatures).all()
    assert (pool.combine(scores).argmax(axis=1) == labels).all()


def test_one_number_for_each_voice() -> None:
    with pytest.raises(ValueError, match="per voice"):
        Pool((1.0, 1.0), (1.0, 1.0), (0.5, 0.5))
    with pytest.raises(ValueError):
        Pool((1.0,) * 4, (1.0,) * 4, EVEN).alone("tenor", np.zeros((1, 2), np.float32))


@pytest.mark.parametrize("regime", PRIORS)
def test_weights_are_drawn_to_the_prior_the_more_the_harder_the_pull(regime: str) -> None:
    labels = draw(400, 0)
    scores = [voice(labels, 1.5, seed) for seed in (1, 2, 3, 5)] + [voice(labels, 3.0, 4)]
    prior = np.array(PRIORS[regime])
    assert prior.sum() == pytest.approx(1.0) and len(prior) == len(VOICES)
    away = []
    for pull in (0.01, 1.0, 100.0):
        pool = Pool.fit(scores, labels, prior=PRIORS[regime], pull=pull)
        weights = np.array(pool.weights) / np.array(pool.temperatures)
        assert ((weights == 0) == (prior == 0)).all()  # a voice that is not expected is not heard
        away.append(np.abs(weights / weights.sum() - prior).max())
    assert away[0] > away[1] > away[2] and away[2] < 0.01
