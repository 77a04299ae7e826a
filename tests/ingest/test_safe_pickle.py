"""Pickles: what plain ones hold comes back, and no other runs anything."""

from __future__ import annotations

import builtins
import collections
import gzip
import io
import math
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.errors import InputError, ResourceError, ScvecError
from scvec.ingest import pickle_child, pickle_scan, safe_pickle
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


def write(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol))
    return path


def load_here(folder: Path, data: bytes) -> Any:
    """Do what the child does, in this process: without its limits, and without the time it takes to start."""
    path = folder / "result"
    with path.open("wb") as out:
        try:
            pickle_child.convert(data, io.BytesIO(data), out, 2**30)
        except pickle_child.Refused as refused:
            said = {"refused": str(refused), "name": refused.name, "kind": refused.kind}
            pickle_child._finish(out, said)
        except Exception:
            pickle_child._finish(out, {"refused": "damaged", "kind": "damaged"})
    return safe_pickle._read(path, 0, folder / "x.pkl", 2**30)


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


# -- what must not run ----------------------------------------------------------------------------------


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def named(module: str, name: str) -> bytes:
    return short(module) + short(name) + b"\x93"


def hostile(canary: Path) -> dict[str, bytes]:
    """Pickles that write a file where they are obeyed, or that ask for what may lead there, by name."""
    shell = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w')"
    inner = pickle.dumps(Call(os.system, shell))
    npy = io.BytesIO()
    np.save(npy, np.array([Call(os.system, shell)], dtype=object), allow_pickle=True)
    trap = canary.with_name("trap.npy")
    trap.write_bytes(npy.getvalue())
    array = pickle.dumps(np.arange(4.0), 4)
    start, end = b"\x80\x04", b"."
    call = lambda m, n, *args: start + named(m, n) + b"(" + b"".join(map(short, args)) + b"tR" + end  # noqa: E731
    return {
        "os.system": inner,
        "os.system in protocol 0": b"cos\nsystem\n(S'" + shell.encode() + b"'\ntR.",
        "posix.system": call("posix", "system", shell),
        "subprocess": pickle.dumps(Call(subprocess.check_output, ["touch", str(canary)])),
        "builtins.eval": pickle.dumps(Call(eval, code)),
        "builtins.exec as __builtin__": b"c__builtin__\nexec\n(S" + repr(code).encode() + b"\ntR.",
        "builtins.getattr": call("builtins", "getattr", "x", "upper"),
        "builtins.__import__": call("builtins", "__import__", "os"),
        "builtins.open": pickle.dumps(Call(builtins.open, str(canary), "w")),
        "dots after a good module": start + named("numpy._core.multiarray", "scalar.__class__") + end,
        "dots to os": call("numpy", "ndarray.__init__.__globals__", "x"),
        "a module's module": call("numpy._core.multiarray", "os.system", shell),
        "numpy.load": start + named("numpy", "load") + b"(" + short(str(trap)) + b"N\x88tR" + end,
        "numpy.f2py": call("numpy.f2py.diagnose", "run_command", shell),
        "numpy.testing": call("numpy.testing._private.utils", "runstring", code, "x"),
        "numpy.fromfile": call("numpy", "fromfile", "/etc/hostname"),
        "numpy.ctypeslib": call("numpy.ctypeslib", "load_library", "libc", "/"),
        "pickle in a pickle": b"".join(
            [start, named("pickle", "loads"), b"B", struct.pack("<I", len(inner)), inner, b"\x85R", end]
        ),
        "_pickle.Unpickler": call("_pickle", "Unpickler", "x"),
        "copyreg._reconstructor": b"ccopy_reg\n_reconstructor\n(c__builtin__\nobject\nNNtR.",
        "operator.attrgetter": call("operator", "attrgetter", "__class__"),
        "functools.partial": call("functools", "partial", "x"),
        "types.CodeType": call("types", "CodeType", "x"),
        "importlib": call("importlib", "import_module", "antigravity"),
        "our own module": call("scvec.ingest.pickle_child", "main"),
        "our own names": call("scvec.ingest.pickle_child", "os.system", shell),
        "the main module": call("__main__", "main"),
        "instance by class": b"(S'" + shell.encode() + b"'\nios\nsystem\n.",
        "object by class": b"(cos\nsystem\nS'" + shell.encode() + b"'\no.",
        "new object": start + named("subprocess", "Popen") + b"(" + short(shell) + b"t\x81" + end,
        "new object with names": start + named("subprocess", "Popen") + b")}\x92" + end,
        "extension 1": b"\x80\x02\x82\x01.",
        "extension 2": b"\x80\x02\x83\x01\x00.",
        "extension 4": b"\x80\x02\x84\x01\x00\x00\x00.",
        "persistent id": b"Pos.system\n.",
        "binary persistent id": b"\x80\x02X\x02\x00\x00\x00osQ.",
        "buffer outside": b"\x80\x05\x97.",
        "name put together on the stack": b"".join(
            [start, short("os"), b"\x94", short("system"), b"\x94h\x00h\x01\x93(", short(shell), b"tR."]
        ),
        "state for a name": start + named("numpy", "dtype") + b"}" + short("name") + short("x") + b"sb.",
        "slots for a name": start + named("numpy", "dtype") + b"N}" + short("name") + short("x") + b"s\x86b.",
        "state for an array": array[:-1] + b"}" + short("__class__") + short("x") + b"sb" + end,
        "items of an array": array[:-1] + short("x") + b"a" + end,
        "another codec": call("_codecs", "encode", shell, "idna"),
        "bytes of a number": start + named("builtins", "bytes") + b"J\xff\xff\xff\x7f\x85R" + end,
        "a text as a collection": call("builtins", "set", "abc"),
        "numpy matrix": start + named("numpy", "matrix") + end,
        "dates": pickle.dumps(np.array(["2020-01-01"], dtype="M8[D]")),
        "records": pickle.dumps(np.zeros(2, dtype=[("a", "f8")])),
        "objects in a table": pickle.dumps(np.array([["a", 1]], dtype=object)),
        "default dict": pickle.dumps(collections.defaultdict(list)),
        "a counter": pickle.dumps(collections.Counter("a")),
        "complex": pickle.dumps(1j),
        "a path": pickle.dumps(Path("x")),
        "a name alone": start + named("numpy", "ndarray") + end,
        "key of two parts": pickle.dumps({("INS", 1): 2}),
    }  # fmt: skip


def test_no_hostile_pickle_runs_anything(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    cases = hostile(canary)
    assert len(cases) > 50
    for name, data in cases.items():
        with pytest.raises(InputError) as caught:
            load_here(tmp_path, data)
        assert not canary.exists(), name
        error = caught.value
        assert len(error.lines()) == 3 and "x.pkl" in error.where, name
        assert "Traceback" not in str(error) and "bug" not in str(error), name


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "builtins.getattr",
        "dots to os",
        "numpy.load",
        "new object",
        "extension 1",
        "persistent id",
        "state for a name",
        "slots for a name",
        "bytes of a number",
        "name put together on the stack",
    ],
)
def test_the_child_runs_nothing_and_says_what_was_asked_for(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    with pytest.raises(InputError, match=r"asks for|no sound pickle") as caught:
        load_plain(write(tmp_path / "x.pkl", hostile(canary)[name]))
    assert not canary.exists()
    assert len(caught.value.lines()) == 3


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("slots for a name", "a change of dtype"),
        ("bytes of a number", "bytes() of something else"),
        ("another codec", "_codecs.encode(idna)"),
        ("dots after a good module", "numpy._core.multiarray.scalar.__class__"),
        ("records", "numpy.dtype(V8)"),
    ],
)
def test_each_stand_in_refuses_by_itself(tmp_path: Path, name: str, what: str) -> None:
    data = hostile(tmp_path / "canary")[name]
    with pytest.raises(pickle_child.Refused) as caught:
        pickle_child.convert(data, io.BytesIO(data), io.BytesIO(), 2**30)
    assert what in caught.value.name


def test_the_trap_works_where_pickle_is_obeyed(tmp_path: Path) -> None:
    # Else the test above would pass with a canary that nothing can touch.
    canary = tmp_path / "canary"
    pickle.loads(hostile(canary)["os.system"])
    assert canary.exists()


def test_a_data_frame_is_refused_by_name_with_advice(tmp_path: Path) -> None:
    import pandas as pd

    with pytest.raises(InputError, match=r"asks for pandas\.core\.") as caught:
        load_plain(write(tmp_path / "x.pkl", pd.DataFrame({"a": [1.0]})))
    assert "dictionary of lists" in caught.value.fix


# -- bombs and damage -----------------------------------------------------------------------------------


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


def test_the_child_gets_no_keys_and_imports_nothing_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('wrong json')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "canary-key")
    seen: dict[str, Any] = {}
    run = subprocess.run

    def spy(command: Any, **options: Any) -> Any:
        seen.update(options["env"])
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", spy)
    assert load_plain(write(tmp_path / "x.pkl", [1])) == [1]
    assert "canary-key" not in str(seen) and "PYTHONPATH" not in seen
