"""``scvec serve``: the page and REST, who may ask, the queue of jobs, and the server that runs them."""

from __future__ import annotations

import hmac
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.cookies import CookieError, SimpleCookie
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs

from fastapi import FastAPI, File, Form, HTTPException, Query, Request, UploadFile
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from scvec import __version__
from scvec.base.errors import InputError, ResourceError, ScvecError
from scvec.model.query_options import QueryOptions
from scvec.web.child import FILES, UPLOAD

__all__ = ["Busy", "Guard", "Job", "Jobs", "Limits", "guarded_app", "make_app", "serve"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a server.

    Attributes
    ----------
    upload
        Bytes of one file.
    memory
        Bytes that a job may use.
    seconds
        Wall-clock time of a job.
    jobs
        Jobs that are kept; the oldest that has ended gives way. No more may wait at once.
    """

    upload: int = 2 * 2**30
    memory: int = 8 * 2**30
    seconds: float = 1800.0
    jobs: int = 20

    def __post_init__(self) -> None:
        if min(self.upload, self.memory, self.seconds, self.jobs) <= 0:
            raise ValueError(f"limits must be positive: {self}")


ENDED = ("done", "failed", "cancelled")
#: Seconds between two looks at how much memory a job uses.
WATCH = 0.25


class Busy(InputError):
    """Too many jobs wait already."""

    code = "busy"


@dataclass
class Job:
    """One upload.

    Attributes
    ----------
    id
        Not to be guessed.
    name
        What the client called the file: text to be shown, never a path.
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
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return what a client may know."""
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
    """Runs jobs one at a time and forgets the oldest.

    Parameters
    ----------
    folder
        Where uploads and results lie, a folder for each job.
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
            If no more may wait.
        """
        with self._change:
            if sum(job.status not in ENDED for job in self._jobs.values()) >= self._limits.jobs:
                raise Busy(f"{self._limits.jobs} jobs are waiting already", fix="wait until some have ended")
        number = secrets.token_hex(16)
        folder = self._folder / number
        folder.mkdir(mode=0o700)
        return number, folder

    def add(self, number: str, name: str, options: QueryOptions) -> Job:
        """Queue what was uploaded into the folder of ``number``."""
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
        """Return a job, None where there is none (any more)."""
        with self._change:
            return self._jobs.get(number)

    def file(self, number: str, name: str) -> Path | None:
        """Return a file of a job that is done. ``name`` is one of :data:`FILES`, else there is none."""
        job = self.get(number)
        if job is None or job.status != "done" or name not in FILES:
            return None
        path = job.folder / name
        return path if path.is_file() else None

    def cancel(self, number: str) -> bool:
        """Stop and forget a job; returns whether there was one."""
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
        """Stop everything."""
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
        limits = self._limits
        request = {
            "store": str(self._store),
            "folder": str(job.folder),
            "name": job.name,
            "options": job.options.changed(),
            "memory": limits.memory,
            "seconds": limits.seconds,
            "n_bytes": 8 * limits.upload,
            "script": script(job.name, job.options),
        }
        # A new process, not a fork: FAISS hangs in a child that was forked from threads.
        process = subprocess.Popen(
            [sys.executable, "-m", "scvec.web.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=job.folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        with self._change:
            job.process = process
            if job.status != "running":
                process.kill()
        watcher = threading.Thread(target=self._watch, args=(job, process), daemon=True)
        watcher.start()
        try:
            if process.stdin is None or process.stdout is None:
                raise OSError(0, "no pipes")
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.close()
            for line in process.stdout:
                self._hear(job, line)
        except BrokenPipeError:
            pass
        finally:
            process.kill()
            process.wait()
            watcher.join()

    def _hear(self, job: Job, line: str) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            return
        with self._change:
            if "stage" in message:
                job.stage, job.done, job.total = message["stage"], message["done"], message["total"]
            elif "result" in message:
                job.result = message["result"]
            elif "error" in message and job.error is None:
                job.error = {k: self._shown(job, str(v)) for k, v in message["error"].items()}

    def _shown(self, job: Job, text: str) -> str:
        """Return a message with the client's name of the file, and without folders of this machine."""
        for path, name in ((job.folder / UPLOAD, job.name), (job.folder, ""), (self._store, "the store")):
            text = text.replace(str(path), name)
        return text

    def _watch(self, job: Job, process: subprocess.Popen[str]) -> None:
        """End a job that takes too long or too much memory."""
        ends = time.monotonic() + self._limits.seconds
        while process.poll() is None:
            why = ""
            if time.monotonic() > ends:
                why = f"the job took longer than {self._limits.seconds:,.0f} seconds"
            elif memory_of(process.pid) > self._limits.memory:
                why = f"the job needs more than {self._limits.memory / 2**30:.1f} GB of memory"
            if why:
                with self._change:
                    job.error = ResourceError(why, job.name, "upload fewer cells", code="job-limit").body()
                process.kill()
                return
            time.sleep(WATCH)


def memory_of(pid: int) -> int:
    """Return the bytes that a process holds in memory; 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def shown_name(name: str) -> str:
    """Return a client's name of a file as text to show: no folders, no control characters, not endless."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    clean = "".join(c for c in last if c.isprintable()).strip()
    return clean[:100] or "cells.h5ad"


def script(name: str, options: QueryOptions) -> str:
    """Return a shell script that does the same from the command line."""
    # A name that begins with a dash would be taken for an option.
    shown = name if not name.startswith("-") else f"./{name}"
    command = replace(options, output="annotated.h5ad", report="report.html").command_line(shown)
    return f"#!/bin/sh\n# The same from the command line, where the store is.\n{command}\n"


_PAGES = files("scvec") / "data" / "page"
_ASSETS = {
    "base.css": "text/css; charset=utf-8",
    "app.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
}
#: A report is a page of others' data: it may run its own scripts and save files, and is of no origin.
_SANDBOX = "sandbox allow-scripts allow-downloads"

JobId = Annotated[str, InPath(pattern="^[0-9a-f]{32}$")]
Text = Annotated[str, Query(min_length=1, max_length=500)]
Where = Annotated[str | None, Query(max_length=500, description="SQL condition")]
Name = Annotated[str | None, Query(max_length=200)]
Hits = Annotated[int, Query(ge=1, le=200)]
Species = Literal["auto", "human", "mouse"]

_ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"description": what, "content": {"application/json": {}}}
    for code, what in {
        400: "what was asked cannot be done; says why",
        401: "the token is missing",
        404: "there is no such thing",
        413: "the file is too large",
        422: "a parameter is not what it should be",
        429: "too many jobs are waiting",
    }.items()
}


def make_app(store: Path, jobs: Jobs, folder: Path, limits: Limits) -> FastAPI:
    """Return the application.

    Parameters
    ----------
    folder
        Where uploads go.
    """
    app = FastAPI(
        title="scvec",
        version=__version__,
        summary="Names cells by a reference, and finds genes and cells.",
        openapi_url="/api/openapi.json",
        # Their pages fetch scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        responses=_ERRORS,
    )
    _errors(app)
    _pages(app)
    _search(app, store)
    _jobs(app, store, jobs, folder, limits)

    @app.get("/api/info")
    def info() -> dict[str, Any]:
        """Tell what the store holds, and the limits of this server."""
        from scvec.stores.store.store import Store

        opened = Store(store)
        references = [
            {
                "name": name,
                "species": meta["species"],
                "n_cells": opened.reference(name).n,
                "labels": meta["counts"],
            }
            for name, meta in opened.references().items()
        ]
        return {
            "version": __version__,
            "generation": opened.generation.number,
            "references": references,
            "limits": {"upload": limits.upload, "memory": limits.memory, "seconds": limits.seconds},
        }

    return app


def _errors(app: FastAPI) -> None:
    def told(status: int, error: ScvecError) -> JSONResponse:
        return JSONResponse({"error": error.body()}, status_code=status)

    @app.exception_handler(ScvecError)
    async def ours(request: Request, error: ScvecError) -> JSONResponse:
        status = 429 if isinstance(error, Busy) else 400 if isinstance(error, InputError) else 503
        return told(507 if isinstance(error, ResourceError) else status, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return told(422, InputError(str(first["msg"]), where, code="usage"))

    @app.exception_handler(404)
    async def missing(request: Request, error: Exception) -> JSONResponse:
        what = str(getattr(error, "detail", "")) or "there is no such page"
        return told(404, InputError(what, code="not-found"))


def _pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return Response((_PAGES / "app.html").read_bytes(), media_type="text/html; charset=utf-8")

    @app.get("/assets/{name}", include_in_schema=False)
    def asset(name: str) -> Response:
        if name not in _ASSETS:
            raise HTTPException(404, "there is no such file")
        return Response((_PAGES / name).read_bytes(), media_type=_ASSETS[name])


def _search(app: FastAPI, store: Path) -> None:
    @app.get("/api/search/genes")
    def search_genes(q: Text, k: Hits = 10, species: Species = "auto", where: Where = None) -> dict[str, Any]:
        """Find genes that a text is about."""
        from scvec.workflows.search_genes import search_genes as search

        return search(store, q, k=k, species=species, where=where).to_dict()

    @app.get("/api/search/cells")
    def search_cells(
        q: Annotated[str, Query(max_length=500)] = "",
        like: Name = None,
        reference: Name = None,
        k: Hits = 10,
        where: Where = None,
    ) -> dict[str, Any]:
        """Find cells of a reference that a text is about, or that are like one (``like``)."""
        from scvec.workflows.search_cells import search_cells as search

        return search(store, q, like=like, reference=reference, k=k, where=where).to_dict()


def _jobs(app: FastAPI, store: Path, jobs: Jobs, folder: Path, limits: Limits) -> None:
    @app.post("/api/jobs", status_code=202)
    async def upload(
        file: Annotated[UploadFile, File(description="an h5ad file")],
        reference: Annotated[str | None, Form(max_length=200)] = None,
        species: Annotated[Species, Form()] = "auto",
        values: Annotated[str, Form(max_length=20)] = "auto",
    ) -> dict[str, Any]:
        """Upload cells to be annotated. They are read by a process of its own, under limits."""
        from scvec.stores.store.store import Store
        from scvec.workflows.query import only_reference

        opened = Store(store)
        name = only_reference(opened, reference or None)
        options = QueryOptions(reference=name, species=species, values=values)
        opened.reference(name)
        number, target = jobs.new_folder()
        try:
            await run_in_threadpool(_save, file, target / UPLOAD)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
        return jobs.add(number, file.filename or "", options).to_dict()

    @app.get("/api/jobs/{job}")
    def job(job: JobId) -> dict[str, Any]:
        """Tell how far a job is, and what came of it."""
        found = jobs.get(job)
        if found is None:
            raise HTTPException(404, "there is no such job (any more)")
        return found.to_dict()

    @app.delete("/api/jobs/{job}")
    def cancel(job: JobId) -> dict[str, Any]:
        """Stop a job and delete its files."""
        if not jobs.cancel(job):
            raise HTTPException(404, "there is no such job (any more)")
        return {"id": job, "status": "deleted"}

    @app.get("/api/jobs/{job}/files/{name}", response_class=FileResponse)
    def result(
        job: JobId, name: Literal["annotated.h5ad", "labels.csv", "report.html", "report.json", "annotate.sh"]
    ) -> FileResponse:
        """Return a file of a job that is done."""
        path = jobs.file(job, name)
        if path is None:
            raise HTTPException(404, "there is no such file (yet)")
        if name == "report.html":
            headers = {"content-security-policy": _SANDBOX}
            return FileResponse(path, media_type=FILES[name], headers=headers)
        return FileResponse(path, media_type=FILES[name], filename=name)


def _save(file: UploadFile, target: Path) -> None:
    with target.open("xb") as out:
        shutil.copyfileobj(file.file, out, 1 << 20)


Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Under this policy a page runs scripts of this server, and talks to nobody else.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
}
#: Bytes of any request but an upload, and what a form adds to an upload.
SMALL = 64 * 1024


class _TooLarge(Exception):
    pass


class Guard:
    """Lets through what has the token, is meant for this host, and is not too large.

    Parameters
    ----------
    hosts
        Values of the Host header that are ours. Another one comes from a name that somebody let point here
        (DNS rebinding).
    token
        What to ask for; None for nothing.
    cookie
        Name of the cookie that holds the token.
    max_upload
        Bytes of an upload.
    """

    def __init__(
        self, app: App, *, hosts: frozenset[str], token: str | None, cookie: str, max_upload: int
    ) -> None:
        self.app, self.hosts, self.token, self.cookie = app, hosts, token, cookie
        self.max_upload = max_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        if headers.get("host", "") not in self.hosts:
            return await _refuse(send, 421, "this server has another name", code="host-refused")
        if not self._same_origin(scope, headers):
            return await _refuse(send, 403, "requests from other pages are refused", code="origin-refused")
        if scope["path"] == "/" and scope["method"] == "GET" and self._by_address(scope):
            return await self._welcome(send)
        if not self._known(headers):
            return await _refuse(
                send, 401, "open the address that scvec serve printed: it holds a token", code="token-needed"
            )
        await self._limited(scope, headers, receive, _dressed(send))

    def _same_origin(self, scope: Scope, headers: dict[str, str]) -> bool:
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return True
        origin = headers.get("origin")
        # Programs send none; browsers always do with what changes something.
        return origin is None or origin.split("://", 1)[-1] == headers["host"]

    def _fits(self, given: str) -> bool:
        return self.token is None or hmac.compare_digest(given.encode(), self.token.encode())

    def _by_address(self, scope: Scope) -> bool:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        return self.token is not None and len(given) == 1 and self._fits(given[0])

    def _known(self, headers: dict[str, str]) -> bool:
        if self.token is None:
            return True
        kind, _, value = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._fits(value.strip()):
            return True
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return False
        return found is not None and self._fits(found.value)

    async def _welcome(self, send: Send) -> None:
        """Keep the token in a cookie and take it out of the address, which ends up in histories."""
        cookie = f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict"
        headers = [(b"location", b"/"), (b"set-cookie", cookie.encode()), (b"content-length", b"0")]
        await _dressed(send)({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def _limited(self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send) -> None:
        upload = scope["method"] == "POST" and scope["path"] == "/api/jobs"
        most = SMALL + (self.max_upload if upload else 0)
        length = headers.get("content-length", "0")
        told = f"at most {most:,} bytes are taken"
        if not length.isdigit() or int(length) > most:
            return await _refuse(send, 413, told, code="upload-too-large")
        seen, too_large, started = 0, False, False

        async def counted() -> Message:
            nonlocal seen, too_large
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > most:
                    too_large = True
                    raise _TooLarge
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            # Whatever the application makes of a body that broke off is not the answer.
            if not too_large or started:
                started = True
                await send(message)

        with suppress(_TooLarge):
            await self.app(scope, counted, watched)
        if too_large and not started:
            await _refuse(send, 413, told, code="upload-too-large")


def _dressed(send: Send) -> Send:
    """Return ``send`` with headers added that keep browsers on a short leash."""

    async def dressed(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = {k.decode("latin-1").lower() for k, _ in message["headers"]}
            extra = {"content-security-policy": POLICY, **HEADERS}
            added = [(k.encode(), v.encode()) for k, v in extra.items() if k not in there]
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return dressed


async def _refuse(send: Send, status: int, what: str, *, code: str) -> None:
    import json

    body = json.dumps({"error": {"code": code, "what": what, "where": "", "fix": ""}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await _dressed(send)({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    store: Path | str,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    token: bool = True,
    max_upload: int | str = "2G",
    memory: int | str | None = None,
    timeout: float = 1800.0,
    announce: Callable[[str], None] = lambda address: None,
) -> None:
    """Answer a page and REST requests over a store until interrupted.

    Parameters
    ----------
    host
        Address to listen on. Whoever reaches it and has the token may search the store and run jobs.
    port
        0 for a free one.
    token
        Ask for a random token, which is in the address that is announced.
    max_upload
        Bytes of a file, as a number or like ``"2G"``.
    memory
        Bytes that a job may use; half of what is free where not given.
    timeout
        Seconds that a job may take.
    announce
        Is told the address when the port is bound.

    Raises
    ------
    InputError
        The extra ``serve`` is not installed, the store is none, or the port is taken.
    """
    from scvec.base.resources import parse_memory
    from scvec.stores.store.store import Store

    need_serve()
    folder = Store(store).path.absolute()
    if not token and host not in LOOPBACK:
        raise InputError(
            "without a token only this machine may ask",
            f"--host {host}",
            "leave --no-token out",
            code="token-needed",
        )
    limits = Limits(upload=parse_memory(max_upload), memory=parse_memory(memory), seconds=timeout)
    listening = _bind(host, port)
    number = int(listening.getsockname()[1])
    key = secrets.token_urlsafe(24) if token else None
    import uvicorn

    with _ended_in_order(), tempfile.TemporaryDirectory(prefix="scvec-serve-") as name, listening:
        jobs = Jobs(folder, Path(name), limits)
        try:
            app = guarded_app(folder, jobs, Path(name), limits, host=host, port=number, token=key)
            config = uvicorn.Config(
                app, log_level="error", access_log=False, server_header=False, lifespan="off", ws="none"
            )
            shown = f"[{host}]" if ":" in host else host
            announce(f"http://{shown}:{number}/" + (f"?token={key}" if key else ""))
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            jobs.close()


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Let SIGTERM, by which services are stopped, unwind this process: uploads are not left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def guarded_app(
    store: Path, jobs: Jobs, folder: Path, limits: Limits, *, host: str, port: int, token: str | None
) -> Guard:
    """Return the application behind its guard."""

    names = {host, *LOOPBACK} if host in LOOPBACK else {host}
    hosts = {f"[{n}]:{port}" if ":" in n else f"{n}:{port}" for n in names}
    app: Any = make_app(store, jobs, folder, limits)
    return Guard(app, hosts=frozenset(hosts), token=token, cookie=f"scvec-{port}", max_upload=limits.upload)


def need_serve() -> None:
    """Raise InputError where a package of the extra ``serve`` is not installed."""
    modules = {
        "fastapi": "fastapi",
        "uvicorn": "uvicorn",
        "python-multipart": "python_multipart",
        "umap-learn": "umap",
        "jinja2": "jinja2",
    }
    missing = [name for name, module in modules.items() if not find_spec(module)]
    if missing:
        raise InputError(
            f"serving needs packages that are not installed: {', '.join(missing)}",
            "scvec serve",
            "pip install 'scvec[serve]'",
            code="extra-not-installed",
        )


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise InputError(
            f"cannot listen there ({error.strerror or error})",
            f"{host}:{port}",
            "choose another --port, or 0 for any that is free",
            code="bad-address",
        ) from error
    return listening
