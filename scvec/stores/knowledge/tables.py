"""A DuckDB file that is open."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.errors import LockedError, ResourceError, ScvecError, StoreError
from scvec.base.types import Description

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = [
    "LOCKED",
    "Tables",
    "description_table",
    "insert",
    "insert_aliases",
    "translate",
    "upsert",
    "upsert_descriptions",
]


def insert(con: Any, table: str, rows: pa.Table, select: str) -> int:
    """Insert ``SELECT ... FROM incoming`` and return by how many rows the table grew."""
    con.register("incoming", rows)
    try:
        return int(con.execute(f"INSERT INTO {table} BY NAME {select}").fetchall()[0][0])
    finally:
        con.unregister("incoming")


def upsert(
    con: Any,
    table: str,
    rows: pa.Table,
    select: str,
    keys: Sequence[str],
    update: Mapping[str, str],
    where: str = "true",
) -> int:
    """Insert ``SELECT ... FROM incoming``, or update rows that have its keys; returns rows added.

    ``update`` gives an expression over ``s`` (incoming) and ``t`` (stored) per column; a row is updated only
    ``where`` this holds for the two. Not ``ON CONFLICT``: that took 150 s for 100,000 rows that were there,
    this takes one.
    """
    con.register("incoming", rows)
    try:
        con.execute(f"CREATE OR REPLACE TEMP TABLE staged AS {select}")
    finally:
        con.unregister("incoming")
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
    """Insert descriptions, or replace those of one gene, source, model and prompt; returns rows added."""
    replaced = ("text", "source_version", "retrieved_at", "sha256", "kind", "provenance")
    keys = ("gene_id", "source", "model", "prompt")
    return upsert(con, "descriptions", rows, select, keys, {c: f"s.{c}" for c in replaced}, where)


def insert_aliases(con: Any, rows: pa.Table, select: str) -> int:
    """Insert the names that are not there yet; ``select`` gives gene_id, species, name and kind."""
    return insert(
        con,
        "aliases",
        rows,
        f"SELECT DISTINCT gene_id, species, name, lower(name) AS folded, kind FROM ({select})"
        " ANTI JOIN aliases USING (gene_id, kind, name) WHERE name <> ''",
    )


def description_table(rows: Iterable[Description]) -> pa.Table:
    """Descriptions as an Arrow table; of rows with one key the last counts."""
    import pyarrow as pa

    last = {(d.gene_id, d.source, d.model, d.prompt): d for d in rows}
    fields = (
        "gene_id",
        "text",
        "source",
        "source_version",
        "retrieved_at",
        "sha256",
        "kind",
        "model",
        "prompt",
        "provenance",
    )
    return pa.table({f: pa.array([getattr(d, f) for d in last.values()], pa.string()) for f in fields})


@contextmanager
def translate(
    path: Path, what: str = "the knowledge base", mend: str = "remove the file and run: scvec ingest genes"
) -> Iterator[None]:
    """Turn what DuckDB raises about the file or the machine into errors a user can act on.

    ``what`` names the file, ``mend`` says what to do where it is damaged.
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
        if "set lock" in text:  # not "lock" alone: that is in "block" too
            raise LockedError(f"{what} is in use: {text}", str(path), "wait, or end that process") from err
        if "No space left" in text:
            raise ResourceError(
                "the disk is full", str(path), "free some space and run again", code="disk-full"
            ) from err
        raise StoreError(f"{what} is damaged: {text}", str(path), mend) from err
    except duckdb.Error as err:
        # What DuckDB 2 says of damage has no class of its own; all else of this kind is a mistake of ours.
        if not is_damage(err):
            raise
        raise StoreError(f"{what} is damaged: {err}", str(path), mend) from err


def is_damage(error: Exception) -> bool:
    """True if DuckDB speaks of a damaged file."""
    import duckdb

    if isinstance(error, duckdb.FatalException | duckdb.InternalException | duckdb.SerializationException):
        return True
    text = str(error).lower()
    return any(word in text for word in ("corrupt", "checksum", "replaying wal", "not a valid duckdb"))


#: How every file is opened. Files are never trusted: DuckDB reads nothing but its own file and loads no
#: extension.
LOCKED: Mapping[str, str] = {
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "allow_community_extensions": "false",
    # Here and not by SET afterwards: a second connection of this process to the file would be refused.
    "lock_configuration": "true",
}


class Tables:
    """The base of the parts of the knowledge base: SQL over one file, errors translated."""

    def __init__(self, connection: Any, path: Path) -> None:
        self._con = connection
        self.path = path

    def frame(self, table: str, columns: Sequence[str]) -> pd.DataFrame:
        """Return columns of a table, in no order."""
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

    @contextmanager
    def _registered(self, **tables: pa.Table) -> Iterator[None]:
        """Let SQL see Arrow tables by name."""
        for name, table in tables.items():
            self._con.register(name, table)
        try:
            yield
        finally:
            for name in tables:
                self._con.unregister(name)
