"""CellGuide of the fake server: the files that its page reads, in the shapes that it publishes.

with FakeServer(extra=[add_cellguide(types)]) as server:
    ...  # base_url = f"{server.url}/cg"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web
from fake_faults import status_fault
from fake_server import FakeServer

SNAPSHOT = "1700000000"
TISSUES = {"UBERON:0002048": "lung", "UBERON:0000178": "blood"}


def computed(
    symbol: str, score: Any = 1.5, *, tissue: str | None = None, organism: str = "Homo sapiens"
) -> Any:
    """A row of computational_marker_genes."""
    place = {"organism_ontology_term_label": organism}
    if tissue is not None:
        place["tissue_ontology_term_label"] = tissue
    return {
        "me": 2.9,
        "pc": 0.65,
        "marker_score": score,
        "specificity": 0.99,
        "gene_ontology_term_id": "ENSG00000105369",
        "symbol": symbol,
        "name": "a gene",
        "groupby_dims": place,
    }


def canonical(symbol: str, tissue: str = "blood") -> Any:
    """A row of canonical_marker_genes."""
    return {
        "tissue": tissue,
        "symbol": symbol,
        "name": symbol,
        "publication": "10.1/x",
        "publication_titles": "",
    }


def add_cellguide(
    types: Mapping[str, Sequence[str]],
    files: Mapping[str, Any] | None = None,
    *,
    snapshot: str = SNAPSHOT,
    status: int = 200,
) -> Any:
    """Routes of one snapshot.

    Parameters
    ----------
    types
        CL id -> UBERON ids.
    files
        Path below the snapshot -> what it holds: JSON values, or text as it is.
    status
        Status of an absent file, whose body is empty.
    """

    def add(app: web.Application, server: FakeServer) -> None:
        known: dict[str, Any] = {
            "tissue_metadata.json": {u: {"id": u, "name": n} for u, n in TISSUES.items()},
            "ontology_tree/NCBITaxon_9606/celltype_to_tissue_mapping.json": dict(types),
            **(files or {}),
        }

        async def latest(request: web.Request) -> web.Response:
            return status_fault(request) or web.Response(text=snapshot)

        async def file(request: web.Request) -> web.Response:
            if (found := status_fault(request)) is not None:
                return found
            if request.match_info["path"] not in known:
                return web.Response(status=status, text="")
            value = known[request.match_info["path"]]
            return web.Response(text=value) if isinstance(value, str) else web.json_response(value)

        app.router.add_get("/cg/latest_snapshot_identifier", latest)
        app.router.add_get(f"/cg/{SNAPSHOT}/{{path:.*}}", file)

    return add
