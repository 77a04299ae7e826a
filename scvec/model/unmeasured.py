"""Find cells of a joined file that measured other genes: the join wrote zeros for the missing genes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from scvec.base.types import GeneMatch

if TYPE_CHECKING:
    from scvec.ingest.cells.source import CellSource

__all__ = ["GeneSet", "gene_sets", "left_out", "missing_notes", "without"]

Bools = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

#: Smallest batch, number of its cells that the first test uses, and largest number of batches of a column.
MIN_CELLS, N_FIRST, MAX_BATCHES = 50, 100, 20
#: A gene is common if this fraction of the cells of most batches detect it. A file is joined if a batch
#: detects none of this fraction (and number) of the common genes: 0.6% are missing in donors of one study, 3%
#: in one tissue against others, 5% to 20% in one cell type against all.
COMMON, MIN_SHARE, MIN_GENES = 0.3, 0.05, 10
#: If most batches lack a gene, it is common if nearly all cells of one batch detect it; the fraction of
#: missing genes must then be larger.
IN_ALL, MIN_SHARE_IN_ALL = 0.8, 0.15
#: Smallest expected number of cells of a batch that detect a gene, if the batch measured it.
MIN_EXPECTED = 10
#: If no column gives batches, similar cells are grouped: number of row ranges, cells of each range, largest
#: number of genes, number of groups, and number of random starts.
N_STRETCHES, PER_STRETCH, N_GENES, N_GROUPS, N_STARTS = 20, 50, 2000, 8, 6
#: Fraction of the genes of most cells of the other groups that such a group must lack; detection rate that
#: means "most cells"; quantile over the groups.
MIN_SHARE_GROUP, IN_MOST, MOST = 0.1, 0.6, 1.0
#: Cells that detect less than this fraction of the expected genes of a set did not measure them: in the
#: first rounds, and at the end.
FEW, NONE = 0.3, 0.05
#: Probability above which a gene that no cell of a set detects counts as not measured.
SURE = 0.9
#: Gene sets that share this fraction of their detection rates are merged.
SAME = 0.8


@dataclass(frozen=True)
class GeneSet:
    """Cells of a file that measured the same genes.

    Attributes
    ----------
    name
        Name of the cells: their batch and its column, or their number.
    rows
        (n,) int64 row numbers of the cells, ascending.
    missing
        (n_vars,) bool, common genes of other cells that these did not measure.
    """

    name: str
    rows: Int64
    missing: Bools


def gene_sets(source: CellSource) -> list[GeneSet]:
    """Return the parts of a file with different measured genes, the largest first; empty if there is one.

    A batch lacks a gene that is zero in every cell of it and common in others, many at a time. Batches are
    those of obs columns with a usual name of batches. If these show nothing, the cells are grouped by their
    detected genes.
    """
    named = _of_columns(source)
    if named is None:
        masks, rates = _of_groups(source)
        codes, names = np.full(source.n_obs, -1, dtype=np.int64), [""] * len(masks)
    else:
        codes, names, masks, rates = named
    if not masks:
        return []
    codes, found = _assigned(source, codes, masks, rates)
    highest = (found / np.maximum(np.bincount(codes, minlength=len(found)), 1)[:, None]).max(axis=0)
    sets = []
    for k, mask in enumerate([*masks, np.zeros_like(masks[0])]):
        rows = np.flatnonzero(codes == k)
        if len(rows):
            # A rare gene may be zero by chance. It counts as missing if many genes of the set are missing.
            prior = float(mask[highest >= COMMON].mean())
            by_chance = (1 - prior) * np.exp(-highest * len(rows))
            missing = (found[k] == 0) & (prior > SURE * (prior + by_chance))
            name = names[k] if named and k < len(masks) else f"{len(rows):,} cells"
            sets.append(GeneSet(name, rows, missing))
    return sorted(sets, key=lambda s: (-len(s.rows), s.rows[0])) if len(sets) > 1 else []


def without(match: GeneMatch, missing: Bools) -> GeneMatch:
    """Return a match without some genes."""
    ids = tuple(None if gone else g for g, gone in zip(match.gene_ids, missing, strict=True))
    how = tuple("" if gone else h for h, gone in zip(match.how, missing, strict=True))
    return replace(match, gene_ids=ids, how=how)


def left_out(match: GeneMatch, source: CellSource) -> tuple[GeneMatch, list[str]]:
    """Return the match of a reference without genes that a part of its cells lacks, and a warning.

    Genes that one of several files lacks are left out in the same way. If this would remove more counts than
    it keeps, all genes are kept.
    """
    sets = gene_sets(source)
    if not sets:
        return match, []
    left = without(match, np.any([one.missing for one in sets], axis=0))
    if left.count_share(source.gene_totals) < 0.5 * match.count_share(source.gene_totals):
        then = "too many to leave out, so that their zeros count; leave those cells out"
        return match, missing_notes(sets, match, source, then)
    return left, missing_notes(sets, match, source, "left out for all cells")


def missing_notes(sets: Sequence[GeneSet], match: GeneMatch, source: CellSource, then: str) -> list[str]:
    """Return a warning with the batches and their missing genes; nothing if no matched gene is missing.

    Parameters
    ----------
    then
        Consequence for these genes, as text.
    """
    matched, parts = match.matched, []
    for one in sets:
        gone = np.flatnonzero(one.missing & matched)
        if len(gone):
            top = ", ".join(match.names[i] for i in gone[np.argsort(-source.gene_totals[gone])][:3])
            cells = f"{len(one.rows):,} cells"
            cells = cells if one.name == cells else f"{one.name} ({cells})"
            parts.append(f"{cells} without {len(gone):,} genes such as {top}")
    if not parts:
        return []
    more = f"; and {len(parts) - 5} more" if len(parts) > 5 else ""
    return [
        f"warning: samples of this file measured other genes, as after an outer join: {'; '.join(parts[:5])}"
        f"{more}: {then}"
    ]


def _of_columns(source: CellSource) -> tuple[Int64, list[str], list[Bools], Float64] | None:
    """Return the gene sets by batch columns; None if no batch lacks genes.

    Returns
    -------
    codes, names
        (n_obs,) number of the gene set of each cell: the last for cells that measured all genes, -1 for
        cells of small batches; and the names of the sets.
    masks, rates
        For each set (n_vars,) bool its missing genes; (n_vars,) detection rates in cells that measured them.
    """
    joined = []
    for column, codes, names in _columns(source):
        some_rows = np.sort(np.concatenate([np.flatnonzero(codes == k)[:N_FIRST] for k in range(len(names))]))
        some = _detected([(source.stored_rows(some_rows), codes[some_rows])], len(names), source.n_vars)
        if _is_joined(some, np.bincount(codes[some_rows])).any():
            joined.append((codes, [f"{column} {name}" for name in names]))
    if not joined:
        return None
    codes, names = reduce(_crossed, joined)
    if len(names) < 2:
        return None  # the batches of two columns have too few cells together
    sizes = np.bincount(codes[codes >= 0], minlength=len(names))
    found = _detected(_numbered(source, codes), len(names), source.n_vars)
    lacking = np.flatnonzero(_is_joined(found, sizes))
    if not len(lacking):
        return None  # the first cells of a batch lacked genes that its later cells detect
    rates = found / sizes[:, None]
    groups: list[list[int]] = []
    for k in lacking:
        gone = _gone(found[k], sizes[k], rates)
        for group in groups:
            if _alike(gone, _gone(found[group].sum(axis=0), sizes[group].sum(), rates), rates.max(axis=0)):
                group.append(int(k))
                break
        else:
            groups.append([int(k)])
    masks = [_gone(found[group].sum(axis=0), sizes[group].sum(), rates) for group in groups]
    number = np.full(len(names) + 1, len(groups), dtype=np.int64)
    number[-1] = -1
    for g, group in enumerate(groups):
        number[group] = g
    called = [
        ", ".join(names[k] for k in group[:3]) + (", ..." if len(group) > 3 else "") for group in groups
    ]
    return number[codes], called, masks, _where_measured(found, sizes, number[:-1], masks)


def _crossed(one: tuple[Int64, list[str]], other: tuple[Int64, list[str]]) -> tuple[Int64, list[str]]:
    """Return the combined batches of two columns; -1 for cells without a batch, or with a small one."""
    pairs, codes, sizes = np.unique(
        np.stack([one[0], other[0]]), axis=1, return_inverse=True, return_counts=True
    )
    kept = np.flatnonzero((pairs >= 0).all(axis=0) & (sizes >= MIN_CELLS))
    number = np.full(len(sizes), -1, dtype=np.int64)
    number[kept] = np.arange(len(kept))
    return number[codes.ravel()], [f"{one[1][a]}, {other[1][b]}" for a, b in pairs[:, kept].T]


def _gone(found: Float64, size: int, rates: Float64) -> Bools:
    return np.asarray((found == 0) & (rates.max(axis=0) * size >= MIN_EXPECTED))


def _alike(one: Bools, other: Bools, rate: Float64) -> bool:
    return bool(rate[one & other].sum() >= SAME * rate[one | other].sum())


def _where_measured(found: Float64, sizes: Int64, number: Int64, masks: Sequence[Bools]) -> Float64:
    """Return (n_vars,) the detection rate of each gene in the batches that measured it."""
    measured = np.array([*(~mask for mask in masks), np.ones_like(masks[0])])[number]
    cells = (measured * sizes[:, None]).sum(axis=0)
    return np.asarray((found * measured).sum(axis=0) / np.maximum(cells, 1))


def _of_groups(source: CellSource) -> tuple[list[Bools], Float64]:
    """Return the genes that groups of similar cells lack, and detection rates; see :func:`_of_columns`.

    Groups are clusters of a sample of cells by their detected genes. A cell type detects some genes rarely;
    only cells that did not measure genes detect none of many genes that most other cells detect.
    """
    from scipy.cluster.vq import kmeans2
    from scipy.sparse.linalg import svds

    if source.n_obs < 4 * MIN_CELLS:
        return [], np.zeros(source.n_vars)
    n = min(PER_STRETCH, source.n_obs // N_STRETCHES)
    starts = np.linspace(0, source.n_obs - n, N_STRETCHES).astype(np.int64)
    rows = np.unique(starts[:, None] + np.arange(n))
    there: Any = source.stored_rows(rows)
    there = (there != 0).astype(np.float32).tocsr()
    share = np.asarray(there.mean(axis=0)).ravel()
    common = np.argsort(-share, kind="stable")[:N_GENES]
    common = common[share[common] >= 0.05]
    if len(common) < 10 * MIN_GENES:
        return [], share
    own = there[:, common].toarray()
    depth = own.mean(axis=1, keepdims=True)
    # Without this, cells would be grouped by depth.
    own -= np.minimum(depth / max(float(depth.mean()), 1e-9) * share[common], 1.0)
    if np.abs(own).max() < 1e-3:
        return [], share  # all cells have all of these genes, as after imputation
    # The rows sum to about zero, so ones would be orthogonal to all that is looked for.
    left, values, _ = svds(own, N_GROUPS, v0=np.random.default_rng(0).normal(size=min(own.shape)))
    rng, masks = np.random.default_rng(0), list[Bools]()
    for start in range(N_STARTS):
        n_groups = N_GROUPS * (1 + start % 2)  # small groups find gene sets of few cells
        begin = (left * values)[rng.choice(len(left), n_groups, replace=False)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a group without cells
            codes = kmeans2(left * values, begin, minit="matrix")[1].astype(np.int64)
        for mask, usual in _lacking(there, codes):
            if not any(_alike(mask, other, usual) for other in masks):
                masks.append(mask)
    return _settled(there, masks)


def _lacking(there: sp.csr_matrix[Any], codes: Int64) -> Iterable[tuple[Bools, Float64]]:
    """Yield missing genes and expected detection rates of each group of cells that lacks many genes."""
    sizes = np.bincount(codes)
    found = _detected([(there, codes)], len(sizes), there.shape[1])
    rates = found / np.maximum(sizes, 1)[:, None]
    for k in np.flatnonzero(sizes >= MIN_EXPECTED):
        usual = _usual(rates, int(k))
        most = (usual >= IN_MOST) & (usual * sizes[k] >= MIN_EXPECTED)
        gone = (found[k] == 0) & (usual * sizes[k] >= MIN_EXPECTED / 2)
        if (most & gone).sum() >= max(MIN_GENES, MIN_SHARE_GROUP * most.sum()):
            yield gone, usual


def _usual(rates: Float64, k: int) -> Float64:
    """Return (n_vars,) detection rates in the other groups, scaled to the depth of group ``k``."""
    others = np.delete(rates, k, axis=0)
    usual, own = np.quantile(others[others.sum(axis=1) > 0], MOST, axis=0), rates[k]
    level = own.sum() / max(float(usual[own > 0].sum()), 1e-9)
    return np.asarray(usual * min(level, 1.0))


def _settled(there: sp.csr_matrix[Any], masks: list[Bools]) -> tuple[list[Bools], Float64]:
    """Return missing genes, fitted again to all cells without them: a group may have had one cell type."""
    share = np.asarray(there.mean(axis=0)).ravel()
    if not masks:
        return [], share
    rates = share
    for _ in range(3):
        codes = _fitting(there, masks, rates, FEW)
        sizes = np.bincount(codes, minlength=len(masks) + 1)
        found = _detected([(there, codes)], len(masks) + 1, there.shape[1])
        rates = _where_measured(found, sizes, np.arange(len(masks) + 1), masks)
        levels = found / np.maximum(sizes, 1)[:, None]
        # A few cells may still be in the wrong group, so a missing gene may have a low detection rate.
        masks = [
            (levels[k] <= 0.02 * levels.max(axis=0)) & (levels.max(axis=0) * sizes[k] >= MIN_EXPECTED / 2)
            for k in range(len(masks))
            if sizes[k] >= MIN_EXPECTED
        ]
        kept: list[Bools] = []
        for mask in masks:
            common = mask & (rates >= COMMON)
            if common.sum() >= max(MIN_GENES, MIN_SHARE * (rates >= COMMON).sum()) and not any(
                _alike(mask, other, rates) for other in kept
            ):
                kept.append(mask)
        masks = kept
        if not masks:
            break
    return masks, rates


def _fitting(cells: Any, masks: Sequence[Bools], rates: Float64, most: float) -> Int64:
    """Return (n,) the largest mask with at most a fraction ``most`` of its expected genes in a cell.

    Cells without such a mask get the number of masks.
    """
    weights = np.array([np.where(mask, rates, 0.0).sum() for mask in masks])
    there = (cells != 0).astype(np.float64)
    within = np.asarray(there @ np.array(masks, dtype=np.float64).T)
    beyond = np.asarray(there.sum(axis=1)) - within
    depth = beyond / np.maximum(rates.sum() - weights, 1e-9)
    fits = within <= most * depth * weights
    rank = np.where(fits, weights, -1.0)
    return np.where(fits.any(axis=1), rank.argmax(axis=1), len(masks)).astype(np.int64)


def _assigned(
    source: CellSource, codes: Int64, masks: Sequence[Bools], rates: Float64
) -> tuple[Int64, Float64]:
    """Return (n_obs,) gene sets, with -1 replaced by the fitting set, and (n_sets + 1, n_vars) detections."""
    codes, found, start = codes.copy(), np.zeros((len(masks) + 1, source.n_vars)), 0
    for cells in source.chunks():
        part = codes[start : start + cells.shape[0]]
        open_ = np.flatnonzero(part < 0)
        part[open_] = _fitting(cells[open_], masks, rates, NONE)
        found += _detected([(cells, part)], len(found), source.n_vars)
        start += cells.shape[0]
    return codes, found


def _columns(source: CellSource) -> Iterable[tuple[str, Int64, list[str]]]:
    """Yield columns, (n_obs,) numbers of their batches that are large enough (else -1), and their names.

    Cells without a value are a batch: a join of studies leaves the columns of each empty in the others.
    """
    import pandas as pd

    table = source.batches
    for column in table.columns:
        values = pd.Categorical(table[column])
        names = [*map(str, values.categories), "(none)"]
        codes = np.where(values.codes < 0, len(names) - 1, values.codes)
        sizes = np.bincount(codes, minlength=len(names))
        kept = [k for k in np.argsort(-sizes, kind="stable")[:MAX_BATCHES] if sizes[k] >= MIN_CELLS]
        if len(kept) < 2:
            continue
        number = np.full(len(names), -1, dtype=np.int64)
        number[kept] = np.arange(len(kept))
        yield str(column), number[codes], [names[k] for k in kept]


def _numbered(source: CellSource, codes: Int64) -> Iterable[tuple[Any, Int64]]:
    start = 0
    for cells in source.chunks():
        yield cells, codes[start : start + cells.shape[0]]
        start += cells.shape[0]


def _detected(parts: Iterable[tuple[Any, Int64]], n_batches: int, n_vars: int) -> Float64:
    """Return (n_batches, n_vars) float64 number of cells that detect each gene."""
    found = np.zeros((n_batches, n_vars))
    for cells, codes in parts:
        rows = np.flatnonzero(codes >= 0)
        member = sp.csr_matrix((np.ones(len(rows)), (codes[rows], rows)), (n_batches, len(codes)))
        found += (member @ (cells != 0).astype(np.float64)).toarray()
    return found


def _is_joined(found: Float64, sizes: Int64) -> Bools:
    """Return (n_batches,) bool, True for batches that detect none of many genes that most others detect."""
    rates = found / sizes[:, None]
    joined = np.zeros(len(rates), dtype=bool)
    for k in range(len(rates)):
        others = np.delete(rates, k, axis=0)
        for common, share in (
            (np.median(others, axis=0) >= COMMON, MIN_SHARE),
            (others.max(axis=0) >= IN_ALL, MIN_SHARE_IN_ALL),
        ):
            n = int((common & (found[k] == 0)).sum())
            joined[k] |= n >= max(MIN_GENES, share * common.sum())
    return joined
