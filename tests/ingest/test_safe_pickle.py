"""Pickles: plain values are read unchanged."""

from __future__ import annotations

import collections
import math
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pickle_parts import load

ARRAYS = {
    "float32": np.arange(6, dtype="f4").reshape(2, 3),
    "big-endian": np.arange(3, dtype=">i8"),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "half": np.ones(3, dtype="f2"),
    "bools": np.array([True, False]),
    "names": np.array(["INS", "GCG"]),
    "byte strings": np.array([b"INS", b"G"]),
    "empty": np.zeros((0, 4)),
    "scalar-shaped": np.array(1.5),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    plain = {
        "text": "β",
        "none": None,
        "tuple": (1, True),
        7: {"set": {1, 2}},
        "bytes": b"\xff\x00",
        "n": -(2**80),
    }
    odd = {
        "ordered": collections.OrderedDict(a=1),
        "np float": np.float32(0.5),
        "np int": np.int64(3),
        "np text": np.str_("INS"),
        "frozen": frozenset(["a"]),
    }
    got = load(tmp_path, {**plain, **odd, **ARRAYS}, protocol)
    assert {k: got[k] for k in plain} == plain
    assert [got[k] for k in odd] == [{"a": 1}, 0.5, 3, "INS", frozenset(["a"])]
    assert type(got["np int"]) is int and type(got["ordered"]) is dict
    for name, array in ARRAYS.items():
        assert got[name].shape == array.shape
        assert got[name].dtype == array.dtype.newbyteorder("<")
        np.testing.assert_array_equal(got[name], array)


def test_a_pickle_as_python_2_and_numpy_1_wrote_it(tmp_path: Path) -> None:
    # {'INS': array([1., 2.])}, protocol 2: the raw bytes are a str there, and the module is numpy.core.
    raw = struct.pack("<2d", 1.0, 2.0)
    data = (
        b"\x80\x02}U\x03INScnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89U\x10" + raw + b"tbs."
    )
    np.testing.assert_array_equal(load(tmp_path, data)["INS"], [1.0, 2.0])


def test_long_lists_of_floats_keep_every_bit(tmp_path: Path) -> None:
    values = [0.1 * k for k in range(3000)] + [math.inf, -0.0, math.nan]
    mixed = [0.5] * 5 + [1] * 5 + [0.25]
    for protocol in (0, 2, 4):
        got = load(tmp_path, {"INS": values, "mixed": mixed}, protocol)
        assert np.array(got["INS"]).tobytes() == np.array(values).tobytes()
        assert repr(got["mixed"]) == repr(mixed)


keys = st.text(max_size=8) | st.integers(1 - 2**60, 2**60 - 1)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False)
    | st.text(max_size=12)
    | st.binary(max_size=12)
)
plain_values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4) | st.tuples(inner, inner)
    ),
    max_leaves=25,
)


@settings(max_examples=200)
@given(plain_values, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_come_back_as_they_were(tmp_path: Path, value: Any, protocol: int) -> None:
    got = load(tmp_path, pickle.dumps(value, protocol))
    assert got == value
    assert repr(got) == repr(value)  # 1, 1.0 and True are told apart
