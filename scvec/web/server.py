"""``scvec serve``: binds a port, says the address, and answers until it is stopped."""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import parse_qs

from fastapi import FastAPI, File, Form, HTTPException, Query, Request, UploadFile
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from scvec import __version__
from scvec.base.errors import InputError, ResourceError, ScvecError
from scvec.model.query_options import QueryOptions
from scvec.web.bodies import error_bytes, without_paths
from scvec.web.child import FILES, UPLOAD
from scvec.web.process import Limits, Process, reduced_environment

if TYPE_CHECKING:
    import uvicorn

__all__ = [
    "Busy",
    "Connection",
    "Guard",
    "Job",
    "Jobs",
    "Searches",
    "guarded_app",
    "http_server",
    "make_app",
    "serve",
]

ENDED = ("done", "failed", "cancelled")


class Busy(InputError):
    """Too many jobs or searches wait already."""

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
    process: Process | None = field(default=None, repr=False)

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
        request = {
            "store": str(self._store),
            "folder": str(job.folder),
            "name": job.name,
            "options": job.options.changed(),
            "seconds": self._limits.seconds,
            "script": script(job.name, job.options),
        }
        # Its temporary files go with the folder, also where it is killed.
        process = Process(job.folder, {**reduced_environment(), "TMPDIR": str(job.folder)}, self._limits)
        with self._change:
            job.process = process
            if job.status != "running":
                process.kill()
        try:
            for message in process.ask("job", request):
                self._hear(job, message)
        except ResourceError as error:
            job.error = {**error.body(), "where": job.name}
        finally:
            process.close()

    def _hear(self, job: Job, message: dict[str, Any]) -> None:
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
        400: "what was asked cannot be done, or the form is broken; says why",
        401: "the token is missing",
        404: "there is no such thing",
        408: "the request came too slowly",
        413: "the file is too large",
        422: "a parameter is not what it should be",
        429: "too many jobs or searches are waiting",
        503: "too many connections or uploads, or the store cannot be read",
        507: "a search took too much time or memory, or the disk is full",
    }.items()
}


_FIXES = {
    400: "send multipart/form-data with a field file",
    404: "see /api/openapi.json",
    405: "see /api/openapi.json",
}


def make_app(store: Path, jobs: Jobs, searches: Searches, limits: Limits) -> FastAPI:
    """Return the application."""
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
    _errors(app, store)
    _pages(app)
    _search(app, searches)
    _jobs(app, store, jobs)

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


def _errors(app: FastAPI, store: Path) -> None:
    names = {str(path): "the store" for path in (store, store.resolve())}

    def told(status: int, error: ScvecError) -> JSONResponse:
        return JSONResponse({"error": without_paths(error.body(), names)}, status_code=status)

    @app.exception_handler(ScvecError)
    async def ours(request: Request, error: ScvecError) -> JSONResponse:
        status = 429 if isinstance(error, Busy) else 400 if isinstance(error, InputError) else 503
        return told(507 if isinstance(error, ResourceError) else status, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return told(422, InputError(str(first["msg"]), where, code="usage"))

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        told_as = InputError(
            error.detail,
            request.url.path,
            _FIXES.get(error.status_code, ""),
            code={400: "bad-form", 404: "not-found"}.get(error.status_code, "usage"),
        )
        return Response(error_bytes(told_as), error.status_code, error.headers, media_type="application/json")

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        return told(500, ScvecError(f"this is a bug in scvec: {type(error).__name__}", code="bug"))


def _pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return Response((_PAGES / "app.html").read_bytes(), media_type="text/html; charset=utf-8")

    @app.get("/assets/{name}", include_in_schema=False)
    def asset(name: str) -> Response:
        if name not in _ASSETS:
            raise HTTPException(404, "there is no such file")
        return Response((_PAGES / name).read_bytes(), media_type=_ASSETS[name])


def _search(app: FastAPI, searches: Searches) -> None:
    @app.get("/api/search/genes")
    def search_genes(q: Text, k: Hits = 10, species: Species = "auto", where: Where = None) -> dict[str, Any]:
        """Find genes that a text is about."""
        return searches.find("genes", q, k=k, species=species, where=where)

    @app.get("/api/search/cells")
    def search_cells(
        q: Annotated[str, Query(max_length=500)] = "",
        like: Name = None,
        reference: Name = None,
        k: Hits = 10,
        where: Where = None,
    ) -> dict[str, Any]:
        """Find cells of a reference that a text is about, or that are like one (``like``)."""
        return searches.find("cells", q, like=like, reference=reference, k=k, where=where)


def _jobs(app: FastAPI, store: Path, jobs: Jobs) -> None:
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
        job: JobId,
        name: Literal["annotated.h5ad", "labels.csv", "report.html", "report.json", "annotate.sh"],
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


#: Seconds that a connection stays after an answer that ends it: closed at once, clients may lose the answer.
LINGER = 1.0


class _Broken(Exception):
    """The rest of a body is not read."""


class Connection(H11Protocol):
    """A connection that must bring its requests in time and is one of a bounded number.

    uvicorn has a clock for connections that rest between requests, none for a head that never ends, and no
    limit on connections that have not asked. Here, a clock runs whenever no request is being answered, and no
    byte sets it back. Where too many connections are open, the one that has not asked for longest gives way.
    """

    limits = Limits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or refuse it."""
        super().connection_made(transport)
        self._clock: asyncio.TimerHandle | None = None
        self._ended = False
        self._since = self.loop.time()
        every: list[Any] = list(self.connections)
        others = [c for c in every if not c._ended]
        if len(others) > self.limits.connections:
            idle = [c for c in others if not c._asked and c is not self]
            error = InputError("too many connections are open", fix="try again", code="busy")
            min(idle, key=_since, default=self)._end(503, error)
        if len(every) > 2 * self.limits.connections:
            # One that was answered stays no longer. It is told so late that it must not count until then.
            answered = min((c for c in every if c._ended), key=_since)
            self.connections.discard(answered)
            answered.transport.abort()
        self._mind()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clock."""
        self._ended = True
        self._mind()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes, but for those that come after the end."""
        if not self._ended:
            super().data_received(data)

    def handle_events(self) -> None:
        """Begin a request, or go on with one."""
        super().handle_events()
        self._mind()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._since = self.loop.time()
        self._mind()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        if self._asked:
            self.transport.close()
        else:
            self._end(400, InputError(msg, fix="send HTTP/1.1", code="usage"))

    def shutdown(self) -> None:
        """Close with the server."""
        if self._ended:
            self.transport.abort()
        else:
            super().shutdown()

    @property
    def _asked(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _mind(self) -> None:
        """Let the clock run where no request is being answered."""
        if self._clock is not None and (self._asked or self._ended):
            self._clock.cancel()
            self._clock = None
        elif self._clock is None and not (self._asked or self._ended):
            self._clock = self.loop.call_later(self.limits.head, self._late)

    def _late(self) -> None:
        what = f"no request came within {self.limits.head:g} seconds"
        self._end(408, InputError(what, fix="send the request again", code="too-slow"))

    def _end(self, status: int, error: InputError) -> None:
        self._ended = True
        self._mind()
        self._unset_keepalive_if_required()
        if self.cycle is not None:  # it got its answer; another would be taken for that of the next request
            self.transport.close()
            return
        body = error_bytes(error)
        own = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        lines = "".join(
            f"{k}: {v}\r\n" for k, v in {**own, "content-security-policy": POLICY, **HEADERS}.items()
        )
        self.transport.write(f"{head}{lines}\r\n".encode() + body)
        self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.abort)


def _since(connection: Connection) -> float:
    return connection._since


class Guard:
    """Lets through what has the token, is meant for this host, is not too large and not too slow.

    Parameters
    ----------
    hosts
        Values of the Host header that are ours. Another one comes from a name that somebody let point here
        (DNS rebinding).
    token
        What to ask for; None for nothing.
    cookie
        Name of the cookie that holds the token.
    limits
        Bytes of an upload, how many may be under way, and how slow a body may be.
    """

    def __init__(
        self, app: App, *, hosts: frozenset[str], token: str | None, cookie: str, limits: Limits
    ) -> None:
        self.app, self.hosts, self.token, self.cookie = app, hosts, token, cookie
        self.limits = limits
        self._uploads = 0

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
        if scope["method"] != "POST" or scope["path"] != "/api/jobs":
            return await self._limited(scope, headers, receive, _dressed(send), SMALL)
        if self._uploads >= self.limits.uploads:
            return await _refuse(
                send,
                503,
                f"{self.limits.uploads} uploads are under way already",
                fix="try again when some have ended",
                code="busy",
            )
        self._uploads += 1
        try:
            await self._limited(scope, headers, receive, _dressed(send), SMALL + self.limits.upload)
        finally:
            self._uploads -= 1

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

    async def _limited(
        self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send, most: int
    ) -> None:
        length = headers.get("content-length", "0")
        told = f"at most {most:,} bytes are taken"
        if not length.isdigit() or int(length) > most:
            return await _refuse(send, 413, told, code="upload-too-large")
        seen, waited, more = 0, 0.0, True
        broken, started = 0, False
        now = asyncio.get_running_loop().time

        async def counted() -> Message:
            nonlocal seen, waited, more, broken
            if not more:  # this waits for the end of the connection, however long the answer takes
                return await receive()
            # What the application does in between is not the client's time.
            left = self.limits.grace + seen / self.limits.rate - waited
            began = now()
            try:
                message = await asyncio.wait_for(receive(), max(left, 0.01))
            except TimeoutError:
                broken = 408
                raise _Broken from None
            waited += now() - began
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                more = message.get("more_body", False)
                if seen > most:
                    broken = 413
                    raise _Broken
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            # Whatever the application makes of a body that broke off is not the answer.
            if not broken or started:
                started = True
                await send(message)

        with suppress(_Broken):
            await self.app(scope, counted, watched)
        if broken == 413 and not started:
            await _refuse(send, 413, told, code="upload-too-large")
        elif broken == 408 and not started:
            what = f"the request came at less than {self.limits.rate:,} bytes per second"
            await _refuse(send, 408, what, fix="use a faster connection", code="too-slow")


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


async def _refuse(send: Send, status: int, what: str, *, fix: str = "", code: str) -> None:
    body = error_bytes(InputError(what, fix=fix, code=code))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 408:
        headers.append((b"connection", b"close"))
    await _dressed(send)({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


PREFIX = "scvec-serve-"
#: Bytes that the head of a request may have.
HEAD = 16 * 2**10

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
        Bytes that a job may use, and the process of searches; half of what is free where not given.
    timeout
        Seconds that a job or a search may take.
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

    with _ended_in_order(), _work_folder() as work, listening:
        jobs = Jobs(folder, work, limits)
        searches = Searches(folder, work, limits)
        try:
            app = guarded_app(folder, jobs, searches, limits, host=host, port=number, token=key)
            shown = f"[{host}]" if ":" in host else host
            announce(f"http://{shown}:{number}/" + (f"?token={key}" if key else ""))
            http_server(app, limits).run(sockets=[listening])
        finally:
            searches.close()
            jobs.close()


def http_server(app: Any, limits: Limits) -> uvicorn.Server:
    """Return a server that bounds its connections by ``limits``."""
    import uvicorn

    config = uvicorn.Config(
        app,
        http=type("Connection", (Connection,), {"limits": limits}),
        h11_max_incomplete_event_size=HEAD,
        log_level="error",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
    )
    return uvicorn.Server(config)


@contextmanager
def _work_folder() -> Iterator[Path]:
    """Give a folder for uploads and results, and remove those of servers that were killed.

    A server holds a lock on its folder as long as it lives. A system without ``flock`` keeps old folders.
    """
    try:
        import fcntl
    except ImportError:
        with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
            yield Path(name)
        return

    def locked(path: Path | str, wait: int) -> int | None:
        """Return an open folder that is locked, None where it is another's, in use, or gone."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            if os.fstat(fd).st_uid == os.getuid():
                fcntl.flock(fd, fcntl.LOCK_EX | wait)
                if os.path.exists(path):
                    return fd
        except OSError:
            pass
        os.close(fd)
        return None

    for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if (fd := locked(old, fcntl.LOCK_NB)) is not None:
            shutil.rmtree(old, ignore_errors=True)
            os.close(fd)
    # Another server that starts may have removed the new folder before it was locked.
    while (fd := locked(name := tempfile.mkdtemp(prefix=PREFIX), 0)) is None:
        pass
    try:
        yield Path(name)
    finally:
        shutil.rmtree(name, ignore_errors=True)
        os.close(fd)


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
    store: Path,
    jobs: Jobs,
    searches: Searches,
    limits: Limits,
    *,
    host: str,
    port: int,
    token: str | None,
) -> Guard:
    """Return the application behind its guard."""

    names = {host, *LOOPBACK} if host in LOOPBACK else {host}
    hosts = {f"[{n}]:{port}" if ":" in n else f"{n}:{port}" for n in names}
    app: Any = make_app(store, jobs, searches, limits)
    return Guard(
        app,
        hosts=frozenset(hosts),
        token=token,
        cookie=f"scvec-{port}",
        limits=limits,
    )


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
