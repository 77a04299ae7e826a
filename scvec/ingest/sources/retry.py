"""Policy for calls of a service: rate limit, retries, and the decision to stop."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal, TypeVar

from filelock import FileLock, Timeout

from scvec.base.errors import AuthError, InputError, NetworkError, ResourceError, ScvecError
from scvec.base.settings import redact

__all__ = ["BudgetSpentError", "Caller", "Kind", "RateLimit", "ServiceError", "parse_retry_after"]

T = TypeVar("T")

#: ``transient``: a retry may succeed. ``rejected``: this request will always fail. ``unfit``: the answer does
#: not match the request. ``auth``, ``quota``, ``gone``, ``address`` (wrong service): all requests will fail.
Kind = Literal["transient", "rejected", "unfit", "auth", "quota", "gone", "address"]

#: Longest ``Retry-After`` that scvec waits for (seconds).
LONGEST_WAIT = 60.0
#: Number of consecutive failures after which the service counts as gone.
ENOUGH = 5
#: Number of consecutive refused or unfit requests after which the run stops.
REFUSED = 20
#: Seconds with failures only, without any answer, after which the service counts as gone.
PATIENCE = 50.0
#: Seconds to wait before the third last, second last and last call to a failing service.
LAST_WAITS = (1.0, 6.0, 20.0)


class ServiceError(Exception):
    """A failed call. The message contains no secret; ``retry_after`` is the service's requested wait in s."""

    def __init__(self, kind: Kind, reason: str, *, retry_after: float | None = None) -> None:
        self.kind: Kind = kind
        self.reason = redact(reason)
        self.retry_after = retry_after
        super().__init__(self.reason)

    @property
    def ends_all(self) -> bool:
        """True if all other calls will fail too."""
        return self.kind in ("auth", "quota", "gone", "address")

    def translated(self, service: str) -> ScvecError:
        """Return the error that a user sees."""
        if self.kind in ("auth", "quota"):
            key = "set a valid key in the environment or the config file"
            fix = key if self.kind == "auth" else "raise the limit of the account, or use another key"
            return AuthError(self.reason, service, f"{fix}; then run the same command again")
        if self.kind in ("transient", "gone"):
            return NetworkError(
                self.reason, service, "run the same command again later; it continues from here"
            )
        return InputError(self.reason, service, "check the model, the address and the options")


class BudgetSpentError(Exception):
    """The next call could exceed the user's cost limit."""


def parse_retry_after(headers: object, *, now: float | None = None) -> float | None:
    """Return the seconds of ``Retry-After`` (RFC 9110, 10.2.3) or ``retry-after-ms``; None without them."""
    found = {str(k).lower(): str(v).strip() for k, v in getattr(headers, "items", dict)()}
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(found[name]) * scale
        except (KeyError, ValueError):
            continue
        return min(max(seconds, 0.0), 1e9) if math.isfinite(seconds) else None
    try:
        date = parsedate_to_datetime(found["retry-after"])
    except (KeyError, ValueError, TypeError, IndexError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(date.timestamp() - (datetime.now(UTC).timestamp() if now is None else now), 0.0)


class Caller:
    """Makes the calls of one service, for all tasks of a run.

    A transient failure is retried after a growing, random wait, or after the wait that the service requests.
    Calls are made one at a time before the first answer, and after a failure until the next answer. So a
    service that is gone or refuses the key gets few calls (:data:`ENOUGH`). The number of consecutive
    failures that means "gone" grows with the fraction of failed calls. So a service that fails three calls in
    ten is still used.

    Parameters
    ----------
    service
        Name of the service in messages.
    attempts
        Largest number of calls for one request.
    patience
        Seconds without any answer after which the service counts as gone.
    pace
        Factor on all waits; tests set it to a small value.
    seed
        Seed of the random waits.
    """

    def __init__(
        self,
        service: str,
        *,
        attempts: int = 8,
        patience: float = PATIENCE,
        pace: float = 1.0,
        seed: int | None = None,
    ) -> None:
        self.service = service
        self.attempts = attempts
        self.patience = patience
        self._pace = pace
        self._random = random.Random(seed)
        self._in_flight = 0
        self._streak = self._refused = 0
        self.n_answered = 0
        self._failed_before = 0
        self._not_before = 0.0
        self._asked_until = 0.0
        self._quiet_since: float | None = None
        self._turn = asyncio.Condition()
        self._fatal: ServiceError | None = None
        self._over = asyncio.Event()
        self.n_calls = 0

    async def call(self, request: Callable[[], Awaitable[T]], *, unfit: int = 1) -> T:
        """Return the result of ``request()``, with retries after transient errors.

        Parameters
        ----------
        request
            Function that makes one call.
        unfit
            Largest number of calls with unfit answers.

        Raises
        ------
        ServiceError
            The last attempt failed, or another call showed that all calls will fail.
        """
        n_unfit = 0
        for attempt in itertools.count(1):
            try:
                async with self._slot():
                    return await request()
            except ServiceError as error:
                n_unfit += error.kind == "unfit"
                again = error.kind == "transient" or (error.kind == "unfit" and n_unfit < unfit)
                if not again or attempt == self.attempts:
                    raise
                wait = self._wait(attempt, error.retry_after)
            await self._sleep(wait)
        raise AssertionError("unreachable")

    def hopeless(self) -> ServiceError | None:
        """Return the error if the service has not answered for longer than :attr:`patience`."""
        if self._fatal is None and self._quiet_since is not None:
            # A wait that the service requested does not count as silence; scvec's own waits do.
            silent = time.monotonic() - max(self._quiet_since, self._asked_until)
            if silent > self.patience:
                self._end(ServiceError("gone", f"{self.service} has not answered for {silent:.0f} s"))
        return self._fatal

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        async with self._turn:
            await self._turn.wait_for(lambda: self._fatal is not None or self._open or self._in_flight == 0)
            if self._fatal is not None:
                raise self._fatal
            self._in_flight += 1
        try:
            # A task holds its slot while it waits, so that not all waiting tasks start at the same time.
            while self._fatal is None and (delay := self._not_before - time.monotonic()) > 0:
                await self._sleep(delay)
            if self._fatal is not None:
                raise self._fatal
            if self._quiet_since is None:
                self._quiet_since = time.monotonic()
            self.n_calls += 1
            try:
                yield
            except ServiceError as error:
                self._note_failure(error)
                if self._fatal is not None and self._fatal is not error:
                    # Raise now, because the wait before the next attempt may be long.
                    raise self._fatal from None
                raise
            else:
                self._note_answer()
        finally:
            self._in_flight -= 1
            async with self._turn:
                self._turn.notify_all()

    @property
    def _open(self) -> bool:
        return self._streak == 0 and self.n_answered > 0

    def _note_answer(self) -> None:
        self._failed_before += self._streak
        self._streak = self._refused = 0
        self.n_answered += 1
        self._quiet_since = None

    def _note_failure(self, error: ServiceError) -> None:
        if error.kind in ("rejected", "unfit"):
            refused = self._refused + 1
            self._note_answer()  # the service works and reads requests
            self._refused = refused
            if refused >= REFUSED:
                self._end(ServiceError(error.kind, f"{error.reason}, {refused} requests in a row"))
            return
        if error.ends_all:
            self._end(error)
            return
        self._streak += 1
        enough = self._enough()
        now = time.monotonic()
        if error.retry_after is not None:
            if error.retry_after > LONGEST_WAIT:
                wish = f"it asks to retry in {error.retry_after:.0f} s"
                self._end(ServiceError("gone", f"{error.reason}; {wish}"))
                return
            self._asked_until = max(self._asked_until, now + error.retry_after)
            self._not_before = max(self._not_before, self._asked_until)
        if self._streak >= enough:
            self._end(ServiceError("gone", f"{error.reason}, {self._streak} times in a row"))
            return
        left = enough - self._streak
        if left <= len(LAST_WAITS):
            wait = LAST_WAITS[-left] * self._pace
            self._not_before = max(self._not_before, now + wait)

    def _end(self, error: ServiceError) -> None:
        self._fatal = self._fatal or error
        self._over.set()

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), seconds)

    def _enough(self) -> int:
        # Choose the number so that chance failures at the observed rate reach it with probability below 1e-6.
        rate = self._failed_before / (self._failed_before + self.n_answered + 10)
        return ENOUGH if rate <= 0.06 else min(math.ceil(math.log(1e-6) / math.log(rate)), 40)

    def _wait(self, attempt: int, asked: float | None) -> float:
        if asked is not None:
            return asked + self._random.uniform(0, 0.1) * self._pace
        # "Full jitter": https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/
        return self._random.uniform(0.2, 1.0) * min(0.5 * 2.0 ** (attempt - 1), 15.0) * self._pace


#: Window in seconds, slightly longer than the second of the service, because requests take different times.
WINDOW = 1.05
#: Seconds between two attempts to take the lock, and seconds after which to give up.
POLL, LOCKED = 0.005, 60.0


def state_folder() -> Path:
    """Return the folder that all processes of a user share: ``$SCVEC_STATE``, else the platform's folder."""
    if os.environ.get("SCVEC_STATE"):
        return Path(os.environ["SCVEC_STATE"])
    from platformdirs import user_state_path

    return user_state_path("scvec", appauthor=False)


class RateLimit:
    """Spaces the requests of all tasks and processes of a user.

    A small file holds the times of the last turns. A task reads it, waits and writes its own turn under one
    lock, so ``per_second + 1`` consecutive turns take at least :data:`WINDOW` seconds.

    Parameters
    ----------
    name
        Name of the limit; all processes share limits by name.
    per_second
        Number of requests in a second; 0 for no limit. Below 1, it is one request in a longer window.
    folder
        Folder of the file; None for the shared folder.
    """

    def __init__(self, name: str, per_second: float, *, folder: Path | None = None) -> None:
        if not per_second >= 0:
            raise ValueError(f"per_second must be 0 or more, not {per_second}")
        self.per_second = per_second
        self._burst = max(int(per_second), 1)
        self._window = WINDOW * self._burst / per_second if per_second else 0.0
        safe = re.sub(r"[^A-Za-z0-9.-]", "_", name)
        self._path = (state_folder() if folder is None else folder) / f"rate-{safe}.json"

    async def turn(self) -> float:
        """Wait for a turn and return its time (Unix seconds); ResourceError if the file cannot be written."""
        if not self.per_second:
            return time.time()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            async with self._locked():
                now = time.time()
                # A turn in the future was written before the clock was set back.
                turns = [t for t in self._read() if t <= now][-self._burst :]
                if len(turns) == self._burst:
                    await asyncio.sleep(turns[0] + self._window - now)
                now = time.time()
                self._path.write_text(json.dumps([*turns, now][-self._burst :]), encoding="ascii")
                return now
        except OSError as error:
            raise ResourceError(
                f"scvec cannot write its count of requests: {error.strerror or type(error).__name__}",
                str(self._path.parent),
                "set SCVEC_STATE to a writable folder",
                code="disk-full",
            ) from error

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        # A lock of its own excludes other tasks of this process too.
        lock, waits_until = FileLock(f"{self._path}.lock", blocking=False), time.monotonic() + LOCKED
        while True:
            try:
                lock.acquire()
                break
            except Timeout:
                if time.monotonic() > waits_until:
                    raise OSError(None, f"{self._path.name}.lock is held by another process") from None
            await asyncio.sleep(POLL)
        try:
            yield
        finally:
            lock.release()

    def _read(self) -> list[float]:
        with suppress(OSError, ValueError, TypeError, RecursionError):
            return sorted(float(t) for t in json.loads(self._path.read_text(encoding="ascii")))
        return []
