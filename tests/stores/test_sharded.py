"""A sharded index returns the results of one index, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.base.errors import InputError
from scvec.stores.index import build_index
from scvec.stores.index.distances import brute_force
from scvec.stores.index.shards import ShardedIndex, search_rows, spans


def in_pieces(vectors, parts, kind="flat"):
    """Return a sharded index of vectors; its shards are searched in this process."""
    held = spans(len(vectors), parts)
    pieces = [(build_index(vectors[a:b], kind), vectors[a:b], a) for a, b in held]

    def ask(queries, k, subsets):
        return [
            search_rows(index, rows, first, queries, k, subset)
            for (index, rows, first), subset in zip(pieces, subsets, strict=True)
        ]

    return ShardedIndex(vectors.shape[1], held, ask)


def same(found, expected):
    assert np.array_equal(found.indices, expected.indices)
    assert found.distances.tobytes() == expected.distances.tobytes()


@settings(max_examples=40)
@given(
    st.integers(1, 60),
    st.integers(1, 9),
    st.integers(1, 80),
    st.integers(0, 2**16),
    st.sampled_from([1.0, 0.0, 1e-6]),
    st.booleans(),
)
def test_any_number_of_shards_equals_one_index(n, parts, k, seed, scale, narrowed):
    # Scale 0: all rows are equal. 1e-6: distances differ in float64 but are equal in float32.
    rng = np.random.default_rng(seed)
    vectors = (1 + scale * rng.integers(-2, 3, (n, 4))).astype(np.float32)
    vectors += (1e-7 * rng.integers(0, 2, (n, 4))).astype(np.float32)
    queries = vectors[rng.integers(0, n, 3)] + np.float32(scale)
    subset = np.flatnonzero(rng.random(n) < 0.4) if narrowed else None
    expected = brute_force(vectors, queries, k, subset)
    same(in_pieces(vectors, parts).search(queries, k, subset=subset), expected)
    same(build_index(vectors).search(queries, k, subset=subset), expected)


def test_equal_distances_across_shards_come_by_row():
    vectors = np.array([[3, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], dtype=np.float32)
    found = in_pieces(vectors, 3).search(np.zeros((1, 2), np.float32), 5)
    assert found.indices.tolist() == [[1, 2, 3, 4, 0]]
    assert found.distances.tolist() == [[1, 1, 1, 1, 9]]


def test_distances_that_float32_cannot_tell_apart_keep_their_order():
    # Row 0 is farther by less than float32 resolves. With float32 it would come first.
    far = np.nextafter(np.float32(1), np.float32(2))
    vectors = np.array([[1, 3e-5], [1, 0], [far, 0]], dtype=np.float32)
    found = in_pieces(vectors, 3).search(np.zeros((1, 2), np.float32), 2)
    assert found.distances[0, 0] == found.distances[0, 1]
    assert found.indices.tolist() == [[1, 0]]


def test_a_sharded_index_refuses_bad_queries():
    index = in_pieces(np.eye(4, dtype=np.float32), 2)
    assert (index.n, index.dim) == (4, 4)
    with pytest.raises(InputError, match="dimensions"):
        index.search(np.zeros((1, 3), np.float32), 1)
    with pytest.raises(InputError, match="outside"):
        index.search(np.zeros((1, 4), np.float32), 1, subset=np.array([4]))
    with pytest.raises(InputError, match="NaN"):
        index.search(np.full((1, 4), np.nan, np.float32), 1)
    assert index.search(np.zeros((0, 4), np.float32), 3).indices.shape == (0, 3)
    with pytest.raises(TypeError):
        index.add(np.eye(4, dtype=np.float32))


@given(st.integers(1, 1000), st.integers(1, 50))
def test_spans_cover_all_rows_once(n, parts):
    held = spans(n, parts)
    assert [row for a, b in held for row in range(a, b)] == list(range(n))
    sizes = [b - a for a, b in held]
    assert len(held) == min(parts, n)
    assert max(sizes) - min(sizes) <= 1


def test_shards_with_a_gap_between_them_are_refused():
    with pytest.raises(ValueError, match="consecutive"):
        ShardedIndex(2, [(0, 3), (4, 6)], lambda queries, k, subsets: [])
