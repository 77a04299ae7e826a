"""Class centroids against NumPy, step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from scvec.model.prototypes import Prototypes

from scvec.profiles import Profile
from scvec.types import CellChunk


def cells(seed: int = 0, n: int = 25, n_genes: int = 12) -> sp.csr_matrix:
    rng = np.random.default_rng(seed)
    return sp.csr_matrix(
        (rng.gamma(2, 1, (n, n_genes)) * (rng.random((n, n_genes)) < 0.4)).astype(np.float32)
    )


LABELS = np.array([0, 2, 2, -1, 0] * 5)


def fit(n_classes: int = 3) -> Prototypes:
    return Prototypes.fit(cells(), LABELS, n_classes, Profile.from_cells(cells(), LABELS))


def partial_cosine(X: Any, voice: Prototypes, measured: Any) -> Any:
    """Return the cosine of the parts of cells and centroids that are orthogonal to the shared direction."""
    X = X[X[:, measured].any(axis=1)]
    s = voice.profile.spread[measured].astype(float)
    u = voice.profile.mean[measured] / s
    a, c = X[:, measured] / s, voice.centroids[:, measured] / s
    a, c = (z - np.outer(z @ u, u) / (u @ u) for z in (a, c))
    return (a @ c.T) / np.linalg.norm(a, axis=1)[:, None] / np.maximum(np.linalg.norm(c, axis=1), 1e-12)


def test_centroids_are_class_means() -> None:
    X = cells()
    got = fit(4).centroids
    assert got.dtype == np.float32 and got.shape == (4, 12)
    for k in (0, 2):
        np.testing.assert_allclose(got[k], X.toarray()[k == LABELS].mean(axis=0), rtol=1e-5)
    assert (got[[1, 3]] == 0).all()


@pytest.mark.parametrize("measured", [np.ones(12, bool), np.arange(12) % 3 > 0])
def test_scores_are_cosines_without_what_all_classes_share(measured: Any) -> None:
    voice, X = fit(), cells(1)
    expected = partial_cosine(X.toarray().astype(float), voice, measured)
    # Whether or not the columns of the other genes are as empty as they should be.
    clean = sp.csr_matrix(X.multiply(measured.astype(np.float32)))
    clean.eliminate_zeros()
    for chunk in (CellChunk(clean, measured), CellChunk(X, measured)):
        got = voice.scores(chunk)
        assert got.dtype == np.float32
        some = X.toarray()[:, measured].any(axis=1)
        np.testing.assert_allclose(got[some][:, [0, 2]], expected[:, [0, 2]], atol=1e-5)


def test_the_scale_of_a_cell_does_not_matter() -> None:
    voice, X = fit(), cells(1)
    whole = np.ones(12, bool)
    np.testing.assert_allclose(
        voice.scores(CellChunk(X * np.float32(7), whole)), voice.scores(CellChunk(X, whole)), atol=1e-5
    )


def test_a_class_without_cells_and_a_cell_without_counts() -> None:
    voice, X = fit(), cells(1)
    whole = voice.scores(CellChunk(X, np.ones(12, bool)))
    one = voice.scores(CellChunk(X[4], np.ones(12, bool)))
    np.testing.assert_allclose(one[0], whole[4], atol=1e-6)
    assert (whole[:, 1] == -1).all() and not (whole.argmax(axis=1) == 1).any()
    empty = sp.csr_matrix((1, 12), dtype=np.float32)
    assert (voice.scores(CellChunk(empty, np.ones(12, bool)))[:, [0, 2]] == 0).all()


def test_a_profile_of_other_genes_is_refused() -> None:
    with pytest.raises(ValueError, match="12"):
        Prototypes(fit().centroids[:, :-1], fit().profile)


def test_only_the_most_variable_measured_genes_are_heard_whatever_else_was_measured() -> None:
    X = cells(1)
    variability = np.array([5, 9, -np.inf, 1, 8, 2, 7, 3, 6, 0, 4, 10], np.float32)
    profile = Profile.from_cells(cells(), LABELS)
    whole = Prototypes.fit(cells(), LABELS, 3, profile)
    chosen = Prototypes(whole.centroids, profile, variability, 3)
    assert chosen.heard(np.ones(12, bool)).nonzero()[0].tolist() == [1, 4, 11]
    some = np.ones(12, bool)
    some[[1, 11]] = False
    assert chosen.heard(some).nonzero()[0].tolist() == [4, 6, 8]
    # What is not heard changes nothing: the same as where no other gene was measured.
    only = np.isin(np.arange(12), [4, 6, 8])
    expected = whole.scores(CellChunk(X, only))
    np.testing.assert_allclose(chosen.scores(CellChunk(X, some)), expected, atol=1e-6)
    # Another query in between is not mixed up with it, and a gene of no variability is never heard.
    chosen.scores(CellChunk(X, np.ones(12, bool)))
    np.testing.assert_allclose(chosen.scores(CellChunk(X, some)), expected, atol=1e-6)
    assert not Prototypes(whole.centroids, profile, variability, 12).heard(np.ones(12, bool))[2]


def test_plain_centroids_leave_the_spread_out_of_account() -> None:
    voice, X, whole = fit(), cells(1).toarray().astype(float), np.ones(12, bool)
    a, c, u = X, voice.centroids.astype(float), voice.profile.mean.astype(float)
    a, c = (z - np.outer(z @ u, u) / (u @ u) for z in (a, c))
    expected = (a @ c.T) / np.maximum(np.linalg.norm(a, axis=1), 1e-9)[:, None]
    expected /= np.maximum(np.linalg.norm(c, axis=1), 1e-9)
    got = voice.plain().scores(CellChunk(sp.csr_matrix(X.astype(np.float32)), whole))
    np.testing.assert_allclose(got[:, [0, 2]], expected[:, [0, 2]], atol=1e-5)
