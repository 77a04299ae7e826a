"""Lock of the store: one writer at a time. Error messages name the writer."""

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
    """Write lock of a store.

    The operating system locks the file ``lock``. It releases the lock when the process ends, so a killed
    writer never blocks other processes. ``lock.json`` names the process that holds the lock.

    Parameters
    ----------
    folder
        Folder of the store.
    command
        Command of the holder, for the error message of other processes.
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
        """Take the lock.

        Raises
        ------
        LockedError
            Another process holds the lock; the message names it.
        StoreError
            ``lock`` is not a regular file.
        """
        import filelock

        path = self._folder / "lock"
        lock = filelock.FileLock(str(path), thread_local=False)
        with os_errors(self._folder):
            with suppress(FileNotFoundError):
                if not stat.S_ISREG(os.lstat(path).st_mode):
                    raise StoreError("the lock of the store is not a file", str(path), "delete it")
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
        """Release the lock."""
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
            with open(temporary, "x", encoding="utf-8") as file:  # "x" does not write through a link
                file.write(json.dumps(holder, sort_keys=True) + "\n")
            os.replace(temporary, self._folder / "lock.json")
        except OSError as error:
            # On a full disk the lock holds without lock.json, because `compact` must still run to free space.
            if not is_full(error):
                raise

    def _refusal(self) -> LockedError:
        where = str(self._folder)
        holder: dict[str, Any] | None = None
        for _ in range(10):  # the holder may have the lock but not yet have written lock.json
            holder = _read_holder(self._folder / "lock.json")
            if holder is not None and _alive(holder):
                break
            time.sleep(0.02)
        if holder is None:
            return LockedError("another process is writing to the store", where, "wait until it ends")
        return LockedError(
            f"process {holder['pid']} on {holder['host']} is writing to the store"
            f" ({holder['command']}, since {holder['started']})",
            where,
            "wait until it ends, or stop that process",
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
        return True  # processes of another machine cannot be checked
    if os.name == "nt":  # os.kill ends the process on Windows
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
