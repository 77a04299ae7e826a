"""Send batches of jobs concurrently; one task writes the answers."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from scvec.base.types import Answer, Failure, Job
from scvec.ingest.sources.retry import BudgetSpentError, Caller, ServiceError

__all__ = ["Batches", "Harvest", "Sizes", "Source", "Stop", "Tally", "ask_all", "harvest", "run_async"]

T = TypeVar("T")
R = TypeVar("R")
#: Reason why a run stopped early.
Stop = ServiceError | BudgetSpentError

#: Number of answers that may wait for the writer. More would pause the requests.
WAITING = 16
#: Largest number of requests for an item without an answer. A free source may set a larger number as its
#: attribute ``rounds``.
ROUNDS = 3
#: Seconds to wait for running requests after the run has stopped.
GRACE = 20.0


@dataclass
class Sizes:
    """Limits on the size of one request.

    Attributes
    ----------
    inputs, tokens
        Largest number of inputs, and of tokens.
    learns
        True if a refusal of the largest request so far makes later requests smaller.
    accepted
        Number of inputs of the largest answered request.
    seconds
        Intended largest duration of a request; None for no limit.
    """

    inputs: int
    tokens: int = 0
    learns: bool = True
    accepted: int = 0
    seconds: float | None = None
    _rate: float = field(default=0.0, repr=False)

    def took(self, n: int, n_tokens: int, seconds: float) -> None:
        """Record an answered request."""
        self.accepted = max(self.accepted, n)
        rate = n_tokens / max(seconds, 1e-3)
        self._rate = (self._rate + rate) / 2 if self._rate else rate

    def refused(self, n: int) -> None:
        """Record a refused request. Its size is the reason only if no request of this size was answered."""
        if self.learns and n > self.accepted:
            self.inputs = min(self.inputs, max(1, n // 2))

    @property
    def budget(self) -> int:
        """Largest number of tokens of the next request."""
        if self.seconds is None or not self._rate:
            return self.tokens
        return min(self.tokens, int(self._rate * self.seconds))


class Batches(Generic[T]):
    """Items without an answer; the length is an upper bound of the number of batches.

    Parameters
    ----------
    items
        The items.
    sizes
        Limits of a batch; they may change between two batches.
    tokens
        Function that returns the number of tokens of an item. An item above the limit is sent alone.
    """

    def __init__(self, items: Iterable[T], sizes: Sizes, tokens: Callable[[T], int] = lambda item: 0) -> None:
        self._sizes, self._tokens = sizes, tokens
        self._fresh = deque(items)
        # Batches to ask again, each with the number of its next round.
        self._again: deque[tuple[list[T], int]] = deque()

    def __len__(self) -> int:
        return len(self._again) + len(self._fresh)

    def take(self) -> tuple[list[T], int]:
        """Return a batch and the number of its round, which starts at 1."""
        # If sizes are not learned, new items come first, which gives a failing service time to recover.
        if self._again and (self._sizes.learns or not self._fresh):
            batch, n_round = self._again.popleft()
            most = self._sizes.inputs
            if len(batch) > most:
                self._again.appendleft((batch[most:], n_round))
            return batch[:most], n_round
        batch = [self._fresh.popleft()]
        total = self._tokens(batch[0])
        while self._fresh and len(batch) < self._sizes.inputs:
            total += self._tokens(self._fresh[0])
            if total > self._sizes.budget:
                break
            batch.append(self._fresh.popleft())
        return batch, 1

    def again(self, batch: list[T], n_round: int) -> None:
        """Put a batch back. If sizes are learned, it is the next batch, to find the right size soon."""
        if self._sizes.learns:
            self._again.appendleft((batch, n_round))
        else:
            self._again.append((batch, n_round))

    def halve(self, batch: list[T], n_round: int) -> None:
        """Put a batch back in halves."""
        half = len(batch) // 2
        for part in (batch[half:], batch[:half]):
            self.again(part, n_round)

    def clear(self) -> None:
        """Remove all items, so that no more requests are sent."""
        self._fresh.clear()
        self._again.clear()


async def ask_all(
    batches: Batches[T],
    ask: Callable[[list[T]], Awaitable[tuple[R, list[T]]]],
    keep: Callable[[list[R]], None],
    fail: Callable[[list[T], str, int], R],
    *,
    caller: Caller,
    concurrency: int = 4,
    rounds: int = ROUNDS,
) -> Stop | None:
    """Send all batches; return the reason why the run stopped early, or None.

    ``keep`` has received every result when this returns or raises, also after a cancellation (Ctrl-C).

    Parameters
    ----------
    batches
        The items.
    ask
        Function that sends a batch through ``caller.call``. It returns the result, and the items without an
        answer.
    keep
        Function that stores results; it gets several at once if it is slower than the requests. Only one task
        calls it.
    fail
        Function of items without a result, the reason, and the number of attempts; it returns a result.
    caller
        Retry policy.
    concurrency
        Number of concurrent requests.
    rounds
        Largest number of requests for an item.
    """
    arrived: asyncio.Queue[R] = asyncio.Queue(WAITING)
    unsent: list[R] = []
    stopped: Stop | None = None

    async def writer() -> None:
        while True:
            first = await arrived.get()
            keep([first, *_drained(arrived)])
            # Writing does not await anything, so let the workers run between two writes.
            await asyncio.sleep(0)

    async def worker() -> None:
        while batches:
            for result in await _one_batch(batches, ask, fail, caller, rounds):
                try:
                    await arrived.put(result)
                except asyncio.CancelledError:
                    unsent.append(result)  # the queue is full; the result is stored at the end
                    raise

    running = {asyncio.create_task(worker()) for _ in range(max(1, min(concurrency, len(batches))))}
    scribe = asyncio.create_task(writer())
    try:
        while running and stopped is None:
            finished, _ = await asyncio.wait(
                {*running, scribe}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED
            )
            running -= finished
            stopped = _error_of(finished) or caller.hopeless()
            # A worker may have ended before another one put a batch back, so start new workers.
            if stopped is None:
                more = min(concurrency - len(running), len(batches))
                running |= {asyncio.create_task(worker()) for _ in range(more)}
        if running and stopped is not None and not _gone(stopped):
            # Running requests may still be answered, and are paid for, so wait. New requests would fail.
            batches.clear()
            ending = asyncio.gather(*running, return_exceptions=True)
            waited: set[asyncio.Future[Any]] = {ending, scribe}
            grace = None if isinstance(stopped, BudgetSpentError) else GRACE
            await asyncio.wait(waited, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (*running, scribe):
            task.cancel()
        ends = await asyncio.gather(*running, scribe, return_exceptions=True)
        left = [*_drained(arrived), *unsent]
        if left and isinstance(ends[-1], asyncio.CancelledError):  # otherwise the writer itself failed
            keep(left)
    for end in ends:
        # Raise errors of writing, because such results are not stored.
        if isinstance(end, Exception) and not isinstance(end, Stop):
            raise end
    return stopped


async def _one_batch(
    batches: Batches[T],
    ask: Callable[[list[T]], Awaitable[tuple[R, list[T]]]],
    fail: Callable[[list[T], str, int], R],
    caller: Caller,
    rounds: int,
) -> list[R]:
    """Send the next batch; return its results, and put back items to ask again."""
    batch, n_round = batches.take()
    try:
        result, left = await ask(batch)
    except ServiceError as error:
        fatal = caller.hopeless()
        if fatal is not None or error.ends_all:
            raise fatal or error from None
        if error.kind != "rejected" and n_round < rounds:
            batches.again(batch, n_round + 1)
            return []
        if error.kind == "transient" or len(batch) == 1:
            calls = caller.attempts if error.kind == "transient" else 1
            return [fail(batch, error.reason, n_round * calls)]
        # One bad item must not make the other items fail.
        batches.halve(batch, n_round if error.kind == "rejected" else max(rounds - 1, 1))
        return []
    if left and n_round < rounds:
        batches.again(left, n_round + 1)
    elif left:
        return [result, fail(left, "the answer did not include it", n_round)]
    return [result]


def _drained(arrived: asyncio.Queue[R]) -> list[R]:
    found = []
    with suppress(asyncio.QueueEmpty):
        while True:
            found.append(arrived.get_nowait())
    return found


_Outcome = tuple[list[Answer], list[Failure]]


class Source(Protocol):
    """A service that answers jobs."""

    #: Number of jobs in one request.
    batch_size: int
    caller: Caller

    async def ask(self, jobs: Sequence[Job]) -> tuple[list[Answer], list[Failure]]:
        """Return answers and failures of jobs, matched by id and never by position, through ``caller.call``.

        Jobs in neither list are asked again.

        Raises
        ------
        ServiceError
            The complete request failed.
        BudgetSpentError
            The request could exceed the cost limit; it was not sent.
        """
        ...


@dataclass
class Tally:
    """Progress of a harvest; ``cost`` is in US dollars, None if the source is free or the price unknown."""

    total: int
    done: int = 0
    failed: int = 0
    calls: int = 0
    cost: float | None = None
    started: float = field(default_factory=time.monotonic)

    def line(self) -> str:
        """Return failures, rate, cost and time left for a progress bar."""
        seconds = max(time.monotonic() - self.started, 1e-3)
        rate = (self.done + self.failed) / seconds
        left = (self.total - self.done - self.failed) / rate if rate else 0.0
        parts = [f"{self.failed:,} failed", f"{60 * rate:,.0f} a minute"]
        if self.cost is not None:
            parts.append(f"${self.cost:.4f}")
        return ", ".join([*parts, f"{_clock(left)} left"])


@dataclass(frozen=True)
class Harvest:
    """Result of a harvest: progress, jobs without an answer, and the reason for an early stop, or None."""

    tally: Tally
    failures: tuple[Failure, ...]
    stopped: Stop | None


async def harvest(
    source: Source,
    jobs: Sequence[Job],
    write: Callable[[Sequence[Answer], Sequence[Failure]], None],
    *,
    concurrency: int = 4,
    progress: Callable[[Tally], None] = lambda tally: None,
    cost: Callable[[], float | None] = lambda: None,
) -> Harvest:
    """Send all jobs to a source with :func:`ask_all`.

    Parameters
    ----------
    source
        The service.
    jobs
        The jobs.
    write
        Function that stores answers and failures in one transaction.
    concurrency
        Number of concurrent requests.
    progress
        Function that receives the progress after each write.
    cost
        Function that returns the US dollars spent.
    """
    tally = Tally(len(jobs))
    failures: list[Failure] = []

    def keep(results: list[_Outcome]) -> None:
        answers = [a for found, _ in results for a in found]
        failed = [f for _, found in results for f in found]
        if answers or failed:
            write(answers, failed)
        failures.extend(failed)
        tally.done += len(answers)
        tally.failed += len(failed)
        tally.calls = source.caller.n_calls
        tally.cost = cost()
        progress(tally)

    async def ask(batch: list[Job]) -> tuple[_Outcome, list[Job]]:
        answers, failed = _checked(batch, *await source.ask(batch))
        known = {a.job for a in answers} | {f.job for f in failed}
        return (answers, failed), [job for job in batch if job not in known]

    def fail(batch: list[Job], reason: str, attempts: int) -> _Outcome:
        return [], [Failure(job, reason, attempts=attempts) for job in batch]

    stopped = await ask_all(
        Batches(jobs, Sizes(source.batch_size, learns=False)),
        ask,
        keep,
        fail,
        caller=source.caller,
        concurrency=concurrency,
        rounds=int(getattr(source, "rounds", ROUNDS)),
    )
    return Harvest(tally, tuple(failures), stopped)


def _error_of(finished: Iterable[asyncio.Task[None]]) -> Stop | None:
    """Return the Stop that ended one of these tasks, or None; raise any other error."""
    found: Stop | None = None
    for task in finished:
        error = task.exception()
        if isinstance(error, Stop):
            found = found or error
        elif error is not None:
            raise error
    return found


def _gone(error: Stop) -> bool:
    return isinstance(error, ServiceError) and error.kind in ("gone", "address")


def _checked(
    batch: Sequence[Job], answers: Sequence[Answer], failures: Sequence[Failure]
) -> tuple[list[Answer], list[Failure]]:
    """Return at most one outcome per sent job; drop answers whose parts belong to different genes."""
    asked = set(batch)
    good: dict[Job, Answer] = {}
    for answer in answers:
        parts = {d.gene_id for d in answer.descriptions}
        parts |= {part.gene_id for part in (answer.gene, answer.note) if part is not None}
        known = answer.job.gene_id
        if answer.job in asked and (parts <= {known} or (known.startswith("ask:") and len(parts) == 1)):
            good.setdefault(answer.job, answer)
    failed: dict[Job, Failure] = {}
    for failure in failures:
        if failure.job in asked and failure.job not in good:
            failed.setdefault(failure.job, failure)
    return list(good.values()), list(failed.values())


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also from a notebook, where another event loop is already running."""
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
        # Only the main thread receives Ctrl-C. Cancel the task, and wait while the thread writes its results.
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
