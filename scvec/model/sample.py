"""The labelled cells that a reference is fitted from, small enough to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.types import CellChunk, State

__all__ = ["TrainingSample"]

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TrainingSample:
    """Labelled cells of a reference over all its genes, with the folds that are held out.

    A query that measured other genes than the reference gets a cell space of its own, fitted from these
    cells: what is kept here decides every fit.

    Attributes
    ----------
    X
        (n, n_genes) CSR float32, log1p CP10k, rounded to half precision (about 0.05%).
    labels
        (n,) int64 class numbers, all >= 0.
    rows
        (n,) int64 ascending rows of the cells in the reference.
    folds
        (n,) int64 fold of each cell.
    held_out
        ``batch`` if folds are whole batches, ``cells`` if not.
    n_batches
        Number of batches that the folds are made of; 0 for ``cells``.
    n_classes
        Number of classes, those without a cell among them.
    """

    X: Any
    labels: Int64
    rows: Int64
    folds: Int64
    held_out: str
    n_batches: int
    n_classes: int

    def __post_init__(self) -> None:
        n = self.X.shape[0]
        if not n == len(self.labels) == len(self.rows) == len(self.folds):
            raise ValueError(f"{n} cells with {len(self.labels)} labels and {len(self.rows)} rows")
        if n and (self.labels.min() < 0 or self.labels.max() >= self.n_classes):
            raise ValueError("a training cell without a class")
        if (np.diff(self.rows) <= 0).any():
            raise ValueError("rows must ascend")

    @classmethod
    def rounded(cls, X: Any, **rest: Any) -> TrainingSample:
        """Return a sample of cells whose values are rounded as they will be kept."""
        kept = X.copy()
        kept.data = kept.data.astype(np.float16).astype(np.float32)
        return cls(kept, **rest)

    def cells(self, measured: npt.NDArray[np.bool_] | None = None) -> CellChunk:
        """Return the cells as a data set shows them that measured some genes (n_genes,); all when None."""
        if measured is None:
            return CellChunk(self.X, np.ones(self.X.shape[1], dtype=bool))
        X = self.X.copy()
        X.data = np.where(measured[X.indices], X.data, np.float32(0.0))
        X.eliminate_zeros()
        return CellChunk(X, measured)

    def without(self, gone: Int64) -> TrainingSample:
        """Return the sample once rows of the reference are deleted, under the rows that are left."""
        still = ~np.isin(self.rows, gone)
        moved = self.rows - np.searchsorted(gone, self.rows)
        return TrainingSample(
            self.X[still],
            self.labels[still],
            moved[still],
            self.folds[still],
            self.held_out,
            self.n_batches,
            self.n_classes,
        )

    def state(self) -> State:
        """Return arrays and JSON values to store."""
        index = np.uint16 if self.X.shape[1] <= 1 << 16 else np.uint32
        tensors = {
            "data": self.X.data.astype(np.float16),
            "indices": self.X.indices.astype(index),
            "indptr": self.X.indptr.astype(np.int64),
            "labels": self.labels,
            "rows": self.rows,
            "folds": self.folds,
        }
        meta = {"held_out": self.held_out, "n_batches": self.n_batches, "n_classes": self.n_classes}
        return tensors, {**meta, "n_genes": int(self.X.shape[1])}

    @classmethod
    def from_state(cls, tensors: dict[str, npt.NDArray[Any]], meta: dict[str, Any]) -> TrainingSample:
        """Rebuild from :meth:`state`; ValueError where the parts do not fit together."""
        from scipy.sparse import csr_matrix

        shape = (len(tensors["labels"]), int(meta["n_genes"]))
        data = tensors["data"].astype(np.float32)
        X = csr_matrix((data, tensors["indices"].astype(np.int32), tensors["indptr"]), shape=shape)
        X.check_format(full_check=True)
        if not np.isfinite(data).all():
            raise ValueError("training cells with values that are not finite")
        return cls(
            X,
            tensors["labels"].astype(np.int64),
            tensors["rows"].astype(np.int64),
            tensors["folds"].astype(np.int64),
            str(meta["held_out"]),
            int(meta["n_batches"]),
            int(meta["n_classes"]),
        )
