"""Registry of gene services on the network. A new one is one file and one line in :data:`SOURCES`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from scvec.ingest.sources.http import GeneSource

__all__ = ["SOURCES", "gene_source", "load_source"]

#: Name of ``--source`` -> module that registers it, imported on first use.
SOURCES = {"ncbi": "scvec.ingest.sources.ncbi", "mygene": "scvec.ingest.sources.mygene"}

_registered: dict[str, type[GeneSource]] = {}
S = TypeVar("S", bound="type[GeneSource]")


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
