"""scvec: an embedding store and retrieval toolkit for single-cell RNA-seq.

``import scvec`` loads nothing heavy: the functions below are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scvec.base.display import ProgressBar as ProgressBar
    from scvec.base.errors import ScvecError as ScvecError
    from scvec.model.query_options import QueryOptions as QueryOptions
    from scvec.model.resolvers import resolve as resolve
    from scvec.report import plots as pl
    from scvec.report.write_report import write_report as write_report
    from scvec.web.mcp import serve_mcp as serve_mcp
    from scvec.web.server import serve as serve
    from scvec.workflows.admin import compact as compact
    from scvec.workflows.admin import doctor as doctor
    from scvec.workflows.admin import info as info
    from scvec.workflows.admin import rm as rm
    from scvec.workflows.admin import verify as verify
    from scvec.workflows.append_and_drop import append_cells as append_cells
    from scvec.workflows.append_and_drop import drop_cells as drop_cells
    from scvec.workflows.complement import ingest_complement as ingest_complement
    from scvec.workflows.demo import demo as demo
    from scvec.workflows.diff import diff as diff
    from scvec.workflows.embed_genes import ingest_embeddings as ingest_embeddings
    from scvec.workflows.evaluate import evaluate as evaluate
    from scvec.workflows.explain import explain as explain
    from scvec.workflows.export import export as export
    from scvec.workflows.export import import_vectors as import_vectors
    from scvec.workflows.gene_info import gene_info as gene_info
    from scvec.workflows.import_legacy import import_legacy as import_legacy
    from scvec.workflows.ingest_cells import ingest_cells as ingest_cells
    from scvec.workflows.ingest_census import CensusOptions as CensusOptions
    from scvec.workflows.ingest_census import ingest_census as ingest_census
    from scvec.workflows.ingest_genes import ingest_genes as ingest_genes
    from scvec.workflows.ingest_markers import ingest_markers as ingest_markers
    from scvec.workflows.ingest_options import IngestOptions as IngestOptions
    from scvec.workflows.labels import labels as labels
    from scvec.workflows.name import name as name
    from scvec.workflows.pack import pack as pack
    from scvec.workflows.pull import pull as pull
    from scvec.workflows.query import annotate as annotate
    from scvec.workflows.query import query as query
    from scvec.workflows.search_cells import search_cells as search_cells
    from scvec.workflows.search_genes import search_genes as search_genes

__version__ = "0.1.0"

# Where each public name lives. The order is that of the README.
_HOMES = {
    "ingest_genes": "scvec.workflows.ingest_genes",
    "ingest_complement": "scvec.workflows.complement",
    "ingest_embeddings": "scvec.workflows.embed_genes",
    "ingest_cells": "scvec.workflows.ingest_cells",
    "name": "scvec.workflows.name",
    "ingest_markers": "scvec.workflows.ingest_markers",
    "ingest_census": "scvec.workflows.ingest_census",
    "CensusOptions": "scvec.workflows.ingest_census",
    "pull": "scvec.workflows.pull",
    "pack": "scvec.workflows.pack",
    "IngestOptions": "scvec.workflows.ingest_options",
    "query": "scvec.workflows.query",
    "annotate": "scvec.workflows.query",
    "QueryOptions": "scvec.model.query_options",
    "write_report": "scvec.report.write_report",
    "explain": "scvec.workflows.explain",
    "labels": "scvec.workflows.labels",
    "evaluate": "scvec.workflows.evaluate",
    "search_genes": "scvec.workflows.search_genes",
    "search_cells": "scvec.workflows.search_cells",
    "resolve": "scvec.model.resolvers",
    "import_legacy": "scvec.workflows.import_legacy",
    "info": "scvec.workflows.admin",
    "gene_info": "scvec.workflows.gene_info",
    "diff": "scvec.workflows.diff",
    "verify": "scvec.workflows.admin",
    "doctor": "scvec.workflows.admin",
    "export": "scvec.workflows.export",
    "import_vectors": "scvec.workflows.export",
    "append_cells": "scvec.workflows.append_and_drop",
    "drop_cells": "scvec.workflows.append_and_drop",
    "rm": "scvec.workflows.admin",
    "compact": "scvec.workflows.admin",
    "serve": "scvec.web.server",
    "serve_mcp": "scvec.web.mcp",
    "demo": "scvec.workflows.demo",
    "ProgressBar": "scvec.base.display",
    "ScvecError": "scvec.base.errors",
}

__all__ = ["__version__", "pl", *_HOMES]


def __getattr__(name: str) -> Any:
    if name == "pl":
        return import_module("scvec.report.plots")
    if name not in _HOMES:
        raise AttributeError(f"module 'scvec' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
