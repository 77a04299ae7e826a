"""Searches, one after another, by a process that keeps the weights of the backbone loaded."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from scvec.base.errors import InputError, ResourceError, ScvecError
from scvec.web.jobs import Busy
from scvec.web.process import Limits, Process

__all__ = ["Searches"]

#: Exit code -> class of the error that the process tells.
_CLASSES = {cls.exit_code: cls for cls in (InputError, ResourceError)}


class Searches:
    """Asks a process, and starts it again where a search had to be ended.

    Parameters
    ----------
    folder
        Where the process works.
    """

    def __init__(self, store: Path, folder: Path, limits: Limits) -> None:
        self._store, self._folder, self._limits = store, folder, limits
        self._places = threading.BoundedSemaphore(limits.searches)
        self._turn = threading.Lock()
        self._process: Process | None = None
        self._closed = False

    def find(self, verb: str, text: str, **options: Any) -> dict[str, Any]:
        """Return what a search finds, as ``to_dict`` of its report.

        Parameters
        ----------
        verb
            ``genes`` or ``cells``.

        Raises
        ------
        Busy
            If too many searches wait.
        ScvecError
            What the search raises, and ResourceError where it was ended.
        """
        if not self._places.acquire(blocking=False):
            raise Busy(f"{self._limits.searches} searches are waiting already", fix="try again")
        try:
            with self._turn:
                return self._ask({"verb": verb, "store": str(self._store), "text": text, "options": options})
        finally:
            self._places.release()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._closed:
            raise Busy("the server is stopping")
        if self._process is None or not self._process.alive:
            if self._process is not None:
                self._process.close()
            # It reads no files of clients, and may ask an embedding server: it keeps the keys.
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
        """Stop everything."""
        self._closed = True
        if self._process is not None:
            self._process.kill()
        with self._turn:
            if self._process is not None:
                self._process.close()
