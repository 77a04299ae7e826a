"""Per-gene statistics of a reference, gathered chunk by chunk, and the genes worth encoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.errors import InputError
from scvec.profiles import most_variable

__all__ = ["GeneStatistics", "StatisticsAccumulator", "highly_variable", "variability"]

Float64 = npt.NDArray[np.float64]

#: Standard deviations below this are noise of a handful of cells; dividing by them would let one read
#: outweigh a marker gene.
MIN_SD = 0.05


@dataclass(frozen=True, slots=True)
class GeneStatistics:
    """Mean and spread of each gene over ``n_cells`` cells.

    Attributes
    ----------
    mean, sd
        (n_genes,) float64 of log1p CP10k.
    linear_mean, linear_var
        (n_genes,) float64 of CP10k.
    """

    n_cells: int
    mean: Float64
    sd: Float64
    linear_mean: Float64
    linear_var: Float64

    def select(self, genes: npt.NDArray[np.int64]) -> GeneStatistics:
        """Return the statistics of some genes."""
        return GeneStatistics(
            self.n_cells,
            self.mean[genes],
            self.sd[genes],
            self.linear_mean[genes],
            self.linear_var[genes],
        )


class StatisticsAccumulator:
    """Adds up chunks of cells; the result does not depend on how cells were cut into chunks.

    Sums of float32 values are kept in float64: at ten million cells the relative error of a mean stays
    below 1e-9, so the plain sums are as good as Welford's update here.
    """

    def __init__(self, n_genes: int) -> None:
        self.n_cells = 0
        self._sums = np.zeros((4, n_genes))

    def add(self, X: Any) -> None:
        """Add (n, n_genes) CSR cells of log1p CP10k."""
        columns, n_genes = X.indices, X.shape[1]
        log = X.data.astype(np.float64)
        linear = np.expm1(log)
        for row, values in enumerate((log, log**2, linear, linear**2)):
            self._sums[row] += np.bincount(columns, weights=values, minlength=n_genes)
        self.n_cells += X.shape[0]

    def merge(self, other: StatisticsAccumulator) -> None:
        """Add the cells of another one over the same genes."""
        self._sums += other._sums
        self.n_cells += other.n_cells

    def result(self) -> GeneStatistics:
        """Return the statistics so far.

        Raises
        ------
        InputError
            If no cell was added.
        """
        if self.n_cells == 0:
            raise InputError("there are no cells to learn from", fix="give a reference with labelled cells")
        mean, square, linear, linear_square = self._sums / self.n_cells
        return GeneStatistics(
            self.n_cells,
            mean,
            np.sqrt(np.maximum(square - mean**2, 0.0)),
            linear,
            np.maximum(linear_square - linear**2, 0.0),
        )


def highly_variable(
    stats: GeneStatistics | Sequence[GeneStatistics], n_genes: int, n_bins: int = 20
) -> npt.NDArray[np.int64]:
    """Return the numbers of the most variable genes, ascending; fewer where fewer genes are expressed."""
    return most_variable(variability(stats, n_bins), n_genes)


def variability(stats: GeneStatistics | Sequence[GeneStatistics], n_bins: int = 20) -> Float64:
    """Return (n_genes,) how variable each gene is for its mean; -inf where it is not expressed.

    Dispersion standardised within bins of mean expression: the "seurat" flavour of
    ``scanpy.pp.highly_variable_genes`` (Satija et al. 2015, doi:10.1038/nbt.3192), with bins of equal
    numbers of genes, so that a bin is never empty.

    Parameters
    ----------
    stats
        Of all cells; or of several groups over the same genes, of which the mean counts, so that genes
        that differ between groups and not within them are none of the best.
    """
    groups = [stats] if isinstance(stats, GeneStatistics) else list(stats)
    scores = np.stack([_dispersions(group, n_bins) for group in groups])
    expressed = np.isfinite(scores).any(axis=0)
    # Silent in one group: it may not make up for that in another.
    lowest = np.min(scores, axis=1, where=np.isfinite(scores), initial=0.0, keepdims=True)
    return np.where(expressed, np.where(np.isfinite(scores), scores, lowest).mean(axis=0), -np.inf)


def _dispersions(stats: GeneStatistics, n_bins: int) -> Float64:
    """Return (n_genes,) standardised dispersions; -inf for genes that no cell has."""
    expressed = stats.linear_mean > 0
    mean = np.log1p(stats.linear_mean)
    dispersion = np.log(np.maximum(stats.linear_var, 1e-12) / np.maximum(stats.linear_mean, 1e-12))
    score = np.full(len(mean), -np.inf)
    if not expressed.any():
        return score
    edges = np.quantile(mean[expressed], np.linspace(0, 1, n_bins + 1)[1:-1])
    bins = np.digitize(mean, edges)
    for b in range(n_bins):
        members = expressed & (bins == b)
        if members.any():
            values = dispersion[members]
            score[members] = (values - values.mean()) / (values.std() + 1e-9)
    return score
