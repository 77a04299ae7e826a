"""Pickles that call: none runs anything, and the message says what was asked for."""

from __future__ import annotations

import builtins
import collections
import io
import os
import pickle
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pickle_parts import load_here, named, short, write

from scvec.errors import InputError
from scvec.ingest import pickle_child
from scvec.ingest.safe_pickle import load_plain


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


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
