from __future__ import annotations

import faiss
import numpy as np
import pytest

from scvec.base.errors import StoreError
from scvec.stores.index import open_index
from scvec.stores.index.distances import pair_distances, row_distances
from scvec.stores.index.ivf import RESTS, IvfCodes, IvfSettings

N, LISTS = 3000, 16


def clustered(n, dim, seed):
    centres = np.random.default_rng(98).normal(size=(20, dim)) * 3 + 5
    rng = np.random.default_rng(seed)
    return (centres[rng.integers(0, 20, n)] + rng.normal(size=(n, dim))).astype(np.float32)


def nearest(base, queries, k):
    far = ((queries[:, None].astype(np.float64) - base[None]) ** 2).sum(axis=2)
    return np.argsort(far, axis=1, kind="stable")[:, :k]


def every_list(codes, queries, k):
    """Candidates from codes only, with all lists open, and distances to the centroids from numpy."""
    prepared = codes.prepared(queries)
    on_axes = codes.on_axes(prepared)
    far = ((on_axes[:, None] - codes.centroids[None]) ** 2).sum(axis=2)
    lists = np.tile(np.arange(LISTS), (len(queries), 1))
    return codes.scan(prepared, lists, np.ascontiguousarray(far, np.float32), k)


@pytest.fixture(scope="module", params=[20, 70, 150])
def made(request):
    base = clustered(N, request.param, 0)
    return base, IvfCodes.build(base, n_lists=LISTS, seed=0)


@pytest.mark.slow
def test_codes_find_near_rows(made):
    base, codes = made
    queries = clustered(100, base.shape[1], 1)
    # In a cluster of many dimensions all distances are about equal.
    found = every_list(codes, queries, 40 if base.shape[1] < 100 else 80)
    wanted = nearest(base, queries, 10)
    assert np.mean([np.isin(w, f).mean() for w, f in zip(wanted, found, strict=True)]) > 0.95
    assert (codes.n, codes.dim) == base.shape


@pytest.mark.slow
def test_fewer_axes_are_kept_if_they_explain_the_variance(made):
    base, codes = made
    assert codes.centroids.shape[1] == {20: 20, 70: 64, 150: 128}[base.shape[1]]
    flat = clustered(N, 8, 0) @ np.random.default_rng(0).normal(size=(8, 150)).astype(np.float32)
    few = IvfCodes.build(flat, n_lists=LISTS, seed=0)
    assert few.centroids.shape[1] == 64 and few.index.code_size == (64 + RESTS) // 2
    assert np.isin(nearest(flat, flat[:50], 1), every_list(few, flat[:50], 5)).all()


def test_prepared_queries_do_not_depend_on_the_batch(made):
    base, codes = made
    queries = clustered(130, base.shape[1], 2)
    queries[3] *= 1e30  # farther than any centroid
    whole = codes.prepared(queries)
    assert np.isfinite(whole).all()
    for i in range(130):
        np.testing.assert_array_equal(codes.prepared(queries[i : i + 1])[0], whole[i])
    order = np.random.default_rng(0).permutation(130)
    np.testing.assert_array_equal(codes.prepared(queries[order]), whole[order])


def test_distances_on_the_axes_equal_distances_of_vectors():
    base = clustered(N, 20, 0)
    codes = IvfCodes.build(base, n_lists=LISTS, seed=0)
    a, b = (codes.on_axes(codes.prepared(x)).astype(np.float64) for x in (base[:50], base[50:100]))
    wanted = row_distances(base[:50], base[50:100])
    np.testing.assert_allclose(((a - b) ** 2).sum(axis=1), wanted, rtol=1e-4)


def test_rests_are_coded_to_a_sixteenth_of_a_level(made):
    _, codes = made
    pq = codes.index.pq
    books = faiss.vector_to_array(pq.centroids).reshape(pq.M, 16, pq.dsub)[-RESTS:, :, 0]
    low, high = books[0, 0], books[0, 0] + 15 * (RESTS - 1) * books[1, 1]
    rests = np.linspace(low, high, 1000)
    kept = codes._levels_of(rests).sum(axis=1)
    assert np.abs(kept - rests).max() <= books[1, 1] / 16 * 1.01
    outside = codes._levels_of(np.array([low - 1e9, high + 1e9])).sum(axis=1)
    np.testing.assert_allclose(outside, [low, high], rtol=0, atol=books[1, 1] * 1.01)


@pytest.mark.slow
def test_rows_added_later_are_found(made):
    base, _ = made
    codes = IvfCodes.build(base[:2500], n_lists=LISTS, seed=0)
    codes.add(base[2500:])
    found = every_list(codes, base[2900:2950], 10)
    assert (found == np.arange(2900, 2950)[:, None]).any(axis=1).mean() > 0.95


def test_equal_vectors():
    codes = IvfCodes.build(np.ones((200, 9), np.float32), n_lists=4, seed=0)
    assert codes.n == 200 and np.isfinite(codes.prepared(np.zeros((2, 9), np.float32))).all()


def test_distant_lists_stay_closed_unless_rows_are_missing(made):
    _, codes = made
    sizes = np.bincount(codes.list_of(), minlength=LISTS)
    lists = np.array([[3, 1, 4, 5], [2, 6, 0, 7]])
    distances = np.array([[1.0, 2, 3, 9], [5, 5.5, 20, 30]], dtype=np.float32)
    assert codes.within(lists, distances, None, 0) is lists
    np.testing.assert_array_equal(codes.within(lists, distances, 2.0, 0), [[3, 1, 4, -1], [2, 6, -1, -1]])
    enough = int(sizes[[2, 6]].sum()) + 1
    np.testing.assert_array_equal(codes.within(lists[1:], distances[1:], 0.0, enough), [[2, 6, 0, -1]])


def test_other_transforms_are_refused(tmp_path):
    base = clustered(N, 9, 0)
    codes = IvfCodes.build(base, n_lists=LISTS, seed=0)
    settings = IvfSettings(n_lists=LISTS, nprobe=8, factor=6, target=0.9).to_dict()

    def refused(spoil):
        codes.save(tmp_path / "i")
        whole = faiss.read_index(str(tmp_path / "i"))
        spoil(whole)
        faiss.write_index(whole, str(tmp_path / "i"))
        with pytest.raises(StoreError, check=lambda e: e.code == "store-damaged"):
            open_index(tmp_path / "i", "ivf", vectors=base, settings=settings)

    def axes(whole, value):
        linear = faiss.downcast_VectorTransform(whole.chain.at(1))
        wrong = faiss.vector_to_array(linear.A)
        wrong[0] = value
        faiss.copy_array_to_vector(wrong, linear.A)

    def twice_centred(whole):
        more = faiss.CenteringTransform(9)
        whole.prepend_transform(more)
        more.this.disown()
        faiss.copy_array_to_vector(np.zeros(9, np.float32), more.mean)
        more.is_trained = True

    refused(lambda whole: axes(whole, 2.0))
    refused(lambda whole: axes(whole, np.nan))
    refused(twice_centred)
    refused(lambda whole: setattr(faiss.downcast_index(whole.index), "by_residual", False))


@pytest.mark.parametrize("dim", [3, 128, 1000])
def test_pair_distances_equal_row_distances_bit_for_bit(dim):
    rng = np.random.default_rng(0)
    base, queries = rng.normal(size=(50, dim)).astype(np.float32), clustered(40, dim, 1)
    rows = rng.integers(0, 50, (40, 19))
    wanted = [row_distances(base[r], q) for r, q in zip(rows, queries, strict=True)]
    np.testing.assert_array_equal(pair_distances(base, rows, queries), wanted)
