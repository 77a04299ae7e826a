"""scvec: an embedding store and retrieval toolkit for single-cell RNA-seq.

``import scvec`` loads nothing heavy: the functions below are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scvec.api import plots as pl
    from scvec.api.cells import ingest_cells as ingest_cells
    from scvec.api.complement import ingest_complement as ingest_complement
    from scvec.api.demo import demo as demo
    from scvec.api.diff import diff as diff
    from scvec.api.embeddings import ingest_embeddings as ingest_embeddings
    from scvec.api.evaluate import evaluate as evaluate
    from scvec.api.explain import explain as explain
    from scvec.api.gene_info import gene_info as gene_info
    from scvec.api.genes import ingest_genes as ingest_genes
    from scvec.api.grow import append_cells as append_cells
    from scvec.api.grow import drop_cells as drop_cells
    from scvec.api.labels import labels as labels
    from scvec.api.legacy import import_legacy as import_legacy
    from scvec.api.maintenance import compact as compact
    from scvec.api.maintenance import doctor as doctor
    from scvec.api.maintenance import info as info
    from scvec.api.maintenance import rm as rm
    from scvec.api.maintenance import verify as verify
    from scvec.api.query import annotate as annotate
    from scvec.api.query import query as query
    from scvec.api.resolvers import resolve as resolve
    from scvec.api.search import search_genes as search_genes
    from scvec.api.search_cells import search_cells as search_cells
    from scvec.api.vector_exchange import export as export
    from scvec.api.vector_exchange import import_vectors as import_vectors
    from scvec.errors import ScvecError as ScvecError
    from scvec.web.server import serve as serve

__version__ = "0.1.0"

# Where each public name lives. The order is that of the README.
_HOMES = {
    "ingest_genes": "scvec.api.genes",
    "ingest_complement": "scvec.api.complement",
    "ingest_embeddings": "scvec.api.embeddings",
    "ingest_cells": "scvec.api.cells",
    "query": "scvec.api.query",
    "annotate": "scvec.api.query",
    "explain": "scvec.api.explain",
    "labels": "scvec.api.labels",
    "evaluate": "scvec.api.evaluate",
    "search_genes": "scvec.api.search",
    "search_cells": "scvec.api.search_cells",
    "resolve": "scvec.api.resolvers",
    "import_legacy": "scvec.api.legacy",
    "info": "scvec.api.maintenance",
    "gene_info": "scvec.api.gene_info",
    "diff": "scvec.api.diff",
    "verify": "scvec.api.maintenance",
    "doctor": "scvec.api.maintenance",
    "export": "scvec.api.vector_exchange",
    "import_vectors": "scvec.api.vector_exchange",
    "append_cells": "scvec.api.grow",
    "drop_cells": "scvec.api.grow",
    "rm": "scvec.api.maintenance",
    "compact": "scvec.api.maintenance",
    "serve": "scvec.web.server",
    "demo": "scvec.api.demo",
    "ScvecError": "scvec.errors",
}

__all__ = ["__version__", "pl", *_HOMES]


def __getattr__(name: str) -> Any:
    if name == "pl":
        return import_module("scvec.api.plots")
    if name not in _HOMES:
        raise AttributeError(f"module 'scvec' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
