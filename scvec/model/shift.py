"""What all cells of a query have in common against the reference, which is no sign of a new type."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Shift"]

Float64 = npt.NDArray[np.float64]

#: Quantile of a class's signals that is compared with that of the reference: below the middle, since cells
#: of a missing type stand above those of the class that they are given.
QUANTILE, EXPECTED = 0.3, -0.5244
#: The same of the quantile that tells how far the cells of a class spread below it.
LOW_QUANTILE, LOW_EXPECTED = 0.05, -1.6449
#: Quantile over classes that is common to the query: with the median, cells of missing types that were given
#: half of the classes would pass for another platform.
COMMON = 0.35
#: Cells of a class that its spread is told from, and how much wider than held-out cells a query may be.
SPREAD_CELLS, MAX_SPREAD = 20, 2.0
#: Cells of at least this probability count, in classes of at least so many of them.
MIN_PROBABILITY, MIN_CELLS = 0.5, 8
#: Classes from which on the common part is taken whole, and the cells that halve it.
FULL_CLASSES, HALF_CELLS = 4, 10.0
#: A common part of less than this, in standard deviations, is not worth a sentence.
WORTH_SAYING = 0.5


@dataclass(frozen=True, slots=True)
class Shift:
    """How much is taken from the novelty signals of the cells of a query before they are judged.

    Another platform, chemistry or species moves the cells of all classes away from the reference, and does
    not make them new. For each signal the low quantile of each class's cells is compared with that of
    held-out cells of the reference. A low quantile over classes is common to the query; from a class that
    moved less, less is taken, and never more. Where the cells of a class spread more below that quantile than
    held-out cells do, signals are divided by how much more. One class alone has nothing in common with
    others: then nothing is taken, since its cells may be of a missing type. With few classes or few cells
    less is taken.

    Attributes
    ----------
    offsets
        (n_classes, n_signals) float64, at least 0, in standard deviations of held-out cells.
    spread
        (n_signals,) float64, at least 1: how much wider the signals are than those of held-out cells.
    n_cells, n_supporting
        Cells and classes that it was estimated from.
    """

    offsets: Float64
    spread: Float64
    n_cells: int
    n_supporting: int

    @classmethod
    def none(cls, n_classes: int, n_signals: int = 3) -> Shift:
        """Return the shift that changes nothing."""
        return cls(np.zeros((n_classes, n_signals)), np.ones(n_signals), 0, 0)

    @classmethod
    def estimate(
        cls,
        signals: npt.NDArray[np.floating],
        given: npt.NDArray[np.integer[Any]],
        probability: npt.NDArray[np.floating],
        n_classes: int,
    ) -> Shift:
        """Learn from a query.

        Parameters
        ----------
        signals
            (n, n_signals) in standard deviations of held-out cells.
        given, probability
            (n,) the class number of each cell, and how probable it is.
        """
        sure = probability >= MIN_PROBABILITY
        counts = np.bincount(given[sure], minlength=n_classes)
        supporting = np.flatnonzero(counts >= MIN_CELLS)
        n_cells = int(counts[supporting].sum())
        if len(supporting) < 2:
            nothing = cls.none(n_classes, signals.shape[1])
            return replace(nothing, n_cells=n_cells, n_supporting=len(supporting))
        quantiles = np.stack(
            [np.quantile(signals[sure & (given == k)], [LOW_QUANTILE, QUANTILE], axis=0) for k in supporting]
        ).astype(np.float64)
        moved = quantiles[:, 1] - EXPECTED
        common = np.maximum(np.quantile(moved, COMMON, axis=0), 0.0)
        offsets = np.tile(common, (n_classes, 1))
        own = (counts[supporting] / (counts[supporting] + HALF_CELLS))[:, None]
        offsets[supporting] += own * np.minimum(moved - common, 0.0)
        taken = n_cells / (n_cells + HALF_CELLS) * min(1.0, (len(supporting) - 1) / (FULL_CLASSES - 1))
        spread = np.ones(signals.shape[1])
        large = counts[supporting] >= SPREAD_CELLS
        if large.any():
            below = (quantiles[large, 1] - quantiles[large, 0]) / (EXPECTED - LOW_EXPECTED)
            spread = 1.0 + taken * (np.clip(np.median(below, axis=0), 1.0, MAX_SPREAD) - 1.0)
        return cls(np.maximum(offsets, 0.0) * taken, spread, n_cells, len(supporting))

    def relative(self, signals: npt.NDArray[np.floating], given: npt.NDArray[np.integer[Any]]) -> Float64:
        """Return (n, n_signals) float64 signals as they would be without what the query has in common."""
        moved = signals - self.offsets[given]
        return np.asarray(moved + (moved - EXPECTED) * (1.0 / self.spread - 1.0), dtype=np.float64)

    @property
    def size(self) -> float:
        """Mean offset, in standard deviations of held-out cells."""
        return float(self.offsets.mean()) if self.offsets.size else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as `uns` keeps them."""
        return {
            "size": round(self.size, 4),
            "offsets": np.round(self.offsets, 4).tolist(),
            "spread": np.round(self.spread, 4).tolist(),
            "n_cells": self.n_cells,
            "n_classes": self.n_supporting,
        }

    @property
    def message(self) -> str:
        """One sentence for people; empty where there is little to say."""
        if self.size < WORTH_SAYING:
            return ""
        return (
            "this data set differs from the reference as another platform or species does "
            f"({self.size:.1f} standard deviations, {self.n_cells:,} cells of {self.n_supporting} labels); "
            "novelty is judged relative to that"
        )
