"""Tests of folds, and of the scores of held-out cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.base.types import CellChunk, Neighbors
from scvec.model.classifiers import MEMBERS, Scores
from scvec.model.novelty import depth
from scvec.model.training import HeldOut, make_folds, score_held_out, splits


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


@pytest.mark.parametrize("batches", [None, np.repeat(["a", "b", "c"], 40)])
def test_copies_share_a_fold(batches: Any) -> None:
    labels = np.tile(np.repeat([0, 1], 20), 3)
    copies = np.arange(1, 121)
    copies[[45, 100]], copies[[7, 8, 119]], copies[50:60] = 5, -3, 0
    alone = make_folds(labels, batches, n_folds=3, seed=0)[0]
    folds = make_folds(labels, batches, n_folds=3, seed=0, copies=copies)[0]
    assert folds[4] == folds[45] == folds[100] == alone[4]
    assert folds[7] == folds[8] == folds[119] == alone[7]
    others = np.setdiff1d(np.arange(120), [45, 100, 8, 119])
    np.testing.assert_array_equal(folds[others], alone[others])


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


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 4))
def test_splits_hold_out_what_the_rest_can_name(seed: int, n: int, n_folds: int) -> None:
    rng = np.random.default_rng(seed)
    labels, folds = rng.integers(-1, 4, n), rng.integers(0, n_folds, n)
    for fold, train, test in splits(labels, folds):
        assert (folds[train] != fold).all() and (folds[test] == fold).all()
        assert len(test) and labels[train].min() >= 0 and labels[test].min() >= 0
        known = set(labels[train])
        assert len(known) >= 2 and set(labels[test]) <= known
        left_out = np.setdiff1d(np.flatnonzero((folds == fold) & (labels >= 0)), test)
        assert not known & set(labels[left_out])
        assert (np.diff(train) > 0).all() and (np.diff(test) > 0).all()
        assert len(train) == ((folds != fold) & (labels >= 0)).sum()


class Spy:
    """Members that record their training cells and scored cells; gene 0 has the number of the cell."""

    def __init__(self, n_classes: int = 3, encoder: Any = None) -> None:
        self.n_classes, self.encoder = n_classes, encoder
        self.trained: list[tuple[list[int], list[int]]] = []
        self.asked: list[tuple[int, CellChunk]] = []

    def fit(self, cells: CellChunk, labels: Any) -> Spy:
        self.trained.append((numbers(cells), labels.tolist()))
        return self

    def score(self, chunk: CellChunk, n_neighbors: int) -> Scores:
        self.asked.append((n_neighbors, chunk))
        n, turn = len(chunk), float(len(self.trained))
        scores = [np.full((n, self.n_classes), 10 * i + turn, np.float32) for i in range(len(MEMBERS))]
        neighbors = Neighbors(np.zeros((n, n_neighbors), np.int64), np.zeros((n, n_neighbors), np.float32))
        away = np.full((n, self.n_classes, 3), turn, np.float32)
        found = np.diff(chunk.X.indptr).astype(np.int64)
        return Scores(np.zeros((n, 2), np.float32), neighbors, scores, away, found, depth(chunk))


def numbers(chunk: CellChunk) -> list[int]:
    return chunk.X[:, 0].toarray().ravel().astype(int).tolist()


def looked(cells: CellChunk, labels: Any, folds: Any, spy: Spy, **options: Any) -> HeldOut:
    trained: Any = (spy.fit(cells.take(train), labels[train]) for _, train, _ in splits(labels, folds))
    return score_held_out(cells, labels, folds, trained, **options)


def numbered(n: int, n_genes: int = 40) -> CellChunk:
    X = np.random.default_rng(0).poisson(1.0, (n, n_genes)).astype(np.float32)
    X[:, 0] = np.arange(1, n + 1)
    return CellChunk(sp.csr_matrix(X), np.ones(n_genes, bool))


def test_no_cell_is_judged_by_members_trained_on_it() -> None:
    labels = np.arange(30) % 3
    labels[[4, 11]] = -1
    folds = np.arange(30) // 3 % 3
    spy, cells = Spy(), numbered(30)
    held = looked(cells, labels, folds, spy, n_neighbors=4)
    assert len(spy.trained) == len(spy.asked) == 3
    seen = []
    for (trained, codes), (k, chunk) in zip(spy.trained, spy.asked, strict=True):
        assert [labels[i - 1] for i in trained] == codes and -1 not in codes
        unseen = numbers(chunk)
        assert not set(trained) & set(unseen) and len(trained) + len(unseen) == 28 and k == 4
        seen += unseen
    assert sorted(seen) == [i + 1 for i in range(30) if labels[i] >= 0]
    assert [labels[i - 1] for i in seen] == held.labels.tolist()
    assert [folds[i - 1] for i in seen] == held.folds.tolist()
    # The scores of a cell come from the members that were trained without its fold.
    assert [s.shape for s in held.scores] == [(28, 3)] * len(MEMBERS)
    for i, s in enumerate(held.scores):
        np.testing.assert_array_equal(s, np.tile(10 * i + held.folds[:, None] + 1, (1, 3)))
    assert held.distances.shape == (28, 3, 3)
    np.testing.assert_array_equal(held.distances[:, 0, 0], held.folds + 1)
    np.testing.assert_allclose(held.depths, depth(cells.take(np.array(seen) - 1)))


def test_cells_of_a_class_that_no_other_fold_has_are_left_out() -> None:
    labels = np.array([0, 1, 0, 1, 2, 2, 0, 1])
    folds = np.array([0, 0, 1, 1, 1, 1, 0, 0])
    held = looked(numbered(8), labels, folds, Spy(), n_neighbors=2)
    assert sorted(held.labels.tolist()) == [0, 0, 0, 1, 1, 1]


def test_a_fold_that_leaves_one_class_to_train_on_is_passed_over() -> None:
    labels, folds = np.array([0, 0, 1, 1, 0]), np.array([0, 0, 1, 1, 1])
    spy = Spy()
    held = looked(numbered(5), labels, folds, spy, n_neighbors=1)
    # Fold 0 is judged by cells of classes 1 and 0; fold 1 would be by cells of class 0 alone.
    assert [sorted(t) for t, _ in spy.trained] == [[3, 4, 5]] and held.labels.tolist() == [0, 0]


def test_nothing_to_hold_out() -> None:
    assert list(splits(np.array([0, 1, 2]), np.arange(3))) == []


def test_only_so_many_cells_are_looked_at_and_the_seed_says_which() -> None:
    labels, folds = np.arange(300) % 3, np.arange(300) // 3 % 3

    def seen(seed: int, spy: Spy, n: int) -> list[int]:
        held = looked(numbered(300), labels, folds, spy, n_neighbors=2, seed=seed, max_cells=60)
        assert len(held.labels) == n
        return [i for _, chunk in spy.asked for i in numbers(chunk)]

    first = seen(1, Spy(), 60)
    assert first == seen(1, Spy(), 60) != seen(2, Spy(), 60)
    assert [labels[i - 1] for i in first] != [0] * 60 and len(set(first)) == 60
    # A slow encoder sets a lower limit.
    slow = type("Slow", (), {"held_out_cells": 9})()
    seen(1, Spy(encoder=slow), 9)


def test_every_split_has_members_of_its_own() -> None:
    labels, folds = np.arange(30) % 3, np.arange(30) // 3 % 3
    spy: Any = Spy()
    with pytest.raises(ValueError):
        score_held_out(numbered(30), labels, folds, [spy], n_neighbors=1)
