"""Selection and order of the genes that a language model reads for each cell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.types import Float32, Int64

__all__ = ["Slots", "packed", "ranked", "split"]


@dataclass(frozen=True, slots=True)
class Slots:
    """The genes of n cells, highest expression first. Cells with fewer genes are padded.

    Attributes
    ----------
    genes
        (n, length) int64 column numbers of the genes; 0 where padded.
    values
        (n, length) float32 log1p CP10k; 0 where padded.
    counts
        (n,) int64 number of genes of each cell.
    """

    genes: Int64
    values: Float32
    counts: Int64

    def __post_init__(self) -> None:
        if self.genes.shape != self.values.shape or len(self.counts) != len(self.genes):
            raise ValueError(
                f"{self.genes.shape} genes, {self.values.shape} values, {len(self.counts)} cells"
            )

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(n, length) bool, False where padded."""
        return np.arange(self.genes.shape[1]) < self.counts[:, None]

    def take(self, rows: Int64, length: int | None = None) -> Slots:
        """Return some cells, with padding cut or added to give ``length`` places.

        Raises
        ------
        ValueError
            If a cell has more than ``length`` genes.
        """
        length = self.genes.shape[1] if length is None else length
        counts = self.counts[rows]
        if len(counts) and length < counts.max():
            raise ValueError(f"{counts.max()} genes do not fit into {length} places")
        pad = ((0, 0), (0, max(0, length - self.genes.shape[1])))
        genes, values = self.genes[rows][:, :length], self.values[rows][:, :length]
        return Slots(np.pad(genes, pad), np.pad(values, pad), counts)


def ranked(X: Any, n_genes: int, *, drop: float = 0.0, rng: np.random.Generator | None = None) -> Slots:
    """Return the ``n_genes`` highest expressed genes of each cell. Zeros are dropped; ties keep column order.

    Parameters
    ----------
    X
        (n, all genes) CSR float32, log1p CP10k.
    drop
        Fraction of the genes of a cell that ``rng`` drops before ranking, for training.
    """
    n = X.shape[0]
    counts = np.zeros(n, dtype=np.int64)
    chosen: list[tuple[Int64, Float32]] = []
    for i in range(n):
        here = slice(X.indptr[i], X.indptr[i + 1])
        columns, values = X.indices[here].astype(np.int64), X.data[here].astype(np.float32)
        kept = values > 0
        if drop > 0 and rng is not None:
            kept &= rng.random(len(values)) >= drop
        columns, values = columns[kept], values[kept]
        order = np.lexsort((columns, -values))[:n_genes]
        chosen.append((columns[order], values[order]))
        counts[i] = len(order)
    length = int(counts.max()) if n else 0
    genes, expressed = np.zeros((n, length), dtype=np.int64), np.zeros((n, length), dtype=np.float32)
    for i, (columns, values) in enumerate(chosen):
        genes[i, : len(columns)], expressed[i, : len(columns)] = columns, values
    return Slots(genes, expressed, counts)


def packed(counts: Int64, n_genes: int, batch_size: int) -> Iterator[tuple[Int64, int]]:
    """Yield (rows, places) of batches of cells with similar numbers of genes.

    The number of places is a multiple of an eighth of ``n_genes``, and depends on the cell alone. Padding is
    thus at most an eighth of ``n_genes``.
    """
    step = max(1, -(-n_genes // 8))
    places = np.maximum(-(-counts // step), 1) * step
    for size in np.unique(places)[::-1]:
        rows = np.flatnonzero(places == size)
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size], int(size)


def split(batches: list[tuple[Int64, int]], batch_size: int) -> list[tuple[Int64, int]]:
    """Return batches of at most ``batch_size`` cells, in the same order."""
    return [
        (rows[start : start + batch_size], places)
        for rows, places in batches
        for start in range(0, len(rows), batch_size)
    ]
