"""A voice: cosine to the mean cell of each class, after what all classes share is taken out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from scvec.profiles import Profile
from scvec.types import CellChunk, Float32

__all__ = ["Prototypes"]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


class Prototypes:
    """Class centroids of log1p CP10k over the reference's variable genes.

    Cosines are taken between profiles: genes divided by their spread within classes (the independence rule,
    Bickel and Levina 2004, doi:10.3150/bj/1106314847), without the direction that all classes share, which
    would make all cosines one. Nothing depends on how many cells a class has, nor on the spread that another
    species or platform gives a gene: the steadiest voice.

    Parameters
    ----------
    centroids
        (n_classes, n_genes) float32; a class without cells has a row of zeros.
    """

    def __init__(self, centroids: Float32, profile: Profile) -> None:
        if profile.mean.shape != centroids.shape[1:]:
            raise ValueError(f"a profile of {profile.mean.shape} genes for centroids {centroids.shape}")
        self.centroids, self.profile = centroids, profile

    @classmethod
    def fit(cls, X: Any, labels: npt.NDArray[np.int64], n_classes: int, profile: Profile) -> Prototypes:
        """Average the cells X (n, n_genes) CSR of each class; ``labels`` (n,) int64, -1 for none."""
        rows = np.flatnonzero(labels >= 0)
        counts = np.bincount(labels[rows], minlength=n_classes)
        weights = 1.0 / counts[labels[rows]]
        membership = csr_matrix((weights, (labels[rows], rows)), shape=(n_classes, len(labels)))
        return cls((membership @ X).toarray().astype(np.float32), profile)

    def scores(self, chunk: CellChunk) -> Float32:
        """Return (n, n_classes) cosines, over the genes that the data set measured."""
        centroids = self.profile.unit(CellChunk(csr_matrix(self.centroids), chunk.measured))
        scores = self.profile.unit_product(chunk, np.ascontiguousarray(centroids.T))
        # A class without cells is the answer to nothing, though the cosines to all others be negative.
        scores[:, ~self.centroids.any(axis=1)] = -1.0
        return scores

    def contributions(self, chunk: CellChunk, a: Int64, b: Int64) -> Float64:
        """Return (n, n_genes) what each gene adds to the score of class ``a[i]`` less that of ``b[i]``.

        Exact: a cosine is a sum over genes of profile times centroid, given the length of the cell's profile.
        A gene that is lower than the cell's average would have it counts by its absence.
        """
        centroids = self.profile.unit(CellChunk(csr_matrix(self.centroids), chunk.measured)).astype(float)
        return np.asarray(self.profile.unit(chunk) * (centroids[a] - centroids[b]), dtype=np.float64)
