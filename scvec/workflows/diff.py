"""``scvec diff``: the differences between two versions of a store, or between two references."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from scvec.base.errors import InputError, StoreError
from scvec.base.results import Record, Report
from scvec.stores.store.packs import MAX_JSON, PackReader
from scvec.stores.store.reference_reader import StoredSpace
from scvec.stores.store.store import Store

if TYPE_CHECKING:
    from scvec.model.card import Card

__all__ = [
    "Changed",
    "DiffReport",
    "Example",
    "LabelChange",
    "ReferenceDiff",
    "SpaceChange",
    "diff",
    "diff_references",
]

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
        """Return it as text."""
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
        """Return the report as lines of text."""
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
        # Texts come from files and services, so terminal codes are removed.
        return ["".join(c if c.isprintable() else " " for c in line) for line in lines]


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
    """Return columns of a table of the knowledge base; no rows if the store has no knowledge base."""
    if store.generation.manifest.knowledge is None:
        return pd.DataFrame(columns=list(columns), dtype=object)
    with store.knowledge() as kb:
        return kb.frame(name, columns)


def _differing(before: Store, after: Store, name: str) -> pd.DataFrame:
    table, keys, value, groups = _TABLES[name]
    columns = list(dict.fromkeys((*keys, *groups, value)))
    return _compared(_table(before, table, columns), _table(after, table, columns), keys, value)


def _compared(old: pd.DataFrame, new: pd.DataFrame, keys: Sequence[str], value: str) -> pd.DataFrame:
    """Return the rows that differ: all columns, ``state``, and ``old`` and ``new`` values."""
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


#: Fields of two cards that are compared, and their names in the report.
_FACTS = {
    "license": "licence",
    "species": "species",
    "tissue": "tissue",
    "assay": "assay",
    "with_cells": "with cells",
    "encoder": "encoder",
    "n_genes": "genes of the cell space",
    "embed_dim": "dimensions",
    "held_out": "held out",
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "ece": "calibration error",
    "scvec": "scvec",
}


@dataclass(frozen=True, kw_only=True)
class LabelChange(Record):
    """A label whose number of cells, recall on held-out cells, or term differs (0 cells if it is missing)."""

    label: str
    state: str
    cells_before: int = 0
    cells_after: int = 0
    recall_before: float | None = None
    recall_after: float | None = None

    def line(self) -> str:
        """Return it as text."""
        shown = f"  {self.state} {self.label}: {self.cells_before:,} -> {self.cells_after:,} cells"
        if self.recall_before != self.recall_after:
            found = ("?" if r is None else f"{r:.0%}" for r in (self.recall_before, self.recall_after))
            shown += f", {' -> '.join(found)} found"
        return shown


@dataclass(frozen=True, kw_only=True)
class ReferenceDiff(Report):
    """The differences between two references, from their cards and genes.

    Attributes
    ----------
    facts
        Differences of the cards: name -> (before, after).
    labels
        Labels that were added, removed or changed.
    genes_added, genes_removed
        Numbers of genes that only the new or only the old reference has measured.
    sources_added, sources_removed
        Citations.
    """

    old: str
    new: str
    cells_before: int
    cells_after: int
    facts: dict[str, tuple[Any, Any]]
    labels: list[LabelChange]
    genes_added: int
    genes_removed: int
    sources_added: list[str]
    sources_removed: list[str]

    @property
    def same(self) -> bool:
        """True if nothing differs."""
        counted = self.genes_added or self.genes_removed or self.cells_before != self.cells_after
        return not (counted or self.facts or self.labels or self.sources_added or self.sources_removed)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and ``same``."""
        return {"same": self.same, **super().to_dict()}

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        lines = [f"from {self.old} to {self.new}"]
        if self.cells_before != self.cells_after:
            lines.append(f"cells: {self.cells_before:,} -> {self.cells_after:,}")
        lines += [f"{name}: {_shown(a)} -> {_shown(b)}" for name, (a, b) in self.facts.items()]
        if self.genes_added or self.genes_removed:
            lines.append(f"genes: {self.genes_added:,} added, {self.genes_removed:,} removed")
        lines += [f"source added: {source}" for source in self.sources_added]
        lines += [f"source removed: {source}" for source in self.sources_removed]
        lines += ["labels:"] * bool(self.labels) + [label.line() for label in self.labels]
        lines += ["nothing differs"] if self.same else []
        return ["".join(c if c.isprintable() else " " for c in line) for line in lines]


def _shown(value: Any) -> str:
    return "not stated" if value in (None, "") else f"{value:,}" if isinstance(value, int) else str(value)


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
    facts = {
        name: (getattr(before, key), getattr(after, key))
        for key, name in _FACTS.items()
        if getattr(before, key) != getattr(after, key)
    }
    was, now = ({str(label["label"]): label for label in card.labels} for card in (before, after))
    labels = []
    for label in dict.fromkeys([*was, *now]):
        a, b = was.get(label), now.get(label)
        if a != b:
            labels.append(
                LabelChange(
                    label=label,
                    state="added" if a is None else "removed" if b is None else "changed",
                    cells_before=int((a or {}).get("cells") or 0),
                    cells_after=int((b or {}).get("cells") or 0),
                    recall_before=(a or {}).get("recall"),
                    recall_after=(b or {}).get("recall"),
                )
            )
    return ReferenceDiff(
        old=str(old),
        new=str(new),
        cells_before=before.n_cells,
        cells_after=after.n_cells,
        facts=facts,
        labels=labels,
        genes_added=len(genes_after - genes_before),
        genes_removed=len(genes_before - genes_after),
        sources_added=[s for s in after.sources if s not in before.sources],
        sources_removed=[s for s in before.sources if s not in after.sources],
    )


def _described(store: Path | str, given: Path | str) -> tuple[Card, set[str]]:
    """Return the card and the genes of a reference of the store, or of a pack."""
    from scvec.model.card import Card, card_of
    from scvec.model.storage import genes_of

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
