"""``scvec search genes``: genes by their names and descriptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scvec.backbones import load_backbone, parse_spec
from scvec.base.errors import InputError
from scvec.base.options import options_of, takes_options
from scvec.base.results import Record, Report
from scvec.base.species import SPECIES, species_key
from scvec.base.types import Backbone, Space, StreamingBackbone
from scvec.model.resolvers import no_knowledge
from scvec.stores.knowledge.gene_search import words
from scvec.stores.knowledge.knowledge import KnowledgeBase
from scvec.stores.knowledge.where import rows_where
from scvec.stores.store.reference_reader import StoredSpace
from scvec.stores.store.store import Store

__all__ = [
    "GeneHit",
    "GeneHits",
    "Ranked",
    "SearchOptions",
    "check_text",
    "find_meaning",
    "rank_genes",
    "search_genes",
    "shortened",
]

METHODS = ("hybrid", "meaning", "words")
#: Constant of reciprocal rank fusion (Cormack et al. 2009, doi:10.1145/1571941.1572114).
RRF = 60
#: How deep each ranking is read.
DEPTH = 300
#: A gene that is named comes first.
WEIGHTS = {"name": 3.0, "meaning": 1.0, "words": 1.0}
MAX_TEXT = 2000
#: There are more human protein-coding genes: a smaller space was made for a reference.
MIN_ENCODED = 15_000
#: Backbones whose weights come with scvec, so that a text can be encoded without a download.
_OURS = ("minilm",)

# Name and space -> backbone, the last one only: a server that answers many searches loads the weights once.
_last: dict[str, Backbone] = {}


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options of searches by a text.

    Attributes
    ----------
    k
        Number of hits.
    where
        SQL condition on genes (gene_id, species, symbol, entrez_id, name, gene_type) or on the obs of cells,
        applied before the best ``k`` are taken.
    method
        How genes are found: ``hybrid``, ``meaning`` (vectors alone) or ``words`` (no vectors).
    backbone
        SPEC of the backbone whose vectors are searched; the one that comes with scvec where not given.
    """

    k: int = 10
    where: str | None = None
    method: str = "hybrid"
    backbone: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 1 <= self.k <= 10_000:
            raise InputError(
                f"k is {self.k}", fix="give a number from 1 to 10,000", code="option-out-of-range"
            )
        if self.method not in METHODS:
            raise InputError(f"there is no method {self.method!r}", fix=f"methods: {', '.join(METHODS)}")


@dataclass(frozen=True, kw_only=True)
class GeneSearchOptions(SearchOptions):
    """Options of ``search genes``; the ``species`` of the genes with vectors, or human, where ``auto``."""

    species: str = "auto"


@dataclass(frozen=True, kw_only=True)
class GeneHit(Record):
    """One gene that a text is about.

    Attributes
    ----------
    score
        Reciprocal rank fusion, scaled so that the first place in every ranking gives 1.
    similarity
        Cosine of the gene's text vector to that of the query; None where the gene has no vector.
    keyword
        BM25 of the query's words; None where the gene has none of them.
    by
        Which rankings found it: ``name``, ``meaning``, ``words``.
    terms
        Names of its Gene Ontology terms that share a word with the query.
    text, source
        Its best description, and where that is from.
    """

    gene_id: str
    symbol: str
    species: str
    name: str
    gene_type: str
    score: float
    similarity: float | None
    keyword: float | None
    by: list[str]
    terms: list[str]
    text: str
    source: str


@dataclass(frozen=True, kw_only=True)
class GeneHits(Report):
    """Genes that a text is about, best first.

    Attributes
    ----------
    space
        Fingerprint of the space that was asked for meaning; empty where there was none.
    """

    query: str
    species: list[str]
    space: str
    hits: list[GeneHit]

    def lines(self) -> list[str]:
        """Return the hits as lines for people."""
        if not self.hits:
            return [f"no gene found for '{self.query}'"]
        width = max(len(h.symbol) for h in self.hits)
        lines = [f"genes about '{self.query}' ({', '.join(self.species)})"]
        for hit in self.hits:
            near = "" if hit.similarity is None else f"cosine {hit.similarity:.2f}"
            found = "" if hit.keyword is None else f"words {hit.keyword:.1f}"
            what = hit.name or hit.gene_id
            lines.append(f"  {hit.symbol:<{width}}  {hit.score:.2f}  {near:<11}  {found:<10}  {what}")
            if hit.terms:
                lines.append(f"  {'':<{width}}        {shortened(', '.join(hit.terms), 90)}")
        return lines


def shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def shared_terms(names: Sequence[tuple[str, str]], query_words: Sequence[str], limit: int = 3) -> list[str]:
    """Return the names of (id, name) terms that share most words with a query, most first."""
    wanted = set(query_words)
    scored = []
    for _, name in names:
        own = [w.strip(",()") for w in name.lower().replace("-", " ").split()]
        hits = len({s for s in wanted if any(w.startswith(s) for w in own)})
        if hits:
            scored.append((-hits, len(own), name))
    return [name for _, _, name in sorted(scored)[:limit]]


class Ranked:
    """Genes in the order of a fused ranking.

    Attributes
    ----------
    gene_ids
        Best first.
    scores
        Of ``gene_ids``, 0 to 1.
    similarity, keyword
        Gene id -> cosine, BM25.
    by
        Gene id -> names of the rankings that found it.
    space
        Fingerprint; empty where no space was asked.
    """

    def __init__(self, rankings: dict[str, Sequence[str]], space: str) -> None:
        total: dict[str, float] = {}
        self.by: dict[str, list[str]] = {}
        for kind, ranking in rankings.items():
            for place, gene_id in enumerate(ranking):
                total[gene_id] = total.get(gene_id, 0.0) + WEIGHTS[kind] / (RRF + 1 + place)
                self.by.setdefault(gene_id, []).append(kind)
        best = sum(WEIGHTS[kind] for kind, ranking in rankings.items() if ranking) / (RRF + 1)
        self.gene_ids = sorted(total, key=lambda g: (-total[g], g))
        self.scores = [total[g] / best for g in self.gene_ids]
        self.similarity: dict[str, float] = {}
        self.keyword: dict[str, float] = {}
        self.space = space
        self.notes: list[str] = []


@takes_options(GeneSearchOptions)
def search_genes(
    store: Path | str, text: str, options: GeneSearchOptions | None = None, **keywords: Any
) -> GeneHits:
    """Find genes by their names and descriptions.

    Three rankings are fused by rank (reciprocal rank fusion): genes that the text names; genes whose
    description is near in an embedding space of the store; genes with the words of the text in their names,
    description or Gene Ontology terms (BM25).

    Parameters
    ----------
    text
        Such as ``insulin secretion``, or names of genes.
    keywords
        Fields of :class:`GeneSearchOptions`, instead of ``options`` or before them.

    Raises
    ------
    InputError
        The store has no gene knowledge yet, or an option cannot be used.
    """
    asked = options_of(GeneSearchOptions, options, keywords)
    check_text(text)
    opened = Store(store)
    with opened.knowledge() as kb:
        by_meaning = asked.method != "words"
        meaning = find_meaning(opened, asked.backbone, device=asked.device) if by_meaning else None
        chosen = search_species(asked.species, meaning)
        genes = kb.genes().set_index("gene_id", drop=False)
        if not genes["species"].isin(chosen).any():
            fix = "run: scvec ingest genes for this species, or give another --species"
            raise no_knowledge(chosen[0], "--species", fix)
        allowed = None
        if asked.where is not None:
            of_species = genes[genes["species"].isin(chosen)]
            allowed = set(of_species["gene_id"].iloc[rows_where(of_species, asked.where, what="gene")])
        ranked = rank_genes(kb, text, meaning=meaning, species=chosen, allowed=allowed, method=asked.method)
        return GeneHits(
            query=text,
            species=chosen,
            space=ranked.space,
            hits=_hits(kb, genes, ranked, text, asked.k),
            notes=ranked.notes,
        )


def check_text(text: str) -> None:
    """Raise InputError if a text cannot be searched for."""
    if not text.strip():
        raise InputError("the text to search for is empty", fix='give words, as "insulin secretion"')
    if len(text) > MAX_TEXT:
        raise InputError(
            f"the text has {len(text):,} characters",
            fix=f"give at most {MAX_TEXT:,}",
            code="option-out-of-range",
        )


class Meaning:
    """A stored space and the backbone that encodes a text into it."""

    def __init__(self, stored: StoredSpace, backbone: Backbone) -> None:
        self.stored, self._backbone = stored, backbone

    def near(self, text: str, species: Sequence[str], allowed: set[str] | None) -> dict[str, float]:
        """Return gene id -> cosine to ``text`` of the space's genes, nearest first."""
        query = self._backbone.encode([text])[0].astype(np.float32)
        query /= max(float(np.linalg.norm(query)), 1e-12)
        genes = self.stored.genes
        keep = genes["species"].isin(list(species)).to_numpy()
        if allowed is not None:
            keep &= genes["gene_id"].isin(allowed).to_numpy()
        rows = np.flatnonzero(keep)
        vectors = self.stored.vectors[rows]
        cosines = (vectors @ query) / np.maximum(np.linalg.norm(vectors, axis=1), 1e-12)
        order = np.argsort(-cosines, kind="stable")
        ids = genes["gene_id"].to_numpy(dtype=object)[rows]
        return {str(ids[i]): float(cosines[i]) for i in order}


def find_meaning(store: Store, backbone: str | None, *, device: str = "auto") -> Meaning | None:
    """Return the space to search by meaning, None where the store has none.

    Parameters
    ----------
    backbone
        SPEC of a backbone that encoded genes of the store. Where None, the largest space of a model that
        comes with scvec: servers cost money, and the store does not know the folders of other models.

    Raises
    ------
    InputError
        The backbone given encoded no space of the store.
    """
    spaces = sorted(store.spaces().values(), key=lambda s: (-s.n, s.space.fingerprint))
    if backbone is None:
        spaces = [s for s in spaces if s.space.backbone in _OURS]
    for stored in spaces:
        space = stored.space
        key = f"{backbone or space.backbone} {space.fingerprint} {device}"
        if key not in _last:
            loaded = load_backbone(parse_spec(backbone or space.backbone, space.template), device=device)
            if not _fits(loaded, space):
                continue
            _last.clear()
            _last[key] = loaded
        return Meaning(stored, _last[key])
    if backbone is None:
        return None
    listed = ", ".join(dict.fromkeys(s.space.backbone for s in store.spaces().values())) or "none"
    what = f"the store has no gene vectors of {backbone}"
    raise InputError(
        what,
        str(store.path),
        f"it has those of: {listed}; scvec ingest embeddings makes them",
        code="unknown-space",
    )


def _fits(backbone: Backbone, space: Space) -> bool:
    if isinstance(backbone, StreamingBackbone):
        return backbone.fits(space)
    return backbone.space.fingerprint == space.fingerprint


def search_species(species: str, meaning: Meaning | None) -> list[str]:
    """Return the species to search, of an option that may be ``auto``."""
    if species != "auto":
        return [species_key(species)]
    there = set(meaning.stored.genes["species"].unique()) if meaning is not None else set()
    return [there.pop()] if len(there) == 1 else [SPECIES[0]]


def rank_genes(
    kb: KnowledgeBase,
    text: str,
    *,
    meaning: Meaning | None,
    species: Sequence[str],
    allowed: set[str] | None = None,
    method: str = "hybrid",
    terms: bool = True,
) -> Ranked:
    """Return the genes that a text is about.

    Parameters
    ----------
    meaning
        The space to ask; None for words alone.
    allowed
        Gene ids to rank; all where None.
    terms
        Also look for words in the names of Gene Ontology terms.
    """
    if method == "meaning" and meaning is None:
        raise InputError(
            "the store has no gene vectors to search",
            fix="run: scvec ingest embeddings",
            code="unknown-space",
        )
    rankings: dict[str, Sequence[str]] = {}
    notes: list[str] = []
    near: dict[str, float] = {}
    found: dict[str, float] = {}
    depth = DEPTH if allowed is None else None
    if method != "meaning":
        rankings["name"] = [g for g in kb.find_names(text, species) if allowed is None or g in allowed]
        hits = kb.find_words(text, species, limit=depth or 1_000_000, terms=terms)
        found = {g: s for g, s in hits if allowed is None or g in allowed}
        rankings["words"] = list(found)[:DEPTH]
    if meaning is not None and method != "words":
        near = meaning.near(text, species, allowed)
        rankings["meaning"] = list(near)[:DEPTH]
        if meaning.stored.n < MIN_ENCODED and method == "hybrid":
            notes.append(
                f"{meaning.stored.n:,} genes have vectors, the others are found by words only; "
                "scvec ingest embeddings encodes them"
            )
    elif method == "hybrid":
        notes.append("the store has no gene vectors: searched by words only (scvec ingest embeddings)")
    ranked = Ranked(rankings, meaning.stored.space.fingerprint if near and meaning is not None else "")
    ranked.similarity, ranked.keyword, ranked.notes = near, found, notes
    return ranked


def _hits(kb: KnowledgeBase, genes: pd.DataFrame, ranked: Ranked, text: str, k: int) -> list[GeneHit]:
    best = ranked.gene_ids[:k]
    described = kb.descriptions(best)
    terms = kb.go_terms_of(best)
    wanted = words(text)
    hits = []
    for gene_id, score in zip(best, ranked.scores, strict=False):
        gene = genes.loc[gene_id]
        description = described.get(gene_id)
        hits.append(
            GeneHit(
                gene_id=gene_id,
                symbol=str(gene["symbol"]),
                species=str(gene["species"]),
                name=str(gene["name"] or ""),
                gene_type=str(gene["gene_type"] or ""),
                score=round(score, 4),
                similarity=ranked.similarity.get(gene_id),
                keyword=ranked.keyword.get(gene_id),
                by=ranked.by[gene_id],
                terms=shared_terms(terms.get(gene_id, []), wanted),
                text=description.text if description else "",
                source=f"{description.source} {description.source_version}".strip() if description else "",
            )
        )
    return hits
