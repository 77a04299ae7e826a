"""The search code of a GPU, run on a CPU: its neighbours are bit-identical to those of brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.base.errors import ResourceError
from scvec.stores.index.distances import brute_force
from scvec.stores.index.flat import FaissFlatIndex, TorchIndex, on_device


def vectors(n: int, dim: int, seed: int = 0, scale: float = 1.0, centre: float = 0.0) -> Any:
    made = np.random.default_rng(seed).normal(size=(n, dim)) * scale + centre
    return made.astype(np.float32)


def flat(base: Any) -> FaissFlatIndex:
    index = FaissFlatIndex(base.shape[1])
    index.add(base)
    return index


def same(found: Any, base: Any, queries: Any, k: int, subset: Any = None) -> None:
    wanted = brute_force(base, queries, k, None if subset is None else np.unique(subset))
    np.testing.assert_array_equal(found.indices, wanted.indices)
    np.testing.assert_array_equal(found.distances, wanted.distances)


@settings(max_examples=40)
@given(
    st.integers(1, 400),
    st.integers(1, 40),
    st.integers(1, 30),
    st.integers(1, 50),
    st.sampled_from([(1.0, 0.0), (0.01, 100.0), (1e-20, 0.0), (1e18, 0.0), (1e-3, 1.0), (0.0, 1.0)]),
    st.booleans(),
    st.integers(0, 999),
)
def test_it_agrees_with_brute_force(
    n: int, dim: int, k: int, tile: int, kind: tuple[float, float], part: bool, seed: int
) -> None:
    # Far from the origin, at extreme scales, and where all rows are the same.
    base, queries = vectors(n, dim, seed, *kind), vectors(20, dim, seed + 1, *kind)
    subset = np.random.default_rng(seed).integers(0, n, max(1, n // 3)) if part else None
    same(TorchIndex(flat(base), tile_rows=tile).search(queries, k, subset=subset), base, queries, k, subset)


def test_clusters_closer_than_fp16_resolution_are_separated() -> None:
    # Rows of a cluster are equal in fp16, so only the float32 vectors show the nearest row.
    centres = vectors(20, 32, 3)
    base = np.repeat(centres, 40, axis=0) + vectors(800, 32, 4, scale=1e-5)
    queries = centres + vectors(20, 32, 5, scale=1e-5)
    index = TorchIndex(flat(base), tile_rows=100)
    assert index._error > 1e-4
    same(index.search(queries, 7), base, queries, 7)


def test_candidates_come_from_the_tiles(monkeypatch: Any) -> None:
    # On ordinary data no query falls back to a scan of all rows on the CPU.
    from scvec.stores.index import flat as faiss_index

    base, queries = vectors(3000, 64), vectors(100, 64, 1)
    index = TorchIndex(flat(base), tile_rows=500)
    monkeypatch.setattr(faiss_index, "nearest_by_scan", lambda *_: pytest.fail("looked at all rows"))
    found = index.search(queries, 15)
    same(found, base, queries, 15)


def test_a_batch_changes_nothing() -> None:
    base, queries = vectors(500, 16), vectors(60, 16, 1)
    index = TorchIndex(flat(base), tile_rows=64)
    whole = index.search(queries, 9)
    for i in range(0, 60, 7):
        alone = index.search(queries[i : i + 1], 9)
        np.testing.assert_array_equal(alone.indices[0], whole.indices[i])
        np.testing.assert_array_equal(alone.distances[0], whole.distances[i])


def test_memory_that_runs_out_halves_the_queries(monkeypatch: Any) -> None:
    base, queries = vectors(200, 8), vectors(30, 8, 1)
    index, sizes = TorchIndex(flat(base)), []
    nearest = index._nearest

    def small(asked: Any, k: int, rows: Any, most: int = 4) -> Any:
        sizes.append(len(asked))
        if len(asked) > most:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return nearest(asked, k, rows)

    monkeypatch.setattr(index, "_nearest", small)
    same(index.search(queries, 5), base, queries, 5)
    assert sizes[0] == 30 and 3 in sizes
    monkeypatch.setattr(index, "_nearest", lambda *a: small(*a, most=0))
    with pytest.raises(ResourceError, match="on the GPU"):
        index.search(queries, 5)


def test_a_cpu_keeps_its_index() -> None:
    index = flat(vectors(10, 4))
    assert on_device(index, "cpu") is index
