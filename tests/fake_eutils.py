"""E-utilities of the fake server: esearch and esummary of the database gene."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from aiohttp import web
from fake_faults import key_of, status_fault
from fake_genes import ORGANISMS, FakeGene, fake_gene

if TYPE_CHECKING:
    from fake_server import FakeServer


def add_eutils(app: web.Application, server: FakeServer) -> None:
    """esearch and esummary of the database gene, by POST."""
    route = "/entrez/eutils"

    async def refused(request: web.Request) -> web.Response | None:
        key = key_of(request)
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

    app.router.add_post(f"{route}/esummary.fcgi", esummary)
    app.router.add_post(f"{route}/esearch.fcgi", esearch)


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
