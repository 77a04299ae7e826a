"""What lasts: the store, its knowledge base of genes, and its indices.

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scvec.stores.faiss_index import FaissFlatIndex
    from scvec.stores.generations import Generation
    from scvec.stores.indices import build_index, open_index
    from scvec.stores.journal import Journal
    from scvec.stores.knowledge import KnowledgeBase
    from scvec.stores.numpy_index import NumpyIndex
    from scvec.stores.store import CompactReport, Store, default_store_path
    from scvec.stores.stored import StoredReference, StoredSpace
    from scvec.stores.transaction import Transaction
    from scvec.stores.vector_cache import VectorCache
    from scvec.stores.verification import VerifyReport

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
    "CompactReport": "store",
    "FaissFlatIndex": "faiss_index",
    "Generation": "generations",
    "Journal": "journal",
    "KnowledgeBase": "knowledge",
    "NumpyIndex": "numpy_index",
    "Store": "store",
    "StoredReference": "stored",
    "StoredSpace": "stored",
    "Transaction": "transaction",
    "VectorCache": "vector_cache",
    "VerifyReport": "verification",
    "build_index": "indices",
    "default_store_path": "store",
    "open_index": "indices",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
