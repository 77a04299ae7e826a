"""The DuckDB file of the gene knowledge base: its tables and their rows."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.errors import LockedError, ResourceError, ScvecError, StoreError
from scvec.base.types import Description, Marker

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = [
    "CONTENT_TABLES",
    "SCHEMA_VERSION",
    "TIME_COLUMNS",
    "Digest",
    "Tables",
    "arrow",
    "connect",
    "create",
    "current_version",
    "description_table",
    "insert",
    "insert_aliases",
    "insert_orthologs",
    "marker_table",
    "registered",
    "translate",
    "upsert",
    "upsert_descriptions",
]


def arrow(rows: Iterable[Sequence[Any]], **kinds: str) -> pa.Table:
    """Return rows as an Arrow table; ``kinds`` are the types of its columns by name, such as ``string``."""
    import pyarrow as pa

    columns = list(zip(*rows, strict=True)) or [()] * len(kinds)
    values = zip(kinds.items(), columns, strict=True)
    return pa.table({name: pa.array(column, kind) for (name, kind), column in values})


@contextmanager
def registered(con: Any, **tables: pa.Table) -> Iterator[None]:
    """Make Arrow tables visible to SQL, by their names, inside the block."""
    for name, table in tables.items():
        con.register(name, table)
    try:
        yield
    finally:
        for name in tables:
            con.unregister(name)


def insert(con: Any, table: str, rows: pa.Table, select: str) -> int:
    """Insert ``SELECT ... FROM incoming`` and return the number of rows added."""
    with registered(con, incoming=rows):
        return int(con.execute(f"INSERT INTO {table} BY NAME {select}").fetchall()[0][0])


def upsert(
    con: Any,
    table: str,
    rows: pa.Table,
    select: str,
    keys: Sequence[str],
    update: Mapping[str, str],
    where: str = "true",
) -> int:
    """Insert ``SELECT ... FROM incoming``, or update rows with equal keys; return the number of rows added.

    This does not use ``ON CONFLICT``: it took 150 s for 100,000 existing rows, and this takes 1 s.

    Parameters
    ----------
    con
        DuckDB connection.
    table
        Table to change.
    rows
        Arrow table, visible to ``select`` as ``incoming``.
    select
        SQL query for the new rows.
    keys
        Columns that identify a row.
    update
        Column -> SQL expression over ``s`` (incoming row) and ``t`` (stored row).
    where
        SQL condition over ``s`` and ``t``; other rows are not updated.
    """
    with registered(con, incoming=rows):
        con.execute(f"CREATE OR REPLACE TEMP TABLE staged AS {select}")
    same = " AND ".join(f"t.{key} = s.{key}" for key in keys)
    changed = " OR ".join(f"t.{column} IS DISTINCT FROM {value}" for column, value in update.items())
    sets = ", ".join(f"{column} = {value}" for column, value in update.items())
    con.execute(f"UPDATE {table} t SET {sets} FROM staged s WHERE {same} AND ({changed}) AND ({where})")
    added = con.execute(
        f"INSERT INTO {table} BY NAME SELECT * FROM staged ANTI JOIN {table} USING ({', '.join(keys)})"
    ).fetchall()[0][0]
    con.execute("DROP TABLE staged")
    return int(added)


def upsert_descriptions(
    con: Any, rows: pa.Table, select: str = "SELECT * FROM incoming", where: str = "true"
) -> int:
    """Insert or replace descriptions, by gene, source, model and prompt; return the number of rows added."""
    replaced = ("text", "source_version", "retrieved_at", "sha256", "kind", "provenance")
    keys = ("gene_id", "source", "model", "prompt")
    return upsert(con, "descriptions", rows, select, keys, {c: f"s.{c}" for c in replaced}, where)


def insert_aliases(con: Any, rows: pa.Table, select: str) -> int:
    """Insert names that the table lacks; ``select`` returns gene_id, species, name and kind."""
    return insert(
        con,
        "aliases",
        rows,
        f"SELECT DISTINCT gene_id, species, name, lower(name) AS folded, kind FROM ({select})"
        " ANTI JOIN aliases USING (gene_id, kind, name) WHERE name <> ''",
    )


#: Kinds of orthologs, the most specific first.
_KINDS = ("one2one", "one2many", "many2many", "symbol")


def insert_orthologs(con: Any, rows: pa.Table, source: str) -> int:
    """Insert pairs of orthologs; returns rows added.

    A pair that is there already, whichever gene it begins with, gets the better kind and confidence.
    """
    rank = "list_position({}, {}.kind)".format(list(_KINDS), "{}")
    # The species that comes first in the alphabet begins.
    flip = "(species > other_species OR (species = other_species AND gene_id > other_id))"
    ordered = ", ".join(
        f"if({flip}, {b}, {a}) AS {a}, if({flip}, {a}, {b}) AS {b}"
        for a, b in (("gene_id", "other_id"), ("species", "other_species"))
    )
    one = f"arg_min(kind, list_position({list(_KINDS)}, kind)) AS kind, max(confidence) AS confidence"
    return upsert(
        con,
        "orthologs",
        rows,
        f"SELECT gene_id, species, other_id, other_species, {one}, '{source.replace(chr(39), chr(39) * 2)}'"
        f" AS source FROM (SELECT {ordered}, kind, confidence FROM incoming) GROUP BY ALL",
        ("gene_id", "other_id"),
        {c: f"s.{c}" for c in ("kind", "confidence", "source")},
        f"({rank.format('s')}, -coalesce(s.confidence, 0))"
        f" < ({rank.format('t')}, -coalesce(t.confidence, 0))",
    )


def description_table(rows: Iterable[Description]) -> pa.Table:
    """Return descriptions as an Arrow table; the last description with a key replaces earlier ones."""
    last = {(d.gene_id, d.source, d.model, d.prompt): d for d in rows}
    fields = "gene_id text source source_version retrieved_at sha256 kind model prompt provenance".split()
    return arrow([[getattr(d, f) for f in fields] for d in last.values()], **dict.fromkeys(fields, "string"))


def marker_table(markers: Iterable[Marker]) -> pa.Table:
    """Return markers as an Arrow table."""
    kinds = dict.fromkeys(("cl_id", "tissue", "species", "gene", "direction"), "string")
    return arrow(map(astuple, markers), **kinds, weight="float32", source="string")


@contextmanager
def translate(
    path: Path, what: str = "the knowledge base", fix: str = "delete the file and run: scvec ingest genes"
) -> Iterator[None]:
    """Translate errors of DuckDB about the file or the machine into errors of scvec.

    Parameters
    ----------
    path
        The DuckDB file.
    what
        Name of the file in messages.
    fix
        Advice if the file is damaged.

    Raises
    ------
    LockedError
        Another process uses the file.
    ResourceError
        Out of memory, or the disk is full.
    StoreError
        The file is damaged.
    """
    import duckdb

    try:
        yield
    except ScvecError:
        raise
    except duckdb.OutOfMemoryException as err:
        raise ResourceError(f"out of memory in {what}", str(path), "close other programs") from err
    except (
        duckdb.IOException,
        duckdb.FatalException,
        duckdb.InternalException,
        duckdb.SerializationException,
    ) as err:
        text = str(err)
        if "set lock" in text:  # not only "lock", which "block" contains too
            raise LockedError(f"{what} is in use: {text}", str(path), "wait, or stop that process") from err
        if "No space left" in text:
            raise ResourceError(
                "the disk is full", str(path), "free some space and run again", code="disk-full"
            ) from err
        raise StoreError(f"{what} is damaged: {text}", str(path), fix) from err
    except duckdb.Error as err:
        # DuckDB 2 has no error class for damaged files. Other errors of this class are bugs of scvec.
        if not is_damage(err):
            raise
        raise StoreError(f"{what} is damaged: {err}", str(path), fix) from err


def is_damage(error: Exception) -> bool:
    """Return whether an error of DuckDB reports a damaged file."""
    import duckdb

    if isinstance(error, duckdb.FatalException | duckdb.InternalException | duckdb.SerializationException):
        return True
    text = str(error).lower()
    return any(word in text for word in ("corrupt", "checksum", "replaying wal", "not a valid duckdb"))


#: Settings that keep DuckDB from reading other files and from loading extensions. SQL cannot undo them.
_CLOSED: Mapping[str, str] = {
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "allow_community_extensions": "false",
}


def connect(path: Path | str, *, read_only: bool = False, **config: Any) -> Any:
    """Return a DuckDB connection to an untrusted file, or to ``:memory:``.

    This function does not lock the settings. DuckDB shares such a lock among all connections of the process
    to a file, so the next connection could not turn off its progress bar. Code that runs SQL of users must
    lock them.
    """
    import duckdb

    con = duckdb.connect(str(path), read_only=read_only, config={**_CLOSED, **config})
    # In notebooks and with ``python -c``, DuckDB prints a progress bar for each query over two seconds.
    # In a notebook without ipywidgets, DuckDB has no bar and refuses the setting.
    with contextlib.suppress(duckdb.InvalidInputException):
        con.execute("SET enable_progress_bar = false")
    return con


class Tables:
    """Base class of the parts of the knowledge base: runs SQL on one file and translates errors."""

    def __init__(self, connection: Any, path: Path) -> None:
        self._con = connection
        self.path = path

    def frame(self, table: str, columns: Sequence[str]) -> pd.DataFrame:
        """Return columns of a table; the order of rows is not defined."""
        return self._frame(f"SELECT {', '.join(columns)} FROM {table}")

    def _all(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with translate(self.path):
            rows: list[tuple[Any, ...]] = self._con.execute(sql, list(parameters)).fetchall()
        return rows

    def _one(self, sql: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...]:
        return self._all(sql, parameters)[0]

    def _frame(self, sql: str, parameters: Sequence[Any] = ()) -> pd.DataFrame:
        with translate(self.path):
            frame: pd.DataFrame = self._con.execute(sql, list(parameters)).df()
        return frame


_ORTHOLOGS = """
CREATE TABLE orthologs (
    gene_id VARCHAR NOT NULL, species VARCHAR NOT NULL,
    other_id VARCHAR NOT NULL, other_species VARCHAR NOT NULL,
    kind VARCHAR NOT NULL CHECK (kind IN ('one2one', 'one2many', 'many2many', 'symbol')),
    confidence FLOAT, source VARCHAR NOT NULL
);
"""
# Primary keys only for tables whose rows arrive one by one and may repeat, because an index over the names of
# all genes is larger than the names. The loading functions prevent duplicates in the other tables.
_TABLES = f"""
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
{_ORTHOLOGS}CREATE TABLE descriptions (
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

SCHEMA_VERSION = 4

#: Tables that the digest covers. Jobs record how the content was obtained, so they are left out.
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

#: Columns with the time of retrieval; the digest leaves them out. It does cover the source's own version and
#: ``provenance``: dates in them come from the source, and do not depend on the time of retrieval.
TIME_COLUMNS = frozenset({"retrieved_at", "updated_at"})


def current_version(con: Any) -> int:
    """Return the schema version of an open DuckDB file; 0 if it has none."""
    found = con.execute(
        "SELECT count(*) FROM information_schema.tables WHERE table_name = 'schema_version'"
    ).fetchall()
    if not found[0][0]:
        return 0
    row = con.execute("SELECT max(version) FROM schema_version").fetchall()
    return int(row[0][0] or 0)


def create(con: Any) -> None:
    """Create the tables in an empty DuckDB file, in one transaction."""
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
    """Part of the knowledge base: digests that identify its content."""

    def digest(self, *, jobs: bool = False) -> str:
        """Return the SHA-256 of the content, independent of row order, times of retrieval and jobs.

        Two files that were filled from the same sources have the same digest, though their bytes differ.

        Parameters
        ----------
        jobs
            Also cover jobs. The digest does not change if there are none.
        """
        parts = self._parts()
        return _sha256([*parts, *self._jobs()] if jobs else parts)

    def digests(self) -> tuple[str, str]:
        """Return ``digest(jobs=True)`` and ``digest()`` with one reading of the content, the slow part."""
        parts = self._parts()
        return _sha256([*parts, *self._jobs()]), _sha256(parts)

    def _parts(self) -> list[str]:
        tables = [self._table_digest(table) for table in CONTENT_TABLES]
        return [f"schema {current_version(self._con)}", *tables]

    def _jobs(self) -> list[str]:
        return [self._table_digest("jobs")] if self._one("SELECT count(*) FROM jobs")[0] else []

    def _table_digest(self, table: str) -> str:
        described = self._all(f"SELECT column_name FROM (DESCRIBE {table})")
        columns = sorted({str(row[0]) for row in described} - TIME_COLUMNS)
        # Each value follows its length, so different rows never give the same text.
        cells = ", ".join(
            f"coalesce(length({c}::VARCHAR)::VARCHAR || ':' || {c}::VARCHAR, '-')" for c in columns
        )
        # Sum the two halves of the hashes in one query. Two queries would read the table twice, and these
        # sums take most of the time of a commit.
        row = self._one(
            f"SELECT count(*), sum((m >> 64)::UBIGINT), sum((m & {2**64 - 1}::UHUGEINT)::UBIGINT) FROM"
            f" (SELECT md5_number(concat({cells})) AS m FROM {table})"
        )
        return f"{table} {','.join(columns)} {row[0]} {row[1]} {row[2]}"


def _sha256(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
