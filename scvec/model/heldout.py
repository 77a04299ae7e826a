"""The training sample of a reference, its folds, and the scores of held-out cells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.types import CellChunk, Float32, State
from scvec.model.classifiers import Members

__all__ = ["HeldOut", "TrainingSample", "make_folds", "score_held_out", "splits"]

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

    def without(self, deleted: Int64) -> TrainingSample:
        """Return the sample once rows of the reference are deleted, under the rows that are left."""
        still = ~np.isin(self.rows, deleted)
        moved = self.rows - np.searchsorted(deleted, self.rows)
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


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Scores of the members on held-out cells.

    Attributes
    ----------
    scores
        For each member, (n, n_classes) float32.
    labels
        (n,) int64 true classes.
    distances, depths
        (n, n_classes, 3) distances to the classes and (n,) depths, for the novelty of a cell.
    folds
        (n,) int64 the fold that each cell was held out with.
    """

    scores: list[Float32]
    labels: Int64
    distances: Float32
    depths: npt.NDArray[np.float64]
    folds: Int64


def make_folds(
    labels: Int64,
    batches: npt.NDArray[np.str_] | None,
    *,
    n_folds: int,
    seed: int,
    strata: npt.NDArray[np.str_] | None = None,
    copies: Int64 | None = None,
) -> tuple[Int64, str, list[str]]:
    """Return (fold of each cell, how they were made, notes).

    Whole batches are held out where there are at least two, since cells of one donor resemble each other;
    else cells, each class spread over the folds.

    Parameters
    ----------
    strata
        (n,) groups, each spread over the folds by itself, such as species: the reference of a query cell
        holds cells of its species.
    copies
        (n,) cells of the same number are copies of one, and are held out together; 0 for no copy. A copy in
        another batch goes to the fold of the first.
    """
    folds, how, notes = _folds(labels, batches, n_folds, seed, strata)
    if copies is not None:
        _, first, number = np.unique(copies, return_index=True, return_inverse=True)
        folds = np.where(copies != 0, folds[first][number], folds)
    return folds, how, notes


def _folds(
    labels: Int64,
    batches: npt.NDArray[np.str_] | None,
    n_folds: int,
    seed: int,
    strata: npt.NDArray[np.str_] | None,
) -> tuple[Int64, str, list[str]]:
    """Return what :func:`make_folds` does, copies apart."""
    rng = np.random.default_rng(seed)
    groups = np.zeros(len(labels), dtype=np.int64) if strata is None else strata
    folds = np.zeros(len(labels), dtype=np.int64)
    by_cells = []
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        names = np.unique(batches[rows]) if batches is not None else np.array([])
        if batches is not None and len(names) >= 2:
            folds[rows] = _by_batches(batches[rows], n_folds)
        else:
            folds[rows] = _by_cells(labels[rows], n_folds, rng)
            by_cells.append(str(group))
    if not by_cells:
        return folds, "batch", []
    if len(by_cells) < len(np.unique(groups)):
        note = f"cells of one batch were held out, not whole batches, for {' and '.join(by_cells)}"
        return folds, "batch", [f"{note}: confidence is optimistic there for data from elsewhere"]
    note = (
        "confidence was calibrated on held-out cells of the same batches, so it is optimistic for data from "
        "elsewhere; name the column of donors or batches with --batch-key"
    )
    return folds, "cells", [note]


def _by_batches(batches: npt.NDArray[np.str_], n_folds: int) -> Int64:
    """Return the fold of each cell: largest batches first, each to the fold with the fewest cells so far."""
    names, sizes = np.unique(batches, return_counts=True)
    size_of = dict(zip(names, sizes, strict=True))
    load = np.zeros(min(n_folds, len(names)))
    fold_of = {}
    for name in sorted(names, key=lambda n: (-size_of[n], n)):
        fold_of[name] = int(load.argmin())
        load[fold_of[name]] += size_of[name]
    return np.array([fold_of[b] for b in batches], dtype=np.int64)


def _by_cells(labels: Int64, n_folds: int, rng: np.random.Generator) -> Int64:
    """Return the fold of each cell: the cells of each class spread over all."""
    folds = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        folds[rows] = (np.arange(len(rows)) + rng.integers(n_folds)) % n_folds
    return folds


def splits(labels: Int64, folds: Int64) -> Iterator[tuple[int, Int64, Int64]]:
    """Yield each fold that can be held out, the cells to train on without it, and its cells to score.

    Held-out cells of a class that the other folds lack are left out: no member could give them that label.
    """
    for fold in np.unique(folds):
        train = np.flatnonzero((folds != fold) & (labels >= 0))
        test = np.flatnonzero((folds == fold) & (labels >= 0))
        test = test[np.isin(labels[test], np.unique(labels[train]))]
        if len(test) and len(np.unique(labels[train])) >= 2:
            yield int(fold), train, test


def score_held_out(
    cells: CellChunk,
    labels: Int64,
    folds: Int64,
    trained: Iterable[Members],
    *,
    n_neighbors: int,
    seed: int = 0,
    max_cells: int = 5000,
) -> HeldOut:
    """Score the cells of each fold by the members that were trained without it.

    Parameters
    ----------
    trained
        Members trained on the cells of each of :func:`splits`, in that order; at least one.
    max_cells
        Held-out cells that are scored in all; more would hardly change the calibration.
    """
    rng = np.random.default_rng(seed)
    n_folds = len(np.unique(folds))
    found, truth, held = [], [], []
    for (fold, _, test), members in zip(splits(labels, folds), trained, strict=True):
        # A slow encoder asks for fewer cells.
        most = min(max_cells, getattr(members.encoder, "held_out_cells", max_cells)) // n_folds
        if len(test) > most:
            test = np.sort(rng.choice(test, most, replace=False))
        found.append(members.score(CellChunk(cells.X[test], cells.measured), n_neighbors))
        truth.append(labels[test])
        held.append(np.full(len(test), fold, dtype=np.int64))
    return HeldOut(
        [np.concatenate(parts) for parts in zip(*(each.scores for each in found), strict=True)],
        np.concatenate(truth),
        np.concatenate([each.distances for each in found]),
        np.concatenate([each.depths for each in found]),
        np.concatenate(held),
    )
