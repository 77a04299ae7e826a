"""The program that :mod:`scvec.ingest.safe_pickle` starts to read one pickle.

A pickle is a program. This one is run with no way out: names stand for nothing but the stand-ins below, which
check what they are given and call nothing of numpy; a scan of the instructions (:mod:`pickle_scan`) refuses
what the file cannot hold before anything is built; the process has so much memory and time and no more; an
audit hook forbids it files, imports, code and sockets. The result leaves as raw numbers and JSON.

Standard input is the file, standard output gets the result: raw blobs, JSON, the length of the JSON (8 bytes,
little endian), and :data:`MAGIC`.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import re
import struct
import sys
from typing import Any, BinaryIO, NoReturn

from scvec.ingest.pickle_scan import MAX_LONG, Budget, Refused, scan

__all__ = ["MAGIC", "main"]

MAGIC = b"scvecpk1"
#: Lists of at least so many floats leave as arrays: as objects they take four times the memory.
PACK = 64
MAX_DEPTH = 32
#: Finding out whether an object was seen is all that the reader itself does that Python reports.
_HARMLESS = frozenset(["builtins.id"])

_budget = Budget()


class _DType:
    """A stand-in for ``numpy.dtype``: the kind and size of simple numbers and texts, else refused."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = "<"

    def __setstate__(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) >= 5 and state[1] in ("<", ">", "|", "=")):
            raise Refused("the pickle is damaged: an array has no proper type", kind="damaged")
        if state[2] is not None or state[3] is not None or state[4] is not None:
            raise Refused("", f"numpy.dtype({self.code}) with fields")
        self.order = state[1]

    @property
    def text(self) -> str:
        return self.code if self.code[0] in "bO" or self.order in "|=" else self.order + self.code

    @property
    def size(self) -> int:
        return int(self.code[1:]) * (4 if self.code[0] == "U" else 1)


class _Array:
    """A stand-in for an array that is being built."""

    __slots__ = ("data", "dtype", "fortran", "items", "shape")

    def __init__(self) -> None:
        self.shape: tuple[int, ...] | None = None
        self.dtype = _DType("f8")
        self.fortran = False
        self.data: bytes | bytearray = b""
        self.items: list[Any] | None = None

    def fill(self, shape: Any, dtype: Any, fortran: bool, data: Any) -> None:
        if isinstance(shape, int) and not isinstance(shape, bool):
            shape = (shape,)
        if not (
            isinstance(dtype, _DType)
            and isinstance(shape, tuple)
            and len(shape) <= 8
            and all(type(n) is int and 0 <= n < 1 << 48 for n in shape)
        ):
            raise Refused("the pickle is damaged: an array has no proper shape", kind="damaged")
        n = 1
        for length in shape:
            n *= length
        if isinstance(data, str):
            data = _latin(data)
        if dtype.code[0] == "O":
            if not isinstance(data, list) or len(data) != n or len(shape) != 1:
                raise Refused("", "numpy.ndarray of objects")
            self.items = data
        elif not isinstance(data, bytes | bytearray) or len(data) != n * dtype.size:
            raise Refused("an array claims another size than it has", kind="damaged")
        else:
            self.data = data
        self.shape, self.dtype, self.fortran = shape, dtype, bool(fortran)

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused("the pickle is damaged: an array is not whole", kind="damaged")
        self.fill(state[1], state[2], state[3], state[4])


class _Token:
    """What a name of the file stands for. It has no dictionary, so that a pickle cannot change it."""

    __slots__ = ("name",)
    name: str

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "name", name)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise Refused("", f"a change of {self.name}")

    def __call__(self, *args: Any) -> Any:
        return _CALLS[self.name](*args)


def _reconstruct(kind: Any = None, shape: Any = None, code: Any = None, *more: Any) -> _Array:
    if not (isinstance(kind, _Token) and kind.name == "ndarray") or more:
        raise Refused("the pickle is damaged: an array is of no proper class", kind="damaged")
    return _Array()


def _dtype(code: Any = None, *more: Any) -> _DType:
    if isinstance(code, bytes):
        code = code.decode("latin1")
    if code in ("bool", "?"):
        code = "b1"
    found = re.fullmatch(r"(b1|[iu][1248]|f[248]|O8?|[US]\d{1,5})", code) if isinstance(code, str) else None
    if found is None:
        raise Refused("", f"numpy.dtype({str(code)[:40]})")
    return _DType("O8" if code[0] == "O" else code)


def _frombuffer(
    data: Any = None, dtype: Any = None, shape: Any = None, order: Any = "C", *more: Any
) -> _Array:
    array = _Array()
    if order not in ("C", "F") or any(m is not None for m in more):
        raise Refused("", "numpy.ndarray with its axes in another order")
    array.fill(shape, dtype, order == "F", data)
    return array


def _scalar(dtype: Any = None, data: Any = None, *more: Any) -> Any:
    array = _Array()
    array.fill((1,), dtype, False, data)
    if array.items is not None or more:
        raise Refused("", "numpy.generic")
    return _values(array).tolist()[0]


def _latin(text: str) -> bytes:
    _budget.spend(len(text))
    try:
        return text.encode("latin1")
    except UnicodeEncodeError:
        raise Refused("the pickle is damaged: bytes are no bytes", kind="damaged") from None


def _encode(text: Any = None, encoding: Any = None, *more: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1") or more:
        raise Refused("", f"_codecs.encode({str(encoding)[:40]})")
    return _latin(text)


def _bytes(data: Any = b"", encoding: Any = None, *more: Any) -> bytes:
    if more or (isinstance(data, str) and encoding not in ("latin1", "latin-1")):
        raise Refused("", "bytes() of something else than bytes")
    if isinstance(data, str):
        return _latin(data)
    if not isinstance(data, bytes | bytearray):
        # bytes(10**12) is one instruction.
        raise Refused("", "bytes() of something else than bytes")
    _budget.spend(len(data))
    return bytes(data)


def _collection(kind: Any) -> Any:
    def make(items: Any = (), *more: Any) -> Any:
        if more or not isinstance(items, list | tuple | dict | set | frozenset):
            raise Refused("", f"{kind.__name__}() of no list")
        _budget.spend(len(items))
        return kind(items)

    return make


_CALLS = {
    "_reconstruct": _reconstruct,
    "dtype": _dtype,
    "_frombuffer": _frombuffer,
    "scalar": _scalar,
    "encode": _encode,
    "bytes": _bytes,
    "bytearray": _bytes,
    "set": _collection(set),
    "frozenset": _collection(frozenset),
    "OrderedDict": _collection(dict),
    "ndarray": lambda *args: _reconstruct(None),
}
_NAMES = {
    **{(f"numpy.{core}.multiarray", n): n for core in ("core", "_core") for n in ("_reconstruct", "scalar")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): "_frombuffer" for core in ("core", "_core")},
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("collections", "OrderedDict"): "OrderedDict",
    ("_codecs", "encode"): "encode",
    **{(m, n): n for m in ("builtins", "__builtin__") for n in ("bytes", "bytearray", "set", "frozenset")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        known = _NAMES.get((module, name))
        if known is None:
            raise Refused("", f"{module}.{name}"[:200])
        return _Token(known)

    def persistent_load(self, pid: Any, /) -> NoReturn:
        raise Refused("", "a reference to something outside the file")


def _values(array: _Array) -> Any:
    import numpy as np

    if array.shape is None:
        raise Refused("the pickle is damaged: an array is not whole", kind="damaged")
    code = array.dtype.text
    kind = np.dtype("?" if code == "b1" else code)
    flat = np.frombuffer(bytes(array.data) if isinstance(array.data, bytearray) else array.data, dtype=kind)
    if array.dtype.size == 0:
        _budget.spend(int(np.prod(array.shape)))
        flat = np.zeros(int(np.prod(array.shape)), dtype=kind)
    values = flat.reshape(array.shape, order="F" if array.fortran else "C")
    return values.astype(kind.newbyteorder("<"), order="C", copy=False)


class _Writer:
    """Writes blobs as it walks over the values, and returns what they are as JSON."""

    def __init__(self, out: BinaryIO) -> None:
        self.out = out
        self.at = 0
        self.blobs: dict[int, tuple[Any, Any]] = {}

    def encode(self, value: Any, depth: int = 0) -> Any:
        kind = type(value)
        if kind in (str, float, bool) or value is None:
            return value
        if kind is int:
            if value.bit_length() > 8 * MAX_LONG:
                raise Refused("a whole number is too long", kind="damaged")
            return value
        if depth >= MAX_DEPTH:
            raise Refused(f"its values are nested more than {MAX_DEPTH} deep")
        if kind in (bytes, bytearray):
            return {"bytes": self._blob(value, value)}
        if kind is _Array:
            if value.items is not None:
                return {"list": self._all(value.items, depth)}
            return self._array(value)
        if kind is list:
            if len(value) >= PACK and set(map(type, value)) == {float}:
                return self._floats(value)
            return {"list": self._all(value, depth)}
        if kind is tuple:
            return {"tuple": self._all(value, depth)}
        if kind in (set, frozenset):
            return {kind.__name__: self._all(value, depth)}
        if kind is dict:
            _budget.spend(2 * len(value))
            for key in value:
                if type(key) not in (str, int):
                    raise Refused("", f"a dictionary with a key of class {type(key).__name__.lstrip('_')}")
            return {"dict": [[k, self.encode(v, depth + 1)] for k, v in value.items()]}
        raise Refused("", value.name if kind is _Token else kind.__name__.lstrip("_"))

    def _all(self, values: Any, depth: int) -> list[Any]:
        _budget.spend(len(values))
        return [self.encode(v, depth + 1) for v in values]

    def _array(self, value: _Array) -> Any:
        ready = _values(value)
        kind = ready.dtype
        return {"array": [*self._blob(value, ready.tobytes()), kind.str, list(ready.shape)]}

    def _floats(self, value: list[float]) -> Any:
        if id(value) not in self.blobs:
            import numpy as np

            data = np.array(value, dtype="<f8").tobytes()
        else:
            data = b""
        return {"array": [*self._blob(value, data), "<f8", [len(value)]]}

    def _blob(self, owner: Any, data: Any) -> list[int]:
        # The owner is kept, so that its id stays its own.
        known = self.blobs.get(id(owner))
        if known is None:
            _budget.spend(len(data))
            known = self.blobs[id(owner)] = (owner, [self.at, len(data)])
            self.out.write(data)
            self.at += len(data)
        found: list[int] = known[1]
        return found


def convert(data: Any, file: BinaryIO, out: BinaryIO, memory: int) -> None:
    """Read a pickle and write what it holds."""
    scan(data, memory)
    # Texts of one byte a letter may be written as several, and numbers as text.
    _budget.left = 16 * len(data) + (1 << 16)
    file.seek(0)
    value = _Unpickler(file, encoding="latin1").load()
    writer = _Writer(out)
    _finish(out, {"value": writer.encode(value)})


def _finish(out: BinaryIO, said: dict[str, Any]) -> None:
    text = json.dumps(said, separators=(",", ":")).encode()
    out.write(text)
    out.write(struct.pack("<Q", len(text)) + MAGIC)
    out.flush()


def _limit(memory: int, seconds: int) -> None:
    try:
        import resource
    except ImportError:  # not on this platform: the scan and the parent's clock are left
        return
    for name, value in (
        ("RLIMIT_AS", memory),
        ("RLIMIT_CPU", seconds),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_NPROC", 0),
    ):
        number = getattr(resource, name, None)
        if number is None:
            continue
        try:
            hard = resource.getrlimit(number)[1]
            limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(number, (limit, limit))
        except (ValueError, OSError):  # macOS has no limit of address space
            continue


def _forbid(event: str, args: tuple[Any, ...]) -> None:
    # Whatever Python reports before it does it: opening files, importing, compiling, sockets, processes.
    if event in _HARMLESS:
        return
    raise Refused("", f"something that acts ({event})")


def main() -> None:
    """Read standard input within limits and write to standard output."""
    memory, seconds = int(sys.argv[-2]), int(sys.argv[-1])
    out = sys.stdout.buffer
    try:
        # All that is needed later is loaded now: afterwards there are no imports.
        import numpy as np

        np.frombuffer(b"\x00" * 8, dtype="<f8").astype("<f8").tobytes()
        json.dumps({"a": [1.5, "\ud800"]}, separators=(",", ":"))
        _limit(memory, seconds)
        size = os.fstat(0).st_size
        data: Any = mmap.mmap(0, 0, access=mmap.ACCESS_READ) if size else b""
        file = sys.stdin.buffer
        sys.addaudithook(_forbid)
        try:
            convert(data, file, out, memory)
        except Refused:
            raise
        except MemoryError:
            raise Refused("the pickle needs more memory than it may use", kind="memory") from None
        except Exception as error:  # whatever a broken stream of instructions makes of the unpickler
            raise Refused(f"the pickle is damaged ({type(error).__name__})", kind="damaged") from None
    except Refused as refused:
        _finish(out, {"refused": str(refused), "name": refused.name, "kind": refused.kind})
    # Freeing millions of objects takes longer than reading them, and nobody waits for that.
    os._exit(0)
