"""What the voices say about reference cells they have not seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scvec.model.shift import NOVELTY_REGIMES, REGIMES, simulate
from scvec.model.voices import Voices
from scvec.types import CellChunk, Float32, Neighbors

__all__ = ["HeldOut", "crossfit", "make_folds", "splits"]

Int64 = npt.NDArray[np.int64]

#: Simulated shifts of each kind: the weights must suit the kind, not one draw of gene factors.
DRAWS = 3


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Scores of the voices on held-out cells.

    Attributes
    ----------
    scores
        Per regime, per voice, (n, n_classes) float32.
    neighbors
        Per regime, the neighbours found.
    labels
        Per regime, (n,) int64 true classes. A shifted regime sees ``DRAWS`` times as many, if there are few.
    distances, depths
        Per regime, (n, n_classes, 2) distances to the classes and (n,) depths, for the novelty of a cell.
    folds
        Per regime, (n,) int64 the fold that each cell was held out with.
    """

    scores: dict[str, list[Float32]]
    neighbors: dict[str, Neighbors]
    labels: dict[str, Int64]
    distances: dict[str, Float32]
    depths: dict[str, npt.NDArray[np.float64]]
    folds: dict[str, Int64]


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

    Held-out cells of a class that the other folds lack are left out: no voice could name them.
    """
    for fold in np.unique(folds):
        train = np.flatnonzero((folds != fold) & (labels >= 0))
        test = np.flatnonzero((folds == fold) & (labels >= 0))
        test = test[np.isin(labels[test], np.unique(labels[train]))]
        if len(test) and len(np.unique(labels[train])) >= 2:
            yield int(fold), train, test


def crossfit(
    cells: CellChunk,
    labels: Int64,
    folds: Int64,
    voices: Iterable[Voices],
    *,
    n_neighbors: int,
    seed: int = 0,
    max_cells: int = 5000,
) -> HeldOut:
    """Listen to voices on the cells of the fold that they were trained without, in every regime.

    Parameters
    ----------
    voices
        Those trained on the cells of each of :func:`splits`, in that order; at least one.
    max_cells
        Held-out cells looked at, in all; more would not change a few weights. Each draw of a shift sees other
        ones, as many in all.
    """
    rng = np.random.default_rng(seed)
    regimes = REGIMES | {regime.name: regime for regime in NOVELTY_REGIMES.values()}
    scores: dict[str, list[list[Float32]]] = {name: [] for name in regimes}
    neighbors: dict[str, list[Neighbors]] = {name: [] for name in regimes}
    truth: dict[str, list[Int64]] = {name: [] for name in regimes}
    distances: dict[str, list[Float32]] = {name: [] for name in regimes}
    depths: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in regimes}
    held: dict[str, list[Int64]] = {name: [] for name in regimes}
    n_folds = len(np.unique(folds))
    for (fold, _, test), trained in zip(splits(labels, folds), voices, strict=True):
        # An encoder that takes its time for a cell asks for fewer of them.
        encoder = getattr(trained, "encoder", None)
        most = min(max_cells, getattr(encoder, "held_out_cells", max_cells))
        if len(test) > most // n_folds:
            test = np.sort(rng.choice(test, most // n_folds, replace=False))
        unseen = CellChunk(cells.X[test], cells.measured)
        for name, regime in regimes.items():
            for _ in range(DRAWS if regime.shifts and most == max_cells else 1):
                some, y = unseen, labels[test]
                per_draw = max_cells // (n_folds * DRAWS)
                if regime.shifts and len(test) > per_draw:
                    rows = np.sort(rng.choice(len(test), per_draw, replace=False))
                    some, y = CellChunk(unseen.X[rows], unseen.measured), y[rows]
                shifted = simulate(some, regime, y, seed=int(rng.integers(2**32)))
                heard = trained.listen(shifted, n_neighbors)
                scores[name].append(heard.scores)
                neighbors[name].append(heard.neighbors)
                truth[name].append(y)
                distances[name].append(heard.distances)
                depths[name].append(heard.depths)
                held[name].append(np.full(len(y), fold, dtype=np.int64))
    return HeldOut(
        {name: [np.concatenate(v) for v in zip(*parts, strict=True)] for name, parts in scores.items()},
        {name: Neighbors.concatenate(parts) for name, parts in neighbors.items()},
        {name: np.concatenate(parts) for name, parts in truth.items()},
        {name: np.concatenate(parts) for name, parts in distances.items()},
        {name: np.concatenate(parts) for name, parts in depths.items()},
        {name: np.concatenate(parts) for name, parts in held.items()},
    )
