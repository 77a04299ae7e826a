"""Policy for calls of a service: rate limit, retries, and the decision to stop."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import random
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal, TypeVar
from weakref import WeakKeyDictionary

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
#: Seconds. If turns lie further in the future, and the file is as old, then the clock was set back.
FAR = 60.0
#: Seconds between two attempts to take the lock, and seconds after which to give up.
POLL, LOCKED = 0.005, 30.0


def state_folder() -> Path:
    """Return the folder that all processes of a user share: ``$SCVEC_STATE``, else the platform's folder."""
    if os.environ.get("SCVEC_STATE"):
        return Path(os.environ["SCVEC_STATE"])
    from platformdirs import user_state_path

    return user_state_path("scvec", appauthor=False)


class RateLimit:
    """Assigns the times at which requests may be sent, across tasks and processes.

    A turn is a time for one request. It is written to a small file under a lock before use, so each turn is
    assigned once. The first and the last of ``per_second + 1`` consecutive turns are at least :data:`WINDOW`
    seconds apart, so no interval of a second holds more than ``per_second`` turns. In a process only one task
    at a time waits for its turn, so a crash wastes at most one turn.

    Parameters
    ----------
    name
        Name of the limit; all processes share limits by name.
    per_second
        Number of requests in a second; 0 for no limit.
    folder
        Folder of the file; None for the shared folder.
    now, sleep
        Clock (seconds since the epoch) and sleep function; tests replace them.
    """

    def __init__(
        self,
        name: str,
        per_second: float,
        *,
        folder: Path | None = None,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if not per_second >= 0:
            raise ValueError(f"per_second must be 0 or more, not {per_second}")
        self.per_second = per_second
        # For rates below one per second: one request in a longer window.
        self._burst = max(int(per_second), 1)
        self._window = WINDOW * self._burst / per_second if per_second else 0.0
        folder = state_folder() if folder is None else folder
        safe = re.sub(r"[^A-Za-z0-9.-]", "_", name)
        self._path = folder / f"rate-{safe}.json"
        # The counter of a FileLock is thread-local, and only one task per event loop reserves at a time.
        self._lock = FileLock(str(self._path) + ".lock", blocking=False)
        self._now, self._sleep = now, sleep
        # An asyncio lock belongs to one event loop.
        self._queues: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

    async def turn(self) -> float:
        """Wait for a turn and return its time; raise ResourceError if the file cannot be written."""
        if not self.per_second:
            return self._now()
        async with self._queues.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                async with self._locked():
                    at = self._reserve()
            except OSError as error:
                raise ResourceError(
                    f"scvec cannot write its count of requests: {error.strerror or type(error).__name__}",
                    str(self._path.parent),
                    "set SCVEC_STATE to a writable folder",
                    code="disk-full",
                ) from error
            while (delay := at - self._now()) > 0:
                await self._sleep(delay)
            return at

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        waits_until = time.monotonic() + LOCKED
        while True:
            try:
                self._lock.acquire()
                break
            except Timeout:
                if time.monotonic() > waits_until:
                    raise OSError(None, f"{self._path.name}.lock is held by another process") from None
            await asyncio.sleep(POLL)
        try:
            yield
        finally:
            self._lock.release()

    def _reserve(self) -> float:
        now = self._now()
        taken = self._read()
        if taken and taken[-1] > now + FAR and not 0 <= self._age() < FAR:
            # The clock was set back; these turns are not a long queue.
            taken = [t for t in taken if t <= now]
        at = max(now, taken[-1]) if taken else now
        if len(taken) >= self._burst:
            at = max(at, taken[-self._burst] + self._window)
        # Older turns are not needed: they lie at least a window before the last, also for higher limits.
        taken = [*taken, at][-self._burst :]
        scratch = self._path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        scratch.write_text(json.dumps(taken), encoding="ascii")
        os.replace(scratch, self._path)
        return at

    def _age(self) -> float:
        """Return the seconds since the file was written; negative if the clock was set back."""
        with suppress(OSError):
            return time.time() - self._path.stat().st_mtime + 1e-3
        return 0.0

    def _read(self) -> list[float]:
        with suppress(OSError, ValueError, TypeError, RecursionError):
            found = [float(t) for t in json.loads(self._path.read_text(encoding="ascii"))]
            if all(0 <= t < 1e12 for t in found):
                return sorted(found)
        return []
