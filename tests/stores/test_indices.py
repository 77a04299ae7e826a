from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.base.errors import InputError, StoreError
from scvec.stores.index import build_index, index_class, open_index
from scvec.stores.index.distances import Index, brute_force
from scvec.stores.index.flat import FaissFlatIndex


def oracle(base, queries, k, subset=None):
    """Independent brute force: sort (distance, row) pairs with Python's sort."""
    rows = range(len(base)) if subset is None else sorted({int(r) for r in subset})
    indices = np.full((len(queries), k), -1, dtype=np.int64)
    distances = np.full((len(queries), k), np.inf)
    for i, q in enumerate(queries.astype(np.float64)):
        pairs = sorted((float(np.sum((base[r].astype(np.float64) - q) ** 2)), r) for r in rows)[:k]
        for j, (d, r) in enumerate(pairs):
            indices[i, j], distances[i, j] = r, d
    return indices, distances


def rng_vectors(n, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


class TestProtocol:
    def test_conforms(self):
        index = build_index(rng_vectors(5, 3))
        assert isinstance(index, Index)
        assert (index.n, index.dim) == (5, 3)

    def test_agrees_with_sorted_pairs(self):
        base, queries = rng_vectors(300, 9), rng_vectors(40, 9, 1)
        found = build_index(base).search(queries, 7)
        indices, distances = oracle(base, queries, 7)
        np.testing.assert_array_equal(found.indices, indices)
        np.testing.assert_allclose(found.distances, distances, rtol=1e-6)

    def test_empty_index_pads(self):
        found = build_index(np.empty((0, 4), np.float32)).search(rng_vectors(3, 4), 2)
        assert (found.indices == -1).all() and np.isinf(found.distances).all()

    def test_no_queries(self):
        assert build_index(rng_vectors(5, 4)).search(np.empty((0, 4), np.float32), 2).indices.shape == (
            0,
            2,
        )

    @pytest.mark.parametrize("n_queries", [1, 40])
    def test_more_neighbors_than_rows(self, n_queries):
        found = build_index(rng_vectors(3, 4)).search(rng_vectors(n_queries, 4), 5)
        assert (found.indices[:, 3:] == -1).all() and np.isinf(found.distances[:, 3:]).all()
        assert (np.sort(found.indices[:, :3], axis=1) == [0, 1, 2]).all()

    @pytest.mark.parametrize("n_queries", [2, 40])
    def test_subset(self, n_queries):
        base, queries = rng_vectors(200, 5), rng_vectors(n_queries, 5, 1)
        subset = np.array([150, 3, 77, 77, 12, 199, 8])
        found = build_index(base).search(queries, 4, subset=subset)
        np.testing.assert_array_equal(found.indices, oracle(base, queries, 4, subset)[0])

    def test_empty_subset_is_all_padding(self):
        found = build_index(rng_vectors(20, 4)).search(rng_vectors(3, 4), 2, subset=np.array([], np.int64))
        assert (found.indices == -1).all() and np.isinf(found.distances).all()

    @pytest.mark.parametrize("bad", [[-1], [20], [0, 5, 99], [[1]], [0.5]])
    def test_subset_outside_is_refused(self, bad):
        with pytest.raises(InputError):
            build_index(rng_vectors(20, 4)).search(rng_vectors(3, 4), 2, subset=np.array(bad))

    @pytest.mark.parametrize("n_copies", [30, 300])
    @pytest.mark.parametrize("n_queries", [1, 40])
    def test_ties_go_to_the_lower_row(self, n_copies, n_queries):
        # There are more equal rows than candidates, so FAISS may propose any of them.
        base = np.concatenate([rng_vectors(50, 4), np.tile(rng_vectors(1, 4, 2), (n_copies, 1))])
        base = base[np.random.default_rng(0).permutation(len(base))]
        queries = np.tile(rng_vectors(1, 4, 2), (n_queries, 1))
        found = build_index(base).search(queries, 6)
        same = np.flatnonzero((base == queries[0]).all(axis=1))[:6]
        assert (found.indices == same).all() and (found.distances == 0).all()

    @pytest.mark.parametrize("scale", [1e-20, 1e18, 1e19])
    def test_extreme_scales(self, scale):
        base, queries = rng_vectors(60, 4) * np.float32(scale), rng_vectors(20, 4, 1) * np.float32(scale)
        found = build_index(base).search(queries, 3)
        np.testing.assert_array_equal(found.indices, oracle(base, queries, 3)[0])

    def test_far_from_the_origin(self):
        # Cone-shaped data: float32 scores of |x|^2 + |y|^2 - 2xy lose the differences entirely.
        base, queries = (
            rng_vectors(400, 8) * 0.01 + np.float32(100),
            rng_vectors(30, 8, 1) * 0.01 + np.float32(100),
        )
        base, queries = base.astype(np.float32), queries.astype(np.float32)
        found = build_index(base).search(queries, 5)
        np.testing.assert_array_equal(found.indices, oracle(base, queries, 5)[0])

    @pytest.mark.parametrize(
        "bad",
        [
            rng_vectors(3, 5),
            rng_vectors(3, 4).astype(np.float64),
            rng_vectors(3, 4)[0],
            rng_vectors(3, 4).tolist(),
            np.full((1, 4), np.nan, np.float32),
            np.full((1, 4), np.inf, np.float32),
        ],
        ids=["dim", "float64", "1d", "list", "nan", "inf"],
    )
    def test_bad_vectors_are_refused(self, bad):
        index = build_index(rng_vectors(10, 4))
        with pytest.raises(InputError):
            index.search(bad, 2)
        with pytest.raises(InputError):
            index.add(bad)
        assert index.n == 10

    def test_the_row_with_nan_is_named(self):
        bad = rng_vectors(10, 4)
        bad[7, 1] = np.nan
        with pytest.raises(InputError, match="row 7"):
            build_index(rng_vectors(10, 4)).search(bad, 2)

    @pytest.mark.parametrize("k", [0, -1, 1.5, True, None])
    def test_bad_n_neighbors(self, k):
        with pytest.raises(InputError, match="n_neighbors"):
            build_index(rng_vectors(10, 4)).search(rng_vectors(1, 4), k)

    def test_strided_queries(self):
        base, queries = rng_vectors(50, 4), rng_vectors(20, 8, 1)
        index = build_index(base)
        strided, copied = index.search(queries[:, ::2], 3), index.search(queries[:, ::2].copy(), 3)
        np.testing.assert_array_equal(strided.indices, copied.indices)

    def test_save_and_load(self, tmp_path):
        base, queries = rng_vectors(50, 4), rng_vectors(20, 4, 1)
        index = build_index(base)
        path = tmp_path / f"i.{index_class('flat').extension}"
        index.save(path)
        again = open_index(path, "flat", n=50, dim=4)
        np.testing.assert_array_equal(again.vectors(), base)
        a, b = index.search(queries, 5), again.search(queries, 5)
        np.testing.assert_array_equal(a.indices, b.indices)
        np.testing.assert_array_equal(a.distances, b.distances)
        again.add(queries)
        assert again.n == 70 and again.search(queries[:1], 1).indices[0, 0] == 50

    def test_wrong_size_is_refused(self, tmp_path):
        build_index(rng_vectors(50, 4)).save(tmp_path / "i")
        with pytest.raises(StoreError, match="instead of"):
            open_index(tmp_path / "i", "flat", n=51, dim=4)

    @pytest.mark.parametrize("keep", [0, 10, 300])
    def test_truncated_file_is_refused(self, tmp_path, keep):
        build_index(rng_vectors(50, 4)).save(tmp_path / "i")
        (tmp_path / "i").write_bytes((tmp_path / "i").read_bytes()[:keep])
        with pytest.raises(StoreError):
            open_index(tmp_path / "i")

    def test_adding_in_parts_equals_at_once(self):
        base, queries = rng_vectors(50, 4), rng_vectors(20, 4, 1)
        parts = build_index(base[:20])
        parts.search(queries, 1)
        parts.add(base[20:] * 1)
        np.testing.assert_array_equal(
            parts.search(queries, 5).indices, build_index(base).search(queries, 5).indices
        )


# Small integers give many equal distances and equal rows.
lattice = st.integers(-2, 2).map(float)


@st.composite
def problems(draw):
    dim = draw(st.integers(1, 5))
    n, m = draw(st.integers(0, 90)), draw(st.integers(1, 24))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    if draw(st.booleans()):
        base, queries = rng.integers(-2, 3, (n, dim)), rng.integers(-2, 3, (m, dim))
    else:
        base, queries = rng.normal(size=(n, dim)), rng.normal(size=(m, dim))
    subset = draw(st.none() | st.lists(st.integers(0, n - 1), max_size=30)) if n else None
    k = draw(st.integers(1, 100))
    return base.astype(np.float32), queries.astype(np.float32), k, subset


@settings(max_examples=150)
@given(problem=problems())
def test_any_problem_agrees_with_the_oracle(problem):
    base, queries, k, subset = problem
    subset = None if subset is None else np.array(subset, dtype=np.int64)
    found = build_index(base).search(queries, k, subset=subset)
    indices, distances = oracle(base, queries, k, subset)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-6)
    # The order may differ for distances that differ only in the last bits of float64.
    for got, want, d in zip(found.indices, indices, distances, strict=True):
        if not np.array_equal(got, want):
            assert sorted(got) == sorted(want) and np.ptp(d[got != want]) < 1e-12 * d.max()


@settings(max_examples=60)
@given(problem=problems(), data=st.data())
def test_results_do_not_depend_on_the_batch(problem, data):
    base, queries, k, _ = problem
    index = build_index(base, "flat")
    whole = index.search(queries, k)
    order = np.array(data.draw(st.permutations(range(len(queries)))))
    shuffled = index.search(queries[order], k)
    np.testing.assert_array_equal(shuffled.indices, whole.indices[order])
    np.testing.assert_array_equal(shuffled.distances, whole.distances[order])
    i = int(order[0])
    alone = index.search(queries[i : i + 1], k)
    np.testing.assert_array_equal(alone.indices[0], whole.indices[i])
    np.testing.assert_array_equal(alone.distances[0], whole.distances[i])
    slow = brute_force(base, queries, k)
    np.testing.assert_array_equal(slow.indices, whole.indices)
    np.testing.assert_array_equal(slow.distances, whole.distances)


@pytest.mark.parametrize("dim", [50, 128, 384])
def test_batch_equals_single_where_faiss_alone_differs(dim):
    """FAISS itself gives different digits, and sometimes another order, in a batch."""
    base, queries = rng_vectors(3000, dim) + np.float32(3), rng_vectors(300, dim, 1) + np.float32(3)
    index = build_index(base, "flat")
    batch = index.search(queries, 15)
    for i in range(0, 300, 7):
        alone = index.search(queries[i : i + 1], 15)
        np.testing.assert_array_equal(alone.indices[0], batch.indices[i])
        np.testing.assert_array_equal(alone.distances[0], batch.distances[i])


def test_search_in_blocks_equals_one_block(monkeypatch):
    base, queries = rng_vectors(500, 6), rng_vectors(70, 6, 1)
    index = build_index(base, "flat")
    subset = np.arange(0, 500, 2)
    whole, part = index.search(queries, 5), index.search(queries, 5, subset=subset)
    monkeypatch.setattr("scvec.stores.index.flat.BLOCK_QUERIES", 32)
    monkeypatch.setattr("scvec.stores.index.flat.BLOCK_BYTES", 4 * 6 * 50)
    monkeypatch.setattr("scvec.stores.index.distances.BLOCK_BYTES", 8 * 6 * 50)
    np.testing.assert_array_equal(index.search(queries, 5).indices, whole.indices)
    np.testing.assert_array_equal(index.search(queries, 5, subset=subset).indices, part.indices)
    slow = brute_force(base, queries, 5, subset)
    np.testing.assert_array_equal(slow.indices, part.indices)


def test_the_blas_setting_is_used_in_batches_and_restored(monkeypatch):
    import faiss

    before = faiss.cvar.distance_compute_blas_threshold
    index = FaissFlatIndex(4)
    index.add(rng_vectors(100, 4))
    seen = []
    propose = faiss.IndexFlatL2.search

    def spy(self, *args, **kwargs):
        seen.append(faiss.cvar.distance_compute_blas_threshold)
        return propose(self, *args, **kwargs)

    monkeypatch.setattr(faiss.IndexFlatL2, "search", spy)
    index.search(rng_vectors(64, 4), 3)
    index.search(rng_vectors(1, 4), 3)
    assert seen == [1, before]
    assert faiss.cvar.distance_compute_blas_threshold == before

    threads = [
        threading.Thread(target=lambda: [index.search(rng_vectors(64, 4), 3) for _ in range(20)])
        for _ in range(4)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert faiss.cvar.distance_compute_blas_threshold == before


def test_the_blas_setting_is_restored_after_an_error(monkeypatch):
    import faiss

    before = faiss.cvar.distance_compute_blas_threshold
    index = FaissFlatIndex(4)
    index.add(rng_vectors(100, 4))

    def fail(self, *args, **kwargs):
        raise RuntimeError("no")

    monkeypatch.setattr(faiss.IndexFlatL2, "search", fail)
    with pytest.raises(RuntimeError):
        index.search(rng_vectors(64, 4), 3)
    assert faiss.cvar.distance_compute_blas_threshold == before


def test_another_type_of_faiss_file_is_refused(tmp_path):
    import faiss

    for i, index in enumerate([faiss.IndexFlatIP(4), faiss.index_factory(4, "HNSW8")]):
        index.add(rng_vectors(20, 4))
        faiss.write_index(index, str(tmp_path / f"{i}.faiss"))
        with pytest.raises(StoreError, match=r"is a Index\w+"):
            open_index(tmp_path / f"{i}.faiss", "flat")


def test_unknown_kind():
    with pytest.raises(InputError, match="flat, ivf", check=lambda e: e.code == "unknown-choice"):
        build_index(rng_vectors(3, 2), "hnsw")


def test_read_only_vectors_and_views(tmp_path):
    base = rng_vectors(10, 3)
    base.flags.writeable = False
    index = build_index(base)
    np.testing.assert_array_equal(index.vectors(), base)
    with pytest.raises(ValueError):
        build_index(base, "flat").vectors()[0, 0] = 1


def test_threads_do_not_change_results():
    code = """
        import hashlib, numpy as np
        from scvec.stores.index import build_index
        rng = np.random.default_rng(0)
        base, q = (rng.normal(size=(n, 64)).astype("f4") for n in (2000, 100))
        found = build_index(base).search(q, 10)
        print(hashlib.sha256(found.indices.tobytes() + found.distances.tobytes()).hexdigest())
    """
    import os

    out = {
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**os.environ, "OMP_NUM_THREADS": n},
            capture_output=True, text=True, check=True,
        ).stdout
        for n in ("1", "2")
    }  # fmt: skip
    assert len(out) == 1
