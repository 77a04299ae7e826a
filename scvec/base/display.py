"""What screens and notebooks show: HTML of lines and tables, progress bars, and colours."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

__all__ = [
    "GREY",
    "PALETTE",
    "STATUS_COLORS",
    "ProgressBar",
    "html_bar",
    "html_lines",
    "html_table",
    "label_colors",
]


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
