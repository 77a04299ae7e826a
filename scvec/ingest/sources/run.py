"""Questions go out in batches, answers come in, one task writes them down."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from scvec.ingest.sources.retry import BudgetSpentError, Caller, ServiceError
from scvec.records import Answer, Failure, Job

__all__ = ["Harvest", "Source", "Tally", "harvest", "run_async"]

T = TypeVar("T")

#: Answers that may wait to be written before asking stops to let the writer catch up.
WAITING = 16
#: Times a gene that an otherwise good answer left out, or got wrong, or that got none, is asked for. A source
#: where asking again costs nothing may have more, as its attribute ``rounds``.
ROUNDS = 3
#: Requests in a row that were rejected, with none accepted between them, after which the rest would be too.
REJECTIONS = 30
#: Seconds that requests under way are given when no others will be sent.
GRACE = 20.0


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
    rejections = 0
    rounds = int(getattr(source, "rounds", ROUNDS))

    def keep(results: list[tuple[list[Answer], list[Failure]]]) -> None:
        answers = [a for found, _ in results for a in found]
        failed = [f for _, lost in results for f in lost]
        if answers or failed:
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
            answers, lost = await asked(batch, n_round)
            try:
                await arrived.put((answers, lost))
            except asyncio.CancelledError:
                unsent.append((answers, lost))  # the queue was full; what has arrived is kept all the same
                raise

    async def asked(batch: list[Job], n_round: int) -> tuple[list[Answer], list[Failure]]:
        nonlocal rejections
        try:
            answers, lost = await source.ask(batch)
        except ServiceError as error:
            if error.ends_all:
                raise
            if error.kind == "rejected":
                rejections += 1
                if rejections >= REJECTIONS:
                    raise
                if len(batch) > 1:
                    # One bad gene must not take the others with it.
                    half = len(batch) // 2
                    todo.extend([(batch[:half], n_round), (batch[half:], n_round)])
                    return [], []
            elif error.kind == "transient" and n_round < rounds:
                todo.append((batch, n_round + 1))
                return [], []
            attempts = n_round * (source.caller.attempts if error.kind == "transient" else 1)
            return [], [Failure(job, error.reason, attempts=attempts) for job in batch]
        rejections = 0
        answers, lost = _fitting(batch, answers, lost)
        known = {a.job for a in answers} | {f.job for f in lost}
        rest = [job for job in batch if job not in known]
        if rest and n_round < rounds:
            todo.append((rest, n_round + 1))
        else:
            lost = lost + [Failure(job, "the answer left it out", attempts=n_round) for job in rest]
        return answers, lost

    running = {asyncio.create_task(worker()) for _ in range(max(1, min(concurrency, len(todo))))}
    scribe = asyncio.create_task(writer())
    try:
        while running and stopped is None:
            finished, _ = await asyncio.wait(
                {*running, scribe}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED
            )
            running -= finished
            stopped = _error_of(finished) or source.caller.hopeless()
            # A worker that ended while another gave back work leaves room for a new one.
            if stopped is None:
                more = min(concurrency - len(running), len(todo))
                running |= {asyncio.create_task(worker()) for _ in range(more)}
        if running and stopped is not None and not _gone(stopped):
            # What is under way may be answered, and paid for. No new requests: the workers meet the same end.
            todo.clear()
            ending = asyncio.gather(*running, return_exceptions=True)
            waited: set[asyncio.Future[Any]] = {ending, scribe}
            await asyncio.wait(waited, timeout=GRACE, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (*running, scribe):
            task.cancel()
        ends = await asyncio.gather(*running, scribe, return_exceptions=True)
        left = [*drained(), *unsent]
        if left:
            keep(left)
    for end in ends:
        # An answer that could not be written down must not pass for one that was.
        if isinstance(end, Exception) and not isinstance(end, ServiceError | BudgetSpentError):
            raise end
    return Harvest(tally, tuple(failures), stopped)


def _error_of(finished: Iterable[asyncio.Task[None]]) -> ServiceError | BudgetSpentError | None:
    """Return the error that ended one of these tasks as errors may; raise any other."""
    found: ServiceError | BudgetSpentError | None = None
    for task in finished:
        error = task.exception()
        if isinstance(error, ServiceError | BudgetSpentError):
            found = found or error
        elif error is not None:
            raise error
    return found


def _gone(error: ServiceError | BudgetSpentError) -> bool:
    return isinstance(error, ServiceError) and error.kind in ("gone", "address")


def _fitting(
    batch: Sequence[Job], answers: Sequence[Answer], lost: Sequence[Failure]
) -> tuple[list[Answer], list[Failure]]:
    """Return one outcome of each job that was asked for, and no answer whose parts are of different genes."""
    asked = set(batch)
    fitting: dict[Job, Answer] = {}
    for answer in answers:
        parts = {d.gene_id for d in answer.descriptions}
        parts |= {part.gene_id for part in (answer.gene, answer.note) if part is not None}
        known = answer.job.gene_id
        if answer.job in asked and (parts <= {known} or (known.startswith("ask:") and len(parts) == 1)):
            fitting.setdefault(answer.job, answer)
    failed: dict[Job, Failure] = {}
    for failure in lost:
        if failure.job in asked and failure.job not in fitting:
            failed.setdefault(failure.job, failure)
    return list(fitting.values()), list(failed.values())


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, from a script or from a notebook, whose own loop is running already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main)
    import threading

    outcome: list[T] = []
    errors: list[BaseException] = []
    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[T]]] = []

    async def supervised() -> T:
        task = asyncio.current_task()
        if task is not None:
            started.append((asyncio.get_running_loop(), task))
        return await main

    def run() -> None:
        try:
            outcome.append(asyncio.run(supervised()))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="scvec-harvest")
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        # Only the main thread hears of Ctrl-C: pass it on, and let what has arrived be written.
        for loop, task in started:
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    if errors:
        raise errors[0]
    return outcome[0]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
