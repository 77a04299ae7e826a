"""What a cell adds to the average cell of the reference, on a scale of each gene's own noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.types import CellChunk, Float32

__all__ = ["Profile", "most_variable"]

#: Added to the spread of a gene within classes, in log1p CP10k: a gene silent in most classes has next to
#: none, and would count for more than all markers. Macro-F1 is flat from 0.1 to 0.4.
MIN_SPREAD = 0.2


def most_variable(scores: npt.NDArray[np.floating], n_genes: int) -> npt.NDArray[np.int64]:
    """Return the numbers of the ``n_genes`` genes of the largest scores, ascending; -inf is never chosen."""
    best = np.argsort(-scores, kind="stable")[: min(n_genes, int(np.isfinite(scores).sum()))]
    return np.sort(best).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Profile:
    """Cells divided by each gene's spread within classes, without the part that all classes share.

    With ``x`` a cell, ``s`` the spread and ``m`` the mean over the means of the classes, what is returned is
    ``x/s`` less its projection on ``m/s``, both over the genes that the data set measured. A factor on all of
    a cell's values (its depth, the part of the transcriptome that a panel covers) is then a factor on the
    whole vector, which later steps divide out; and a rare class counts as much as a common one, both in ``m``
    and in ``s``.

    Attributes
    ----------
    mean, spread
        (n_genes,) float32.
    """

    mean: Float32
    spread: Float32

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.spread.shape or not (self.spread > 0).all():
            what = f"mean {self.mean.shape} and positive spread {self.spread.shape}"
            raise ValueError(f"{what} must be (n_genes,)")

    @classmethod
    def from_cells(cls, X: Any, labels: npt.NDArray[np.int64]) -> Profile:
        """Learn from cells X (n, n_genes) CSR and their classes; ``labels`` (n,) int64, -1 for none."""
        from scipy.sparse import csr_matrix

        rows = np.flatnonzero(labels >= 0)
        codes = np.unique(labels[rows], return_inverse=True)[1]
        weights = 1.0 / np.bincount(codes)[codes]
        means = csr_matrix((weights, (codes, rows)), shape=(int(codes.max()) + 1, len(labels)))
        first = (means @ X).toarray().astype(np.float64)
        second = (means @ X.multiply(X)).toarray().astype(np.float64)
        variance = np.maximum(second - first**2, 0.0).mean(axis=0)
        return cls(first.mean(axis=0).astype(np.float32), (np.sqrt(variance) + MIN_SPREAD).astype(np.float32))

    def select(self, genes: npt.NDArray[np.int64]) -> Profile:
        """Return the profile of some genes."""
        return Profile(self.mean[genes], self.spread[genes])

    @classmethod
    def from_state(cls, tensors: dict[str, Any]) -> Profile:
        """Rebuild from :meth:`state`."""
        return cls(tensors["profile.mean"], tensors["profile.spread"])

    def unit(self, chunk: CellChunk) -> Float32:
        """Return what :meth:`dense` does, each row scaled to length 1, as (n, n_genes) float32."""
        z = self.dense(chunk)
        return np.asarray(z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-6), dtype=np.float32)

    def unit_product(self, chunk: CellChunk, G: Float32) -> Float32:
        """Return :meth:`unit` times ``G`` (n_genes, dim), as (n, dim) float32; the cells stay sparse."""
        # Genes that do not count add nothing but time.
        X = chunk.X
        there: slice | npt.NDArray[np.int64] = slice(None)
        if not chunk.measured.all():
            there = np.flatnonzero(chunk.measured)
            X = X[:, there]
        Z = type(X)((X.data * (1.0 / self.spread)[there][X.indices], X.indices, X.indptr), shape=X.shape)
        # |z|^2 less the part along the shared direction, by Pythagoras
        along = np.asarray(Z @ self.shared(chunk.measured)[there], dtype=np.float64)
        Z.data **= 2
        squares = np.asarray(Z.sum(axis=1), dtype=np.float64).ravel() - along**2
        norms = np.sqrt(np.maximum(squares, 1e-12))[:, None]
        projected = np.ascontiguousarray(self._projected(chunk.measured, G)[there])
        return np.asarray(np.asarray(X @ projected, dtype=np.float32) / norms, dtype=np.float32)

    def shared(self, measured: npt.NDArray[np.bool_]) -> Float32:
        """Return (n_genes,) the direction that all classes share, of length 1 over the measured genes."""
        direction = np.where(measured, self.mean / self.spread, 0.0)
        return np.asarray(direction / max(float(np.linalg.norm(direction)), 1e-12), dtype=np.float32)

    def dense(self, chunk: CellChunk) -> Float32:
        """Return (n, n_genes) float32."""
        z = chunk.X.toarray() / self.spread
        z[:, ~chunk.measured] = 0.0
        u = self.shared(chunk.measured)
        return np.asarray(z - np.outer(z @ u, u), dtype=np.float32)

    def product(self, chunk: CellChunk, G: Float32) -> Float32:
        """Return :meth:`dense` times ``G`` (n_genes, dim), as (n, dim) float32.

        The cells stay sparse: the projection is taken from ``G``. A row's result depends on that row alone.
        """
        return np.asarray(chunk.X @ self._projected(chunk.measured, G), dtype=np.float32)

    def _projected(self, measured: npt.NDArray[np.bool_], G: Float32) -> Float32:
        """Return ``G`` so that cells times it are their profiles times ``G``."""
        u = self.shared(measured)
        return np.ascontiguousarray((G - np.outer(u, u @ G)) * (measured / self.spread)[:, None], np.float32)

    def state(self) -> dict[str, Any]:
        """Return the arrays to save."""
        return {"profile.mean": self.mean, "profile.spread": self.spread}
