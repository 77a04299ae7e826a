"""Spaces and references of a generation; their files are read on first use."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from scvec.base.errors import StoreError
from scvec.base.types import Float32, Int64, Space, text_sha256
from scvec.stores.index import index_class, index_kinds, open_index
from scvec.stores.index.distances import Index
from scvec.stores.index.shards import SegmentedIndex
from scvec.stores.store.files import map_vectors, read_json, read_table, read_tensors
from scvec.stores.store.manifest import ReferenceEntry, SpaceEntry

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SAME_AS", "FileSource", "StoredReference", "StoredSpace"]


#: Key of a reference's ``meta`` that lists its earlier fingerprints.
SAME_AS = "same_as"


class FileSource(Protocol):
    """A source of files: a generation or a transaction."""

    def path_of(self, name: str) -> Path:
        """Return the path of a file, after a check of size and SHA-256."""
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
        The settings that make the vectors comparable.
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
        """(n, dim) float32, one row per gene; read-only and memory-mapped."""
        return _vectors(self._source, self._entry.vectors, self.n, self.space.dim)

    @cached_property
    def index(self) -> Index:
        """Index of the vectors."""
        path = self._source.path_of(self._entry.index)
        return open_index(path, self.index_kind, n=self.n, dim=self.space.dim)


class StoredReference:
    """Labelled cells.

    Attributes
    ----------
    name
        Name of the reference in the store.
    n, dim
        Number of cells, and length of their vectors.
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
        """Entry of the manifest, which lists the files of the reference."""
        return self._entry

    def path_of(self, name: str) -> Path:
        """Return the path of one of its files, after a check of size and SHA-256."""
        return self._source.path_of(name)

    @property
    def is_whole(self) -> bool:
        """True if the reference has one segment and no deleted cells."""
        return self._entry.is_whole

    @property
    def n_segments(self) -> int:
        """Number of segments (files of vectors): one, and one more for each append of cells."""
        return 1 + len(self._entry.appended)

    @property
    def n_appended(self) -> int:
        """Number of cells appended since the last merge of segments, deleted cells included."""
        return sum(segment.n for segment in self._entry.appended)

    @property
    def n_deleted(self) -> int:
        """Number of deleted cells whose vectors are still in the files."""
        return self._entry.n_deleted

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify cells and model; a change of the label mapping does not change them."""
        return self._named(self._entry.tensors, self._entry.obs)

    @property
    def cells_fingerprint(self) -> str:
        """16 hex digits that identify vectors and model; a change of obs does not change them."""
        return self._named(self._entry.tensors)

    @property
    def same_as(self) -> list[str]:
        """Fingerprints of this reference before `compact` merged its segments."""
        found = self.meta.get(SAME_AS, [])
        return [str(name) for name in found] if isinstance(found, list) else []

    def has_fingerprint(self, fingerprint: str) -> bool:
        """Return whether a fingerprint belongs to this reference, now or before `compact` merged it."""
        return fingerprint in (self.fingerprint, self.cells_fingerprint, *self.same_as)

    def _named(self, *files: str) -> str:
        entry = self._entry
        later = [segment.vectors for segment in entry.appended] + [entry.deleted] * bool(entry.deleted)
        return text_sha256(" ".join([*files, entry.vectors, *later]))[:16]

    def rows_where(self, where: str | None) -> Int64 | None:
        """Return the rows of obs that match a SQL condition; None if ``where`` is None."""
        if where is None:
            return None
        from scvec.stores.knowledge.where import rows_where

        return rows_where(self.obs, where)

    @cached_property
    def meta(self) -> dict[str, Any]:
        """Description of the reference as JSON values: its source, settings and statistics."""
        path = self._source.path_of(self._entry.meta)
        meta = read_json(path)
        if not isinstance(meta, dict):
            raise _mismatch(path, "the description of a reference is not a JSON object")
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
        """(n, dim) float32, one row per cell, read-only: memory-mapped, or merged in memory from segments."""
        parts = self._segment_vectors
        if self.is_whole:
            return parts[0]
        merged = np.concatenate(parts) if len(parts) > 1 else parts[0]
        left = np.delete(merged, self.deleted, axis=0) if self.n_deleted else merged
        left.flags.writeable = False
        return left

    @cached_property
    def deleted(self) -> Int64:
        """(n_deleted,) int64 deleted rows, ascending; rows are numbered through all segments."""
        entry = self._entry
        if not entry.deleted:
            return np.empty(0, dtype=np.int64)
        path = self._source.path_of(entry.deleted)
        rows = read_tensors(path).get("rows", np.empty(0))
        if rows.shape != (entry.n_deleted,) or rows.dtype != np.int64:
            raise _mismatch(path, f"{rows.shape} rows are deleted instead of {entry.n_deleted:,}")
        return rows

    @cached_property
    def index(self) -> Index:
        """Index of the vectors."""
        first, *later = self._open_segments()
        # Merge all exact segments into one index, because one search is faster. An approximate first segment
        # stays separate.
        into = first if first.is_exact else later.pop(0) if later else first
        for segment in later:
            into.add(segment.vectors())
        segments = [first] if into is first else [first, into]
        if len(segments) == 1 and not self.n_deleted:
            return first
        try:
            return SegmentedIndex(segments, self.deleted)
        except ValueError as error:
            raise _mismatch(self._source.path_of(self._entry.index), str(error)) from error

    def _open_segments(self) -> list[Index]:
        entry = self._entry
        path, n, kind = self._source.path_of(entry.index), entry.n_first, self.index_kind
        if kind not in index_kinds() or index_class(kind).is_exact:
            first = open_index(path, kind, n=n, dim=self.dim)
        else:
            rows, settings = self._segment_vectors[0], self.meta.get("index")
            first = open_index(path, kind, n=n, dim=self.dim, vectors=rows, settings=settings)
        later = [open_index(self._source.path_of(s.index), n=s.n, dim=self.dim) for s in entry.appended]
        return [first, *later]

    @cached_property
    def _segment_vectors(self) -> list[Float32]:
        entry = self._entry
        first = _vectors(self._source, entry.vectors, entry.n_first, self.dim)
        return [first, *(_vectors(self._source, s.vectors, s.n, self.dim) for s in entry.appended)]

    def segments(self) -> list[tuple[Index, Float32]]:
        """Return (index, vectors) of each segment, deleted rows included."""
        return list(zip(self._open_segments(), self._segment_vectors, strict=True))

    def searcher(self, *, exact: bool = False, recall: float | None = None) -> Index:
        """Return an index for searching.

        Parameters
        ----------
        exact
            Search all vectors, also in an approximate index.
        recall
            Expected recall (0-1) of an approximate index; None keeps the stored setting. Exact indices ignore
            it.

        Raises
        ------
        InputError
            The recall is not between 0 and 1.
        """
        index = self.index
        first, *later = index.segments if isinstance(index, SegmentedIndex) else [index]
        if first.is_exact or (recall is None and not exact):
            return index
        tuned = first.exact() if exact or recall is None else first.at_recall(recall)
        return index.with_segments([tuned, *later]) if isinstance(index, SegmentedIndex) else tuned
