"""A process for what may need too much: it runs under limits and ends with the server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scvec.base.errors import ResourceError

__all__ = ["Limits", "Process", "memory_of", "reduced_environment"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a server.

    Attributes
    ----------
    upload
        Bytes of one file.
    memory
        Bytes that a job may use, and bytes that the process of searches may use.
    seconds
        Wall-clock time of a job, and of a search.
    jobs
        Jobs that are kept; the oldest that has ended gives way. No more may wait at once.
    searches
        Searches that may run or wait at once.
    uploads
        Uploads that may be under way at once.
    connections
        Connections that may be open at once.
    head
        Seconds until the head of a request must be there.
    grace, rate
        The body of a request must come at ``rate`` bytes per second, after ``grace`` seconds.
    """

    upload: int = 2 * 2**30
    memory: int = 8 * 2**30
    seconds: float = 1800.0
    jobs: int = 20
    searches: int = 10
    uploads: int = 8
    connections: int = 100
    head: float = 10.0
    grace: float = 20.0
    rate: int = 16 * 2**10

    def __post_init__(self) -> None:
        if min(getattr(self, name) for name in self.__slots__) <= 0:
            raise ValueError(f"limits must be positive: {self}")


#: Seconds between two looks at how much memory a process uses.
WATCH = 0.25
#: What a process that reads files of others gets of the environment: nothing that opens a door.
_PLAIN = re.compile(
    r"PATH|HOME|USERPROFILE|TE?MP|TMPDIR|TZ|LANG|LC_\w+|XDG_\w+_HOME|(?:OMP|MKL|OPENBLAS|NUMBA|CUDA|SCVEC)_\w+"
    r"|HF_HOME|HF_HUB_CACHE|\w+_OFFLINE|LD_LIBRARY_PATH|SYSTEMROOT"
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH")


def reduced_environment() -> dict[str, str]:
    """Return the variables that a process may have which reads files of others: no keys, no passwords."""
    return {
        name: value
        for name, value in os.environ.items()
        # An address may hold a password: https://name:password@host.
        if _PLAIN.fullmatch(name) and not _SECRET.search(name) and not ("://" in value and "@" in value)
    }


class Process:
    """A process of :mod:`scvec.web.child`.

    Its stdin stays open as long as this process lives: the child ends when it closes, even where this one was
    killed.

    Parameters
    ----------
    folder
        Where it works.
    environment
        Its variables.
    """

    def __init__(self, folder: Path, environment: dict[str, str], limits: Limits) -> None:
        self._limits = limits
        self._why = ""
        # A new process, not a fork: FAISS hangs in a child that was forked from threads.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scvec.web.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=folder,
            env={**environment, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return not self._why and self._process.poll() is None

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def close(self) -> None:
        """End it and let go of its pipes."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def ask(self, what: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield what the child tells, until its result or error.

        Parameters
        ----------
        what
            ``job`` or ``search``, for messages.

        Raises
        ------
        ResourceError
            It took too long or too much memory, and was ended.
        """
        bounds = {"memory": self._limits.memory, "n_bytes": 8 * self._limits.upload}
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(what, done), daemon=True)
        watcher.start()
        try:
            if self._process.stdin is None or self._process.stdout is None:
                raise OSError(0, "no pipes")
            self._process.stdin.write(json.dumps({"what": what, **bounds, **request}) + "\n")
            self._process.stdin.flush()
            for line in self._process.stdout:
                try:
                    message = json.loads(line)
                except ValueError:
                    continue
                if isinstance(message, dict):
                    yield message
                    if "result" in message or "error" in message:
                        return
        except BrokenPipeError:
            pass
        finally:
            done.set()
            watcher.join()
        if self._why:
            fix = "upload fewer cells" if what == "job" else "ask for less"
            raise ResourceError(self._why, fix=fix, code="job-limit")

    def _watch(self, what: str, done: threading.Event) -> None:
        """End it where it takes too long or too much memory."""
        ends = time.monotonic() + self._limits.seconds
        while not done.wait(WATCH):
            if time.monotonic() > ends:
                self._why = f"the {what} took longer than {self._limits.seconds:,.0f} seconds"
            elif memory_of(self._process.pid) > self._limits.memory:
                self._why = f"the {what} needs more than {self._limits.memory / 2**30:.1f} GB of memory"
            if self._why:
                self._process.kill()
                return


def memory_of(pid: int) -> int:
    """Return the bytes that a process holds in memory; 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
