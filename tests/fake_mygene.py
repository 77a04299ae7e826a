"""MyGene of the fake server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aiohttp import web
from fake_faults import status_fault
from fake_genes import ORGANISMS, FakeGene, fake_gene

if TYPE_CHECKING:
    from fake_server import FakeServer


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
