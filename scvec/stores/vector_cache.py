"""Text vectors by content, so that no text is encoded twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scvec.errors import InputError, LockedError
from scvec.stores.files import os_errors
from scvec.stores.shipped_vectors import ShippedVectors
from scvec.types import Bool, Float32, Space

if TYPE_CHECKING:
    from scvec.stores.stored import StoredSpace

__all__ = ["VectorCache"]

_TABLE = """
CREATE TABLE IF NOT EXISTS vectors (
    space VARCHAR NOT NULL, text_sha256 VARCHAR NOT NULL, vector BLOB NOT NULL,
    PRIMARY KEY (space, text_sha256)
);
CREATE TABLE IF NOT EXISTS spaces (fingerprint VARCHAR PRIMARY KEY, space VARCHAR NOT NULL)
"""


class VectorCache:
    """Vectors of texts, keyed by space and SHA-256 of the text.

    Looks among the vectors that ship with the package, then in the spaces of a generation, then in a working
    database that outlives a killed process. Shipped vectors go first: a shipped text then has the same vector
    in every store. Each :meth:`put_many` is one transaction: a kill loses at most the batch that was being
    written.

    Parameters
    ----------
    spaces
        Fingerprint -> space of the generation.
    work
        Working database, or None to only read the spaces. Only the holder of the writer lock may open it.
    shipped
        By default those of the package.
    """

    def __init__(
        self,
        spaces: dict[str, StoredSpace],
        work: Path | None = None,
        *,
        shipped: ShippedVectors | None = None,
    ) -> None:
        self._spaces = spaces
        self._work = work
        self._shipped = ShippedVectors() if shipped is None else shipped
        self._rows: dict[str, dict[str, int]] = {}
        self._connection: Any = None
        #: What went wrong on the way and was mended.
        self.notes: list[str] = []

    def get_many(self, space: Space, shas: Sequence[str]) -> tuple[Bool, Float32]:
        """Look texts up.

        Parameters
        ----------
        space
            The space the vectors must be of.
        shas
            SHA-256 of n texts, in hex.

        Returns
        -------
        found
            (n,) bool.
        vectors
            (n, dim) float32; rows not found are zero.
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
        if missing and self._work is not None and (self._connection is not None or self._work.exists()):
            blobs = self._read(space, [wanted[i] for i in missing])
            for i in missing:
                blob = blobs.get(wanted[i])
                if blob is not None:
                    found[i], vectors[i] = True, blob
        return found, vectors

    def count_shipped(self, space: Space, shas: Sequence[str]) -> int:
        """Return how many of the texts have a vector that ships with the package."""
        return int((self._shipped.rows(space, shas) >= 0).sum())

    def put_many(self, space: Space, shas: Sequence[str], vectors: Float32) -> None:
        """Keep vectors (n, dim) float32 of texts; InputError on another shape, NaN or infinity."""
        if vectors.ndim != 2 or vectors.shape != (len(shas), space.dim) or vectors.dtype != np.float32:
            raise InputError(
                f"vectors must be ({len(shas)}, {space.dim}) float32, not {vectors.dtype} {vectors.shape}"
            )
        if not np.isfinite(vectors).all():
            raise InputError("a text vector holds NaN or infinity", space.backbone, "check the backbone")
        if self._work is None:
            raise InputError("this cache is open for reading only")
        if not len(shas):
            return
        import pyarrow as pa

        unique = {sha: i for i, sha in enumerate(shas)}
        rows = vectors.astype("<f4")
        batch = pa.table(
            {
                "space": pa.array([space.fingerprint] * len(unique), pa.string()),
                "text_sha256": pa.array(list(unique), pa.string()),
                "vector": pa.array([rows[i].tobytes() for i in unique.values()], pa.binary()),
            }
        )
        with os_errors(self._work):
            connection = self._open()
            connection.register("batch", batch)
            try:
                connection.execute("BEGIN")
                connection.execute("INSERT OR REPLACE INTO vectors SELECT * FROM batch")
                connection.execute(
                    "INSERT OR IGNORE INTO spaces VALUES (?, ?)",
                    [space.fingerprint, json.dumps(space.to_dict(), sort_keys=True)],
                )
                connection.execute("COMMIT")
            except BaseException:
                with suppress(Exception):
                    connection.execute("ROLLBACK")
                raise
            finally:
                connection.unregister("batch")

    def known_spaces(self) -> list[Space]:
        """Return the spaces of which there are vectors, those of the generation first."""
        known = {fingerprint: stored.space for fingerprint, stored in self._spaces.items()}
        if self._work is not None and (self._connection is not None or self._work.exists()):
            for fingerprint, text in self._open().execute("SELECT * FROM spaces ORDER BY ALL").fetchall():
                with suppress(ValueError, TypeError, KeyError):
                    space = Space.from_dict(json.loads(text))
                    if space.fingerprint == fingerprint:
                        known.setdefault(fingerprint, space)
        return list(known.values())

    def drop_stored(self, spaces: dict[str, StoredSpace]) -> None:
        """Forget rows of the working database that these spaces of a committed generation hold."""
        if self._work is None or (self._connection is None and not self._work.exists()):
            return
        import pyarrow as pa

        connection = self._open()
        for fingerprint, stored in spaces.items():
            kept = pa.table({"text_sha256": pa.array(stored.genes["text_sha256"].astype(str), pa.string())})
            connection.register("kept", kept)
            connection.execute(
                "DELETE FROM vectors WHERE space = ? AND text_sha256 IN (SELECT text_sha256 FROM kept)",
                [fingerprint],
            )
            connection.unregister("kept")
        (left,) = connection.execute("SELECT count(*) FROM vectors").fetchone()
        self.close()
        if left == 0:
            _remove(self._work)

    def close(self) -> None:
        """Close the working database."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _stored_rows(self, stored: StoredSpace) -> dict[str, int]:
        fingerprint = stored.space.fingerprint
        if fingerprint not in self._rows:
            shas = stored.genes["text_sha256"].astype(str).tolist()
            self._rows[fingerprint] = {sha: i for i, sha in enumerate(shas)}
        return self._rows[fingerprint]

    def _read(self, space: Space, shas: list[str]) -> dict[str, Float32]:
        import pyarrow as pa

        connection = self._open()
        connection.register("wanted", pa.table({"sha": pa.array(sorted(set(shas)), pa.string())}))
        try:
            rows = connection.execute(
                "SELECT text_sha256, vector FROM vectors JOIN wanted ON text_sha256 = sha WHERE space = ?",
                [space.fingerprint],
            ).fetchall()
        finally:
            connection.unregister("wanted")
        good: dict[str, Float32] = {}
        bad: list[str] = []
        for sha, blob in rows:
            vector = np.frombuffer(blob, dtype="<f4") if len(blob) == 4 * space.dim else None
            if vector is None or not np.isfinite(vector).all():
                bad.append(sha)
            else:
                good[sha] = vector.astype(np.float32)
        for sha in bad:
            connection.execute(
                "DELETE FROM vectors WHERE space = ? AND text_sha256 = ?", [space.fingerprint, sha]
            )
        if bad:
            self.notes.append(f"{len(bad):,} damaged vectors in the working cache were dropped")
        return good

    def _open(self) -> Any:
        if self._connection is None:
            if self._work is None:
                raise InputError("this cache is open for reading only")
            import duckdb

            try:
                self._connection = _connect(self._work)
            except duckdb.Error as error:
                with os_errors(self._work):
                    if any(text in str(error) for text in ("No space left", "quota exceeded")):
                        raise
                if "set lock" in str(error):
                    what = "another process uses the working cache of the store"
                    raise LockedError(what, str(self._work), "wait for it to end") from error
                # Only a cache: what it held can be encoded again.
                self.notes.append("the working cache of text vectors was damaged; begun anew")
                _remove(self._work)
                self._connection = _connect(self._work)
        return self._connection


def _connect(path: Path) -> Any:
    import duckdb

    connection = duckdb.connect(str(path))
    try:
        connection.execute(_TABLE)
        connection.execute("SELECT space, text_sha256, vector FROM vectors LIMIT 0")
        connection.execute("SELECT fingerprint, space FROM spaces LIMIT 0")
    except BaseException:
        connection.close()
        raise
    return connection


def _remove(path: Path) -> None:
    for name in (path.name, path.name + ".wal"):
        with suppress(FileNotFoundError):
            path.with_name(name).unlink()
