"""How far a cell lies from each class, with the spread of that class as the yardstick."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.types import CellChunk, Float32
from scvec.encoders.statistics import class_means

__all__ = ["Spread"]

#: Components that the distances are taken over, as many as set apart the types of a tissue.
N_COMPONENTS = 20
#: As in the encoders: z-scores beyond this say no more, and a gene that hardly varies has no huge ones.
CLIP, MIN_SD = 5.0, 0.05


class Spread:
    """Class-wise Mahalanobis distances over principal components of standardised log expression.

    Lee et al. 2018 (arXiv:1807.03888), with one covariance a class instead of one for all, since types
    differ in how much their cells vary; each is shrunk to the mean covariance within classes, the more the
    fewer cells the class has (Friedman 1989, doi:10.1080/01621459.1989.10478752). Labels do not shape the
    components: a type that the classifier never had to tell apart has its own place here.

    Parameters
    ----------
    mean, sd
        (n_genes,) float32 of the reference.
    components
        (n_genes, n_components) float32.
    centers
        (n_classes, n_components) float32; NaN for a class without cells.
    whitening
        (n_classes, n_components, n_components) float32; a deviation from the center times this has unit
        covariance over the cells of the class.
    centroids
        (n_classes, n_genes) float32 mean cells, on log expression as it is: nothing is standardised, so
        that what another species or platform does to the spread of a gene makes no cell look new.
    """

    def __init__(
        self,
        mean: Float32,
        sd: Float32,
        components: Float32,
        centers: Float32,
        whitening: Float32,
        centroids: Float32,
    ) -> None:
        r = components.shape[1]
        if components.shape != (len(mean), r) or sd.shape != mean.shape:
            raise ValueError(f"components {components.shape}, mean {mean.shape} and sd {sd.shape} do not fit")
        if centers.shape[1:] != (r,) or whitening.shape != (len(centers), r, r):
            raise ValueError(f"centers {centers.shape} and whitening {whitening.shape} do not fit")
        if centroids.shape != (len(centers), len(mean)):
            raise ValueError(f"centroids {centroids.shape} must be of {len(centers)} classes")
        self.mean, self.sd, self.components, self.centroids = mean, sd, components, centroids
        self.centers, self.whitening = centers, whitening

    @classmethod
    def fit(cls, chunk: CellChunk, labels: npt.NDArray[np.int64], n_classes: int, *, seed: int = 0) -> Spread:
        """Learn from labelled cells; ``labels`` (n,) int64, -1 for none."""
        from sklearn.decomposition import PCA

        rows = np.flatnonzero(labels >= 0)
        X, y = chunk.X[rows], labels[rows]
        sums = [
            np.bincount(X.indices, X.data.astype(np.float64) ** power, minlength=X.shape[1])
            for power in (1, 2)
        ]
        mean = (sums[0] / len(rows)).astype(np.float32)
        variance = np.maximum(sums[1] / len(rows) - (sums[0] / len(rows)) ** 2, 0.0)
        sd = np.maximum(np.sqrt(variance), MIN_SD).astype(np.float32)
        Z, _ = _standardised(X, mean, sd)
        r = max(1, min(N_COMPONENTS, len(rows) - 1, Z.shape[1]))
        few = min(Z.shape) < 500
        # The covariance of thousands of genes takes seconds to take apart, and a few cells never need it.
        exact = "covariance_eigh" if Z.shape[1] < len(rows) else "full"
        pca = PCA(r, svd_solver=exact if few else "arpack", random_state=seed)
        pca.fit(Z.toarray() if few else Z)
        components = np.ascontiguousarray(pca.components_.T, dtype=np.float32)
        self = cls(
            mean,
            sd,
            components,
            np.full((n_classes, r), np.nan, dtype=np.float32),
            np.zeros((n_classes, r, r), dtype=np.float32),
            class_means(X, y, n_classes).astype(np.float32),
        )
        T = self.project(CellChunk(X, chunk.measured)).astype(np.float64)
        scatter = np.zeros((n_classes, r, r))
        counts = np.bincount(y, minlength=n_classes)
        for k in np.flatnonzero(counts):
            members = T[y == k]
            self.centers[k] = members.mean(axis=0)
            deviation = members - members.mean(axis=0)
            scatter[k] = deviation.T @ deviation
        within = scatter.sum(axis=0) / len(rows)
        # Cells without spread at all (one a class) leave the variance of all cells as the yardstick.
        floor = 1e-3 * max(float(np.trace(within)) / r, 1e-3 * float(T.var(axis=0).mean()), 1e-9)
        for k in np.flatnonzero(counts):
            covariance = (scatter[k] + r * within) / (counts[k] + r) + floor * np.eye(r)
            values, vectors = np.linalg.eigh(covariance)
            self.whitening[k] = vectors / np.sqrt(values)
        return self

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.centers)

    def project(self, chunk: CellChunk) -> Float32:
        """Return (n, n_components) float32 components; genes that were not measured are at the mean."""
        C = np.ascontiguousarray(self.components * chunk.measured[:, None], dtype=np.float32)
        difference, zero = _standardised(chunk.X, self.mean, self.sd)
        return np.asarray(difference @ C + zero @ C, dtype=np.float32)

    def away(self, chunk: CellChunk) -> Float32:
        """Return (n, n_classes, 2) float32: one minus the cosine to each centroid, and :meth:`distances`."""
        C = self.centroids * chunk.measured
        C = C / np.maximum(np.linalg.norm(C, axis=1, keepdims=True), 1e-9)
        X = chunk.X if chunk.measured.all() else chunk.X.multiply(chunk.measured).tocsr()
        norms = np.sqrt(np.asarray(X.multiply(X).sum(axis=1))).reshape(-1, 1)
        apart = 1.0 - np.asarray(X @ C.T) / np.maximum(norms, 1e-9)
        return np.stack([apart.astype(np.float32), self.distances(chunk)], axis=-1)

    def distances(self, chunk: CellChunk) -> Float32:
        """Return (n, n_classes) float32 distances, in standard deviations; inf to a class without cells."""
        T = self.project(chunk)
        found = np.full((len(T), self.n_classes), np.inf, dtype=np.float32)
        for k in np.flatnonzero(np.isfinite(self.centers[:, 0])):
            found[:, k] = np.linalg.norm((T - self.centers[k]) @ self.whitening[k], axis=1)
        return found

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays that ``Spread`` takes, by name."""
        return {
            "mean": self.mean,
            "sd": self.sd,
            "components": self.components,
            "centers": self.centers,
            "whitening": self.whitening,
            "centroids": self.centroids,
        }


def _standardised(X: Any, mean: Float32, sd: Float32) -> tuple[Any, Float32]:
    """Return clipped z-scores of cells X (n, n_genes) CSR as a sparse matrix plus one row for all of them.

    Cells stay sparse: only where there are counts does z differ from the z of none.
    """
    zero = np.clip(-mean / sd, -CLIP, CLIP)
    z = np.clip((X.data - mean[X.indices]) / sd[X.indices], -CLIP, CLIP)
    return type(X)((z - zero[X.indices], X.indices, X.indptr), shape=X.shape), zero
