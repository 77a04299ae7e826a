"""What must be true of an answer with vectors; whatever a server may send instead."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvec.backbones.remote import vectors_of
from scvec.ingest.sources.retry import ServiceError


def packed(*numbers: float) -> str:
    return base64.b64encode(np.array(numbers, "<f4").tobytes()).decode()


def row(index: Any, embedding: Any) -> dict[str, Any]:
    return {"object": "embedding", "index": index, "embedding": embedding}


def test_rows_are_put_in_order_and_scaled() -> None:
    answer = {"data": [row(2, [0, 5.0]), row(0, packed(3.0, 4.0)), row(1, [-2, 0])]}
    got = vectors_of(answer, 3, "host")
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [[0.6, 0.8], [-1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_array_equal(vectors_of(answer, 3, "host", 2), got)


def test_large_numbers_are_numbers() -> None:
    # Their squares are beyond single precision.
    np.testing.assert_allclose(vectors_of({"data": [row(0, [3e38, 4e38])]}, 1, "host"), [[0.6, 0.8]])


@pytest.mark.parametrize(
    "data",
    [
        None, "x", {}, 3, [], [None], [[1.0]], ["x"], [{}],
        [row(0, [1.0, 2.0])] * 2,
        [row(None, [1.0, 2.0])], [row("0", [1.0, 2.0])], [row(False, [1.0, 2.0])], [row(0.0, [1.0, 2.0])],
        [row(-1, [1.0, 2.0])], [row(1, [1.0, 2.0])], [row(10**30, [1.0, 2.0])],
        [row(0, None)], [row(0, [])], [row(0, "")], [row(0, {})], [row(0, 1.0)], [row(0, True)],
        [row(0, ["1", "2"])], [row(0, [[1.0, 2.0]])], [row(0, [1.0, None])], [row(0, [True, 2.0])],
        [row(0, [1.0, 10**400])], [row(0, [1.0, float("nan")])], [row(0, [1.0, float("inf")])],
        [row(0, [0.0, 0.0])], [row(0, [1e-200, 0.0])], [row(0, [1.0] * 3)], [row(0, [1.0])],
        [row(0, "no base64!")], [row(0, "AAAA")], [row(0, packed(1.0, 2.0)[:-1])], [row(0, "\u00e9" * 8)],
        [row(0, packed(float("nan"), 1.0))], [row(0, packed(float("inf"), 1.0))], [row(0, packed(0.0, 0.0))],
        [row(0, [1.0] * 65537)],
    ],
    ids=lambda data: repr(data)[:40],
)  # fmt: skip
def test_what_is_no_vector_is_refused(data: Any) -> None:
    with pytest.raises(ServiceError) as caught:
        vectors_of({"data": data}, 1, "host", 2)
    assert caught.value.kind == "unfit" and len(caught.value.reason) < 120
    assert caught.value.__cause__ is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["data", "index", "embedding", "x"]), inner, max_size=3
    ),
    max_leaves=12,
)  # fmt: skip


@given(JSON, st.integers(1, 3))
def test_any_json_is_vectors_or_refused(data: Any, n: int) -> None:
    try:
        got = vectors_of({"data": data}, n, "host")
    except ServiceError as error:
        assert error.kind == "unfit"
    else:
        assert len(got) == n and np.isfinite(got).all()


@given(st.permutations(range(5)), st.integers(1, 4))
def test_whatever_the_order_each_text_gets_its_own(order: list[int], dim: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((5, dim)).astype(np.float32)
    data = [row(i, packed(*vectors[i]) if i % 2 else [float(x) for x in vectors[i]]) for i in order]
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors_of({"data": data}, 5, "host"), expected, rtol=1e-6)
