"""Vectors like those of cells, and their nearest by brute force."""

from __future__ import annotations

import numpy as np

N, DIM, TARGET = 4000, 16, 0.9


def clustered(n, seed):
    """Vectors around thirty centres, as cells lie around their types."""
    centres = np.random.default_rng(99).normal(size=(30, DIM)) * 3
    rng = np.random.default_rng(seed)
    return (centres[rng.integers(0, 30, n)] + rng.normal(size=(n, DIM))).astype(np.float32)


def truth(base, queries, k, rows=None):
    """Brute force in float64, nothing of ours: the k nearest rows of each query."""
    rows = np.arange(len(base)) if rows is None else np.asarray(rows)
    found = []
    for q in queries.astype(np.float64):
        d = ((base[rows].astype(np.float64) - q) ** 2).sum(axis=1)
        found.append(rows[np.argsort(d, kind="stable")[:k]])
    return np.array(found)


def share(found, wanted):
    return float(np.mean([np.isin(w, f).mean() for f, w in zip(found, wanted, strict=True)]))
