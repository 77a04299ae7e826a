"""Novelty: the stated rate of false alarms, and a yardstick for each class."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.annotate.novelty import PRIOR_CELLS, Novelty, mean_distance, signals
from scvec.types import Neighbors


def fit(distances: np.ndarray, predicted: np.ndarray, n_classes: int, **options: float) -> Novelty:
    return Novelty.fit(distances[:, None].astype(np.float64), predicted, n_classes, **options)


def test_mean_distance_leaves_padding_out() -> None:
    neighbors = Neighbors(
        np.array([[3, 5, -1], [1, -1, -1], [-1, -1, -1]]),
        np.array([[4.0, 16.0, np.inf], [9.0, np.inf, np.inf], [np.inf] * 3], np.float32),
    )
    got = mean_distance(neighbors)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [3.0, 3.0, 0.0])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(30, 500), st.sampled_from([0.02, 0.05, 0.2]))
def test_the_threshold_gives_the_stated_rate(seed: int, n: int, rate: float) -> None:
    rng = np.random.default_rng(seed)
    predicted = rng.integers(0, 3, n)
    distances = (rng.gamma(3.0, 1.0, n) * np.array([0.1, 1.0, 5.0])[predicted]).astype(np.float32)
    novelty = fit(distances, predicted, 4, false_novel_rate=rate)
    alarms = (novelty.score((distances)[:, None], predicted) > 0.5).mean()
    assert abs(alarms - rate) <= 1.5 / n + 1e-9


def test_mean_and_spread_by_hand() -> None:
    d = np.array([1.0, 3.0, 10.0], np.float32)
    novelty = fit(d, np.array([0, 0, 1]), 3)
    overall, spread = d.mean(), d.std()
    mean = np.array([4 + 5 * overall, 10 + 5 * overall, 5 * overall]) / np.array([7, 6, 5])
    np.testing.assert_allclose(novelty.mean[:, 0], mean, rtol=1e-6)
    squares = [(1 - mean[0]) ** 2 + (3 - mean[0]) ** 2, (10 - mean[1]) ** 2, 0.0]
    np.testing.assert_allclose(
        novelty.sd[:, 0], np.sqrt((np.array(squares) + 5 * spread**2) / np.array([7, 6, 5])), rtol=1e-6
    )
    assert PRIOR_CELLS == 5.0


def test_the_yardstick_of_the_class_beats_plain_distance() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    known = np.repeat([0, 1], 300)  # a tight class and a loose one

    def distances(classes: np.ndarray) -> np.ndarray:
        return rng.normal(np.array([1.0, 6.0])[classes], np.array([0.15, 1.0])[classes]).astype(np.float32)

    novelty = fit(distances(known), known, 2)
    # New cells look like the tight class and lie outside of it, yet nearer than the loose class's own cells.
    near_tight = np.zeros(100, np.int64)
    new = rng.normal(2.5, 0.3, 100).astype(np.float32)
    seen = distances(known)
    truth = np.repeat([0, 1], [600, 100])
    ours = np.concatenate([novelty.score((seen)[:, None], known), novelty.score((new)[:, None], near_tight)])
    plain = np.concatenate([seen, new])
    assert roc_auc_score(truth, ours) > 0.97 > 0.6 > roc_auc_score(truth, plain)
    assert (novelty.score((new)[:, None], near_tight) > 0.5).mean() > 0.9
    assert (novelty.score((seen)[:, None], known) > 0.5).mean() < 0.1


def test_scores_rise_with_distance_and_stay_between_0_and_1() -> None:
    rng = np.random.default_rng(1)
    novelty = fit(rng.random(50).astype(np.float32), np.zeros(50, np.int64), 1)
    got = novelty.score((np.array([0, 0.5, 1, 3, 1e9], np.float32))[:, None], np.zeros(5, np.int64))
    assert (np.diff(got) > 0).all() and got.min() >= 0 and got.max() <= 1
    assert got.dtype == np.float32


def test_a_class_never_predicted_and_distances_all_alike() -> None:
    novelty = fit(np.full(9, 2.0, np.float32), np.zeros(9, np.int64), 3)
    got = novelty.score((np.array([2.0, 2.0, 5.0], np.float32))[:, None], np.array([0, 2, 2]))
    assert np.isfinite(got).all() and got[2] > 0.99 and not (got[:2] > 0.5).any()


def test_json_round_trip() -> None:
    rng = np.random.default_rng(1)
    novelty = fit(rng.random(50).astype(np.float32), rng.integers(0, 3, 50), 3)
    again = Novelty.from_dict(json.loads(json.dumps(novelty.to_dict())))
    d, c = rng.random(20).astype(np.float32), rng.integers(0, 3, 20)
    np.testing.assert_array_equal(again.score(d[:, None], c), novelty.score((d)[:, None], c))
    assert again.threshold == pytest.approx(novelty.threshold)


def test_a_yardstick_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="n_signals"):
        Novelty(np.zeros(3), np.ones(3), 1.0)


def test_signals_by_hand() -> None:
    neighbors = Neighbors(np.array([[0, 1]]), np.array([[1.0, 9.0]], np.float32))
    got = signals(neighbors, np.array([[0.9, 0.2]], np.float32), np.array([[0.25, 0.75]], np.float32))
    np.testing.assert_allclose(got, [[2.0, 0.8, np.log(0.2501 / 0.7501)]], rtol=1e-5)


def test_signals_are_weighed_alike_whatever_their_units() -> None:
    rng = np.random.default_rng(0)
    found, predicted = rng.normal(size=(200, 3)), np.zeros(200, np.int64)
    a, b = (Novelty.fit(found * unit, predicted, 1) for unit in (np.ones(3), np.array([1e-3, 1.0, 1e3])))
    np.testing.assert_allclose(
        a.score(found, predicted), b.score(found * [1e-3, 1.0, 1e3], predicted), rtol=1e-3
    )
