"""What a knowledge base holds, as one number."""

from __future__ import annotations

import hashlib

from scvec.stores.schema import CONTENT_TABLES, TIME_COLUMNS
from scvec.stores.tables import Tables

__all__ = ["Digest"]


class Digest(Tables):
    """The part of the knowledge base that tells one content from another."""

    def digest(self, *, jobs: bool = False) -> str:
        """SHA-256 of the content, whatever the order of rows; columns of time, jobs and runs do not count.

        Two files that were filled from the same sources have the same digest, though their bytes differ.

        Parameters
        ----------
        jobs
            Count jobs too. The digest is the same where there are none.
        """
        parts = [f"schema {self.version}"]
        parts += [self._table_digest(table) for table in CONTENT_TABLES if self._has(table)]
        if jobs and self._one("SELECT count(*) FROM jobs")[0]:
            parts.append(self._table_digest("jobs"))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _table_digest(self, table: str) -> str:
        described = self._all(f"SELECT column_name FROM (DESCRIBE {table})")
        columns = sorted({str(row[0]) for row in described} - TIME_COLUMNS)
        # Length before value: no two rows can run together into the same text.
        cells = ", ".join(
            f"coalesce(length({c}::VARCHAR)::VARCHAR || ':' || {c}::VARCHAR, '-')" for c in columns
        )
        row = self._one(
            f"SELECT count(*), sum(md5_number_lower(v)), sum(md5_number_upper(v)) FROM"
            f" (SELECT concat({cells}) AS v FROM {table})"
        )
        return f"{table} {','.join(columns)} {row[0]} {row[1]} {row[2]}"
