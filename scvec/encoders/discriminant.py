"""The cell space: class-balanced discriminant axes of expression profiles, solved in closed form."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.types import CellChunk, Float32, Float64, Int64, Progress, State, no_progress
from scvec.encoders import Material, encoder
from scvec.encoders.statistics import (
    MIN_SPREAD,
    Profile,
    StatisticsAccumulator,
    class_moments,
    most_variable,
    variability,
)

__all__ = ["Axes", "DiscriminantEncoder"]


#: Sizes of the two gene sets: the most variable genes, and the genes that separate the classes best. On the
#: development pairs (docs/benchmarks.md) the mean macro-F1 is flat from 200 to 800 genes in the second set.
N_VARIABLE, N_SEPARATING = 3000, 400
#: Ridge added to the within-class variance of every gene, as a multiple of the mean variance. The result is
#: flat from 1 to 4.
PENALTY = 2.0
#: Total to which the counts of a cell are scaled.
SCALE = 1e4
#: Cells that are converted to a dense matrix at a time.
BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Axes:
    """Discriminant axes over one set of genes.

    Let ``z`` be the profile of a cell, scaled to length 1 (:class:`scvec.encoders.statistics.Profile`). Its
    coordinates are ``(z - mean) @ weights``. The cell vector holds them scaled to length 1.

    Attributes
    ----------
    genes
        (n,) int64 column numbers of the genes, ascending.
    profile
        Profile of these genes.
    mean
        (n,) float32 mean of the mean profiles of the classes.
    weights
        (n, n_axes) float32.

    Raises
    ------
    ValueError
        If the arrays differ in their number of genes.
    """

    genes: Int64
    profile: Profile
    mean: Float32
    weights: Float32

    def __post_init__(self) -> None:
        n = len(self.genes)
        if self.weights.ndim != 2 or not n == len(self.profile.mean) == len(self.mean) == len(self.weights):
            raise ValueError(f"axes of shape {self.weights.shape} for {n} genes")

    @classmethod
    def fit(cls, X: Any, genes: Int64, labels: Int64) -> Axes:
        """Solve for the axes.

        This is Fisher's discriminant with equal class weights and a ridge on the within-class covariance
        (Friedman 1989, doi:10.1080/01621459.1989.10478752). The axes span the whitened class means. The
        linear system has the size of cells or genes, whichever are fewer. With one cell per class there is
        no within-class covariance, and the axes span the unwhitened class means.

        Parameters
        ----------
        X
            (n_cells, n) CSR float32 log1p CP10k over ``genes``.
        genes
            (n,) int64 column numbers.
        labels
            (n_cells,) int64 class numbers, all >= 0.
        """
        from scipy.linalg import solve

        profile = Profile.from_cells(X, labels)
        codes = np.unique(labels, return_inverse=True)[1]
        n_classes, (n_cells, n_genes) = int(codes.max()) + 1, X.shape
        counts = np.bincount(codes)
        Z = np.empty((n_cells, n_genes), dtype=np.float32)
        everything = np.ones(n_genes, dtype=bool)
        for start in range(0, n_cells, BLOCK):
            Z[start : start + BLOCK] = profile.unit(CellChunk(X[start : start + BLOCK], everything))
        means = np.stack([Z[codes == k].mean(axis=0, dtype=np.float64) for k in range(n_classes)])
        center = means.mean(axis=0)
        between = (means - center).T
        Z -= means.astype(np.float32)[codes]
        Z *= np.sqrt(1.0 / (n_classes * counts[codes])).astype(np.float32)[:, None]
        within = float(np.einsum("ij,ij->", Z, Z, dtype=np.float64))
        ridge = PENALTY * max(within, 1e-6 * float((between**2).sum()), 1e-12) / n_genes
        # Single precision halves the time of the products. Its error is far below the ridge.
        if n_cells < n_genes:
            gram = (Z @ Z.T).astype(np.float64)
            gram[np.diag_indices_from(gram)] += ridge
            across = Z.astype(np.float64) @ between
            S = (between - Z.T @ solve(gram, across, assume_a="pos", overwrite_a=True)) / ridge
        else:
            covariance = (Z.T @ Z).astype(np.float64)
            covariance[np.diag_indices_from(covariance)] += ridge
            S = solve(covariance, between, assume_a="pos", overwrite_a=True)
        spread = between.T @ S
        values, vectors = np.linalg.eigh((spread + spread.T) / 2)
        kept = values > 1e-8 * max(float(values.max()), 1e-300)
        weights = S @ (vectors[:, kept] / np.sqrt(values[kept]))
        return cls(genes, profile, center.astype(np.float32), np.ascontiguousarray(weights, dtype=np.float32))

    def encode(self, cells: CellChunk) -> tuple[Float32, Float32]:
        """Return unit vectors (n, n_axes) float32 of cells over ``genes``, and their lengths (n,) float32."""
        there = cells.measured
        found = self.profile.unit_product(cells, self.weights) - self.mean[there] @ self.weights[there]
        lengths = np.maximum(np.linalg.norm(found, axis=1), 1e-6).astype(np.float32)
        return np.asarray(found / lengths[:, None], dtype=np.float32), lengths


@encoder("discriminant", refits=True)
class DiscriminantEncoder:
    """Discriminant cell vectors: cells of one class point in similar directions.

    The encoder has two sets of discriminant axes (:class:`Axes`), both over measured genes. One set uses the
    most variable genes. The other uses the genes with the largest variance between classes relative to the
    variance within. Cells are first scaled to counts per ten thousand over the measured genes, so that panels
    and whole transcriptomes are on the same scale. The two unit vectors are concatenated and scaled to length
    1: the cosine of two cells is the mean of the two cosines.

    Parameters
    ----------
    scores
        (n_genes,) scores of :func:`scvec.encoders.statistics.variability`, over all genes of the reference.
    axes
        Trained axes; empty for an untrained encoder.
    """

    name: str

    def __init__(self, scores: npt.NDArray[np.floating], axes: tuple[Axes, ...] = ()) -> None:
        self.variability = np.asarray(scores, dtype=np.float32)
        self.axes = axes
        #: Dimension of a cell vector: at most 2 * (n_classes - 1).
        self.embed_dim = sum(a.weights.shape[1] for a in axes)

    @classmethod
    def new(cls, material: Material) -> DiscriminantEncoder:
        """Return an untrained encoder with the variability scores of the genes."""
        if material.variability is not None:
            return cls(material.variability)
        counted = StatisticsAccumulator(material.cells.X.shape[1])
        counted.add(material.cells.X)
        return cls(variability(counted.result()))

    @property
    def genes(self) -> Int64:
        """Column numbers of the genes that the axes use, (n,) int64, ascending."""
        return np.unique(np.concatenate([a.genes for a in self.axes]))

    def fit(
        self,
        chunks: Iterable[CellChunk],
        labels: npt.NDArray[np.int64],
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> None:
        """Choose genes among the measured genes and solve for the axes.

        Parameters
        ----------
        labels
            (n,) int64 class numbers; -1 marks an unlabelled cell.
        seed
            Not used: the solution is deterministic.

        Raises
        ------
        InputError
            If no measured gene varies, or fewer than two classes have cells.
        """
        import scipy.sparse as sp

        parts = list(chunks)
        X = sp.vstack([chunk.X for chunk in parts], format="csr") if len(parts) > 1 else parts[0].X
        measured = parts[0].measured
        rows = np.flatnonzero(labels >= 0)
        X, y = X[rows], labels[rows]
        if len(np.unique(y)) < 2:
            raise InputError(
                "fewer than two labels have cells", fix="give cells of at least two labels", code="one-label"
            )
        progress("fitting the cell space", 0, 2)
        usable = np.flatnonzero(measured & np.isfinite(self.variability))
        if len(usable) == 0:
            raise InputError(
                "no measured gene varies in the reference",
                fix="check the gene names",
                code="genes-not-recognised",
            )
        X = rescaled(X, measured)[:, usable]
        sets = [
            most_variable(self.variability[usable], N_VARIABLE),
            most_variable(separation(X, y), N_SEPARATING),
        ]
        if np.array_equal(sets[0], sets[1]):
            sets = sets[:1]
        axes = []
        for done, chosen in enumerate(sets, 1):
            axes.append(Axes.fit(X[:, chosen], usable[chosen], y))
            progress("fitting the cell space", done, len(sets))
        self.axes = tuple(axes)
        self.embed_dim = sum(a.weights.shape[1] for a in axes)

    def read(self, chunk: CellChunk) -> CellChunk:
        """Return the cells over :attr:`genes`, scaled to CP10k over all measured genes."""
        genes = self.genes
        return CellChunk(rescaled(chunk.X, chunk.measured, genes), chunk.measured[genes])

    def encode_read(self, known: CellChunk) -> Float32:
        """Return (n, embed_dim) float32 unit vectors of the cells that :meth:`read` returned."""
        parts = [axes.encode(self._over(axes, known))[0] for axes in self.axes]
        return np.asarray(np.hstack(parts) / np.sqrt(len(parts)), dtype=np.float32)

    def encode(self, chunk: CellChunk) -> Float32:
        """Return (n, embed_dim) float32 unit vectors of cells over all genes of the reference."""
        return self.encode_read(self.read(chunk))

    def shares(self, chunk: CellChunk, directions: Float64) -> Float64:
        """Return the contribution of each gene to the dot product of cell vector and direction.

        The length of the cell vector is treated as a constant. Each gene of a cell is compared with the mean
        profile over all classes.
        """
        known = self.read(chunk)
        found = np.zeros((len(chunk), len(self.variability)))
        start = 0
        for axes in self.axes:
            stop = start + axes.weights.shape[1]
            cells = self._over(axes, known)
            weights = directions[:, start:stop] @ axes.weights.T.astype(np.float64)
            _, lengths = axes.encode(cells)
            part = (axes.profile.unit(cells).astype(np.float64) - axes.mean * cells.measured) * weights
            found[:, axes.genes] += part / (lengths[:, None].astype(np.float64) * np.sqrt(len(self.axes)))
            start = stop
        return found

    def _over(self, axes: Axes, known: CellChunk) -> CellChunk:
        return known.select(np.searchsorted(self.genes, axes.genes))

    def state(self) -> State:
        """Return the arrays of all axes."""
        tensors: dict[str, npt.NDArray[Any]] = {"variability": self.variability}
        for i, axes in enumerate(self.axes):
            tensors |= {f"{i}.{name}": value for name, value in axes.profile.state().items()}
            tensors |= {f"{i}.genes": axes.genes, f"{i}.mean": axes.mean, f"{i}.weights": axes.weights}
        return tensors, {"n_sets": len(self.axes)}

    @classmethod
    def from_state(cls, tensors: dict[str, npt.NDArray[Any]], meta: dict[str, Any]) -> DiscriminantEncoder:
        """Rebuild from :meth:`state`.

        Raises
        ------
        ValueError
            If the state has no axes, or axes over unknown genes.
        """
        scores = tensors["variability"]
        axes = []
        for i in range(int(meta["n_sets"])):
            genes = tensors[f"{i}.genes"].astype(np.int64)
            if len(genes) == 0 or genes.min() < 0 or genes.max() >= len(scores):
                raise ValueError("the axes use genes that the reference does not have")
            profile = Profile.from_state(
                {name: tensors[f"{i}.{name}"] for name in ("profile.mean", "profile.spread")}
            )
            axes.append(Axes(genes, profile, tensors[f"{i}.mean"], tensors[f"{i}.weights"]))
        if not axes:
            raise ValueError("a discriminant space without axes")
        return cls(scores, tuple(axes))


def rescaled(X: Any, measured: npt.NDArray[np.bool_], genes: Int64 | None = None) -> Any:
    """Return cells scaled to log1p CP10k over the measured genes.

    Parameters
    ----------
    X
        (n, n_genes) CSR float32 log1p CP10k over all genes. Not changed.
    measured
        (n_genes,) bool.
    genes
        Column numbers to return; None for all.

    Returns
    -------
    csr
        (n, n_genes or len(genes)) float32.
    """
    linear = np.expm1(X.data)
    counted = linear if measured.all() else np.where(measured[X.indices], linear, np.float32(0.0))
    sums = np.add.reduceat(np.append(counted, 0.0).astype(np.float64), X.indptr[:-1].astype(np.int64))
    factor = np.where(sums > 0, SCALE / np.maximum(sums, 1e-12), 0.0)
    found = type(X)((counted, X.indices, X.indptr), shape=X.shape)
    # Both branches copy, because zeros are removed in place below and X must not change.
    found = found.copy() if genes is None else found[:, genes]
    per_value = np.repeat(factor.astype(np.float32), np.diff(found.indptr))
    found.data = np.log1p(found.data * per_value).astype(np.float32)
    found.eliminate_zeros()
    return found


def separation(X: Any, labels: Int64) -> Float64:
    """Return (n_genes,) float64 ratios of variance between class means to variance within classes.

    All classes have equal weight. ``MIN_SPREAD`` prevents large ratios for genes that hardly vary.

    Parameters
    ----------
    X
        (n, n_genes) CSR log1p CP10k.
    labels
        (n,) int64 class numbers; -1 marks an unlabelled cell.
    """
    means, within = class_moments(X, labels)
    ratio: Float64 = means.var(axis=0) / (within + MIN_SPREAD**2)
    return ratio
