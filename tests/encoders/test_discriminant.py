"""Tests of the cell space: the axes are Fisher's, and irrelevant changes have no effect."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.base.errors import InputError
from scvec.base.types import CellChunk
from scvec.encoders import Material, discriminant, load_encoder, make_encoder
from scvec.encoders.discriminant import PENALTY, Axes, DiscriminantEncoder, rescaled, separation
from scvec.encoders.statistics import MIN_SPREAD, Profile, StatisticsAccumulator, variability

Array = np.ndarray


def counts(
    n_cells: int, n_genes: int, n_classes: int, seed: int = 0, depth: float = 1.0, own: int = 5
) -> tuple[Array, Array]:
    """Counts of cells whose class k has ``own`` genes raised, and the classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n_cells) % n_classes
    level = np.random.default_rng(99).gamma(1.0, 1.0, n_genes) + 0.1
    rate = np.tile(level, (n_cells, 1))
    for k in range(n_classes):
        genes = np.arange(own * k, own * k + own) % n_genes
        rate[np.ix_(labels == k, genes)] *= 6.0
    return rng.poisson(rate * depth).astype(np.float64), labels


def log_cp10k(raw: Array) -> Any:
    sums = raw.sum(axis=1, keepdims=True)
    return sp.csr_matrix(np.log1p(np.where(sums > 0, raw / np.maximum(sums, 1e-12) * 1e4, 0.0)).astype("f4"))


def chunk_of(X: Any, measured: Array | None = None) -> CellChunk:
    return CellChunk(X, np.ones(X.shape[1], bool) if measured is None else measured)


def fitted(X: Any, labels: Array, measured: Array | None = None, scores: Array | None = None) -> Any:
    gathered = StatisticsAccumulator(X.shape[1])
    gathered.add(X)
    encoder = DiscriminantEncoder(variability(gathered.result()) if scores is None else scores)
    encoder.fit([chunk_of(X, measured)], labels)
    return encoder


def cosines(vectors: Array) -> Array:
    v = vectors.astype(np.float64)
    v = v / np.linalg.norm(v, axis=1, keepdims=True)
    return np.asarray(v @ v.T)


def reference_space(X: Any, labels: Array, new: Any) -> Array:
    """Return coordinates from scipy's generalised eigenproblem, in double precision on dense matrices."""
    dense, codes = X.toarray().astype(np.float64), np.unique(labels, return_inverse=True)[1]
    n_classes = codes.max() + 1
    of = [dense[codes == k] for k in range(n_classes)]
    mean = np.mean([c.mean(axis=0) for c in of], axis=0)
    spread = np.sqrt(np.mean([c.var(axis=0) for c in of], axis=0)) + MIN_SPREAD

    def profile(cells: Array) -> Array:
        z = cells / spread
        u = mean / spread / np.linalg.norm(mean / spread)
        z = z - np.outer(z @ u, u)
        return np.asarray(z / np.linalg.norm(z, axis=1, keepdims=True))

    Z = profile(dense)
    means = np.array([Z[codes == k].mean(axis=0) for k in range(n_classes)])
    within = np.mean([np.cov(Z[codes == k].T, bias=True) for k in range(n_classes)], axis=0)
    center = means.mean(axis=0)
    between = (means - center).T @ (means - center)
    total = within + PENALTY * np.trace(within) / len(within) * np.eye(len(within))
    values, vectors = scipy.linalg.eigh(between, total)
    axes = vectors[:, values > 1e-8 * values.max()]
    return np.asarray((profile(new.toarray().astype(np.float64)) - center) @ axes)


@pytest.mark.parametrize(
    ("n_cells", "n_genes", "n_classes"), [(90, 40, 3), (60, 150, 4), (40, 40, 2), (30, 120, 10)]
)
def test_axes_are_those_of_the_generalised_eigenproblem(n_cells: int, n_genes: int, n_classes: int) -> None:
    raw, labels = counts(n_cells, n_genes, n_classes)
    X, new = log_cp10k(raw), log_cp10k(counts(25, n_genes, n_classes, seed=1)[0])
    axes = Axes.fit(X, np.arange(n_genes), labels)
    assert axes.weights.shape == (n_genes, n_classes - 1) and axes.weights.dtype == np.float32
    expected = reference_space(X, labels, new)
    got, lengths = axes.encode(chunk_of(new))
    np.testing.assert_allclose(cosines(got), cosines(expected), atol=1e-3)
    np.testing.assert_allclose(lengths, np.linalg.norm(expected, axis=1), rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-5)


def test_solved_for_cells_or_for_genes_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    # A gene without counts adds a row and a column of zeros. It changes the solver, and the ridge only by the
    # number of genes.
    raw, labels = counts(80, 60, 4)
    few = Axes.fit(log_cp10k(raw), np.arange(60), labels)
    padded = sp.hstack([log_cp10k(raw), sp.csr_matrix((80, 60), dtype=np.float32)], format="csr")
    monkeypatch.setattr(discriminant, "PENALTY", PENALTY * 2)
    many = Axes.fit(padded, np.arange(120), labels)
    new = log_cp10k(counts(30, 60, 4, seed=1)[0])
    more = sp.hstack([new, sp.csr_matrix((30, 60), dtype=np.float32)], format="csr")
    a, b = few.encode(chunk_of(new)), many.encode(chunk_of(more))
    np.testing.assert_allclose(cosines(a[0]), cosines(b[0]), atol=1e-4)
    np.testing.assert_allclose(a[1], b[1], rtol=1e-3)
    np.testing.assert_allclose(many.weights[60:], 0.0, atol=1e-6)


def test_the_vector_is_both_parts_side_by_side() -> None:
    raw, labels = counts(120, 80, 3)
    X = log_cp10k(raw)
    encoder = fitted(X, labels)
    assert len(encoder.axes) == 1  # fewer genes than the size of either set
    small, large = np.arange(10, 40), np.arange(80)
    two = DiscriminantEncoder(
        encoder.variability, tuple(Axes.fit(X[:, g], g, labels) for g in (large, small))
    )
    assert two.embed_dim == 4
    vectors = two.encode(chunk_of(X))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    parts = [a.encode(chunk_of(X[:, a.genes]))[0] for a in two.axes]
    np.testing.assert_allclose(vectors @ vectors.T, np.mean([p @ p.T for p in parts], axis=0), atol=1e-5)


@pytest.fixture
def small_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discriminant, "N_VARIABLE", 50)
    monkeypatch.setattr(discriminant, "N_SEPARATING", 20)


@pytest.mark.usefixtures("small_sets")
def test_genes_are_the_most_variable_and_those_that_separate_best() -> None:
    raw, labels = counts(120, 80, 3)
    X = log_cp10k(raw)
    scores = np.random.default_rng(0).random(80)
    scores[:4] = -np.inf
    measured = np.arange(80) % 5 > 0
    encoder = fitted(X, labels, measured, scores)
    allowed = np.flatnonzero(measured & np.isfinite(scores))
    variable = np.sort(allowed[np.argsort(-scores[allowed])[:50]])
    best = separation(rescaled(X, measured), labels)
    separating = np.sort(allowed[np.argsort(-best[allowed])[:20]])
    assert [a.genes.tolist() for a in encoder.axes] == [variable.tolist(), separating.tolist()]
    np.testing.assert_array_equal(encoder.genes, np.union1d(variable, separating))
    assert measured[encoder.genes].all()
    # The second set contains most of the planted genes of the classes.
    assert len(set(range(15)) & set(allowed) & set(separating)) >= 8


def test_separation_by_hand() -> None:
    raw, labels = counts(60, 12, 3)
    X = log_cp10k(raw[:50])
    dense, y = X.toarray().astype(np.float64), labels[:50] * 7  # numbers of classes may have gaps
    of = [dense[y == k] for k in np.unique(y)]
    between = np.var([c.mean(axis=0) for c in of], axis=0)
    within = np.mean([c.var(axis=0) for c in of], axis=0)
    np.testing.assert_allclose(separation(X, y), between / (within + MIN_SPREAD**2), rtol=1e-4)


@pytest.mark.usefixtures("small_sets")
def test_two_fits_give_the_same_bytes_for_any_seed() -> None:
    raw, labels = counts(120, 80, 3)
    X = log_cp10k(raw)
    a, b = fitted(X, labels), DiscriminantEncoder(fitted(X, labels).variability)
    b.fit([chunk_of(X[:70]), chunk_of(X[70:])], labels, seed=7)
    assert {k: v.tobytes() for k, v in a.state()[0].items()} == {
        k: v.tobytes() for k, v in b.state()[0].items()
    }
    assert a.encode(chunk_of(X)).tobytes() == b.encode(chunk_of(X)).tobytes()


def right(encoder: Any, X: Any, labels: Array, new: Any, truth: Array) -> float:
    """Fraction of cells that are nearest to the mean vector of their own class."""
    vectors = encoder.encode(chunk_of(X))
    means = np.array([vectors[labels == k].mean(axis=0) for k in np.unique(labels)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return float(((encoder.encode(chunk_of(new)) @ means.T).argmax(axis=1) == truth).mean())


@pytest.mark.parametrize(
    ("n_cells", "n_genes", "n_classes"), [(3, 100, 3), (2, 100, 2), (100, 100, 2), (570, 300, 57)]
)
def test_few_cells_and_many_classes(n_cells: int, n_genes: int, n_classes: int) -> None:
    (raw, labels), (others, truth) = (
        counts(n, n_genes, n_classes, seed, depth=20.0) for seed, n in enumerate((n_cells, 4 * n_classes))
    )
    X, new = log_cp10k(raw), log_cp10k(others)
    encoder = fitted(X, labels)
    vectors = encoder.encode(chunk_of(new))
    assert np.isfinite(vectors).all() and vectors.shape[1] == encoder.embed_dim
    assert encoder.embed_dim <= 2 * (n_classes - 1)
    assert right(encoder, X, labels, new, truth) > 0.9


@pytest.mark.usefixtures("small_sets")
def test_the_size_of_a_class_does_not_matter() -> None:
    raw, labels = counts(90, 80, 3)
    X, new = log_cp10k(raw), log_cp10k(counts(30, 80, 3, seed=1)[0])
    scores = fitted(X, labels).variability
    twice = np.concatenate([np.arange(90), *[np.flatnonzero(labels == 1)] * 4])
    a, b = fitted(X, labels, None, scores), fitted(X[twice], labels[twice], None, scores)
    np.testing.assert_array_equal(a.genes, b.genes)
    np.testing.assert_allclose(cosines(a.encode(chunk_of(new))), cosines(b.encode(chunk_of(new))), atol=1e-5)


def test_class_numbers_and_unlabelled_cells_do_not_matter() -> None:
    raw, labels = counts(90, 80, 3)
    X = log_cp10k(raw)
    scores = fitted(X, labels).variability
    noise = log_cp10k(np.random.default_rng(5).poisson(3.0, (30, 80)).astype(float))
    both = sp.vstack([noise, X], format="csr")
    renamed = np.concatenate([np.full(30, -1), np.array([11, 2, 5])[labels]])
    a, b = fitted(X, labels, None, scores), fitted(both, renamed, None, scores)
    np.testing.assert_allclose(cosines(a.encode(chunk_of(X))), cosines(b.encode(chunk_of(X))), atol=1e-5)


@pytest.mark.usefixtures("small_sets")
@pytest.mark.parametrize("factor", [0.01, 3.0])
def test_the_scale_of_a_cell_does_not_matter(factor: float) -> None:
    raw, labels = counts(90, 80, 3)
    encoder, X = fitted(log_cp10k(raw), labels), log_cp10k(raw)
    # Cells with another total, as if other genes had the rest of the ten thousand.
    scaled = X.copy()
    scaled.data = np.log1p(np.expm1(X.data.astype(np.float64)) * factor).astype(np.float32)
    np.testing.assert_allclose(encoder.encode(chunk_of(scaled)), encoder.encode(chunk_of(X)), atol=2e-4)


@pytest.mark.usefixtures("small_sets")
def test_genes_that_were_not_measured_are_never_used() -> None:
    raw, labels = counts(90, 80, 3)
    measured = np.arange(80) % 3 > 0
    X = log_cp10k(raw)
    wrong = X.tolil()
    wrong[:, ~measured] = np.random.default_rng(0).random((90, (~measured).sum())) * 9
    wrong = wrong.tocsr().astype(np.float32)
    scores = fitted(X, labels).variability
    a, b = fitted(X, labels, measured, scores), fitted(wrong, labels, measured, scores)
    assert measured[a.genes].all()
    for name, value in a.state()[0].items():
        np.testing.assert_array_equal(value, b.state()[0][name])
    np.testing.assert_array_equal(a.encode(chunk_of(X, measured)), a.encode(chunk_of(wrong, measured)))


def test_a_cell_has_the_same_vector_alone_and_among_others() -> None:
    raw, labels = counts(90, 80, 3)
    X = log_cp10k(raw)
    encoder = fitted(X, labels)
    whole = encoder.encode(chunk_of(X))
    for i in (0, 41, 89):
        np.testing.assert_allclose(encoder.encode(chunk_of(X[[i]]))[0], whole[i], atol=1e-6)
    assert encoder.encode(chunk_of(X[:0])).shape == (0, encoder.embed_dim)
    assert np.isfinite(encoder.encode(chunk_of(sp.csr_matrix((2, 80), dtype=np.float32)))).all()


@pytest.mark.usefixtures("small_sets")
def test_shares_sum_to_the_product_with_a_direction() -> None:
    raw, labels = counts(90, 80, 3)
    X = log_cp10k(raw)
    encoder = fitted(X, labels)
    assert len(encoder.axes) == 2
    new = chunk_of(log_cp10k(counts(20, 80, 3, seed=1)[0]))
    directions = np.random.default_rng(0).normal(size=(20, encoder.embed_dim))
    shares = encoder.shares(new, directions)
    assert shares.shape == (20, 80)
    product = (encoder.encode(new).astype(np.float64) * directions).sum(axis=1)
    np.testing.assert_allclose(shares.sum(axis=1), product, atol=1e-5)
    assert (shares[:, np.setdiff1d(np.arange(80), encoder.genes)] == 0).all()


@pytest.mark.usefixtures("small_sets")
def test_the_state_comes_back_to_the_bit() -> None:
    raw, labels = counts(90, 80, 3)
    X = log_cp10k(raw)
    encoder = fitted(X, labels)
    tensors, meta = encoder.state()
    again = load_encoder(
        "discriminant", {k: np.array(v) for k, v in tensors.items()}, json.loads(json.dumps(meta))
    )
    assert isinstance(again, DiscriminantEncoder) and again.embed_dim == encoder.embed_dim
    assert again.encode(chunk_of(X)).tobytes() == encoder.encode(chunk_of(X)).tobytes()


@pytest.mark.parametrize(
    "spoilt",
    [
        {"0.weights": lambda v: v[:-1]},
        {"0.weights": lambda v: v[0]},
        {"0.mean": lambda v: v[:-1]},
        {"0.genes": lambda v: v[:-1]},
        {"0.genes": lambda v: v + 1},
        {"0.genes": lambda v: v - 1},
        {"0.genes": lambda v: v[:0]},
        {"0.profile.spread": lambda v: v * 0},
        {"0.profile.mean": lambda v: v[:-1]},
    ],
)
def test_a_state_that_does_not_fit_is_refused(spoilt: dict[str, Any]) -> None:
    raw, labels = counts(30, 20, 2)
    tensors, meta = fitted(log_cp10k(raw), labels).state()
    changed = {name: change(tensors[name]) for name, change in spoilt.items()}
    with pytest.raises(ValueError):
        DiscriminantEncoder.from_state({**tensors, **changed}, meta)
    with pytest.raises(ValueError):
        DiscriminantEncoder.from_state(tensors, {"n_sets": 0})
    with pytest.raises(KeyError):
        DiscriminantEncoder.from_state(tensors, {"n_sets": 2})


def test_input_that_cannot_be_fitted_is_an_error() -> None:
    raw, labels = counts(30, 20, 2)
    X = log_cp10k(raw)
    for few in (labels * 0, np.where(labels == 0, 0, -1)):
        with pytest.raises(InputError) as caught:
            fitted(X, few)
        assert caught.value.code == "one-label"
    for measured, scores in ((np.zeros(20, bool), None), (None, np.full(20, -np.inf))):
        with pytest.raises(InputError) as caught:
            fitted(X, labels, measured, scores)
        assert caught.value.code == "genes-not-recognised"


def test_the_registry_makes_one_that_knows_how_variable_genes_are() -> None:
    raw, labels = counts(30, 20, 2)
    X = log_cp10k(raw)
    made = make_encoder("discriminant", Material(chunk_of(X), labels))
    assert isinstance(made, DiscriminantEncoder)
    np.testing.assert_array_equal(made.variability, fitted(X, labels).variability)


# rescaled


def by_numpy(X: Any, measured: Array, genes: Array | None = None) -> Array:
    linear = np.expm1(X.toarray().astype(np.float64)) * measured
    sums = linear.sum(axis=1, keepdims=True)
    found = np.log1p(np.where(sums > 0, linear / np.maximum(sums, 1e-12) * 1e4, 0.0))
    return np.asarray(found if genes is None else found[:, genes])


EMPTY = {
    "none": [],
    "the first": [0],
    "the last": [7],
    "the last three": [5, 6, 7],
    "consecutive": [2, 3, 4],
    "the first two, one between and the last two": [0, 1, 4, 6, 7],
    "all": list(range(8)),
    "all but the last": list(range(7)),
}


@pytest.mark.parametrize("empty", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize("genes", [None, np.array([1, 4, 11])])
def test_rescaled_is_that_of_dense_numpy(empty: list[int], some: bool, genes: Any) -> None:
    raw = counts(8, 12, 2)[0]
    raw[empty] = 0
    raw[1, ::2] = 0  # with some measured: a cell with values, none of them counted
    X, measured = log_cp10k(raw), np.ones(12, bool)
    if some:
        measured = np.arange(12) % 2 == 0
    got = rescaled(X, measured, genes)
    assert got.dtype == np.float32 and (got.data != 0).all() and np.isfinite(got.data).all()
    np.testing.assert_allclose(got.toarray(), by_numpy(X, measured, genes), rtol=2e-5, atol=1e-6)


def test_rescaled_leaves_the_cells_given_as_they_are() -> None:
    X = log_cp10k(counts(8, 12, 2)[0])
    before = X.copy()
    rescaled(X, np.arange(12) % 2 == 0)
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(X, name), getattr(before, name))


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(0, 9), st.floats(0, 1))
def test_rescaled_of_any_cells(seed: int, n: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    X = sp.random(n, 7, density=density, format="csr", dtype=np.float32, random_state=seed)
    X.data *= rng.choice([0.0, 1.0, 8.0], len(X.data)).astype(np.float32)  # including stored zeros
    measured = rng.random(7) < 0.7
    genes = np.flatnonzero(rng.random(7) < 0.5)
    for chosen in (None, genes):
        got = rescaled(X.copy(), measured, chosen)
        np.testing.assert_allclose(got.toarray(), by_numpy(X, measured, chosen), rtol=1e-4, atol=1e-4)


def test_rescaled_again_is_the_same() -> None:
    X = log_cp10k(counts(8, 12, 2)[0])
    everything = np.ones(12, bool)
    np.testing.assert_allclose(rescaled(X, everything).toarray(), X.toarray(), rtol=1e-5)
    profile = Profile.from_cells(X, np.arange(8) % 2)
    a, b = (profile.unit(chunk_of(cells)) for cells in (X, rescaled(X, everything)))
    np.testing.assert_allclose(a, b, atol=1e-5)
