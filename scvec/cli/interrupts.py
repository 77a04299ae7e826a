"""Ctrl-C that is heard wherever Python was when it came."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scvec.base.protocols import Progress

__all__ = ["Interrupts"]


class Interrupts:
    """Remembers an interrupt that Python dropped.

    ``KeyboardInterrupt`` is raised in whatever line runs when the signal comes. In a callback of the garbage
    collector Python prints it and goes on, and the command would end hours later as if nothing had been
    asked. So it is kept here, and raised anew between two steps. The signal's handler stays Python's own:
    ``asyncio.run`` puts one in its place that lets what has arrived be written, but only in place of that.
    """

    def __init__(self) -> None:
        self.dropped = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep what is dropped while the block runs."""
        before = sys.unraisablehook

        def hook(unraisable: sys.UnraisableHookArgs) -> None:
            if isinstance(unraisable.exc_value, KeyboardInterrupt):
                self.dropped = True
            else:
                before(unraisable)

        sys.unraisablehook = hook
        try:
            yield
        finally:
            sys.unraisablehook = before

    def heeding(self, progress: Progress) -> Progress:
        """Return ``progress`` that raises, in the main thread, the interrupt that was dropped."""

        def report(stage: str, done: int, total: int | None, detail: str = "") -> None:
            if self.dropped and threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            progress(stage, done, total, detail)

        return report
