"""Tests of votes against a slow implementation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.base.types import Neighbors
from scvec.model.classifiers import vote


def slow(indices: Any, distances: Any, labels: Any, n_classes: int, pseudocount: float) -> Any:
    rows = []
    counts = [max(1, sum(int(x) == k for x in labels)) for k in range(n_classes)]
    balance = [math.sqrt(sum(counts) / n_classes / c) for c in counts]
    for found, d in zip(indices, distances, strict=True):
        real = [(int(i), float(x)) for i, x in zip(found, d, strict=True) if i >= 0]
        votes = [pseudocount / n_classes] * n_classes
        last = max((x for _, x in real), default=0.0)
        for i, x in real:
            if labels[i] >= 0:
                # Distances are squared already. If all neighbours have distance 0, each has a full vote.
                votes[labels[i]] += balance[labels[i]] * (math.exp(-2.0 * x / last) if last > 0 else 1.0)
        rows.append([v / sum(votes) for v in votes])
    return np.array(rows)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Neighbors, Any, int]:
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    n, k, n_reference = draw(st.integers(1, 6)), draw(st.integers(1, 8)), draw(st.integers(1, 20))
    n_classes = draw(st.integers(1, 5))
    labels = rng.integers(-1, n_classes, n_reference)
    indices = rng.integers(0, n_reference, (n, k))
    distances = np.sort(rng.gamma(2.0, 3.0, (n, k)), axis=1).astype(np.float32)
    if draw(st.booleans()):
        distances[:] = 0.0
    for row in range(n):
        pad = int(rng.integers(0, k + 1))
        if pad:
            indices[row, k - pad :], distances[row, k - pad :] = -1, np.inf
    return Neighbors(indices.astype(np.int64), distances), labels.astype(np.int64), n_classes


@settings(max_examples=150)
@given(cases(), st.sampled_from([0.1, 1.0]))
def test_votes_are_those_of_the_reference(case: tuple[Neighbors, Any, int], pseudocount: float) -> None:
    neighbors, labels, n_classes = case
    got = vote(neighbors, labels, n_classes, pseudocount=pseudocount)
    assert got.dtype == np.float32
    expected = slow(neighbors.indices, neighbors.distances, labels, n_classes, pseudocount)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_allclose(got.sum(axis=1), 1.0, atol=1e-6)


def test_by_hand() -> None:
    neighbors = Neighbors(np.array([[2, 0, -1]]), np.array([[1.0, 4.0, np.inf]], np.float32))
    near, far = math.exp(-0.5), math.exp(-2.0)
    # Votes of classes with two cells and with one cell have the weights sqrt(1.5 / 2) and sqrt(1.5 / 1).
    far, near = far * math.sqrt(0.75), near * math.sqrt(1.5)
    expected = np.array([far + 0.05, near + 0.05]) / (near + far + 0.1)
    np.testing.assert_allclose(vote(neighbors, np.array([0, 0, 1]), 2)[0], expected, rtol=1e-6)


def test_without_neighbours_all_classes_are_equal() -> None:
    neighbors = Neighbors(np.full((1, 3), -1), np.full((1, 3), np.inf, np.float32))
    np.testing.assert_allclose(vote(neighbors, np.array([0, 1]), 4), 0.25)


def test_the_pseudocount_leaves_no_class_impossible() -> None:
    neighbors = Neighbors(np.zeros((1, 5), np.int64), np.zeros((1, 5), np.float32))
    got = vote(neighbors, np.array([1]), 2, pseudocount=0.1)[0]
    np.testing.assert_allclose(got, [0.05 / 5.1, 5.05 / 5.1], rtol=1e-6)
