"""The classifiers on a cell space, distances from classes for novelty, and clusters of cells."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.types import (
    CellChunk,
    CellEncoder,
    Float32,
    Float64,
    Int64,
    Neighbors,
    Progress,
    VectorIndex,
    no_progress,
)
from scvec.encoders import refits
from scvec.model.novelty import Spread, depth

__all__ = [
    "MEMBERS",
    "Head",
    "Members",
    "Scores",
    "clusters",
    "has_igraph",
    "log_softmax",
    "majority",
    "need_igraph",
    "vote",
]

#: The trained classifier on cell vectors, and the labels of the nearest reference cells.
MEMBERS = ("head", "knn")
#: Score of a class that is not allowed; no weight brings it back.
OUT_OF_REACH = -1e4


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of all members for n cells, and distances for novelty.

    Attributes
    ----------
    vectors
        (n, embed_dim) float32.
    neighbors
        Nearest reference cells, by their row in the reference.
    scores
        For each of :data:`scvec.model.classifiers.MEMBERS`, (n, n_classes) float32, uncalibrated.
    distances
        (n, n_classes, 3) float32 of :meth:`Members.distances`, for novelty.
    n_detected, depths
        (n,) int64 genes of the encoder found in each cell, and (n,) :func:`scvec.model.novelty.depth`.
    """

    vectors: Float32
    neighbors: Neighbors
    scores: list[Float32]
    distances: Float32
    n_detected: Int64
    depths: npt.NDArray[np.float64]

    def restricted(self, allowed: npt.NDArray[np.bool_]) -> Scores:
        """Return the same with unreachable scores for classes that are not ``allowed`` (n_classes,) bool."""
        scores = [np.where(allowed, s, np.float32(OUT_OF_REACH)) for s in self.scores]
        return replace(self, scores=scores)


class Members:
    """Encoder, head, neighbours and distances of one set of labelled cells.

    Parameters
    ----------
    centers
        (n_classes, embed_dim) float32 mean vector of each class; zeros for one without cells.
    index
        Index of the labelled cells' vectors; row i has ``labels[i]``.
    labels
        (n_indexed,) int64, -1 for cells without a label.
    genes
        (n,) int64 numbers of the encoder's genes among the genes of the cells.
    rows
        (n_indexed,) int64, ascending: row of the reference of each indexed cell. The same when None.
    """

    def __init__(
        self,
        encoder: CellEncoder,
        head: Head,
        centers: Float32,
        spread: Spread,
        index: VectorIndex,
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
        """Train on labelled cells (n, n_genes); the encoder is untrained and takes ``genes`` of them."""
        from scvec.stores.index import build_index

        chosen = cells.select(genes) if len(genes) < cells.X.shape[1] else cells
        encoder.fit([chosen], labels, seed=seed, progress=progress)
        known = read(encoder, chosen)
        vectors = encode(encoder, known)
        centers = class_means(vectors, labels, n_classes)
        if refits(encoder):
            # The axes are a classifier already: the cosine to the mean vector of each class.
            head = Head.of_centers(centers)
        else:
            head = Head.fit(encoder, vectors, labels, n_classes, seed=seed, progress=progress)
        spread = Spread.fit(known, labels, n_classes, seed=seed)
        return cls(encoder, head, centers, spread, build_index(vectors), labels, genes, rows)

    @property
    def vector_genes(self) -> Int64:
        """Numbers of the genes that cell vectors are made of."""
        return self.encoder.genes if refits(self.encoder) else self.genes

    def read(self, chunk: CellChunk) -> CellChunk:
        """Return cells over all genes of the reference as cells over the genes of their vectors."""
        chosen = chunk.select(self.genes) if len(self.genes) < chunk.X.shape[1] else chunk
        return read(self.encoder, chosen)

    def labels_among(self, subset: Int64) -> Int64:
        """Return the class numbers of those of the rows (n,) of the reference that are indexed."""
        if self.rows is None:
            return self.labels[subset]
        return self.labels[np.isin(self.rows, subset)]

    def score(self, chunk: CellChunk, n_neighbors: int, *, subset: Int64 | None = None) -> Scores:
        """Return the scores of all members for cells.

        Parameters
        ----------
        chunk
            Cells over all genes of the reference.
        subset
            Ascending rows of the reference cells that may be neighbours; all when None.
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
        """Return (n, n_classes, 3) float32: how far cells are from the classes, in three ways.

        One minus the cosine to the mean cell on log expression; the Mahalanobis distance over principal
        components (both of :class:`scvec.model.novelty.Spread`); one minus the cosine to the mean vector in
        the cell space, as seen from the mean of all classes.
        """
        filled = self.centers.any(axis=1)
        middle = self.centers[filled].mean(axis=0)
        V, C = vectors - middle, self.centers - middle
        V = V / np.maximum(np.linalg.norm(V, axis=1, keepdims=True), 1e-9)
        C = C / np.maximum(np.linalg.norm(C, axis=1, keepdims=True), 1e-9)
        outside = np.asarray(1.0 - V @ C.T, dtype=np.float32)
        return np.concatenate([self.spread.away(known), outside[:, :, None]], axis=-1)


def class_means(vectors: Float32, labels: Int64, n_classes: int) -> Float32:
    """Return (n_classes, dim) float32 means of the vectors (n, dim) of each class; zeros without cells."""
    means = np.zeros((n_classes, vectors.shape[1]), dtype=np.float32)
    for k in np.unique(labels[labels >= 0]):
        means[k] = vectors[labels == k].mean(axis=0, dtype=np.float64)
    return means


def read(encoder: CellEncoder, chosen: CellChunk) -> CellChunk:
    """Return cells over the genes that their vectors are made of."""
    return encoder.read(chosen) if refits(encoder) else chosen


def encode(encoder: CellEncoder, known: CellChunk) -> Float32:
    """Return (n, embed_dim) float32 vectors of what :func:`read` returned."""
    return encoder.encode_read(known) if refits(encoder) else encoder.encode(known)


def log_softmax(scores: npt.NDArray[np.floating]) -> Float64:
    """Return the log of softmax over the last axis, in float64."""
    z = scores.astype(np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=-1, keepdims=True)))


def vote(
    neighbors: Neighbors, labels: npt.NDArray[np.int64], n_classes: int, *, pseudocount: float = 0.1
) -> Float32:
    """Return (n, n_classes) fractions of the neighbours' votes, rows summing to 1.

    Votes are weighted by ``exp(-2 d^2 / d_k^2)``, with ``d_k`` the distance of the last neighbour: an
    adaptive Gaussian kernel, as in UMAP and scANVI's label transfer, so that dense and sparse regions vote
    alike. They are also weighted by one over the square root of the size of their class: half-way between
    natural frequencies, which drown rare types, and equal ones.

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


#: Logit of a class without cells: it is never the answer.
NEVER = -30.0


class Head:
    """Linear classifier ``vectors @ W.T + b``.

    Parameters
    ----------
    W, b
        (n_classes, dim) and (n_classes,) float32.
    activation
        ``"gelu"`` for a head trained together with its encoder, ``"none"`` for one trained on fixed vectors.
    """

    def __init__(self, W: Float32, b: Float32, activation: str = "none") -> None:
        if activation not in ("none", "gelu"):
            raise ValueError(f"unknown activation {activation!r}")
        self.W, self.b, self.activation = W, b, activation

    @classmethod
    def of_centers(cls, centers: Float32) -> Head:
        """Return the classifier whose score is the cosine to the mean vector of a class.

        Parameters
        ----------
        centers
            (n_classes, dim) float32; zeros for a class without cells, which is never the answer.
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
        """Take the head that the encoder trained with itself, else fit one on its vectors (n, dim)."""
        W, b = getattr(encoder, "W", None), getattr(encoder, "b", None)
        if W is not None and b is not None:
            # The encoder knows classes up to the last one it saw, and some of those it never saw.
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
        # Fold the standardisation into the weights: encode and score stay two matrix products.
        W = W / sd
        progress("training the head", 1, 1)
        return cls(W.astype(np.float32), (b - W @ mean).astype(np.float32))

    def scores(self, vectors: Float32) -> Float32:
        """Return (n, n_classes) logits for cell vectors (n, dim)."""
        if self.activation == "gelu":
            from scipy.special import ndtr

            # gelu by its definition, x Phi(x) (Hendrycks and Gimpel 2016, arXiv:1606.08415)
            vectors = (vectors * ndtr(vectors)).astype(np.float32)
        return np.asarray(vectors @ self.W.T + self.b, dtype=np.float32)

    def directions(self, vectors: Float32, a: Int64, b: Int64) -> tuple[Float64, Float64]:
        """Return the score of class ``a[i]`` less that of ``b[i]`` as a product with the cell vector.

        Integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365) along the straight line from the
        vector 0, where the score is that of the intercepts alone. Each dimension passes through gelu by
        itself, so the integral is known: that of gelu'(t c) over t from 0 to 1 is gelu(c) / c = Phi(c).

        Returns
        -------
        directions
            (n, dim); row i times the vector of cell i, and the constant, are the difference of the scores.
        constant
            (n,) difference of the intercepts.
        """
        from scipy.special import ndtr

        W = (self.W[a] - self.W[b]).astype(np.float64)
        if self.activation == "gelu":
            W *= ndtr(vectors.astype(np.float64))
        return W, (self.b[a] - self.b[b]).astype(np.float64)

    def state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Return what ``Head`` takes."""
        return {"W": self.W, "b": self.b}, {"activation": self.activation}


N_NEIGHBORS = 15
#: Resolution of the clustering by number of cells: many small clusters, as CellTypist takes them (Dominguez
#: Conde et al. 2022, doi:10.1126/science.abl5197), so that a cluster is rarely of two types.
_RESOLUTIONS = ((5_000, 5.0), (20_000, 10.0), (40_000, 15.0), (100_000, 20.0), (200_000, 25.0))
_FINEST = 30.0
N_ITERATIONS = 4


def has_igraph() -> bool:
    """Return whether clusters can be made."""
    from importlib.util import find_spec

    return find_spec("igraph") is not None


def need_igraph() -> None:
    """Raise where igraph is not installed.

    Raises
    ------
    InputError
        It is not.
    """
    if not has_igraph():
        raise InputError(
            "a majority vote over clusters needs igraph, which is not installed",
            "--majority-vote",
            "pip install 'scvec[cluster]', or leave --majority-vote out",
            code="extra-not-installed",
        )


def clusters(vectors: Float32) -> Int64:
    """Return (n,) numbers of the clusters of cells, the largest first.

    Leiden (Traag et al. 2019, doi:10.1038/s41598-019-41695-z) by modularity on the graph of each cell's
    nearest other cells, edges weighted as the neighbours' votes are (:func:`vote`).

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
    found = build_index(np.ascontiguousarray(vectors)).search(vectors, min(N_NEIGHBORS + 1, n))
    last = np.maximum(found.distances.max(axis=1, keepdims=True), 1e-12)
    weights = np.exp(-2.0 * found.distances.astype(np.float64) / last)
    rows = np.repeat(np.arange(n), found.indices.shape[1])
    columns = found.indices.ravel()
    others = rows != columns
    graph = igraph.Graph(n=n, edges=np.column_stack([rows, columns])[others])
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
