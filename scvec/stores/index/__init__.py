"""Nearest-neighbour indices: the registry of kinds, and functions that build or open an index.

A new kind is one file with a subclass of `scvec.stores.index.distances.Index` under :func:`index`, and one
line in :data:`MODULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from scvec.base.errors import InputError, StoreError, check_choice

if TYPE_CHECKING:
    from scvec.base.types import Float32, Int64
    from scvec.stores.index.distances import Index

__all__ = ["MODULES", "build_index", "index", "index_class", "index_kinds", "open_index"]

#: Kind of index -> module that registers it. The modules load on first use, so that ``--help`` is fast.
MODULES = {
    "flat": "scvec.stores.index.flat",
    "ivf": "scvec.stores.index.ivf",
}
_registered: dict[str, type[Index]] = {}
_Kind = TypeVar("_Kind", bound="type[Index]")


def index(kind: str, *, extension: str, exact: bool) -> Callable[[_Kind], _Kind]:
    """Register a class as a kind of index.

    Parameters
    ----------
    kind
        Name of the kind, a key of :data:`MODULES`.
    extension
        File extension.
    exact
        True if the index returns the same neighbours, order and distances as brute force in float64.
    """

    def register(made: _Kind) -> _Kind:
        made.kind, made.extension, made.is_exact = kind, extension, exact
        _registered[kind] = made
        return made

    return register


def index_kinds() -> tuple[str, ...]:
    """Return the names of all kinds."""
    return tuple(MODULES)


def index_class(kind: str) -> type[Index]:
    """Return the class of a kind of index; raise InputError for an unknown kind."""
    check_choice("--index", kind, MODULES)
    if kind not in _registered:
        import_module(MODULES[kind])
    return _registered[kind]


def build_index(
    vectors: Float32, kind: str = "flat", *, recall: float = 0.95, seed: int = 0, batches: Int64 | None = None
) -> Index:
    """Build an index.

    Parameters
    ----------
    vectors
        (n, dim) float32, finite.
    kind
        Kind of index, a key of :data:`MODULES`.
    recall, seed
        For approximate kinds: fraction (0-1) of neighbours to find, and seed of the training.
    batches
        (n,) batch number of each row; ``ivf`` uses it to reach the recall for unseen batches.

    Raises
    ------
    InputError
        The kind is unknown, or the vectors are not finite (n, dim) float32.
    """
    made = index_class(kind)
    if getattr(vectors, "ndim", 0) != 2 or vectors.shape[1] < 1:
        raise InputError("vectors must be an (n, dim) float32 array")
    return made.build(vectors, recall=recall, seed=seed, batches=batches)


def open_index(
    path: Path,
    kind: str = "flat",
    *,
    n: int | None = None,
    dim: int | None = None,
    vectors: Float32 | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Index:
    """Load an index. The caller has checked the SHA-256 of the file.

    Parameters
    ----------
    path
        File of the index.
    kind
        Kind of index, a key of :data:`MODULES`.
    n, dim
        Expected number and length of the vectors; None if unknown.
    vectors, settings
        See `Index.load`.

    Raises
    ------
    StoreError
        The file cannot be read, or the index has another kind or size.
    """
    try:
        made = index_class(kind)
    except InputError as error:
        raise StoreError(f"an index has the unknown kind {kind!r}", str(path), "update scvec") from error
    found = made.load(path, vectors, settings)
    if (n is not None and found.n != n) or (dim is not None and found.dim != dim):
        what = f"an index holds {found.n:,} x {found.dim} vectors instead of {n} x {dim}"
        raise StoreError(what, str(path), "ingest again")
    return found
