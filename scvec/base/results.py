"""Base class of all reports, and functions that format numbers for people."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from scvec.base.display import html_lines

__all__ = [
    "WITHOUT_DRY_RUN",
    "NextStep",
    "Record",
    "Report",
    "Stages",
    "count_text",
    "counts_line",
    "human_bytes",
    "human_odds",
    "one_line_a_kind",
    "plain",
    "table",
    "times_line",
]


class Stages:
    """Seconds per stage, in the order of the starts of the stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the duration of the block to a stage."""
        start = time.perf_counter()
        self.seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


def plain(value: Any) -> Any:
    """Convert ``value`` to types of strict JSON.

    Paths become strings, tuples and sets become lists, numpy scalars and arrays become Python values. NaN and
    infinity become None, because JSON has no such numbers.
    """
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):  # numpy, without importing it here
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    return str(value)


def human_bytes(n: float) -> str:
    """Format a size in bytes with decimal units: ``1536`` gives ``1.5 kB``."""
    if n < 1000:
        return f"{n:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        n /= 1000
        if n < 1000:
            return f"{n:.1f} {unit}"
    return f"{n / 1000:,.1f} TB"


def count_text(n: int, noun: str) -> str:
    """Return ``1 cell`` or ``2,000 cells``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


#: Number of similar notes that are listed one by one, and number of names listed for more.
_FEW, _NAMED = 3, 8
_DIFFERS = re.compile(r"'[^']*'|[\w.+/-]+\.(?:h5ad|h5|loom|h5mu|csv|tsv|txt|rds|zarr)\b|\d[\d,.]*")


def one_line_a_kind(notes: Iterable[str]) -> list[str]:
    """Return notes; of many that differ only in numbers and names, the first with the names of the others.

    Examples
    --------
    >>> one_line_a_kind(f"label '{name}' was left out: 1 cell" for name in "abcde")
    ["label 'a' was left out: 1 cell (and 4 more like it: 'b', 'c', 'd', 'e')"]
    """
    kinds: dict[str, list[str]] = {}
    for note in notes:
        kinds.setdefault(_DIFFERS.sub("#", note), []).append(note)
    kept = []
    for alike in kinds.values():
        if len(alike) <= _FEW:
            kept += alike
            continue
        firsts = [found[0] for note in alike if (found := _DIFFERS.search(note))]
        about = [
            first for first in dict.fromkeys(firsts[1:]) if first != firsts[0] and not first[0].isdigit()
        ]
        named = f": {', '.join(about[:_NAMED])}{', ...' if len(about) > _NAMED else ''}" if about else ""
        kept.append(f"{alike[0]} (and {len(alike) - 1:,} more like it{named})")
    return kept


def counts_line(counts: Mapping[str, int]) -> str:
    """Return ``{"human": 5}`` as ``5 human``."""
    return ", ".join(f"{n:,} {name}" for name, n in counts.items()) or "none"


def table(rows: Mapping[str, int], indent: str = "  ") -> list[str]:
    """Return one line for each count, the largest first."""
    width = max((len(k) for k in rows), default=0)
    ordered = sorted(rows.items(), key=lambda item: (-item[1], item[0]))
    return [f"{indent}{name:<{width}}  {n:>7,}" for name, n in ordered]


def times_line(seconds: Mapping[str, float]) -> str:
    """Format seconds per stage in one line."""
    return ", ".join(f"{stage} {s:.1f} s" for stage, s in seconds.items())


class NextStep(NamedTuple):
    """What a person may want to run after a result.

    Attributes
    ----------
    words
        Words of the command after ``scvec``; after the words of the same command if ``again``.
    again
        The same command with ``words``, and without ``--dry-run``.
    place
        Where, if it is not here: the store of this command is then not named.
    """

    words: tuple[str, ...] = ()
    again: bool = False
    place: str = ""

    @classmethod
    def query(cls, reference: str) -> NextStep:
        """Return the query of new cells with a reference."""
        files = ("-o", "annotated.h5ad", "--report", "report.html")
        return cls(("query", "NEW.h5ad", "--reference", reference, *files))


#: The same command without ``--dry-run``.
WITHOUT_DRY_RUN = NextStep(again=True)


@dataclass(frozen=True, kw_only=True)
class Record:
    """Base class of dataclasses that convert to JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Return field name -> value in types of strict JSON."""
        return {f.name: plain(getattr(self, f.name)) for f in fields(self)}


@dataclass(frozen=True, kw_only=True)
class Report(Record):
    """Base class of all reports. ``notes`` are messages that are not errors."""

    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        raise NotImplementedError

    @property
    def next_step(self) -> NextStep | None:
        """What a person may want to run next; None if nothing is natural."""
        return None

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        # Escaped, because names of files, labels and genes may contain markup.
        return html_lines(self.lines())


def human_odds(log_odds: float) -> str:
    """Format natural-log odds in words: ``about 20 to 1 for it``."""
    odds = math.exp(min(abs(log_odds), 700.0))
    if odds > 1e6:
        size = "over a million"
    else:
        size = f"about {odds:,.0f}" if odds >= 10 else f"about {odds:.1f}"
    return f"{size} to 1 {'for' if log_odds >= 0 else 'against'} it"
