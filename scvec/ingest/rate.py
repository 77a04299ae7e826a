"""At most so many requests in any second, over all tasks and processes of a user."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from filelock import AsyncFileLock

__all__ = ["RateLimit", "state_folder"]

#: The window is a little longer than the second that services count, because requests do not all travel
#: equally fast.
WINDOW = 1.05


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
    least :data:`WINDOW` seconds apart: no sliding second holds more than ``per_second``.

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
        if per_second < 0:
            raise ValueError(f"per_second must be 0 or more, not {per_second}")
        self.per_second = per_second
        # Below one a second: one request in a longer window.
        self._burst = max(int(per_second), 1)
        self._window = WINDOW * self._burst / per_second if per_second else 0.0
        folder = state_folder() if folder is None else folder
        safe = re.sub(r"[^A-Za-z0-9.-]", "_", name)
        self._path = folder / f"rate-{safe}.json"
        self._now, self._sleep = now, sleep

    async def turn(self) -> float:
        """Wait for a turn; return its time."""
        if not self.per_second:
            return self._now()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        async with AsyncFileLock(str(self._path) + ".lock", poll_interval=0.01):
            at = self._reserve()
        while (delay := at - self._now()) > 0:
            await self._sleep(delay)
        return at

    def _reserve(self) -> float:
        now = self._now()
        taken = self._read()
        # Turns far in the future are of a clock that was set back, or of a process that was killed.
        taken = [t for t in taken if t - now < 60 + self._window * len(taken) / self._burst]
        at = now
        if len(taken) >= self._burst:
            at = max(now, taken[-self._burst] + self._window)
        if taken:
            at = max(at, taken[-1])
        taken = [*taken, at][-self._burst :]
        scratch = self._path.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(taken), encoding="ascii")
        os.replace(scratch, self._path)
        return at

    def _read(self) -> list[float]:
        with suppress(OSError, ValueError, TypeError):
            found = json.loads(self._path.read_text(encoding="ascii"))
            return [float(t) for t in found][-self._burst :]
        return []
