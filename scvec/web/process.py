"""Limits of the server, and child processes that run under them and end with the server."""

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
        Largest size of an uploaded file, in bytes.
    memory
        Memory of a job, and of the process of searches, in bytes.
    seconds
        Wall-clock time of a job, and of a search, in seconds.
    jobs
        Largest number of kept jobs and of waiting jobs. The oldest finished job is deleted first.
    searches
        Largest number of searches that run or wait at the same time.
    uploads
        Largest number of simultaneous uploads.
    connections
        Largest number of open connections.
    head
        Time in which the head of a request must arrive, in seconds.
    grace, rate
        After ``grace`` seconds, the body of a request must arrive at ``rate`` bytes per second or faster.
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


#: Interval at which the memory of a process is checked, in seconds.
WATCH = 0.25
#: Environment variables that a process may have that reads untrusted files. None of them holds a secret.
_PLAIN = re.compile(
    r"PATH|HOME|USERPROFILE|TE?MP|TMPDIR|TZ|LANG|LC_\w+|XDG_\w+_HOME|(?:OMP|MKL|OPENBLAS|NUMBA|CUDA|SCVEC)_\w+"
    r"|HF_HOME|HF_HUB_CACHE|\w+_OFFLINE|LD_LIBRARY_PATH|SYSTEMROOT"
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH")


def reduced_environment() -> dict[str, str]:
    """Return the environment for a process that reads untrusted files, without keys and passwords."""
    return {
        name: value
        for name, value in os.environ.items()
        # An address may contain a password: https://name:password@host.
        if _PLAIN.fullmatch(name) and not _SECRET.search(name) and not ("://" in value and "@" in value)
    }


class Process:
    """A child process that runs :mod:`scvec.web.child`.

    The child ends when its stdin closes. This happens at the latest when the server ends or is killed.

    Parameters
    ----------
    folder
        Working folder of the child.
    environment
        Environment variables of the child.
    """

    def __init__(self, folder: Path, environment: dict[str, str], limits: Limits) -> None:
        self._limits = limits
        self._why = ""
        # A new interpreter, because FAISS hangs in a child forked from a process with threads.
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
        """Whether the process accepts requests."""
        return not self._why and self._process.poll() is None

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()

    def close(self) -> None:
        """Kill the process and close its pipes."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def ask(self, what: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Send a request and yield the messages of the child, up to its result or error.

        Parameters
        ----------
        what
            ``job`` or ``search``, for messages.

        Raises
        ------
        ResourceError
            If the child took too long or used too much memory, and was killed.
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
            fix = "upload fewer cells" if what == "job" else "search for fewer results"
            raise ResourceError(self._why, fix=fix, code="job-limit")

    def _watch(self, what: str, done: threading.Event) -> None:
        """Kill the process if it takes too long or uses too much memory."""
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
    """Return the resident memory of a process in bytes; 0 if the system does not report it."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
