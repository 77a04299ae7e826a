"""Many texts, in requests of a size that the server takes, several under way at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from scvec.backbones.embedding_calls import Embedded
from scvec.ingest.sources.retry import BudgetSpentError, Caller, ServiceError
from scvec.types import Float32

__all__ = ["Dispatch", "Sizes", "requests_of"]

#: Times a request is made whose answer is not what was asked for, before its texts are asked for in halves.
ROUNDS = 3
#: Requests in a row that the server refuses, or answers wrongly, after which no other is made.
ENOUGH = 20
#: Seconds that answers under way are waited for when no other request will do.
GRACE = 5.0


@dataclass
class Sizes:
    """How much one request holds; learned from what the server takes.

    Attributes
    ----------
    inputs, tokens
        The most of both.
    accepted
        Texts of the largest request that was answered.
    seconds
        What a request should take at most, well below the time-out; None where it does not matter.
    """

    inputs: int
    tokens: int
    accepted: int = 0
    seconds: float | None = None
    _rate: float = field(default=0.0, repr=False)

    def took(self, n: int, n_tokens: int, seconds: float) -> None:
        """Note an answer."""
        self.accepted = max(self.accepted, n)
        rate = n_tokens / max(seconds, 1e-3)
        self._rate = (self._rate + rate) / 2 if self._rate else rate

    def refused(self, n: int) -> None:
        """Note a request that was refused; that tells of its size only if none so large was answered."""
        if n > self.accepted:
            self.inputs = min(self.inputs, max(1, n // 2))

    @property
    def budget(self) -> int:
        """Tokens that the next request may hold."""
        if self.seconds is None or not self._rate:
            return self.tokens
        return min(self.tokens, int(self._rate * self.seconds))


def requests_of(counts: Sequence[int], inputs: int, tokens: int) -> list[list[int]]:
    """Return the numbers of texts, in order, in as few requests as their sizes allow.

    Parameters
    ----------
    counts
        Tokens of the texts.
    inputs, tokens
        The most that a request holds; a longer text goes alone.
    """
    requests: list[list[int]] = []
    total = 0
    for number, count in enumerate(counts):
        if not requests or len(requests[-1]) >= inputs or total + count > tokens:
            requests.append([])
            total = 0
        requests[-1].append(number)
        total += count
    return requests


class Dispatch:
    """Asks for the vectors of texts.

    Parameters
    ----------
    ask
        Takes numbers of texts, returns their vectors.
    counts
        Tokens of the texts.
    keep
        Takes numbers of texts and vectors, as soon as they are there.
    caller
        The policy under which ``ask`` makes its calls.
    """

    def __init__(
        self,
        ask: Callable[[list[int]], Awaitable[Embedded]],
        counts: Sequence[int],
        keep: Callable[[list[int], Float32], None],
        *,
        caller: Caller,
        sizes: Sizes,
        concurrency: int = 4,
        skip: frozenset[int] = frozenset(),
    ) -> None:
        self._ask, self._counts, self._keep = ask, counts, keep
        self._caller, self._sizes, self._concurrency = caller, sizes, concurrency
        self._fresh = deque(i for i in range(len(counts)) if i not in skip)
        # Requests to make again, and how often they were made.
        self._again: deque[tuple[list[int], int]] = deque()
        self._bad = 0
        self._stop = False
        #: Texts without a vector, and why.
        self.failures: dict[int, str] = {}

    async def run(self) -> ServiceError | BudgetSpentError | None:
        """Ask for all; return why not all were asked for, or None."""
        stopped: ServiceError | BudgetSpentError | None = None
        running = self._engaged(set())
        tasks = set(running)
        try:
            while running and stopped is None:
                finished, running = await asyncio.wait(
                    running, timeout=1.0, return_when=asyncio.FIRST_COMPLETED
                )
                for task in finished:
                    error = task.exception()
                    if isinstance(error, ServiceError | BudgetSpentError):
                        stopped = stopped or error
                    elif error is not None:
                        raise error
                stopped = stopped or self._caller.hopeless()
                if stopped is None:
                    # One worker gave back what another, which had ended, could take.
                    running = self._engaged(running)
                tasks |= running
        finally:
            self._stop = True
            if stopped is not None and running:
                # What is under way is paid for.
                grace = None if isinstance(stopped, BudgetSpentError) else GRACE
                await asyncio.wait(running, timeout=grace)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return stopped

    def _engaged(self, running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
        """Return the workers, and new ones if there is work for them."""
        waiting = len(self._again) + len(self._fresh)
        new = max(0, min(self._concurrency - len(running), waiting))
        return {*running, *(asyncio.create_task(self._worker()) for _ in range(new))}

    async def _worker(self) -> None:
        while not self._stop and (self._again or self._fresh):
            rows, tries = self._take()
            try:
                answer = await self._ask(rows)
            except ServiceError as error:
                self._fail(rows, tries + 1, error)
                continue
            self._bad = 0
            self._sizes.took(len(rows), sum(self._counts[i] for i in rows), answer.seconds)
            self._keep(rows, answer.vectors)

    def _take(self) -> tuple[list[int], int]:
        sizes = self._sizes
        if self._again:
            rows, tries = self._again.popleft()
            if len(rows) > sizes.inputs:
                self._again.appendleft((rows[sizes.inputs :], 0))
                rows, tries = rows[: sizes.inputs], 0
            return rows, tries
        rows, total, budget = [self._fresh.popleft()], 0, sizes.budget
        total = self._counts[rows[0]]
        while self._fresh and len(rows) < sizes.inputs and total + self._counts[self._fresh[0]] <= budget:
            rows.append(self._fresh.popleft())
            total += self._counts[rows[-1]]
        return rows, 0

    def _fail(self, rows: list[int], tries: int, error: ServiceError) -> None:
        """Ask again, in halves, or not at all; raise the error if it is every request's."""
        if error.ends_all:
            raise error
        if error.kind in ("rejected", "unfit"):
            self._bad += 1
            if self._bad >= ENOUGH:
                raise ServiceError(error.kind, f"{error.reason}, {self._bad} requests in a row")
            if error.kind == "unfit" and tries < ROUNDS:
                self._again.append((rows, tries))
                return
            if len(rows) > 1:
                # One text must not take the others with it.
                if error.kind == "rejected":
                    self._sizes.refused(len(rows))
                half, tries = len(rows) // 2, 0 if error.kind == "rejected" else ROUNDS - 2
                self._again.extendleft([(rows[half:], tries), (rows[:half], tries)])
                return
        self.failures.update(dict.fromkeys(rows, error.reason))
