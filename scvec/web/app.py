"""Routes of the server: one page, and a REST interface with OpenAPI under ``/api``."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, File, Form, HTTPException, Query, Request, UploadFile
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

from scvec import __version__
from scvec.base.errors import InputError, ResourceError, ScvecError, error_bytes, without_paths
from scvec.model.query_options import QueryOptions
from scvec.web.child import FILES, UPLOAD
from scvec.web.jobs import Busy, Jobs, Searches
from scvec.web.process import Limits

__all__ = ["make_app"]

_PAGES = files("scvec") / "data" / "page"
_ASSETS = {
    "base.css": "text/css; charset=utf-8",
    "app.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
}
#: A report holds untrusted data. The sandbox allows scripts and downloads, and gives it an opaque origin.
_SANDBOX = "sandbox allow-scripts allow-downloads"

JobId = Annotated[str, InPath(pattern="^[0-9a-f]{32}$")]
Text = Annotated[str, Query(min_length=1, max_length=500)]
Where = Annotated[str | None, Query(max_length=500, description="SQL condition")]
Name = Annotated[str | None, Query(max_length=200)]
Hits = Annotated[int, Query(ge=1, le=200)]
Species = Annotated[str, Query(max_length=60, description="auto, or a species by name or taxon id")]

_ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"description": what, "content": {"application/json": {}}}
    for code, what in {
        400: "the request cannot be carried out, or the form is invalid; the error says why",
        401: "the token is missing",
        404: "not found",
        408: "the request came too slowly",
        413: "the file is too large",
        422: "a parameter is invalid",
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
        summary="Annotates cells with a reference, and searches genes and cells.",
        openapi_url="/api/openapi.json",
        # These pages load scripts from other servers.
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
        """Return the references of the store, and the limits of this server."""
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

    def answer(status: int, error: ScvecError) -> JSONResponse:
        return JSONResponse({"error": without_paths(error.body(), names)}, status_code=status)

    @app.exception_handler(ScvecError)
    async def ours(request: Request, error: ScvecError) -> JSONResponse:
        status = 429 if isinstance(error, Busy) else 400 if isinstance(error, InputError) else 503
        return answer(507 if isinstance(error, ResourceError) else status, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return answer(422, InputError(str(first["msg"]), where, code="usage"))

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        error_body = InputError(
            error.detail,
            request.url.path,
            _FIXES.get(error.status_code, ""),
            code={400: "bad-form", 404: "not-found"}.get(error.status_code, "usage"),
        )
        return Response(
            error_bytes(error_body), error.status_code, error.headers, media_type="application/json"
        )

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        return answer(500, ScvecError(f"this is a bug in scvec: {type(error).__name__}", code="bug"))


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
        """Find genes by a text."""
        return searches.find("genes", q, k=k, species=species, where=where)

    @app.get("/api/search/cells")
    def search_cells(
        q: Annotated[str, Query(max_length=500)] = "",
        like: Name = None,
        reference: Name = None,
        k: Hits = 10,
        where: Where = None,
    ) -> dict[str, Any]:
        """Find cells of a reference by a text, or cells similar to the cell ``like``."""
        return searches.find("cells", q, like=like, reference=reference, k=k, where=where)


def _jobs(app: FastAPI, store: Path, jobs: Jobs) -> None:
    @app.post("/api/jobs", status_code=202)
    async def upload(
        file: Annotated[
            UploadFile, File(description="h5ad, h5mu, loom, .h5 of Cell Ranger, or a text table")
        ],
        reference: Annotated[str | None, Form(max_length=200)] = None,
        species: Annotated[str, Form(max_length=60)] = "auto",
        values: Annotated[str, Form(max_length=20)] = "auto",
    ) -> dict[str, Any]:
        """Upload cells to annotate. A separate process reads them, with limits on memory and time."""
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
        """Return the progress and result of a job."""
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
        """Return a result file of a finished job."""
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
