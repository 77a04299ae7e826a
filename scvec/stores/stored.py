"""Spaces and references as they lie in a generation, read when asked for."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

from scvec.errors import StoreError
from scvec.stores.indices import open_index
from scvec.stores.manifest import ReferenceEntry, SpaceEntry
from scvec.stores.tensors import map_vectors, read_json, read_table, read_tensors
from scvec.types import Float32, Space, text_sha256

if TYPE_CHECKING:
    import pandas as pd

    from scvec.protocols import VectorIndex

__all__ = ["FileSource", "StoredReference", "StoredSpace"]


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
    def fingerprint(self) -> str:
        """Sixteen hex digits that name its cells and its model, whatever its labels are mapped to."""
        entry = self._entry
        return text_sha256(" ".join([entry.tensors, entry.obs, entry.vectors]))[:16]

    @property
    def cells_fingerprint(self) -> str:
        """Sixteen hex digits that name its vectors and its model, whatever its obs says of the cells."""
        return text_sha256(f"{self._entry.tensors} {self._entry.vectors}")[:16]

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
        """(n, dim) float32, one row per cell, read-only, mapped from the disk."""
        return _vectors(self._source, self._entry.vectors, self.n, self.dim)

    @cached_property
    def index(self) -> VectorIndex:
        """Index of the vectors."""
        path = self._source.path_of(self._entry.index)
        if self.index_kind != "ivf":
            return open_index(path, self.index_kind, n=self.n, dim=self.dim)
        settings = self.meta.get("index")
        settings = settings if isinstance(settings, dict) else None
        return open_index(path, "ivf", n=self.n, dim=self.dim, vectors=self.vectors, settings=settings)

    def searcher(self, *, exact: bool = False, recall: float | None = None) -> VectorIndex:
        """Return the index as it is to search: an approximate one at all, or as far as a recall takes.

        Flat indices are exact and stay as they are.

        Raises
        ------
        InputError
            The recall is no share.
        """
        from scvec.stores.ivf_index import IvfIndex

        if not isinstance(self.index, IvfIndex):
            return self.index
        if exact:
            return self.index.exact()
        return self.index if recall is None else self.index.at_recall(recall)
