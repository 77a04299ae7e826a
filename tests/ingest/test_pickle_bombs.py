"""Pickles that unfold, claim or are damaged: refused within limits of memory and time."""

from __future__ import annotations

import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pickle_parts import load, named, short

from scvec.base.errors import InputError, ResourceError, ScvecError


def laughs() -> bytes:
    value: Any = ["ha"] * 10
    for _ in range(12):
        value = [value] * 10
    return pickle.dumps(value)


def dictionaries() -> bytes:
    value: Any = {}
    for _ in range(12):
        value = dict.fromkeys(range(10), value)
    return pickle.dumps(value)


def tower(n: int) -> bytes:
    return b"\x80\x04" + b"]" * n + b"a" * (n - 1) + b"."


def claim(shape: bytes) -> bytes:
    data = pickle.dumps(np.arange(4.0), 2)
    assert b"K\x04\x85" in data
    return data.replace(b"K\x04\x85", shape)


def collisions(n: int) -> bytes:
    """Pickle of a dictionary whose keys have one hash, without making it, which takes n**2 steps."""
    keys = (k * (2**61 - 1) for k in range(1, n))
    entries = b"".join(b"\x8a\x0a" + key.to_bytes(10, "little") + b"N" for key in keys)
    return b"\x80\x04}(" + entries + b"u."


BOMBS = {
    "a billion references": laughs(),
    "a billion entries": dictionaries(),
    "a tower of lists": tower(30_000),
    "a tower of tuples": b"\x80\x04)" + b"\x85" * 50_000 + b".",
    "a tower of tuples as a key": b"\x80\x04})" + b"\x85" * 50_000 + b"K\x01s.",
    "a list that holds itself": b"\x80\x04]\x94h\x00a.",
    "a dictionary that holds itself": b"\x80\x04}\x94K\x01h\x00s.",
    "bytes longer than the file": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "text longer than the file": b"\x80\x04X\xff\xff\xff\x7fx.",
    "a long number": b"\x80\x02\x8b" + struct.pack("<I", 2**20) + b"\x01" * 2**20 + b".",
    "a number of many digits": b"I" + b"9" * 100_000 + b"\n.",
    "an array of 2**40": claim(b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85"),
    "an array of negative length": claim(b"J\xff\xff\xff\xff\x85"),
    "an array of other length": claim(b"K\x05\x85"),
    "an array of texts": claim(b"X\x01\x00\x00\x00x\x85"),
    "sets of one list": b"\x80\x04](" + b"K\x01" * 30_000 + b"e\x940" + b"".join(
        [b"("] + [named("builtins", "set") + b"h\x00\x85R"] * 3_000) + b"l.",
    "keys that collide": collisions(50_000),
    "one text made bytes again and again": b"\x80\x04X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"\x940"
        + b"(" + (named("_codecs", "encode") + b"h\x00" + short("latin1") + b"\x86R") * 1000 + b"l.",
    "one vector of a thousand genes": pickle.dumps([[0.5] * 10_000] * 30_000),
    "a wide list that holds itself": b"\x80\x04]\x94(h\x00" + b"N" * 200_000 + b"h\x00e.",
    "a bytearray longer than the file": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
    "an empty array of many lengths": claim(b"(K\x00" + b"\x8a\x08" + b"\xff" * 7 + b"\x3f" + b"Nt"),
    "an array of tuples as its shape": b"\x80\x04)" + b"\x85" * 50_000 + b"\x94"
        + named("numpy._core.numeric", "_frombuffer") + b"(C\x01x" + named("numpy", "dtype") + short("u1")
        + b"\x85Rh\x00" + short("C") + b"tR.",
    "empty": b"\x80\x04.",
    "no end": pickle.dumps({"a": [1.0] * 100})[:-1],
    "cut in half": pickle.dumps({"a": [1.0] * 100})[:400],
    "two pickles": pickle.dumps({}) + pickle.dumps({}),
    "text": b"symbol,1,2\nINS,0.5,0.5\n",
    "noise": bytes(range(256)) * 4,
    "zeros": bytes(1000),
    "stack underflow": b"\x80\x04\x85\x85aaa.",
    "mark on the stack": b"\x80\x04((.",
    "unknown reference": b"\x80\x04h\x09.",
    "a list as a key": b"\x80\x04}]K\x01s.",
    "another protocol": b"\x80\x09}.",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_and_damage_are_refused(tmp_path: Path, name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ScvecError) as caught:
            load(tmp_path, BOMBS[name], memory="256M")
        assert tracemalloc.get_traced_memory()[1] < 2**28
    finally:
        tracemalloc.stop()
    assert caught.value.exit_code in (2, 6)
    assert len(caught.value.lines()) == 3


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("bytes longer than the file", "truncated"),
        ("text longer than the file", "truncated"),
        ("a long number", "that is not a plain value"),
        ("a tower of lists", "nests too deeply"),
        ("two pickles", "data after its end"),
        ("no end", "truncated"),
        ("an array of 2**40", "wrong size"),
        ("an array of other length", "wrong size"),
        ("a billion references", "expands too much"),
        ("a billion entries", "expands too much"),
        ("a tower of tuples as a key", "a key that is neither"),
        ("keys that collide", "a key that is neither"),
    ],
)
def test_the_message_about_a_bomb(tmp_path: Path, name: str, what: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, BOMBS[name])
    assert caught.value.code == "wrong-format" and what in caught.value.what


def test_what_needs_more_memory_than_allowed_is_not_read(tmp_path: Path) -> None:
    for data in (b"\x80\x04(" + b"N" * 2_000_000 + b"l.", b"\x80\x04(" + b"\x8f" * 2_000_000 + b"l."):
        with pytest.raises(ResourceError, match="memory") as caught:
            load(tmp_path, data, memory="64M")
        assert "--memory" in caught.value.fix and caught.value.exit_code == 6


def test_a_file_larger_than_the_memory_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it was read"))
    with pytest.raises(ResourceError):
        load(tmp_path, {"INS": "a text"}, memory=10)


def test_the_vectors_of_all_genes_take_seconds_and_the_memory_that_was_said(tmp_path: Path) -> None:
    table = {f"GENE{i}": [i + 0.5] * 1536 for i in range(1000)}
    tracemalloc.start()
    got = load(tmp_path, table, memory="160M")
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert got == table and used < 160 * 2**20


@settings(max_examples=200)
@given(st.data())
def test_a_flipped_byte_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    good = pickle.dumps({"INS": np.arange(4.0), "GCG": [0.5] * 70, 3: "text", "k": (None, {"a": b"x"})}, 4)
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + bytes([data.draw(st.integers(0, 255))]) + good[at + 1 :]
    try:
        load(tmp_path, bad)
    except ScvecError as error:
        assert error.exit_code in (2, 6)
