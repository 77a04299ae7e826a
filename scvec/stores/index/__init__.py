"""Which index is behind a name, and how one is built or opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.errors import InputError, StoreError
from scvec.base.types import Float32, Int64

if TYPE_CHECKING:
    from scvec.stores.index.flat import FaissFlatIndex
    from scvec.stores.index.ivf import IvfIndex
    from scvec.stores.index.numpy_index import NumpyIndex

    AnyIndex = FaissFlatIndex | NumpyIndex | IvfIndex

__all__ = ["INDEX_KINDS", "build_index", "index_class", "index_extension", "open_index"]

#: Kind of index -> extension of its file. All but ``ivf`` are exact.
INDEX_KINDS = {"flat": "faiss", "numpy": "npy", "ivf": "faiss"}


def index_class(kind: str) -> type[FaissFlatIndex] | type[NumpyIndex] | type[IvfIndex]:
    """Return the class of an index kind, or raise InputError."""
    if kind == "flat":
        from scvec.stores.index.flat import FaissFlatIndex

        return FaissFlatIndex
    if kind == "numpy":
        from scvec.stores.index.numpy_index import NumpyIndex

        return NumpyIndex
    if kind == "ivf":
        from scvec.stores.index.ivf import IvfIndex

        return IvfIndex
    raise InputError(f"unknown kind of index {kind!r}", fix=f"one of: {', '.join(INDEX_KINDS)}")


def index_extension(kind: str) -> str:
    """Return the extension of files of this kind, or raise InputError."""
    index_class(kind)
    return INDEX_KINDS[kind]


def build_index(
    vectors: Float32,
    kind: str = "flat",
    *,
    recall: float = 0.95,
    seed: int = 0,
    batches: Int64 | None = None,
) -> AnyIndex:
    """Return an index of ``vectors`` (n, dim) float32.

    Parameters
    ----------
    recall, seed
        Of ``ivf``: the share of neighbours to be found, and the seed of its training.
    batches
        (n,) number of each row's batch, by which ``ivf`` is tuned for batches that it lacks.

    Raises
    ------
    InputError
        An unknown kind, or vectors that are not finite (n, dim) float32.
    """
    made: Any = index_class(kind)
    if getattr(vectors, "ndim", 0) != 2 or vectors.shape[1] < 1:
        raise InputError("vectors must be an (n, dim) float32 array")
    if kind == "ivf":
        from scvec.stores.index.ivf import IvfIndex

        return IvfIndex.build(vectors, recall=recall, seed=seed, batches=batches)
    index: FaissFlatIndex | NumpyIndex = made(int(vectors.shape[1]))
    index.add(vectors)
    return index


def open_index(
    path: Path,
    kind: str = "flat",
    *,
    n: int | None = None,
    dim: int | None = None,
    vectors: Float32 | None = None,
    settings: Mapping[str, Any] | None = None,
) -> AnyIndex:
    """Load an index whose file has been checked against its SHA-256.

    Parameters
    ----------
    n, dim
        What the index must hold, where known.
    vectors, settings
        Of ``ivf``, whose file holds neither: the vectors, and `IvfSettings.to_dict`.

    Raises
    ------
    StoreError
        Unreadable, of another kind, or of another size.
    """
    try:
        made = index_class(kind)
    except InputError as error:
        raise StoreError(f"an index is of the unknown kind {kind!r}", str(path), "update scvec") from error
    index: AnyIndex
    if kind == "ivf":
        from scvec.stores.index.ivf import IvfIndex

        if vectors is None or settings is None:
            raise StoreError("an index of the store has lost its settings", str(path), "ingest again")
        index = IvfIndex.load(path, vectors, settings)
    else:
        index = made.load(path)  # type: ignore[call-arg]
    if (n is not None and index.n != n) or (dim is not None and index.dim != dim):
        raise StoreError(
            f"an index holds {index.n:,} x {index.dim} vectors instead of {n:,} x {dim}",
            str(path),
            "ingest again",
        )
    return index
