"""Tests of the shift of a query: the common part is subtracted, a missing type is not."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.model.novelty import MIN_CELLS, Shift

N_CLASSES = 6
Array = np.ndarray
#: The threshold that 5% of cells of known types exceed, in standard deviations.
THRESHOLD = 1.645
#: Shift of each signal by another platform.
PLANTED = np.array([2.0, 1.0, 0.5])


def taken(n: int) -> float:
    """Return the fraction of the common part that is subtracted, for n cells and enough classes."""
    return n / (n + 10.0)


def query(n: int, seed: int = 0, n_classes: int = N_CLASSES, offset: Any = PLANTED) -> tuple[Array, Array]:
    """Signals of n known cells in each class with a common shift, and the classes."""
    given = np.repeat(np.arange(n_classes), n)
    return np.random.default_rng(seed).normal(size=(len(given), 3)) + offset, given


def estimate(signals: Array, given: Array, n_classes: int = N_CLASSES, probability: float = 0.9) -> Shift:
    return Shift.estimate(signals, given, np.full(len(given), probability), n_classes)


def test_what_all_classes_have_in_common_is_found_and_taken() -> None:
    signals, given = query(800)
    shift = estimate(signals, given)
    np.testing.assert_allclose(shift.offsets, np.tile(PLANTED, (N_CLASSES, 1)), atol=0.15)
    assert (shift.n_cells, shift.n_supporting) == (800 * N_CLASSES, N_CLASSES)
    rest = shift.relative(signals, given)
    np.testing.assert_allclose(rest, signals - shift.offsets[given])
    assert rest.dtype == np.float64 and abs(np.quantile(rest, 0.3) + 0.5244) < 0.1
    assert "2,400 cells" in estimate(*query(400)).message and "6 labels" in shift.message


def test_a_query_like_the_reference_keeps_its_signals() -> None:
    shift = estimate(*query(800, offset=0.0))
    assert shift.offsets.max() < 0.1 and shift.size < 0.1 and shift.message == ""


def test_from_a_class_that_moved_less_less_is_taken_and_never_more_from_one_that_moved_more() -> None:
    signals, given = query(2000)
    signals[given == 1] -= PLANTED / 2
    signals[given == 2] += 3.0
    shift = estimate(signals, given)
    np.testing.assert_allclose(shift.offsets[1], PLANTED / 2, atol=0.15)
    np.testing.assert_allclose(shift.offsets[2], PLANTED, atol=0.15)
    # A label without a cell gets the whole common part as offset. No label gets more.
    few = estimate(signals, np.where(given == 1, 0, given))
    assert (few.offsets[1] >= few.offsets).all()
    np.testing.assert_allclose(few.offsets[1], PLANTED, atol=0.15)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("offset", [0.0, 2.0])
def test_a_missing_type_is_not_explained_away(fraction: float, offset: float) -> None:
    signals, given = query(200, offset=offset)
    n = int(fraction / (1 - fraction) * len(given))
    # All cells of the missing type get the label of one known type, at various distances from it.
    new = np.random.default_rng(1).normal(size=(n, 3)) + offset + 5.0
    both, classes = np.concatenate([signals, new]), np.concatenate([given, np.zeros(n, np.int64)])
    rest = estimate(both, classes).relative(both, classes)
    alarms = rest.mean(axis=1) > THRESHOLD / np.sqrt(3)
    known = np.arange(len(both)) < len(given)
    assert alarms[known].mean() < 0.1
    assert alarms[~known].mean() > 0.95 if n else not alarms[~known].any()
    assert n == 0 or rest[~known].mean() == pytest.approx(5.0, abs=0.6)


def test_two_missing_types_in_two_of_six_labels_are_still_seen() -> None:
    signals, given = query(100)
    signals[given < 2] += 5.0
    rest = estimate(signals, given).relative(signals, given)
    assert (rest[given < 2].mean(axis=0) > 4.5).all() and (np.abs(rest[given >= 2].mean(axis=0)) < 0.5).all()


@pytest.mark.parametrize("n", [1, 10_000])
def test_one_label_alone_has_nothing_in_common(n: int) -> None:
    signals = np.full((n, 3), 7.0)
    shift = estimate(signals, np.full(n, 2))
    assert (shift.offsets == 0).all() and shift.message == ""
    np.testing.assert_array_equal(shift.relative(signals, np.full(n, 2)), signals)


def test_with_few_cells_or_few_labels_less_is_taken() -> None:
    # With equal cells the common part is known exactly.
    def offset(n: int, n_classes: int) -> float:
        given = np.repeat(np.arange(n_classes), n)
        shift = estimate(np.full((len(given), 3), 3.0 - 0.5244), given)
        return float(shift.offsets[0, 0])

    assert offset(MIN_CELLS - 1, 6) == 0.0
    assert offset(8, 4) == pytest.approx(3.0 * taken(32))
    assert offset(100, 4) == pytest.approx(3.0 * taken(400))
    assert offset(100, 6) == pytest.approx(3.0 * taken(600))
    assert offset(100, 3) == pytest.approx(3.0 * taken(300) * 2 / 3)
    assert offset(100, 2) == pytest.approx(3.0 * taken(200) / 3)


def test_unsure_cells_do_not_count() -> None:
    signals, given = query(100)
    assert estimate(signals, given, probability=0.49).n_cells == 0
    sure = np.where(np.arange(len(given)) % 2 == 0, 0.9, 0.1)
    half = signals.copy()
    half[sure < 0.5] = 1e6
    a = Shift.estimate(half, given, sure, N_CLASSES)
    b = estimate(signals[::2], given[::2])
    np.testing.assert_array_equal(a.offsets, b.offsets)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(0, 60), st.floats(-5, 5))
def test_nothing_is_ever_added_and_order_does_not_matter(seed: int, n: int, offset: float) -> None:
    rng = np.random.default_rng(seed)
    signals = rng.normal(size=(n, 3)) * 3 + offset
    given, sure = rng.integers(0, N_CLASSES, n), rng.random(n)
    shift = Shift.estimate(signals, given, sure, N_CLASSES)
    assert shift.offsets.shape == (N_CLASSES, 3) and np.isfinite(shift.offsets).all()
    assert (shift.offsets >= 0).all()
    order = rng.permutation(n)
    again = Shift.estimate(signals[order], given[order], sure[order], N_CLASSES)
    np.testing.assert_array_equal(again.offsets, shift.offsets)


def test_a_query_nearer_than_held_out_cells_is_not_moved_away() -> None:
    assert (estimate(*query(500, offset=-3.0)).offsets == 0).all()


def test_no_shift_changes_nothing() -> None:
    signals, given = query(5)
    none = Shift.none(N_CLASSES)
    np.testing.assert_array_equal(none.relative(signals, given), signals)
    assert none.size == 0.0 and none.message == ""


def test_json() -> None:
    shift = estimate(*query(50))
    stored = json.loads(json.dumps(shift.to_dict()))
    assert (stored["n_cells"], stored["n_classes"]) == (300, 6)
    np.testing.assert_allclose(stored["offsets"], shift.offsets, atol=1e-4)
    assert stored["size"] == pytest.approx(shift.offsets.mean(), abs=1e-4)
