"""``scvec diff``: the differences between two versions of a store."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from scvec.base.errors import InputError
from scvec.base.results import Record, Report
from scvec.stores.store.reference_reader import StoredSpace
from scvec.stores.store.store import Store

__all__ = ["Changed", "DiffReport", "Example", "SpaceChange", "diff"]

#: Longest line about a text.
WIDTH = 100
#: Section of the report -> table, columns of its key, column that may change, columns to count by.
_TABLES = {
    "genes": ("genes", ("gene_id",), "symbol", ("species",)),
    "descriptions": ("descriptions", ("gene_id", "source", "model", "prompt"), "text", ("kind", "source")),
    "facts": ("notes", ("gene_id", "source"), "facts", ("source",)),
}


@dataclass(frozen=True, kw_only=True)
class Changed(Record):
    """Numbers of rows added, changed and removed. ``what`` is their kind and source, or species."""

    what: str
    added: int = 0
    changed: int = 0
    removed: int = 0

    def line(self, changed: str = "changed") -> str:
        """Return it in words."""
        counts = {"added": self.added, changed: self.changed, "removed": self.removed}
        return f"{self.what}: {', '.join(f'{n:,} {how}' for how, n in counts.items() if n) or 'the same'}"


@dataclass(frozen=True, kw_only=True)
class SpaceChange(Changed):
    """A space that differs; ``what`` is its fingerprint, ``state`` ``added``, ``removed`` or ``changed``."""

    backbone: str
    state: str


@dataclass(frozen=True, kw_only=True)
class Example(Record):
    """One description or gene that differs. ``before`` and ``after`` are texts or symbols, or empty."""

    state: str
    gene_id: str
    symbol: str
    what: str
    before: str = ""
    after: str = ""

    def lines(self) -> list[str]:
        """Return it as lines for people; long texts from where they differ."""
        lines = [f"  {self.state} {self.symbol} ({self.gene_id}), {self.what}"]
        pairs = enumerate(zip(self.before, self.after, strict=False))
        alike = next((i for i, (one, other) in pairs if one != other), 0)
        start = 0 if alike < WIDTH // 2 else alike - WIDTH // 4
        for sign, text in (("-", self.before), ("+", self.after)):
            shown = f"{sign} … {text[start:]}" if start else f"{sign} {text}"
            if text:
                lines.append("    " + textwrap.shorten(shown[: 10 * WIDTH], WIDTH - 4, placeholder=" …"))
        return lines


@dataclass(frozen=True, kw_only=True)
class DiffReport(Report):
    """The differences between two versions of a store.

    Attributes
    ----------
    old, new, old_command, new_command
        Numbers of the versions, and the commands that made them.
    genes
        By species; ``changed`` are those with another symbol.
    descriptions, facts
        By kind and source; by source.
    references
        ``added``, ``replaced`` and ``removed``, by name.
    """

    old: int
    new: int
    old_command: str
    new_command: str
    genes: list[Changed]
    descriptions: list[Changed]
    facts: list[Changed]
    spaces: list[SpaceChange]
    references: dict[str, list[str]]
    examples: list[Example]

    @property
    def same(self) -> bool:
        """True if nothing differs."""
        sections = (self.genes, self.descriptions, self.facts, self.spaces, *self.references.values())
        return not any(sections)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and ``same``."""
        return {"same": self.same, **super().to_dict()}

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        both = ((self.old, self.old_command), (self.new, self.new_command))
        old, new = (f"{number} ({command})" if command else str(number) for number, command in both)
        lines = [f"from version {old} to {new}"]
        lines += [f"genes, {c.line('renamed')}" for c in self.genes]
        lines += [f"descriptions, {c.line()}" for c in self.descriptions]
        lines += [f"facts, {c.line()}" for c in self.facts]
        for space in self.spaces:
            state = {"added": " (new)", "removed": " (dropped)"}.get(space.state, "")
            lines.append(f"vectors{state}, {space.line('of changed texts')} ({space.backbone})")
        lines += [f"references {how}: {', '.join(names)}" for how, names in self.references.items() if names]
        lines += ["nothing differs"] if self.same else []
        lines += [line for example in self.examples for line in example.lines()]
        # Texts come from files and services: no terminal code of theirs is passed on.
        return ["".join(c if c.isprintable() else " " for c in line) for line in lines]


def diff(store: Path | str, old: int | str, new: int | str = "current", limit: int = 20) -> DiffReport:
    """Compare two versions of a store.

    ``old`` and ``new`` are numbers of versions, or ``current``; ``limit`` is the number of examples of genes
    and of descriptions added, changed and removed. InputError names the versions that exist.
    """
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
        fix = f"the current version is {store.generation.number}"
        raise InputError(f"{given!r} is not the number of a version", "", fix, code="bad-name") from None


def _table(store: Store, name: str, columns: Sequence[str]) -> pd.DataFrame:
    """Return columns of a table of the gene knowledge; no rows where there is no knowledge."""
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
    columns = ["gene_id", "text_sha256"]
    if stored is None:
        return pd.DataFrame(columns=columns, dtype=object)
    return stored.genes[columns].astype(str)
