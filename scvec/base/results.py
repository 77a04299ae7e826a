"""The base of all reports, and how numbers are shown to people."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from html import escape
from typing import Any

__all__ = [
    "Record",
    "Report",
    "Stages",
    "count_text",
    "counts_line",
    "html_bar",
    "html_lines",
    "html_table",
    "human_bytes",
    "human_odds",
    "plain",
    "table",
    "times_line",
]


class Stages:
    """Seconds per stage, in the order in which the stages began."""

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
    """Return ``value`` as strict JSON can hold it.

    Paths become text, tuples lists, numpy scalars and arrays Python values; NaN and infinity, which
    JSON has no word for, become None.
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
    """Return a size for people, in decimal units: ``1536`` gives ``1.5 kB``."""
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


def counts_line(counts: Mapping[str, int]) -> str:
    """Return ``{"human": 5}`` as ``5 human``."""
    return ", ".join(f"{n:,} {name}" for name, n in counts.items()) or "none"


def table(rows: Mapping[str, int], indent: str = "  ") -> list[str]:
    """Return counts as lines, the largest first."""
    width = max((len(k) for k in rows), default=0)
    ordered = sorted(rows.items(), key=lambda item: (-item[1], item[0]))
    return [f"{indent}{name:<{width}}  {n:>7,}" for name, n in ordered]


def times_line(seconds: Mapping[str, float]) -> str:
    """Return seconds per stage on one line."""
    return ", ".join(f"{stage} {s:.1f} s" for stage, s in seconds.items())


@dataclass(frozen=True, kw_only=True)
class Record:
    """Facts as fields."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as strict JSON can hold them."""
        return {f.name: plain(getattr(self, f.name)) for f in fields(self)}


@dataclass(frozen=True, kw_only=True)
class Report(Record):
    """Base of all reports. ``notes`` are messages that are not errors."""

    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        raise NotImplementedError

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        # What a notebook shows: names of files, labels and genes are whatever a file holds.
        return html_lines(self.lines())


def html_lines(lines: Iterable[str]) -> str:
    """Return lines for people as HTML; nothing in them is markup."""
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def html_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a small table as HTML; numbers stand to the right, and nothing in a cell is markup."""

    def cell(value: Any) -> str:
        shown = (
            f"{value:,}" if isinstance(value, int) else f"{value:.2f}" if isinstance(value, float) else value
        )
        side = "right" if isinstance(value, int | float) else "left"
        return f'<td style="text-align:{side};padding:1px 0.8em">{escape(str(shown))}</td>'

    top = "".join(f'<th style="text-align:left;padding:1px 0.8em">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f'<table style="margin-left:0"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def html_bar(shares: Mapping[str, tuple[int, str]]) -> str:
    """Return counts as one bar with its legend: ``{"confident": (90, "#1b9e77")}``."""
    total = max(sum(n for n, _ in shares.values()), 1)
    parts = "".join(
        f'<span title="{escape(name)}" style="background:{color};width:{100 * n / total:.2f}%"></span>'
        for name, (n, color) in shares.items()
        if n
    )
    legend = " &nbsp; ".join(
        f'<span style="color:{color}">&#9632;</span> {escape(name)} {n:,}'
        for name, (n, color) in shares.items()
        if n
    )
    bar = '<div style="display:flex;height:0.8em;max-width:32em;border-radius:3px;overflow:hidden">'
    return f"{bar}{parts}</div><small>{legend}</small>"


def human_odds(log_odds: float) -> str:
    """Return natural-log odds in words: ``about 20 to 1 for it``."""
    odds = math.exp(min(abs(log_odds), 700.0))
    if odds > 1e6:
        size = "over a million"
    else:
        size = f"about {odds:,.0f}" if odds >= 10 else f"about {odds:.1f}"
    return f"{size} to 1 {'for' if log_odds >= 0 else 'against'} it"
