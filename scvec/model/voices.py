"""The voices of a reference, trained together and asked together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from scvec.model.head import Head
from scvec.model.knn import vote
from scvec.model.linear import Linear
from scvec.model.novelty import depth
from scvec.model.pool import VOICES, log_softmax
from scvec.model.prototypes import Prototypes
from scvec.model.spread import Spread
from scvec.profiles import Profile
from scvec.protocols import CellEncoder, Progress, VectorIndex, no_progress
from scvec.types import CellChunk, Float32, Neighbors

__all__ = ["Heard", "Voices"]

#: A score that no weight brings back.
OUT_OF_REACH = -1e4

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Heard:
    """What the voices said about n cells.

    Attributes
    ----------
    vectors
        (n, embed_dim) float32.
    neighbors
        Nearest reference cells.
    scores
        Per voice in the order of ``VOICES``, (n, n_classes) float32, uncalibrated.
    distances
        (n, n_classes, 2) float32 of :meth:`scvec.model.spread.Spread.away`: no voice, but what novelty is
        measured by.
    n_detected, depths
        (n,) int64 genes found in each cell, of those that the encoder knows, and :func:`novelty.depth`.
    """

    vectors: Float32
    neighbors: Neighbors
    scores: list[Float32]
    distances: Float32
    n_detected: Int64
    depths: npt.NDArray[np.float64]

    def restricted(self, allowed: npt.NDArray[np.bool_]) -> Heard:
        """Return the same with the scores of other classes than ``allowed`` (n_classes,) put out of reach."""
        scores = [np.where(allowed, s, np.float32(OUT_OF_REACH)) for s in self.scores]
        return replace(self, scores=scores)


class Voices:
    """Head, neighbours, prototypes, linear classifier and plain centroids of one set of labelled cells.

    Parameters
    ----------
    index
        Index of the labelled cells' vectors; row i has ``labels[i]``.
    labels
        (n_reference,) int64, -1 for cells without a label.
    genes
        Numbers of the genes that all voices but the prototypes know, of those that cells come with; all of
        them when None.
    """

    def __init__(
        self,
        encoder: CellEncoder,
        head: Head,
        prototypes: Prototypes,
        spread: Spread,
        linear: Linear,
        index: VectorIndex,
        labels: Int64,
        genes: Int64 | None = None,
    ) -> None:
        if index.n != len(labels):
            raise ValueError(f"{index.n} vectors in the index for {len(labels)} labels")
        self.encoder, self.head, self.prototypes = encoder, head, prototypes
        self.centroids = prototypes.plain()
        self.spread, self.linear = spread, linear
        self.index, self.labels = index, labels
        self.genes = np.arange(prototypes.centroids.shape[1]) if genes is None else genes

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
        genes: Int64 | None = None,
        variability: Float32 | None = None,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Voices:
        """Train on labelled cells.

        Parameters
        ----------
        encoder
            Of ``genes``, which are all that the cells have when None.
        variability
            (n_genes,) how variable each gene of the cells is; says which ones the prototypes use.
        """
        from scvec.stores.indices import build_index

        wide = Profile.from_cells(cells.X, labels)
        prototypes = Prototypes.fit(cells.X, labels, n_classes, wide, variability)
        if genes is not None:
            cells = cells.select(genes)
        encoder.fit([cells], labels, seed=seed, progress=progress)
        vectors = encoder.encode(cells)
        head = Head.fit(encoder, vectors, labels, n_classes, seed=seed, progress=progress)
        profile = wide if genes is None else wide.select(genes)
        spread = Spread.fit(cells, labels, n_classes, seed=seed)
        linear = Linear.fit(cells, labels, n_classes, profile)
        return cls(encoder, head, prototypes, spread, linear, build_index(vectors), labels, genes)

    def listen(self, chunk: CellChunk, n_neighbors: int, *, subset: Int64 | None = None) -> Heard:
        """Ask all voices about cells.

        Parameters
        ----------
        chunk
            Cells over all genes of the reference.
        subset
            Row numbers of the reference cells that may be neighbours; all when None.
        """
        known = chunk.select(self.genes)
        vectors = self.encoder.encode(known)
        neighbors = self.index.search(vectors, n_neighbors, subset=subset)
        by_name = {
            "head": self.head.scores(vectors),
            "knn": log_softmax(np.log(vote(neighbors, self.labels, self.n_classes))).astype(np.float32),
            "prototype": self.prototypes.scores(chunk),
            "linear": self.linear.scores(known),
            "centroid": self.centroids.scores(chunk),
        }
        scores = [by_name[name] for name in VOICES]
        found = np.diff(known.X.indptr).astype(np.int64)
        return Heard(vectors, neighbors, scores, self.spread.away(known), found, depth(known))
