"""``scvec diff``: what differs between two generations of a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scvec.base.errors import InputError
from scvec.workflows.gene_info import Changed, DiffReport, Example, SpaceChange

if TYPE_CHECKING:
    import pandas as pd

    from scvec.stores.store.reference_reader import StoredSpace
    from scvec.stores.store.store import Store

__all__ = ["diff"]

#: Section of the report -> table, columns of its key, column that may change, columns to count by.
_TABLES = {
    "genes": ("genes", ("gene_id",), "symbol", ("species",)),
    "descriptions": ("descriptions", ("gene_id", "source", "model", "prompt"), "text", ("kind", "source")),
    "facts": ("notes", ("gene_id", "source"), "facts", ("source",)),
}


def diff(store: Path | str, old: int | str, new: int | str = "current", limit: int = 20) -> DiffReport:
    """Compare two generations of a store.

    ``old`` and ``new`` are numbers of generations, or ``current``; ``limit`` is the number of examples of
    genes and of descriptions added, changed and removed. InputError names the generations there are.
    """
    from scvec.stores.store.store import Store

    if limit < 0:
        raise InputError(
            f"limit must not be negative: {limit}", "--limit", "give 0 or more", code="option-out-of-range"
        )
    opened = Store(store)
    before, after = (opened.at(_number(opened, g)) for g in (old, new))
    digests = [m and m.digest for m in (s.generation.manifest.knowledge for s in (before, after))]
    tables = {name: _differing(before, after, name) for name in _TABLES} if digests[0] != digests[1] else {}
    counts = {
        name: [
            Changed(what=" ".join(map(str, g)), **_states(rows))
            for g, rows in table.groupby(list(_TABLES[name][3]))
        ]
        for name, table in tables.items()
    }
    one, other = (s.generation.manifest.references for s in (before, after))
    return DiffReport(
        old=before.generation.number,
        new=after.generation.number,
        old_command=before.generation.manifest.command,
        new_command=after.generation.manifest.command,
        genes=counts.get("genes", []),
        descriptions=counts.get("descriptions", []),
        facts=counts.get("facts", []),
        spaces=_spaces(before, after),
        references={
            "added": sorted(other.keys() - one.keys()),
            "replaced": sorted(name for name in one.keys() & other.keys() if one[name] != other[name]),
            "removed": sorted(one.keys() - other.keys()),
        },
        examples=_examples(before, after, tables, limit) if tables and limit else [],
    )


def _number(store: Store, given: int | str) -> int:
    if str(given) == "current":
        return store.generation.number
    try:
        return int(given)
    except ValueError:
        fix = f"the current one is {store.generation.number}"
        raise InputError(f"{given!r} is no number of a generation", "", fix, code="bad-name") from None


def _table(store: Store, name: str, columns: Sequence[str]) -> pd.DataFrame:
    """Return columns of a table of the gene knowledge; of no knowledge, no rows."""
    import pandas as pd

    if store.generation.manifest.knowledge is None:
        return pd.DataFrame(columns=list(columns), dtype=object)
    with store.knowledge() as kb:
        return kb.frame(name, columns)


def _differing(before: Store, after: Store, name: str) -> pd.DataFrame:
    table, keys, value, groups = _TABLES[name]
    columns = list(dict.fromkeys((*keys, *groups, value)))
    return _compared(_table(before, table, columns), _table(after, table, columns), keys, value)


def _compared(old: pd.DataFrame, new: pd.DataFrame, keys: Sequence[str], value: str) -> pd.DataFrame:
    """Return the rows that differ, by key: all columns, ``state``, and ``old`` and ``new`` values."""
    both = old.merge(new, on=list(keys), how="outer", suffixes=("_old", "_new"), indicator="state")
    for column in set(old.columns) - {*keys, value}:
        both[column] = both[f"{column}_new"].fillna(both[f"{column}_old"])
    both = both.rename(columns={f"{value}_old": "old", f"{value}_new": "new"})
    both["state"] = (
        both["state"].astype(str).map({"left_only": "removed", "both": "changed", "right_only": "added"})
    )
    return both[(both["state"] != "changed") | (both["old"] != both["new"])].sort_values(list(keys))


def _states(table: pd.DataFrame) -> dict[str, int]:
    return {str(state): int(n) for state, n in table["state"].value_counts().items()}


def _examples(before: Store, after: Store, tables: dict[str, pd.DataFrame], limit: int) -> list[Example]:
    symbols: dict[str, str] = {}
    for store in (before, after):
        genes = _table(store, "genes", ("gene_id", "symbol"))
        symbols.update(zip(genes["gene_id"], genes["symbol"], strict=True))
    found = []
    for name in ("genes", "descriptions"):
        table = tables[name].fillna("").groupby("state").head(limit).sort_values("state", kind="stable")
        for row in table.to_dict("records"):
            renamed = name == "genes" and row["state"] == "changed"
            shown = renamed or name == "descriptions"  # the symbol says what gene came or went
            what = f"{row['species']} gene" if name == "genes" else f"{row['kind']} text from {row['source']}"
            found.append(
                Example(
                    state="renamed" if renamed else row["state"],
                    gene_id=row["gene_id"],
                    symbol=symbols.get(row["gene_id"], ""),
                    what=what + (f", {row['model']}" if row.get("model") else ""),
                    before=row["old"] if shown else "",
                    after=row["new"] if shown else "",
                )
            )
    return found


def _spaces(before: Store, after: Store) -> list[SpaceChange]:
    old, new = before.spaces(), after.spaces()
    entries = [s.generation.manifest.spaces for s in (before, after)]
    found = []
    for name in sorted(f for f in {*old, *new} if entries[0].get(f) != entries[1].get(f)):
        one, other = old.get(name), new.get(name)
        changes = _compared(_texts(one), _texts(other), ("gene_id",), "text_sha256")
        found.append(
            SpaceChange(
                what=name,
                backbone=(new.get(name) or old[name]).space.backbone,
                state="added" if one is None else "removed" if other is None else "changed",
                **_states(changes),
            )
        )
    return found


def _texts(stored: StoredSpace | None) -> pd.DataFrame:
    import pandas as pd

    columns = ["gene_id", "text_sha256"]
    return (
        pd.DataFrame(columns=columns, dtype=object) if stored is None else stored.genes[columns].astype(str)
    )
