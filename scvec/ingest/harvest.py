"""Questions go out in batches, answers come in, one task writes them down."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from scvec.ingest.calls import Caller, ServiceError
from scvec.records import Answer, Failure, Job

__all__ = ["BudgetSpentError", "Harvest", "Source", "Tally", "harvest", "run_async"]

T = TypeVar("T")

#: Answers that may wait to be written before asking stops to let the writer catch up.
WAITING = 16
#: Times a gene that an otherwise good answer left out, or got wrong, is asked for.
ROUNDS = 3


class BudgetSpentError(Exception):
    """The next call might cost more than the user allowed."""


class Source(Protocol):
    """A service that answers jobs."""

    name: str
    #: Jobs in one request.
    batch_size: int
    caller: Caller

    async def ask(self, jobs: Sequence[Job]) -> tuple[list[Answer], list[Failure]]:
        """Return answers and failures of some jobs, matched by their ids and never by position.

        Makes its calls by ``caller.call``. Jobs that are in neither list are asked for again.

        Raises
        ------
        ServiceError
            If the request failed as a whole.
        BudgetSpentError
            If it would cost too much; nothing was sent.
        """
        ...


@dataclass
class Tally:
    """How far a harvest is.

    Attributes
    ----------
    cost
        US dollars, or None where calls are free or the price is not known.
    """

    total: int
    done: int = 0
    failed: int = 0
    calls: int = 0
    cost: float | None = None
    started: float = field(default_factory=time.monotonic)

    def line(self) -> str:
        """Return failed, rate, cost and time left for a progress bar."""
        seconds = max(time.monotonic() - self.started, 1e-3)
        rate = (self.done + self.failed) / seconds
        left = (self.total - self.done - self.failed) / rate if rate else 0.0
        parts = [f"{self.failed:,} failed", f"{60 * rate:,.0f} a minute"]
        if self.cost is not None:
            parts.append(f"${self.cost:.4f}")
        return ", ".join([*parts, f"{_clock(left)} left"])


@dataclass(frozen=True)
class Harvest:
    """What became of the jobs.

    Attributes
    ----------
    failures
        Jobs that were asked and have no answer.
    stopped
        Why not all jobs were asked, or None.
    """

    tally: Tally
    failures: tuple[Failure, ...]
    stopped: ServiceError | BudgetSpentError | None


async def harvest(
    source: Source,
    jobs: Sequence[Job],
    write: Callable[[Sequence[Answer], Sequence[Failure]], None],
    *,
    concurrency: int = 4,
    progress: Callable[[Tally], None] = lambda tally: None,
    cost: Callable[[], float | None] = lambda: None,
) -> Harvest:
    """Ask a source for all jobs.

    Whatever has arrived is written before this returns or raises, on cancellation (Ctrl-C) too.

    Parameters
    ----------
    write
        Takes answers and failures, in one transaction. Called by one task only.
    concurrency
        Requests under way at once.
    progress
        Called after every batch that is written.
    cost
        Returns what has been spent.
    """
    todo: deque[tuple[list[Job], int]] = deque(
        (list(jobs[i : i + source.batch_size]), 1) for i in range(0, len(jobs), source.batch_size)
    )
    tally = Tally(len(jobs))
    arrived: asyncio.Queue[tuple[list[Answer], list[Failure]]] = asyncio.Queue(WAITING)
    unsent: list[tuple[list[Answer], list[Failure]]] = []
    failures: list[Failure] = []
    stopped: ServiceError | BudgetSpentError | None = None

    def keep(results: list[tuple[list[Answer], list[Failure]]]) -> None:
        answers = [a for found, _ in results for a in found]
        failed = [f for _, lost in results for f in lost]
        write(answers, failed)
        failures.extend(failed)
        tally.done += len(answers)
        tally.failed += len(failed)
        tally.calls = source.caller.n_calls
        tally.cost = cost()
        progress(tally)

    def drained() -> list[tuple[list[Answer], list[Failure]]]:
        found = []
        with suppress(asyncio.QueueEmpty):
            while True:
                found.append(arrived.get_nowait())
        return found

    async def writer() -> None:
        while True:
            first = await arrived.get()
            keep([first, *drained()])
            # Let the workers go on between two writes, which do not await anything.
            await asyncio.sleep(0)

    async def worker() -> None:
        while todo:
            batch, n_round = todo.popleft()
            try:
                answers, lost = await source.ask(batch)
            except ServiceError as error:
                if error.ends_all:
                    raise
                if error.kind == "rejected" and len(batch) > 1:
                    # One bad gene must not take the others with it.
                    half = len(batch) // 2
                    todo.extend([(batch[:half], n_round), (batch[half:], n_round)])
                    continue
                answers = []
                lost = [Failure(j, error.reason, attempts=source.caller.attempts) for j in batch]
            known = {a.job for a in answers} | {f.job for f in lost}
            rest = [job for job in batch if job not in known]
            if rest and n_round < ROUNDS:
                todo.append((rest, n_round + 1))
            else:
                lost = lost + [Failure(job, "the answer left it out", attempts=n_round) for job in rest]
            try:
                await arrived.put((answers, lost))
            except asyncio.CancelledError:
                unsent.append((answers, lost))  # the queue was full; what has arrived is kept all the same
                raise

    tasks = [asyncio.create_task(worker()) for _ in range(max(1, min(concurrency, len(todo))))]
    scribe = asyncio.create_task(writer())
    try:
        running: set[asyncio.Task[None]] = set(tasks)
        while running and stopped is None:
            finished, running = await asyncio.wait(
                {*running, scribe}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED
            )
            running.discard(scribe)
            for task in finished:
                error = task.exception()
                if isinstance(error, ServiceError | BudgetSpentError):
                    stopped = stopped or error
                elif error is not None:
                    raise error
            stopped = stopped or source.caller.hopeless()
            # A worker that ended while another gave back work leaves room for a new one.
            if stopped is None and todo and len(running) < concurrency:
                running.add(asyncio.create_task(worker()))
                tasks = list(running)
    finally:
        if isinstance(stopped, BudgetSpentError):
            # What is under way is paid for: wait for it.
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in (*tasks, scribe):
            task.cancel()
        await asyncio.gather(*tasks, scribe, return_exceptions=True)
        left = [*drained(), *unsent]
        if left:
            keep(left)
    return Harvest(tally, tuple(failures), stopped)


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, from a script or from a notebook, whose own loop is running already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main)
    import threading

    outcome: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(main))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="scvec-harvest")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return outcome[0]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
