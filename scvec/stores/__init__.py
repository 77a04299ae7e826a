"""What lasts: the store, its knowledge base of genes, and its indices.

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scvec.stores.index import build_index, open_index
    from scvec.stores.index.flat import FaissFlatIndex
    from scvec.stores.index.numpy_index import NumpyIndex
    from scvec.stores.knowledge.knowledge import KnowledgeBase
    from scvec.stores.store.generations import Generation
    from scvec.stores.store.journal import Journal
    from scvec.stores.store.reference_reader import StoredReference, StoredSpace
    from scvec.stores.store.store import CompactReport, Store, default_store_path
    from scvec.stores.store.transaction import Transaction
    from scvec.stores.store.vector_cache import VectorCache
    from scvec.stores.store.verify import VerifyReport

__all__ = [
    "CompactReport",
    "FaissFlatIndex",
    "Generation",
    "Journal",
    "KnowledgeBase",
    "NumpyIndex",
    "Store",
    "StoredReference",
    "StoredSpace",
    "Transaction",
    "VectorCache",
    "VerifyReport",
    "build_index",
    "default_store_path",
    "open_index",
]

_HOMES = {
    "CompactReport": "store.store",
    "FaissFlatIndex": "index.flat",
    "Generation": "store.generations",
    "Journal": "store.journal",
    "KnowledgeBase": "knowledge.knowledge",
    "NumpyIndex": "index.numpy_index",
    "Store": "store.store",
    "StoredReference": "store.reference_reader",
    "StoredSpace": "store.reference_reader",
    "Transaction": "store.transaction",
    "VectorCache": "store.vector_cache",
    "VerifyReport": "store.verify",
    "build_index": "index",
    "default_store_path": "store.store",
    "open_index": "index",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
