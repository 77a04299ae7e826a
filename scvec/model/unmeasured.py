"""Genes that some samples of a joined file did not measure: the join wrote zeros for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from scvec.base.types import GeneMatch

if TYPE_CHECKING:
    from scvec.ingest.cells.source import CellSource

__all__ = ["unmeasured_notes", "unmeasured_somewhere", "without_unmeasured"]

#: Batches smaller than this tell too little; of larger ones so many cells are looked at first.
MIN_CELLS, N_LOOKED = 50, 100
MAX_BATCHES, N_BLOCKS = 20, 10
#: A gene in this fraction of the cells of most batches is common. A file is joined where a batch has none of
#: so many of those: 0.6% are missing in donors of one study, 3% in one tissue against others, 5% to 20% in
#: one cell type against all. Stretches of rows, which may be sorted by type, need more.
COMMON, MIN_SHARE, MIN_SHARE_BLOCKS, MIN_GENES = 0.3, 0.05, 0.15, 10
#: Cells of a batch that would be expected to have a gene, were it measured there.
MIN_EXPECTED = 10


def unmeasured_somewhere(source: CellSource) -> tuple[npt.NDArray[np.bool_], dict[str, int]]:
    """Find the genes that are zero in every cell of a batch and common in others, many at a time.

    Batches are those of the columns of obs that are named so, else stretches of rows.

    Returns
    -------
    missing
        (n_vars,) bool, genes that at least one batch did not measure.
    batches
        What such a batch is called -> genes that it did not measure.
    """
    missing = np.zeros(source.n_vars, dtype=bool)
    batches: dict[str, int] = {}
    for column, codes, names in _batches(source):
        share = MIN_SHARE if column else MIN_SHARE_BLOCKS
        looked = np.sort(np.concatenate([np.flatnonzero(codes == k)[:N_LOOKED] for k in range(len(names))]))
        some = _detected([(source.stored_rows(looked), codes[looked])], len(names), source.n_vars)
        if not _is_joined(some, np.bincount(codes[looked]), share).any():
            continue
        sizes = np.bincount(codes[codes >= 0], minlength=len(names))
        found = _detected(_numbered(source, codes), len(names), source.n_vars)
        for k in np.flatnonzero(_is_joined(found, sizes, share)):
            rates = found / sizes[:, None]
            gone = (found[k] == 0) & (rates.max(axis=0) * sizes[k] >= MIN_EXPECTED)
            batches[f"{column} {names[k]}" if column else names[k]] = int(gone.sum())
            missing |= gone
    return missing, batches


def without_unmeasured(match: GeneMatch, source: CellSource) -> tuple[GeneMatch, list[str]]:
    """Return a match without the genes that a batch did not measure, and a warning.

    They are left out for all cells, so that all have one cell space and zeros that mean the same. Where more
    counts would go than stay, there is only the warning.
    """
    missing, batches = unmeasured_somewhere(source)
    what = _told(match, source, missing & match.matched, batches)
    if not what:
        return match, []
    ids = tuple(None if gone else g for g, gone in zip(match.gene_ids, missing, strict=True))
    how = tuple("" if gone else h for h, gone in zip(match.how, missing, strict=True))
    left = replace(match, gene_ids=ids, how=how)
    if left.count_share(source.gene_totals) < 0.5 * match.count_share(source.gene_totals):
        return match, [f"{what}: too many to be left out; query the samples one by one"]
    return left, [f"{what}: left out for all cells; query the samples one by one to use them"]


def unmeasured_notes(match: GeneMatch, source: CellSource) -> list[str]:
    """Return a warning of genes that a batch of a reference did not measure."""
    missing, batches = unmeasured_somewhere(source)
    what = _told(match, source, missing & match.matched, batches)
    return [f"{what}: ingest the samples as files of their own, to leave these genes out"] if what else []


def _told(
    match: GeneMatch, source: CellSource, missing: npt.NDArray[np.bool_], batches: dict[str, int]
) -> str:
    """Return which genes are missing where; empty if none are."""
    if not missing.any():
        return ""
    top = sorted(np.flatnonzero(missing), key=lambda i: -source.gene_totals[i])[:3]
    lacking = "; ".join(f"{name} lacks {n:,}" for name, n in list(batches.items())[:5])
    return (
        f"warning: {int(missing.sum()):,} of {source.n_vars:,} genes, such as "
        f"{', '.join(match.names[i] for i in top)}, are zero in all cells of a batch and not in others, "
        f"as after an outer join ({lacking})"
    )


def _batches(source: CellSource) -> Iterable[tuple[str, npt.NDArray[np.int64], list[str]]]:
    """Yield columns, (n_obs,) numbers of their batches that are large enough (else -1), and their names."""
    import pandas as pd

    table, found = source.batches, False
    for column in table.columns:
        values = pd.Categorical(table[column])
        codes, names = values.codes, values.categories
        sizes = np.bincount(codes[codes >= 0], minlength=len(names))
        kept = [k for k in np.argsort(-sizes, kind="stable")[:MAX_BATCHES] if sizes[k] >= MIN_CELLS]
        if len(kept) < 2:
            continue
        found = True
        number = np.full(len(names), -1, dtype=np.int64)
        number[kept] = np.arange(len(kept))
        yield str(column), np.where(codes < 0, -1, number[codes]), [str(names[k]) for k in kept]
    size = source.n_obs // N_BLOCKS
    if not found and size >= MIN_CELLS:
        blocks = np.minimum(np.arange(source.n_obs) // size, N_BLOCKS - 1)
        ends = [*(k * size for k in range(N_BLOCKS)), source.n_obs]
        yield "", blocks, [f"rows {a:,} to {b - 1:,}" for a, b in pairwise(ends)]


def _numbered(
    source: CellSource, codes: npt.NDArray[np.int64]
) -> Iterable[tuple[Any, npt.NDArray[np.int64]]]:
    start = 0
    for cells in source.chunks():
        yield cells, codes[start : start + cells.shape[0]]
        start += cells.shape[0]


def _detected(
    parts: Iterable[tuple[Any, npt.NDArray[np.int64]]], n_batches: int, n_vars: int
) -> npt.NDArray[np.float64]:
    """Return (n_batches, n_vars) float64 number of the cells that have each gene."""
    found = np.zeros((n_batches, n_vars))
    for cells, codes in parts:
        rows = np.flatnonzero(codes >= 0)
        member = sp.csr_matrix((np.ones(len(rows)), (codes[rows], rows)), (n_batches, len(codes)))
        found += (member @ (cells != 0).astype(np.float64)).toarray()
    return found


def _is_joined(
    found: npt.NDArray[np.float64], sizes: npt.NDArray[np.int64], share: float
) -> npt.NDArray[np.bool_]:
    """Return (n_batches,) bool which batches have none of many genes that are common in most others."""
    rates = found / sizes[:, None]
    joined = np.zeros(len(rates), dtype=bool)
    for k in range(len(rates)):
        common = np.median(np.delete(rates, k, axis=0), axis=0) >= COMMON
        n = int((common & (found[k] == 0)).sum())
        joined[k] = n >= max(MIN_GENES, share * common.sum())
    return joined
