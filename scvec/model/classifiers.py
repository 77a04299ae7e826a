"""The two members of the ensemble, distances to classes for novelty, and clusters of cells."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import need_extra
from scvec.base.types import (
    CellChunk,
    CellEncoder,
    Float32,
    Float64,
    Int64,
    Neighbors,
    Progress,
    no_progress,
)
from scvec.encoders import refits
from scvec.model.novelty import Spread, depth
from scvec.stores.index.distances import Index

__all__ = [
    "CLASSIFIERS",
    "MEMBERS",
    "Head",
    "Members",
    "Scores",
    "clusters",
    "log_softmax",
    "majority",
    "need_igraph",
    "vote",
]

#: Members of the ensemble: the trained classifier on cell vectors, and the vote of the nearest cells.
MEMBERS = ("head", "knn")
#: What people read for the members.
CLASSIFIERS = {"head": "trained classifier", "knn": "nearest cells"}
#: Score of an excluded class. No weight can make it the answer.
OUT_OF_REACH = -1e4


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of all members for n cells, and distances for novelty.

    Attributes
    ----------
    vectors
        (n, embed_dim) float32.
    neighbors
        Nearest reference cells, as row numbers of the reference.
    scores
        For each of :data:`scvec.model.classifiers.MEMBERS`, (n, n_classes) float32, uncalibrated.
    distances
        (n, n_classes, 3) float32 from :meth:`Members.distances`, for novelty.
    n_detected
        (n,) int64 number of detected genes of the encoder in each cell.
    depths
        (n,) float64 from :func:`scvec.model.novelty.depth`.
    """

    vectors: Float32
    neighbors: Neighbors
    scores: list[Float32]
    distances: Float32
    n_detected: Int64
    depths: npt.NDArray[np.float64]

    def restricted(self, allowed: npt.NDArray[np.bool_]) -> Scores:
        """Return the scores with all classes excluded that are not ``allowed`` (n_classes,) bool."""
        scores = [np.where(allowed, s, np.float32(OUT_OF_REACH)) for s in self.scores]
        return replace(self, scores=scores)


class Members:
    """Encoder, head, index and class distances, fitted on one set of labelled cells.

    Parameters
    ----------
    centers
        (n_classes, embed_dim) float32 mean vectors of the classes; zeros for a class without cells.
    index
        Index of the cell vectors; row i has ``labels[i]``.
    labels
        (n_indexed,) int64 class numbers; -1 marks an unlabelled cell.
    genes
        (n,) int64 column numbers of the encoder's genes in the cells.
    rows
        (n_indexed,) int64, ascending: the reference row of each indexed cell. None if they are equal.

    Raises
    ------
    ValueError
        If the numbers of vectors, labels or classes differ.
    """

    def __init__(
        self,
        encoder: CellEncoder,
        head: Head,
        centers: Float32,
        spread: Spread,
        index: Index,
        labels: Int64,
        genes: Int64,
        rows: Int64 | None = None,
    ) -> None:
        if index.n != len(labels) or (rows is not None and len(rows) != len(labels)):
            raise ValueError(f"{index.n} vectors in the index for {len(labels)} labels")
        if centers.shape != (len(head.b), encoder.embed_dim):
            raise ValueError(f"centers {centers.shape} for {len(head.b)} classes")
        self.encoder, self.head, self.centers, self.spread = encoder, head, centers, spread
        self.index, self.labels, self.genes, self.rows = index, labels, genes, rows

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.head.b)

    @classmethod
    def fit(
        cls,
        encoder: CellEncoder,
        cells: CellChunk,
        labels: Int64,
        n_classes: int,
        *,
        genes: Int64,
        rows: Int64 | None = None,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Members:
        """Train encoder and head on labelled cells (n, n_genes). The encoder uses the columns ``genes``."""
        from scvec.stores.index import build_index

        chosen = cells.select(genes) if len(genes) < cells.X.shape[1] else cells
        encoder.fit([chosen], labels, seed=seed, progress=progress)
        known = read(encoder, chosen)
        vectors = encode(encoder, known)
        centers = class_means(vectors, labels, n_classes)
        if refits(encoder):
            # Discriminant axes need no trained head: the score is the cosine to the mean vector of a class.
            head = Head.of_centers(centers)
        else:
            head = Head.fit(encoder, vectors, labels, n_classes, seed=seed, progress=progress)
        spread = Spread.fit(known, labels, n_classes, seed=seed)
        return cls(encoder, head, centers, spread, build_index(vectors), labels, genes, rows)

    @property
    def vector_genes(self) -> Int64:
        """Column numbers of the genes that cell vectors depend on, (n,) int64."""
        return self.encoder.genes if refits(self.encoder) else self.genes

    def read(self, chunk: CellChunk) -> CellChunk:
        """Return the cells, reduced from all genes of the reference to the genes of their vectors."""
        chosen = chunk.select(self.genes) if len(self.genes) < chunk.X.shape[1] else chunk
        return read(self.encoder, chosen)

    def labels_among(self, subset: Int64) -> Int64:
        """Return the class numbers of the indexed cells among the reference rows ``subset`` (n,) int64."""
        if self.rows is None:
            return self.labels[subset]
        return self.labels[np.isin(self.rows, subset)]

    def score(self, chunk: CellChunk, n_neighbors: int, *, subset: Int64 | None = None) -> Scores:
        """Return the scores of all members for a chunk of cells.

        Parameters
        ----------
        chunk
            Cells over all genes of the reference.
        n_neighbors
            Number of reference cells that vote.
        subset
            Ascending reference rows of the cells that may be neighbours; None for all.
        """
        known = self.read(chunk)
        vectors = encode(self.encoder, known)
        among = subset
        if subset is not None and self.rows is not None:
            among = np.flatnonzero(np.isin(self.rows, subset)).astype(np.int64)
        found = self.index.search(vectors, min(n_neighbors, self.index.n), subset=among)
        votes = log_softmax(np.log(vote(found, self.labels, self.n_classes))).astype(np.float32)
        if self.rows is not None:
            there = found.indices >= 0
            found = replace(found, indices=np.where(there, self.rows[found.indices], -1))
        detected = np.diff(known.X.indptr).astype(np.int64)
        scores = [self.head.scores(vectors), votes]
        return Scores(vectors, found, scores, self.distances(known, vectors), detected, depth(known))

    def distances(self, known: CellChunk, vectors: Float32) -> Float32:
        """Return three distances of each cell to each class, (n, n_classes, 3) float32.

        The distances are: one minus the cosine to the mean log expression of the class; the Mahalanobis
        distance over principal components (both from :class:`scvec.model.novelty.Spread`); and one minus the
        cosine to the mean vector of the class in the cell space, after subtracting the mean of all classes.
        """
        filled = self.centers.any(axis=1)
        middle = self.centers[filled].mean(axis=0)
        V, C = vectors - middle, self.centers - middle
        V = V / np.maximum(np.linalg.norm(V, axis=1, keepdims=True), 1e-9)
        C = C / np.maximum(np.linalg.norm(C, axis=1, keepdims=True), 1e-9)
        outside = np.asarray(1.0 - V @ C.T, dtype=np.float32)
        return np.concatenate([self.spread.away(known), outside[:, :, None]], axis=-1)


def class_means(vectors: Float32, labels: Int64, n_classes: int) -> Float32:
    """Return (n_classes, dim) float32 class means of vectors (n, dim); zeros for a class without cells."""
    means = np.zeros((n_classes, vectors.shape[1]), dtype=np.float32)
    for k in np.unique(labels[labels >= 0]):
        means[k] = vectors[labels == k].mean(axis=0, dtype=np.float64)
    return means


def read(encoder: CellEncoder, chosen: CellChunk) -> CellChunk:
    """Return the cells over the genes that their vectors depend on."""
    return encoder.read(chosen) if refits(encoder) else chosen


def encode(encoder: CellEncoder, known: CellChunk) -> Float32:
    """Return (n, embed_dim) float32 vectors of cells that :func:`read` returned."""
    return encoder.encode_read(known) if refits(encoder) else encoder.encode(known)


def log_softmax(scores: npt.NDArray[np.floating]) -> Float64:
    """Return the log softmax over the last axis, as float64."""
    z = scores.astype(np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=-1, keepdims=True)))


def vote(
    neighbors: Neighbors, labels: npt.NDArray[np.int64], n_classes: int, *, pseudocount: float = 0.1
) -> Float32:
    """Return the fractions of votes for each class, (n, n_classes); rows sum to 1.

    A vote has the weight ``exp(-2 d^2 / d_k^2)``, where ``d_k`` is the distance of the last neighbour. This
    adaptive Gaussian kernel, as in UMAP and the label transfer of scANVI, treats dense and sparse regions
    equally. A vote is also weighted by one over the square root of the size of its class. This is a
    compromise between natural frequencies, which neglect rare types, and equal frequencies.

    Parameters
    ----------
    labels
        (n_reference,) int64 class numbers of the reference cells; cells with -1 do not vote.
    pseudocount
        Initial votes of every class, so that no class has probability 0.
    """
    found = neighbors.indices >= 0
    distances = np.where(found, neighbors.distances, 0.0).astype(np.float64)
    last = np.maximum(distances.max(axis=1, keepdims=True), 1e-12)
    codes = np.where(found, labels[neighbors.indices], -1)
    counts = np.maximum(np.bincount(labels[labels >= 0], minlength=n_classes), 1)
    # A class of average size gets weight 1, so that the pseudocount keeps its meaning.
    balance = np.sqrt(counts.mean() / counts)
    weights = np.where(codes >= 0, np.exp(-2.0 * distances / last) * balance[codes], 0.0)
    votes = np.full((len(codes), n_classes), pseudocount / n_classes)
    rows = np.repeat(np.arange(len(codes)), codes.shape[1])
    # -1 indexes the last class, but the weight of an unlabelled cell is 0.
    np.add.at(votes, (rows, codes.ravel()), weights.ravel())
    return np.asarray(votes / votes.sum(axis=1, keepdims=True), dtype=np.float32)


#: Logit of a class without cells, so that it is never predicted.
NEVER = -30.0


class Head:
    """Linear classifier ``vectors @ W.T + b``.

    Parameters
    ----------
    W, b
        (n_classes, dim) and (n_classes,) float32.
    activation
        ``"gelu"`` for a head trained together with its encoder, ``"none"`` for a head on fixed vectors.
    """

    def __init__(self, W: Float32, b: Float32, activation: str = "none") -> None:
        if activation not in ("none", "gelu"):
            raise ValueError(f"unknown activation {activation!r}")
        self.W, self.b, self.activation = W, b, activation

    @classmethod
    def of_centers(cls, centers: Float32) -> Head:
        """Return the nearest-class-mean classifier: the score is the cosine to the mean vector of a class.

        Parameters
        ----------
        centers
            (n_classes, dim) float32; zeros for a class without cells, which is never predicted.
        """
        lengths = np.linalg.norm(centers, axis=1, keepdims=True)
        empty = lengths[:, 0] < 1e-9
        return cls(
            (centers / np.maximum(lengths, 1e-9)).astype(np.float32),
            np.where(empty, NEVER, 0.0).astype(np.float32),
        )

    @classmethod
    def fit(
        cls,
        encoder: CellEncoder,
        vectors: Float32,
        labels: npt.NDArray[np.int64],
        n_classes: int,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Head:
        """Return the head that was trained with the encoder, or fit one on its vectors (n, dim)."""
        W, b = getattr(encoder, "W", None), getattr(encoder, "b", None)
        if W is not None and b is not None:
            # The encoder's head ends at the last class in its training cells. Other classes may lack cells.
            missing = n_classes - len(b)
            W, b = np.pad(W, ((0, missing), (0, 0))), np.pad(b, (0, missing))
            absent = np.bincount(labels[labels >= 0], minlength=n_classes) == 0
            W[absent], b[absent] = 0.0, NEVER
            return cls(W, b, "gelu")
        from sklearn.linear_model import LogisticRegression

        progress("training the head", 0, 1)
        rows = labels >= 0
        mean, sd = vectors[rows].mean(axis=0), np.maximum(vectors[rows].std(axis=0), 1e-6)
        counts = np.bincount(labels[rows], minlength=n_classes)
        weights = 1.0 / np.sqrt(counts[labels[rows]])
        model = LogisticRegression(C=0.1, max_iter=300, random_state=seed)
        model.fit((vectors[rows] - mean) / sd, labels[rows], sample_weight=weights / weights.mean())
        W = np.zeros((n_classes, vectors.shape[1]), dtype=np.float64)
        b = np.full(n_classes, NEVER)
        if len(model.classes_) == 2:
            W[model.classes_] = np.vstack([-model.coef_, model.coef_]) / 2
            b[model.classes_] = np.array([-model.intercept_[0], model.intercept_[0]]) / 2
        else:
            W[model.classes_], b[model.classes_] = model.coef_, model.intercept_
        # The weights include the standardisation, so encoding and scoring are two matrix products.
        W = W / sd
        progress("training the head", 1, 1)
        return cls(W.astype(np.float32), (b - W @ mean).astype(np.float32))

    def scores(self, vectors: Float32) -> Float32:
        """Return (n, n_classes) logits for cell vectors (n, dim)."""
        if self.activation == "gelu":
            from scipy.special import ndtr

            # gelu(x) = x Phi(x) (Hendrycks and Gimpel 2016, arXiv:1606.08415)
            vectors = (vectors * ndtr(vectors)).astype(np.float32)
        return np.asarray(vectors @ self.W.T + self.b, dtype=np.float32)

    def directions(self, vectors: Float32, a: Int64, b: Int64) -> tuple[Float64, Float64]:
        """Return the score difference between class ``a[i]`` and ``b[i]`` as a product with the cell vector.

        These are integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365) along the straight line
        from the zero vector, where the score equals the intercept. gelu acts on each dimension separately, so
        the integral has a closed form: gelu'(t c) over t from 0 to 1 gives gelu(c) / c = Phi(c).

        Returns
        -------
        directions
            (n, dim) float64. Row i times the vector of cell i, plus the constant, is the score difference.
        constant
            (n,) float64 differences of the intercepts.
        """
        from scipy.special import ndtr

        W = (self.W[a] - self.W[b]).astype(np.float64)
        if self.activation == "gelu":
            W *= ndtr(vectors.astype(np.float64))
        return W, (self.b[a] - self.b[b]).astype(np.float64)

    def state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Return the arguments of ``Head`` as arrays and JSON values."""
        return {"W": self.W, "b": self.b}, {"activation": self.activation}


N_NEIGHBORS = 15
#: Resolution of the clustering, by number of cells. It gives many small clusters, as in CellTypist (Dominguez
#: Conde et al. 2022, doi:10.1126/science.abl5197), so that a cluster rarely mixes two types.
_RESOLUTIONS = ((5_000, 5.0), (20_000, 10.0), (40_000, 15.0), (100_000, 20.0), (200_000, 25.0))
_FINEST = 30.0
N_ITERATIONS = 4


def need_igraph(
    what: str = "a majority vote over clusters", where: str = "--majority-vote", other: str = "omit it"
) -> None:
    """Raise InputError with another way if igraph is not installed."""
    need_extra("cluster", ["igraph"], what, where, other)


def clusters(vectors: Float32, resolution: float | None = None) -> Int64:
    """Return (n,) int64 cluster numbers of the cells; cluster 0 is the largest.

    The method is Leiden (Traag et al. 2019, doi:10.1038/s41598-019-41695-z) with modularity on the graph of
    nearest neighbours. Edges have the same weights as votes (:func:`vote`).

    Parameters
    ----------
    vectors
        (n, dim) float32 cell vectors.
    resolution
        Resolution of Leiden. By default many small clusters, as a majority vote needs them; see
        :data:`_RESOLUTIONS`.

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
    found = build_index(np.ascontiguousarray(vectors)).search(vectors, min(N_NEIGHBORS + 1, n))
    last = np.maximum(found.distances.max(axis=1, keepdims=True), 1e-12)
    weights = np.exp(-2.0 * found.distances.astype(np.float64) / last)
    rows = np.repeat(np.arange(n), found.indices.shape[1])
    columns = found.indices.ravel()
    others = rows != columns
    graph = igraph.Graph(n=n, edges=np.column_stack([rows, columns])[others])
    if resolution is None:
        resolution = next((r for limit, r in _RESOLUTIONS if n < limit), _FINEST)
    igraph.set_random_number_generator(random.Random(0))
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
    """Return the most frequent class in the cluster of each cell, (n,) int64.

    Ties go to the class with the higher sum of probabilities.

    Parameters
    ----------
    proba
        (n, n_classes) probabilities.
    cluster
        (n,) int64 cluster numbers.
    """
    best = proba.argmax(axis=1)
    votes = np.zeros((int(cluster.max(initial=-1)) + 1, proba.shape[1]))
    np.add.at(votes, (cluster, best), 1.0)
    mass = np.zeros_like(votes)
    np.add.at(mass, cluster, proba.astype(np.float64))
    # The sum of probabilities, scaled to less than one vote, breaks ties.
    tie = mass / (np.bincount(cluster, minlength=len(votes))[:, None] + 1.0)
    return np.asarray((votes + tie).argmax(axis=1)[cluster], dtype=np.int64)
