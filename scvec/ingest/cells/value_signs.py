"""Signs of what values are, in sparse rows: whole numbers, multiples of one, sums that agree."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from scvec.ingest.cells.expression import CP10K, TRANSFORMS, Transform, row_sums, undo, undone

__all__ = [
    "LOGS",
    "MAX_LOG",
    "MOST",
    "MULTIPLES",
    "NOT_LINEAR",
    "SPREAD",
    "WHOLE",
    "all_whole",
    "by_base",
    "by_likelihood",
    "clustered",
    "constant_sum",
    "known_sum",
    "length_bias",
    "may_add_up",
    "multiples",
    "near_whole",
    "nearly_whole",
    "of_each",
    "partly_whole",
    "ratios",
    "round_sum",
    "row_shares",
    "rows_become_whole",
    "sum_of_whole_cells",
    "whole_rows",
]

#: log2 of a million is 19.9: nothing on a log scale is larger, and whole-genome linear data always are.
MAX_LOG = 20.0
#: Cells add up to a million at most: CPM and TPM.
MOST = 1e6
#: Relative spread of per-cell sums that still counts as constant (float32 and later gene filters move them).
SPREAD = 0.02
#: Of deeper cells a float32 does not say whether something is a whole multiple.
MAX_DEPTH = 50_000
#: A matrix of so many genes holds whole cells.
WHOLE = 10_000

LOGS: tuple[Transform, ...] = ("log1p", "log2", "log10")
NOT_LINEAR: tuple[Transform, ...] = (*LOGS, "sqrt", "arcsinh")
MULTIPLES: tuple[Transform, ...] = (*LOGS, "linear")

Bool = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]


def clustered(rows: sp.csr_matrix[Any]) -> tuple[Transform, float, Bool] | None:
    """Return a transform, a sum, and the rows (n,) bool that have it once the transform is undone.

    That of most rows; None where sums are spread as those of part of the genes are.
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
        # One cell is known by a sum of exactly ten thousand, say; many by agreeing.
        exact = target >= 1e3 and target != math.exp(centre) and abs(centre - math.log(target)) < 0.002
        agree = (n >= 8 or exact) and n >= 0.8 * near and may_add_up(transform, target)
        if agree and (best is None or n > best[2].sum()):
            best = transform, target, np.abs(logs - centre) <= SPREAD
    return best


def by_likelihood(rows: sp.csr_matrix[Any]) -> Iterator[Transform]:
    """Yield the transforms in the order to try: exp is nearly twice sinh, whose sums may agree better."""
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
    """Return whether cells of this transform have such sums.

    Vectors of length one are not square roots, and no protocol gives more than some million reads.
    """
    return target <= 1e7 and (transform not in ("sqrt", "arcsinh") or target >= 100)


def whole_rows(rows: sp.csr_matrix[Any]) -> Bool:
    """Return (n,) bool: rows of whole numbers only, three at least."""
    sizes = np.diff(rows.indptr)
    found = sizes >= 3
    # Most rows of other numbers show it by their first value.
    first = rows.data[np.minimum(rows.indptr[:-1], max(0, len(rows.data) - 1))]
    found &= first == np.rint(first)
    at = np.flatnonzero(found)
    if len(at):
        some = rows[at]
        broken = np.flatnonzero(some.data != np.rint(some.data))
        found[at[np.unique(np.searchsorted(some.indptr, broken, side="right") - 1)]] = False
    return np.asarray(found)


def partly_whole(rows: sp.csr_matrix[Any]) -> Bool:
    """Return (n,) bool: rows of which a fifth is whole, and not one number only.

    Rounded logarithms of one count may all be 1.000, but not those of two and three.
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
    """Return what whole cells add up to, where cells of whole multiples of one count show it.

    A cell's smallest value is one count, of which the sum of the whole cell is a whole multiple, in every
    cell. So the cell that surely has genes with one count has few sums that it can have, and the others tell
    which it is.
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
    # Among many sums one fits a few cells by chance.
    for sums, enough in ((usual, 4), (depths * unit, 10)):
        depth = sums[:, None] / others[others > 0]
        known = depth < MAX_DEPTH
        fits = np.sum(known & (np.abs(depth - np.rint(depth)) < 0.05), axis=1) > 0.9 * known.sum(axis=1)
        found = np.flatnonzero(fits & (known.sum(axis=1) >= enough))
        if len(found):
            return round_sum(float(sums[found[0]]))
    return None


def sum_of_whole_cells(linear: sp.csr_matrix[Any]) -> float | None:
    """Return the least usual sum that is no less than any, given part of the genes of cells.

    None where the genes are all there and sums differ: each cell is then divided by its own.
    """
    sums = row_sums(linear)
    low, high = np.percentile(sums, [2.5, 97.5])
    usual = [per for per in (CP10K, 1e5, MOST) if per >= float(sums.max()) / (1 + SPREAD)]
    if not usual or (linear.shape[1] >= WHOLE and high > 1.25 * low):
        return None
    return usual[0]


def multiples(linear: sp.csr_matrix[Any], n_cells: int = 256) -> float:
    """Return the share (0-1) of values that are whole multiples of their cell's smallest.

    That is nearly always one count. 0 where there are too few to tell.
    """
    _, ratio, _ = ratios(linear[:n_cells])
    return float(np.mean(near_whole(ratio))) if len(ratio) >= 20 else 0.0


def row_shares(rows: sp.csr_matrix[Any]) -> Float64:
    """Return (n_transforms, n) the same for each row, under each of ``MULTIPLES``."""
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
    """Return whether values that are no whole numbers become some when a transform is undone."""
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
    """Return whether many values are nearly whole: counts that were corrected."""
    values = linear.data[linear.data > 0.5]
    if len(values) < 20:
        return False
    off = np.abs(values - np.rint(values))
    # A little less than one is frequent, a little more is not.
    ones, more = np.sum((values > 0.6) & (values < 1.02)), np.sum((values > 1.02) & (values < 1.4))
    return bool(np.mean(off < 0.1) > 0.5 or more < 0.3 * ones)


def length_bias(linear: sp.csr_matrix[Any]) -> str:
    """Say where counts are reads of whole transcripts: few genes have a single one; of molecules most do."""
    ones = linear.data <= 1.01 * np.repeat(of_each(np.minimum, linear), np.diff(linear.indptr))
    if linear.nnz < 1000 * linear.shape[0] or ones.mean() > 0.25:
        return ""
    return " of reads, as full-length protocols give (long genes have more)"


def round_sum(value: float) -> float:
    digits = math.log10(value)
    power = round(digits)
    return 10.0**power if abs(digits - power) < 0.001 else value


def constant_sum(sums: Float64) -> float | None:
    """Return the one value that all sums have, or None if they differ.

    Fewer than five cells could agree by chance: there the sum must also be a power of ten.
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
    """Return rows with the transform after which their values are whole multiples; None where none is.

    There are several groups where rows by themselves say so, each of them a few at least.
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
