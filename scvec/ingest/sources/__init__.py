"""Services that scvec asks over the network.

A new source of genes is one file and one line in SOURCES, one of markers a line in MARKER_SOURCES.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from scvec.ingest.sources.http import GeneSource, MarkerSource

__all__ = ["MARKER_SOURCES", "SOURCES", "gene_source", "load_marker_source", "load_source", "marker_source"]

#: Name of ``--source`` -> module that registers it, imported on first use.
SOURCES = {"ncbi": "scvec.ingest.sources.ncbi", "mygene": "scvec.ingest.sources.mygene"}

#: The same of ``scvec ingest markers``.
MARKER_SOURCES = {"cellguide": "scvec.ingest.sources.cellguide"}

_registered: dict[str, type[Any]] = {}
S = TypeVar("S", bound=type)


def gene_source(name: str) -> Callable[[S], S]:
    """Register a subclass of `GeneSource` or `MarkerSource` (scvec.ingest.sources.http) under its name."""

    def register(source: S) -> S:
        source.name = name  # type: ignore[attr-defined]  # all sources have one
        _registered[name] = source
        return source

    return register


marker_source = gene_source


def load_source(name: str) -> type[GeneSource]:
    """Return the source class with a name in :data:`SOURCES`."""
    import_module(SOURCES[name])
    return _registered[name]


def load_marker_source(name: str) -> type[MarkerSource]:
    """Return the source class with a name in :data:`MARKER_SOURCES`."""
    import_module(MARKER_SOURCES[name])
    return _registered[name]
