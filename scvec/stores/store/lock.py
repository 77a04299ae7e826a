"""One writer at a time, known by name."""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scvec.base.errors import LockedError, StoreError
from scvec.stores.store.files import is_full, os_errors

__all__ = ["WriterLock", "is_held"]


class WriterLock:
    """The right to change a store.

    The lock is the operating system's on the file ``lock``: it ends with the process that holds it, so a
    killed writer never locks anybody out. ``lock.json`` beside it only says who holds it.

    Parameters
    ----------
    folder
        The store.
    command
        What the holder does, for the message that others get.
    wait
        Seconds to wait for another writer.
    """

    def __init__(self, folder: Path, command: str, *, wait: float = 0.0) -> None:
        self._folder = folder
        self._command = command
        self._wait = wait
        self._lock: Any = None

    @property
    def held(self) -> bool:
        """True while this object holds the lock."""
        return self._lock is not None

    def acquire(self) -> None:
        """Take the lock, or raise LockedError that names the process which has it."""
        import filelock

        path = self._folder / "lock"
        lock = filelock.FileLock(str(path), thread_local=False)
        with os_errors(self._folder):
            with suppress(FileNotFoundError):
                if not stat.S_ISREG(os.lstat(path).st_mode):
                    raise StoreError("the lock of the store is not a file", str(path), "remove it")
            try:
                lock.acquire(timeout=self._wait, poll_interval=0.02)
            except filelock.Timeout:
                raise self._refusal() from None
            self._lock = lock
            try:
                self._sign()
            except BaseException:
                self.release()
                raise

    def release(self) -> None:
        """Give the lock back."""
        if self._lock is None:
            return
        with suppress(OSError):
            (self._folder / "lock.json").unlink(missing_ok=True)
        self._lock.release()
        self._lock = None

    def __enter__(self) -> WriterLock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _sign(self) -> None:
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "command": self._command,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        temporary = self._folder / "lock.json.tmp"
        try:
            temporary.unlink(missing_ok=True)
            with open(temporary, "x", encoding="utf-8") as file:  # "x" writes through no link
                file.write(json.dumps(holder, sort_keys=True) + "\n")
            os.replace(temporary, self._folder / "lock.json")
        except OSError as error:
            # The lock is held without its note, and `compact` is what frees a full disk.
            if not is_full(error):
                raise

    def _refusal(self) -> LockedError:
        where = str(self._folder)
        holder: dict[str, Any] | None = None
        for _ in range(10):  # the holder may be between taking the lock and signing it
            holder = _read_holder(self._folder / "lock.json")
            if holder is not None and _alive(holder):
                break
            time.sleep(0.02)
        if holder is None:
            return LockedError("another process is writing to the store", where, "wait for it to end")
        return LockedError(
            f"the store is being written by process {holder['pid']} on {holder['host']}"
            f" ({holder['command']}, since {holder['started']})",
            where,
            "wait for it to end, or stop that process",
        )


def _read_holder(path: Path) -> dict[str, Any] | None:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    names = ("pid", "host", "command", "started")
    if not isinstance(holder, dict) or any(name not in holder for name in names):
        return None
    return holder


def _alive(holder: dict[str, Any]) -> bool:
    if holder["host"] != socket.gethostname() or not isinstance(holder["pid"], int) or holder["pid"] < 1:
        return True  # nothing can be said about another machine
    if os.name == "nt":  # os.kill would end the process there
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock on a file."""
    import filelock

    if not path.is_file():
        return False
    try:
        with filelock.FileLock(path, timeout=0):
            return False
    except filelock.Timeout:
        return True
