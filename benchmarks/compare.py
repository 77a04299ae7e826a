"""Means, intervals and paired tests over pairs and seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import numpy as np

__all__ = ["interval", "paired", "sign_flip", "values_of", "wilcoxon"]

Table = dict[str, dict[int, float]]


def values_of(rows: Iterable[dict[str, Any]], method: str, column: str) -> Table:
    """Return pair -> seed -> value of a method; pairs where it has none are missing."""
    found: Table = {}
    for row in rows:
        if row["method"] == method and row.get(column) is not None:
            found.setdefault(row["pair"], {})[row["seed"]] = float(row[column])
    return found


def paired(ours: Table, theirs: Table) -> np.ndarray:
    """Return differences, ours minus theirs, over the pairs that both have.

    One per seed where both were run with the same several seeds, else one per pair, of the means: a method
    without a seed does not count several times.
    """
    differences = []
    for pair in ours:
        if pair not in theirs:
            continue
        shared = sorted(set(ours[pair]) & set(theirs[pair]))
        if len(shared) > 1 and len(shared) == len(ours[pair]):
            differences += [ours[pair][s] - theirs[pair][s] for s in shared]
        else:
            differences.append(
                float(np.mean(list(ours[pair].values())) - np.mean(list(theirs[pair].values())))
            )
    return np.array(differences)


def sign_flip(differences: np.ndarray, *, draws: int = 20_000) -> float:
    """Return the two-sided p of a sign-flip test of a mean of zero; exact up to 14 differences."""
    n = len(differences)
    if n == 0:
        return float("nan")
    if n <= 14:
        signs = np.array(list(product((-1.0, 1.0), repeat=n)))
        extra = 0
    else:
        signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(draws, n))
        extra = 1
    reached = np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12
    return float((reached.sum() + extra) / (len(signs) + extra))


def wilcoxon(differences: np.ndarray) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test; 1 where all differences are zero."""
    from scipy.stats import wilcoxon as test

    if len(differences) == 0:
        return float("nan")
    if not np.any(differences):
        return 1.0
    return float(test(differences).pvalue)


def interval(table: Table, pairs: Sequence[str], level: float = 0.95) -> tuple[float, float | None]:
    """Return the mean over pairs, and the half width of its interval over seeds (Student's t).

    None where there is one seed.
    """
    from scipy.stats import t

    have = [table[p] for p in pairs if p in table]
    if not have:
        return float("nan"), None
    seeds = sorted(set.intersection(*(set(v) for v in have)))
    mean = float(np.mean([np.mean(list(v.values())) for v in have]))
    if len(seeds) < 2:
        return mean, None
    each = [np.mean([v[s] for v in have]) for s in seeds]
    half = t.ppf(0.5 + level / 2, len(seeds) - 1) * np.std(each, ddof=1) / np.sqrt(len(seeds))
    return mean, float(half)
