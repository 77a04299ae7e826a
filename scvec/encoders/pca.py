"""Control without text: principal components of the standardised cells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.types import CellChunk, Float32, Progress, State, no_progress
from scvec.encoders import Material, encoder
from scvec.encoders.statistics import MIN_SD, GeneStatistics, StatisticsAccumulator

__all__ = ["CLIP", "PCAEncoder", "Scaling"]

#: Largest z-score. Saved encoders do not store it, so it must not become an option.
CLIP = 5.0


@dataclass(frozen=True, slots=True)
class Scaling:
    """z-scores by the reference's mean and standard deviation, clipped to ``[-CLIP, CLIP]``.

    A gene that a data set did not measure gets 0, the mean of the reference.

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
        """Return the scaling of a reference."""
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

        The cells stay sparse: z-scores are ``zero`` plus a difference that is non-zero only where there are
        counts. The result of a cell does not depend on the other cells of the chunk.
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


@encoder("pca")
class PCAEncoder:
    """First principal components of z-scored expression, as in scanpy's ``pp.scale`` and ``tl.pca``.

    Parameters
    ----------
    scaling
        Mean and standard deviation of the reference.
    embed_dim
        Number of components, at most the number of cells and of genes.
    """

    name: str

    def __init__(self, scaling: Scaling, *, embed_dim: int = 50) -> None:
        self.scaling = scaling
        self.embed_dim = embed_dim
        self.components: Float32 = np.zeros((len(scaling.mean), 0), dtype=np.float32)

    @classmethod
    def new(cls, material: Material) -> PCAEncoder:
        """Return an encoder whose scaling is learned from the training cells."""
        counted = StatisticsAccumulator(material.cells.X.shape[1])
        counted.add(material.cells.X)
        return cls(Scaling.from_statistics(counted.result()))

    def fit(
        self,
        chunks: Iterable[CellChunk],
        labels: npt.NDArray[np.int64],
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> None:
        """Compute the components; labels are not used."""
        from sklearn.decomposition import PCA

        Z = np.concatenate([self.scaling.dense(chunk) for chunk in chunks])
        self.embed_dim = min(self.embed_dim, *Z.shape)
        pca = PCA(self.embed_dim, random_state=seed).fit(Z)
        # PCA's own mean is left out: z-scores have mean 0, and a common shift changes no neighbours.
        self.components = np.ascontiguousarray(pca.components_.T, dtype=np.float32)

    def encode(self, chunk: CellChunk) -> Float32:
        """Return (n, embed_dim) float32 component scores."""
        return self.scaling.product(chunk, self.components)

    def shares(self, chunk: CellChunk, directions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the contribution of each gene to the dot product of cell vector and direction."""
        weights = directions @ self.components.T.astype(np.float64)
        return np.asarray(self.scaling.dense(chunk) * weights, dtype=np.float64)

    def state(self) -> State:
        """Return components and scaling."""
        return {"components": self.components, **self.scaling.state()}, {"embed_dim": self.embed_dim}

    @classmethod
    def from_state(cls, tensors: dict[str, npt.NDArray[Any]], meta: dict[str, Any]) -> PCAEncoder:
        """Rebuild from :meth:`state`.

        Raises
        ------
        ValueError
            If the arrays do not fit each other.
        """
        scaling = Scaling.from_state(tensors)
        encoder = cls(scaling, embed_dim=int(meta["embed_dim"]))
        encoder.components = tensors["components"]
        if encoder.components.shape != (len(scaling.mean), encoder.embed_dim):
            raise ValueError(f"components of shape {encoder.components.shape} do not fit the encoder")
        return encoder
