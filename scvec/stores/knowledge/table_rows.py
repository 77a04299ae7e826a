"""Rows of Arrow tables into the tables of the knowledge base, each once.

Rows travel as Arrow tables, because DuckDB inserts those hundreds of times faster than single rows.
Every function here runs inside a transaction that its caller holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scvec.base.types import Description

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["description_table", "insert", "insert_aliases", "upsert", "upsert_descriptions"]


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
