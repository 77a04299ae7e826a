"""Tests of scaling against dense NumPy: clipped z-scores, with unmeasured genes at the mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.base.types import CellChunk
from scvec.encoders.pca import CLIP, Scaling
from scvec.encoders.statistics import MIN_SD, StatisticsAccumulator


def sparse_cells(rng: np.random.Generator, n: int, n_genes: int, density: float = 0.3) -> sp.csr_matrix:
    values = rng.gamma(2.0, 1.5, (n, n_genes)) * (rng.random((n, n_genes)) < density)
    return sp.csr_matrix(values.astype(np.float32))


def z_scores(chunk: CellChunk, mean: Any, sd: Any) -> np.ndarray[Any, Any]:
    """Oracle: the definition in dense float64 NumPy."""
    Z = np.clip((chunk.X.toarray().astype(np.float64) - mean) / sd, -CLIP, CLIP)
    Z[:, ~chunk.measured] = 0.0
    return Z


def make(seed: int, n: int, n_genes: int, missing: float) -> tuple[Scaling, CellChunk, Any]:
    rng = np.random.default_rng(seed)
    measured = rng.random(n_genes) >= missing
    X = sparse_cells(rng, n, n_genes)
    X = sp.csr_matrix(X.multiply(measured.astype(np.float32)))
    X.eliminate_zeros()
    mean = rng.gamma(1.0, 0.6, n_genes).astype(np.float32)
    sd = rng.uniform(MIN_SD, 1.5, n_genes).astype(np.float32)
    return Scaling(mean, sd), CellChunk(X, measured), rng


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 40), st.sampled_from([0.0, 0.4, 1.0]))
def test_product_is_the_dense_product(seed: int, n: int, n_genes: int, missing: float) -> None:
    scaling, chunk, rng = make(seed, n, n_genes, missing)
    G = rng.normal(size=(n_genes, 5)).astype(np.float32)
    expected = z_scores(chunk, scaling.mean.astype(float), scaling.sd.astype(float)) @ G
    got = scaling.product(chunk, G)
    assert got.dtype == np.float32 and got.shape == (n, 5)
    np.testing.assert_allclose(got, expected, atol=2e-4)
    np.testing.assert_allclose(
        scaling.dense(chunk), z_scores(chunk, scaling.mean.astype(float), scaling.sd.astype(float)), atol=1e-4
    )


def test_values_beyond_the_bounds_are_clipped() -> None:
    scaling = Scaling(np.array([0.0, 8.0], np.float32), np.array([0.1, 1.0], np.float32))
    chunk = CellChunk(sp.csr_matrix(np.array([[9.0, 0.0], [0.0, 8.5]], np.float32)), np.ones(2, bool))
    np.testing.assert_allclose(scaling.dense(chunk), [[5.0, -5.0], [0.0, 0.5]], atol=1e-6)
    np.testing.assert_allclose(
        scaling.product(chunk, np.eye(2, dtype=np.float32)), [[5, -5], [0, 0.5]], atol=1e-6
    )


def test_unmeasured_genes_say_nothing() -> None:
    scaling, chunk, rng = make(1, 6, 30, 0.5)
    G = rng.normal(size=(30, 4)).astype(np.float32)
    before = scaling.product(chunk, G)
    changed = G.copy()
    changed[~chunk.measured] = 1e6
    np.testing.assert_array_equal(scaling.product(chunk, changed), before)
    # The same holds for a chunk with values in the columns of unmeasured genes.
    rest = np.flatnonzero(~chunk.measured)
    dirty = chunk.X.tolil()
    dirty[:, rest] = 3.0
    np.testing.assert_allclose(
        scaling.product(CellChunk(dirty.tocsr(), chunk.measured), G), before, atol=1e-5
    )
    assert (scaling.dense(CellChunk(dirty.tocsr(), chunk.measured))[:, rest] == 0).all()


def test_cells_are_not_changed() -> None:
    scaling, chunk, rng = make(2, 5, 20, 0.3)
    before = chunk.X.copy()
    scaling.product(chunk, rng.normal(size=(20, 3)).astype(np.float32))
    scaling.dense(chunk)
    assert (before != chunk.X).nnz == 0


def test_from_statistics_has_a_floor_under_the_spread() -> None:
    X = sp.csr_matrix(np.array([[1.0, 0.0, 3.0], [1.0, 0.0, 0.0]], np.float32))
    gathered = StatisticsAccumulator(3)
    gathered.add(X)
    scaling = Scaling.from_statistics(gathered.result())
    np.testing.assert_allclose(scaling.mean, [1.0, 0.0, 1.5])
    np.testing.assert_allclose(scaling.sd, [MIN_SD, MIN_SD, 1.5], rtol=1e-6)


def test_state_round_trip_and_what_it_refuses() -> None:
    scaling, chunk, rng = make(3, 4, 15, 0.2)
    G = rng.normal(size=(15, 3)).astype(np.float32)
    again = Scaling.from_state(scaling.state())
    np.testing.assert_array_equal(again.product(chunk, G), scaling.product(chunk, G))
    with pytest.raises(ValueError, match="mean"):
        Scaling(np.zeros(3, np.float32), np.ones(4, np.float32))
    with pytest.raises(ValueError, match="positive"):
        Scaling(np.zeros(2, np.float32), np.array([1.0, 0.0], np.float32))
