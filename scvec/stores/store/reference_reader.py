"""Spaces and references as they lie in a generation, read when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError, StoreError
from scvec.base.types import Float32, Int64, Space, text_sha256
from scvec.stores.index import build_index, index_extension, open_index
from scvec.stores.index.distances import checked_vectors
from scvec.stores.index.shards import LayeredIndex
from scvec.stores.store.manifest import LayerEntry, ReferenceEntry, SpaceEntry
from scvec.stores.store.tensors import map_vectors, read_json, read_table, read_tensors, write_json

if TYPE_CHECKING:
    import pandas as pd

    from scvec.base.types import VectorIndex
    from scvec.stores.index import AnyIndex

__all__ = [
    "SAME_AS",
    "FileSink",
    "FileSource",
    "StoredReference",
    "StoredSpace",
    "new_reference",
    "with_layer",
    "with_meta",
    "without_rows",
]


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


#: Where the description of a reference keeps its earlier fingerprints.
SAME_AS = "same_as"


class FileSource(Protocol):
    """Where files of a generation come from."""

    def path_of(self, name: str) -> Path:
        """Return the path of a file that has been checked."""
        ...


def _vectors(source: FileSource, name: str, n: int, dim: int) -> Float32:
    path = source.path_of(name)
    vectors = map_vectors(path)
    if vectors.shape != (n, dim):
        raise _mismatch(path, f"vectors are {vectors.shape} instead of {(n, dim)}")
    return vectors


def _table(source: FileSource, name: str, n: int) -> pd.DataFrame:
    path = source.path_of(name)
    table = read_table(path)
    if len(table) != n:
        raise _mismatch(path, f"a table has {len(table):,} rows instead of {n:,}")
    return table


def _mismatch(path: Path, what: str) -> StoreError:
    return StoreError(
        f"files of the store do not belong together: {what}",
        str(path),
        "run `scvec verify`, then ingest again",
    )


class StoredSpace:
    """Gene vectors of one embedding space.

    Attributes
    ----------
    space
        What makes its vectors comparable.
    n
        Number of genes.
    """

    def __init__(self, source: FileSource, entry: SpaceEntry) -> None:
        self._source = source
        self._entry = entry
        self.space: Space = entry.space
        self.n = entry.n
        self.index_kind = entry.index_kind

    @cached_property
    def genes(self) -> pd.DataFrame:
        """Table of n rows: gene_id, species, symbol, text_sha256."""
        return _table(self._source, self._entry.genes, self.n)

    @cached_property
    def vectors(self) -> Float32:
        """(n, dim) float32, one row per gene, read-only, mapped from the disk."""
        return _vectors(self._source, self._entry.vectors, self.n, self.space.dim)

    @cached_property
    def index(self) -> VectorIndex:
        """Index of the vectors."""
        path = self._source.path_of(self._entry.index)
        return open_index(path, self.index_kind, n=self.n, dim=self.space.dim)


class StoredReference:
    """Labelled cells.

    Attributes
    ----------
    name
        Its name in the store.
    n, dim
        Number of cells, length of their vectors.
    """

    def __init__(self, source: FileSource, name: str, entry: ReferenceEntry) -> None:
        self._source = source
        self._entry = entry
        self.name = name
        self.n = entry.n
        self.dim = entry.dim
        self.index_kind = entry.index_kind

    @property
    def entry(self) -> ReferenceEntry:
        """The files it is made of."""
        return self._entry

    def path_of(self, name: str) -> Path:
        """Return the path of one of its files, checked."""
        return self._source.path_of(name)

    @property
    def is_whole(self) -> bool:
        """True if its vectors lie in one file, and no cell has left it."""
        return self._entry.is_whole

    @property
    def n_layers(self) -> int:
        """How often cells joined it since its vectors were last put together."""
        return len(self._entry.layers)

    @property
    def n_later(self) -> int:
        """Number of cells that joined it since, gone or not."""
        return sum(layer.n for layer in self._entry.layers)

    @property
    def n_gone(self) -> int:
        """Number of cells that were taken out and whose vectors are still there."""
        return self._entry.n_gone

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that name its cells and its model, whatever its labels are mapped to."""
        return self._named(self._entry.tensors, self._entry.obs)

    @property
    def cells_fingerprint(self) -> str:
        """Sixteen hex digits that name its vectors and its model, whatever its obs says of the cells."""
        return self._named(self._entry.tensors)

    @property
    def same_as(self) -> list[str]:
        """Fingerprints that it had before `compact` put its vectors together."""
        found = self.meta.get(SAME_AS, [])
        return [str(name) for name in found] if isinstance(found, list) else []

    def is_the_one(self, fingerprint: str) -> bool:
        """True if this is, or was before `compact`, the fingerprint of the reference or of its cells."""
        return fingerprint in (self.fingerprint, self.cells_fingerprint, *self.same_as)

    def _named(self, *files: str) -> str:
        entry = self._entry
        later = [layer.vectors for layer in entry.layers] + [entry.gone] * bool(entry.gone)
        return text_sha256(" ".join([*files, entry.vectors, *later]))[:16]

    def rows_where(self, where: str | None) -> Int64 | None:
        """Return the rows that a SQL condition over obs holds for; None where there is no condition."""
        if where is None:
            return None
        from scvec.stores.knowledge.where import rows_where

        return rows_where(self.obs, where)

    @cached_property
    def meta(self) -> dict[str, Any]:
        """JSON values: all that made the reference."""
        path = self._source.path_of(self._entry.meta)
        meta = read_json(path)
        if not isinstance(meta, dict):
            raise _mismatch(path, "the description of a reference is no JSON object")
        return meta

    @cached_property
    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Named arrays: encoder, head, calibration, statistics."""
        return read_tensors(self._source.path_of(self._entry.tensors))

    @cached_property
    def obs(self) -> pd.DataFrame:
        """Table of the n cells."""
        return _table(self._source, self._entry.obs, self.n)

    @cached_property
    def vectors(self) -> Float32:
        """(n, dim) float32, one row per cell, read-only: mapped from the disk, or put together in memory."""
        layers = self._layer_vectors
        if self.is_whole:
            return layers[0]
        together = np.concatenate(layers) if len(layers) > 1 else layers[0]
        left = np.delete(together, self.gone, axis=0) if self.n_gone else together
        left.flags.writeable = False
        return left

    @cached_property
    def gone(self) -> Int64:
        """Numbers of the rows that were taken out, ascending, counted through all layers."""
        entry = self._entry
        if not entry.gone:
            return np.empty(0, dtype=np.int64)
        path = self._source.path_of(entry.gone)
        rows = read_tensors(path).get("rows", np.empty(0))
        if rows.shape != (entry.n_gone,) or rows.dtype != np.int64:
            raise _mismatch(path, f"{rows.shape} rows were taken out instead of {entry.n_gone:,}")
        return rows

    @cached_property
    def index(self) -> AnyIndex | LayeredIndex:
        """Index of the vectors."""
        first, *later = self._open_layers()
        # Exact indices are searched as one: all of them, or those beside an approximate one.
        into = first if first.kind != "ivf" else later.pop(0) if later else first
        for layer in later:
            into.add(layer.vectors())
        layers = [first] if into is first else [first, into]
        if len(layers) == 1 and not self.n_gone:
            return first
        try:
            return LayeredIndex(layers, self.gone)
        except ValueError as error:
            raise _mismatch(self._source.path_of(self._entry.index), str(error)) from error

    def _open_layers(self) -> list[AnyIndex]:
        entry = self._entry
        path, n = self._source.path_of(entry.index), entry.n_first
        if self.index_kind != "ivf":
            first = open_index(path, self.index_kind, n=n, dim=self.dim)
        else:
            settings = self.meta.get("index")
            settings = settings if isinstance(settings, dict) else None
            rows = self._layer_vectors[0]
            first = open_index(path, "ivf", n=n, dim=self.dim, vectors=rows, settings=settings)
        later = [
            open_index(self._source.path_of(layer.index), n=layer.n, dim=self.dim) for layer in entry.layers
        ]
        return [first, *later]

    @cached_property
    def _layer_vectors(self) -> list[Float32]:
        entry = self._entry
        first = _vectors(self._source, entry.vectors, entry.n_first, self.dim)
        return [first, *(_vectors(self._source, layer.vectors, layer.n, self.dim) for layer in entry.layers)]

    def layers(self) -> list[tuple[AnyIndex, Float32]]:
        """Return index and vectors of the first cells, and of those that joined them, gone or not."""
        return list(zip(self._open_layers(), self._layer_vectors, strict=True))

    def searcher(self, *, exact: bool = False, recall: float | None = None) -> VectorIndex:
        """Return the index as it is to search: an approximate one at all, or as far as a recall takes.

        Flat indices are exact and stay as they are.

        Raises
        ------
        InputError
            The recall is no share.
        """
        from scvec.stores.index.ivf import IvfIndex

        index = self.index
        first, *later = index.layers if isinstance(index, LayeredIndex) else [index]
        if not isinstance(first, IvfIndex) or (recall is None and not exact):
            return index
        asked = first.exact() if exact or recall is None else first.at_recall(recall)
        return index.with_layers([asked, *later]) if isinstance(index, LayeredIndex) else asked
