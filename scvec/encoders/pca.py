"""Control: principal components of the standardised cells. No text at all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.protocols import Progress, State, no_progress
from scvec.base.types import CellChunk, Float32
from scvec.encoders.scaling import Scaling

__all__ = ["PCAEncoder"]


class PCAEncoder:
    """The first principal components of z-scored expression, as scanpy's ``pp.scale`` and ``tl.pca``.

    Parameters
    ----------
    scaling
        Standardisation of the reference.
    embed_dim
        Number of components; fewer when there are fewer cells or genes.
    """

    name = "pca"

    def __init__(self, scaling: Scaling, *, embed_dim: int = 50) -> None:
        self.scaling = scaling
        self.embed_dim = embed_dim
        self.components: Float32 = np.zeros((len(scaling.mean), 0), dtype=np.float32)

    def fit(
        self,
        chunks: Iterable[CellChunk],
        labels: npt.NDArray[np.int64],
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> None:
        """Find the components; labels are not used."""
        from sklearn.decomposition import PCA

        Z = np.concatenate([self.scaling.dense(chunk) for chunk in chunks])
        self.embed_dim = min(self.embed_dim, *Z.shape)
        pca = PCA(self.embed_dim, random_state=seed).fit(Z)
        # The mean of z-scores is about 0 by construction, and a shift of all cells alike moves no neighbour.
        self.components = np.ascontiguousarray(pca.components_.T, dtype=np.float32)

    def encode(self, chunk: CellChunk) -> Float32:
        """Return (n, embed_dim) float32 component scores."""
        return self.scaling.product(chunk, self.components)

    def shares(self, chunk: CellChunk, directions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return (n, n_genes) what each gene adds to cell vector times direction (n, embed_dim)."""
        weights = directions @ self.components.T.astype(np.float64)
        return np.asarray(self.scaling.dense(chunk) * weights, dtype=np.float64)

    def state(self) -> State:
        """Return components and scaling."""
        return {"components": self.components, **self.scaling.state()}, {"embed_dim": self.embed_dim}

    @classmethod
    def from_state(cls, tensors: dict[str, npt.NDArray[Any]], meta: dict[str, Any]) -> PCAEncoder:
        """Rebuild from :meth:`state`."""
        scaling = Scaling.from_state(tensors)
        encoder = cls(scaling, embed_dim=int(meta["embed_dim"]))
        encoder.components = tensors["components"]
        if encoder.components.shape != (len(scaling.mean), encoder.embed_dim):
            raise ValueError(f"components of shape {encoder.components.shape} do not fit the encoder")
        return encoder
