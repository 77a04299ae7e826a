"""UMAP in numpy, without compilation.

UMAP (McInnes et al. 2018, arXiv:1802.03426) by its published steps: memberships of the nearest neighbours,
and gradient descent of their cross entropy with sampled repulsion. A whole epoch is one numpy step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.arrays import blocks
from scvec.base.types import Float32, Float64, Int64

__all__ = ["add_cells", "lay_out_cells"]

NEIGHBORS = 15
#: Parameters of the curve 1 / (1 + a d^2b) that UMAP fits to min_dist 0.3 and spread 1.
A, B = 0.9922, 1.1122
#: Random cells that repel a cell, for each neighbour that attracts it.
NEGATIVE = 5
#: Largest step along an axis for an edge, as in UMAP, and of a cell in an epoch: without it, many cells that
#: start at one place throw each other off the map.
STEP = 4.0

Report = Callable[[int, int], None]


def lay_out_cells(vectors: Float32, *, seed: int = 0, report: Report = lambda done, total: None) -> Float32:
    """Return (n, 2) UMAP coordinates of n cells.

    Parameters
    ----------
    vectors
        (n, dim) float32, compared by Euclidean distance.
    report
        Called with the number of finished epochs and the total.
    """
    n = len(vectors)
    if n == 0:
        return np.zeros((0, 2), dtype=np.float32)
    flat = _principal(vectors)
    if n < 10:  # too few for a graph of neighbours
        return flat
    distances, near = _nearest(vectors, vectors, min(NEIGHBORS, n - 1) + 1)
    # A cell is not its own neighbour; among equal cells the search may put it at any rank.
    own = near == np.arange(n)[:, None]
    own[~own.any(axis=1), -1] = True
    near, distances = near[~own].reshape(n, -1), distances[~own].reshape(n, -1)
    heads, tails, weights = _union(near, _memberships(distances), n)
    rng = np.random.default_rng(seed)
    scale = 10.0 / max(float(np.abs(flat).max()), 1e-9)
    start = flat * scale + rng.normal(0.0, 1e-3, flat.shape)
    epochs = 400 if n <= 4_000 else 200
    return _descend(start, heads, tails, weights, np.ones(n, dtype=bool), epochs, rng, report)


def add_cells(
    places: Float32,
    known: Float32,
    vectors: Float32,
    labels: Int64,
    proba: Float32,
    *,
    seed: int = 0,
    report: Report = lambda done, total: None,
) -> Float32:
    """Return (m, 2) coordinates of new cells on an existing map, which is not changed.

    A new cell is attracted by its nearest cells, of the map and among the new ones, in proportion to the
    probability that both have the same label. So a cell without a matching label on the map stays near
    similar new cells.

    Parameters
    ----------
    places, known
        (n, 2) coordinates of the cells of the map, and their (n, dim) vectors.
    vectors
        (m, dim) vectors of the new cells, in the same space.
    labels
        (n,) class numbers of the cells of the map, -1 for none.
    proba
        (m, n_classes) probabilities of the new cells.
    """
    n, m = len(known), len(vectors)
    if m == 0 or n == 0:
        return np.zeros((m, 2), dtype=np.float32)
    rng = np.random.default_rng(seed)
    near, drawn = _candidates(known, vectors, labels, proba)
    near_labels = labels[near]
    drawn = drawn * np.where(near_labels >= 0, np.take_along_axis(proba, np.maximum(near_labels, 0), 1), 0.0)
    k = near.shape[1]
    start = (places[near] * drawn[:, :, None]).sum(axis=1) / np.maximum(drawn.sum(axis=1), 1e-9)[:, None]
    start = start + rng.normal(0.0, 0.05, start.shape)
    heads, tails = np.repeat(np.arange(n, n + m), k), near.ravel()
    weights = drawn.ravel()
    if m > NEIGHBORS:
        distances, beside = _nearest(vectors, vectors, NEIGHBORS + 1)
        own_heads, own_tails, own = _union(beside[:, 1:], _memberships(distances[:, 1:]), m)
        heads, tails = np.concatenate([heads, own_heads + n]), np.concatenate([tails, own_tails + n])
        for part in blocks(len(own)):
            own[part] *= np.einsum("ij,ij->i", proba[own_heads[part]], proba[own_tails[part]])
        weights = np.concatenate([weights, own])
    moves = np.arange(n + m) >= n
    both = np.concatenate([places, start])
    return _descend(both, heads, tails, weights, moves, 100, rng, report)[n:]


def _candidates(known: Float32, vectors: Float32, labels: Int64, proba: Float32) -> tuple[Int64, Float64]:
    """Return (m, k) cells of the map (the nearest, and the nearest of the likeliest label), and memberships.

    A cell in both groups is counted once.
    """
    distances, near = _nearest(known, vectors, min(NEIGHBORS, len(known)))
    memberships = _memberships(distances)
    theirs = np.zeros((len(vectors), NEIGHBORS), dtype=np.int64)
    weights = np.zeros(theirs.shape)
    best = proba.argmax(axis=1)
    for label in np.unique(best):
        members, of = np.flatnonzero(labels == label), np.flatnonzero(best == label)
        if k := min(NEIGHBORS, len(members)):
            distances, found = _nearest(known[members], vectors[of], k)
            # Distant cells of the likeliest label attract in proportion to its probability.
            theirs[of, :k], weights[of, :k] = (
                members[found],
                _memberships(distances) * proba[of, label][:, None],
            )
    for column, weight in zip(theirs.T, weights.T, strict=True):
        memberships[(near == column[:, None]) & (weight > 0)[:, None]] = 0.0
    return np.concatenate([near, theirs], axis=1), np.concatenate([memberships, weights], axis=1)


def _principal(vectors: Float32) -> Float32:
    """Return (n, 2) coordinates on the first two principal components."""
    centred = np.asarray(vectors, dtype=np.float64) - vectors.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2].T
    flat = centred @ axes
    return np.pad(flat, ((0, 0), (0, 2 - flat.shape[1]))).astype(np.float32)


def _nearest(known: Float32, vectors: Float32, k: int) -> tuple[Float64, Int64]:
    from scvec.stores.index import build_index

    found = build_index(np.ascontiguousarray(known, dtype=np.float32)).search(
        np.ascontiguousarray(vectors, dtype=np.float32), k
    )
    return np.sqrt(np.maximum(found.distances, 0.0)).astype(np.float64), found.indices


def _memberships(distances: Float64) -> Float64:
    """Return (n, k) memberships 0 to 1: 1 for the nearest, and log2(k) in sum."""
    nearest = distances[:, :1]
    beyond = np.maximum(distances - nearest, 0.0)
    wanted = np.log2(max(distances.shape[1], 2))
    low, high = (
        np.zeros(len(distances)),
        np.full(len(distances), max(float(beyond.max()), 1e-9) * 1e3),
    )
    for _ in range(40):
        middle = (low + high) / 2
        total = np.exp(-beyond / np.maximum(middle, 1e-12)[:, None]).sum(axis=1)
        low, high = np.where(total < wanted, middle, low), np.where(total < wanted, high, middle)
    return np.asarray(np.exp(-beyond / np.maximum((low + high) / 2, 1e-12)[:, None]), dtype=np.float64)


def _union(near: Int64, weights: Float64, n: int) -> tuple[Int64, Int64, Float64]:
    """Return edges in both directions: the fuzzy union of a graph and its reverse."""
    import scipy.sparse as sp

    rows = np.repeat(np.arange(n), near.shape[1])
    graph = sp.csr_matrix((weights.ravel(), (rows, near.ravel())), shape=(n, n))
    back = graph.T.tocsr()
    joined = (graph + back - graph.multiply(back)).tocoo()
    return joined.row.astype(np.int64), joined.col.astype(np.int64), joined.data


def _descend(
    start: npt.NDArray[Any],
    heads: Int64,
    tails: Int64,
    weights: Float64,
    moves: npt.NDArray[np.bool_],
    epochs: int,
    rng: np.random.Generator,
    report: Report,
) -> Float32:
    """Move the movable cells: edges attract in proportion to their weight, random cells repel."""
    at = np.asarray(start, dtype=np.float32)
    n = len(at)
    kept = weights >= weights.max(initial=0.0) / epochs
    heads, tails, often = heads[kept], tails[kept], (weights[kept] / weights.max(initial=1e-9))
    due = rng.random(len(often))
    for epoch in range(epochs):
        due += often
        now = np.flatnonzero(due >= 1.0)
        due[now] -= 1.0
        h, t = heads[now], tails[now]
        apart = at[h] - at[t]
        square = np.maximum((apart**2).sum(axis=1), 1e-12)
        pull = -2.0 * A * B * square ** (B - 1.0) / (1.0 + A * square**B)
        step = np.clip(pull[:, None] * apart, -STEP, STEP)
        who, far = np.repeat(h, NEGATIVE), rng.integers(n, size=len(h) * NEGATIVE)
        apart = at[who] - at[far]
        square = (apart**2).sum(axis=1)
        push = 2.0 * B / ((1e-3 + square) * (1.0 + A * square**B))
        away = np.clip(push[:, None] * apart, -STEP, STEP)
        index, moved = np.concatenate([h, who]), np.concatenate([step, away])
        total = np.stack([np.bincount(index, moved[:, axis], minlength=n) for axis in (0, 1)], axis=1)
        total *= np.minimum(1.0, STEP / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-9))
        at = at + np.where(moves[:, None], (1.0 - epoch / epochs) * total, 0.0).astype(np.float32)
        if epoch % 20 == 0:
            report(epoch, epochs)
    return np.asarray(at, dtype=np.float32)
