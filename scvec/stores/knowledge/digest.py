"""What a knowledge base holds, as one number."""

from __future__ import annotations

import hashlib

from scvec.stores.knowledge.schema import CONTENT_TABLES, SCHEMA_VERSION, TIME_COLUMNS
from scvec.stores.knowledge.tables import Tables

__all__ = ["Digest"]


class Digest(Tables):
    """The part of the knowledge base that tells one content from another."""

    def digest(self, *, jobs: bool = False) -> str:
        """SHA-256 of the content, whatever the order of rows; columns of time and jobs do not count.

        Two files that were filled from the same sources have the same digest, though their bytes differ.

        Parameters
        ----------
        jobs
            Count jobs too. The digest is the same where there are none.
        """
        parts = self._parts()
        return _sha256([*parts, *self._jobs()] if jobs else parts)

    def digests(self) -> tuple[str, str]:
        """``digest(jobs=True)`` and ``digest()``, for one look at the content, which is most of the work."""
        parts = self._parts()
        return _sha256([*parts, *self._jobs()]), _sha256(parts)

    def _parts(self) -> list[str]:
        tables = [self._table_digest(table) for table in CONTENT_TABLES]
        return [f"schema {SCHEMA_VERSION}", *tables]

    def _jobs(self) -> list[str]:
        return [self._table_digest("jobs")] if self._one("SELECT count(*) FROM jobs")[0] else []

    def _table_digest(self, table: str) -> str:
        described = self._all(f"SELECT column_name FROM (DESCRIBE {table})")
        columns = sorted({str(row[0]) for row in described} - TIME_COLUMNS)
        # Length before value: no two rows can run together into the same text.
        cells = ", ".join(
            f"coalesce(length({c}::VARCHAR)::VARCHAR || ':' || {c}::VARCHAR, '-')" for c in columns
        )
        # The halves of each sum apart: asking DuckDB for each half by itself computes all sums twice, and
        # slowly, and this is most of what a commit takes.
        row = self._one(
            f"SELECT count(*), sum((m >> 64)::UBIGINT), sum((m & {2**64 - 1}::UHUGEINT)::UBIGINT) FROM"
            f" (SELECT md5_number(concat({cells})) AS m FROM {table})"
        )
        return f"{table} {','.join(columns)} {row[0]} {row[1]} {row[2]}"


def _sha256(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
