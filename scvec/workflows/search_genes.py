"""``scvec search genes``: search genes by their names and descriptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scvec.backbones import load_backbone, parse_spec
from scvec.base.errors import InputError, check_choice, check_range
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
#: Number of genes from each ranking.
DEPTH = 300
#: Weights of the rankings. Genes whose name is in the text come first.
WEIGHTS = {"name": 3.0, "meaning": 1.0, "words": 1.0}
MAX_TEXT = 2000
#: Spaces with fewer genes were made for one reference, because there are more human protein-coding genes.
MIN_ENCODED = 15_000
#: Backbones whose weights ship with scvec. They encode a text without a download.
_OURS = ("minilm",)

# Name and space -> last backbone, so that a server loads the weights once for many searches.
_last: dict[str, Backbone] = {}


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options of searches with a text.

    Attributes
    ----------
    k
        Number of hits.
    where
        SQL condition on genes (gene_id, species, symbol, entrez_id, name, gene_type) or on the obs of cells.
        It is applied before the best ``k`` are selected.
    method
        Search method: ``hybrid``, ``meaning`` (vectors alone) or ``words`` (no vectors).
    backbone
        SPEC of the backbone whose vectors are searched; None for the backbone that ships with scvec.
    """

    k: int = 10
    where: str | None = None
    method: str = "hybrid"
    backbone: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        check_range("-k", self.k, 1, 10_000)
        check_choice("--method", self.method, METHODS)


@dataclass(frozen=True, kw_only=True)
class GeneSearchOptions(SearchOptions):
    """Options of ``search genes``. ``auto`` is the species of the genes with vectors, or else human."""

    species: str = "auto"


@dataclass(frozen=True, kw_only=True)
class GeneHit(Record):
    """A gene found by a search.

    Attributes
    ----------
    score
        Score of the reciprocal rank fusion. It is 1 for the first place in every ranking.
    similarity
        Cosine between the text vectors of gene and query; None for a gene without a vector.
    keyword
        BM25 score of the words of the query; None if the gene has none of them.
    by
        Rankings that found the gene: ``name``, ``meaning``, ``words``.
    terms
        Names of its Gene Ontology terms that share a word with the query.
    text, source
        The best description of the gene, and its source.
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
    """Result of a search for genes, best first.

    Attributes
    ----------
    space
        Fingerprint of the searched space; empty if no vectors were searched.
    """

    query: str
    species: list[str]
    space: str
    hits: list[GeneHit]

    def lines(self) -> list[str]:
        """Return the hits as lines of text."""
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
    """Return the names of the (id, name) terms that share the most words with a query, best first."""
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
        Scores of ``gene_ids``, 0 to 1.
    similarity, keyword
        Gene id -> cosine, and gene id -> BM25 score.
    by
        Gene id -> names of the rankings that found it.
    space
        Fingerprint of the searched space; empty if no vectors were searched.
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
    """Search genes by their names and descriptions.

    Three rankings are combined by reciprocal rank fusion: genes that the text names; genes whose description
    has a similar vector in a space of the store; and genes with words of the text in their names, description
    or Gene Ontology terms (BM25).

    Parameters
    ----------
    store
        Folder of the store.
    text
        Text such as ``insulin secretion``, or names of genes.
    options, keywords
        :class:`GeneSearchOptions`, or its fields as keywords. Keywords override ``options``.

    Raises
    ------
    InputError
        If the store has no gene knowledge yet, or an option cannot be used.
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
        hits = _hits(kb, genes, ranked, text, asked.k)
        if not hits and not kb.descriptions(genes.loc[genes["species"].isin(chosen), "gene_id"].tolist()):
            ranked.notes.append(
                f"genes of {chosen[0]} have names, but no descriptions: search --species human, or load some "
                "(scvec ingest genes --source ncbi, mygene or FILE)"
            )
        return GeneHits(query=text, species=chosen, space=ranked.space, hits=hits, notes=ranked.notes)


def check_text(text: str) -> None:
    """Raise InputError if a text is empty or too long."""
    if not text.strip():
        fix = 'give words such as "insulin secretion"'
        raise InputError("the search text is empty", fix=fix, code="usage")
    if len(text) > MAX_TEXT:
        raise InputError(
            f"the text has {len(text):,} characters",
            fix=f"give at most {MAX_TEXT:,}",
            code="option-out-of-range",
        )


class Meaning:
    """A stored space, and the backbone that encodes texts for it."""

    def __init__(self, stored: StoredSpace, backbone: Backbone) -> None:
        self.stored, self._backbone = stored, backbone

    def near(self, text: str, species: Sequence[str], allowed: set[str] | None) -> dict[str, float]:
        """Return gene id -> cosine to ``text``, for the genes of the space, nearest first."""
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
    """Return the space for searches by meaning; None if the store has no suitable space.

    Parameters
    ----------
    backbone
        SPEC of a backbone with a space in the store. None selects the largest space of a model that ships
        with scvec, because servers cost money and the folders of other models are unknown.

    Raises
    ------
    InputError
        If the store has no space of the backbone.
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
    what = f"the store has no gene vectors of the backbone {backbone}"
    raise InputError(
        what,
        str(store.path),
        f"it has vectors of: {listed}; scvec ingest embeddings makes others",
        code="unknown-space",
    )


def _fits(backbone: Backbone, space: Space) -> bool:
    if isinstance(backbone, StreamingBackbone):
        return backbone.fits(space)
    return backbone.space.fingerprint == space.fingerprint


def search_species(species: str, meaning: Meaning | None) -> list[str]:
    """Return the species to search, for an option that may be ``auto``."""
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
    """Return the genes that match a text, ranked.

    Parameters
    ----------
    meaning
        Space to search; None for words alone.
    allowed
        Gene ids to rank; None for all.
    terms
        Also search words in the names of Gene Ontology terms.
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
                f"{meaning.stored.n:,} genes have vectors, others are found by words only; "
                "scvec ingest embeddings encodes all"
            )
    elif method == "hybrid":
        notes.append(
            "the store has no gene vectors, so only words were searched; scvec ingest embeddings makes them"
        )
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
