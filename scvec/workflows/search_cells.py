"""``scvec search cells``: search cells of a reference by a text, or by similarity to one of its cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from scvec.base.errors import InputError, did_you_mean
from scvec.base.options import options_of, takes_options
from scvec.base.results import Record, Report
from scvec.base.types import CellChunk, Float32, Int64
from scvec.model.copies import HASH_COLUMN
from scvec.model.reference import ReferenceModel
from scvec.model.resolvers import no_knowledge
from scvec.model.storage import CODE_COLUMN, class_statistics, genes_of, load_model
from scvec.stores.knowledge.where import rows_where
from scvec.stores.store.reference_reader import StoredReference
from scvec.stores.store.store import Store
from scvec.workflows.query import only_reference
from scvec.workflows.search_genes import SearchOptions, check_text, find_meaning, rank_genes, shortened

__all__ = ["CellHit", "CellHits", "LabelHit", "search_cells"]

#: Number of genes found for a text that are used to score cells.
N_GENES = 30
#: Increase of these genes, in spreads within classes, that defines the direction of cells expressing them.
RAISE = 2.0
#: Number of cells in a block of vector comparisons.
BLOCK = 65_536


@dataclass(frozen=True, kw_only=True)
class LabelHit(Record):
    """A label of a reference, scored by the expression of the genes.

    Attributes
    ----------
    score
        Weighted mean over genes of the difference between the mean of the label and the mean over labels, in
        spreads of the gene within labels. Genes that fit the text better have more weight.
    n_cells
        Number of searched cells with this label.
    genes
        Genes with the largest contributions to the score.
    """

    label: str
    score: float
    n_cells: int
    genes: list[str]


@dataclass(frozen=True, kw_only=True)
class CellHit(Record):
    """A cell of a reference.

    Attributes
    ----------
    score
        Cosine, -1 to 1.
    label
        Label in the reference; empty for an unlabelled cell.
    obs
        Other columns of obs.
    """

    cell: str
    row: int
    score: float
    label: str
    obs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CellHits(Report):
    """Result of a search for cells.

    Attributes
    ----------
    genes
        Measured genes that match the text, with their scores; empty for ``like``.
    labels
        All labels, best first. For ``like``, the labels of the found cells with the number of cells.
    n_searched
        Number of searched cells, after ``where``.
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
        """Return the hits as lines of text."""
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
                rest = shortened(", ".join(f"{k} {v}" for k, v in cell.obs.items()), 60)
                line = f"  {cell.cell:<{wide}}  {cell.score:.3f}  {cell.label:<{named}}  {rest}"
                lines.append(line.rstrip())
        return lines


@takes_options(SearchOptions)
def search_cells(
    store: Path | str,
    text: str = "",
    options: SearchOptions | None = None,
    *,
    like: str | None = None,
    reference: str | None = None,
    **keywords: Any,
) -> CellHits:
    """Search cells of a reference by a text, or find the nearest neighbours of one of its cells.

    For a text, :func:`scvec.search_genes` finds matching genes among the measured genes of the reference.
    Labels are ranked by the mean expression of these genes, relative to the mean over labels. Cells are
    ranked by a cosine. It compares the vector of a cell, relative to the mean cell, with the change of the
    mean cell's vector when these genes are increased. The store has no expression values of single cells.

    Parameters
    ----------
    store
        Folder of the store.
    text
        Text such as ``insulin secretion``, or names of genes.
    like
        Name of a cell of the reference, instead of a text.
    reference
        Name of the reference; None is enough if the store has only one.
    options, keywords
        :class:`scvec.workflows.search_genes.SearchOptions`, or its fields as keywords. Keywords override
        ``options``.

    Raises
    ------
    InputError
        If the cell does not exist, no gene of the text is in the reference, or an option cannot be used.
    """
    asked = options_of(SearchOptions, options, keywords)
    if bool(text.strip()) == (like is not None):
        fix = 'search cells "beta" or --like CELL'
        raise InputError("give either a text or a cell", "scvec search cells", fix, code="usage")
    check_text(text or "x")
    opened = Store(store)
    stored = opened.reference(only_reference(opened, reference))
    rows = np.arange(stored.n, dtype=np.int64)
    if asked.where is not None:
        rows = rows_where(stored.obs, asked.where)
    if like is not None:
        return _like(stored, like, rows, asked)
    return _about(opened, stored, text, rows, asked)


def _like(stored: StoredReference, like: str, rows: Int64, options: SearchOptions) -> CellHits:
    names = stored.obs.index.astype(str)
    same = np.flatnonzero(names == like)
    if len(same) == 0:
        fix = did_you_mean(like, list(names[:100_000]), 3) or f"names of cells look like {names[0]!r}"
        raise InputError(
            f"the reference {stored.name!r} has no cell {like!r}", f"--like {like}", fix, code="unknown-cell"
        )
    at = int(same[0])
    notes = [f"{len(same)} cells are named {like!r}; the first one was used"] if len(same) > 1 else []
    rows = rows[rows != at]
    centre = np.zeros(stored.dim, dtype=np.float32)
    scores = _cosines(stored, rows, centre, np.asarray(stored.vectors[at], dtype=np.float32))
    hits = _cell_hits(stored, rows, scores, options.k)
    counts: dict[str, int] = {}
    for hit in hits:
        counts[hit.label] = counts.get(hit.label, 0) + 1
    return CellHits(
        query="",
        like=like,
        reference=stored.name,
        where=options.where or "",
        n_searched=len(rows),
        genes=[],
        labels=[
            LabelHit(label=label or "(no label)", score=n / len(hits), n_cells=n, genes=[])
            for label, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        ],
        hits=hits,
        notes=notes,
    )


def _about(
    opened: Store, stored: StoredReference, text: str, rows: Int64, options: SearchOptions
) -> CellHits:
    by_meaning = options.method != "words"
    meaning = find_meaning(opened, options.backbone, device=options.device) if by_meaning else None
    measured = {str(g): i for i, g in enumerate(genes_of(stored))}
    with opened.knowledge() as kb:
        if kb.genes(stored.meta["species"]).empty:
            raise no_knowledge(stored.meta["species"], f"reference {stored.name}", "search by --like CELL")
        ranked = rank_genes(
            kb,
            text,
            meaning=meaning,
            species=[stored.meta["species"]],
            allowed=set(measured),
            method=options.method,
        )
        chosen = ranked.gene_ids[:N_GENES]
        if not chosen:
            raise InputError(
                f"no measured gene of the reference matches {text!r}",
                f"reference {stored.name}",
                "use other words, or gene names",
                code="unknown-gene",
            )
        known = kb.genes(stored.meta["species"]).set_index("gene_id")["symbol"]
    symbols = [str(known.get(g, g)) for g in chosen]
    # Squared, because genes far down the rankings still have a third of the best score.
    weights = np.array(ranked.scores[: len(chosen)], dtype=np.float64) ** 2
    columns = np.array([measured[g] for g in chosen], dtype=np.int64)
    model = load_model(stored)
    labels, best = _label_hits(stored, model, rows, columns, weights, symbols)
    notes = list(ranked.notes)
    hits: list[CellHit] = []
    direction = _direction(stored, model, columns, weights)
    if direction is None:
        notes.append("cell vectors do not depend on any of these genes, so only labels were ranked")
    else:
        hits = _cell_hits(stored, rows, _cosines(stored, rows, *direction), options.k)
    return CellHits(
        query=text,
        like="",
        reference=stored.name,
        where=options.where or "",
        n_searched=len(rows),
        genes=[
            {"gene_id": g, "symbol": s, "score": round(float(w), 4), "best_label": label}
            for g, s, w, label in zip(chosen, symbols, ranked.scores, best, strict=False)
        ],
        labels=labels,
        hits=hits,
        notes=notes,
    )


def _label_hits(
    stored: StoredReference,
    model: ReferenceModel,
    rows: Int64,
    columns: Int64,
    weights: npt.NDArray[np.float64],
    symbols: Sequence[str],
) -> tuple[list[LabelHit], list[str]]:
    """Return the labels, best first, and for each gene the label with its highest level."""
    codes = model.members.labels[rows]
    present = np.bincount(codes[codes >= 0], minlength=model.members.n_classes)
    z = class_levels(stored)[:, columns]
    weighted = z * weights / weights.sum()
    score = weighted.sum(axis=1)
    shown = [c for c in np.argsort(-score, kind="stable") if present[c] > 0]
    hits = []
    for c in shown:
        driving = [i for i in np.argsort(-weighted[c], kind="stable")[:8] if weighted[c, i] > 0]
        hits.append(
            LabelHit(
                label=str(stored.meta["classes"][c]),
                score=round(float(score[c]), 4),
                n_cells=int(present[c]),
                genes=[symbols[i] for i in driving],
            )
        )
    best = [hits[int(np.argmax(z[shown, i]))].label if hits else "" for i in range(len(columns))]
    return hits, best


def class_levels(stored: StoredReference) -> npt.NDArray[np.float64]:
    """Return class means minus the mean over classes, (n_classes, n_genes) float64.

    The values are in log1p CP10k over all genes of the reference, divided by the spread of each gene within
    classes.
    """
    means, spread = class_statistics(stored.tensors)
    filled = means.any(axis=1)
    z: npt.NDArray[np.float64] = (means.astype(np.float64) - means[filled].mean(axis=0)) / spread
    z[~filled] = 0.0
    return z


def _direction(
    stored: StoredReference, model: ReferenceModel, columns: Int64, weights: npt.NDArray[np.float64]
) -> tuple[Float32, Float32] | None:
    """Return the vector of the mean cell, (dim,) float32, and its change when the genes are increased.

    The change is None if cell vectors do not depend on these genes.
    """
    # The mean over classes, so that a common type does not dominate it.
    means, spread = class_statistics(stored.tensors)
    mean = means[means.any(axis=1)].mean(axis=0).astype(np.float64)
    if not np.isin(columns, model.members.vector_genes).any():
        return None
    raised = mean.copy()
    raised[columns] += RAISE * spread[columns] * weights / weights.max()
    both = CellChunk(csr_matrix(np.stack([mean, raised]).astype(np.float32)), np.ones(len(mean), dtype=bool))
    genes = model.members.genes
    encoded = model.members.encoder.encode(both.select(genes) if len(genes) < len(mean) else both)
    direction = encoded[1] - encoded[0]
    return (encoded[0], direction) if np.linalg.norm(direction) > 1e-6 else None


def _cosines(stored: StoredReference, rows: Int64, centre: Float32, direction: Float32) -> Float32:
    """Return (len(rows),) float32 cosines between ``direction`` and cell vectors minus ``centre``."""
    scores = np.zeros(len(rows), dtype=np.float32)
    unit = direction / max(float(np.linalg.norm(direction)), 1e-12)
    for start in range(0, len(rows), BLOCK):
        part = np.asarray(stored.vectors[rows[start : start + BLOCK]]) - centre
        norms = np.maximum(np.linalg.norm(part, axis=1), 1e-12)
        scores[start : start + BLOCK] = (part @ unit) / norms
    return scores


def _cell_hits(stored: StoredReference, rows: Int64, scores: Float32, k: int) -> list[CellHit]:
    best = np.argsort(-scores, kind="stable")[:k]
    obs = stored.obs
    classes = stored.meta["classes"]
    columns = [c for c in obs.columns if c not in (CODE_COLUMN, HASH_COLUMN)]
    label_key = stored.meta.get("options", {}).get("label_key")
    hits = []
    for i in best:
        row = int(rows[i])
        code = int(obs[CODE_COLUMN].iloc[row])
        cell: dict[str, Any] = {str(c): _plain(obs[c].iloc[row]) for c in columns if c != label_key}
        hits.append(
            CellHit(
                cell=str(obs.index[row]),
                row=row,
                score=round(float(scores[i]), 4),
                label=str(classes[code]) if code >= 0 else "",
                obs=cell,
            )
        )
    return hits


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else (None if value != value else value)
