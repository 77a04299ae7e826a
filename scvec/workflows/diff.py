"""``scvec diff``: the differences between two versions of a store, or between two references."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from scvec.base.errors import InputError, StoreError, check_range
from scvec.base.results import Record, Report
from scvec.model.card import Card, card_of
from scvec.model.storage import genes_of
from scvec.stores.store.packs import MAX_JSON, PackReader
from scvec.stores.store.store import Store

__all__ = ["Changed", "DiffReport", "Example", "ReferenceDiff", "diff", "diff_references"]

#: Longest line about a text.
WIDTH = 100
#: Section of the report -> table, columns of its key, column that may change, columns to count by.
_TABLES = {
    "genes": ("genes", ["gene_id"], "symbol", ["species"]),
    "descriptions": ("descriptions", ["gene_id", "source", "model", "prompt"], "text", ["kind", "source"]),
    "facts": ("notes", ["gene_id", "source"], "facts", ["source"]),
}
_STATES = {"left_only": "removed", "both": "changed", "right_only": "added"}
#: Fields of a card that are not compared one by one.
_OTHER = {"name", "labels", "failures", "files", "derived_from", "changed"}


@dataclass(frozen=True, kw_only=True)
class Changed(Record):
    """Numbers of rows added, changed and removed; ``what`` is their species, kind and source, or space."""

    what: str
    added: int = 0
    changed: int = 0
    removed: int = 0

    def line(self) -> str:
        """Return it as text."""
        counts = {"added": self.added, "changed": self.changed, "removed": self.removed}
        return f"{self.what}: {', '.join(f'{n:,} {how}' for how, n in counts.items() if n) or 'the same'}"


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
        """Return it as lines of text; long texts start at the first difference."""
        lines = [f"  {self.state} {self.symbol} ({self.gene_id}), {self.what}"]
        pairs = enumerate(zip(self.before, self.after, strict=False))
        alike = next((i for i, (one, other) in pairs if one != other), 0)
        start = 0 if alike < WIDTH // 2 else alike - WIDTH // 4
        for sign, text in (("-", self.before), ("+", self.after)):
            shown = f"{sign} … {text[start:]}" if start else f"{sign} {text}"
            if text:
                lines.append("    " + textwrap.shorten(shown[: 10 * WIDTH], WIDTH - 4, placeholder=" …"))
        return lines


def _printable(lines: Sequence[str]) -> list[str]:
    # Texts come from files and services, so terminal codes are removed.
    return ["".join(c if c.isprintable() else " " for c in line) for line in lines]


@dataclass(frozen=True, kw_only=True)
class DiffReport(Report):
    """The differences between two versions of a store.

    Attributes
    ----------
    old, new, old_command, new_command
        Numbers of the versions, and the commands that made them.
    genes, descriptions, facts, spaces
        Changes by species; by kind and source; by source; and by space of gene vectors. A changed gene has
        another symbol, a changed vector another text.
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
    spaces: list[Changed]
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
        """Return the report as lines of text."""
        both = ((self.old, self.old_command), (self.new, self.new_command))
        old, new = (f"{number} ({command})" if command else str(number) for number, command in both)
        lines = [f"from version {old} to {new}"]
        for name, section in (
            ("genes", self.genes),
            ("descriptions", self.descriptions),
            ("facts", self.facts),
            ("vectors", self.spaces),
        ):
            lines += [f"{name}, {one.line()}" for one in section]
        lines += [f"references {how}: {', '.join(names)}" for how, names in self.references.items() if names]
        lines += ["nothing differs"] if self.same else []
        return _printable([*lines, *(line for example in self.examples for line in example.lines())])


def diff(store: Path | str, old: int | str, new: int | str = "current", limit: int = 20) -> DiffReport:
    """Compare two versions of a store.

    Parameters
    ----------
    store
        Folder of the store.
    old, new
        Numbers of versions, or ``current``.
    limit
        Number of examples of genes and of descriptions added, changed and removed.

    Raises
    ------
    InputError
        The version does not exist; the message lists the versions.
    """
    check_range("--limit", limit, 0)
    opened = Store(store)
    before, after = (opened.at(_number(opened, g)) for g in (old, new))
    was, now = before.generation.manifest, after.generation.manifest
    same = (was.knowledge and was.knowledge.digest) == (now.knowledge and now.knowledge.digest)
    tables = {name: _differing(before, after, name) for name in _TABLES if not same}
    counts = {
        name: [
            Changed(what=" ".join(map(str, group)), **_states(rows))
            for group, rows in table.groupby(_TABLES[name][3])
        ]
        for name, table in tables.items()
    }
    one, other = was.references, now.references
    return DiffReport(
        old=before.generation.number,
        new=after.generation.number,
        old_command=was.command,
        new_command=now.command,
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
    """Return columns of a table of the knowledge base; no rows if the store has no knowledge base."""
    if store.generation.manifest.knowledge is None:
        return pd.DataFrame(columns=list(columns), dtype=object)
    with store.knowledge() as kb:
        return kb.frame(name, columns)


def _differing(before: Store, after: Store, name: str) -> pd.DataFrame:
    table, keys, value, groups = _TABLES[name]
    columns = list(dict.fromkeys((*keys, *groups, value)))
    return _compared(_table(before, table, columns), _table(after, table, columns), keys, value)


def _compared(old: pd.DataFrame, new: pd.DataFrame, keys: list[str], value: str) -> pd.DataFrame:
    """Return the rows that differ: all columns, ``state``, and ``old`` and ``new`` values."""
    both = old.merge(new, on=keys, how="outer", suffixes=("_old", "_new"), indicator="state")
    for column in set(old.columns) - {*keys, value}:
        both[column] = both[f"{column}_new"].fillna(both[f"{column}_old"])
    both = both.rename(columns={f"{value}_old": "old", f"{value}_new": "new"})
    both["state"] = both["state"].astype(str).map(_STATES)
    return both[(both["state"] != "changed") | (both["old"] != both["new"])].sort_values(keys)


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
            shown = renamed or name == "descriptions"  # for added and removed genes, the symbol is enough
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


def _spaces(before: Store, after: Store) -> list[Changed]:
    columns, none = ["gene_id", "text_sha256"], pd.DataFrame(columns=["gene_id", "text_sha256"], dtype=object)
    (old, was), (new, now) = ((s.spaces(), s.generation.manifest.spaces) for s in (before, after))
    found = []
    for name in sorted(f for f in {*old, *new} if was.get(f) != now.get(f)):
        one, other = (s[name].genes[columns].astype(str) if name in s else none for s in (old, new))
        what = f"{name} ({(new.get(name) or old[name]).space.backbone})"
        found.append(Changed(what=what, **_states(_compared(one, other, ["gene_id"], "text_sha256"))))
    return found


@dataclass(frozen=True, kw_only=True)
class ReferenceDiff(Report):
    """The differences between two references, from their cards and genes.

    Attributes
    ----------
    facts
        Fields of the cards that differ: name -> (before, after).
    labels
        Labels that were added, removed or changed: label -> entries of the cards (before, after), or None.
    genes_added, genes_removed
        Numbers of genes that only the new or only the old reference has measured.
    """

    old: str
    new: str
    facts: dict[str, tuple[Any, Any]]
    labels: dict[str, tuple[dict[str, Any] | None, dict[str, Any] | None]]
    genes_added: int
    genes_removed: int

    @property
    def same(self) -> bool:
        """True if nothing differs."""
        return not (self.genes_added or self.genes_removed or self.facts or self.labels)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and ``same``."""
        return {"same": self.same, **super().to_dict()}

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        lines = [f"from {self.old} to {self.new}"]
        lines += [f"{k.replace('_', ' ')}: {_shown(a)} -> {_shown(b)}" for k, (a, b) in self.facts.items()]
        if self.genes_added or self.genes_removed:
            lines.append(f"genes: {self.genes_added:,} added, {self.genes_removed:,} removed")
        for label, entries in self.labels.items():
            counts = " -> ".join(f"{(entry or {}).get('cells') or 0:,}" for entry in entries)
            found = ["?" if not e or e.get("recall") is None else f"{e['recall']:.0%}" for e in entries]
            recall = f", {' -> '.join(found)} found" if len({*found}) > 1 else ""
            lines.append(f"label {label}: {counts} cells{recall}")
        return _printable([*lines, *(["nothing differs"] if self.same else [])])


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return "not stated" if value in (None, "") else f"{value:,}" if type(value) is int else str(value)


def diff_references(store: Path | str, old: Path | str, new: Path | str) -> ReferenceDiff:
    """Compare two references: names in the store, or packs (``.scvec`` files), which need not be pulled.

    Raises
    ------
    InputError
        The reference or file does not exist.
    StoreError
        A pack is damaged.
    """
    (before, genes_before), (after, genes_after) = (_described(store, one) for one in (old, new))
    names = [field.name for field in fields(Card) if field.name not in _OTHER]
    pairs = {name: (getattr(before, name), getattr(after, name)) for name in names}
    was, now = ({str(label["label"]): label for label in card.labels} for card in (before, after))
    labels = {label: (was.get(label), now.get(label)) for label in dict.fromkeys([*was, *now])}
    return ReferenceDiff(
        old=str(old),
        new=str(new),
        facts={name: (a, b) for name, (a, b) in pairs.items() if a != b},
        labels={label: (a, b) for label, (a, b) in labels.items() if a != b},
        genes_added=len(genes_after - genes_before),
        genes_removed=len(genes_before - genes_after),
    )


def _described(store: Path | str, given: Path | str) -> tuple[Card, set[str]]:
    """Return the card and the genes of a reference of the store, or of a pack."""
    if Path(given).suffix != ".scvec":
        stored = Store(store).reference(str(given))
        return card_of(stored), set(genes_of(stored))
    with PackReader(Path(given)) as pack:
        try:
            meta = json.loads(pack.read(pack.manifest.reference.meta, MAX_JSON))
            known = {f.name for f in fields(Card)}
            card = Card(**{key: value for key, value in meta["card"].items() if key in known})
            card.lines()  # raises an error if a field has a wrong type
            return card, {str(gene) for gene in meta["all_genes"]}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            what = f"the card of the pack cannot be read ({type(error).__name__})"
            raise StoreError(what, str(given), "download it again from its publisher") from error
