"""Look over a pickle's instructions before any is obeyed, and count what it may unfold to."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["MAX_LONG", "Budget", "Refused", "scan"]

_MAX_LINE = 1 << 20
#: Bytes of the longest whole number that is read.
MAX_LONG = 128

# One character for an opcode: how its argument is laid out. Digits: so many bytes; b, w, q: a length of 1, 4
# or 8 bytes and then the bytes; n: a line; N: two lines; x: refused.
_LAYOUT: dict[int, str] = {
    **dict.fromkeys(b".(012NRabdel]stu})\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94o", "0"),
    **dict.fromkeys(b"Khq\x80", "1"),
    **dict.fromkeys(b"M", "2"),
    **dict.fromkeys(b"Jjr", "4"),
    **dict.fromkeys(b"G\x95", "8"),
    **dict.fromkeys(b"UC\x8a\x8c", "b"),
    **dict.fromkeys(b"TXB\x8b", "w"),
    **dict.fromkeys(b"\x8d\x8e\x96", "q"),
    **dict.fromkeys(b"FILSVgp", "n"),
    **dict.fromkeys(b"c", "N"),
    **dict.fromkeys(b"iPQ\x82\x83\x84\x97\x98", "x"),
}
_WIDTH = {"b": 1, "w": 4, "q": 8}
_REFUSED = {
    ord("i"): "an instance of a class",
    ord("P"): "a reference to something outside the file",
    ord("Q"): "a reference to something outside the file",
    0x97: "a buffer outside the file",
    0x98: "a buffer outside the file",
}
# Runs of what tables are made of, passed over at the speed of a regular expression. Possessive: a plain
# repeat would remember every step of a run of millions.
_FLOATS = re.compile(rb"(?:G.{8})++", re.DOTALL)
_SMALL = re.compile(rb"(?:K.|M..|J....|N|\x88|\x89|\x94|a|q.|h.)++", re.DOTALL)


class Refused(Exception):
    """What is wrong with the file; ``name`` is the class or function it asked for."""

    def __init__(self, what: str, name: str = "", kind: str = "refused") -> None:
        super().__init__(what)
        self.name = name
        self.kind = kind


def scan(data: Any, memory: int) -> None:
    """Walk over the instructions without obeying any; refuse lengths, numbers and claims that cannot be true.

    Parameters
    ----------
    data
        The file, as bytes or a map of it.
    memory
        Bytes that the objects may take, by an estimate from above.
    """
    size = len(data)
    at = ops = puts = 0
    claimed = 0
    while True:
        if at >= size:
            raise Refused("the pickle is cut off", kind="damaged")
        code = data[at]
        run = None
        if code == 0x47:
            run = _FLOATS.match(data, at)
            cost = 32
        elif code in b"KMJNaqh\x88\x89\x94":
            run = _SMALL.match(data, at)
            cost = 40
        if run is not None:
            n = run.end() - at
            count = n // 9 if code == 0x47 else n
            claimed += cost * count
            ops += count
            puts += count if code != 0x47 else 0
            at = run.end()
            if claimed > memory:
                raise Refused(f"the pickle needs more than {claimed:,} bytes of memory", kind="memory")
            continue
        layout = _LAYOUT.get(code)
        if layout is None:
            what = "it begins with no pickle" if at == 0 else "the pickle is damaged"
            raise Refused(what, kind="damaged")
        if layout == "x":
            raise Refused("", _REFUSED.get(code, "an extension code, which stands for a class"))
        ops += 1
        claimed += 64
        at += 1
        if layout.isdigit():
            width = int(layout)
            if code == 0x72 and int.from_bytes(data[at : at + 4], "little") > puts + ops:
                raise Refused("the pickle numbers more objects than it has", kind="damaged")
            at += width
        elif layout in _WIDTH:
            width = _WIDTH[layout]
            length = int.from_bytes(data[at : at + width], "little")
            at += width
            if length > size - at:
                raise Refused("a text or array claims to be longer than the file", kind="damaged")
            if code in (0x8A, 0x8B) and length > MAX_LONG:
                raise Refused(f"a whole number has {length:,} bytes", kind="damaged")
            at += length
            claimed += 4 * length if code in b"X\x8c\x8d" else length
        else:
            for _ in range(2 if layout == "N" else 1):
                end = data.find(b"\n", at, at + _MAX_LINE)
                if end < 0:
                    raise Refused("the pickle is cut off or damaged", kind="damaged")
                if code in b"IL" and end - at > 2 * MAX_LONG:
                    raise Refused(f"a whole number has {end - at:,} digits", kind="damaged")
                if code == 0x70 and (not data[at:end].isdigit() or int(data[at:end][:18]) > puts + ops):
                    raise Refused("the pickle numbers more objects than it has", kind="damaged")
                claimed += 4 * (end - at)
                at = end + 1
        if claimed > memory:
            raise Refused(f"the pickle needs more than {claimed:,} bytes of memory", kind="memory")
        if code == 0x2E:
            break
    if at < size:
        raise Refused("there is more in the file after the pickle ends", kind="damaged")


class Budget:
    """How much may be copied: a file that unfolds to more than it holds is a bomb."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = 0

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise Refused("the pickle unfolds to far more than the file holds", kind="damaged")
