"""What the members of a reference say about cells that they have not seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scvec.base.types import CellChunk, Float32
from scvec.model.members import Members

__all__ = ["HeldOut", "look_at_held_out", "make_folds", "splits"]

Int64 = npt.NDArray[np.int64]


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
) -> tuple[Int64, str, list[str]]:
    """Return (fold of each cell, how they were made, notes).

    Whole batches are held out where there are at least two, since cells of one donor resemble each other;
    else cells, each class spread over the folds.

    Parameters
    ----------
    strata
        (n,) groups that are spread over the folds each by itself: a query of a species that the reference
        has is not named by the other species alone.
    """
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
    """Yield each fold that can be held out, the cells to train on without it, and those of it to look at.

    Held-out cells of a class that the other folds lack are left out: no member could name them.
    """
    for fold in np.unique(folds):
        train = np.flatnonzero((folds != fold) & (labels >= 0))
        test = np.flatnonzero((folds == fold) & (labels >= 0))
        test = test[np.isin(labels[test], np.unique(labels[train]))]
        if len(test) and len(np.unique(labels[train])) >= 2:
            yield int(fold), train, test


def look_at_held_out(
    cells: CellChunk,
    labels: Int64,
    folds: Int64,
    trained: Iterable[Members],
    *,
    n_neighbors: int,
    seed: int = 0,
    max_cells: int = 5000,
) -> HeldOut:
    """Ask the members about the cells of the fold that they were trained without.

    Parameters
    ----------
    trained
        Those trained on the cells of each of :func:`splits`, in that order; at least one.
    max_cells
        Held-out cells looked at, in all; more would hardly change the calibration.
    """
    rng = np.random.default_rng(seed)
    n_folds = len(np.unique(folds))
    found, truth, held = [], [], []
    for (fold, _, test), members in zip(splits(labels, folds), trained, strict=True):
        # An encoder that takes its time for a cell asks for fewer of them.
        most = min(max_cells, getattr(members.encoder, "held_out_cells", max_cells)) // n_folds
        if len(test) > most:
            test = np.sort(rng.choice(test, most, replace=False))
        found.append(members.look(CellChunk(cells.X[test], cells.measured), n_neighbors))
        truth.append(labels[test])
        held.append(np.full(len(test), fold, dtype=np.int64))
    return HeldOut(
        [np.concatenate(parts) for parts in zip(*(each.scores for each in found), strict=True)],
        np.concatenate(truth),
        np.concatenate([each.distances for each in found]),
        np.concatenate([each.depths for each in found]),
        np.concatenate(held),
    )
