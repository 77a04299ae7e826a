"""Vectors of obsm: vectors of another model are distinguished from vectors of another donor."""

from __future__ import annotations

from importlib.resources import files

import anndata
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.neural_network import MLPRegressor

from scvec.base.errors import InputError
from scvec.encoders import encoder_kind
from scvec.encoders.obsm import MIN_CELLS, Known, ObsmEncoder, VectorStatistics

TYPES = ("beta", "alpha", "acinar", "ductal", "activated_stellate")


def autoencoder(Z, rows, seed, n=10):
    """The bottleneck of a small autoencoder, whose axes have no order: as of scVI."""
    network = MLPRegressor(hidden_layer_sizes=(64, n, 64), activation="tanh", random_state=seed, max_iter=100)
    network.fit(Z[rows], Z[rows])
    for W, b in list(zip(network.coefs_, network.intercepts_, strict=True))[:2]:
        Z = np.tanh(Z @ W + b)
    return Z


@pytest.fixture(scope="module")
def cells():
    """Baron's cells: log expression of 2,000 genes, labels, folds of donors 1 and 2 (-1: donors 3 and 4)."""
    adata = anndata.read_h5ad(files("scvec") / "data" / "baron_human.h5ad")
    X = adata.X.toarray().astype(np.float64)
    X = np.log1p(X / X.sum(axis=1, keepdims=True) * 1e4)
    donor = adata.obs["donor"].astype(str).to_numpy()
    fold = np.select([donor == "human1", donor == "human2"], [0, 1], -1)
    known = X[fold >= 0]
    X = X[:, np.argsort(-known.var(axis=0) / (known.mean(axis=0) + 1e-9))[:2000]]
    return X, adata.obs["cell_type"].astype(str).to_numpy(), fold


def components(X, rows, n=30):
    mean, sd = X[rows].mean(axis=0), X[rows].std(axis=0) + 1e-2
    Z = np.clip((X - mean) / sd, -10, 10)
    return PCA(n, random_state=0).fit(Z[rows]).transform(Z)


@pytest.fixture(scope="module", params=["pca", "autoencoder"])
def made(cells, request):
    """Vectors of one model for all cells, their statistics in the reference, and vectors of other models."""
    X, labels, fold = cells
    ours, theirs = components(X, fold >= 0), components(X, fold < 0)
    whitened = (
        np.tanh(ours / ours.std(axis=0)) @ np.linalg.qr(np.random.default_rng(7).normal(size=(30, 30)))[0]
    )
    others = [theirs, components(X, fold == 0), whitened]
    if request.param == "autoencoder":
        Z = ours / ours.std()
        others = [autoencoder(Z, fold >= 0, 1), autoencoder(Z, fold < 0, 0), np.tanh(whitened[:, :10])]
        ours = autoencoder(Z, fold >= 0, 0)
    codes = np.unique(labels, return_inverse=True)[1]
    looks = VectorStatistics.fit(ours[fold >= 0].astype(np.float32), codes[fold >= 0], fold[fold >= 0])
    return ours, others, looks, labels, fold


def refused(looks, vectors):
    return any(np.array(looks.measures(vectors.astype(np.float32))) > looks.limits)


@pytest.mark.slow
def test_vectors_of_another_model_are_refused_in_20_of_20_tries(made):
    ours, others, looks, _, fold = made
    new, rng = ours[fold < 0], np.random.default_rng(0)
    dim = new.shape[1]
    tries = [new @ np.linalg.qr(rng.normal(size=(dim, dim)))[0] for _ in range(6)]
    tries += [new[:, rng.permutation(dim)] for _ in range(6)]
    tries += [new * factor for factor in (0.1, 0.4, 2.5, 10.0)]
    tries += [new * rng.choice([-1.0, 1.0], dim), *(other[fold < 0] for other in others)]
    assert [refused(looks, vectors) for vectors in tries] == [True] * 20
    hundred = rng.choice(len(new), 100, replace=False)
    assert [refused(looks, vectors[hundred]) for vectors in tries] == [True] * 20


def test_other_donors_subsets_of_types_and_100_cells_are_accepted(made):
    ours, _, looks, labels, fold = made
    new, of, rng = ours[fold < 0], labels[fold < 0], np.random.default_rng(0)
    queries = [new, *(new[of == label] for label in TYPES)]
    queries += [new[rng.choice(len(new), 100, replace=False)] for _ in range(10)]
    assert [refused(looks, vectors) for vectors in queries] == [False] * len(queries)


def test_half_of_the_cells_may_be_of_new_types(made, cells):
    ours, _, _, labels, fold = made
    known = (fold >= 0) & (labels != "acinar")
    codes = np.unique(labels, return_inverse=True)[1]
    looks = VectorStatistics.fit(ours[known].astype(np.float32), codes[known], fold[known])
    new = ours[fold < 0]
    assert (labels[fold < 0] == "acinar").sum() > 200
    assert not refused(looks, new)


def test_another_pca_of_scanpy_is_recognised_by_its_variances(made):
    ours, _, looks, _, fold = made
    new = ours[fold < 0].astype(np.float32)
    known = Known("X_pca", 2.0, (9.0, 4.0, 1.0))
    assert "limit" in known.check(new, (9.0, 4.0, 1.0), looks, "f")
    assert "limit" in known.check(new, (), looks, "f")
    with pytest.raises(InputError) as refusal:
        known.check(new, (9.0, 4.1, 1.0), looks, "f")
    assert refusal.value.code == "vectors-of-another-model"


def test_too_few_cells_are_not_compared(made):
    ours, _, looks, _, fold = made
    few = 1000 * ours[fold < 0][: MIN_CELLS - 1].astype(np.float32)
    assert "too few" in Known("X").check(few, (), looks, "f")


def test_the_state_comes_back(made):
    _, _, looks, _, _ = made
    dim = len(looks.whitening)
    tensors, meta = ObsmEncoder(Known("X", 3.0, (1.0, 0.5)), dim, looks).state()
    again = ObsmEncoder.from_state(tensors, meta)
    assert again.known == Known("X", 3.0, (1.0, 0.5)) and again.statistics.limits == looks.limits
    np.testing.assert_array_equal(again.statistics.groups, looks.groups)
    with pytest.raises(ValueError):
        ObsmEncoder.from_state({**tensors, "radius": looks.radius[1:]}, meta)
    with pytest.raises(ValueError):
        ObsmEncoder.from_state(tensors, {**meta, "embed_dim": dim + 1})


@pytest.mark.parametrize("name", ["obsm:", "pca:X", "nothing:X"])
def test_a_wrong_form_is_refused(name):
    with pytest.raises(InputError):
        encoder_kind(name)
    assert encoder_kind("obsm:X_scVI") is encoder_kind("obsm")
