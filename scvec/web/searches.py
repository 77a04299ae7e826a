"""Searches, one at a time, in a process that keeps the text model loaded."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from scvec.base.errors import InputError, ResourceError, ScvecError
from scvec.web.jobs import Busy
from scvec.web.process import Limits, Process

__all__ = ["Searches"]

#: Exit code -> class of an error that the process reports.
_CLASSES = {cls.exit_code: cls for cls in (InputError, ResourceError)}


class Searches:
    """Runs searches in a child process. The process is started again after a search was killed.

    Parameters
    ----------
    folder
        Working folder of the process.
    """

    def __init__(self, store: Path, folder: Path, limits: Limits) -> None:
        self._store, self._folder, self._limits = store, folder, limits
        self._slots = threading.BoundedSemaphore(limits.searches)
        self._lock = threading.Lock()
        self._process: Process | None = None
        self._closed = False

    def find(self, verb: str, text: str, **options: Any) -> dict[str, Any]:
        """Return the result of a search, as ``to_dict`` of its report.

        Parameters
        ----------
        verb
            ``genes`` or ``cells``.

        Raises
        ------
        Busy
            If too many searches are waiting.
        ScvecError
            If the search fails; ResourceError if it took too long or used too much memory.
        """
        if not self._slots.acquire(blocking=False):
            raise Busy(f"{self._limits.searches} searches are waiting already", fix="try again")
        try:
            with self._lock:
                return self._ask({"verb": verb, "store": str(self._store), "text": text, "options": options})
        finally:
            self._slots.release()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._closed:
            raise Busy("the server is stopping")
        if self._process is None or not self._process.alive:
            if self._process is not None:
                self._process.close()
            # This process reads no uploads. It keeps the API keys, because it may use an embedding server.
            self._process = Process(self._folder, dict(os.environ), self._limits)
        messages = list(self._process.ask("search", request))
        message = messages[-1] if messages else {}
        if "error" in message:
            raise _CLASSES.get(message["exit_code"], ScvecError)(**message["error"])
        if "result" not in message:
            self._process.close()
            raise ScvecError("the search ended without a message", fix="try again")
        found: dict[str, Any] = message["result"]
        return found

    def close(self) -> None:
        """Stop the process."""
        self._closed = True
        if self._process is not None:
            self._process.kill()
        with self._lock:
            if self._process is not None:
                self._process.close()
