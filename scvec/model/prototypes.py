"""A voice: cosine to the mean cell of each class, after what all classes share is taken out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from scvec.profiles import Profile, most_variable
from scvec.types import CellChunk, Float32

__all__ = ["N_GENES", "Prototypes"]


#: Genes that a profile is taken over. Those that the cells of a type differ in by chance are most: across
#: species, five thousand do worse than three.
N_GENES = 3000
#: The same where genes count by how much of them there is: what is added are low and noisy ones.
N_PLAIN = 2000

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


class Prototypes:
    """Class centroids of log1p CP10k over the most variable genes among those that a query measured.

    The genes are chosen for each query, by which genes it measured and by nothing else of it: centroids are
    kept over all genes of the reference, so that a panel that lacks most of its most variable genes is
    compared over the best of those that it has.

    Cosines are taken between profiles: genes divided by their spread within classes (the independence rule,
    Bickel and Levina 2004, doi:10.3150/bj/1106314847), without the direction that all classes share, which
    would make all cosines one. Nothing depends on how many cells a class has, nor on the spread that another
    species or platform gives a gene: the steadiest voice.

    Parameters
    ----------
    centroids
        (n_classes, n_genes) float32; a class without cells has a row of zeros.
    variability
        (n_genes,) of :func:`scvec.encoders.statistics.variability`; no gene is left out when None.
    n_chosen
        How many genes cells are compared over.
    """

    def __init__(
        self,
        centroids: Float32,
        profile: Profile,
        variability: Float32 | None = None,
        n_chosen: int = N_GENES,
    ) -> None:
        n_genes = centroids.shape[1]
        if variability is None:
            variability = np.zeros(n_genes, dtype=np.float32)
        if profile.mean.shape != (n_genes,) or variability.shape != (n_genes,):
            parts = f"{profile.mean.shape} and {variability.shape}"
            raise ValueError(f"profile and variability of {parts} genes for centroids {centroids.shape}")
        self.centroids, self.profile, self.variability = centroids, profile, variability
        self.n_chosen = n_chosen
        self._last: tuple[bytes, npt.NDArray[np.bool_], Float32] | None = None

    @classmethod
    def fit(
        cls,
        X: Any,
        labels: npt.NDArray[np.int64],
        n_classes: int,
        profile: Profile,
        variability: Float32 | None = None,
    ) -> Prototypes:
        """Average the cells X (n, n_genes) CSR of each class; ``labels`` (n,) int64, -1 for none."""
        rows = np.flatnonzero(labels >= 0)
        counts = np.bincount(labels[rows], minlength=n_classes)
        weights = 1.0 / counts[labels[rows]]
        membership = csr_matrix((weights, (labels[rows], rows)), shape=(n_classes, len(labels)))
        return cls((membership @ X).toarray().astype(np.float32), profile, variability)

    def plain(self) -> Prototypes:
        """Return the same with the spread of the genes left out of account, over fewer genes.

        The spread is that of the reference's cells. In another species or on another platform other
        genes vary: there the two err differently.
        """
        profile = Profile(self.profile.mean, np.ones_like(self.profile.spread))
        return Prototypes(self.centroids, profile, self.variability, N_PLAIN)

    def heard(self, measured: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Return (n_genes,) bool: the genes that cells are compared over, given which were measured."""
        return self._panel(measured)[0]

    def scores(self, chunk: CellChunk) -> Float32:
        """Return (n, n_classes) cosines, over the most variable genes that the data set measured."""
        heard, centroids = self._panel(chunk.measured)
        scores = self.profile.unit_product(CellChunk(chunk.X, heard), np.ascontiguousarray(centroids.T))
        # A class without cells is the answer to nothing, though the cosines to all others be negative.
        scores[:, ~self.centroids.any(axis=1)] = -1.0
        return scores

    def contributions(self, chunk: CellChunk, a: Int64, b: Int64) -> tuple[Int64, Float64]:
        """Return the genes heard, and what each adds to the score of class ``a[i]`` less that of ``b[i]``.

        Exact: a cosine is a sum over genes of profile times centroid, given the length of the cell's profile.
        A gene that is lower than the cell's average would have it counts by its absence.

        Returns
        -------
        genes
            (n_heard,) int64 numbers of the genes.
        contributions
            (n, n_heard) float64.
        """
        heard, centroids = self._panel(chunk.measured)
        genes = np.flatnonzero(heard).astype(np.int64)
        there = CellChunk(chunk.X[:, genes], np.ones(len(genes), dtype=bool))
        weights = centroids[:, genes].astype(np.float64)
        return genes, self.profile.select(genes).unit(there) * (weights[a] - weights[b])

    def _panel(self, measured: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], Float32]:
        """Return the genes, and the centroids' profiles over them: the same for all chunks of a query."""
        key = measured.tobytes()
        last = self._last
        if last is None or last[0] != key:
            heard = np.zeros(len(measured), dtype=bool)
            heard[most_variable(np.where(measured, self.variability, -np.inf), self.n_chosen)] = True
            last = (key, heard, self.profile.unit(CellChunk(csr_matrix(self.centroids), heard)))
            self._last = last
        return last[1], last[2]
