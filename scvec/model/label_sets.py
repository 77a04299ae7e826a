"""Label sets that hold the true label as often as a user asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.arrays import Texts, blocks, coded, release
from scvec.base.types import Float32

__all__ = ["LabelSets", "set_names"]


def set_names(proba: Float32, sets: npt.NDArray[np.bool_], classes: Sequence[str]) -> Texts:
    """Return n texts: each cell's labels, likeliest first, as ``alpha|beta``; empty where it has none.

    Parameters
    ----------
    proba
        (n, n_classes) float32.
    sets
        (n, n_classes), which labels belong to a cell's set.
    """
    number = {"": 0}
    codes = np.zeros(len(proba), dtype=np.int32)
    for rows in blocks(len(proba)):
        order = np.argsort(-proba[rows], axis=1, kind="stable")
        here = sets[rows]
        for row in np.flatnonzero(here.any(axis=1)):
            said = "|".join(classes[k] for k in order[row] if here[row, k])
            codes[rows.start + row] = number.setdefault(said, len(number))
        release(proba)
        release(sets)
    return coded(codes, list(number))


Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

#: Held-out cells that a class needs for a bar of its own. With n cells the coverage of a class exceeds what
#: was asked for by up to 1 / (n + 1), and varies about it with a standard deviation of about 0.3 / sqrt(n).
MIN_CELLS = 20
#: Quantiles kept of a class's scores; coverage is exact to half a percent with any number of cells.
N_KEPT = 199


@dataclass(frozen=True, slots=True)
class LabelSets:
    """Split conformal prediction with one bar a class (Mondrian).

    The score of a cell is one minus the probability of its true class (Sadinle, Lei and Wasserman 2019,
    doi:10.1080/01621459.2017.1395341: the smallest sets on average); a class is in the set of a new cell
    when its score is no larger than the ``ceil((n + 1) coverage)``-th smallest of the n held-out cells of
    that class (Vovk, Gammerman and Shafer 2005, *Algorithmic Learning in a Random World*, chapter 4). Each
    class is then covered as often as asked for, if new cells are like the held-out ones. Classes with few
    held-out cells share the bar of all cells together.

    A set may be empty: then no class fits as well as the asked share of its own cells do.

    Attributes
    ----------
    scores
        Per class, ascending scores of its held-out cells (at most ``N_KEPT`` quantiles of them).
    counts
        Number of held-out cells of each class.
    overall
        The same over all held-out cells.
    """

    scores: tuple[tuple[float, ...], ...]
    counts: tuple[int, ...]
    overall: tuple[float, ...]

    @classmethod
    def fit(cls, proba: Float32, labels: npt.NDArray[np.int64]) -> LabelSets:
        """Learn from probabilities (n, n_classes) of held-out cells and their true classes (n,)."""
        score = 1.0 - proba[np.arange(len(labels)), labels].astype(np.float64)
        of_class = [score[labels == k] for k in range(proba.shape[1])]
        return cls(tuple(_kept(s) for s in of_class), tuple(len(s) for s in of_class), _kept(score))

    def bars(self, coverage: float) -> Float64:
        """Return (n_classes,) largest scores that still belong to a set; inf where too few cells tell."""
        if not 0.0 < coverage < 1.0:
            raise ValueError(f"coverage must lie between 0 and 1, not {coverage}")
        shared = _bar(self.overall, coverage)
        enough = max(MIN_CELLS, int(np.ceil(coverage / (1.0 - coverage))))
        return np.array(
            [
                _bar(scores, coverage) if count >= enough else shared
                for scores, count in zip(self.scores, self.counts, strict=True)
            ]
        )

    def sets(self, proba: Float32, coverage: float) -> Bool:
        """Return (n, n_classes) bool: the classes that belong to each cell's set.

        Parameters
        ----------
        coverage
            How often (0-1) the set is to hold the true label.
        """
        # A rounding error must not push a cell over the bar that it set itself.
        return np.asarray(1.0 - proba.astype(np.float64) <= self.bars(coverage) + 1e-7)

    def sizes(self, proba: Float32, coverage: float) -> npt.NDArray[np.int64]:
        """Return (n,) labels in each cell's set, but for those that too few held-out cells tell of."""
        told = np.isfinite(self.bars(coverage))
        return np.asarray((self.sets(proba, coverage) & told).sum(axis=1), dtype=np.int64)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "scores": [list(s) for s in self.scores],
            "counts": list(self.counts),
            "overall": list(self.overall),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LabelSets:
        """Rebuild from :meth:`to_dict`."""
        return cls(tuple(tuple(s) for s in data["scores"]), tuple(data["counts"]), tuple(data["overall"]))


def _kept(scores: Float64) -> tuple[float, ...]:
    """Return the scores ascending, thinned to order statistics at even ranks where there are many."""
    ordered = np.sort(scores)
    if len(ordered) > N_KEPT:
        ranks = np.ceil(np.arange(1, N_KEPT + 1) * (len(ordered) + 1) / (N_KEPT + 1)).astype(int)
        ordered = ordered[np.minimum(ranks, len(ordered)) - 1]
    # Probabilities are float32: more digits would only be longer.
    return tuple(float(f"{v:.7g}") for v in ordered)


def _bar(kept: tuple[float, ...], coverage: float) -> float:
    """Return the ``ceil((n + 1) coverage)``-th smallest of n ascending scores; inf where there is none."""
    rank = int(np.ceil((len(kept) + 1) * coverage - 1e-9))
    return float(kept[rank - 1]) if 0 < rank <= len(kept) else float("inf")
