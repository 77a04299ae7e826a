"""At most so many requests in any second, over all tasks and processes of a user."""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from weakref import WeakKeyDictionary

from filelock import FileLock, Timeout

from scvec.errors import ResourceError

__all__ = ["RateLimit", "state_folder"]

#: The window is a little longer than the second that services count, because requests do not all travel
#: equally fast.
WINDOW = 1.05
#: Turns further ahead than this, in a file that nobody wrote for as long, are not waited for (seconds).
FAR = 60.0
#: Seconds between two looks at a lock that another holds, and for how long to look.
POLL, LOCKED = 0.005, 30.0


def state_folder() -> Path:
    """Return where processes of one user meet: ``$SCVEC_STATE``, else the platform's state folder."""
    if os.environ.get("SCVEC_STATE"):
        return Path(os.environ["SCVEC_STATE"])
    from platformdirs import user_state_path

    return user_state_path("scvec", appauthor=False)


class RateLimit:
    """Hands out the times at which requests may be sent.

    Each turn is a time that is written to a small file under a lock before it is used, so that no two tasks
    or processes hold the same one. Of any ``per_second + 1`` consecutive turns the first and the last lie at
    least :data:`WINDOW` seconds apart: no sliding second holds more than ``per_second``. Of one process, one
    task at a time waits for its turn, so that a crash leaves no more than one turn unused.

    Parameters
    ----------
    name
        What is limited: processes with one name share it.
    per_second
        Requests a second; 0 for no limit.
    folder
        Where the file lies.
    now, sleep
        The clock: seconds since the epoch, which processes share.
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
        # Below one a second: one request in a longer window.
        self._burst = max(int(per_second), 1)
        self._window = WINDOW * self._burst / per_second if per_second else 0.0
        folder = state_folder() if folder is None else folder
        safe = re.sub(r"[^A-Za-z0-9.-]", "_", name)
        self._path = folder / f"rate-{safe}.json"
        # Held by one thread at a time: its counter is thread-local, and within a loop one task reserves.
        self._lock = FileLock(str(self._path) + ".lock", blocking=False)
        self._now, self._sleep = now, sleep
        # Locks of asyncio belong to one loop.
        self._queues: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

    async def turn(self) -> float:
        """Wait for a turn; return its time.

        Raises
        ------
        ResourceError
            If the file cannot be written.
        """
        if not self.per_second:
            return self._now()
        async with self._queues.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                async with self._locked():
                    at = self._reserve()
            except OSError as error:
                raise ResourceError(
                    f"cannot keep count of requests: {error.strerror or type(error).__name__}",
                    str(self._path.parent),
                    "set SCVEC_STATE to a folder that can be written",
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
            # Turns of a clock that was set back since, not of a long queue.
            taken = [t for t in taken if t <= now]
        at = max(now, taken[-1]) if taken else now
        if len(taken) >= self._burst:
            at = max(at, taken[-self._burst] + self._window)
        # Turns before these lie a window or more before the last, also for one that may send more a second.
        taken = [*taken, at][-self._burst :]
        scratch = self._path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        scratch.write_text(json.dumps(taken), encoding="ascii")
        os.replace(scratch, self._path)
        return at

    def _age(self) -> float:
        """Seconds since the file was written; below 0 where the clock was set back in the meantime."""
        with suppress(OSError):
            return time.time() - self._path.stat().st_mtime + 1e-3
        return 0.0

    def _read(self) -> list[float]:
        with suppress(OSError, ValueError, TypeError, RecursionError):
            found = [float(t) for t in json.loads(self._path.read_text(encoding="ascii"))]
            if all(0 <= t < 1e12 for t in found):
                return sorted(found)
        return []
