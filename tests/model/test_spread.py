"""Tests of distances to classes against scikit-learn and NumPy, and of their use."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scvec.base.types import CellChunk
from scvec.model.novelty import CLIP, MIN_SD, N_COMPONENTS, Spread

N_GENES, N_CLASSES = 60, 3


def cells(n: int, seed: int, classes: int = N_CLASSES) -> tuple[CellChunk, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    rate = np.full((n, N_GENES), 0.5)
    for k in range(classes):
        rate[labels == k, 10 * k : 10 * k + 10] = 4.0
    X = np.log1p(rng.poisson(rate)).astype(np.float32)
    return CellChunk(sp.csr_matrix(X), np.ones(N_GENES, bool)), labels


def test_components_and_distances_are_those_of_plain_numpy() -> None:
    from sklearn.decomposition import PCA

    chunk, labels = cells(300, 0)
    spread = Spread.fit(chunk, labels, N_CLASSES)
    X = chunk.X.toarray().astype(np.float64)
    Z = np.clip((X - X.mean(0)) / np.maximum(X.std(0), MIN_SD), -CLIP, CLIP)
    T = Z @ PCA(N_COMPONENTS, random_state=0).fit(Z).components_.T
    got = spread.project(chunk)
    np.testing.assert_allclose(np.abs(got[:, :3]), np.abs(T[:, :3]), atol=1e-3)
    T = got.astype(np.float64)
    within = sum(np.cov(T[labels == k].T, bias=True) for k in range(N_CLASSES)) / N_CLASSES
    expected = np.empty((300, N_CLASSES))
    for k in range(N_CLASSES):
        members, r = T[labels == k], N_COMPONENTS
        covariance = (100 * np.cov(members.T, bias=True) + r * within) / (100 + r)
        covariance += 1e-3 * np.trace(within) / r * np.eye(r)
        d = T - members.mean(axis=0)
        expected[:, k] = np.sqrt(np.einsum("ij,jk,ik->i", d, np.linalg.inv(covariance), d))
    np.testing.assert_allclose(spread.distances(chunk), expected, rtol=2e-3)


def test_own_class_is_nearest_and_about_its_spread_away() -> None:
    spread = Spread.fit(*cells(300, 0), N_CLASSES)
    chunk, labels = cells(90, 1)
    d = spread.distances(chunk)
    assert (d.argmin(axis=1) == labels).all()
    own = d[np.arange(90), labels]
    assert np.median(own) == pytest.approx(np.sqrt(N_COMPONENTS), rel=0.25)


def test_a_new_class_is_far_from_all() -> None:
    chunk, labels = cells(400, 0, classes=4)
    spread = Spread.fit(CellChunk(chunk.X[labels < 3], chunk.measured), labels[labels < 3], 3)
    near = spread.distances(chunk).min(axis=1)
    assert near[labels == 3].mean() > 1.3 * near[labels < 3].mean()


def test_genes_that_were_not_measured_say_nothing() -> None:
    chunk, labels = cells(300, 0)
    spread = Spread.fit(chunk, labels, N_CLASSES)
    measured = np.ones(N_GENES, bool)
    measured[40:] = False
    X = chunk.X.toarray()
    X[:, 40:] = spread.mean[40:]  # at the mean
    there = spread.project(CellChunk(sp.csr_matrix(X), chunk.measured))
    gone = X.copy()
    gone[:, 40:] = 0
    np.testing.assert_allclose(spread.project(CellChunk(sp.csr_matrix(gone), measured)), there, atol=1e-4)


def test_a_cell_is_as_far_alone_as_among_others() -> None:
    spread = Spread.fit(*cells(120, 0), N_CLASSES)
    chunk, _ = cells(20, 1)
    whole = spread.distances(chunk)
    for row in (0, 7, 19):
        alone = spread.distances(CellChunk(chunk.X[row], chunk.measured))
        np.testing.assert_allclose(alone[0], whole[row], rtol=1e-4)


@pytest.mark.parametrize("n", [3, 4, 7])
def test_few_cells_and_classes_without_any(n: int) -> None:
    chunk, labels = cells(n, 0)
    labels = labels.copy()
    labels[0] = -1
    spread = Spread.fit(chunk, labels, 5)
    d = spread.distances(cells(9, 1)[0])
    seen = np.isin(np.arange(5), labels)
    assert np.isfinite(d[:, seen]).all() and np.isinf(d[:, ~seen]).all()


def test_its_state_brings_it_back() -> None:
    chunk, labels = cells(60, 0)
    spread = Spread.fit(chunk, labels, N_CLASSES)
    np.testing.assert_array_equal(Spread(**spread.state()).distances(chunk), spread.distances(chunk))
    state = spread.state()
    with pytest.raises(ValueError, match="do not fit"):
        Spread(**{**state, "mean": state["mean"][1:]})
    with pytest.raises(ValueError, match="do not fit"):
        Spread(**{**state, "whitening": state["whitening"][1:]})


def test_away_is_the_cosine_to_the_mean_cell_and_the_distance() -> None:
    chunk, labels = cells(90, 0)
    spread = Spread.fit(chunk, labels, N_CLASSES)
    X = chunk.X.toarray().astype(np.float64)
    means = np.stack([X[labels == k].mean(axis=0) for k in range(N_CLASSES)])
    cosine = X @ means.T / np.linalg.norm(X, axis=1)[:, None] / np.linalg.norm(means, axis=1)
    away = spread.away(chunk)
    np.testing.assert_allclose(away[..., 0], 1.0 - cosine, atol=1e-5)
    np.testing.assert_array_equal(away[..., 1], spread.distances(chunk))
