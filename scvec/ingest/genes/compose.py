"""Sentences about a gene, composed from facts: name, type, Gene Ontology terms.

The templates are short because the time a text backbone needs grows with the text: a composed
description stays below about 90 word pieces. What tells genes apart comes first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["GoFact", "borrow", "choose", "compose"]

#: How many terms of each aspect a description may name.
LIMITS = {"BP": 6, "MF": 4, "CC": 4}

#: Longest composed text: below about 90 word pieces of the MiniLM tokenizer for 95% of protein-coding genes.
MAX_CHARS = 300

_EXPERIMENT = frozenset("EXP IDA IPI IMP IGI IEP HTP HDA HMP HGI HEP".split())
_CURATED = frozenset("TAS NAS IC".split())
# Above this information content a term names fewer than one gene in 150: more says too little about
# what the gene shares with others.
_IC_CAP = 5.0
# What is kept longest where a text is too long.
_KEEP = {"BP": 3, "MF": 2, "CC": 1}
# These say nothing about a gene, however they were found.
_EMPTY = frozenset(
    ["biological_process", "molecular_function", "cellular_component", "protein binding", "binding"]
)

_TYPES = {
    "protein-coding": "a protein-coding {} gene",
    "lncRNA": "a {} long non-coding RNA gene",
    "miRNA": "a {} microRNA gene",
    "rRNA": "a {} ribosomal RNA gene",
    "tRNA": "a {} transfer RNA gene",
    "snRNA": "a {} small nuclear RNA gene",
    "snoRNA": "a {} small nucleolar RNA gene",
    "ncRNA": "a {} non-coding RNA gene",
    "IG": "a {} immunoglobulin gene",
    "TR": "a {} T cell receptor gene",
    "pseudogene": "a {} pseudogene",
    "pseudo": "a {} pseudogene",
}


@dataclass(frozen=True, slots=True)
class GoFact:
    """One Gene Ontology term of a gene. ``aspect`` is ``BP``, ``MF`` or ``CC``."""

    go_id: str
    name: str
    aspect: str
    evidence: tuple[str, ...] = ()


def choose(
    facts: Iterable[GoFact],
    n_genes: Mapping[str, int] | None = None,
    total: int = 20_000,
    ancestors: Mapping[str, frozenset[str]] | None = None,
) -> dict[str, list[GoFact]]:
    """Pick the most informative terms of each aspect, best first.

    A term scores by its information content (capped, because a term of two genes says little) times
    the trust in its evidence: experiments before curators' statements before inference. A term is left
    out where a better one is its descendant or ancestor.

    Parameters
    ----------
    facts
        The terms of one gene, in any order.
    n_genes
        Genes annotated to each term or its descendants; terms that are missing count as one gene.
    total
        Number of genes that have annotations at all.
    ancestors
        All ancestors of each term.
    """
    ranked = sorted(facts, key=lambda fact: (-_score(fact, n_genes, total), fact.name))
    chosen: dict[str, list[GoFact]] = {aspect: [] for aspect in LIMITS}
    for fact in ranked:
        kept = chosen.get(fact.aspect)
        if kept is None or len(kept) == LIMITS[fact.aspect] or fact.name in _EMPTY or not fact.name:
            continue
        if any(_related(fact.go_id, other.go_id, ancestors) for other in kept):
            continue
        kept.append(fact)
    return chosen


def _score(fact: GoFact, n_genes: Mapping[str, int] | None, total: int) -> float:
    evidence = set(fact.evidence)
    trust = 1.0 if evidence & _EXPERIMENT else 0.9 if evidence & _CURATED else 0.75
    if n_genes is None:
        return trust
    n = max(1, n_genes.get(fact.go_id, 1))
    content = math.log(max(total, n + 1) / n)
    return trust * (content if content <= _IC_CAP else _IC_CAP - 0.5 * (content - _IC_CAP))


def _related(a: str, b: str, ancestors: Mapping[str, frozenset[str]] | None) -> bool:
    if a == b:
        return True
    if ancestors is None:
        return False
    return a in ancestors.get(b, ()) or b in ancestors.get(a, ())


def compose(
    symbol: str,
    species: str,
    gene_type: str = "",
    name: str = "",
    terms: Mapping[str, Sequence[GoFact]] | None = None,
    *,
    max_chars: int = MAX_CHARS,
) -> str:
    """Return one or two sentences about a gene.

    ``"INS (insulin), a protein-coding human gene. It takes part in glucose metabolic process, ...; acts
    through hormone activity; found in extracellular space."`` Terms that do not fit into ``max_chars``
    are left out, the least informative first.
    """
    head = _head(symbol, name, species, gene_type) + "."
    return head + _facts(terms, max_chars - len(head))


def borrow(
    symbol: str,
    species: str,
    gene_type: str,
    partner: tuple[str, str, str],
    terms: Mapping[str, Sequence[GoFact]] | None = None,
    *,
    name: str = "",
    max_chars: int = MAX_CHARS,
) -> str:
    """Return a description of a gene by the facts of its ortholog.

    Parameters
    ----------
    partner
        Species, symbol and name of the ortholog.
    terms
        The ortholog's terms, as :func:`choose` gives them.

    Examples
    --------
    >>> borrow("Ins1", "mouse", "protein-coding", ("human", "INS", "insulin"))
    'Ins1, a protein-coding mouse gene; ortholog of human INS (insulin).'
    """
    other_species, other_symbol, other_name = partner
    other = f"{other_symbol} ({other_name})" if other_name else other_symbol
    head = f"{_head(symbol, name, species, gene_type)}; ortholog of {other_species} {other}"
    return f"{head}.{_facts(terms, max_chars - len(head))}"


def _head(symbol: str, name: str, species: str, gene_type: str) -> str:
    label = f"{symbol} ({name})" if name and name != symbol else symbol
    return f"{label}, {_TYPES.get(gene_type, 'a {} gene').format(species)}"


def _facts(terms: Mapping[str, Sequence[GoFact]] | None, room: int) -> str:
    names = {aspect: [fact.name for fact in facts] for aspect, facts in (terms or {}).items()}
    while True:
        text = _clauses(names)
        if len(text) <= room or not any(names.values()):
            return text
        spare = [a for a in names if len(names[a]) > _KEEP.get(a, 1)] or [a for a in names if names[a]]
        # The later aspect gives way where two have as many to spare.
        names[max(reversed(spare), key=lambda a: len(names[a]) - _KEEP.get(a, 1))].pop()


def _clauses(names: Mapping[str, Sequence[str]]) -> str:
    parts = []
    if names.get("BP"):
        parts.append("takes part in " + ", ".join(names["BP"]))
    if names.get("MF"):
        short = [n.removesuffix(" activity") if n.count(" ") > 1 else n for n in names["MF"]]
        parts.append("acts through " + ", ".join(short))
    if names.get("CC"):
        parts.append(("is found in " if not parts else "found in ") + ", ".join(names["CC"]))
    return f" It {'; '.join(parts)}." if parts else ""
