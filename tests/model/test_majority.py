"""Tests of majority votes over clusters."""

from __future__ import annotations

import numpy as np
import pytest

from scvec.base.errors import InputError
from scvec.model.classifiers import clusters, majority


def blobs(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % 3
    return (rng.normal(size=(n, 8)) + 25.0 * np.eye(8)[kind]).astype(np.float32), kind


def test_clusters_keep_what_lies_apart_apart():
    pytest.importorskip("igraph")
    vectors, kind = blobs()
    found = clusters(vectors)
    for cluster in np.unique(found):
        assert len(np.unique(kind[found == cluster])) == 1
    sizes = np.bincount(found)
    assert (sizes > 0).all() and (np.diff(sizes) <= 0).all()
    assert (clusters(vectors) == found).all(), "one seed gives one clustering"


def test_few_cells_are_one_cluster():
    pytest.importorskip("igraph")
    assert clusters(np.zeros((2, 4), np.float32)).tolist() == [0, 0]
    assert len(clusters(np.zeros((5, 4), np.float32))) == 5  # equal vectors, fewer cells than neighbours


def test_the_generator_of_random_numbers_is_left_as_it_was():
    pytest.importorskip("igraph")
    import random

    random.seed(7)
    expected = random.random()
    random.seed(7)
    clusters(blobs()[0])
    assert random.random() == expected


def test_most_cells_decide_and_of_as_many_the_likelier_label():
    rows = [[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.0, 1.0, 0.0], [0.4, 0.6, 0.0], [0.7, 0.3, 0.0], [0, 0, 1.0]]
    proba = np.array(rows, dtype=np.float32)
    assert majority(proba, np.array([0, 0, 0, 1, 1, 2])).tolist() == [0, 0, 0, 0, 0, 2]
    proba[3] = [0.1, 0.9, 0.0]
    assert majority(proba, np.array([0, 0, 0, 1, 1, 2])).tolist() == [0, 0, 0, 1, 1, 2]
    assert majority(np.zeros((0, 3), np.float32), np.zeros(0, np.int64)).tolist() == []


def test_against_a_loop():
    rng = np.random.default_rng(3)
    proba, cluster = rng.dirichlet([0.5] * 4, 80).astype(np.float32), rng.integers(0, 6, 80)
    found = majority(proba, cluster)
    for c in range(6):
        votes = np.bincount(proba[cluster == c].argmax(axis=1), minlength=4)
        tied = np.flatnonzero(votes == votes.max())
        mass = proba[cluster == c].sum(axis=0)
        assert set(found[cluster == c]) == {max(tied, key=lambda k: mass[k])}


def test_without_igraph_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        clusters(np.zeros((5, 4), np.float32))
    assert caught.value.code == "extra-not-installed" and "scvec[cluster]" in caught.value.fix
