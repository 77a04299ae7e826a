"""Cache of text vectors, keyed by content, so that no text is encoded twice."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.types import Bool, Float32, Int64, Space
from scvec.stores.knowledge.snapshot import Snapshot
from scvec.stores.store.journal import AppendLog

if TYPE_CHECKING:
    import pyarrow as pa

    from scvec.stores.store.reference_reader import StoredSpace

__all__ = ["BASES", "KEY_BYTES", "VECTORS", "ShippedVectors", "VectorCache"]

#: Tables of the snapshot: one row per text with differences from a base vector, and the base vectors.
VECTORS, BASES = "gene_vectors", "gene_vector_bases"
#: Length of a text's key, in bytes of its SHA-256. Chance collisions of 16 bytes do not occur in practice.
KEY_BYTES = 16


class ShippedVectors:
    """Vectors of one space that ship with the package, keyed by the SHA-256 of their text.

    A row holds the number of a base vector, int8 differences from it and one float32 scale::

        vector = scale * (base + differences)

    The scale makes the length of the vector 1. Its cosine to the model's own vector is 0.999 or more. Sum and
    product round in the same way on every machine, so a text has the same vector everywhere.

    Parameters
    ----------
    snapshot
        The snapshot with the vectors; None for the snapshot in the package. A snapshot may lack the two
        tables.
    """

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        self._given = snapshot

    def rows(self, space: Space, shas: Sequence[str]) -> Int64:
        """Return (n,) int64 rows of texts, found by their SHA-256 in hex; -1 for texts without a vector.

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
        """Return the (n, dim) float32 unit vectors of rows.

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
        """Fingerprint of the space; empty if the snapshot has no vectors."""
        entry = self._snapshot.manifest["tables"].get(VECTORS)
        return Space.from_dict(entry["space"]).fingerprint if entry else ""

    @cached_property
    def _table(self) -> pa.Table:
        return self._snapshot.table(VECTORS).combine_chunks()

    @cached_property
    def _bases(self) -> Float32:
        return _matrix(self._snapshot.table(BASES).combine_chunks(), "vector", np.float32)


def _matrix(table: pa.Table, name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return a column of n equally long binary values as an (n, dim) array."""
    [chunk] = table.column(name).chunks
    return np.frombuffer(chunk.buffers()[1], dtype=dtype).reshape(len(chunk), -1)


class VectorCache:
    """Vectors of texts, keyed by space and SHA-256 of the text.

    The cache looks up a text in three places, in this order: the vectors that ship with the package, the
    spaces of a generation, and a working file that survives a killed process
    (:class:`~scvec.stores.store.journal.AppendLog`). Shipped vectors come first so that a shipped text has
    the same vector in every store. :meth:`put_many` returns when its vectors are on the disk.

    Parameters
    ----------
    spaces
        Fingerprint -> space of the generation.
    work
        Working file, or None for a read-only cache. Only the holder of the writer lock may open it.
    shipped
        Shipped vectors; None for those of the package.
    """

    def __init__(
        self,
        spaces: dict[str, StoredSpace],
        work: Path | None = None,
        *,
        shipped: ShippedVectors | None = None,
    ) -> None:
        self._spaces = spaces
        self._shipped = ShippedVectors() if shipped is None else shipped
        self._rows: dict[str, dict[str, int]] = {}
        self._log = None if work is None else AppendLog(work)
        # Fingerprint -> SHA-256 of a text -> position in the working file; None before the first read.
        self._places: dict[str, dict[str, int]] | None = None
        self._worked: dict[str, Space] = {}
        #: Messages about damaged vectors that were dropped.
        self.notes: list[str] = []

    def get_many(self, space: Space, shas: Sequence[str]) -> tuple[Bool, Float32]:
        """Look up the vectors of texts.

        Parameters
        ----------
        space
            Space of the vectors.
        shas
            SHA-256 of n texts, in hex.

        Returns
        -------
        found
            (n,) bool.
        vectors
            (n, dim) float32; rows of texts that were not found are zero.
        """
        wanted = list(shas)
        vectors = np.zeros((len(wanted), space.dim), dtype=np.float32)
        numbers = self._shipped.rows(space, wanted)
        found = numbers >= 0
        if found.any():
            vectors[found] = self._shipped.take(numbers[found])
        stored = self._spaces.get(space.fingerprint)
        if stored is not None and not found.all():
            rows = self._stored_rows(stored)
            numbers = np.array([rows.get(sha, -1) for sha in wanted], dtype=np.int64)
            more = ~found & (numbers >= 0)
            vectors[more] = stored.vectors[numbers[more]]
            found |= more
        missing = [i for i in range(len(wanted)) if not found[i]]
        if missing and self._log is not None:
            worked = self._read(self._log, space, {wanted[i] for i in missing})
            for i in missing:
                vector = worked.get(wanted[i])
                if vector is not None:
                    found[i], vectors[i] = True, vector
        return found, vectors

    def count_shipped(self, space: Space, shas: Sequence[str]) -> int:
        """Return the number of texts with a vector that ships with the package."""
        return int((self._shipped.rows(space, shas) >= 0).sum())

    def put_many(self, space: Space, shas: Sequence[str], vectors: Float32) -> None:
        """Write vectors of texts to the working file.

        Parameters
        ----------
        space
            Space of the vectors.
        shas
            SHA-256 of n texts, in hex.
        vectors
            (n, dim) float32.

        Raises
        ------
        InputError
            The shape or dtype is wrong, a value is NaN or infinite, or the cache is read-only.
        """
        if vectors.ndim != 2 or vectors.shape != (len(shas), space.dim) or vectors.dtype != np.float32:
            raise InputError(
                f"vectors must be ({len(shas)}, {space.dim}) float32, not {vectors.dtype} {vectors.shape}"
            )
        if not np.isfinite(vectors).all():
            raise InputError("a text vector holds NaN or infinity", space.backbone, "check the backbone")
        if self._log is None:
            raise InputError("this cache of text vectors is read-only")
        if not len(shas):
            return
        name, places = space.fingerprint, self._found(self._log)
        rows = {sha: i for i, sha in enumerate(shas)}
        encoded = vectors.astype("<f4")
        if name not in self._worked:
            self._log.append([(["space", name, ""], json.dumps(space.to_dict(), sort_keys=True))])
            self._worked[name] = space
        written = self._log.append(
            (["vector", name, sha], base64.b64encode(encoded[i].tobytes()).decode())
            for sha, i in rows.items()
        )
        places.setdefault(name, {}).update(zip(rows, written, strict=True))

    def known_spaces(self) -> list[Space]:
        """Return the spaces with cached vectors, those of the generation first."""
        known = {fingerprint: stored.space for fingerprint, stored in self._spaces.items()}
        if self._log is not None:
            self._found(self._log)
            for name, space in self._worked.items():
                known.setdefault(name, space)
        return list(known.values())

    def drop_stored(self, spaces: dict[str, StoredSpace]) -> None:
        """Delete vectors from the working file that spaces of a committed generation hold."""
        if self._log is None:
            return
        left = {name: dict(found) for name, found in self._found(self._log).items()}
        for name, stored in spaces.items():
            for sha in stored.genes["text_sha256"].astype(str):
                left.get(name, {}).pop(sha, None)
        if left == self._places:
            return
        kept = {at for found in left.values() for at in found.values()}
        entries = self._log.entries() if kept else []
        self._log.keep([e.at for e in entries if e.at in kept or e.head[0] == "space"])
        self._places = None

    def close(self) -> None:
        """Close the working file."""
        if self._log is not None:
            self._log.close()

    def _stored_rows(self, stored: StoredSpace) -> dict[str, int]:
        fingerprint = stored.space.fingerprint
        if fingerprint not in self._rows:
            shas = stored.genes["text_sha256"].astype(str).tolist()
            self._rows[fingerprint] = {sha: i for i, sha in enumerate(shas)}
        return self._rows[fingerprint]

    def _read(self, log: AppendLog, space: Space, shas: set[str]) -> dict[str, Float32]:
        places = self._found(log).get(space.fingerprint, {})
        wanted = [sha for sha in places if sha in shas]
        good: dict[str, Float32] = {}
        for sha, body in zip(wanted, log.bodies([places[sha] for sha in wanted])):  # noqa: B905
            data = base64.b64decode(body)
            vector = np.frombuffer(data, dtype="<f4") if len(data) == 4 * space.dim else None
            if vector is not None and np.isfinite(vector).all():
                good[sha] = vector.astype(np.float32)
        bad = [sha for sha in wanted if sha not in good]
        for sha in bad:
            del places[sha]
        if bad:
            self.notes.append(f"{len(bad):,} damaged vectors in the working cache were dropped")
        return good

    def _found(self, log: AppendLog) -> dict[str, dict[str, int]]:
        """Return fingerprint -> SHA-256 -> position in the working file; the last vector of a text counts."""
        if self._places is None:
            self._places, self._worked = {}, {}
            for at, _, (kind, name, sha) in log.entries():
                if kind == "vector":
                    self._places.setdefault(name, {})[sha] = at
                else:
                    (body,) = log.bodies([at])
                    with suppress(ValueError, TypeError, KeyError):
                        self._worked[name] = Space.from_dict(json.loads(body))
            if log.aside is not None:
                n = sum(map(len, self._places.values()))
                kept = f"{n:,} vectors could be read; the file is kept as {log.aside.name}"
                self.notes.append(f"the working cache of text vectors was damaged: {kept}")
        return self._places
