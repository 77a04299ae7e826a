"""Services that scvec asks over the network.

A new source of genes is one file and one line in SOURCES, one of markers a line in MARKER_SOURCES.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from scvec.ingest.sources.http import GeneSource, MarkerSource

__all__ = ["MARKER_SOURCES", "SOURCES", "gene_source", "load_marker_source", "load_source", "marker_source"]

#: Name of ``--source`` -> module that registers it, imported on first use.
SOURCES = {"ncbi": "scvec.ingest.sources.ncbi", "mygene": "scvec.ingest.sources.mygene"}

#: The same of ``scvec ingest markers``.
MARKER_SOURCES = {"cellguide": "scvec.ingest.sources.cellguide"}

_registered: dict[str, type[GeneSource]] = {}
_of_markers: dict[str, type[MarkerSource]] = {}
S = TypeVar("S", bound="type[GeneSource]")
M = TypeVar("M", bound="type[MarkerSource]")


def gene_source(name: str) -> Callable[[S], S]:
    """Register a subclass of :class:`~scvec.ingest.sources.http.GeneSource` under a name for users."""

    def register(source: S) -> S:
        source.name = name
        _registered[name] = source
        return source

    return register


def load_source(name: str) -> type[GeneSource]:
    """Return the source class with a name in :data:`SOURCES`."""
    import_module(SOURCES[name])
    return _registered[name]


def marker_source(name: str) -> Callable[[M], M]:
    """Register a subclass of :class:`~scvec.ingest.sources.http.MarkerSource` under a name for users."""

    def register(source: M) -> M:
        source.name = name
        _of_markers[name] = source
        return source

    return register


def load_marker_source(name: str) -> type[MarkerSource]:
    """Return the source of a name in :data:`MARKER_SOURCES`."""
    import_module(MARKER_SOURCES[name])
    return _of_markers[name]
