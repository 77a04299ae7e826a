"""Pickles with calls: none runs code, and the message names the call."""

from __future__ import annotations

import builtins
import collections
import io
import os
import pickle
import pickletools
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pickle_parts import load, named, short

from scvec.base.errors import InputError
from scvec.workflows.import_legacy import _Reader


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


def hostile(canary: Path) -> dict[str, bytes]:
    """Pickles by name that write a file if they are executed, or that import dangerous names."""
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
        "our own module": call("scvec.workflows.import_legacy", "load_plain"),
        "our own names": call("scvec.workflows.import_legacy", "re.sys.modules", shell),
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
        "new object of a good class": start + named("numpy", "ndarray") + b")\x81" + end,
        "bytes as pointers to objects": pickle.dumps(
            np.array([None]), 2).replace(b"]q\x07Na", b"C\x08" + bytes(8)),
        "a function alone": start + named("_codecs", "encode") + end,
        "a dtype alone": pickle.dumps(np.dtype("f8")),
        "state for an array": array[:-1] + b"}" + short("__class__") + short("x") + b"sb" + end,
        "items of an array": array[:-1] + short("x") + b"a" + end,
        "another codec": call("_codecs", "encode", shell, "idna"),
        "bytes of a number": start + named("builtins", "bytes") + b"J\xff\xff\xff\x7f\x85R" + end,
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
            load(tmp_path, data)
        assert not canary.exists(), name
        error = caught.value
        assert len(error.lines()) == 3 and "x.pkl" in error.where, name
        assert "Traceback" not in str(error) and "bug" not in str(error), name


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("os.system", "asks for posix.system"),
        ("builtins.eval", "asks for builtins.eval"),
        ("dots after a good module", "asks for numpy._core.multiarray.scalar.__class__"),
        ("name put together on the stack", "asks for os.system"),
        ("new object", "asks for subprocess.Popen"),
        ("new object of a good class", "129"),
        ("extension 1", "130"),
        ("persistent id", "80"),
        ("slots for a name", "sets the state"),
        ("state for a name", "sets the state"),
        ("bytes of a number", "bytes of another type or encoding"),
        ("another codec", "bytes of another type or encoding"),
        ("records", "numpy.dtype(V8)"),
        ("objects in a table", "numpy.dtype(O8)"),
        ("bytes as pointers to objects", "numpy.dtype(O8)"),
        ("a name alone", "that is not a plain value"),
        ("a function alone", "that is not a plain value"),
        ("a dtype alone", "that is not a plain value"),
    ],
)
def test_each_rule_refuses_by_itself(tmp_path: Path, name: str, what: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, hostile(tmp_path / "canary")[name])
    assert what in caught.value.what


def test_nothing_but_the_list_of_names_can_be_called(tmp_path: Path) -> None:
    reader = _Reader(b"", 1000)
    for name in ("load", "read", "spend", "check", "find_class", "__class__", "names"):
        for module in ("builtins", "numpy", "scvec.workflows.import_legacy", "numpy.core.multiarray", ""):
            with pytest.raises(pickle.UnpicklingError):
                reader.find_class(module, name)
    allowed = {chr(code) for code in reader.dispatch}
    known = {op.code for op in pickletools.opcodes}
    assert known - allowed == set("ioPQ\x81\x82\x83\x84\x92\x97\x98")


def test_the_trap_works_where_pickle_is_obeyed(tmp_path: Path) -> None:
    # Else the test above would pass with a canary that nothing can touch.
    canary = tmp_path / "canary"
    pickle.loads(hostile(canary)["os.system"])
    assert canary.exists()


def test_a_data_frame_is_refused_by_name_with_the_conversion(tmp_path: Path) -> None:
    import pandas as pd

    for protocol in range(6):
        with pytest.raises(InputError, match=r"asks for (pandas\.core\.|copy_reg\._reconstructor)") as caught:
            load(tmp_path, pd.DataFrame({"a": [1.0]}), protocol)
        assert "json.dump" in caught.value.fix and len(caught.value.lines()) == 3
