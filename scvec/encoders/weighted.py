"""GenePT-w: a cell vector is the expression-weighted mean of the text vectors of its genes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.types import CellChunk, Float32, Progress, State, no_progress
from scvec.encoders import Material, encoder

__all__ = ["WeightedEncoder"]


@encoder("weighted", texts="genes")
class WeightedEncoder:
    """Mean of gene vectors weighted by log expression, scaled to length 1.

    This is "GenePT-w" of Chen and Zou 2023 (doi:10.1101/2023.10.16.562533). It has no trained parameters. It
    is the zero-shot baseline, and a weak one (see docs/benchmarks.md).

    Parameters
    ----------
    gene_vectors
        (n_genes, dim) float32.
    """

    name: str

    def __init__(self, gene_vectors: Float32) -> None:
        self.gene_vectors = np.ascontiguousarray(gene_vectors, dtype=np.float32)
        self.embed_dim = int(gene_vectors.shape[1])

    @classmethod
    def new(cls, material: Material) -> WeightedEncoder:
        """Return the encoder for the gene vectors of ``material``."""
        return cls(np.asarray(material.gene_vectors))

    def fit(
        self,
        chunks: Iterable[CellChunk],
        labels: npt.NDArray[np.int64],
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> None:
        """Do nothing: the encoder has no trained parameters."""

    def encode(self, chunk: CellChunk) -> Float32:
        """Return (n, dim) float32 unit vectors; zeros for a cell without counts."""
        sums = np.asarray(chunk.X @ self.gene_vectors, dtype=np.float32)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        return np.asarray(sums / np.maximum(norms, 1e-12), dtype=np.float32)

    def shares(self, chunk: CellChunk, directions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the contribution of each gene to the dot product of cell vector and direction.

        The length of the cell vector is treated as a constant.
        """
        norms = np.linalg.norm(chunk.X @ self.gene_vectors, axis=1, keepdims=True)
        weights = directions @ self.gene_vectors.T.astype(np.float64)
        return np.asarray(chunk.X.toarray() * weights / np.maximum(norms, 1e-12), dtype=np.float64)

    def state(self) -> State:
        """Return the gene vectors."""
        return {"gene_vectors": self.gene_vectors}, {}

    @classmethod
    def from_state(cls, tensors: dict[str, npt.NDArray[Any]], meta: dict[str, Any]) -> WeightedEncoder:
        """Rebuild from :meth:`state`."""
        return cls(tensors["gene_vectors"])
