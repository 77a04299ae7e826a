"""Detect the scale of a matrix, for each cell if cells differ.

The evidence, strongest first: whole numbers (counts); a transform after whose inverse every cell has the same
sum; values that are whole multiples of the cell's smallest value (counts times a factor per cell); sums above
the largest possible one (natural logarithms of CPM are at most 13.8).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from scvec.base.errors import InputError, check_choice
from scvec.ingest.cells.expression import (
    BASES,
    CP10K,
    LARGEST_COUNT,
    TRANSFORMS,
    Codes,
    ExpressionState,
    MatrixProfile,
    Transform,
    row_sums,
    undo,
    undone,
)

__all__ = [
    "LOGS",
    "MAX_LOG",
    "MOST",
    "MULTIPLES",
    "NOT_LINEAR",
    "SPREAD",
    "VALUES",
    "WHOLE",
    "all_whole",
    "best_transform",
    "by_base",
    "by_likelihood",
    "candidate_states",
    "check_values",
    "clustered",
    "constant_sum",
    "detect_state",
    "fits",
    "in_words",
    "known_sum",
    "length_bias",
    "may_add_up",
    "mixed_message",
    "multiples",
    "near_whole",
    "nearly_whole",
    "odd_rows",
    "of_each",
    "partly_whole",
    "ratios",
    "round_sum",
    "row_shares",
    "rows_become_whole",
    "scale_codes",
    "sum_of_whole_cells",
    "whole_rows",
]

#: log2 of a million is 19.9: values on a log scale are not larger, whole-genome linear data always are.
MAX_LOG = 20.0
#: Largest sum of a normalised cell: a million (CPM and TPM).
MOST = 1e6
#: Relative spread of per-cell sums that still counts as constant (float32 and later gene filters move them).
SPREAD = 0.02
#: In deeper cells, float32 is not precise enough to detect whole multiples.
MAX_DEPTH = 50_000
#: A matrix with at least so many genes holds all genes of a cell.
WHOLE = 10_000

LOGS: tuple[Transform, ...] = ("log1p", "log2", "log10")
NOT_LINEAR: tuple[Transform, ...] = (*LOGS, "sqrt", "arcsinh")
MULTIPLES: tuple[Transform, ...] = (*LOGS, "linear")

Bool = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]


def clustered(rows: sp.csr_matrix[Any]) -> tuple[Transform, float, Bool] | None:
    """Return the transform and sum that most rows share, and a mask (n,) bool of these rows.

    None if the sums vary as they do if genes are missing.
    """
    best: tuple[Transform, float, Bool] | None = None
    for transform in TRANSFORMS:
        sums = row_sums(undone(rows, transform))
        logs = np.log(np.where((sums > 0) & np.isfinite(sums), sums, np.inf))
        order = np.sort(logs[np.isfinite(logs)])
        if not len(order):
            continue
        inside = np.searchsorted(order, order + SPREAD, side="right") - np.arange(len(order))
        first = int(inside.argmax())
        n, centre = int(inside[first]), float(order[first : first + inside[first]].mean())
        near = int(np.count_nonzero(np.abs(order - centre) < 10 * SPREAD / 2))
        target = round_sum(math.exp(centre))
        # For one cell the sum must be a round number such as 10,000; for many it is enough that they agree.
        exact = target >= 1e3 and target != math.exp(centre) and abs(centre - math.log(target)) < 0.002
        agree = (n >= 8 or exact) and n >= 0.8 * near and may_add_up(transform, target)
        if agree and (best is None or n > best[2].sum()):
            best = transform, target, np.abs(logs - centre) <= SPREAD
    return best


def by_likelihood(rows: sp.csr_matrix[Any]) -> Iterator[Transform]:
    """Yield the transforms in the order to try; for large values, exp is nearly twice sinh."""
    yield "linear"
    spread: dict[Transform, float] = {}
    for transform in ("log1p", "arcsinh"):
        sums = row_sums(undone(rows[:64], transform))
        low, middle, high = np.percentile(np.minimum(sums, 2.0**53), [10, 50, 90])
        spread[transform] = (high - low) / middle
    if 10 * spread["arcsinh"] < spread["log1p"] < SPREAD:
        yield "arcsinh"
    yield from NOT_LINEAR


def may_add_up(transform: Transform, target: float) -> bool:
    """Return whether cells with this transform can have this sum.

    Vectors of length one are not square roots, and no protocol yields more than a few million reads per cell.
    """
    return target <= 1e7 and (transform not in ("sqrt", "arcsinh") or target >= 100)


def whole_rows(rows: sp.csr_matrix[Any]) -> Bool:
    """Return (n,) bool: rows of at least three whole numbers and no others."""
    sizes = np.diff(rows.indptr)
    found = sizes >= 3
    # In most other rows, the first value is already not whole.
    first = rows.data[np.minimum(rows.indptr[:-1], max(0, len(rows.data) - 1))]
    found &= first == np.rint(first)
    at = np.flatnonzero(found)
    if len(at):
        some = rows[at]
        broken = np.flatnonzero(some.data != np.rint(some.data))
        found[at[np.unique(np.searchsorted(some.indptr, broken, side="right") - 1)]] = False
    return np.asarray(found)


def partly_whole(rows: sp.csr_matrix[Any]) -> Bool:
    """Return (n,) bool: rows of which a fifth of the values is whole, with at least two different values.

    Rounded logarithms of one count may be 1.000 in a whole row; logarithms of two and three are not whole.
    """
    whole = rows.data == np.rint(rows.data)
    row = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    if not np.any(np.bincount(row[whole], minlength=rows.shape[0]) > 1):
        return np.zeros(rows.shape[0], dtype=bool)
    above = rows.data > of_each(np.minimum, rows)[row]
    whole &= above
    n_above, n_whole = (np.bincount(row[at], minlength=rows.shape[0]) for at in (above, whole))
    lowest, highest = np.full(rows.shape[0], np.inf), np.full(rows.shape[0], -np.inf)
    np.minimum.at(lowest, row[whole], rows.data[whole])
    np.maximum.at(highest, row[whole], rows.data[whole])
    return np.asarray((n_whole > 0.2 * n_above) & (highest > lowest))


def of_each(of: np.ufunc, rows: sp.csr_matrix[Any]) -> Float64:
    """Return (n,) the largest or smallest stored value of each row (``np.maximum``, ``np.minimum``)."""
    found = np.zeros(rows.shape[0])
    filled = np.flatnonzero(np.diff(rows.indptr))
    if len(filled):
        found[filled] = of.reduceat(rows.data, rows.indptr[filled])
    return found


def known_sum(linear: sp.csr_matrix[Any]) -> float | None:
    """Return the sum of whole cells, if the matrix holds part of the genes as counts times a factor per cell.

    The smallest value of a cell is one count, and the sum of the whole cell is a whole multiple of it. A cell
    that certainly has genes with one count therefore allows few sums; the other cells select one of them.
    """
    units, ratio_one = of_each(np.minimum, linear), 1.01
    n_ones = np.bincount(
        np.repeat(np.arange(linear.shape[0]), np.diff(linear.indptr)),
        weights=linear.data <= ratio_one * np.repeat(units, np.diff(linear.indptr)),
        minlength=linear.shape[0],
    )
    surest = np.argsort(-n_ones, kind="stable")[:24]
    most = float(row_sums(linear).max()) / (1 + SPREAD)
    unit, others = units[surest[0]], units[surest[1:]]
    if len(others) < 4 or unit <= 0 or np.ptp(others) < 1e-3 * unit:  # one unit for all has any sum
        return None
    if not most < MAX_DEPTH * unit:
        return None
    depths = np.arange(max(1, math.ceil(most / unit)), MAX_DEPTH)
    usual = np.array([per for per in (CP10K, 1e5, MOST) if per >= most and per / unit < MAX_DEPTH])
    if multiples(linear) < 0.8:
        return None
    # With many candidate sums, one fits a few cells by chance.
    for sums, enough in ((usual, 4), (depths * unit, 10)):
        depth = sums[:, None] / others[others > 0]
        known = depth < MAX_DEPTH
        fits = np.sum(known & (np.abs(depth - np.rint(depth)) < 0.05), axis=1) > 0.9 * known.sum(axis=1)
        found = np.flatnonzero(fits & (known.sum(axis=1) >= enough))
        if len(found):
            return round_sum(float(sums[found[0]]))
    return None


def sum_of_whole_cells(linear: sp.csr_matrix[Any]) -> float | None:
    """Return the smallest usual sum (CP10k, CPM, ...) that is not below the sum of any cell.

    None if the matrix has all genes but the sums differ: then each cell is divided by its own sum.
    """
    sums = row_sums(linear)
    low, high = np.percentile(sums, [2.5, 97.5])
    usual = [per for per in (CP10K, 1e5, MOST) if per >= float(sums.max()) / (1 + SPREAD)]
    if not usual or (linear.shape[1] >= WHOLE and high > 1.25 * low):
        return None
    return usual[0]


def multiples(linear: sp.csr_matrix[Any], n_cells: int = 256) -> float:
    """Return the fraction (0-1) of values that are whole multiples of their cell's smallest value.

    The smallest value is nearly always one count. 0 if there are too few values.
    """
    _, ratio, _ = ratios(linear[:n_cells])
    return float(np.mean(near_whole(ratio))) if len(ratio) >= 20 else 0.0


def row_shares(rows: sp.csr_matrix[Any]) -> Float64:
    """Return (n_transforms, n): :func:`multiples` of each row for each transform in ``MULTIPLES``."""
    shares = []
    for transform in MULTIPLES:
        _, ratio, row = ratios(undone(rows, transform))
        n = np.bincount(row, minlength=rows.shape[0])
        whole = np.bincount(row[near_whole(ratio)], minlength=rows.shape[0])
        shares.append(np.where(n >= 20, whole / np.maximum(n, 1), 0.0))
    return np.array(shares)


def near_whole(ratio: Float64) -> Bool:
    return np.asarray(np.abs(ratio - np.rint(ratio)) < 0.03)


def ratios(linear: sp.csr_matrix[Any]) -> tuple[Float64, Float64, npt.NDArray[np.int64]]:
    """Return the smallest value of each row, the others as multiples of it (1.5 to 20), and their rows."""
    units = of_each(np.minimum, linear)
    row = np.repeat(np.arange(linear.shape[0]), np.diff(linear.indptr))
    ratio = linear.data / units[row]
    near = (ratio > 1.5) & (ratio < 20)
    return units, ratio[near], row[near]


def all_whole(rows: sp.csr_matrix[Any], transform: Transform) -> bool:
    """Return whether values become whole numbers when a transform is undone."""
    values = undo(rows.data[rows.data != np.rint(rows.data)].astype(np.float64), transform)
    values = values[values < 20]
    if len(values) < 20 or values.max() < 1.5 or values.min() < 0.9:
        return False
    return bool(np.mean(np.abs(values - np.rint(values)) < 0.02) > 0.98)


def rows_become_whole(rows: sp.csr_matrix[Any], transform: Transform) -> Bool:
    values = undo(rows.data.astype(np.float64), transform)
    off = (values < 20) & (np.abs(values - np.rint(values)) >= 0.02)
    row, n = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr)), rows.shape[0]
    n_off, n_small = (np.bincount(row[at], minlength=n) for at in (off, values < 20))
    return np.asarray((n_off <= 0.1 * n_small) & (n_small > 0.05 * np.diff(rows.indptr)))


def nearly_whole(linear: sp.csr_matrix[Any]) -> bool:
    """Return whether many values are nearly whole: corrected counts."""
    values = linear.data[linear.data > 0.5]
    if len(values) < 20:
        return False
    off = np.abs(values - np.rint(values))
    # Values slightly below one are frequent, values slightly above are rare.
    ones, more = np.sum((values > 0.6) & (values < 1.02)), np.sum((values > 1.02) & (values < 1.4))
    return bool(np.mean(off < 0.1) > 0.5 or more < 0.3 * ones)


def length_bias(linear: sp.csr_matrix[Any]) -> str:
    """Return a note if counts are full-length reads: few genes have one read, but most have one molecule."""
    ones = linear.data <= 1.01 * np.repeat(of_each(np.minimum, linear), np.diff(linear.indptr))
    if linear.nnz < 1000 * linear.shape[0] or ones.mean() > 0.25:
        return ""
    return " of reads, as full-length protocols give (long genes have more)"


def round_sum(value: float) -> float:
    digits = math.log10(value)
    power = round(digits)
    return 10.0**power if abs(digits - power) < 0.001 else value


def constant_sum(sums: Float64) -> float | None:
    """Return the value that all sums share, or None if they differ.

    Fewer than five cells may agree by chance: then the sum must also be a power of ten.
    """
    sums = sums[sums > 0]
    if len(sums) == 0 or not np.isfinite(sums).all():
        return None
    low, middle, high = np.percentile(sums, [2.5, 50, 97.5])
    if high - low > SPREAD * middle:
        return None
    target = round_sum(float(middle))
    if len(sums) < 5 and (target == middle or target < 1e3):
        return None
    return target


def by_base(rows: sp.csr_matrix[Any]) -> list[tuple[sp.csr_matrix[Any], Transform | None]]:
    """Return groups of rows with the transform that makes their values whole multiples when undone, or None.

    Each group has at least a few rows.
    """
    share = row_shares(rows)
    base = np.where(share.max(axis=0) > 0.8, share.argmax(axis=0), -1)
    groups = [k for k in range(len(MULTIPLES)) if np.sum(base == k) >= max(3, 0.01 * len(base))]
    if len(groups) > 1:
        largest = max(groups, key=lambda k: int(np.sum(base == k)))
        base[~np.isin(base, groups)] = largest
        return [(rows[np.flatnonzero(base == k)], MULTIPLES[k]) for k in groups]
    best, transform = 0.8, None
    for one in MULTIPLES:
        found = multiples(undone(rows, one))
        if found > best:
            best, transform = found, one
    return [(rows, transform)]


def fits(sums: Float64, state: ExpressionState) -> Bool:
    """Return (n,) bool: whether cells on this scale can have these sums (less if genes are missing)."""
    most = state.target_sum or (state.per if state.kind != "linear" else None) or MOST
    least = 0.2 * most if state.target_sum else 0.0
    return (sums <= 1.05 * most) & (sums >= least)


def odd_rows(
    block: sp.csr_matrix[Any], linear: sp.csr_matrix[Any], sums: Float64, state: ExpressionState
) -> Bool:
    """Return (n,) bool: rows that are not on the scale of the matrix.

    Parameters
    ----------
    block, linear
        (n, n_features) CSR as stored, and on the linear scale of ``state``.
    sums
        (n,) sums of the rows of ``linear``.
    """
    n = block.shape[0]
    if state.kind == "counts":
        return np.asarray((np.diff(block.indptr) >= 3) & ~whole_rows(block))
    if state.transform == "linear":
        # Rows with large values, and rows with the common sum, are linear.
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
    """Return (n,) bool: rows whose sum is a round number after a logarithm is undone."""
    found = np.zeros(rows.shape[0], dtype=bool)
    at = np.flatnonzero(asked)
    for transform in LOGS if len(at) else ():
        sums = row_sums(undone(rows[at], transform))
        for per in (CP10K, 1e5, MOST):
            found[at] |= np.abs(sums / per - 1) < 0.002
    return found


def scale_codes(block: sp.csr_matrix[Any], state: ExpressionState) -> Codes:
    """Return (n,) uint8: the number of each row's scale in ``state.scales``.

    Each row is judged by itself, so that it has the same number alone and in any block.
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
    """Return the number of the candidate whose gene means are closest to those of the reference.

    Parameters
    ----------
    candidates
        (n_candidates, n_genes) float64 mean log1p CP10k of each gene, under each candidate.
    reference
        (n_genes,) float64 means of the reference: of its classes or of its cells.

    Returns
    -------
    The candidate with the smallest mean absolute difference. Other cell types and another platform change
    single genes; another base changes all genes, which a correlation would not detect.
    """
    return int(np.abs(candidates - reference).mean(axis=1).argmin())


#: Values of the option ``--values``; ``auto`` detects the scale.
VALUES = (
    "auto",
    "counts",
    "linear",
    "log1p",
    "log1p-cp10k",
    "log1p-cpm",
    "log2",
    "log2-cp10k",
    "log2-cpm",
    "log2-tpm10",
    "log10",
    "sqrt",
    "arcsinh",
)
#: Sum of whole cells, by the suffix in ``VALUES``.
NAMED_SUMS = {"cp10k": CP10K, "tpm10": 1e5, "cpm": 1e6}
#: Above this, float64 cannot hold all whole numbers, and no cell has as many molecules.
LARGEST = 2.0**53


def check_values(values: str) -> None:
    """Raise ``InputError`` if ``values`` is not one of :data:`VALUES`."""
    check_choice("--values", values, VALUES)


def detect_state(profile: MatrixProfile, where: str = "X", values: str = "auto") -> ExpressionState:
    """Detect the scale of the values.

    Parameters
    ----------
    profile
        Profile of some or all rows, at least one.
    where
        Name of the matrix, for the result.
    values
        The scale that the user gave, one of :data:`VALUES`.

    Raises
    ------
    InputError
        If the values are too large for any scale, or for the given one.
    """
    if profile.maximum > LARGEST:
        raise InputError(
            f"{where} holds values up to {profile.maximum:.3g}: no cell has as many molecules",
            where,
            "give the original counts",
            code="values-not-counts",
        )
    if profile.n_negative:
        low = f"{profile.minimum:,.0f}" if profile.all_integer else f"{profile.minimum:.3g}"
        return ExpressionState("scaled", where, message=f"{where} holds negative values (down to {low})")
    if values == "auto" and profile.all_integer:
        return _counts(where, profile.maximum, length_bias(profile.first_rows()))
    sample = profile.sample()
    sample = sample[np.flatnonzero(np.diff(sample.indptr))]
    if values != "auto":
        return _as_given(sample, where, values, profile.maximum)
    scales = _scales(sample, where, profile.maximum)
    return replace(scales[0], others=tuple(scales[1:]))


def _counts(where: str, largest: float, bias: str = "") -> ExpressionState:
    message = f"{where} holds raw counts{bias}; normalised a private copy to log1p CP10k"
    if largest > LARGEST_COUNT:
        message = (
            f"warning: {where} holds counts up to {largest:,.0f}, more than a cell has molecules; {message}"
        )
    return ExpressionState("counts", where, message=message)


def _as_given(sample: sp.csr_matrix[Any], where: str, values: str, largest: float) -> ExpressionState:
    """Return the scale that the user gave; the sum of whole cells is estimated if it was not given."""
    name, _, per_name = values.partition("-")
    given = f"{where} is used as {values} (--values)"
    if name == "counts":
        kind = "counts" if whole_rows(sample).all() else "estimated_counts"
        return ExpressionState(kind, where, message=f"{given}; normalised a private copy to log1p CP10k")  # type: ignore[arg-type]
    transform: Transform = name  # type: ignore[assignment]
    if undo(np.array([largest]), transform)[0] > LARGEST_COUNT:
        raise InputError(
            f"{where} holds values up to {largest:,.6g}, which cannot be {values}",
            where,
            "omit --values to detect the scale, or give counts or linear",
            code="values-not-counts",
        )
    linear = undone(sample, transform)
    target = constant_sum(row_sums(linear))
    base = BASES.get(transform)
    if base is None:
        kind = "linear" if transform == "linear" else transform
        return ExpressionState(kind, where, target_sum=target, message=f"{given}; converted to log1p CP10k")  # type: ignore[arg-type]
    per = NAMED_SUMS.get(per_name) or target or known_sum(linear) or sum_of_whole_cells(linear)
    if transform == "log1p" and per == CP10K:
        return ExpressionState("log1p_cp10k", where, base, target, f"{given}; not converted", per)
    sums = "each cell divided by its own sum" if per is None else f"{_number(per)} counts per whole cell"
    return ExpressionState("log", where, base, target, f"{given}, {sums}; converted to log1p CP10k", per)


def _scales(rows: sp.csr_matrix[Any], where: str, largest: float) -> list[ExpressionState]:
    """Return the scales of rows, the most frequent first."""
    whole = whole_rows(rows)
    part = rows[np.flatnonzero(~whole)]
    if part.shape[0] == 0:
        return [_counts(where, largest)]
    found = _of_fractions(part, where)
    n_whole = int(whole.sum())
    if n_whole:
        found = _joined(_counts(where, largest), n_whole, found)
    found.sort(key=lambda pair: -pair[1])
    unknown = [state for state, _ in found if state.candidates]
    if len(found) > 1 and unknown:
        raise InputError(
            f"{where} holds cells on different scales, some of them unknown: of {rows.shape[0]:,} cells, "
            f"{_list([f'{n:,} {_guess(s)}' for s, n in found])}",
            where,
            "convert all cells to one scale, or give one file per scale, with --values",
            code="values-unclear",
        )
    return [state for state, _ in found]


def _of_fractions(rows: sp.csr_matrix[Any], where: str) -> list[tuple[ExpressionState, int]]:
    """Return the scales of rows that are not whole numbers, and the number of rows on each."""
    sums = row_sums(rows)
    target = constant_sum(sums)
    if target is not None and np.all(np.abs(sums / target - 1) <= SPREAD):
        return [(_of_constant_sum(where, "linear", target, rows), rows.shape[0])]
    for transform in NOT_LINEAR:
        if all_whole(rows[:: 1 + rows.shape[0] // 64], transform):
            whole = rows_become_whole(rows, transform)
            rest = rows[np.flatnonzero(~whole)]
            found = _of_fractions(rest, where) if rest.shape[0] else []
            return _joined(_of_counts(where, transform), int(whole.sum()), found)
    # Logarithms are rarely whole numbers.
    broken = partly_whole(rows)
    if broken.any():
        rest = rows[np.flatnonzero(~broken)]
        found = _of_fractions(rest, where) if rest.shape[0] else []
        return _joined(_estimated(where), int(broken.sum()), found)
    n, found, rest = rows.shape[0], [], rows
    for transform in by_likelihood(rows):
        linear = undone(rows, transform)
        sums = row_sums(linear)
        target = constant_sum(sums)
        if target is not None and may_add_up(transform, target):
            found = [(_of_constant_sum(where, transform, target, linear), n)]
            rest = rows[np.flatnonzero(np.abs(sums / target - 1) > SPREAD)]
            break
    while rest.shape[0] and (cluster := clustered(rest)) is not None:
        transform, target, members = cluster
        linear = undone(rest[np.flatnonzero(members)], transform)
        found = _joined(_of_constant_sum(where, transform, target, linear), int(members.sum()), found)
        rest = rest[np.flatnonzero(~members)]
    if found and rest.shape[0] < 0.1 * n:
        # The sum of a cell is lower if genes were removed after the normalisation.
        rest = rest[np.flatnonzero(~_fits_any(rest, [state for state, _ in found]))]
    if rest.shape[0]:
        few = bool(found) and rest.shape[0] < max(3, 0.005 * n)
        for state, m in _of_varying_sums(rest, where, only_sure=few):
            found = _joined(state, m, found)
    return found


def _of_varying_sums(
    rows: sp.csr_matrix[Any], where: str, *, only_sure: bool
) -> list[tuple[ExpressionState, int]]:
    """Return the scales of rows whose sums differ, from each row's largest value and from multiples."""
    high = of_each(np.maximum, rows) > MAX_LOG
    low = rows[np.flatnonzero(~high)]
    groups = by_base(low) if low.shape[0] else []
    apart = [(*_by_structure(part, base, where), part) for part, base in groups]
    if high.any():
        # Shallow cells of linear data also have small values: use logarithms only if they are certain.
        logs = [(state, sure, part) for state, sure, part in apart if sure and state.transform != "linear"]
        n_linear = rows.shape[0] - sum(part.shape[0] for _, _, part in logs)
        some = rows[np.flatnonzero(high)] if logs else rows
        return [(_linear(some, where, None), n_linear), *((s, p.shape[0]) for s, _, p in logs)]
    return [(state, part.shape[0]) for state, sure, part in apart if sure or not only_sure]


def _joined(
    state: ExpressionState, n: int, found: list[tuple[ExpressionState, int]]
) -> list[tuple[ExpressionState, int]]:
    """Add a scale of ``n`` rows to a list of scales; merge it with one of the same transform and sum.

    log2(1 + 1) and the square root of 1 are whole numbers, so a few whole rows among them are the same scale.
    """
    does = (state.transform, state.divisor)
    for k, (other, m) in enumerate(found):
        whole_too = other.made_of == "counts" and other.transform in ("log2", "sqrt") and n < 0.2 * m
        if (other.transform, other.divisor) == does or (state.kind == "counts" and whole_too):
            return [*found[:k], (other, m + n), *found[k + 1 :]]
    return [*found, (state, n)]


def _fits_any(rows: sp.csr_matrix[Any], states: list[ExpressionState]) -> Any:
    found = np.zeros(rows.shape[0], dtype=bool)
    for state in states:
        found |= fits(row_sums(undone(rows, state.transform)), state)
    return found


def _of_constant_sum(
    where: str, transform: Transform, target: float, linear: sp.csr_matrix[Any]
) -> ExpressionState:
    """Return the scale of cells with the sum ``target`` on the linear scale."""
    if transform == "linear":
        return _linear(linear, where, target)
    if transform == "log1p" and abs(target / CP10K - 1) < SPREAD:
        done = f"{where} holds log1p CP10k values; not converted"
        return ExpressionState("log1p_cp10k", where, math.e, CP10K, done)
    done = (
        f"{where} holds {_name(transform)} values of {_per_cell(target)}{_made_of(linear)}; converted a "
        "private copy to log1p CP10k"
    )
    base = BASES.get(transform)
    if base is None:
        return ExpressionState(transform, where, None, target, done)  # type: ignore[arg-type]
    return ExpressionState("log", where, base, target, done)


def _linear(rows: sp.csr_matrix[Any], where: str, target: float | None) -> ExpressionState:
    """Return the scale of linear values that are not whole numbers."""
    if target is None and nearly_whole(rows):
        return _estimated(where)
    counted = multiples(rows) > 0.8
    per = known_sum(rows) if counted and target is None and rows.shape[1] < WHOLE else None
    sums = f"{_number(target)} per cell" if target else "sums that differ"
    if counted:
        of = f"part of the genes of {_number(per)} per cell" if per else sums
        what = f"counts times a factor per cell ({of}){length_bias(rows[:128])}"
    elif target == MOST:
        what = "TPM, or CPM of corrected counts (not whole multiples of one count)"
    else:
        what = f"TPM, RPKM or corrected counts ({sums})"
    done = f"{where} holds linear values, not counts: {what}; converted a private copy to log1p CP10k"
    return ExpressionState("linear", where, None, target, done, per, "multiples" if counted else "")


def _estimated(where: str) -> ExpressionState:
    done = (
        f"{where} holds counts that are not all whole numbers (estimated, such as by RSEM or salmon, or "
        "corrected for ambient RNA); normalised a private copy to log1p CP10k"
    )
    return ExpressionState("estimated_counts", where, message=done)


def _of_counts(where: str, transform: Transform) -> ExpressionState:
    done = f"{where} holds {_name(transform)} values of counts; normalised a private copy to log1p CP10k"
    kind: Any = "log" if transform in BASES else transform
    return ExpressionState(kind, where, BASES.get(transform), message=done, made_of="counts")


def _by_structure(
    rows: sp.csr_matrix[Any], base: Transform | None, where: str
) -> tuple[ExpressionState, bool]:
    """Return the scale of rows with small values and different sums, and whether it is certain.

    ``base`` is the transform after whose inverse values are whole multiples, or None.
    """
    if base == "linear":
        return _linear(rows, where, None), True
    if base is None and nearly_whole(rows):
        return _estimated(where), True
    if base is None:
        return _by_bound(rows, where), False
    linear = undone(rows, base)
    units, ratio, _ = ratios(linear)
    if np.mean(np.abs(units - 1) < 0.01) > 0.9:
        return _of_counts(where, base), True
    # Exact multiples without a common sum were divided by size factors, such as those of scran.
    exact = np.median(np.abs(ratio - np.rint(ratio))) < 1e-4
    per = known_sum(linear) or (None if exact else sum_of_whole_cells(linear))
    return _part_of_genes(where, base, per, made_of="multiples"), True


def _by_bound(rows: sp.csr_matrix[Any], where: str) -> ExpressionState:
    """Return the most likely scale whose sums are possible; the others become its candidates."""
    linear = {t: undone(rows, t) for t in LOGS}
    sums = {t: row_sums(linear[t]) for t in LOGS}
    possible = [t for t in LOGS if sums[t].max() <= MOST * (1 + SPREAD)]
    if not possible:
        return _linear(rows, where, None)
    per = {t: sum_of_whole_cells(linear[t]) for t in possible}
    if len(possible) == 1:
        why = f", no other base fits values up to {float(rows.max()):.4g}"
        return _part_of_genes(where, possible[0], per[possible[0]], why)
    if per.get("log1p") == CP10K:
        likely: Transform = "log1p"
    else:
        likely = max(possible, key=lambda t: float(np.median(sums[t])) / (per[t] or MOST))
    all_of_them: tuple[Transform, ...] = (*possible, "linear")
    others = tuple(t for t in all_of_them if t != likely)
    if likely == "log1p" and per[likely] == CP10K:
        done = f"{where} holds logarithms of unknown base and target; used as log1p CP10k, not converted"
        return ExpressionState("log", where, None, None, done, CP10K, "", others)
    state = _part_of_genes(where, likely, per[likely])
    done = f"{where} holds logarithms of unknown base; used as {in_words(state)} and converted to log1p CP10k"
    return replace(state, message=done, candidates=others)


def _part_of_genes(
    where: str, transform: Transform, per: float | None, why: str = "", made_of: Any = ""
) -> ExpressionState:
    base = BASES[transform]
    if transform == "log1p" and per == CP10K:
        done = (
            f"{where} holds natural log values with different sums (part of the genes?){why}; not converted"
        )
    else:
        of = (
            ", each cell divided by its own sum"
            if per is None
            else f" of part of the genes of {_per_cell(per)}"
        )
        done = f"{where} holds {_name(transform)} values{of}{why}; converted a private copy to log1p CP10k"
    return ExpressionState("log", where, base, None, done, per, made_of)


def _made_of(linear: sp.csr_matrix[Any]) -> str:
    if multiples(linear) > 0.8 or len(linear.data) < 20:
        return ""
    return ", not of whole counts (TPM of full-length protocols, or corrected counts)"


def _name(transform: Transform) -> str:
    """Return the usual name of a transform."""
    named = {"log1p": "natural log1p", "log2": "log2(x + 1)", "log10": "log10(x + 1)"}
    return named.get(transform, transform)


def _per_cell(per: float) -> str:
    """Describe the sum of whole cells."""
    usual = {CP10K: "CP10k", 1e5: "TPM/10", MOST: "CPM or TPM"}.get(per)
    return f"{_number(per)} counts per cell" + (f" ({usual})" if usual else "")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def in_words(state: ExpressionState) -> str:
    """Describe a scale in a few words."""
    if state.kind in ("counts", "estimated_counts"):
        return "raw counts" if state.kind == "counts" else "counts that are not whole"
    if state.kind == "log1p_cp10k":
        return "log1p CP10k"
    if state.made_of == "counts":
        return f"{_name(state.transform)} of counts"
    sum_of_cells = state.divisor or state.target_sum
    return _name(state.transform) + (f" of {_per_cell(sum_of_cells)}" if sum_of_cells else "")


def _guess(state: ExpressionState) -> str:
    return "unknown logarithms" if state.candidates else in_words(state)


def _list(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def mixed_message(state: ExpressionState, numbers: list[int], first: list[str]) -> str:
    """Return the note about a file with several scales: number of cells and first cell of each."""
    scales = [
        f"{n:,} {in_words(scale)} (the first is '{cell}')"
        for scale, n, cell in zip(state.scales, numbers, first, strict=True)
        if n
    ]
    return (
        f"{state.where} holds cells on different scales: {_list(scales)}; each was converted from its scale"
    )


def candidate_states(state: ExpressionState, rows: sp.csr_matrix[Any]) -> list[ExpressionState]:
    """Return the possible scales, ``state`` first; ``rows`` (n, n_genes) CSR as stored."""
    found = [state]
    for transform in state.candidates:
        linear = undone(rows, transform)
        if transform == "linear":
            found.append(_linear(linear, state.where, None))
        else:
            found.append(_part_of_genes(state.where, transform, sum_of_whole_cells(linear)))
    return found
