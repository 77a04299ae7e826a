"""A loopback server that speaks E-utilities and MyGene as the live ones do, with faults on demand.

    with FakeServer(fake_genes(3), faults=Faults.script(["500", None])) as server:
        ...  # ask server.url; look at server.requests

Shapes are those of recorded answers (fake_eutils, fake_mygene).
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

from aiohttp import web
from fake_eutils import add_eutils
from fake_faults import Faults, key_of
from fake_genes import FakeGene
from fake_mygene import add_mygene


@dataclass(frozen=True)
class Request:
    """A request as it arrived."""

    method: str
    path: str
    #: Fields of the form, or the JSON body.
    body: Any
    query: dict[str, str]
    headers: dict[str, str]
    #: Seconds since the epoch.
    time: float
    fault: str | None = None


Extra = Callable[[web.Application, "FakeServer"], None]


class FakeServer:
    """Serves genes on 127.0.0.1, from a thread of its own, while the ``with`` block runs.

    Attributes
    ----------
    requests
        All requests, in order of arrival.
    extra
        Functions that add routes: ``add(app, server)``.
    keys
        If not None, an ``api_key`` that is not among them is refused as NCBI refuses it.
    drip_seconds
        Time between two bytes of a body under the fault ``drip``.
    retry_after
        Seconds that ``429-after``, ``429-date`` and ``429-ms`` ask for.
    redirect_to
        Where the fault ``redirect`` leads.
    """

    def __init__(
        self,
        genes: Iterable[FakeGene] = (),
        faults: Faults | None = None,
        extra: Sequence[Extra] = (),
        *,
        keys: set[str] | None = None,
        drip_seconds: float = 0.05,
        retry_after: float = 0.0,
        redirect_to: str = "http://localhost:9/elsewhere",
    ) -> None:
        self.genes = list(genes)
        self.faults = faults or Faults.none()
        self.extra = extra
        self.keys = keys
        self.drip_seconds = drip_seconds
        self.retry_after = retry_after
        self.redirect_to = redirect_to
        self.requests: list[Request] = []
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        self._error: BaseException | None = None

    @property
    def genes(self) -> list[FakeGene]:
        return self._genes

    @genes.setter
    def genes(self, genes: Iterable[FakeGene]) -> None:
        self._genes = list(genes)
        self.by_id = {gene.entrez_id: gene for gene in self._genes}
        self.by_query: dict[str, list[FakeGene]] = {}
        for gene in self._genes:
            for query in (str(gene.entrez_id), *gene.ensembl_ids):
                self.by_query.setdefault(query, []).append(gene)

    def paths(self) -> list[str]:
        return [request.path for request in self.requests]

    def __enter__(self) -> FakeServer:
        self._thread = threading.Thread(target=self._run, name="fake-services", daemon=True)
        self._thread.start()
        self._started.wait(20)
        if self._error is not None or not self.url:
            raise RuntimeError("the fake server did not start") from self._error
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join(20)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._started.set()
            self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        app = web.Application(middlewares=[self._middleware], client_max_size=64 * 2**20)
        add_eutils(app, self)
        add_mygene(app, self)
        for add in self.extra:
            add(app, self)
        # Handlers that hang end when the client leaves.
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.content_type == "application/json":
            body: Any = json.loads(await request.text() or "null")
        else:
            body = dict(await request.post())
        fault = self.faults.next()
        # Not by request[...] = ...: aiohttp warns of keys that are plain text.
        request._state.update(body=body, fault=fault)
        self.requests.append(
            Request(
                request.method,
                request.path,
                body,
                dict(request.query),
                dict(request.headers),
                time.time(),
                fault,
            )
        )
        if fault is None:
            return await handler(request)
        return await self._generic(fault, request, handler)

    async def _generic(self, fault: str, request: web.Request, handler: Any) -> web.StreamResponse:
        if fault.startswith("429"):
            body = {
                "error": "API rate limit exceeded",
                "api-key": key_of(request),
                "count": "4",
                "limit": "3",
            }
            return web.json_response(body, status=429, headers=self._patience(fault))
        if fault in ("500", "502", "503"):
            return web.Response(status=int(fault), text="<html><body>try later</body></html>")
        if fault == "timeout":
            await asyncio.sleep(3600)
        if fault == "reset":
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        if fault == "html":
            return web.Response(text="<!DOCTYPE html><html><body>Down for repair</body></html>")
        if fault == "redirect":
            return web.Response(status=302, headers={"Location": self.redirect_to})
        if fault == "redirect-loop":
            return web.Response(status=307, headers={"Location": str(request.rel_url)})
        response = await handler(request)
        if fault == "malformed":
            return web.Response(
                text=response.text[: len(response.text) // 2], content_type="application/json"
            )
        if fault == "drip":
            return await self._drip(request, response.body)
        if fault == "huge":
            return web.Response(
                body=b'{"a": "' + b"x" * (65 * 2**20) + b'"}', content_type="application/json"
            )
        if fault == "huge-chunked":
            stream = web.StreamResponse()
            await stream.prepare(request)
            for _ in range(65):
                await stream.write(b" " * 2**20)
            await stream.write(response.body)
            return stream
        if fault == "deep":
            return web.Response(text='{"a":' + "[" * 100_000 + "]" * 100_000 + "}")
        return response

    def _patience(self, fault: str) -> dict[str, str]:
        if fault == "429-after":
            return {"Retry-After": f"{self.retry_after:g}"}
        if fault == "429-ms":
            return {"Retry-After-Ms": f"{1000 * self.retry_after:g}"}
        if fault == "429-date":
            date = datetime.now(UTC) + timedelta(seconds=self.retry_after)
            return {"Retry-After": format_datetime(date, usegmt=True)}
        return {}

    async def _drip(self, request: web.Request, body: bytes) -> web.StreamResponse:
        stream = web.StreamResponse(headers={"Content-Type": "application/json"})
        await stream.prepare(request)
        for i in range(len(body)):
            await stream.write(body[i : i + 1])
            await asyncio.sleep(self.drip_seconds)
        return stream
