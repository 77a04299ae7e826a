"""Folds, and what is held out of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scvec.model.crossfit import DRAWS, HeldOut, crossfit, make_folds, splits
from scvec.model.pool import VOICES
from scvec.model.voices import Heard

from scvec.model.novelty import depth
from scvec.model.shift import NOVELTY_REGIMES, REGIMES
from scvec.types import CellChunk, Neighbors


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(2, 7), st.integers(2, 4))
def test_whole_batches_are_held_out(seed: int, n_batches: int, n_folds: int) -> None:
    rng = np.random.default_rng(seed)
    batches = rng.permutation(np.repeat(np.arange(n_batches), rng.integers(1, 30, n_batches))).astype(str)
    folds, how, notes = make_folds(np.zeros(len(batches), np.int64), batches, n_folds=n_folds, seed=seed)
    assert how == "batch" and notes == []
    for batch in np.unique(batches):
        assert len(set(folds[batches == batch])) == 1
    assert set(folds) == set(range(min(n_folds, n_batches)))


def test_batches_are_spread_over_folds_by_size() -> None:
    batches = np.repeat(["a", "b", "c", "d"], [60, 30, 20, 10])
    folds, _, _ = make_folds(np.zeros(120, np.int64), batches, n_folds=2, seed=0)
    assert np.bincount(folds).tolist() == [60, 60]


@pytest.mark.parametrize("batches", [None, np.full(97, "only")])
def test_without_batches_each_class_is_spread_over_the_folds(batches: Any) -> None:
    labels = np.concatenate([np.repeat([0, 1, 2], [60, 30, 4]), [-1] * 3])
    folds, how, notes = make_folds(labels, batches, n_folds=3, seed=0)
    assert how == "cells" and len(notes) == 1 and "--batch-key" in notes[0]
    for k, size in enumerate([60, 30, 4]):
        counts = np.bincount(folds[labels == k], minlength=3)
        assert counts.sum() == size and counts.max() - counts.min() <= 1
    again = make_folds(labels, batches, n_folds=3, seed=0)[0]
    assert (folds == again).all() and (folds != make_folds(labels, batches, n_folds=3, seed=1)[0]).any()


class Spy:
    """Voices that note which cells they were trained on and asked about; gene 0 holds the cell's number."""

    def __init__(self, n_classes: int = 3) -> None:
        self.n_classes = n_classes
        self.trained: list[tuple[list[int], list[int]]] = []
        self.asked: list[list[tuple[int, Any]]] = []

    def fit(self, cells: CellChunk, labels: Any) -> Spy:
        self.trained.append((cells.X[:, 0].toarray().ravel().astype(int).tolist(), labels.tolist()))
        self.asked.append([])
        return self

    def listen(self, chunk: CellChunk, n_neighbors: int) -> Heard:
        self.asked[-1].append((n_neighbors, chunk))
        n = len(chunk)
        distances = np.full((n, n_neighbors), float(len(self.asked)), np.float32)
        scores = [np.full((n, self.n_classes), i, np.float32) for i in range(len(VOICES))]
        neighbors = Neighbors(np.zeros((n, n_neighbors), np.int64), distances)
        far = np.full((n, self.n_classes), float(len(self.asked)), np.float32)
        found = np.diff(chunk.X.indptr).astype(np.int64)
        return Heard(np.zeros((n, 2), np.float32), neighbors, scores, far, found, depth(chunk))


def listened(cells: CellChunk, labels: Any, folds: Any, spy: Spy, **options: Any) -> HeldOut:
    voices = (spy.fit(cells.take(train), labels[train]) for _, train, _ in splits(labels, folds))
    return crossfit(cells, labels, folds, voices, **options)


#: Shifts that are simulated: those of the regimes, and those that novelty is judged by.
SHIFTED = {r.name for r in (*REGIMES.values(), *NOVELTY_REGIMES.values()) if r.shifts}


def numbered(n: int, n_genes: int = 40) -> CellChunk:
    X = np.random.default_rng(0).poisson(1.0, (n, n_genes)).astype(np.float32)
    X[:, 0] = np.arange(1, n + 1)
    return CellChunk(sp.csr_matrix(X), np.ones(n_genes, bool))


def test_no_cell_is_judged_by_voices_trained_on_it() -> None:
    labels = np.arange(30) % 3
    labels[[4, 11]] = -1
    folds = np.arange(30) // 3 % 3
    spy = Spy()
    held = listened(numbered(30), labels, folds, spy, n_neighbors=4)
    assert len(spy.trained) == 3
    heard = []
    for (trained, codes), asked in zip(spy.trained, spy.asked, strict=True):
        assert [labels[i - 1] for i in trained] == codes and -1 not in codes
        same = [chunk for _, chunk in asked if len(chunk.X.data) and chunk.measured.all()]
        unseen = same[0].X[:, 0].toarray().ravel().astype(int).tolist()
        assert not set(trained) & set(unseen)
        assert len(trained) + len(unseen) == 28
        heard += unseen
        assert {k for k, _ in asked} == {4}
        # Once as they are, and some draws of every shift: different draws, else they teach nothing new.
        assert len(asked) == 1 + DRAWS * len(SHIFTED)
        assert len({chunk.measured.tobytes() for _, chunk in asked}) == len(asked)
    assert sorted(heard) == [i + 1 for i in range(30) if labels[i] >= 0]
    assert [labels[i - 1] for i in heard] == held.labels["same"].tolist()
    for name in REGIMES:
        n = 28 * (1 if name == "same" else DRAWS)
        assert held.labels[name].shape == held.neighbors[name].indices[:, 0].shape == (n,)
        assert [s.shape for s in held.scores[name]] == [(n, 3)] * len(VOICES)
        assert [float(s[0, 0]) for s in held.scores[name]] == list(range(len(VOICES)))
    # The neighbours of a cell are those that its own fold's voices found.
    np.testing.assert_allclose(np.unique(held.neighbors["same"].distances), [1, 2, 3], rtol=1e-6)
    # So are the distances to the classes; and it is known which fold that was.
    np.testing.assert_array_equal(held.distances["same"][:, 0], held.folds["same"] + 1)
    assert {name: len(v) for name, v in held.depths.items()} == {n: len(v) for n, v in held.labels.items()}


def test_cells_of_a_class_that_no_other_fold_has_are_left_out() -> None:
    labels = np.array([0, 1, 0, 1, 2, 2, 0, 1])
    folds = np.array([0, 0, 1, 1, 1, 1, 0, 0])
    held = listened(numbered(8), labels, folds, Spy(), n_neighbors=2)
    assert sorted(held.labels["same"].tolist()) == [0, 0, 0, 1, 1, 1]


def test_a_fold_that_leaves_one_class_to_train_on_is_passed_over() -> None:
    labels, folds = np.array([0, 0, 1, 1, 0]), np.array([0, 0, 1, 1, 1])
    spy = Spy()
    held = listened(numbered(5), labels, folds, spy, n_neighbors=1)
    # Fold 0 is judged by cells of classes 1 and 0; fold 1 would be by cells of class 0 alone.
    assert [sorted(t) for t, _ in spy.trained] == [[3, 4, 5]] and held.labels["same"].tolist() == [0, 0]


def test_nothing_to_hold_out() -> None:
    assert list(splits(np.array([0, 1, 2]), np.arange(3))) == []


def test_only_so_many_cells_are_looked_at_and_the_seed_says_which() -> None:
    labels, folds = np.arange(300) % 3, np.arange(300) // 3 % 3

    def seen(seed: int) -> list[int]:
        spy = Spy()
        held = listened(numbered(300), labels, folds, spy, n_neighbors=2, seed=seed, max_cells=60)
        assert len(held.labels["same"]) == 60
        return [i for asked in spy.asked for i in asked[0][1].X[:, 0].toarray().ravel().astype(int)]

    assert seen(1) == seen(1) != seen(2)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 4), min_size=2, max_size=3))
def test_no_stratum_is_held_out_as_a_whole(seed: int, n_batches: list[int]) -> None:
    rng = np.random.default_rng(seed)
    batches, strata = [], []
    for s, n in enumerate(n_batches):
        for b in range(n):
            size = int(rng.integers(6, 30))
            batches += [f"{s}-{b}"] * size
            strata += [f"species {s}"] * size
    order = rng.permutation(len(batches))
    batch, stratum = np.array(batches)[order], np.array(strata)[order]
    labels = rng.integers(0, 2, len(order))
    folds, how, notes = make_folds(labels, batch, strata=stratum, n_folds=3, seed=seed)
    for s, n in enumerate(n_batches):
        members = stratum == f"species {s}"
        assert len(set(folds[members])) >= 2
        if n > 1:
            assert all(len(set(folds[batch == f"{s}-{b}"])) == 1 for b in range(n))
    assert how == ("cells" if set(n_batches) == {1} else "batch")
    assert len(notes) == (1 in n_batches)
    if len(notes) and how == "batch":
        assert f"species {n_batches.index(1)}" in notes[0]
