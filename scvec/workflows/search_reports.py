"""What the searches give back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scvec.base.results import Record, Report

__all__ = ["CellHit", "CellHits", "GeneHit", "GeneHits", "LabelHit"]


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
