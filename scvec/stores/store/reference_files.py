"""The files that a reference is made of, and which of them change when cells join or leave it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.types import Float32, Int64
from scvec.stores.index import build_index, index_extension
from scvec.stores.index.distances import checked_vectors
from scvec.stores.store.manifest import LayerEntry, ReferenceEntry
from scvec.stores.store.tensors import write_json

if TYPE_CHECKING:
    import pandas as pd

    from scvec.base.protocols import VectorIndex

__all__ = ["FileSink", "new_reference", "with_layer", "with_meta", "without_rows"]


class FileSink(Protocol):
    """Where files of the next generation go; each method returns the name of the file."""

    def put_file(self, name: str, ext: str, write: Callable[[Path], None]) -> str:
        """Let ``write(path)`` write a file."""
        ...

    def put_tensors(self, name: str, tensors: Mapping[str, npt.NDArray[Any]]) -> str:
        """Write named arrays."""
        ...

    def put_table(self, name: str, table: pd.DataFrame) -> str:
        """Write a table."""
        ...


def new_reference(
    sink: FileSink,
    name: str,
    *,
    meta: Mapping[str, Any],
    tensors: Mapping[str, npt.NDArray[Any]],
    obs: pd.DataFrame,
    vectors: Float32,
    index: VectorIndex | None,
) -> ReferenceEntry:
    """Write all files of a reference (see `Transaction.put_reference`)."""
    dim = int(vectors.shape[1]) if getattr(vectors, "ndim", 0) == 2 else 0
    vectors = checked_vectors(vectors, dim, "cell vectors")
    if len(obs) != len(vectors):
        raise InputError(f"{len(obs):,} cells but {len(vectors):,} vectors", name)
    if index is None:
        index = build_index(vectors)
    kind = getattr(index, "kind", "flat")
    if (index.n, index.dim) != vectors.shape:
        raise InputError(
            f"the index holds {index.n:,} x {index.dim} vectors instead of {vectors.shape}", name
        )
    described = {k: v for k, v in meta.items() if k != "index"}
    if (settings := getattr(index, "settings", None)) is not None:
        described["index"] = settings.to_dict()
    return ReferenceEntry(
        n=len(vectors),
        dim=dim,
        meta=_put_meta(sink, name, described),
        tensors=sink.put_tensors(f"{name}.model", tensors),
        obs=sink.put_table(f"{name}.obs", obs),
        vectors=sink.put_tensors(f"{name}.vectors", {"vectors": vectors}),
        index=sink.put_file(f"{name}.index", index_extension(kind), index.save),
        index_kind=kind,
    )


def with_layer(
    sink: FileSink,
    name: str,
    old: ReferenceEntry,
    *,
    meta: Mapping[str, Any],
    obs: pd.DataFrame,
    vectors: Float32,
) -> ReferenceEntry:
    """Write the vectors of cells that join a reference, and the table of all its cells."""
    vectors = checked_vectors(vectors, old.dim, "cell vectors")
    n = old.n + len(vectors)
    layer = LayerEntry(
        n=len(vectors),
        vectors=sink.put_tensors(f"{name}.vectors", {"vectors": vectors}),
        index=sink.put_file(f"{name}.index", index_extension("flat"), build_index(vectors).save),
    )
    grown = replace(old, n=n, layers=(*old.layers, layer))
    return with_meta(sink, name, grown, meta, obs)


def without_rows(
    sink: FileSink,
    name: str,
    old: ReferenceEntry,
    before: Int64,
    rows: Int64,
    *,
    meta: Mapping[str, Any],
    obs: pd.DataFrame,
    tensors: Mapping[str, npt.NDArray[Any]],
) -> ReferenceEntry:
    """Write that ``rows`` are taken out of a reference, besides those ``before``, and what is left."""
    left = np.delete(np.arange(old.n + old.n_gone), before)
    gone = np.union1d(before, left[rows])
    shrunk = replace(
        old,
        n=old.n + old.n_gone - len(gone),
        tensors=sink.put_tensors(f"{name}.model", tensors),
        gone=sink.put_tensors(f"{name}.gone", {"rows": gone}),
        n_gone=len(gone),
    )
    return with_meta(sink, name, shrunk, meta, obs)


def with_meta(
    sink: FileSink,
    name: str,
    old: ReferenceEntry,
    meta: Mapping[str, Any],
    obs: pd.DataFrame | None = None,
) -> ReferenceEntry:
    """Write the JSON values of a reference, and its table where one is given."""
    if obs is not None and len(obs) != old.n:
        raise InputError(f"{len(obs):,} rows for {old.n:,} cells", name)
    table = old.obs if obs is None else sink.put_table(f"{name}.obs", obs)
    return replace(old, meta=_put_meta(sink, name, meta), obs=table)


def _put_meta(sink: FileSink, name: str, meta: Mapping[str, Any]) -> str:
    return sink.put_file(f"{name}.meta", "json", lambda path: write_json(path, dict(meta)))
