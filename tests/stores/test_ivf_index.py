from __future__ import annotations

import numpy as np
import pytest
from ivf_parts import DIM, TARGET, N, clustered, share, truth

from scvec.base.errors import InputError, StoreError
from scvec.stores.index import build_index, open_index
from scvec.stores.index.distances import Index, brute_force
from scvec.stores.index.ivf import FLAT_BELOW, Effort, IvfIndex, IvfSettings, _left_out, kind_for, places


@pytest.fixture(scope="module")
def base():
    rows = clustered(N, 0)
    rows.flags.writeable = False
    return rows


@pytest.fixture(scope="module")
def index(base):
    return IvfIndex.build(base, recall=TARGET)


class TestSearch:
    def test_conforms(self, index):
        assert isinstance(index, Index)
        assert (index.n, index.dim, index.kind) == (N, DIM, "ivf")

    @pytest.mark.parametrize("k", [15, 50])
    def test_the_target_is_reached_on_other_queries(self, index, base, k):
        queries = clustered(300, 1)
        found = index.search(queries, k)
        assert share(found.indices, truth(base, queries, k)) >= TARGET - 0.01
        assert (np.diff(found.distances, axis=1) >= 0).all()

    def test_the_measured_recall_is_reproduced(self, index, base):
        rows = np.random.default_rng(5).choice(N, 400, replace=False)
        k = 15
        found = index.search(base[rows], k + 1).indices
        wanted = truth(base, base[rows], k + 1)
        assert (wanted[:, 0] == rows).all()  # each row finds itself
        assert abs(share(found, wanted[:, 1:]) - index.settings.recall["at_15"]) < 0.03
        assert set(index.settings.recall) == {"at_15", "at_50", "shifted_15", "shifted_50"}
        assert min(index.settings.recall.values()) > TARGET - 0.03

    def test_it_is_approximate_and_scans_few_rows(self, index, base):
        assert index.settings.nprobe < index.settings.n_lists / 2
        found = index.search(clustered(300, 1), 15).indices
        assert share(found, truth(base, clustered(300, 1), 15)) < 1.0

    def test_distances_equal_those_of_the_flat_index_bit_for_bit(self, index, base):
        queries = clustered(100, 2)
        found, flat = index.search(queries, 15), build_index(base).search(queries, 15)
        for i in range(len(queries)):
            known = dict(zip(flat.indices[i], flat.distances[i], strict=True))
            both = [
                (known[r], d) for r, d in zip(found.indices[i], found.distances[i], strict=True) if r in known
            ]
            assert both and all(a == b for a, b in both)

    def test_exact_is_exact(self, index, base):
        queries = clustered(60, 3)
        found, slow = index.exact().search(queries, 7), brute_force(base, queries, 7)
        np.testing.assert_array_equal(found.indices, slow.indices)
        np.testing.assert_array_equal(found.distances, slow.distances)

    def test_results_do_not_depend_on_the_batch(self, index, monkeypatch):
        queries = clustered(200, 4)
        whole = index.search(queries, 15)
        order = np.random.default_rng(0).permutation(200)
        shuffled = index.search(queries[order], 15)
        np.testing.assert_array_equal(shuffled.indices, whole.indices[order])
        np.testing.assert_array_equal(shuffled.distances, whole.distances[order])
        for i in range(0, 200, 9):
            alone = index.search(queries[i : i + 1], 15)
            np.testing.assert_array_equal(alone.indices[0], whole.indices[i])
            np.testing.assert_array_equal(alone.distances[0], whole.distances[i])
        monkeypatch.setattr("scvec.stores.index.ivf.MAX_BLOCK", 7)
        np.testing.assert_array_equal(index.search(queries, 15).indices, whole.indices)

    def test_lists_do_not_depend_on_the_batch_where_centroids_tie(self, base):
        # Far from the origin, a float32 matrix product cannot distinguish near centroids.
        index = IvfIndex.build((base[:1500] * 0.01 + 50).astype(np.float32), recall=0.8)
        queries = (clustered(64, 6) * 0.01 + 50).astype(np.float32)
        whole, _ = index.lists(index.codes.prepared(queries), 5)
        for i in range(0, 64, 5):
            alone = index.codes.prepared(queries[i : i + 1])
            np.testing.assert_array_equal(index.lists(alone, 5)[0][0], whole[i])

    def test_a_higher_recall_finds_more(self, index, base):
        queries, wanted = clustered(300, 1), truth(base, clustered(300, 1), 15)
        low, high = index.at_recall(0.6), index.at_recall(0.99)
        shares = [share(i.search(queries, 15).indices, wanted) for i in (low, index, high)]
        assert shares[0] < shares[1] < shares[2] and shares[2] > 0.98

    @pytest.mark.parametrize("recall", [0.0, -1.0, 1.5])
    def test_recall_outside_its_range_is_refused(self, index, base, recall):
        with pytest.raises(InputError, match="recall"):
            index.at_recall(recall)
        with pytest.raises(InputError, match="recall"):
            IvfIndex.build(base, recall=recall)

    def test_more_neighbors_than_lists_hold_and_than_rows(self, index, base):
        found = index.search(clustered(5, 7), 3900).indices
        assert (np.sort(found, axis=1)[:, 0] >= 0).all()
        found = index.search(clustered(2, 7), N + 3)
        assert (found.indices[:, N:] == -1).all() and np.isinf(found.distances[:, N:]).all()
        assert (np.sort(found.indices[0, :N]) == np.arange(N)).all()

    def test_a_query_whose_lists_hold_too_few_rows_scans_all(self, index, base):
        poor = index.at_recall(0.01)
        queries = clustered(50, 8)
        found = poor.search(queries, 600).indices
        assert (found >= 0).all() and all(len(set(row)) == 600 for row in found)

    def test_equal_rows(self):
        base = np.repeat(clustered(100, 9), 40, axis=0)
        found = IvfIndex.build(base).search(base[:40:7], 10)
        assert (found.distances == 0).all()
        assert (np.diff(found.indices, axis=1) > 0).all()

    def test_no_queries(self, index):
        assert index.search(np.empty((0, DIM), np.float32), 3).indices.shape[0] == 0

    @pytest.mark.parametrize("dim", [8, 9])
    def test_any_number_of_dimensions(self, dim):
        base = np.random.default_rng(0).normal(size=(1200, dim)).astype(np.float32)
        found = IvfIndex.build(base).search(base[:50], 3).indices
        assert share(found, np.arange(50)[:, None]) > 0.9

    @pytest.mark.parametrize("bad", [np.zeros((2, 3), np.float32), np.full((1, DIM), np.nan, np.float32)])
    def test_bad_queries(self, index, bad):
        with pytest.raises(InputError):
            index.search(bad, 2)

    def test_adding(self, base):
        index = IvfIndex.build(base[:3000])
        index.add(base[3000:])
        own = index.search(base[3500:3600], 1)
        assert index.n == N and (own.indices[:, 0] == np.arange(3500, 3600)).mean() > 0.9


def of_batches(n, seed, numbers=(0, 1, 2)):
    """Return clustered vectors, shifted by batch, and the batch number of each vector."""
    which = np.array(numbers)[np.random.default_rng(seed).integers(0, len(numbers), n)]
    off = np.random.default_rng(7).normal(size=(9, DIM)) * 1.5
    return (clustered(n, seed) + off[which]).astype(np.float32), which.astype(np.int64)


@pytest.fixture(scope="module")
def tuned():
    rows, batches = of_batches(N, 0)
    return rows, batches, IvfIndex.build(rows, recall=TARGET, batches=batches)


class TestBatches:
    """Cells of an unseen batch lie outside of the cells in the index."""

    @pytest.mark.parametrize("k", [15, 50])
    def test_the_target_is_reached_for_unseen_batches(self, tuned, k):
        rows, _, index = tuned
        assert (set(index.settings.recall), index.settings.n_batches) == (
            {"at_15", "at_50", "unseen_15", "unseen_50"},
            3,
        )
        assert index.settings.recall[f"unseen_{k}"] > TARGET - 0.03
        for new in (3, 4, 5):
            queries, _ = of_batches(200, 50 + new, (new,))
            assert share(index.search(queries, k).indices, truth(rows, queries, k)) >= TARGET - 0.03

    def test_a_left_out_batch_does_not_find_its_own_rows(self, tuned):
        rows, batches, index = tuned
        part = _left_out(index, batches, seed=0)[1]
        mine = np.flatnonzero(np.unpackbits(part._bits, bitorder="little")[:N] == 0)
        assert len(np.unique(batches[mine])) == 1 and (batches == batches[mine[0]]).sum() == len(mine)
        others = np.setdiff1d(np.arange(N), mine)
        np.testing.assert_array_equal(part._truth[:20], truth(rows, part._queries[:20], 50, others))
        # With all lists open, except those of the batch only, almost no neighbour is missed.
        assert (part.places(index.settings.n_lists, None, N) < N).mean() > 0.97

    def test_lists_with_only_the_left_out_batch_stay_closed(self):
        rows = clustered(1600, 3)
        batches = np.arange(1600) % 2
        rows[batches == 1] += 40.0
        index = IvfIndex.build(rows, recall=0.8, n_lists=32)
        for part, mine in zip(_left_out(index, batches, seed=0), (0, 1), strict=True):
            others = set(index.codes.list_of()[batches != mine])
            assert set(part._lists[0]) == others and part._fraction == len(others) / 32 < 0.7

    def test_few_lists_are_closed_if_batches_overlap(self, index):
        parts = _left_out(index, np.arange(N) % 3, seed=0)
        assert len(parts) == 3 and all(part._fraction > 0.95 for part in parts)

    def test_list_of_returns_the_list_of_each_row(self, index, base):
        nearest, _ = index.lists(index.codes.prepared(base), 1)
        np.testing.assert_array_equal(index.codes.list_of(), nearest[:, 0])

    @pytest.mark.parametrize("batches", [np.zeros(N, np.int64), np.arange(N)], ids=["one", "all alone"])
    def test_no_batch_is_large_enough_to_leave_out(self, index, batches):
        assert _left_out(index, batches, seed=0) == []


class TestReach:
    """``reach`` closes lists that are much farther than the nearest list."""

    def test_queries_among_the_vectors_open_fewer_lists(self, tuned):
        rows, _, index = tuned
        assert index.effort.reach is not None
        far, _ = of_batches(200, 60, (5,))
        opened = []
        for queries in (rows[:200], far):
            lists, distances = index.lists(index.codes.prepared(queries), index.effort.nprobe)
            opened.append((index.codes.within(lists, distances, index.effort.reach, 0) >= 0).mean())
        assert opened[0] < opened[1]

    def test_a_query_gets_equal_results_alone_and_k_neighbours(self, index):
        near = index.at_effort(Effort(40, 4, 0.0))
        queries = clustered(60, 11)
        whole = near.search(queries, 100)
        assert (whole.indices >= 0).all()
        for i in range(0, 60, 7):
            np.testing.assert_array_equal(near.search(queries[i : i + 1], 100).indices[0], whole.indices[i])


class TestSubsets:
    def test_a_small_subset_is_scanned_completely(self, index, base):
        rows = np.random.default_rng(0).choice(N, 700, replace=False)
        queries = clustered(40, 1)
        found = index.search(queries, 9, subset=rows).indices
        np.testing.assert_array_equal(found, truth(base, queries, 9, np.sort(rows)))

    def test_a_large_subset(self, index, base):
        rows = np.arange(0, N, 2)
        queries = clustered(200, 1)
        found = index.search(queries, 15, subset=rows).indices
        assert (found % 2 == 0).all()
        assert share(found, truth(base, queries, 15, rows)) >= TARGET - 0.03
        alone = index.search(queries[3:4], 15, subset=rows).indices
        np.testing.assert_array_equal(alone[0], found[3])

    def test_a_subset_far_from_the_queries(self, index, base):
        # A filter that depends on the vectors, like a cell type: most queries have no allowed row nearby.
        rows = np.argsort(base[:, 0])[: N // 3]
        queries = clustered(100, 1)
        found = index.search(queries, 15, subset=rows).indices
        assert np.isin(found, rows).all()
        assert share(found, truth(base, queries, 15, np.sort(rows))) > 0.75

    @pytest.mark.parametrize("bad", [[-1], [N]])
    def test_rows_that_do_not_exist_are_refused(self, index, bad):
        with pytest.raises(InputError):
            index.search(clustered(2, 1), 3, subset=np.array(bad))


class TestFiles:
    def saved(self, index, folder):
        index.save(folder / "i.faiss")
        return folder / "i.faiss", index.settings.to_dict()

    def test_save_and_load(self, index, base, tmp_path):
        path, settings = self.saved(index, tmp_path)
        again = open_index(path, "ivf", n=N, dim=DIM, vectors=base, settings=settings)
        a, b = index.search(clustered(50, 1), 15), again.search(clustered(50, 1), 15)
        np.testing.assert_array_equal(a.indices, b.indices)
        np.testing.assert_array_equal(a.distances, b.distances)
        assert path.stat().st_size < base.nbytes * 0.75
        assert again.settings == index.settings

    @pytest.mark.parametrize("keep", [0, 10, 3000, -100])
    def test_truncated(self, index, base, tmp_path, keep):
        path, settings = self.saved(index, tmp_path)
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(StoreError):
            open_index(path, "ivf", vectors=base, settings=settings)

    def test_other_vectors_or_another_kind_are_refused(self, index, base, tmp_path):
        path, settings = self.saved(index, tmp_path)
        with pytest.raises(StoreError, match="IndexPreTransform"):
            open_index(path, "ivf", vectors=base[:-1], settings=settings)
        with pytest.raises(StoreError):
            open_index(path, "flat")
        build_index(base).save(path)
        with pytest.raises(StoreError, match="IndexFlat"):
            open_index(path, "ivf", vectors=base, settings=settings)

    @pytest.mark.parametrize(
        "spoil",
        [
            {"nprobe": 0},
            {"nprobe": 10**9},
            {"factor": "8"},
            {"factor": 10**6},
            {"n_lists": 7},
            {"curve": [1]},
            {"reach": -1.0},
            {"reach": "2"},
            {"curve": [[0.9, 4, 4, float("nan")]]},
        ],
        ids=["none", "too many", "text", "factor", "lists", "curve", "reach", "reach as text", "no number"],
    )
    def test_bad_settings_are_refused(self, index, base, tmp_path, spoil):
        path, settings = self.saved(index, tmp_path)
        with pytest.raises(StoreError):
            open_index(path, "ivf", vectors=base, settings=settings | spoil)
        with pytest.raises(StoreError, match="settings"):
            open_index(path, "ivf", vectors=base)

    def test_rows_that_do_not_exist_are_refused(self, base, index, tmp_path):
        import faiss

        path, settings = self.saved(index, tmp_path)
        hostile = faiss.read_index(str(path))
        hostile.reset()
        hostile.add_with_ids(base, np.arange(N) + 10**9)
        faiss.write_index(hostile, str(path))
        opened = open_index(path, "ivf", vectors=base, settings=settings)
        with pytest.raises(StoreError, match="rows"):
            opened.search(clustered(3, 1), 5)

    def test_two_builds_write_the_same_bytes(self, index, base, tmp_path):
        index.save(tmp_path / "a")
        other = IvfIndex.build(base, recall=TARGET)
        other.save(tmp_path / "b")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        assert other.settings == index.settings


def test_kinds_by_size():
    assert kind_for(FLAT_BELOW - 1, 128) == "flat"
    assert kind_for(FLAT_BELOW, 128) == "ivf"
    assert kind_for(100_000, 1000, memory=500 << 20) == "ivf"
    assert kind_for(100_000, 1000, memory=2 << 30) == "flat"
    assert kind_for(1000, 1000, memory=1 << 20) == "flat"
    assert kind_for(10**6, 2) == "flat"


def test_number_of_lists():
    assert [IvfSettings.lists_for(n) for n in (1000, 200_000, 10**6, 10**8)] == [64, 1024, 2048, 16384]


def test_places():
    found = np.array([[5, 3, -1], [2, 9, 4]])
    wanted = np.array([[3, 7, -1], [4, 2, 2]])
    np.testing.assert_array_equal(places(found, wanted), [[1, 3, 3], [2, 0, 0]])


def test_too_few_vectors():
    with pytest.raises(InputError, match="too few"):
        IvfIndex.build(np.zeros((3, 2), np.float32), n_lists=8)
