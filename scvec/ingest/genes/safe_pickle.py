"""Read a pickle without running it: plain values and numpy arrays, and nothing else.

A pickle is a program. The machine here knows only the instructions that make plain values. A name in the file
stands for a function of this module, or is refused. Every instruction pays for memory before it takes it.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from pickle import UnpicklingError, _Unpickler
from types import SimpleNamespace
from typing import Any

import numpy as np

from scvec.base.errors import InputError, ResourceError
from scvec.base.resources import parse_memory
from scvec.base.results import human_bytes

__all__ = ["load_plain"]

_ALLOWED = b".(012NIJKMLFGSTUVXBCt)]}adelsughjpqrcRb" + bytes([0x80, *range(0x85, 0x92), *range(0x93, 0x97)])
_PLAIN = (type(None), bool, int, float, str, bytes, list, tuple, set, frozenset, dict, np.ndarray)
_FLOATS, _FLOAT = re.compile(rb"(?:G.{8})++", re.DOTALL), np.dtype([("code", "u1"), ("value", ">f8")])
_DTYPE = re.compile(r"\?|bool|b1|[iu][1248]|f[248]|[US]\d{1,5}")


class _Reader(_Unpickler):  # in Python: from the one in C no instruction can be taken away
    def __init__(self, data: bytes, memory: int) -> None:
        super().__init__(self, encoding="latin1")
        self.data, self.at, self.left, self.stack = data, 0, memory, list[Any]()
        self.names: dict[str, Any] = {
            "numpy.ndarray": ...,
            "numpy.dtype": self.dtype,
            "numpy.core.multiarray._reconstruct": lambda *_: np.empty(0, "u1"),
            "numpy.core.multiarray.scalar": lambda kind, x: self.array((1,), kind, False, x).tolist()[0],
            "numpy.core.numeric._frombuffer": lambda x, kind, shape, o: self.array(shape, kind, o == "F", x),
            "collections.OrderedDict": lambda: {},
            "_codecs.encode": self.raw,
            "builtins.bytes": self.raw,
            "builtins.set": lambda x: set(self.keys(x)),
            "builtins.frozenset": lambda x: frozenset(self.keys(x)),
        }

    def spend(self, n_bytes: int) -> None:
        self.left -= n_bytes
        if self.left < 0:
            raise MemoryError

    def read(self, n: int) -> bytes:
        if not 0 <= n <= len(self.data) - self.at:
            raise ValueError("it is cut off, or claims to be longer than it is")
        self.spend(256 + 2 * n)  # of all that an instruction of one byte makes, an empty set is the largest
        self.at += n
        return self.data[self.at - n : self.at]

    def readline(self) -> bytes:
        return self.read(self.data.index(b"\n", self.at, self.at + 2**20) + 1 - self.at)

    def find_class(self, module: str, name: str) -> Any:
        known = f"{module}.{name}".replace("numpy._core.", "numpy.core.").replace("__builtin__.", "builtins.")
        if known not in self.names:
            raise UnpicklingError(f"it asks for {module[:99]}.{name[:99]}, which scvec does not run")
        return self.names[known]

    def keys(self, items: Any) -> Any:
        # Others may collide by the million, or be so deep that to hash them ends Python.
        self.spend(128 * len(items))
        if not all(type(k) is str or (type(k) is int and abs(k) < 2**60) for k in items):
            raise UnpicklingError("it has a key that is neither a text nor a small number")
        return items

    def load_binfloat(self) -> None:  # a vector at once: one by one takes minutes
        numbers = np.frombuffer(_FLOATS.match(self.data, self.at - 1)[0], _FLOAT)["value"]  # type: ignore[index]
        self.spend(64 * len(numbers))
        self.at += 9 * len(numbers) - 1
        self.stack += numbers.tolist()

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is SimpleNamespace and state[1] in ("<", ">", "=", "|"):
            target.dtype = target.dtype.newbyteorder(state[1])
        elif type(target) is np.ndarray:
            target.__setstate__(self.array(*state[1:]).__reduce__()[2])  # a state that numpy made
        else:
            raise UnpicklingError("it asks for a change of something that is not an array")

    def raw(self, data: Any = b"", encoding: Any = "latin1") -> bytes:
        if type(data) not in (str, bytes) or encoding not in ("latin1", "latin-1"):
            raise UnpicklingError("it asks for bytes of something else than bytes")
        self.spend(3 * len(data))
        return data.encode("latin1") if type(data) is str else bytes(data)

    def dtype(self, code: Any, *_: Any) -> SimpleNamespace:
        # Numpy's own would believe all that a state says of it: that bytes are pointers to objects, say.
        if not _DTYPE.fullmatch(code := self.raw(code).decode()):
            raise UnpicklingError(f"it asks for numpy.dtype({code[:40]})")
        return SimpleNamespace(dtype=np.dtype(code))

    def array(self, shape: Any, kind: SimpleNamespace, fortran: Any, data: Any) -> Any:
        data = self.raw(data)
        if len(shape) > 8 or math.prod(map(int.__index__, shape)) * kind.dtype.itemsize != len(data):
            raise ValueError("an array claims another size than it has")
        found = np.frombuffer(data, kind.dtype).astype(kind.dtype.newbyteorder("="), copy=False)
        return found.reshape(shape, order="F" if fortran else "C")

    def check(self, item: Any, depth: int = 0) -> None:
        self.left -= 1 + (getattr(item, "nbytes", 0) or (len(item) if hasattr(item, "__len__") else 0))
        if type(item) not in _PLAIN or (type(item) is int and item.bit_length() > 1024):
            raise UnpicklingError(f"it holds a {type(item).__name__} that is not a plain value")
        if self.left < 0 or depth > 32 or self.at < len(self.data):
            raise UnpicklingError("it unfolds far beyond its size, nests too deeply, or more follows it")
        if type(item) in (list, tuple, dict) and set(map(type, item)) != {float}:
            for value in item.values() if type(item) is dict else item:
                self.check(value, depth + 1)


_base: dict[int, Any] = _Unpickler.dispatch
_loads: dict[int, Any] = {c: getattr(_Reader, _base[c].__name__) for c in _ALLOWED}
# A bytearray is read as bytes. The length of a frame is for those who do not have the whole file.
_loads |= {0x96: _base[0x8E], 0x95: lambda reader: reader.read(8)}
for _codes, _keys in ((b"s", slice(-2, -1)), (b"ud", slice(0, None, 2)), (b"\x90\x91", slice(None))):
    _loads |= {c: lambda r, f=_base[c], k=_keys: (r.keys(r.stack[k]), f(r)) for c in _codes}
_Reader.dispatch = _loads


def load_plain(path: Path, *, memory: str | int | None = None) -> Any:
    """Return what a pickle of any protocol holds, if that is plain (else InputError) and fits in ``memory``.

    Plain are None, bool, int, float, str, bytes, list, tuple, set and dict (keys: str or int) of these, and
    arrays of numbers, booleans or texts. Numpy scalars and ordered dictionaries come back as Python's own.
    """
    allowed = parse_memory(memory)
    data = path.read_bytes() if path.stat().st_size <= allowed else b""
    try:
        reader = _Reader(data, allowed - path.stat().st_size)
        reader.spend(0)
        value = reader.load()
        reader.left = 16 * len(data) + 2**16  # several letters may stand for a byte
        reader.check(value)
        return value
    except MemoryError as error:
        what = f"the pickle needs more than {human_bytes(allowed)} of memory"
        raise ResourceError(what, str(path), "raise --memory, or use a larger machine") from error
    except Exception as error:  # refused above, or what damaged instructions make of the machine
        what = f"this is not a pickle of plain values, or it is damaged: {error or type(error).__name__}"
        fix = "json.dump({k: list(map(float, v)) for k, v in TABLE.items()}, open('x.json', 'w'))"
        raise InputError(
            what, str(path), f"copy it again, or convert it where it was made: {fix}", code="wrong-format"
        ) from error
