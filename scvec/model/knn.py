"""Neighbours: the labels of the nearest reference cells."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scvec.base.types import Float32, Neighbors

__all__ = ["vote"]


def vote(
    neighbors: Neighbors, labels: npt.NDArray[np.int64], n_classes: int, *, pseudocount: float = 0.1
) -> Float32:
    """Return (n, n_classes) shares of the neighbours' votes, rows summing to 1.

    Votes are weighted by ``exp(-2 d^2 / d_k^2)``, with ``d_k`` the distance of the last neighbour: an
    adaptive Gaussian kernel, as in UMAP and scANVI's label transfer, so that dense and sparse regions vote
    alike; and by one over the square root of their class's size, half-way between the natural frequencies,
    which drown rare types, and equal ones.

    Parameters
    ----------
    labels
        (n_reference,) int64 class numbers of the reference cells; -1 does not vote.
    pseudocount
        Votes given to every class beforehand, so that no class is impossible.
    """
    found = neighbors.indices >= 0
    distances = np.where(found, neighbors.distances, 0.0).astype(np.float64)
    last = np.maximum(distances.max(axis=1, keepdims=True), 1e-12)
    codes = np.where(found, labels[neighbors.indices], -1)
    counts = np.maximum(np.bincount(labels[labels >= 0], minlength=n_classes), 1)
    # Scaled to 1 for a class of average size: the pseudocount keeps its meaning.
    balance = np.sqrt(counts.mean() / counts)
    weights = np.where(codes >= 0, np.exp(-2.0 * distances / last) * balance[codes], 0.0)
    votes = np.full((len(codes), n_classes), pseudocount / n_classes)
    rows = np.repeat(np.arange(len(codes)), codes.shape[1])
    # -1 would index the last class: its weight is 0, so it adds nothing there.
    np.add.at(votes, (rows, codes.ravel()), weights.ravel())
    return np.asarray(votes / votes.sum(axis=1, keepdims=True), dtype=np.float32)
