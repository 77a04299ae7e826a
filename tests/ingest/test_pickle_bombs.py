"""Pickles that unfold, claim or are damaged: refused within limits of memory and time."""

from __future__ import annotations

import io
import pickle
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pickle_parts import load_here, named, write

from scvec.errors import InputError, ResourceError, ScvecError
from scvec.ingest import pickle_child, pickle_scan
from scvec.ingest.safe_pickle import load_plain


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


BOMBS = {
    "a billion references": laughs(),
    "a billion entries": dictionaries(),
    "a tower of lists": tower(100_000),
    "a tower of tuples": b"\x80\x04)" + b"\x85" * 300_000 + b".",
    "a tower of tuples as a key": b"\x80\x04})" + b"\x85" * 300_000 + b"K\x01s.",
    "a list that holds itself": b"\x80\x04]\x94h\x00a.",
    "a dictionary that holds itself": b"\x80\x04}\x94K\x01h\x00s.",
    "bytes longer than the file": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "text longer than the file": b"\x80\x04X\xff\xff\xff\x7fx.",
    "a memo of four billion": b"\x80\x04Nr\xff\xff\xff\xff.",
    "a memo of digits": b"Np99999999999999999999\n.",
    "a long number": b"\x80\x02\x8b" + struct.pack("<I", 2**20) + b"\x01" * 2**20 + b".",
    "a number of many digits": b"I" + b"9" * 100_000 + b"\n.",
    "an array of 2**40": claim(b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85"),
    "an array of negative length": claim(b"J\xff\xff\xff\xff\x85"),
    "an array of other length": claim(b"K\x05\x85"),
    "an array of texts": claim(b"X\x01\x00\x00\x00x\x85"),
    "sets of one list": b"\x80\x04](" + b"K\x01" * 30_000 + b"e\x940" + b"".join(
        [b"("] + [named("builtins", "set") + b"h\x00\x85R"] * 3_000) + b"l.",
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
    with pytest.raises(ScvecError) as caught:
        load_plain(write(tmp_path / "x.pkl", BOMBS[name]), memory="1G", timeout=200)
    assert caught.value.exit_code in (2, 6)
    assert len(caught.value.lines()) == 3
    assert "took more" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("bytes longer than the file", "longer than the file"),
        ("text longer than the file", "longer than the file"),
        ("a memo of four billion", "numbers more objects"),
        ("a memo of digits", "numbers more objects"),
        ("a long number", "whole number has 1,048,576 bytes"),
        ("a number of many digits", "whole number has 100,000 digits"),
        ("two pickles", "after the pickle ends"),
        ("no end", "cut off"),
    ],
)
def test_the_scan_refuses_before_anything_is_built(name: str, what: str) -> None:
    with pytest.raises(pickle_scan.Refused, match=what):
        pickle_scan.scan(BOMBS[name], 2**30)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("an array of 2**40", "another size"),
        ("an array of other length", "another size"),
        ("an array of texts", "no proper shape"),
        ("a billion references", "unfolds to far more"),
        ("a billion entries", "unfolds to far more"),
        ("sets of one list", "unfolds to far more"),
        ("a tower of tuples", "nested more than"),
    ],
)
def test_what_is_built_is_held_against_the_file(name: str, what: str) -> None:
    data = BOMBS[name]
    with pytest.raises(pickle_child.Refused, match=what):
        pickle_child.convert(data, io.BytesIO(data), io.BytesIO(), 2**30)


def test_what_needs_more_memory_than_allowed_is_not_read(tmp_path: Path) -> None:
    # 18 million times None on the stack: 20 MB of file, 700 MB of objects.
    path = write(tmp_path / "x.pkl", b"\x80\x04(" + b"N" * 18_000_000 + b"l.")
    with pytest.raises(ResourceError, match="memory") as caught:
        load_plain(path, memory="512M")
    assert "--memory" in caught.value.fix and caught.value.exit_code == 6


def test_a_pickle_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="took more than"):
        load_plain(write(tmp_path / "x.pkl", {"a": 1}), timeout=0.001)


@settings(max_examples=200)
@given(st.data())
def test_a_flipped_byte_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    good = pickle.dumps({"INS": np.arange(4.0), "GCG": [0.5] * 70, 3: "text", "k": (None, {"a": b"x"})}, 4)
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + bytes([data.draw(st.integers(0, 255))]) + good[at + 1 :]
    try:
        load_here(tmp_path, bad)
    except ScvecError as error:
        assert error.exit_code in (2, 6)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")
def test_limits_hold_where_the_scan_is_fooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A child whose scan lets everything pass is still held by its limits, and nothing else falls.
    source = Path(pickle_scan.__file__).read_text()
    root = tmp_path / "root" / "scvec"
    (root / "ingest").mkdir(parents=True)
    for folder in (root, root / "ingest"):
        (folder / "__init__.py").touch()
    (root / "ingest" / "pickle_scan.py").write_text(source + "\n\ndef scan(data, memory):\n    pass\n")
    child = root / "ingest" / "pickle_child.py"
    child.write_text(Path(pickle_child.__file__).read_text())
    monkeypatch.setattr(pickle_child, "__file__", str(child))
    for bomb in (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.", b"\x80\x04Nr\xff\xff\xff\xff."):
        with pytest.raises(ScvecError):
            load_plain(write(tmp_path / "x.pkl", bomb), memory="512M", timeout=200)
    assert load_plain(write(tmp_path / "x.pkl", {"a": 1})) == {"a": 1}
