"""What differs between two states of tables, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scvec.stores.tables import LOCKED

if TYPE_CHECKING:
    import pyarrow as pa

    from scvec.stores.knowledge import KnowledgeBase

__all__ = ["STATES", "Changes", "compare_tables", "knowledge_changes"]

STATES = ("added", "changed", "removed")


@dataclass(frozen=True)
class Changes:
    """Rows of a table that came, changed and went.

    Attributes
    ----------
    counts
        Values of the group columns -> rows per state; only groups in which anything differs.
    examples
        Per state, some rows as dicts: the key, group and label columns. ``old_`` and ``new_`` stand before
        what differs.
    """

    counts: Mapping[tuple[str, ...], Mapping[str, int]] = field(default_factory=dict)
    examples: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    def total(self, state: str) -> int:
        """Rows of one state, of all groups."""
        return sum(counts.get(state, 0) for counts in self.counts.values())


def compare_tables(
    old: pa.Table,
    new: pa.Table,
    keys: Sequence[str],
    value: str,
    *,
    groups: Sequence[str] = (),
    labels: Sequence[str] = (),
    limit: int = 20,
) -> Changes:
    """Compare two Arrow tables of like columns.

    Runs in a database in memory that can open no file: rows of two stores' files meet nowhere else.

    Parameters
    ----------
    keys
        Columns by which a row is the same row; unique in each table.
    value
        Column that says whether it has changed.
    groups
        Columns to count by.
    labels
        Further columns for the examples.
    limit
        Examples per state, in the order of the keys.
    """
    import duckdb

    shown = [*groups, *labels]
    columns = "".join(f", coalesce(n.{c}, o.{c}) AS {c}" for c in (*keys, *shown))
    con = duckdb.connect(":memory:", config=dict(LOCKED))
    try:
        con.register("o", old)
        con.register("n", new)
        con.execute(
            f"CREATE TABLE differing AS SELECT CASE WHEN o.{keys[0]} IS NULL THEN 'added'"
            f" WHEN n.{keys[0]} IS NULL THEN 'removed' ELSE 'changed' END AS state{columns},"
            f" o.{value} AS old_{value}, n.{value} AS new_{value}"
            f" FROM n FULL JOIN o ON {' AND '.join(f'n.{k} = o.{k}' for k in keys)}"
            f" WHERE o.{value} IS DISTINCT FROM n.{value}"
        )
        by = "".join(f"{c}, " for c in groups)
        counts: dict[tuple[str, ...], dict[str, int]] = {}
        for *group, state, n in con.execute(
            f"SELECT {by}state, count(*) FROM differing GROUP BY ALL ORDER BY ALL"
        ).fetchall():
            counts.setdefault(tuple(map(str, group)), {})[str(state)] = int(n)
        examples = {}
        for state in STATES:
            rows = con.execute(
                f"SELECT * EXCLUDE (state) FROM differing WHERE state = ? ORDER BY {', '.join(keys)} LIMIT ?",
                [state, limit],
            )
            names = [column[0] for column in rows.description]
            examples[state] = [dict(zip(names, row, strict=True)) for row in rows.fetchall()]
    finally:
        con.close()
    return Changes(counts, examples)


def knowledge_changes(old: KnowledgeBase | None, new: KnowledgeBase | None, limit: int) -> dict[str, Changes]:
    """Compare two knowledge bases, of which None is an empty one.

    Returns
    -------
    dict
        ``genes`` (by species; changed are those with another symbol), ``descriptions`` (by kind and source;
        changed are those of another text) and ``notes`` (by source).
    """
    gene = ("gene_id", "species", "symbol")
    text = ("gene_id", "source", "model", "prompt", "kind", "sha256")
    return {
        "genes": compare_tables(
            _table(old, "genes", gene),
            _table(new, "genes", gene),
            ("gene_id",),
            "symbol",
            groups=("species",),
            limit=limit,
        ),
        "descriptions": compare_tables(
            _table(old, "descriptions", text),
            _table(new, "descriptions", text),
            ("gene_id", "source", "model", "prompt"),
            "sha256",
            groups=("kind", "source"),
            limit=limit,
        ),
        "notes": compare_tables(
            _table(old, "notes", ("gene_id", "source", "md5(facts) AS facts")),
            _table(new, "notes", ("gene_id", "source", "md5(facts) AS facts")),
            ("gene_id", "source"),
            "facts",
            groups=("source",),
            limit=limit,
        ),
    }


def _table(kb: KnowledgeBase | None, name: str, columns: Sequence[str]) -> pa.Table:
    import pyarrow as pa

    if kb is not None:
        return kb.arrow(name, columns)
    return pa.table({c.split(" AS ")[-1]: pa.array([], pa.string()) for c in columns})
