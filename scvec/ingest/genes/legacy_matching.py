"""Which gene a record of an earlier system is about."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from scvec.base.types import SPECIES, Species
from scvec.ingest.genes.legacy import LegacyEntry
from scvec.ingest.genes.names import GeneResolver

__all__ = ["LegacyMatch", "match_entries"]

# How well a name tells a gene, best first. What is left out guesses, and is not believed here.
_RANK = {
    "symbol": 0,
    "id": 1,
    "ensembl": 1,
    "entrez": 1,
    "previous": 2,
    "alias": 3,
    "composite": 4,
    "case": 5,
}
_NUMBER = re.compile(r"[\d.\s]*")


@dataclass
class LegacyMatch:
    """What became of the records of a file.

    Attributes
    ----------
    genes
        Gene id -> the record that tells of it, per group of records.
    ambiguous
        Key -> genes that its name could be.
    unknown
        Keys whose gene is not known.
    contradictory
        Key -> how its names contradict each other.
    repeated
        Key -> key of the record that was taken for the same gene.
    species
        Species of the records that say none themselves.
    """

    species: Species
    genes: dict[str, dict[str, LegacyEntry]] = field(default_factory=dict)
    ambiguous: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    contradictory: dict[str, str] = field(default_factory=dict)
    repeated: dict[str, str] = field(default_factory=dict)

    @property
    def n_matched(self) -> int:
        """Number of records that tell of a gene and were taken."""
        return sum(len(group) for group in self.genes.values())


def match_entries(
    entries: Sequence[LegacyEntry],
    resolver: GeneResolver,
    gene_ids: Collection[str],
    species: Species | str = "auto",
) -> LegacyMatch:
    """Find the gene of each record by what the record says, never by where it stands.

    A symbol is looked up as :meth:`GeneResolver.resolve` does. Where a record names ids too, both must mean
    one gene. Of two records of one gene the one with its official symbol is taken, then a previous symbol,
    then an alias; of equals the first.

    Parameters
    ----------
    gene_ids
        All that the knowledge base knows.
    species
        Of records that say none: ``human``, ``mouse``, or ``auto``: what most symbols are of.
    """
    silent = [e.symbol for e in entries if e.species is None and e.symbol]
    default = resolver.resolve(silent, species).species
    known = frozenset(gene_ids)
    match = LegacyMatch(default)
    ranks: dict[tuple[str, str], int] = {}
    for one in SPECIES:
        group = [e for e in entries if (e.species or default) == one]
        by_symbol = _by_symbol(resolver, group, one)
        by_id = _by_id(resolver, group, one, known)
        for entry in group:
            genes, how = by_symbol.get(entry.symbol, ((), ""))
            gene_id = _decide(match, entry, genes, {g for i in entry.ids for g in by_id.get(i, ())})
            if gene_id is not None:
                _take(match, ranks, entry, gene_id, _RANK[how] if how in _RANK and gene_id in genes else 1)
    return match


def _by_symbol(
    resolver: GeneResolver, entries: Iterable[LegacyEntry], species: Species
) -> dict[str, tuple[tuple[str, ...], str]]:
    # A number could be an Entrez id, and is a token id.
    names = list(dict.fromkeys(e.symbol for e in entries if not _NUMBER.fullmatch(e.symbol)))
    found = resolver.resolve(names, species)
    genes: dict[str, tuple[tuple[str, ...], str]] = {}
    for name, gene_id, how in zip(names, found.gene_ids, found.how, strict=True):
        if how == "ambiguous":
            genes[name] = (found.ambiguous[name], how)
        elif gene_id is not None and how in _RANK:
            genes[name] = ((gene_id,), how)
    return genes


def _by_id(
    resolver: GeneResolver, entries: Iterable[LegacyEntry], species: Species, known: Collection[str]
) -> dict[str, tuple[str, ...]]:
    ids = list(dict.fromkeys(i for e in entries for i in e.ids))
    found = resolver.resolve(ids, species)
    genes: dict[str, tuple[str, ...]] = {}
    for name, gene_id, how in zip(ids, found.gene_ids, found.how, strict=True):
        if name in known:
            genes[name] = (name,)
        elif gene_id is not None and how in _RANK:
            genes[name] = (gene_id,)
    return genes


def _decide(
    match: LegacyMatch, entry: LegacyEntry, by_symbol: tuple[str, ...], by_id: set[str]
) -> str | None:
    key = _key(entry)
    if len(by_id) > 1:
        match.contradictory[key] = f"its names are of several genes ({', '.join(sorted(by_id))})"
        return None
    if by_id:
        (gene_id,) = by_id
        if by_symbol and gene_id not in by_symbol:
            match.contradictory[key] = (
                f"{entry.symbol} is {' or '.join(by_symbol)}, {' and '.join(entry.ids)} is {gene_id}"
            )
            return None
        return gene_id
    if len(by_symbol) == 1:
        return by_symbol[0]
    if by_symbol:
        match.ambiguous[key] = by_symbol
    else:
        match.unknown.append(key)
    return None


def _take(
    match: LegacyMatch, ranks: dict[tuple[str, str], int], entry: LegacyEntry, gene_id: str, rank: int
) -> None:
    group = match.genes.setdefault(entry.group, {})
    there = group.get(gene_id)
    if there is None or rank < ranks[entry.group, gene_id]:
        if there is not None:
            match.repeated[_key(there)] = _key(entry)
        group[gene_id] = entry
        ranks[entry.group, gene_id] = rank
    else:
        match.repeated[_key(entry)] = _key(there)


def _key(entry: LegacyEntry) -> str:
    """Return what people know a record by: its symbol, and its token id where it has one."""
    name = entry.symbol if entry.symbol == entry.key or not entry.symbol else f"{entry.symbol} ({entry.key})"
    name = name or entry.key
    return f"{entry.group}/{name}" if entry.group else name
