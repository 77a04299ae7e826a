"""Cells against the scales of their matrix, one by one, and values against those of a reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from scvec.ingest.cells.expression import CP10K, Codes, ExpressionState, row_sums, undone
from scvec.ingest.cells.value_signs import (
    LOGS,
    MAX_LOG,
    MOST,
    MULTIPLES,
    SPREAD,
    near_whole,
    of_each,
    ratios,
    row_shares,
    whole_rows,
)

__all__ = ["best_transform", "fits", "odd_rows", "scale_codes"]

Bool = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]


def fits(sums: Float64, state: ExpressionState) -> Bool:
    """Return whether cells may have these sums on the linear scale: those of some genes' cells are less."""
    most = state.target_sum or (state.per if state.kind != "linear" else None) or MOST
    least = 0.2 * most if state.target_sum else 0.0
    return (sums <= 1.05 * most) & (sums >= least)


def odd_rows(
    block: sp.csr_matrix[Any], linear: sp.csr_matrix[Any], sums: Float64, state: ExpressionState
) -> Bool:
    """Return (n,) bool: rows that are not on the one scale that the matrix seems to have.

    Parameters
    ----------
    block, linear
        (n, n_features) CSR as stored, and on the linear scale of ``state``.
    sums
        (n,) of the rows of ``linear``.
    """
    n = block.shape[0]
    if state.kind == "counts":
        return np.asarray((np.diff(block.indptr) >= 3) & ~whole_rows(block))
    if state.transform == "linear":
        # Large values are linear, and so are those that add up as the others do.
        if state.target_sum and fits(sums, state).all():
            return np.zeros(n, dtype=bool)
        low = of_each(np.maximum, block) <= MAX_LOG
        if not low.any():
            return low
        strange = ~fits(sums, state) if state.target_sum else _add_up_as_logs(block, low)
        return low & strange & ~whole_rows(block) & (sums > 0)
    odd = ~fits(sums, state)
    if state.made_of != "counts" or state.transform in ("log1p", "log10", "arcsinh"):
        odd |= whole_rows(block)
    if state.made_of:
        _, ratio, row = ratios(linear)
        n_near = np.bincount(row, minlength=n)
        odd |= (n_near >= 20) & (np.bincount(row[near_whole(ratio)], minlength=n) < 0.5 * n_near)
    return odd & (sums > 0)


def _add_up_as_logs(rows: sp.csr_matrix[Any], asked: Bool) -> Bool:
    """Return (n,) bool: rows that add up to a round number once a logarithm is undone."""
    found = np.zeros(rows.shape[0], dtype=bool)
    at = np.flatnonzero(asked)
    for transform in LOGS if len(at) else ():
        sums = row_sums(undone(rows[at], transform))
        for per in (CP10K, 1e5, MOST):
            found[at] |= np.abs(sums / per - 1) < 0.002
    return found


def scale_codes(block: sp.csr_matrix[Any], state: ExpressionState) -> Codes:
    """Return (n,) uint8: the number of the scale in ``state.scales`` that each row is on.

    A row is judged by itself, so that it has the same number alone and in any block.
    """
    n = block.shape[0]
    codes = np.full(n, -1, dtype=np.int64)
    sums = {s.transform: row_sums(undone(block, s.transform)) for s in state.scales}
    numbered = list(enumerate(state.scales))
    for k, scale in numbered:
        if scale.kind == "counts":
            codes[whole_rows(block)] = k
    off = np.array(
        [np.abs(sums[s.transform] / s.target_sum - 1) if s.target_sum else np.ones(n) for s in state.scales]
    )
    codes = np.where((codes < 0) & (off.min(axis=0) < SPREAD), off.argmin(axis=0), codes)
    high = of_each(np.maximum, block) > MAX_LOG
    for k, scale in numbered:
        if scale.transform == "linear":
            codes[(codes < 0) & high] = k
    if any(scale.made_of and scale.kind != "counts" for _, scale in numbered) and (codes < 0).any():
        at = np.flatnonzero(codes < 0)
        shares = dict(zip(MULTIPLES, row_shares(block[at]), strict=True))
        best = np.max(list(shares.values()), axis=0)
        for k, scale in numbered:
            if scale.made_of and scale.kind != "counts" and scale.transform in shares:
                hit = (shares[scale.transform] > 0.8) & (shares[scale.transform] == best)
                codes[at[hit & (codes[at] < 0)]] = k
    for k, scale in sorted(numbered, key=lambda pair: pair[1].target_sum is not None):
        codes[(codes < 0) & (fits(sums[scale.transform], scale) | (scale.transform == "linear"))] = k
    return np.maximum(codes, 0).astype(np.uint8)


def best_transform(candidates: Float64, reference: Float64) -> int:
    """Return the number of the candidate whose genes are as high as those of the reference.

    Parameters
    ----------
    candidates
        (n_candidates, n_genes) float64 mean log1p CP10k of each gene, under each candidate.
    reference
        (n_genes,) float64 the same of the reference: of its classes or of its cells.

    Returns
    -------
    The candidate with the smallest mean absolute difference. Other types of cells and another platform move
    single genes; another base moves all of them, which a correlation would not see.
    """
    return int(np.abs(candidates - reference).mean(axis=1).argmin())
