"""Synthetic cell vectors: mixtures of real ones that belong together."""

from __future__ import annotations

from typing import Any

import numpy as np

from scvec.stores.index.flat import FaissFlatIndex

#: Cells that a label has of a donor, at least, to be mixed.
FEWEST = 4

Group = tuple[Any, Any]


def group_of(real: Any, codes: Any, batches: Any) -> Group:
    """Return the cells to mix, and which belong together: those of one label and batch."""
    together = np.unique(np.stack([codes, batches]), axis=1, return_inverse=True)[1].ravel()
    enough = np.bincount(together)[together] >= FEWEST
    return real[enough], together[enough] * (batches.max() + 1) + batches[enough]


def synthetic(group: Group, n: int, seed: int) -> tuple[Any, Any]:
    """Return (n, dim) float32, mixtures of three cells that belong together, and what they belong to."""
    real, codes = group
    drawn = np.empty(n, dtype=np.int64)
    rng = np.random.default_rng(seed)
    order = np.argsort(codes, kind="stable")
    labels, first, sizes = np.unique(codes[order], return_index=True, return_counts=True)
    means = np.stack([real[codes == c].mean(axis=0) for c in labels]).astype(np.float32)
    out = np.empty((n, real.shape[1]), dtype=np.float32)
    for start in range(0, n, 100_000):
        stop = min(n, start + 100_000)
        of = np.searchsorted(labels, codes[rng.integers(0, len(real), stop - start)])
        drawn[start:stop] = labels[of]
        weights = np.abs(rng.normal(size=(stop - start, 3))).astype(np.float32)
        weights /= np.linalg.norm(weights, axis=1, keepdims=True)
        block = means[of]
        for j in range(3):
            picked = order[first[of] + (rng.random(stop - start) * sizes[of]).astype(np.int64)]
            block = block + weights[:, j : j + 1] * (real[picked] - means[of])
        out[start:stop] = block
    return out, drawn


def queries_of(groups: tuple[Group, Group], exact: FaissFlatIndex, n: int, seed: int) -> tuple[Any, Any]:
    """Return (n, dim) queries, of either group of cells one half, and their true 50 neighbours."""
    queries = np.concatenate([synthetic(group, n // 2, seed)[0] for group in groups])
    return queries, exact.search(queries, 50).indices
