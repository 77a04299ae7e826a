"""Jobs that annotate uploads, one at a time, each in its own process, and searches in one process."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scvec.base.errors import InputError, ResourceError, ScvecError, without_paths
from scvec.model.query_options import QueryOptions
from scvec.web.child import FILES, UPLOAD
from scvec.web.process import Limits, Process, reduced_environment

__all__ = ["Busy", "Job", "Jobs", "Searches"]

ENDED = ("done", "failed", "cancelled")


class Busy(InputError):
    """Too many jobs or searches are waiting."""

    code = "busy"


@dataclass
class Job:
    """One upload.

    Attributes
    ----------
    id
        Random, so that other clients cannot guess it.
    name
        File name that the client gave. It is only displayed, never used as a path.
    status
        ``waiting``, ``running``, ``done``, ``failed`` or ``cancelled``.
    """

    id: str
    name: str
    folder: Path
    options: QueryOptions
    status: str = "waiting"
    stage: str = ""
    done: int = 0
    total: int | None = None
    result: dict[str, Any] | None = None
    error: dict[str, str] | None = None
    process: Process | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that a client may see."""
        files = sorted(n for n in FILES if (self.folder / n).is_file()) if self.status == "done" else []
        return {
            "id": self.id,
            "name": self.name,
            "status": self.status,
            "stage": self.stage,
            "done": self.done,
            "total": self.total,
            "result": self.result,
            "error": self.error,
            "files": files,
        }


class Jobs:
    """Queue of jobs. It runs one job at a time and deletes the oldest finished jobs.

    Parameters
    ----------
    folder
        Folder for uploads and results, with one subfolder per job.
    """

    def __init__(self, store: Path, folder: Path, limits: Limits) -> None:
        self._store, self._folder, self._limits = store, folder, limits
        self._jobs: dict[str, Job] = {}
        self._queue: deque[Job] = deque()
        self._change = threading.Condition()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="scvec-jobs", daemon=True)
        self._worker.start()

    def new_folder(self) -> tuple[str, Path]:
        """Return an id and an empty folder for an upload.

        Raises
        ------
        Busy
            If the queue is full.
        """
        with self._change:
            if sum(job.status not in ENDED for job in self._jobs.values()) >= self._limits.jobs:
                raise Busy(f"{self._limits.jobs} jobs are waiting already", fix="wait until some have ended")
        number = secrets.token_hex(16)
        folder = self._folder / number
        folder.mkdir(mode=0o700)
        return number, folder

    def add(self, number: str, name: str, options: QueryOptions) -> Job:
        """Queue the upload in the folder of the job ``number``."""
        job = Job(number, shown_name(name), self._folder / number, options)
        with self._change:
            self._jobs[job.id] = job
            self._queue.append(job)
            ended = [j for j in self._jobs.values() if j.status in ENDED]
            for old in ended[: max(0, len(self._jobs) - self._limits.jobs)]:
                self._forget(old)
            self._change.notify_all()
        return job

    def get(self, number: str) -> Job | None:
        """Return a job, or None if it does not exist or was deleted."""
        with self._change:
            return self._jobs.get(number)

    def file(self, number: str, name: str) -> Path | None:
        """Return a result file of a finished job, or None. ``name`` must be one of :data:`FILES`."""
        job = self.get(number)
        if job is None or job.status != "done" or name not in FILES:
            return None
        path = job.folder / name
        return path if path.is_file() else None

    def cancel(self, number: str) -> bool:
        """Stop and delete a job; return whether it existed."""
        with self._change:
            job = self._jobs.get(number)
            if job is None:
                return False
            job.status = job.status if job.status in ENDED else "cancelled"
            if job.process is not None:
                job.process.kill()
            self._forget(job)
        return True

    def close(self) -> None:
        """Stop all jobs and the worker thread."""
        with self._change:
            self._closed = True
            for job in self._jobs.values():
                if job.process is not None:
                    job.process.kill()
            self._change.notify_all()
        self._worker.join(timeout=10)

    def _forget(self, job: Job) -> None:
        self._jobs.pop(job.id, None)
        if job in self._queue:
            self._queue.remove(job)
        shutil.rmtree(job.folder, ignore_errors=True)

    def _work(self) -> None:
        while True:
            with self._change:
                while not self._queue and not self._closed:
                    self._change.wait()
                if self._closed:
                    return
                job = self._queue.popleft()
                job.status = "running"
            try:
                self._run(job)
            except OSError as error:
                job.error = ScvecError(f"the job could not be run ({error.strerror})").body()
            finally:
                with self._change:
                    job.process = None
                    if job.status == "running":
                        job.status = "done" if job.result is not None else "failed"
                    if job.status == "failed" and job.error is None:
                        job.error = ScvecError("the job ended without a message", fix="try again").body()
                    (job.folder / UPLOAD).unlink(missing_ok=True)
                    if job.status == "cancelled":
                        shutil.rmtree(job.folder, ignore_errors=True)

    def _run(self, job: Job) -> None:
        request = {
            "store": str(self._store),
            "folder": str(job.folder),
            "name": job.name,
            "options": job.options.changed(),
            "seconds": self._limits.seconds,
            "script": script(job.name, job.options),
        }
        # Temporary files are in the folder of the job, so they are deleted even if the process is killed.
        process = Process(job.folder, {**reduced_environment(), "TMPDIR": str(job.folder)}, self._limits)
        with self._change:
            job.process = process
            if job.status != "running":
                process.kill()
        try:
            for message in process.ask("job", request):
                self._update(job, message)
        except ResourceError as error:
            job.error = {**error.body(), "where": job.name}
        finally:
            process.close()

    def _update(self, job: Job, message: dict[str, Any]) -> None:
        with self._change:
            if "stage" in message:
                job.stage, job.done, job.total = message["stage"], message["done"], message["total"]
            elif "result" in message:
                job.result = message["result"]
            elif "error" in message:
                names = {
                    str(job.folder / UPLOAD): job.name,
                    str(job.folder): "",
                    str(self._store): "the store",
                }
                job.error = without_paths(message["error"], names)


def shown_name(name: str) -> str:
    """Return a client's file name for display, without folders and control characters, of limited length."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    clean = "".join(c for c in last if c.isprintable()).strip()
    return clean[:100] or "cells.h5ad"


def script(name: str, options: QueryOptions) -> str:
    """Return a shell script that runs the same annotation from the command line."""
    # The command line would read a name with a leading dash as an option.
    shown = name if not name.startswith("-") else f"./{name}"
    command = replace(options, output="annotated.h5ad", report="report.html").command_line(shown)
    return f"#!/bin/sh\n# Repeats the annotation. Run it on the machine of the store.\n{command}\n"


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
