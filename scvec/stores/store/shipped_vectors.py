"""Vectors of the shipped gene texts, so that no machine has to encode them again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.types import Float32, Int64, Space
from scvec.stores.knowledge.snapshot import Snapshot

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["BASES", "KEY_BYTES", "VECTORS", "ShippedVectors"]

#: Tables of the snapshot: one row per text, and the base vectors that the rows are differences from.
VECTORS, BASES = "gene_vectors", "gene_vector_bases"
#: Bytes of a text's SHA-256 that are its key: of a hundred thousand texts, no two share them by chance.
KEY_BYTES = 16


class ShippedVectors:
    """Vectors of one space by the SHA-256 of their text.

    A row holds the number of a base vector, int8 differences from it and one float32 scale::

        vector = scale * (base + differences)

    The scale makes its length 1. Its cosine to the vector that the model gives is 0.999 or more. Both
    operations round alike on every machine, so a text has the same vector everywhere.

    Parameters
    ----------
    snapshot
        By default the snapshot in the package. A snapshot without the two tables has a vector of no text.
    """

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        self._given = snapshot

    def rows(self, space: Space, shas: Sequence[str]) -> Int64:
        """Return (n,) int64 rows of texts by their SHA-256 in hex; -1 where there is no vector of this space.

        Raises
        ------
        StoreError
            If a file of the package is missing or damaged.
        """
        if space.fingerprint != self._fingerprint or not len(shas):
            return np.full(len(shas), -1, dtype=np.int64)
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = pa.array([bytes.fromhex(sha)[:KEY_BYTES] for sha in shas], pa.binary(KEY_BYTES))
        found = pc.index_in(wanted, value_set=self._table.column("key"))
        return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), dtype=np.int64)

    def take(self, rows: Int64) -> Float32:
        """Return (n, dim) float32 vectors of rows, of length 1.

        Raises
        ------
        StoreError
            If a file of the package is missing or damaged.
        """
        table = self._table
        base, scale = (table.column(name).to_numpy()[rows] for name in ("base", "scale"))
        vectors: Float32 = self._bases[base]
        vectors += _matrix(table, "differences", np.int8)[rows]
        vectors *= scale[:, None]
        return vectors

    @cached_property
    def _snapshot(self) -> Snapshot:
        return Snapshot.open() if self._given is None else self._given

    @cached_property
    def _fingerprint(self) -> str:
        """The space of the vectors; empty where the snapshot has none."""
        entry = self._snapshot.manifest["tables"].get(VECTORS)
        return Space.from_dict(entry["space"]).fingerprint if entry else ""

    @cached_property
    def _table(self) -> pa.Table:
        return self._snapshot.table(VECTORS).combine_chunks()

    @cached_property
    def _bases(self) -> Float32:
        return _matrix(self._snapshot.table(BASES).combine_chunks(), "vector", np.float32)


def _matrix(table: pa.Table, name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return a column of binaries of one length as the (n, dim) array that they are."""
    [chunk] = table.column(name).chunks
    return np.frombuffer(chunk.buffers()[1], dtype=dtype).reshape(len(chunk), -1)
