"""What stands on the cell space of one set of labelled cells: classifiers, and distances for novelty."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from scvec.base.types import CellChunk, CellEncoder, Float32, Neighbors, Progress, VectorIndex, no_progress
from scvec.encoders.discriminant import DiscriminantEncoder
from scvec.model.ensemble import log_softmax
from scvec.model.head import Head, vote
from scvec.model.novelty import depth
from scvec.model.spread import Spread

__all__ = ["Members", "Scores"]

#: A score that no weight brings back.
OUT_OF_REACH = -1e4

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Scores:
    """What the members say about n cells.

    Attributes
    ----------
    vectors
        (n, embed_dim) float32.
    neighbors
        Nearest reference cells, by their row in the reference.
    scores
        For each of :data:`scvec.model.ensemble.MEMBERS`, (n, n_classes) float32, uncalibrated.
    distances
        (n, n_classes, 3) float32 of :meth:`Members.distances`, for novelty.
    n_detected, depths
        (n,) int64 genes found in each cell, of those that the encoder knows, and :func:`novelty.depth`.
    """

    vectors: Float32
    neighbors: Neighbors
    scores: list[Float32]
    distances: Float32
    n_detected: Int64
    depths: npt.NDArray[np.float64]

    def restricted(self, allowed: npt.NDArray[np.bool_]) -> Scores:
        """Return the same with the scores of other classes than ``allowed`` (n_classes,) put out of reach."""
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
        Numbers of the genes that the encoder takes, of those that cells come with.
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
        if isinstance(encoder, DiscriminantEncoder):
            # The axes are a classifier already: the cosine to the mean vector of each class.
            head = Head.of_centers(centers)
        else:
            head = Head.fit(encoder, vectors, labels, n_classes, seed=seed, progress=progress)
        spread = Spread.fit(known, labels, n_classes, seed=seed)
        return cls(encoder, head, centers, spread, build_index(vectors), labels, genes, rows)

    @property
    def vector_genes(self) -> Int64:
        """Numbers of the genes that cell vectors are made of."""
        return self.encoder.genes if isinstance(self.encoder, DiscriminantEncoder) else self.genes

    def read(self, chunk: CellChunk) -> CellChunk:
        """Return cells over all genes of the reference as cells over those that vectors are made of."""
        chosen = chunk.select(self.genes) if len(self.genes) < chunk.X.shape[1] else chunk
        return read(self.encoder, chosen)

    def labels_among(self, subset: Int64) -> Int64:
        """Return the class numbers of those of the rows (n,) of the reference that are indexed."""
        if self.rows is None:
            return self.labels[subset]
        return self.labels[np.isin(self.rows, subset)]

    def look(self, chunk: CellChunk, n_neighbors: int, *, subset: Int64 | None = None) -> Scores:
        """Return what the members say about cells.

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
        components (both of :class:`scvec.model.spread.Spread`); one minus the cosine to the mean vector in
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
    return encoder.read(chosen) if isinstance(encoder, DiscriminantEncoder) else chosen


def encode(encoder: CellEncoder, known: CellChunk) -> Float32:
    """Return (n, embed_dim) float32 vectors of what :func:`read` returned."""
    return encoder.encode_read(known) if isinstance(encoder, DiscriminantEncoder) else encoder.encode(known)
