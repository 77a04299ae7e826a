"""Progress for people who work in Python: a bar in a notebook, lines elsewhere."""

from __future__ import annotations

import sys
import time
from html import escape
from typing import Any

__all__ = ["ProgressBar"]

#: Seconds between two changes of what is shown.
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
