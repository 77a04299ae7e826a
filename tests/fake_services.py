"""A loopback server that speaks E-utilities and MyGene as the live ones do, with faults on demand.

    with FakeServer(fake_genes(3), faults=Faults.script(["500", None])) as server:
        ...  # ask server.url; look at server.requests

Shapes are those of recorded answers. A gene's texts carry its id, so that a text on the wrong gene is seen.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from xml.sax.saxutils import escape

from aiohttp import web

#: Faults that need no handler.
GENERIC = ("429", "429-after", "429-date", "429-ms", "500", "503", "timeout", "reset", "drip", "malformed")
#: Generic faults that pass quickly: none of them waits for a time-out of the client.
QUICK = ("429", "429-after", "429-date", "429-ms", "500", "503", "reset", "malformed")

ORGANISMS = {
    "human": {"scientificname": "Homo sapiens", "commonname": "human", "taxid": 9606},
    "mouse": {"scientificname": "Mus musculus", "commonname": "house mouse", "taxid": 10090},
    "rat": {"scientificname": "Rattus norvegicus", "commonname": "Norway rat", "taxid": 10116},
}


class Faults:
    """Says which fault the next request meets, or None."""

    def __init__(self, draw: Callable[[int], str | None]) -> None:
        self._draw = draw
        self.n_drawn = 0

    def next(self) -> str | None:
        self.n_drawn += 1
        return self._draw(self.n_drawn - 1)

    @classmethod
    def none(cls) -> Faults:
        return cls(lambda n: None)

    @classmethod
    def always(cls, kind: str | None) -> Faults:
        return cls(lambda n: kind)

    @classmethod
    def script(cls, kinds: Iterable[str | None], then: str | None = None) -> Faults:
        """One fault after the other, then ``then`` for ever."""
        listed = list(kinds)
        return cls(lambda n: listed[n] if n < len(listed) else then)

    @classmethod
    def after(cls, n_good: int, kind: str) -> Faults:
        """``n_good`` requests are answered, all later ones meet the fault."""
        return cls(lambda n: kind if n >= n_good else None)

    @classmethod
    def random(cls, share: float, seed: int = 0, kinds: Sequence[str] = QUICK) -> Faults:
        rng = random.Random(seed)
        return cls(lambda n: rng.choice(kinds) if rng.random() < share else None)


@dataclass(frozen=True)
class FakeGene:
    """What the services know about a gene."""

    entrez_id: int
    species: str = "human"
    symbol: str = ""
    name: str = ""
    summary: str = ""
    aliases: tuple[str, ...] = ()
    ensembl_ids: tuple[str, ...] = ()
    gene_type: str = "protein-coding"
    authority: str = ""
    #: The id that replaced this one, 0 if none.
    replaced_by: int = 0
    discontinued: bool = False

    @property
    def alive(self) -> bool:
        return not self.replaced_by and not self.discontinued

    @property
    def authority_number(self) -> int:
        return int(self.authority.rpartition(":")[2] or self.entrez_id)


def fake_gene(entrez_id: int, species: str = "human", **given: Any) -> FakeGene:
    """A gene whose every text names its id."""
    prefix, authority = ("G", "HGNC") if species == "human" else ("Gm", "MGI")
    letters = {"human": "ENSG", "mouse": "ENSMUSG"}.get(species, "ENSRNOG")
    fields: dict[str, Any] = {
        "symbol": f"{prefix}{entrez_id}",
        "name": f"gene number {entrez_id}",
        "summary": f"This gene encodes protein number {entrez_id}. [provided by RefSeq, Jul 2008]",
        "aliases": (f"ALT{entrez_id}", f"p{entrez_id}"),
        "ensembl_ids": (f"{letters}{entrez_id:011d}",),
        "authority": f"{authority}:{entrez_id}",
    }
    return FakeGene(entrez_id, species, **{**fields, **given})


def fake_genes(n: int, species: str = "human", first: int = 1001) -> list[FakeGene]:
    """Genes with ids ``first`` and up."""
    return [fake_gene(i, species) for i in range(first, first + n)]


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
            body = {"error": "API rate limit exceeded", "api-key": _key(request), "count": "4", "limit": "3"}
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


def _key(request: web.Request) -> str:
    body = request["body"]
    key = str(body.get("api_key", "")) if isinstance(body, dict) else ""
    return key or request.headers.get("Authorization", "").removeprefix("Bearer ")


def status_fault(request: web.Request) -> web.Response | None:
    """The answer to a fault that is nothing but a status, for handlers."""
    status = {"400": 400, "401": 401, "403": 403, "404": 404, "413": 413, "414": 414, "422": 422}
    if request["fault"] not in status:
        return None
    # Like NCBI, say the key back: what shows this body shows the key.
    body = {"error": f"refused ({request['fault']})", "api-key": _key(request)}
    return web.json_response(body, status=status[request["fault"]])


# E-utilities -----------------------------------------------------------------------------------------------


def add_eutils(app: web.Application, server: FakeServer) -> None:
    """esearch, esummary and efetch of the database gene, by POST."""
    route = "/entrez/eutils"

    async def refused(request: web.Request) -> web.Response | None:
        key = _key(request)
        if server.keys is not None and key and key not in server.keys:
            body = {"error": "API key invalid", "api-key": key, "type": "invalid", "status": "unknown"}
            return web.json_response(body, status=400)
        return status_fault(request)

    async def esummary(request: web.Request) -> web.Response:
        if (found := await refused(request)) is not None:
            return found
        header = {"type": "esummary", "version": "0.3"}
        fault, body = request["fault"], request["body"]
        ids = [i for i in body.get("id", "").split(",") if i]
        if fault == "error200":
            return web.json_response({"header": header, "error": "Search Backend failed: gene unavailable"})
        if fault == "esummaryresult" or not ids:
            text = "Empty id list - nothing todo" if not ids else "Unable to obtain query #1"
            return web.json_response({"header": header, "esummaryresult": [text]})
        if len(ids) > 500:
            text = "Too many UIDs in request. Maximum number of UIDs is 500 for JSON format output."
            return web.json_response({"header": header, "error": text})
        if fault == "short":
            ids = ids[: len(ids) // 2]
        if fault in ("reorder", "bad-index"):
            ids = ids[::-1]
        result: dict[str, Any] = {"uids": ids}
        by_id = server.by_id
        for uid in ids:
            gene = by_id.get(int(uid)) if uid.isdecimal() else None
            result[uid] = (
                {"uid": uid, "error": "cannot get document summary"} if gene is None else docsum(gene)
            )
        if fault == "swapped" and len(ids) > 1:
            result[ids[0]], result[ids[1]] = result[ids[1]], result[ids[0]]
        if fault == "unasked":
            stranger = fake_gene(999_999_999)
            result["uids"] = [*ids, "999999999"]
            result["999999999"] = docsum(stranger)
        return web.json_response({"header": header, "result": result})

    async def esearch(request: web.Request) -> web.Response:
        if (found := await refused(request)) is not None:
            return found
        body = request["body"]
        header = {"type": "esearch", "version": "0.3"}
        if request["fault"] == "error200":
            return web.json_response({"header": header, "esearchresult": {"ERROR": "Search Backend failed"}})
        found_ids, missed = search(body.get("term", ""), server.genes)
        start, most = int(body.get("retstart", 0)), int(body.get("retmax", 20))
        result = {
            "count": str(len(found_ids)),
            "retmax": str(min(most, len(found_ids))),
            "retstart": str(start),
            "idlist": [str(i) for i in found_ids[start : start + most]],
            "translationset": [],
            "querytranslation": body.get("term", ""),
        }
        if missed:
            result["errorlist"] = {"phrasesnotfound": missed, "fieldsnotfound": []}
        return web.json_response({"header": header, "esearchresult": result})

    async def efetch(request: web.Request) -> web.Response:
        if (found := await refused(request)) is not None:
            return found
        ids = [int(i) for i in request["body"].get("id", "").split(",") if i.isdecimal()]
        if request["fault"] == "short":
            ids = ids[: len(ids) // 2]
        by_id = server.by_id
        known = [by_id[i] for i in ids if i in by_id]
        return web.Response(text=entrezgene_set(known), content_type="text/xml")

    app.router.add_post(f"{route}/esummary.fcgi", esummary)
    app.router.add_post(f"{route}/esearch.fcgi", esearch)
    app.router.add_post(f"{route}/efetch.fcgi", efetch)


def docsum(gene: FakeGene) -> dict[str, Any]:
    """A document summary as esummary 2.0 gives it. Live genes have empty texts where others have numbers."""
    start = 1000 * gene.entrez_id % 10**8
    official = "Official" if gene.authority else ""
    return {
        "uid": str(gene.entrez_id),
        "name": gene.symbol,
        "description": gene.name,
        "status": "" if gene.alive else 1,
        "currentid": gene.replaced_by or "",
        "chromosome": "7",
        "geneticsource": "genomic",
        "maplocation": "7q21.1",
        "otheraliases": ", ".join(gene.aliases),
        "otherdesignations": f"protein {gene.entrez_id}|protein number {gene.entrez_id}",
        "nomenclaturesymbol": gene.symbol if official else "",
        "nomenclaturename": gene.name if official else "",
        "nomenclaturestatus": official,
        "mim": [str(100_000 + gene.entrez_id)] if gene.species == "human" else [],
        "genomicinfo": [
            {
                "chrloc": "7",
                "chraccver": "NC_000007.14",
                "chrstart": start,
                "chrstop": start + 1500,
                "exoncount": 7,
            }
        ],
        "geneweight": 2048,
        "summary": gene.summary,
        "chrsort": "07",
        "chrstart": start,
        "organism": ORGANISMS[gene.species],
        "locationhist": [
            {
                "annotationrelease": "RS_2023_10",
                "assemblyaccver": "GCF_000001405.40",
                "chraccver": "NC_000007.14",
                "chrstart": start,
                "chrstop": start + 1500,
            }
        ],
    }


_TOKEN = re.compile(r'\s*(?:(\(|\))|(AND|OR|NOT)\b|("[^"]*"|[^\s()\[\]"]+)\s*(\[[^\]]*\])?)')


def search(term: str, genes: Iterable[FakeGene]) -> tuple[list[int], list[str]]:
    """Ids that an Entrez query finds, and the phrases that find nothing.

    AND, OR and NOT go from left to right, and words side by side are joined by AND, as Entrez has it.
    """
    genes = list(genes)
    every = {g.entrez_id for g in genes}
    missed: list[str] = []
    position = 0

    def leaf(text: str, tag: str) -> set[int]:
        word = text.strip('"').casefold()
        tag = tag.strip("[]").casefold()
        if tag in ("gene name", "gene", "sym"):
            hits = {g.entrez_id for g in genes if word in [s.casefold() for s in (g.symbol, *g.aliases)]}
        elif tag in ("preferred symbol", "pref"):
            hits = {g.entrez_id for g in genes if word == g.symbol.casefold()}
        elif tag in ("taxonomy id", "tid"):
            hits = {g.entrez_id for g in genes if str(ORGANISMS[g.species]["taxid"]) == word}
        elif tag in ("prop", "properties"):
            hits = {g.entrez_id for g in genes if g.alive} if word == "alive" else set()
        elif tag in ("uid",):
            hits = {g.entrez_id for g in genes if str(g.entrez_id) == word}
        else:
            # All fields: whoever lets a name out of its quotes finds more than that name.
            hits = {
                g.entrez_id
                for g in genes
                if word in f"{g.symbol} {g.name} {g.summary} {' '.join(g.aliases)}".casefold()
            }
        if not hits:
            missed.append(text.strip('"'))
        return hits

    def expression() -> set[int]:
        nonlocal position
        value: set[int] | None = None
        operator = "AND"
        while position < len(term):
            match = _TOKEN.match(term, position)
            if match is None:
                if not term[position:].strip():
                    position = len(term)
                    break
                position += 1  # Entrez passes over what it cannot read
                continue
            position = match.end()
            bracket, word, text, tag = match.groups()
            if bracket == ")":
                break
            if word:
                operator = word
                continue
            found = expression() if bracket == "(" else leaf(text, tag or "")
            if value is None:
                value = found
            elif operator == "OR":
                value = value | found
            elif operator == "NOT":
                value = value - found
            else:
                value = value & found
            operator = "AND"
        return value or set()

    return sorted(expression() & every), missed


def entrezgene_set(genes: Iterable[FakeGene]) -> str:
    """Entrezgene XML of the recorded shape, with the parts that are read."""
    head = (
        '<?xml version="1.0" ?>\n<!DOCTYPE Entrezgene-Set PUBLIC "-//NLM//DTD NCBI-Entrezgene, 21st January '
        '2005//EN" "https://www.ncbi.nlm.nih.gov/data_specs/dtd/NCBI_Entrezgene.dtd">\n<Entrezgene-Set>\n'
    )
    return head + "".join(map(entrezgene, genes)) + "</Entrezgene-Set>\n"


def entrezgene(gene: FakeGene) -> str:
    organism = ORGANISMS[gene.species]
    status = 'value="live">0' if gene.alive else 'value="secondary">1'
    kinds = {"protein-coding": 6, "pseudo": 7, "ncRNA": 10}
    return f"""<Entrezgene>
  <Entrezgene_track-info><Gene-track>
    <Gene-track_geneid>{gene.entrez_id}</Gene-track_geneid>
    <Gene-track_status {status}</Gene-track_status>
  </Gene-track></Entrezgene_track-info>
  <Entrezgene_type value="{gene.gene_type}">{kinds.get(gene.gene_type, 255)}</Entrezgene_type>
  <Entrezgene_source><BioSource><BioSource_org><Org-ref>
    <Org-ref_taxname>{organism["scientificname"]}</Org-ref_taxname>
    <Org-ref_common>{organism["commonname"]}</Org-ref_common>
    <Org-ref_db>{_tag("taxon", organism["taxid"])}</Org-ref_db>
    <Org-ref_orgname><OrgName>
      <OrgName_lineage>Eukaryota; Metazoa; Chordata; of {gene.entrez_id}</OrgName_lineage>
    </OrgName></Org-ref_orgname>
  </Org-ref></BioSource_org></BioSource></Entrezgene_source>
  <Entrezgene_gene><Gene-ref>
    <Gene-ref_locus>{escape(gene.symbol)}</Gene-ref_locus>
    <Gene-ref_desc>{escape(gene.name)}</Gene-ref_desc>
    <Gene-ref_db>{_tag(gene.authority.partition(":")[0] or "HGNC", gene.authority)}
      {"".join(_tag("Ensembl", e) for e in gene.ensembl_ids)}{_tag("MIM", 100_000 + gene.entrez_id)}
    </Gene-ref_db>
    <Gene-ref_syn>{"".join(_synonym(a) for a in gene.aliases)}</Gene-ref_syn>
  </Gene-ref></Entrezgene_gene>
  <Entrezgene_summary>{escape(gene.summary)}</Entrezgene_summary>
  <Entrezgene_comments>
    <Gene-commentary>
      <Gene-commentary_type value="comment">254</Gene-commentary_type>
      <Gene-commentary_heading>RefSeq Status</Gene-commentary_heading>
      <Gene-commentary_label>REVIEWED</Gene-commentary_label>
    </Gene-commentary>
    <Gene-commentary>
      <Gene-commentary_type value="gene-group">23</Gene-commentary_type>
      <Gene-commentary_heading>Orthologs from Annotation Pipeline</Gene-commentary_heading>
      <Gene-commentary_comment>
        {_ortholog("Primary", gene.entrez_id, gene.symbol, "human", 9606)}
        {_ortholog("Additional", 500_000 + gene.entrez_id, f"Orth{gene.entrez_id}", "mouse", 10090)}
      </Gene-commentary_comment>
    </Gene-commentary>
    <Gene-commentary>
      <Gene-commentary_type value="comment">254</Gene-commentary_type>
      <Gene-commentary_heading>Representative Expression</Gene-commentary_heading>
      <Gene-commentary_comment><Gene-commentary>
        <Gene-commentary_type value="comment">254</Gene-commentary_type>
        <Gene-commentary_label>Text Summary</Gene-commentary_label>
        <Gene-commentary_text>Biased expression in brain (RPKM {gene.entrez_id}) </Gene-commentary_text>
      </Gene-commentary></Gene-commentary_comment>
    </Gene-commentary>
  </Entrezgene_comments>
</Entrezgene>
"""


def _ortholog(label: str, entrez_id: int, symbol: str, organism: str, taxon: int) -> str:
    return f"""<Gene-commentary>
          <Gene-commentary_type value="gene-group">23</Gene-commentary_type>
          <Gene-commentary_label>{label}</Gene-commentary_label>
          <Gene-commentary_source>
            <Other-source><Other-source_src>{_tag("GeneID", entrez_id)}</Other-source_src>
              <Other-source_pre-text>{escape(symbol)}</Other-source_pre-text>
              <Other-source_anchor>{organism}</Other-source_anchor></Other-source>
            <Other-source><Other-source_src>{_tag("taxon", taxon)}</Other-source_src></Other-source>
          </Gene-commentary_source>
        </Gene-commentary>"""


def _synonym(name: str) -> str:
    return f"<Gene-ref_syn_E>{escape(name)}</Gene-ref_syn_E>"


def _tag(db: str, value: object) -> str:
    kind = "id" if isinstance(value, int) else "str"
    return (
        f"<Dbtag><Dbtag_db>{escape(db)}</Dbtag_db><Dbtag_tag><Object-id>"
        f"<Object-id_{kind}>{escape(str(value))}</Object-id_{kind}></Object-id></Dbtag_tag></Dbtag>"
    )


# MyGene ----------------------------------------------------------------------------------------------------


def add_mygene(app: web.Application, server: FakeServer) -> None:
    """POST /v3/gene."""

    async def gene(request: web.Request) -> web.Response:
        if (found := status_fault(request)) is not None:
            return found
        body, fault = request["body"], request["fault"]
        ids = [i.strip() for i in str(body.get("ids", "")).split(",") if i.strip()]
        if not ids:
            error = {"code": 400, "success": False, "error": "Bad Request", "missing": "ids"}
            return web.json_response(error, status=400)
        if len(ids) > 1000:
            error = {"code": 400, "success": False, "error": "Bad Request", "keyword": "ids", "max": 1000}
            return web.json_response({**error, "num": len(ids)}, status=400)
        if fault == "error200":
            return web.json_response({"success": False, "error": "Internal backend error"})
        species = [s.strip() for s in str(body.get("species", "")).split(",") if s.strip()]
        fields = [f.strip() for f in str(body.get("fields", "")).split(",") if f.strip()]
        hits: list[dict[str, Any]] = []
        for number, query in enumerate(ids):
            known = [g for g in server.by_query.get(query, []) if not species or _of_species(g, species)]
            found_hits = [{"query": query, **mygene_hit(g, number, fields)} for g in known]
            if fault == "duplicate":
                found_hits *= 2
            hits += found_hits or [{"query": query, "notfound": True}]
        if fault == "short":
            hits = hits[: len(hits) // 2]
        if fault in ("reorder", "bad-index"):
            hits = hits[::-1]
        if fault == "unasked":
            hits.append({"query": "999999999", **mygene_hit(fake_gene(999_999_999), 0, fields)})
        return web.json_response(hits)

    app.router.add_post("/v3/gene", gene)


def _of_species(gene: FakeGene, species: Sequence[str]) -> bool:
    taxid = str(ORGANISMS[gene.species]["taxid"])
    return "all" in species or gene.species in species or taxid in species


def mygene_hit(gene: FakeGene, number: int, fields: Sequence[str]) -> dict[str, Any]:
    """A hit as MyGene gives it: lists of one are scalars, and ``entrezgene`` is a str or an int."""
    ensembl = [{"gene": e} for e in gene.ensembl_ids]
    hit: dict[str, Any] = {
        "_id": str(gene.entrez_id),
        "_version": 1,
        "entrezgene": str(gene.entrez_id) if number % 2 else gene.entrez_id,
        "taxid": ORGANISMS[gene.species]["taxid"],
        "symbol": gene.symbol,
        "name": gene.name,
        "type_of_gene": gene.gene_type,
    }
    if gene.summary:
        hit["summary"] = gene.summary
    if gene.aliases:
        hit["alias"] = gene.aliases[0] if len(gene.aliases) == 1 else list(gene.aliases)
    if ensembl:
        hit["ensembl"] = ensembl[0] if len(ensembl) == 1 else ensembl
    if gene.species == "human":
        hit["HGNC"] = str(gene.authority_number)
        hit["MIM"] = str(100_000 + gene.entrez_id)
    else:
        hit["MGI"] = f"MGI:{gene.authority_number}"
    wanted = {f.partition(".")[0] for f in fields}
    return {
        k: v for k, v in hit.items() if not wanted or "all" in wanted or k in {*wanted, "_id", "_version"}
    }
