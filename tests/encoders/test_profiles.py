"""Tests of profiles against dense NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.base.types import CellChunk
from scvec.encoders.statistics import MIN_SPREAD, Profile


def cells(seed: int, n: int = 20, n_genes: int = 15) -> CellChunk:
    rng = np.random.default_rng(seed)
    X = (rng.gamma(2, 1, (n, n_genes)) * (rng.random((n, n_genes)) < 0.5)).astype(np.float32)
    measured = rng.random(n_genes) < 0.8
    measured[0] = True
    X[:, ~measured] = 0
    return CellChunk(sp.csr_matrix(X), measured)


def labels_of(n: int = 20) -> Any:
    return np.array([0, 0, 0, 3, 1, -1] * n)[:n]


def test_every_class_has_the_same_weight() -> None:
    chunk, labels = cells(0), labels_of()
    profile = Profile.from_cells(chunk.X, labels)
    X = chunk.X.toarray().astype(float)
    classes = [X[labels == k] for k in (0, 1, 3)]
    np.testing.assert_allclose(profile.mean, np.mean([c.mean(axis=0) for c in classes], axis=0), rtol=1e-5)
    spread = np.sqrt(np.mean([c.var(axis=0) for c in classes], axis=0)) + MIN_SPREAD
    np.testing.assert_allclose(profile.spread, spread, rtol=1e-5)
    again = Profile.from_state(profile.state())
    np.testing.assert_array_equal(again.dense(chunk), profile.dense(chunk))


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_the_common_part_is_removed_and_sparse_equals_dense(seed: int) -> None:
    chunk = cells(seed)
    profile = Profile.from_cells(cells(seed + 1).X, labels_of())
    Z = profile.dense(chunk)
    assert Z.dtype == np.float32 and (Z[:, ~chunk.measured] == 0).all()
    shared = np.where(chunk.measured, profile.mean / profile.spread, 0.0)
    np.testing.assert_allclose(Z @ shared, 0.0, atol=1e-3)
    G = np.random.default_rng(seed).normal(size=(15, 4)).astype(np.float32)
    np.testing.assert_allclose(profile.product(chunk, G), Z @ G, atol=1e-3)
    np.testing.assert_allclose(profile.unit_product(chunk, G), profile.unit(chunk) @ G, atol=1e-3)
    # A factor on a cell (its depth, or the coverage of a panel) is a factor on the whole vector.
    larger = CellChunk(chunk.X * np.float32(3), chunk.measured)
    np.testing.assert_allclose(profile.dense(larger), 3 * Z, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(profile.unit(larger), profile.unit(chunk), atol=1e-4)


def test_nothing_measured_and_nothing_counted() -> None:
    profile = Profile.from_cells(cells(1).X, labels_of())
    none = CellChunk(sp.csr_matrix((2, 15), dtype=np.float32), np.zeros(15, bool))
    for found in (profile.dense(none), profile.unit(none), profile.unit_product(none, np.ones((15, 2)))):
        assert (found == 0).all()


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        Profile(np.zeros(2, np.float32), np.array([1.0, 0.0], np.float32))
    with pytest.raises(ValueError, match="n_genes"):
        Profile(np.zeros(3, np.float32), np.ones(4, np.float32))
