"""Tables of the gene knowledge base."""

from __future__ import annotations

import hashlib
from typing import Any

from scvec.stores.knowledge.tables import Tables

__all__ = ["CONTENT_TABLES", "SCHEMA_VERSION", "TIME_COLUMNS", "Digest", "create", "current_version"]

# Keys only where rows come one by one and may repeat: an index over the names of all genes is larger
# than the names. Loads keep the other tables free of repeats.
_TABLES = """
CREATE TABLE meta (key VARCHAR PRIMARY KEY, value VARCHAR NOT NULL);
CREATE TABLE genes (
    gene_id VARCHAR PRIMARY KEY, species VARCHAR NOT NULL, symbol VARCHAR NOT NULL, entrez_id BIGINT,
    name VARCHAR NOT NULL, gene_type VARCHAR NOT NULL,
    source VARCHAR NOT NULL, source_version VARCHAR NOT NULL
);
CREATE TABLE aliases (
    gene_id VARCHAR NOT NULL, species VARCHAR NOT NULL, name VARCHAR NOT NULL, folded VARCHAR NOT NULL,
    kind VARCHAR NOT NULL CHECK (kind IN ('symbol', 'previous', 'alias', 'ensembl'))
);
CREATE TABLE orthologs (
    human_gene_id VARCHAR NOT NULL, mouse_gene_id VARCHAR NOT NULL,
    kind VARCHAR NOT NULL CHECK (kind IN ('one2one', 'one2many', 'many2many', 'symbol')),
    confidence TINYINT NOT NULL, gene_order_conservation FLOAT, alignment_coverage FLOAT
);
CREATE TABLE descriptions (
    gene_id VARCHAR NOT NULL, text VARCHAR NOT NULL, source VARCHAR NOT NULL, source_version VARCHAR NOT NULL,
    retrieved_at VARCHAR NOT NULL, sha256 VARCHAR NOT NULL,
    kind VARCHAR NOT NULL CHECK (kind IN ('human', 'llm', 'composed', 'borrowed')),
    model VARCHAR NOT NULL, prompt VARCHAR NOT NULL, provenance VARCHAR NOT NULL DEFAULT '',
    PRIMARY KEY (gene_id, source, model, prompt)
);
CREATE TABLE go_terms (go_id VARCHAR NOT NULL, name VARCHAR NOT NULL, aspect VARCHAR NOT NULL);
CREATE TABLE go_parents (go_id VARCHAR NOT NULL, parent_id VARCHAR NOT NULL, relation VARCHAR NOT NULL);
CREATE TABLE go_annotations (gene_id VARCHAR NOT NULL, go_id VARCHAR NOT NULL, evidence VARCHAR NOT NULL);
CREATE TABLE cl_terms (cl_id VARCHAR NOT NULL, label VARCHAR NOT NULL);
CREATE TABLE cl_synonyms (cl_id VARCHAR NOT NULL, synonym VARCHAR NOT NULL);
CREATE TABLE cl_ancestors (cl_id VARCHAR NOT NULL, ancestor_id VARCHAR NOT NULL, distance SMALLINT NOT NULL);
CREATE TABLE markers (
    cl_id VARCHAR NOT NULL, tissue VARCHAR NOT NULL, species VARCHAR NOT NULL, gene VARCHAR NOT NULL,
    direction VARCHAR NOT NULL CHECK (direction IN ('positive', 'negative')), weight FLOAT NOT NULL,
    source VARCHAR NOT NULL
);
CREATE TABLE jobs (
    gene_id VARCHAR NOT NULL, source VARCHAR NOT NULL, model VARCHAR NOT NULL, prompt VARCHAR NOT NULL,
    input_sha256 VARCHAR NOT NULL,
    status VARCHAR NOT NULL CHECK (status IN ('pending', 'running', 'done', 'failed')),
    attempts INTEGER NOT NULL DEFAULT 0, error VARCHAR NOT NULL DEFAULT '',
    updated_at VARCHAR NOT NULL DEFAULT '', final BOOLEAN NOT NULL DEFAULT false,
    PRIMARY KEY (gene_id, source, model, prompt, input_sha256)
);
CREATE TABLE notes (
    gene_id VARCHAR NOT NULL, source VARCHAR NOT NULL, source_version VARCHAR NOT NULL,
    retrieved_at VARCHAR NOT NULL, facts VARCHAR NOT NULL,
    PRIMARY KEY (gene_id, source)
);
"""

SCHEMA_VERSION = 3

#: What the digest covers: jobs tell how the content came about, and are left out.
CONTENT_TABLES = (
    "genes",
    "aliases",
    "orthologs",
    "descriptions",
    "go_terms",
    "go_parents",
    "go_annotations",
    "cl_terms",
    "cl_synonyms",
    "cl_ancestors",
    "markers",
    "meta",
    "notes",
)

#: Columns that say when, not what. A source's own version and what it says of a text (``provenance``) do
#: count, though there may be a date in them: it is theirs, and the same whenever it is asked for.
TIME_COLUMNS = frozenset({"retrieved_at", "updated_at"})


def current_version(con: Any) -> int:
    """Return the schema version of an open DuckDB file; 0 where there is none."""
    found = con.execute(
        "SELECT count(*) FROM information_schema.tables WHERE table_name = 'schema_version'"
    ).fetchall()
    if not found[0][0]:
        return 0
    row = con.execute("SELECT max(version) FROM schema_version").fetchall()
    return int(row[0][0] or 0)


def create(con: Any) -> None:
    """Make the tables in an empty DuckDB file, in one transaction."""
    con.execute("BEGIN")
    try:
        con.execute("CREATE TABLE schema_version (version INTEGER PRIMARY KEY)")
        con.execute(_TABLES)
        con.execute("INSERT INTO schema_version VALUES (?)", [SCHEMA_VERSION])
        con.execute("COMMIT")
    except BaseException:
        con.execute("ROLLBACK")
        raise


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
