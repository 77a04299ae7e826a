"""Majority votes over clusters of a query's cells: smoother labels, which depend on the other cells."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.types import Float32

__all__ = ["clusters", "majority", "need_igraph"]

Int64 = npt.NDArray[np.int64]

N_NEIGHBORS = 15
#: Resolution of the clustering by number of cells: many small clusters, as CellTypist takes them (Dominguez
#: Conde et al. 2022, doi:10.1126/science.abl5197), so that a cluster is rarely of two types.
_RESOLUTIONS = ((5_000, 5.0), (20_000, 10.0), (40_000, 15.0), (100_000, 20.0), (200_000, 25.0))
_FINEST = 30.0
N_ITERATIONS = 4


def need_igraph() -> None:
    """Raise where igraph is not installed.

    Raises
    ------
    InputError
        It is not.
    """
    from importlib.util import find_spec

    if find_spec("igraph") is None:
        raise InputError(
            "a majority vote over clusters needs igraph, which is not installed",
            "--majority-vote",
            "pip install 'scvec[cluster]', or leave --majority-vote out",
            code="extra-not-installed",
        )


def clusters(vectors: Float32, *, n_neighbors: int = N_NEIGHBORS, seed: int = 0) -> Int64:
    """Return (n,) numbers of the clusters of cells, the largest first.

    Leiden (Traag et al. 2019, doi:10.1038/s41598-019-41695-z) by modularity on the graph of each cell's
    nearest other cells, edges weighted as the neighbours' votes are (:func:`scvec.model.head.vote`).

    Parameters
    ----------
    vectors
        (n, dim) float32 cell vectors.

    Raises
    ------
    InputError
        If igraph is not installed.
    """
    need_igraph()
    import igraph

    from scvec.stores.index import build_index

    n = len(vectors)
    if n < 3:
        return np.zeros(n, dtype=np.int64)
    found = build_index(np.ascontiguousarray(vectors)).search(vectors, min(n_neighbors + 1, n))
    last = np.maximum(found.distances.max(axis=1, keepdims=True), 1e-12)
    weights = np.exp(-2.0 * found.distances.astype(np.float64) / last)
    rows = np.repeat(np.arange(n), found.indices.shape[1])
    columns = found.indices.ravel()
    others = rows != columns
    graph = igraph.Graph(n=n, edges=np.column_stack([rows, columns])[others])
    resolution = next((r for limit, r in _RESOLUTIONS if n < limit), _FINEST)
    igraph.set_random_number_generator(random.Random(seed))
    try:
        membership = graph.community_leiden(
            objective_function="modularity",
            weights=weights.ravel()[others],
            resolution=resolution,
            n_iterations=N_ITERATIONS,
        ).membership
    finally:
        igraph.set_random_number_generator(random)
    member = np.asarray(membership, dtype=np.int64)
    sizes = np.bincount(member)
    rank = np.empty(len(sizes), dtype=np.int64)
    rank[np.lexsort((np.arange(len(sizes)), -sizes))] = np.arange(len(sizes))
    return rank[member]


def majority(proba: Float32, cluster: Int64) -> Int64:
    """Return (n,) the class that most cells of each cell's cluster are given; of as many, the likelier.

    Parameters
    ----------
    proba
        (n, n_classes).
    cluster
        (n,) cluster numbers.
    """
    best = proba.argmax(axis=1)
    votes = np.zeros((int(cluster.max(initial=-1)) + 1, proba.shape[1]))
    np.add.at(votes, (cluster, best), 1.0)
    mass = np.zeros_like(votes)
    np.add.at(mass, cluster, proba.astype(np.float64))
    # A sum of probabilities is never more than the cells of the cluster: below one vote.
    tie = mass / (np.bincount(cluster, minlength=len(votes))[:, None] + 1.0)
    return np.asarray((votes + tie).argmax(axis=1)[cluster], dtype=np.int64)
