"""The linear voice against scikit-learn's ridge regression."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from scvec.model.linear import PENALTY, Linear

from scvec.profiles import Profile
from scvec.types import CellChunk

N_GENES = 30


def cells(n: int, seed: int = 0) -> tuple[CellChunk, Any]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n, p=[0.7, 0.2, 0.1])
    labels[:3] = [0, 1, 2]
    rate = np.full((n, N_GENES), 0.8)
    for k in range(3):
        rate[labels == k, 8 * k : 8 * k + 8] = 4.0
    X = sp.csr_matrix(np.log1p(rng.poisson(rate)).astype(np.float32))
    return CellChunk(X, np.ones(N_GENES, bool)), labels.astype(np.int64)


@pytest.mark.parametrize("n", [20, 200])  # fewer cells than genes, and more
def test_it_is_a_weighted_ridge_regression(n: int) -> None:
    from sklearn.linear_model import Ridge

    chunk, labels = cells(n)
    profile = Profile.from_cells(chunk.X, labels)
    weights = 1.0 / np.bincount(labels)[labels]
    ridge = Ridge(alpha=PENALTY).fit(
        profile.unit(chunk), np.eye(3)[labels], sample_weight=weights * n / weights.sum()
    )
    voice, new = Linear.fit(chunk, labels, 3, profile), cells(50, 1)[0]
    got = voice.scores(new)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, ridge.predict(profile.unit(new)), atol=1e-4)
    one = voice.scores(CellChunk(new.X[7], new.measured))
    np.testing.assert_allclose(one[0], got[7], atol=1e-6)


def test_a_rare_class_is_named_as_well_as_a_common_one() -> None:
    chunk, labels = cells(200)
    voice = Linear.fit(chunk, labels, 3, Profile.from_cells(chunk.X, labels))
    new, truth = cells(600, 1)
    said = voice.scores(new).argmax(axis=1)
    assert all((said[truth == k] == k).mean() > 0.95 for k in range(3))


def test_unlabelled_cells_and_absent_classes() -> None:
    chunk, labels = cells(60)
    some = np.where(np.arange(60) < 50, labels, -1)
    known = CellChunk(chunk.X[:50], chunk.measured)
    profile = Profile.from_cells(known.X, labels[:50])
    whole, part = Linear.fit(chunk, some, 5, profile), Linear.fit(known, labels[:50], 5, profile)
    np.testing.assert_array_equal(whole.W, part.W)
    assert set(whole.scores(chunk).argmax(axis=1)) <= {0, 1, 2}


def test_weights_that_do_not_fit_are_refused() -> None:
    chunk, labels = cells(60)
    profile = Profile.from_cells(chunk.X, labels)
    with pytest.raises(ValueError, match="weights"):
        Linear(np.zeros((3, 7), np.float32), np.zeros(3, np.float32), profile)
