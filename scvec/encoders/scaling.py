"""Standardising sparse cells by a reference, without making them dense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scvec.base.types import CellChunk, Float32
from scvec.encoders.statistics import MIN_SD, GeneStatistics

__all__ = ["CLIP", "Scaling"]

#: Largest z-score. No option: a saved encoder that forgot it would give other vectors.
CLIP = 5.0


@dataclass(frozen=True, slots=True)
class Scaling:
    """z-scores by the reference's mean and standard deviation, clipped to ``[-CLIP, CLIP]``.

    A gene that a data set did not measure is set to 0, the reference's mean: it says nothing.

    Attributes
    ----------
    mean, sd
        (n_genes,) float32.
    """

    mean: Float32
    sd: Float32

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.sd.shape or not (self.sd > 0).all():
            raise ValueError(f"mean {self.mean.shape} and positive sd {self.sd.shape} must be (n_genes,)")

    @classmethod
    def from_state(cls, tensors: dict[str, Any]) -> Scaling:
        """Rebuild from :meth:`state`."""
        return cls(tensors["scaling.mean"], tensors["scaling.sd"])

    @classmethod
    def from_statistics(cls, stats: GeneStatistics) -> Scaling:
        """Use the statistics of a reference."""
        sd = np.maximum(stats.sd, MIN_SD)
        return cls(stats.mean.astype(np.float32), sd.astype(np.float32))

    @property
    def zero(self) -> Float32:
        """(n_genes,) z-score of a gene without counts."""
        return np.asarray(np.clip(-self.mean / self.sd, -CLIP, CLIP), dtype=np.float32)

    def dense(self, chunk: CellChunk) -> Float32:
        """Return (n, n_genes) float32 z-scores."""
        Z = chunk.X.toarray()
        Z -= self.mean
        Z /= self.sd
        np.clip(Z, -CLIP, CLIP, out=Z)
        Z[:, ~chunk.measured] = 0.0
        return np.asarray(Z, dtype=np.float32)

    def product(self, chunk: CellChunk, G: Float32) -> Float32:
        """Return z-scores times ``G`` (n_genes, dim), as (n, dim) float32.

        Sparse cells stay sparse: Z = zero + difference, and the difference is non-zero only where there are
        counts. A row's result depends on that row alone, whatever else is in the chunk.
        """
        G = np.ascontiguousarray(G * chunk.measured[:, None], dtype=np.float32)
        zero, X = self.zero, chunk.X
        columns = X.indices
        z = np.clip((X.data - self.mean[columns]) / self.sd[columns], -CLIP, CLIP)
        difference = type(X)((z - zero[columns], columns, X.indptr), shape=X.shape)
        return np.asarray(difference @ G + zero @ G, dtype=np.float32)

    def state(self) -> dict[str, Any]:
        """Return the arrays to save."""
        return {"scaling.mean": self.mean, "scaling.sd": self.sd}
