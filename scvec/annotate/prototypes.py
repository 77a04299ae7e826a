"""A voice: cosine to the mean cell of each class, on plain log expression."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.types import CellChunk, Float32

__all__ = ["Prototypes"]


class Prototypes:
    """Class centroids of log1p CP10k over the reference's variable genes.

    Nothing is standardised, so nothing depends on the spread that another species or platform gives a gene:
    the steadiest voice across species.

    Parameters
    ----------
    centroids
        (n_classes, n_genes) float32; a class without cells has a row of zeros.
    """

    def __init__(self, centroids: Float32) -> None:
        self.centroids = centroids

    @classmethod
    def fit(cls, X: Any, labels: npt.NDArray[np.int64], n_classes: int) -> Prototypes:
        """Average the cells X (n, n_genes) CSR of each class; ``labels`` (n,) int64, -1 for none."""
        from scipy.sparse import csr_matrix

        rows = np.flatnonzero(labels >= 0)
        counts = np.bincount(labels[rows], minlength=n_classes)
        weights = 1.0 / counts[labels[rows]]
        membership = csr_matrix((weights, (labels[rows], rows)), shape=(n_classes, len(labels)))
        return cls((membership @ X).toarray().astype(np.float32))

    def scores(self, chunk: CellChunk) -> Float32:
        """Return (n, n_classes) cosines, over the genes that the data set measured."""
        C = self.centroids * chunk.measured
        C = C / np.maximum(np.linalg.norm(C, axis=1, keepdims=True), 1e-9)
        X = chunk.X if chunk.measured.all() else chunk.X.multiply(chunk.measured).tocsr()
        norms = np.sqrt(np.asarray(X.multiply(X).sum(axis=1))).reshape(-1, 1)
        return np.asarray((X @ C.T) / np.maximum(norms, 1e-9), dtype=np.float32)
