"""Base class of all reports, progress bars, colours, and functions that format numbers for people."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from html import escape
from typing import Any, NamedTuple

__all__ = [
    "GREY",
    "IN_EARNEST",
    "PALETTE",
    "STATUS_COLORS",
    "NextStep",
    "ProgressBar",
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
    "label_colors",
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


#: The same command in earnest, after a dry run.
IN_EARNEST = NextStep(again=True)


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


def html_lines(lines: Iterable[str]) -> str:
    """Return lines of text as HTML, escaped."""
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def html_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a small table as HTML; numbers are aligned right, and cells are escaped."""

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
    """Format natural-log odds in words: ``about 20 to 1 for it``."""
    odds = math.exp(min(abs(log_odds), 700.0))
    if odds > 1e6:
        size = "over a million"
    else:
        size = f"about {odds:,.0f}" if odds >= 10 else f"about {odds:.1f}"
    return f"{size} to 1 {'for' if log_odds >= 0 else 'against'} it"


#: Smallest time between two updates of the display, in seconds.
INTERVAL = 0.1


class ProgressBar:
    """Shows how far a call is: ``scvec.query("store", adata, progress=scvec.ProgressBar())``.

    One object shows one call. In a notebook each stage is a bar that moves in its place, without any widgets;
    elsewhere each stage is a line on stderr.
    """

    def __init__(self) -> None:
        self._stages: dict[str, tuple[int, int | None, str]] = {}
        self._handle: Any = None
        self._shown = 0.0

    def __call__(self, stage: str, done: int, total: int | None, detail: str = "") -> None:
        """Take the progress of a stage (:class:`scvec.base.types.Progress`)."""
        new = stage not in self._stages
        self._stages[stage] = (done, total, detail)
        if not _in_notebook():
            if new:
                sys.stderr.write("".join(c if c.isprintable() else " " for c in stage) + " ...\n")
            return
        now = time.monotonic()
        finished = total is not None and done >= total
        if new or finished or now - self._shown >= INTERVAL:
            self._shown = now
            self._show()

    def _repr_html_(self) -> str:
        rows = []
        last = next(reversed(self._stages), "")
        for stage, (done, total, detail) in self._stages.items():
            # A stage whose size was never known ends when the next one begins.
            ended = stage != last or (total is not None and done >= total)
            value = 'value="1"' if ended else f'value="{done}" max="{total}"' if total else ""
            rows.append(f"<tr><td>{escape(stage)}</td><td><progress {value}></progress></td>"
                        f"<td>{escape(detail)}</td></tr>")  # fmt: skip
        return f"<table>{''.join(rows)}</table>"

    def _show(self) -> None:
        from IPython.display import HTML, display

        if self._handle is None:
            self._handle = display(HTML(self._repr_html_()), display_id=True)
        else:
            self._handle.update(HTML(self._repr_html_()))


def _in_notebook() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


#: The colours of Okabe and Ito (2008, https://jfly.uni-koeln.de/color). Each further colour has the largest
#: distance, in Oklab, to all before it for normal vision, deuteranopia and protanopia (Machado et al. 2009,
#: doi:10.1109/TVCG.2009.113). The first twelve are easy to distinguish; more need the legend.
PALETTE = tuple(
    "#0072B2 #E69F00 #009E73 #CC79A7 #56B4E9 #D55E00 #700033 #3D00A3 #00EBAD #7014FF #854700 #8F7AFF #AD1470 "
    "#D6D600 #8FB885 #B8CCFF #D600C2 #5C0A70 #145C5C #0000D6 #474799 #00CCC2 #F54766 #EBC27A #5C66E0 #AD523D "
    "#A35C85 #70290A #99003D #7A528F #F57047 #858FD6 #FF85FF #8F0085 #52335C #66E0D6 #003DB8 #1F85D6 #E0A3AD "
    "#EB9966".split()
)
#: Colour of cells without a label.
GREY = "#BBBBBB"
STATUS_COLORS = {"confident": "#0072B2", "ambiguous": "#E69F00", "novel": "#D55E00", "low_quality": GREY}


def label_colors(classes: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Return a colour for each label. A label of a reference has the same colour in every query.

    Parameters
    ----------
    classes
        All labels of the reference. Colours repeat after 40 labels.
    """
    number = {name: i for i, name in enumerate(classes)}
    return [PALETTE[number[name] % len(PALETTE)] if name in number else GREY for name in labels]
