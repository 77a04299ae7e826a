"""References with appended and deleted cells: searching, storing, checking and merging."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvec.base.errors import InputError, StoreError
from scvec.stores.index import build_index
from scvec.stores.index.flat import FaissFlatIndex
from scvec.stores.index.shards import SegmentedIndex
from scvec.stores.store.manifest import Manifest, ReferenceEntry, SegmentEntry
from scvec.stores.store.store import Store

DIM = 8


def rows(n: int, seed: int = 0) -> Any:
    # Few different values, so that many distances are equal and the row number decides.
    return np.random.default_rng(seed).integers(0, 3, (n, DIM)).astype(np.float32)


def flat(vectors: Any) -> FaissFlatIndex:
    index = FaissFlatIndex(DIM)
    index.add(vectors)
    return index


# -- searching -----------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    k=st.integers(1, 30),
    share_gone=st.floats(0, 1),
    share_asked=st.none() | st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_segments_equal_one_index_of_the_remaining_rows(
    sizes: list[int], k: int, share_gone: float, share_asked: float | None, seed: int
):
    rng = np.random.default_rng(seed)
    everything, queries = rows(sum(sizes), seed), rows(5, seed + 1)
    gone = np.flatnonzero(rng.random(len(everything)) < share_gone)
    left = np.delete(everything, gone, axis=0)
    subset = None if share_asked is None else np.flatnonzero(rng.random(len(left)) < share_asked)
    parts = np.split(everything, np.cumsum(sizes)[:-1])
    segmented = SegmentedIndex([flat(part) for part in parts], gone)
    assert (segmented.n, segmented.dim) == left.shape
    found, truth = segmented.search(queries, k, subset=subset), flat(left).search(queries, k, subset=subset)
    np.testing.assert_array_equal(found.indices, truth.indices)
    np.testing.assert_array_equal(found.distances, truth.distances)


def test_queries_whose_neighbours_are_all_deleted_search_again():
    near, far = rows(200), rows(50, 1) + np.float32(100)
    segmented = SegmentedIndex([flat(np.concatenate([near, far])), flat(far + 1)], np.arange(195))
    left = np.concatenate([near[195:], far, far + 1])
    found, truth = segmented.search(near[:9], 20), flat(left).search(near[:9], 20)
    np.testing.assert_array_equal(found.indices, truth.indices)
    np.testing.assert_array_equal(found.distances, truth.distances)


@pytest.mark.slow
def test_an_approximate_segment_never_finds_deleted_rows():
    vectors = np.random.default_rng(0).normal(size=(3000, DIM)).astype(np.float32)
    queries = vectors[:50] + np.float32(1e-3)
    gone = np.arange(0, 3000, 3)
    segmented = SegmentedIndex([build_index(vectors[:2500], "ivf"), flat(vectors[2500:])], gone)
    left = np.delete(vectors, gone, axis=0)
    found, truth = segmented.search(queries, 10), flat(left).search(queries, 10)
    assert np.mean([np.isin(t, f).mean() for t, f in zip(truth.indices, found.indices, strict=True)]) > 0.9
    at = found.indices[:, 0]
    np.testing.assert_allclose(found.distances[:, 0], ((left[at] - queries) ** 2).sum(axis=1), rtol=1e-4)


@pytest.mark.parametrize(
    ("segments", "gone"),
    [([], []), ([flat(rows(3))], [3]), ([flat(rows(3))], [1, 1]), ([flat(rows(3)), FaissFlatIndex(2)], [])],
    ids=["no segment", "a row that is not there", "twice", "two dimensions"],
)
def test_invalid_segments_are_refused(segments: Any, gone: list[int]):
    with pytest.raises(ValueError, match=r"segments|rows"):
        SegmentedIndex(segments, np.array(gone, dtype=np.int64))


def test_queries_are_checked():
    segmented = SegmentedIndex([flat(rows(3))], np.array([1]))
    with pytest.raises(InputError):
        segmented.search(rows(1)[:, :2], 1)
    with pytest.raises(InputError):
        segmented.search(rows(1), 1, subset=np.array([2]))
    assert segmented.search(rows(0), 4).indices.shape == (0, 4)


# -- storing -------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store.open(tmp_path / "store", create=True)
    with opened.begin("put") as txn:
        txn.put_reference("r", meta={"a": 1}, tensors=TENSORS, obs=table(20), vectors=rows(20))
        txn.commit()
    return opened


TENSORS = {"w": np.ones(2, dtype=np.float32)}


def table(n: int) -> pd.DataFrame:
    return pd.DataFrame({"x": range(n)}, index=[f"c{i}" for i in range(n)])


def grow(store: Store, n: int = 5, seed: int = 1) -> None:
    with store.begin("grow") as txn:
        old = store.reference("r")
        txn.add_cells("r", meta=old.meta, obs=table(old.n + n), vectors=rows(n, seed))
        txn.commit()


def shrink(store: Store, gone: list[int]) -> None:
    with store.begin("shrink") as txn:
        old = store.reference("r")
        left = table(old.n).drop(index=[f"c{i}" for i in gone])
        txn.drop_cells("r", np.array(gone), meta=old.meta, tensors=old.tensors, obs=left)
        txn.commit()


def test_only_what_is_new_is_written(store: Store):
    before = set(store.generation.manifest.files)
    grow(store)
    written = sorted(name.split("-")[0] for name in set(store.generation.manifest.files) - before)
    assert written == ["r.index", "r.obs", "r.vectors"]
    before = set(store.generation.manifest.files)
    shrink(store, [0, 22])
    assert sorted(name.split("-")[0] for name in set(store.generation.manifest.files) - before) == [
        "r.deleted",
        "r.obs",
    ]


def test_rows_are_numbered_like_those_of_a_new_reference(store: Store):
    wanted = rows(20)
    assert store.reference("r").is_whole
    for step in range(3):
        grow(store, 5, seed=step)
        wanted = np.concatenate([wanted, rows(5, step)])
        gone = [1, len(wanted) // 2, len(wanted) - 1]
        shrink(store, gone)
        wanted = np.delete(wanted, gone, axis=0)
        stored = store.reference("r")
        assert (stored.n, stored.n_segments, stored.n_deleted) == (len(wanted), step + 2, 3 * (step + 1))
        assert not stored.is_whole and len(stored.obs) == stored.index.n == stored.n
        np.testing.assert_array_equal(stored.vectors, wanted)
        found, truth = stored.searcher().search(rows(4, 9), 7), flat(wanted).search(rows(4, 9), 7)
        np.testing.assert_array_equal(found.indices, truth.indices)
    assert store.verify().ok


@pytest.mark.slow
def test_an_approximate_reference_grows_and_is_searched_exactly(store: Store):
    vectors = np.random.default_rng(0).normal(size=(1200, DIM)).astype(np.float32)
    more = np.random.default_rng(1).normal(size=(2, 100, DIM)).astype(np.float32)
    with store.begin("put") as txn:
        index = build_index(vectors, "ivf")
        txn.put_reference("r", meta={}, tensors=TENSORS, obs=table(1200), vectors=vectors, index=index)
        for i, new in enumerate(more):
            meta = txn.reference("r").meta
            txn.add_cells("r", meta=meta, obs=table(1300 + 100 * i), vectors=new)
        txn.commit()
    shrink(store, [0, 1250])
    left = np.delete(np.concatenate([vectors, *more]), [0, 1250], axis=0)
    stored, truth = store.reference("r"), flat(left).search(left[:40], 9)
    assert [segment.kind for segment in stored.index.segments] == ["ivf", "flat"]
    found = stored.searcher(exact=True).search(left[:40], 9)
    np.testing.assert_array_equal(found.indices, truth.indices)
    for near in (stored.searcher(), stored.searcher(recall=0.99)):
        hits = near.search(left[:40], 9).indices
        assert np.mean([np.isin(t, f).mean() for t, f in zip(truth.indices, hits, strict=True)]) > 0.9
    assert store.verify().ok


def approximate(store: Store, indexed: Any, stored: Any) -> None:
    """Store a reference with an index of the vectors ``indexed``."""
    index = build_index(indexed, "ivf")
    with store.begin("put") as txn:
        obs = table(len(stored))
        txn.put_reference("r", meta={}, tensors=TENSORS, obs=obs, vectors=stored, index=index)
        txn.commit()


def test_duplicate_cells_are_not_reported_as_damage(store: Store):
    once = np.random.default_rng(0).normal(size=(60, DIM)).astype(np.float32)
    approximate(store, np.repeat(once, 20, axis=0), np.repeat(once, 20, axis=0))
    assert store.verify().problems == []


@pytest.mark.slow
def test_an_approximate_index_of_other_vectors_is_reported(store: Store):
    made, stored = np.random.default_rng(0).normal(size=(2, 1200, DIM)).astype(np.float32)
    approximate(store, made, stored)
    [problem] = store.verify().problems
    assert "of the neighbours of its own vectors" in problem


def test_every_state_has_its_own_fingerprint(store: Store):
    seen = []
    for change in (lambda: None, lambda: grow(store), lambda: shrink(store, [3]), lambda: shrink(store, [4])):
        change()
        stored = store.reference("r")
        seen += [stored.fingerprint, stored.cells_fingerprint]
    assert len(set(seen)) == 8


def test_verify_checks_every_segment(store: Store):
    grow(store)
    manifest = store.generation.manifest
    [segment] = manifest.references["r"].appended
    path = store.path / "files" / segment.vectors
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    report = store.verify()
    assert not report.ok and any(segment.vectors in problem for problem in report.problems)


def test_a_table_or_rows_of_another_length_are_refused(store: Store):
    with store.begin("grow") as txn:
        with pytest.raises(InputError, match="20 rows for 25 cells"):
            txn.add_cells("r", meta={}, obs=table(20), vectors=rows(5))
        with pytest.raises(InputError, match="cell vectors"):
            txn.add_cells("r", meta={}, obs=table(25), vectors=rows(5)[:, :3])
        with pytest.raises(InputError, match="20 rows for 19 cells"):
            txn.drop_cells("r", np.array([2]), meta={}, tensors=TENSORS, obs=table(20))
        with pytest.raises(KeyError):
            txn.add_cells("s", meta={}, obs=table(5), vectors=rows(5))
    assert store.reference("r").is_whole


def test_inconsistent_files_are_refused(store: Store):
    shrink(store, [1, 2])
    manifest = store.generation.manifest
    raw = json.loads(manifest.to_bytes())
    raw["references"]["r"].update(n_deleted=1, n=19)
    odd = Manifest.from_bytes(json.dumps(raw).encode(), "here")
    store.generation.manifest = odd
    with pytest.raises(StoreError, match="instead of 1") as caught:
        _ = store.reference("r").deleted
    assert caught.value.code == "store-damaged"


# -- the manifest --------------------------------------------------------------------------------------

FILES = {"meta": "m", "tensors": "t", "obs": "o", "vectors": "v", "index": "i"}
ENTRY: dict[str, Any] = {"n": 5, "dim": 2, "index_kind": "flat", **FILES}


def test_an_entry_goes_to_json_and_back():
    whole = ReferenceEntry(**ENTRY)
    assert whole.is_whole and set(whole.to_dict()) == set(ENTRY)
    grown = ReferenceEntry(**ENTRY, appended=(SegmentEntry(2, "w", "j"),), deleted="g", n_deleted=1)
    assert grown.n_first == 4 and set(grown.files()) == {"m", "t", "o", "v", "i", "w", "j", "g"}
    for entry in (whole, grown):
        assert ReferenceEntry.from_dict(json.loads(json.dumps(entry.to_dict()))) == entry


@pytest.mark.parametrize(
    "odd",
    [
        {"n_deleted": 1},
        {"deleted": "g"},
        {"deleted": "../g", "n_deleted": 1},
        {"n_deleted": True, "deleted": "g"},
        {"appended": [{"n": 9, "vectors": "w", "index": "j"}]},
        {"appended": [{"n": 0, "vectors": "w", "index": "j"}]},
        {"appended": [{"n": 1, "vectors": "/w", "index": "j"}]},
    ],
    ids=str,
)
def test_invalid_entries_are_refused(odd: dict[str, Any]):
    with pytest.raises(ValueError, match=r"reference|plain file name"):
        ReferenceEntry.from_dict({**ENTRY, **odd})
