"""``scvec search genes``: genes that a text is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scvec.base.errors import InputError
from scvec.base.results import Record, Report
from scvec.base.types import SPECIES, StreamingBackbone

if TYPE_CHECKING:
    import pandas as pd

    from scvec.base.types import Backbone, Space
    from scvec.stores.knowledge.knowledge import KnowledgeBase
    from scvec.stores.store.reference_reader import StoredSpace
    from scvec.stores.store.store import Store

__all__ = [
    "METHODS",
    "CellHit",
    "CellHits",
    "GeneHit",
    "GeneHits",
    "LabelHit",
    "Meaning",
    "Ranked",
    "check_search",
    "find_meaning",
    "rank_genes",
    "search_genes",
]


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
                lines.append(f"  {'':<{width}}        {_short(', '.join(hit.terms), 90)}")
        return lines


@dataclass(frozen=True, kw_only=True)
class LabelHit(Record):
    """One label of a reference, and how much its cells express the genes.

    Attributes
    ----------
    score
        Mean over the genes, weighted by how well each fits the text, of how far the label's mean is
        above the mean over labels, in spreads of the gene within labels.
    n_cells
        Cells of this label that were searched.
    genes
        Genes that raise the score most.
    """

    label: str
    score: float
    n_cells: int
    genes: list[str]


@dataclass(frozen=True, kw_only=True)
class CellHit(Record):
    """One cell of a reference.

    Attributes
    ----------
    score
        Cosine, -1 to 1.
    label
        Its label in the reference; empty where it has none.
    obs
        Other columns of the cell.
    """

    cell: str
    row: int
    score: float
    label: str
    obs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CellHits(Report):
    """Cells and labels that a text is about, or cells like one.

    Attributes
    ----------
    genes
        The genes that the text is about and the reference measured, with their scores; empty for ``like``.
    labels
        All labels, best first; for ``like`` how many of the cells found have each.
    n_searched
        Cells that ``where`` left.
    """

    query: str
    like: str
    reference: str
    where: str
    n_searched: int
    genes: list[dict[str, Any]]
    labels: list[LabelHit]
    hits: list[CellHit]

    def lines(self) -> list[str]:
        """Return the hits as lines for people."""
        about = f"cells like {self.like}" if self.like else f"cells about '{self.query}'"
        lines = [f"{about} in reference '{self.reference}' ({self.n_searched:,} cells searched)"]
        if self.genes:
            lines.append("genes: " + ", ".join(g["symbol"] for g in self.genes[:12]))
        if self.labels:
            lines.append("labels:")
            width = max(len(h.label) for h in self.labels[:10])
            for hit in self.labels[:10]:
                genes = ", ".join(hit.genes[:5])
                line = f"  {hit.label:<{width}}  {hit.score:6.2f}  {hit.n_cells:>7,} cells  {genes}"
                lines.append(line.rstrip())
        if self.hits:
            lines.append("cells:")
            wide = max(len(h.cell) for h in self.hits)
            named = max(len(h.label) for h in self.hits)
            for cell in self.hits:
                rest = _short(", ".join(f"{k} {v}" for k, v in cell.obs.items()), 60)
                line = f"  {cell.cell:<{wide}}  {cell.score:.3f}  {cell.label:<{named}}  {rest}"
                lines.append(line.rstrip())
        return lines


def _short(text: str, limit: int) -> str:
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


METHODS = ("hybrid", "meaning", "words")
#: Constant of reciprocal rank fusion (Cormack et al. 2009, doi:10.1145/1571941.1572114).
RRF = 60
#: How deep each ranking is read.
DEPTH = 300
#: A gene that is named is wanted, whatever else fits.
WEIGHTS = {"name": 3.0, "meaning": 1.0, "words": 1.0}
MAX_TEXT = 2000
#: Human genes that code for proteins are more: a space of fewer was made for a reference.
MIN_ENCODED = 15_000
#: Backbones whose weights come with scvec, so that a text can be encoded without asking for anything.
_OURS = ("minilm",)

# Name and space -> backbone, the last one only: a server that answers many searches loads the weights once.
_last: dict[str, Backbone] = {}


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


def search_genes(
    store: Path | str,
    text: str,
    *,
    k: int = 10,
    species: str = "auto",
    where: str | None = None,
    method: str = "hybrid",
    backbone: str | None = None,
    device: str = "auto",
) -> GeneHits:
    """Find genes by what is known of them.

    Three rankings are fused by their places (reciprocal rank fusion): genes that the text names; genes whose
    description is near in the embedding space of the store; genes with the words of the text in their names,
    description or Gene Ontology terms (BM25).

    Parameters
    ----------
    text
        What the genes are about, such as ``insulin secretion``, or names of genes.
    k
        How many to return.
    species
        ``human``, ``mouse`` or ``auto``: that of the genes with vectors, human where there are both.
    where
        SQL condition over gene_id, species, symbol, entrez_id, name, gene_type; applied before the best ``k``
        are taken.
    method
        ``hybrid``, ``meaning`` (vectors alone) or ``words`` (no vectors).
    backbone
        SPEC of the backbone whose vectors are asked; the one that comes with scvec where not given.

    Raises
    ------
    InputError
        The store has no knowledge yet, or an option cannot be used.
    """
    from scvec.stores.store.store import Store

    check_search(text, k)
    opened = Store(store)
    with opened.knowledge() as kb:
        meaning = find_meaning(opened, backbone, device=device) if method != "words" else None
        chosen = search_species(species, meaning)
        genes = kb.genes().set_index("gene_id", drop=False)
        allowed = None
        if where is not None:
            from scvec.stores.knowledge.where import rows_where

            rows = rows_where(genes[genes["species"].isin(chosen)], where, what="gene")
            allowed = set(genes[genes["species"].isin(chosen)]["gene_id"].iloc[rows])
        ranked = rank_genes(kb, text, meaning=meaning, species=chosen, allowed=allowed, method=method)
        return GeneHits(
            query=text,
            species=chosen,
            space=ranked.space,
            hits=_hits(kb, genes, ranked, text, k),
            notes=ranked.notes,
        )


def check_search(text: str, k: int) -> None:
    """Raise InputError where a text or a number of hits cannot be searched for."""
    if not text.strip():
        raise InputError("the text to search for is empty", fix='give words, as "insulin secretion"')
    if len(text) > MAX_TEXT:
        raise InputError(
            f"the text has {len(text):,} characters",
            fix=f"give at most {MAX_TEXT:,}",
            code="option-out-of-range",
        )
    if not 1 <= k <= 10_000:
        raise InputError(f"k is {k}", fix="give a number from 1 to 10,000", code="option-out-of-range")


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
    """Return the space to search by meaning; None where the store has none that can be asked without asking.

    Parameters
    ----------
    backbone
        SPEC of a backbone that encoded genes of the store. Where None, the fullest space of a model that
        comes with scvec: servers cost money, and of other models the store knows no folder.

    Raises
    ------
    InputError
        The backbone given encoded no space of the store.
    """
    from scvec.backbones import load_backbone, parse_spec

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
        if species not in SPECIES:
            raise InputError(f"there is no species {species!r}", fix=f"give auto, {' or '.join(SPECIES)}")
        return [species]
    there = set(meaning.stored.genes["species"].unique()) if meaning is not None else set()
    return [there.pop()] if len(there) == 1 else ["human"]


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
    if method not in METHODS:
        raise InputError(f"there is no method {method!r}", fix=f"methods: {', '.join(METHODS)}")
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
    from scvec.stores.knowledge.gene_search import words

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
