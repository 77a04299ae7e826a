"""Output of commands: notes and progress on stderr, results on stdout. Signals that end a command."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from scvec.base.errors import ScvecError
from scvec.base.settings import redact

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

    from rich.progress import TaskID

    from scvec.base.results import NextStep
    from scvec.base.types import Progress

__all__ = ["Console", "Interrupts", "Printable", "show_logs"]

#: Loggers that show every message; others show warnings and errors.
VERBOSE = ("scvec", "aiohttp", "openai", "httpx", "httpx2", "httpcore", "httpcore2")


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        from scvec.base.settings import redact

        # After formatting, so that arguments and tracebacks are covered too.
        return redact(super().format(record))


def show_logs() -> None:
    """Write logs to stderr; a second call does nothing."""
    root = logging.getLogger()
    if any(isinstance(h.formatter, _Redacting) for h in root.handlers):
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Redacting("%(relativeCreated)8.0f ms %(name)s: %(message)s"))
    root.addHandler(handler)
    for name in VERBOSE:
        logging.getLogger(name).setLevel(logging.DEBUG)


class Interrupts:
    """Ends a command between two steps, whatever Python did with the signal.

    ``KeyboardInterrupt`` is raised in whatever line runs when Ctrl-C comes. In a callback of the garbage
    collector Python prints it and goes on, and the command would end hours later as if nothing had been
    asked. So it is kept here, and raised anew between two steps. SIGINT keeps Python's own handler:
    ``asyncio.run`` replaces that handler, and no other, by one that lets what has arrived be written.

    SIGTERM, by which schedulers and ``timeout`` stop a program, does what Ctrl-C does: files that are half
    written are removed.

    Attributes
    ----------
    dropped
        Python dropped an interrupt.
    terminated
        Monotonic time of the first SIGTERM in seconds; None where none came.
    """

    def __init__(self) -> None:
        self.dropped = False
        self.terminated: float | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals and keep dropped interrupts while the block runs."""
        before = sys.unraisablehook

        def hook(unraisable: sys.UnraisableHookArgs) -> None:
            if isinstance(unraisable.exc_value, KeyboardInterrupt):
                self.dropped = True
            else:
                before(unraisable)

        # Only the main thread may set a handler; whoever set one, or ignores the signal, had a reason.
        ours = threading.current_thread() is threading.main_thread()
        ours = ours and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        sys.unraisablehook = hook
        if ours:
            signal.signal(signal.SIGTERM, self._terminate)
        try:
            yield
        finally:
            sys.unraisablehook = before
            if ours:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        # ``timeout`` sends the signal twice, to the process and to its group.
        if self.terminated is not None and now - self.terminated < SAME_SIGNAL:
            return
        self.terminated = now
        on_interrupt = signal.getsignal(signal.SIGINT)
        if callable(on_interrupt):  # of asyncio, where it runs
            on_interrupt(signal.SIGINT, frame)
        else:
            raise KeyboardInterrupt

    def heeding(self, progress: Progress) -> Progress:
        """Return ``progress`` that raises, in the main thread, the interrupt that was dropped."""

        def report(stage: str, done: int, total: int | None, detail: str = "") -> None:
            if self.dropped and threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            progress(stage, done, total, detail)

        return report


#: Seconds between two lines about one stage in a log.
LOG_INTERVAL = 30.0
#: Seconds within which a second SIGTERM is the first one again.
SAME_SIGNAL = 1.0


class Printable(Protocol):
    """A result that a command shows."""

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        ...

    def lines(self) -> Iterable[str]:
        """Return what people read."""
        ...


class Console:
    """Writes results and messages.

    Parameters
    ----------
    as_json
        Print one JSON object on stdout and nothing else.
    verbosity
        -1 quiet, 0 normal, 1 and more verbose.

    Attributes
    ----------
    typed
        Words of the command, as they were typed after ``scvec``.
    """

    def __init__(self, *, as_json: bool = False, verbosity: int = 0) -> None:
        self.as_json = as_json
        self.verbosity = verbosity
        self.typed: list[str] = []

    def note(self, text: str) -> None:
        """Write one line to stderr, unless quiet."""
        if self.verbosity >= 0:
            _err(text)

    def show(self, report: Printable) -> None:
        """Write the notes of a report to stderr and the report to stdout."""
        from scvec.base.results import one_line_a_kind, plain

        for note in one_line_a_kind(getattr(report, "notes", ())):
            self.note(note if note.startswith("warning: ") else f"note: {note}")
        if self.as_json:
            _out(json.dumps(plain(report.to_dict()), allow_nan=False))
        else:
            _out("\n".join(clean(line) for line in report.lines()))
            self.suggest(getattr(report, "next_step", None))

    def suggest(self, step: NextStep | None) -> None:
        """Write the command that a person may want next to stderr, unless quiet or as JSON."""
        if step is None or self.as_json:
            return
        again = [word for word in self.typed if word != "--dry-run"]
        words = [*again, *step.words] if step.again else [*step.words, *self.where(step)]
        place = f", {step.place}" if step.place else ""
        self.note(f"next{place}: {program()} {shlex.join(words)}")

    def where(self, step: NextStep) -> list[str]:
        """Return the words that name the store of this command, if a new command needs them."""
        return []

    def error(self, error: ScvecError, cause: BaseException) -> None:
        """Write an error: on stderr for people, with ``--json`` on stdout too."""
        if self.as_json:
            _out(json.dumps(error.to_dict()))
        # A terminal that shows the JSON object needs no second telling.
        if not self.as_json or not sys.stdout.isatty():
            lines = error.lines()
            _err("\n".join([f"error: {lines[0]}", *lines[1:]]))
        if self.verbosity > 0:
            _err("".join(traceback.format_exception(cause)).rstrip())

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Yield a function for the library to report progress to.

        A bar per stage where stderr is a terminal; plain lines where ``NO_COLOR`` is set: one per stage, and
        one every :data:`LOG_INTERVAL` seconds of a stage that reports its rate. Nothing when quiet. Where
        stderr is no terminal plain lines come with ``-v`` only, so that a note or an error stands alone.
        """
        if self.verbosity < 0 or (self.verbosity == 0 and not sys.stderr.isatty()):
            from scvec.base.types import no_progress

            yield no_progress
        elif not _fancy():
            yield self._plain_progress()
        else:
            with _bars() as report:
                yield report

    def _plain_progress(self) -> Progress:
        last: dict[str, float] = {}

        def report(stage: str, done: int, total: int | None, detail: str = "") -> None:
            now = time.monotonic()
            if stage not in last:
                self.note(f"{stage} ...")
            elif not detail or now - last[stage] < LOG_INTERVAL:
                return
            else:
                self.note(f"{stage}: {done:,} of {total or 0:,}, {detail}")
            last[stage] = now

        return report


def _fancy() -> bool:
    # https://no-color.org: set to anything but the empty string.
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        console=RichConsole(stderr=True),
    )
    tasks: dict[str, TaskID] = {}

    def finish(stage: str) -> None:
        # A stage whose size was never known stops pulsing when the next one starts.
        task = bars.tasks[bars.task_ids.index(tasks[stage])]
        if task.total is None:
            bars.update(tasks[stage], total=max(task.completed, 1), completed=max(task.completed, 1))

    def report(stage: str, done: int, total: int | None, detail: str = "") -> None:
        if stage not in tasks:
            for earlier in tasks:
                finish(earlier)
            tasks[stage] = bars.add_task(clean(stage), total=total, detail="")
        bars.update(tasks[stage], completed=done, total=total, detail=clean(detail))

    with bars:
        yield report
        for stage in tasks:
            finish(stage)


def program() -> str:
    """Return what to type for scvec: its path if the shell finds no scvec, or another one."""
    typed, found = Path(sys.argv[0]), shutil.which("scvec")
    if typed.parts[-2:] == ("scvec", "__main__.py") and found is None:
        return "python -m scvec"
    if typed.stem != "scvec" or (found is not None and os.path.samefile(found, typed)):
        return "scvec"
    return shlex.quote(sys.argv[0])


def clean(text: str) -> str:
    """Return ``text`` without control characters: names from files must not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def _out(text: str) -> None:
    # The reader may have gone (``scvec info | head -1``). The work is done by now: no error.
    try:
        click.echo(redact(text))
    except BrokenPipeError:
        _silence("stdout")


def _err(text: str) -> None:
    # A note that nobody reads must not end a long ingest.
    try:
        click.echo(redact(clean(text)), err=True)
    except BrokenPipeError:
        _silence("stderr")


def _silence(stream: str) -> None:
    # Python flushes both streams once more at exit, which would raise again.
    setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115 (it stays open until exit)
