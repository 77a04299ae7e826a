"""Pickles: what plain ones hold comes back, and other files are told by name."""

from __future__ import annotations

import collections
import gzip
import math
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pickle_parts import load_here, write

from scvec.errors import InputError
from scvec.ingest.safe_pickle import load_plain

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
        "objects": np.array(["INS", 1, None], dtype=object),
        "frozen": frozenset(["a"]),
    }
    got = load_plain(write(tmp_path / "x.pkl", {**plain, **odd, **ARRAYS}, protocol))
    assert {k: got[k] for k in plain} == plain
    assert [got[k] for k in odd] == [{"a": 1}, 0.5, 3, "INS", ["INS", 1, None], frozenset(["a"])]
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
    np.testing.assert_array_equal(load_plain(write(tmp_path / "x.pkl", data))["INS"], [1.0, 2.0])


def test_long_lists_of_floats_come_back_as_arrays_with_every_bit(tmp_path: Path) -> None:
    values = [0.1 * k for k in range(3000)] + [math.inf, -0.0, math.nan]
    got = load_plain(write(tmp_path / "x.pkl", {"INS": values, "short": values[:5], "ints": [1] * 100}))
    assert got["INS"].dtype == np.float64
    assert got["INS"].tobytes() == np.array(values).tobytes()
    assert got["short"] == values[:5] and got["ints"] == [1] * 100


keys = st.text(max_size=8) | st.integers()
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
    got = load_here(tmp_path, pickle.dumps(value, protocol))
    assert got == value
    assert repr(got) == repr(value)  # 1, 1.0 and True are told apart


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (gzip.compress(b"\x80\x04" + b"N" * 10_000_000, mtime=0), "a gzip file"),
        (b"PK\x03\x04torch", "a zip archive"),
        (b'{"INS": [0.1]}', "JSON"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x93NUMPY\x01", "a NumPy array"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"", "empty"),
    ],
)
def test_other_files_are_told_by_their_first_bytes(tmp_path: Path, head: bytes, what: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        load_plain(write(tmp_path / "x.pkl", head))
    assert caught.value.fix


def test_missing_files_folders_and_files_that_are_too_large(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pkl", tmp_path):
        with pytest.raises(InputError, match=r"no such file|a folder"):
            load_plain(path)
    with pytest.raises(InputError, match="at most 10 bytes"):
        load_plain(write(tmp_path / "x.pkl", {"INS": "a text"}), max_bytes=10)
