"""Tests of novelty scores: the requested false positive rate, and the reference distributions."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from scvec.base.types import CellChunk
from scvec.model.calibration import _new_to_held_out
from scvec.model.novelty import N_QUANTILES, PRIOR_CELLS, WEIGHTS, Novelty, contrast, depth, signals

Array = np.ndarray


def sample(n: int, seed: int, n_classes: int = 3) -> tuple[Array, Array, Array]:
    """Signals, depths and classes. The first signal falls with depth; the last has a mean per class."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, n_classes, n)
    depths = rng.normal(6.0, 0.5, n)
    found = rng.normal(size=(n, 3)) * [0.05, 0.3, 0.5]
    found[:, 0] += 0.6 - 0.3 * (depths - 6.0)
    found[:, 2] += 2.0 * classes - 5.0
    return found, depths, classes


def score(novelty: Novelty, found: Array, depths: Array, classes: Array, **options: float) -> Array:
    return novelty.score(novelty.standardised(found, depths, classes), **options)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(30, 500), st.sampled_from([0.02, 0.05, 0.2]))
def test_the_threshold_gives_the_stated_rate(seed: int, n: int, rate: float) -> None:
    found, depths, classes = sample(n, seed)
    novelty = Novelty.fit(found, depths, classes, 4)
    alarms = (score(novelty, found, depths, classes, rate=rate) > 0.5).mean()
    assert abs(alarms - rate) <= 1.5 / n + 1.0 / N_QUANTILES


def test_new_cells_of_the_same_kind_raise_as_many_alarms() -> None:
    novelty = Novelty.fit(*sample(4000, 0), 3)
    found, depths, classes = sample(4000, 1)
    for rate in (0.02, 0.05, 0.2):
        assert (score(novelty, found, depths, classes, rate=rate) > 0.5).mean() == pytest.approx(
            rate, abs=0.025
        )


def test_a_shallow_cell_is_not_new_for_its_low_cosine() -> None:
    novelty = Novelty.fit(*sample(4000, 0), 3)
    found, depths, classes = sample(4000, 1)
    alarms = score(novelty, found, depths, classes) > 0.5
    shallow = depths < np.quantile(depths, 0.1)
    assert alarms[shallow].mean() < 0.12
    # The curve is not extrapolated beyond the depths of the held-out cells.
    extreme = score(novelty, found[:1], np.array([-1e6]), classes[:1])
    np.testing.assert_array_equal(extreme, score(novelty, found[:1], novelty.range[:1], classes[:1]))


def test_cosines_in_the_cell_space_are_compared_within_the_class() -> None:
    # The cells of class 2 lie wide of its mean as a rule; so far away in class 0 is a sign.
    found, depths, classes = sample(3000, 0)
    novelty = Novelty.fit(found, depths, classes, 3)
    known, new = sample(600, 1), sample(200, 2)
    keep, first = known[2] == 2, new[2] == 0
    new[0][:, 2] = known[0][keep, 2].mean()
    a = novelty.standardised(known[0][keep], known[1][keep], known[2][keep])
    b = novelty.standardised(new[0][first], new[1][first], new[2][first])
    truth, z = np.repeat([0, 1], [keep.sum(), first.sum()]), np.concatenate([a, b])
    assert roc_auc_score(truth, z[:, 2]) > 0.999
    # The other two signals are uninformative here. With this weight, eight standard deviations of the signal
    # are 1.75 of the mean, which gives an AUROC of 0.89.
    assert roc_auc_score(truth, novelty.score(z)) == pytest.approx(0.89, abs=0.04)
    assert roc_auc_score(truth, np.concatenate([known[0][keep, 2], new[0][first, 2]])) < 0.6


def test_mean_and_spread_within_a_class_by_hand() -> None:
    outside = np.array([1.0, 3.0, 10.0])
    found = np.column_stack([np.zeros(3), np.zeros(3), outside])
    novelty = Novelty.fit(found, np.zeros(3), np.array([0, 0, 1]), 3)
    overall, spread = outside.mean(), outside.std()
    mean = np.array([4 + 5 * overall, 10 + 5 * overall, 5 * overall]) / np.array([7, 6, 5])
    np.testing.assert_allclose(novelty.mean[:, 2], mean)
    squares = [(1 - mean[0]) ** 2 + (3 - mean[0]) ** 2, (10 - mean[1]) ** 2, 0.0]
    sd = np.sqrt((np.array(squares) + 5 * spread**2) / np.array([7, 6, 5]))
    np.testing.assert_allclose(novelty.sd[:, 2], sd)
    assert PRIOR_CELLS == 5.0


def test_scores_increase_with_every_signal_and_stay_between_0_and_1() -> None:
    novelty = Novelty.fit(*sample(200, 1), 3)
    for sign in range(3):
        found = np.zeros((5, 3))
        found[:, sign] = [0, 0.5, 1, 3, 1e9]
        got = score(novelty, found, np.full(5, 6.0), np.zeros(5, np.int64))
        assert (np.diff(got[:4]) > 0).all() and got.min() >= 0 and got.max() <= 1
        assert got.dtype == np.float32


def test_a_class_never_given_and_signals_all_alike() -> None:
    novelty = Novelty.fit(np.full((9, 3), 2.0), np.full(9, 5.0), np.zeros(9, np.int64), 3)
    got = score(novelty, np.array([[2.0] * 3, [2.0] * 3, [5.0] * 3]), np.full(3, 5.0), np.array([0, 2, 2]))
    assert np.isfinite(got).all() and got[2] > 0.99 and not (got[:2] > 0.5).any()


def test_signals_have_their_weights() -> None:
    novelty = Novelty(np.zeros(3), np.zeros(2), np.zeros((1, 3)), np.ones((1, 3)), np.zeros(5))
    assert WEIGHTS.tolist() == [2.0, 1.0, 0.5]
    np.testing.assert_allclose(novelty.whole_signal(np.eye(3)), np.array([2.0, 1.0, 0.5]) / 3.5)


def test_what_is_taken_before_lowers_the_score() -> None:
    novelty = Novelty.fit(*sample(2000, 0), 3)
    z = novelty.standardised(*sample(500, 1))
    assert (novelty.score(z + np.array([2.0, 1.0, 0.5])) > novelty.score(z)).all()
    # Predictions have signals in single precision.
    np.testing.assert_allclose(novelty.score(z.astype(np.float32)), novelty.score(z), atol=1e-5)


def test_standardised_by_hand() -> None:
    curve, mean, sd = np.array([1.0, 2.0, 0.0]), np.array([[1.0, 2, 3], [4, 5, 6]]), np.full((2, 3), 2.0)
    novelty = Novelty(curve, np.array([0.0, 10.0]), mean, sd, np.zeros(5))
    found = np.array([[10.0, 4, 5], [30.0, 5, 0]])
    got = novelty.standardised(found, np.array([3.0, 99.0]), np.array([0, 1]))
    np.testing.assert_allclose(got, [[(10 - 7 - 1) / 2, 1, 1], [(30 - 21 - 4) / 2, 0, -3]])
    assert found[0, 0] == 10.0


def test_a_cosine_far_off_is_enough_by_itself() -> None:
    found, depths, classes = sample(3000, 0)
    novelty = Novelty.fit(found, depths, classes, 3)
    strange = found.copy()
    strange[:, 0] += 0.5  # ten standard deviations
    strange[:, 1:] -= 3.0 * found[:, 1:].std(axis=0)
    assert (score(novelty, strange, depths, classes) > 0.5).all()
    without = replace(novelty, offset=float("inf"))
    assert not (score(without, strange - [0.25, 0, 0], depths, classes) > 0.5).all()
    # The cosine rule causes a part of the false positives, but their total rate stays as requested.
    assert (score(novelty, found, depths, classes) > 0.5).mean() == pytest.approx(0.05, abs=0.004)


def test_thresholds_come_nearer_where_new_cells_are_expected_to() -> None:
    given = sample(3000, 0)
    plain, near = Novelty.fit(*given, 3), Novelty.fit(*given, 3, shrink=0.75)
    middle = plain.threshold(0.5)
    assert near.threshold(0.5) == pytest.approx(middle, abs=1e-9)
    for rate in (0.01, 0.05, 0.2):
        assert near.threshold(rate) - middle == pytest.approx(0.75 * (plain.threshold(rate) - middle))
    assert near.threshold(0.8) == plain.threshold(0.8)  # quantiles below the median do not change


@pytest.mark.parametrize(("n", "expected"), [(0, 1.0), (1, 1.0), (2, 0.75), (3, 8 / 9), (6, 14 / 15)])
def test_how_much_nearer_follows_from_the_number_of_batches(n: int, expected: float) -> None:
    assert _new_to_held_out(n, min(n, 3)) == pytest.approx(expected)


def test_json_round_trip() -> None:
    novelty = Novelty.fit(*sample(50, 1), 3)
    again = Novelty.from_dict(json.loads(json.dumps(novelty.to_dict())))
    new = sample(20, 2)
    np.testing.assert_array_equal(score(again, *new), score(novelty, *new))
    assert again.threshold(0.1) == novelty.threshold(0.1) > novelty.threshold(0.2)


def test_a_reference_distribution_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="n_signals"):
        Novelty(np.zeros(3), np.zeros(2), np.zeros(3), np.ones(3), np.zeros(5))


def test_signals_by_hand() -> None:
    distances = np.array([[[0.1, 1.0, 0.9], [0.8, 7.0, 0.3]], [[0.2, 0.0, 0.4], [0.5, 2.0, 0.6]]], np.float32)
    before = distances.copy()
    got = signals(distances, np.array([1, 0]))
    np.testing.assert_allclose(got, [[0.8, np.log(7.0), 0.3], [0.2, np.log(1e-6), 0.4]], rtol=1e-5)
    np.testing.assert_array_equal(distances, before)


def test_depth_is_that_of_all_genes() -> None:
    X = sp.csr_matrix(np.array([[1, 1, 0, 0], [1, 0, 0, 0]], np.float32))
    half = depth(CellChunk(X, np.array([True, True, False, False])))
    np.testing.assert_allclose(half, np.log1p([4, 2]))
    np.testing.assert_allclose(depth(CellChunk(X, np.ones(4, bool))), np.log1p([2, 1]))


def in_query(means: Array, n: int, seed: int, noise: float = 1.0, shift: float = 0.0) -> sp.csr_matrix:
    """Return n cells of each class: its mean, noise, and a shift that all of them share."""
    rng = np.random.default_rng(seed)
    cells = np.repeat(means, n, axis=0) + rng.normal(0, noise, (n * len(means), means.shape[1]))
    return sp.csr_matrix((cells + shift * rng.normal(size=means.shape[1])).astype(np.float32))


CONTRASTS = np.random.default_rng(0).normal(3.0, 1.0, (6, 2000)).astype(np.float32)


@pytest.mark.parametrize(("noise", "shift"), [(0.5, 0.0), (3.0, 0.0), (1.0, 2.0)])
def test_labels_differ_as_much_in_cells_of_the_same_types(noise: float, shift: float) -> None:
    """Whatever the noise, and whatever shifts all cells."""
    assert contrast(in_query(CONTRASTS, 30, 1, noise, shift), CONTRASTS) == pytest.approx(1.0, abs=0.1)
    halved = CONTRASTS.mean(axis=0) + (CONTRASTS - CONTRASTS.mean(axis=0)) / 2
    assert contrast(in_query(halved, 30, 1, noise, shift), CONTRASTS) == pytest.approx(0.5, abs=0.1)


def test_labels_do_not_differ_in_cells_of_other_types_or_of_one() -> None:
    others = np.random.default_rng(7).normal(3.0, 1.0, CONTRASTS.shape).astype(np.float32)
    assert abs(contrast(in_query(others, 30, 1), CONTRASTS)) < 0.1
    assert abs(contrast(in_query(CONTRASTS[:1], 30, 1), CONTRASTS)) < 0.1


def test_a_contrast_needs_two_cells_and_two_classes() -> None:
    cells = in_query(CONTRASTS, 1, 1)
    assert np.isnan(contrast(cells[:1], CONTRASTS)) and np.isnan(contrast(cells, CONTRASTS[:1]))
    # A class without cells is no class.
    empty = np.vstack([CONTRASTS, np.zeros_like(CONTRASTS[:1])])
    assert contrast(cells, empty) == contrast(cells, CONTRASTS)
