"""Vectors that another model made of the cells (scVI, scGPT, Harmony, ...), read from ``obsm``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.types import CellChunk, Float32, Progress, State, no_progress
from scvec.encoders import Material, encoder

__all__ = ["MIN_CELLS", "N_COMPARED", "Known", "ObsmEncoder", "VectorStatistics"]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

#: Cells of a query that are compared with the reference.
N_COMPARED = 500
#: Smallest number of cells for the comparison; fewer have too few neighbours among each other.
MIN_CELLS = 20
#: Number of nearest other query cells for the comparison; fewer for a small query.
N_OWN = 10
#: Cells per group of reference cells, most groups, and fewest cells of a group that is kept.
PER_GROUP, MAX_GROUPS, MIN_GROUP = 20, 64, 5
#: Least limits of :meth:`VectorStatistics.measures`. Cells of other donors, whole or one type alone, reach
#: 0.9 to 1.2 times what donors of the reference reach; rotated, permuted or rescaled vectors start beyond.
FAR, WIDE = 1.75, 1.5
#: A query may lie this much farther from the reference than whole batches of it lie from each other.
ROOM = 1.2


@dataclass(frozen=True)
class VectorStatistics:
    """Statistics of the vectors of a reference, by which vectors of another model are recognised.

    Distances are computed in a space with equal variance within types in all directions, so that dimensions
    of small variance that separate types count as much as those of large variance.

    Attributes
    ----------
    whitening
        (dim, dim) float32; vectors are multiplied by it.
    groups
        (n_groups, dim) float32 centers of groups of similar cells, whitened.
    radius
        (n_groups,) float32 median distance of the cells of a group from its center.
    limits
        The two measures beyond which vectors are of another model.
    """

    whitening: Float32
    groups: Float32
    radius: Float32
    limits: tuple[float, float] = (FAR, WIDE)

    def __post_init__(self) -> None:
        dim = len(self.whitening)
        if self.whitening.shape != (dim, dim) or self.groups.shape != (len(self.radius), dim):
            raise ValueError(f"whitening {self.whitening.shape} and groups {self.groups.shape} do not fit")

    @classmethod
    def fit(cls, vectors: Float32, labels: Int64, folds: Int64, *, seed: int = 0) -> VectorStatistics:
        """Learn from labelled cells (n, dim); ``folds`` (n,) hold whole batches, -1 for none.

        A reference whose own batches lie far apart has larger limits.
        """
        found, limits = cls._of(vectors, labels, seed), [(FAR, WIDE)]
        for fold in np.unique(folds[folds >= 0]):
            here, rest = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
            known = here[np.isin(labels[here], labels[rest])]
            if len(known) >= MIN_CELLS and len(np.unique(labels[rest])) > 1:
                far, wide = cls._of(vectors[rest], labels[rest], seed).measures(vectors[known])
                limits.append((ROOM * far, ROOM * wide))
        far, wide = np.max(limits, axis=0)
        return replace(found, limits=(float(far), float(wide)))

    @classmethod
    def _of(cls, vectors: Float32, labels: Int64, seed: int) -> VectorStatistics:
        from sklearn.cluster import KMeans

        V, dim = vectors.astype(np.float64), vectors.shape[1]
        within, centers = np.zeros((dim, dim)), []
        for k in np.unique(labels[labels >= 0]):
            members = V[labels == k]
            centers.append(members.mean(axis=0))
            deviation = members - centers[-1]
            size = float(np.mean(deviation**2))
            if len(members) > 2 and size > 0:
                # Each type by its own scale: a type that scatters widely would hide the others.
                within += deviation.T @ deviation / (size * np.sqrt(len(members)))
        within /= max(np.trace(within) / dim, 1e-12)
        within = 0.8 * within + 0.2 * np.diag(np.diag(within)) + 0.02 * np.eye(dim)
        values, directions = np.linalg.eigh(within)
        whitening = directions / np.sqrt(values)
        Z = V @ whitening
        n_groups = min(MAX_GROUPS, max(1, len(Z) // PER_GROUP))
        group = KMeans(n_groups, n_init=1, random_state=seed).fit_predict(Z)
        kept = [Z[group == g] for g in range(n_groups) if (group == g).sum() >= MIN_GROUP]
        kept += [Z[labels == k] for k in np.unique(labels[labels >= 0]) if (labels == k).sum() >= MIN_GROUP]
        kept = kept or [Z]
        groups = np.array([members.mean(axis=0) for members in kept])
        radius = [np.median(np.linalg.norm(m - c, axis=1)) for m, c in zip(kept, groups, strict=True)]
        return cls(
            whitening.astype(np.float32),
            groups.astype(np.float32),
            np.asarray(radius, dtype=np.float32),
        )

    def measures(self, vectors: Float32) -> tuple[float, float]:
        """Return two measures of how far vectors (n, dim) lie from the reference.

        The mean of a cell and its nearest cells of the query, in which noise averages out, is compared with
        the nearest group of the reference. Their distance is divided by that of the cell from its own nearest
        cells (large where groups lie elsewhere: rotated, permuted, shrunk), and by the geometric mean of this
        and the radius of the group (large where all is wider). Medians: cells of new types do not count as
        long as they are less than half.
        """
        step = max(1, -(-len(vectors) // N_COMPARED))
        Z = vectors[::step].astype(np.float64) @ self.whitening
        own = _distances(Z, Z)
        np.fill_diagonal(own, -1.0)  # each cell comes first
        n_own = int(np.clip(len(Z) // 15, 3, N_OWN))
        nearest = Z[np.argsort(own, axis=1)[:, : n_own + 1]]
        among = np.linalg.norm(Z - nearest[:, 1:].mean(axis=1), axis=1)
        away = _distances(nearest.mean(axis=1), self.groups.astype(np.float64))
        group, least = away.argmin(axis=1), away.min(axis=1)
        tiny = 1e-9 * max(float(np.abs(Z).max()), 1e-300)
        among, radius = np.maximum(among, tiny), np.maximum(self.radius[group], tiny)
        return float(np.median(least / among)), float(np.median(least / np.sqrt(among * radius)))


def _distances(A: Float64, B: Float64) -> Float64:
    squared = (A**2).sum(axis=1)[:, None] + (B**2).sum(axis=1) - 2.0 * A @ B.T
    return np.asarray(np.sqrt(np.maximum(squared, 0.0)))


@dataclass(frozen=True)
class Known:
    """Facts about vectors before training.

    Attributes
    ----------
    key
        Of ``obsm``.
    scale
        What vectors are divided by.
    variance
        ``uns['pca']['variance']`` of scanpy, which identifies a PCA; empty without it.
        What scvi-tools writes (``_scvi_uuid``, ``_scvi_manager_uuid``) names a data set and not a model.
    """

    key: str
    scale: float = 1.0
    variance: tuple[float, ...] = ()

    def check(
        self, vectors: Float32, variance: tuple[float, ...], statistics: VectorStatistics, where: str
    ) -> str:
        """Refuse vectors (n, dim) of a query, divided by ``scale``, that another model made; return a note.

        Raises
        ------
        InputError
            If they are of another model.
        """
        differs = f"the vectors of obsm[{self.key!r}] are not of the model that made those of the reference"
        fix = "make them with that model, or go on with --force if the reference has no type of these cells"
        if variance and self.variance:
            n = min(len(variance), len(self.variance))
            if not np.allclose(variance[:n], self.variance[:n], rtol=1e-3):
                shown = f"first variances {variance[0]:.4g} and {self.variance[0]:.4g}"
                raise InputError(
                    f"{differs}: another PCA ({shown})", where, fix, code="vectors-of-another-model"
                )
        if len(vectors) < MIN_CELLS:
            return f"too few cells to tell whether obsm[{self.key!r}] is of the model of the reference"
        found = statistics.measures(vectors)
        shown = ", ".join(f"{x:.2f} (limit {y:.2f})" for x, y in zip(found, statistics.limits, strict=True))
        if not all(x <= y for x, y in zip(found, statistics.limits, strict=True)):
            size = float(np.median(np.linalg.norm(vectors, axis=1)) * self.scale)
            raise InputError(
                f"{differs}: distances {shown}",
                f"{where}, median length {size:.3g}",
                fix,
                code="vectors-of-another-model",
            )
        return f"obsm[{self.key!r}] looks like the vectors of the reference: distances {shown}"


@encoder("obsm", argument="KEY")
class ObsmEncoder:
    """Takes the vectors of ``obsm[KEY]`` as they are.

    The "genes" of its cells are the dimensions of the vectors. Expression is not used.
    """

    name: str

    def __init__(self, known: Known, embed_dim: int, statistics: VectorStatistics | None = None) -> None:
        self.known, self.embed_dim, self.statistics = known, embed_dim, statistics

    @classmethod
    def new(cls, material: Material) -> ObsmEncoder:
        """Return the encoder of the vectors that the cells hold."""
        return cls(material.prepared, material.cells.X.shape[1])

    def fit(
        self,
        chunks: Iterable[CellChunk],
        labels: Int64,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> None:
        """Do nothing: the vectors are used unchanged."""

    def encode(self, chunk: CellChunk) -> Float32:
        """Return (n, embed_dim) float32 vectors as they were in ``obsm``."""
        return np.asarray(chunk.X.toarray() * np.float32(self.known.scale), dtype=np.float32)

    def state(self) -> State:
        """Return key, scale and statistics."""
        of, tensors = self.statistics, {}
        if of is not None:
            tensors = {"whitening": of.whitening, "groups": of.groups, "radius": of.radius}
        meta = {"key": self.known.key, "scale": self.known.scale, "variance": list(self.known.variance)}
        return tensors, {
            **meta,
            "embed_dim": self.embed_dim,
            "limits": [FAR, WIDE] if of is None else list(of.limits),
        }

    @classmethod
    def from_state(cls, tensors: dict[str, npt.NDArray[Any]], meta: dict[str, Any]) -> ObsmEncoder:
        """Rebuild from :meth:`state`; ValueError or KeyError where parts do not fit."""
        known = Known(str(meta["key"]), float(meta["scale"]), tuple(float(v) for v in meta["variance"]))
        far, wide = (float(x) for x in meta["limits"])
        parts = tensors["whitening"], tensors["groups"], tensors["radius"]
        found = cls(known, int(meta["embed_dim"]), VectorStatistics(*parts, (far, wide)))
        if len(tensors["whitening"]) != found.embed_dim or not 0 < known.scale < np.inf:
            raise ValueError(f"statistics of {len(tensors['whitening'])} dimensions for {found.embed_dim}")
        return found
