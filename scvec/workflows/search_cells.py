"""``scvec search cells``: cells of a reference that a text is about, or that are like one of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.types import CellChunk, Float32, Int64
from scvec.model.storage import class_statistics
from scvec.workflows.search_genes import CellHit, CellHits, LabelHit

if TYPE_CHECKING:
    from scvec.model.reference import ReferenceModel
    from scvec.stores.store.reference_reader import StoredReference
    from scvec.stores.store.store import Store

__all__ = ["search_cells"]

#: Genes of a text that are looked for in the cells.
N_GENES = 30
#: How far, in spreads within classes, the genes are raised to see where cells that have more of them lie.
RAISE = 2.0
#: Cells whose vectors are compared at once.
BLOCK = 65_536


def search_cells(
    store: Path | str,
    text: str = "",
    *,
    like: str | None = None,
    reference: str | None = None,
    k: int = 10,
    where: str | None = None,
    method: str = "hybrid",
    backbone: str | None = None,
    device: str = "auto",
) -> CellHits:
    """Find cells of a reference by a text or by a cell.

    For a text, the genes that it is about (:func:`scvec.search_genes`) are looked for among those that the
    reference measured. Labels are ranked by how much more their mean cell has of these genes. Cells are
    ranked by the cosine between their vector and what raising these genes does to the vector of the mean
    cell, both seen from the mean cell: the store keeps no expression values of single cells.

    For a cell, its nearest neighbours by the cosine to its vector are returned.

    Parameters
    ----------
    text
        Such as ``insulin secretion``, or names of genes.
    like
        Name of a cell of the reference, instead of a text.
    reference
        May be left out where the store has one.
    k
        How many cells to return.
    where
        SQL condition over the reference's obs, applied before the best ``k`` are taken.
    method
        How genes are found: ``hybrid``, ``meaning`` or ``words``.
    backbone
        As for :func:`scvec.search_genes`.

    Raises
    ------
    InputError
        There is no such cell, no gene of the text is in the reference, or an option cannot be used.
    """
    from scvec.stores.store.store import Store
    from scvec.workflows.query import only_reference
    from scvec.workflows.search_genes import check_search

    if bool(text.strip()) == (like is not None):
        raise InputError(
            "give a text or a cell, and not both", "scvec search cells", 'search cells "beta" or --like CELL'
        )
    check_search(text or "x", k)
    opened = Store(store)
    stored = opened.reference(only_reference(opened, reference))
    rows = np.arange(stored.n, dtype=np.int64)
    if where is not None:
        from scvec.stores.knowledge.where import rows_where

        rows = rows_where(stored.obs, where)
    if like is not None:
        return _like(stored, like, rows, k, where)
    return _about(opened, stored, text, rows, k, where, method, backbone, device)


def _like(stored: StoredReference, like: str, rows: Int64, k: int, where: str | None) -> CellHits:
    names = stored.obs.index.astype(str)
    same = np.flatnonzero(names == like)
    if len(same) == 0:
        import difflib

        near = difflib.get_close_matches(like, list(names[:100_000]), n=3)
        fix = f"did you mean {', '.join(near)}?" if near else f"cells are named like {names[0]!r}"
        raise InputError(
            f"the reference {stored.name!r} has no cell {like!r}", f"--like {like}", fix, code="unknown-cell"
        )
    at = int(same[0])
    notes = [f"{len(same)} cells are called {like!r}; the first is meant"] if len(same) > 1 else []
    rows = rows[rows != at]
    centre = np.zeros(stored.dim, dtype=np.float32)
    scores = _cosines(stored, rows, centre, np.asarray(stored.vectors[at], dtype=np.float32))
    hits = _cell_hits(stored, rows, scores, k)
    counts: dict[str, int] = {}
    for hit in hits:
        counts[hit.label] = counts.get(hit.label, 0) + 1
    return CellHits(
        query="",
        like=like,
        reference=stored.name,
        where=where or "",
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
    opened: Store,
    stored: StoredReference,
    text: str,
    rows: Int64,
    k: int,
    where: str | None,
    method: str,
    backbone: str | None,
    device: str,
) -> CellHits:
    from scvec.model.storage import genes_of, load_model
    from scvec.workflows.search_genes import find_meaning, rank_genes

    measured = {str(g): i for i, g in enumerate(genes_of(stored))}
    with opened.knowledge() as kb:
        ranked = rank_genes(
            kb,
            text,
            meaning=find_meaning(opened, backbone, device=device) if method != "words" else None,
            species=[stored.meta["species"]],
            allowed=set(measured),
            method=method,
        )
        chosen = ranked.gene_ids[:N_GENES]
        if not chosen:
            raise InputError(
                f"no gene that the reference measured is about {text!r}",
                f"reference {stored.name}",
                "use other words, or name genes",
            )
        known = kb.genes(stored.meta["species"]).set_index("gene_id")["symbol"]
    symbols = [str(known.get(g, g)) for g in chosen]
    # Squared: places far down the rankings still have a third of the best score.
    weights = np.array(ranked.scores[: len(chosen)], dtype=np.float64) ** 2
    columns = np.array([measured[g] for g in chosen], dtype=np.int64)
    model = load_model(stored)
    labels, best = _label_hits(stored, model, rows, columns, weights, symbols)
    notes = list(ranked.notes)
    hits: list[CellHit] = []
    direction = _direction(stored, model, columns, weights)
    if direction is None:
        notes.append("none of these genes is among those that make cell vectors: labels only")
    else:
        hits = _cell_hits(stored, rows, _cosines(stored, rows, *direction), k)
    return CellHits(
        query=text,
        like="",
        reference=stored.name,
        where=where or "",
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
    """Return labels, best first, and per gene the label that has most of it."""
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
    """Return (n_classes, n_genes) how far the mean of each class is above the mean over classes.

    Over all genes of the reference, in log1p CP10k, divided by the spread of each gene within classes.
    """
    means, spread = class_statistics(stored.tensors)
    filled = means.any(axis=1)
    z: npt.NDArray[np.float64] = (means.astype(np.float64) - means[filled].mean(axis=0)) / spread
    z[~filled] = 0.0
    return z


def _direction(
    stored: StoredReference, model: ReferenceModel, columns: Int64, weights: npt.NDArray[np.float64]
) -> tuple[Float32, Float32] | None:
    """Return the vector of the mean cell, (dim,) float32, and where it goes when the genes are raised.

    None where raising them moves nothing, as cell vectors are made of none of them.
    """
    from scipy.sparse import csr_matrix

    # The mean over classes, as a common type would otherwise draw it to itself.
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
    """Return (len(rows),) cosines between ``direction`` and the vectors of cells seen from ``centre``."""
    scores = np.zeros(len(rows), dtype=np.float32)
    unit = direction / max(float(np.linalg.norm(direction)), 1e-12)
    for start in range(0, len(rows), BLOCK):
        part = np.asarray(stored.vectors[rows[start : start + BLOCK]]) - centre
        norms = np.maximum(np.linalg.norm(part, axis=1), 1e-12)
        scores[start : start + BLOCK] = (part @ unit) / norms
    return scores


def _cell_hits(stored: StoredReference, rows: Int64, scores: Float32, k: int) -> list[CellHit]:
    from scvec.model.storage import CODE_COLUMN

    best = np.argsort(-scores, kind="stable")[:k]
    obs = stored.obs
    classes = stored.meta["classes"]
    columns = [c for c in obs.columns if c != CODE_COLUMN]
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
