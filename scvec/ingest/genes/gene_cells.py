"""Cells of gene tables: texts, lists and numbers as people and spreadsheets write them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from scvec.base.errors import InputError

__all__ = [
    "MAX_NAME",
    "SPECIES_NAMES",
    "Skipped",
    "cell_items",
    "cell_text",
    "entrez_number",
    "is_date",
    "read_lines",
]

MAX_NAME = 300
_MAX_LINE = 4_000_000
SPECIES_NAMES = {
    "human": "human",
    "homo sapiens": "human",
    "9606": "human",
    "mouse": "mouse",
    "mus musculus": "mouse",
    "10090": "mouse",
}

_MISSING = frozenset(["", "-", "nan", "none", "null", "<na>"])
_LONGEST_MISSING = max(map(len, _MISSING))
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_DATE = re.compile(rf"\d{{1,2}}-{_MONTH}|{_MONTH}-\d{{1,2}}|\d{{4}}-\d\d-\d\d(?: 00:00:00)?")


def cell_text(value: Any, limit: int) -> str:
    """Return a cell as text of one line; empty for what means that nothing is there (``-``, ``nan``)."""
    if value is None:
        return ""
    if not isinstance(value, str):
        if isinstance(value, list | dict):
            return ""
        value = str(value)
    if not value.isprintable():
        # Line breaks and escape codes would end up in messages, prompts and reports.
        value = "".join(c if c.isprintable() else " " for c in value)
    found: str = value.strip()
    if len(found) <= _LONGEST_MISSING and found.lower() in _MISSING:
        return ""
    return found[:limit]


def cell_items(value: Any, separator: str = "|") -> list[str]:
    """Return a cell that holds a list: an array, or text with parts separated by ``separator``."""
    if not value and value != 0:
        return []
    if isinstance(value, str):
        # The first is what pandas writes for an array: ['A1B' 'ABG'] or ["A1B", "ABG"].
        quoted = value.startswith("[")
        value = [a or b for a, b in _QUOTED.findall(value)] if quoted else value.split(separator)
    elif not isinstance(value, list | tuple):
        value = [value]
    return [t for v in value if (t := cell_text(v, MAX_NAME))]


def entrez_number(value: Any, where: str, column: str = "entrez_id") -> int | None:
    """Return an Entrez id as a number, None where there is none; InputError where it cannot be one."""
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        said = cell_text(value, 40)
        if not said:
            return None
        # A spreadsheet or a column with gaps writes 3630 as 3630.0.
        said = said.removesuffix(".0")
        if not (said.isascii() and said.isdigit()):
            what = f"{said!r} is no Entrez id"
            raise InputError(what, f"{where}, column {column}", "write a whole number")
        number = int(said)
    if not 0 < number < 2**53:
        what = f"{number} is no Entrez id"
        raise InputError(what, f"{where}, column {column}", "write a whole number above 0")
    return number


def read_lines(file: TextIO, path: Path) -> Iterator[str]:
    """Yield the lines of a table; InputError where one is too long to be a gene."""
    number = 0
    while line := file.readline(_MAX_LINE):
        number += 1
        if len(line) >= _MAX_LINE:
            raise InputError("a line is longer than 4 MB", f"{path}, line {number}", "give one gene per line")
        yield line


def is_date(symbol: str) -> bool:
    """Whether a gene symbol is what a spreadsheet makes of MARCH1 or SEPT2: 1-Mar, Sep-02, 2024-03-01."""
    return symbol[-1:].isalnum() and _DATE.fullmatch(symbol) is not None


class Skipped:
    """Rows that were left out, by reason, with the first few examples of each."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def add(self, reason: str, example: str = "") -> None:
        """Count a row."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        shown = self._examples.setdefault(reason, [])
        if example and len(shown) < 3 and example not in shown:
            shown.append(example)

    def notes(self, file: str) -> list[str]:
        """Return a line for people for each reason."""
        lines = []
        for reason, n in self._counts.items():
            shown = ", ".join(self._examples[reason])
            rows = "1 row" if n == 1 else f"{n:,} rows"
            lines.append(f"{file}: left out {rows} {reason}{f', such as {shown}' if shown else ''}")
        return lines
