"""``scvec diff``: what differs between two generations of a store."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.api.gene_reports import Changed, DiffReport, Example, SpaceChange
from scvec.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from scvec.stores.comparison import Changes
    from scvec.stores.knowledge import KnowledgeBase
    from scvec.stores.store import Store
    from scvec.stores.stored import StoredSpace

__all__ = ["diff"]


def diff(store: Path | str, old: int | str, new: int | str = "current", limit: int = 20) -> DiffReport:
    """Compare two generations of a store.

    Parameters
    ----------
    old, new
        Numbers of generations, or ``current``.
    limit
        Examples of each: genes and descriptions added, changed, removed.

    Raises
    ------
    InputError
        If there is no such generation, or `compact` has dropped it; names those there are.
    """
    from scvec.stores.comparison import knowledge_changes
    from scvec.stores.store import Store

    if limit < 0:
        raise InputError(f"limit must not be negative: {limit}", "--limit", "give 0 or more")
    opened = Store(store)
    before, after = (opened.at(_number(opened, g)) for g in (old, new))
    with ExitStack() as stack:
        one, other = _knowledge(stack, before), _knowledge(stack, after)
        changes = knowledge_changes(one, other, limit) if _differ(before, after) else {}
        examples = _examples(one, other, changes) if changes else []
    return DiffReport(
        old=before.generation.number,
        new=after.generation.number,
        old_command=before.generation.manifest.command,
        new_command=after.generation.manifest.command,
        genes=_changed(changes.get("genes")),
        descriptions=_changed(changes.get("descriptions")),
        facts=_changed(changes.get("notes")),
        spaces=_spaces(before, after),
        references=_references(before, after),
        examples=examples,
    )


def _number(store: Store, given: int | str) -> int:
    if str(given) == "current":
        return store.generation.number
    try:
        return int(given)
    except ValueError:
        raise InputError(
            f"{given!r} is no number of a generation", "", f"the current one is {store.generation.number}"
        ) from None


def _differ(before: Store, after: Store) -> bool:
    old, new = (s.generation.manifest.knowledge for s in (before, after))
    return (old and old.digest) != (new and new.digest)


def _knowledge(stack: ExitStack, store: Store) -> KnowledgeBase | None:
    if store.generation.manifest.knowledge is None:
        return None
    return stack.enter_context(store.knowledge())


def _changed(changes: Changes | None) -> list[Changed]:
    if changes is None:
        return []
    return [Changed(what=" ".join(group), **states) for group, states in changes.counts.items()]


def _examples(
    old: KnowledgeBase | None, new: KnowledgeBase | None, changes: Mapping[str, Changes]
) -> list[Example]:
    symbols: dict[str, str] = {}
    for kb in (old, new):
        if kb is not None:
            genes = kb.genes()
            symbols.update(zip(genes["gene_id"], genes["symbol"], strict=True))
    found = []
    for state, rows in changes["genes"].examples.items():
        for row in rows:
            found.append(
                Example(
                    state="renamed" if state == "changed" else state,
                    gene_id=row["gene_id"],
                    symbol=symbols.get(row["gene_id"], ""),
                    what=f"{row['species']} gene",
                    before=row["old_symbol"] or "" if state == "changed" else "",
                    after=row["new_symbol"] or "" if state == "changed" else "",
                )
            )
    for state, rows in changes["descriptions"].examples.items():
        for row in rows:
            model = f", {row['model']}" if row["model"] else ""
            found.append(
                Example(
                    state=state,
                    gene_id=row["gene_id"],
                    symbol=symbols.get(row["gene_id"], ""),
                    what=f"{row['kind']} text from {row['source']}{model}",
                    before=_text(old, row) if state != "added" else "",
                    after=_text(new, row) if state != "removed" else "",
                )
            )
    return found


def _text(kb: KnowledgeBase | None, row: Mapping[str, Any]) -> str:
    if kb is None:
        return ""
    key = (row["source"], row["model"], row["prompt"])
    texts = kb.all_descriptions(row["gene_id"])
    return next((d.text for d in texts if (d.source, d.model, d.prompt) == key), "")


def _spaces(before: Store, after: Store) -> list[SpaceChange]:
    from scvec.stores.comparison import compare_tables

    old, new = before.spaces(), after.spaces()
    entries = [s.generation.manifest.spaces for s in (before, after)]
    found = []
    for fingerprint in sorted({*old, *new}):
        if entries[0].get(fingerprint) == entries[1].get(fingerprint):
            continue
        one, other = old.get(fingerprint), new.get(fingerprint)
        changes = compare_tables(_vectors(one), _vectors(other), ("gene_id",), "text_sha256", limit=0)
        states = changes.counts.get((), {})
        space = other or one
        found.append(
            SpaceChange(
                what=fingerprint,
                backbone=space.space.backbone if space is not None else "",
                state="added" if one is None else "removed" if other is None else "changed",
                **states,
            )
        )
    return found


def _vectors(stored: StoredSpace | None) -> pa.Table:
    import pyarrow as pa

    columns = ("gene_id", "text_sha256")
    if stored is None:
        return pa.table({c: pa.array([], pa.string()) for c in columns})
    return pa.table({c: pa.array(stored.genes[c].astype(str), pa.string()) for c in columns})


def _references(before: Store, after: Store) -> dict[str, list[str]]:
    old, new = (s.generation.manifest.references for s in (before, after))
    return {
        "added": sorted(new.keys() - old.keys()),
        "replaced": sorted(name for name in old.keys() & new.keys() if old[name] != new[name]),
        "removed": sorted(old.keys() - new.keys()),
    }
