"""Class centroids against scikit-learn's cosine similarity."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from scvec.annotate.prototypes import Prototypes
from scvec.types import CellChunk


def cells(seed: int = 0, n: int = 25, n_genes: int = 12) -> sp.csr_matrix:
    rng = np.random.default_rng(seed)
    return sp.csr_matrix(
        (rng.gamma(2, 1, (n, n_genes)) * (rng.random((n, n_genes)) < 0.4)).astype(np.float32)
    )


LABELS = np.array([0, 2, 2, -1, 0] * 5)


def test_centroids_are_class_means() -> None:
    X = cells()
    got = Prototypes.fit(X, LABELS, 4).centroids
    assert got.dtype == np.float32 and got.shape == (4, 12)
    for k in (0, 2):
        np.testing.assert_allclose(got[k], X.toarray()[k == LABELS].mean(axis=0), rtol=1e-5)
    assert (got[[1, 3]] == 0).all()


def test_scores_are_cosines() -> None:
    from sklearn.metrics.pairwise import cosine_similarity

    voice, X = Prototypes.fit(cells(), LABELS, 3), cells(1)
    got = voice.scores(CellChunk(X, np.ones(12, bool)))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, cosine_similarity(X.toarray(), voice.centroids), atol=1e-5)


def test_scores_look_at_measured_genes_alone() -> None:
    from sklearn.metrics.pairwise import cosine_similarity

    voice, X = Prototypes.fit(cells(), LABELS, 3), cells(1)
    measured = np.arange(12) % 3 > 0
    expected = cosine_similarity(X.toarray()[:, measured], voice.centroids[:, measured])
    # Whether or not the columns of the other genes are as empty as they should be.
    clean = sp.csr_matrix(X.multiply(measured.astype(np.float32)))
    clean.eliminate_zeros()
    for chunk in (CellChunk(clean, measured), CellChunk(X, measured)):
        np.testing.assert_allclose(voice.scores(chunk), expected, atol=1e-5)


def test_a_cell_alone_and_an_empty_cell() -> None:
    voice, X = Prototypes.fit(cells(), LABELS, 3), cells(1)
    whole = voice.scores(CellChunk(X, np.ones(12, bool)))
    one = voice.scores(CellChunk(X[4], np.ones(12, bool)))
    np.testing.assert_allclose(one[0], whole[4], atol=1e-6)
    assert (whole[:, 1] == 0).all()
    empty = sp.csr_matrix((1, 12), dtype=np.float32)
    assert (voice.scores(CellChunk(empty, np.ones(12, bool))) == 0).all()
