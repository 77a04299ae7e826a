"""Weights, confidence, label sets, novelty and the held-out record of a reference, per regime."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.model.confidence import LAPSE, Confidence
from scvec.model.conformal import LabelSets
from scvec.model.crossfit import HeldOut
from scvec.model.metrics import expected_calibration_error, macro_f1, reliability
from scvec.model.novelty import Novelty, signals
from scvec.model.pool import LINEAR, PRIORS, VOICES, Pool
from scvec.model.shift import NOVELTY_REGIMES, REGIMES

__all__ = ["Calibration"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was learned from held-out reference cells.

    Attributes
    ----------
    pools, confidence, sets, novelty
        Per regime.
    record
        Per regime, how well the voices did: accuracy of each, and of the pool accuracy, macro-F1, ECE and
        the bins behind it; per class how many of its cells got their label again.
    held_out
        ``"batch"``, ``"cells"`` or ``"none"``.
    n_cells
        Number of held-out cells.
    """

    pools: dict[str, Pool]
    confidence: dict[str, Confidence]
    sets: dict[str, LabelSets]
    novelty: dict[str, Novelty]
    record: dict[str, dict[str, Any]]
    held_out: str
    n_cells: int

    @classmethod
    def fit(cls, seen: HeldOut, *, held_out: str, n_batches: int = 0) -> Calibration:
        """Learn weights and yardsticks for every regime.

        Parameters
        ----------
        n_batches
            Batches of the reference, where whole ones were held out.
        """
        pools, confidence, sets, novelty, record = {}, {}, {}, {}, {}
        for regime in REGIMES if seen.scores else ():
            scores, judged = seen.scores[regime], NOVELTY_REGIMES[regime].name
            truth = seen.labels[regime]
            pool = pools[regime] = Pool.fit(scores, truth, prior=PRIORS[regime])
            pooled = pool.combine(scores)
            predicted = pooled.argmax(axis=1)
            correct = predicted == truth
            lapse = LAPSE if held_out == "cells" else 0.0
            curve = confidence[regime] = Confidence.fit(pooled, truth, seen.folds[regime], lapse=lapse)
            proba = curve.apply(pooled)
            sets[regime] = LabelSets.fit(proba, truth)
            far = pooled if judged == regime else pool.combine(seen.scores[judged])
            found = signals(seen.distances[judged], seen.scores[judged][LINEAR], far)
            novelty[regime] = Novelty.fit(
                found,
                seen.depths[judged],
                far.argmax(axis=1),
                proba.shape[1],
                # Where a shift was simulated, that is what sets held-out cells apart.
                shrink=_nearer(n_batches, len(np.unique(seen.folds["same"]))) if regime == "same" else 1.0,
            )
            # The lapse is for other batches than these.
            sure = replace(curve, lapse=0.0).apply(pooled).max(axis=1)
            record[regime] = {
                "accuracy": float(correct.mean()),
                "macro_f1": macro_f1(truth.astype(str), predicted.astype(str)),
                "ece": expected_calibration_error(sure, correct),
                "reliability": reliability(sure, correct),
                "labels": _per_label(truth, predicted, proba.shape[1]),
                "voices": {
                    voice: {"accuracy": float((s.argmax(axis=1) == truth).mean()), "share": share}
                    for voice, s, share in zip(VOICES, scores, pool.shares, strict=True)
                },
            }
        n_cells = len(seen.labels["same"])
        return cls(pools, confidence, sets, novelty, record, held_out, n_cells)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "held_out": self.held_out,
            "n_cells": self.n_cells,
            "regimes": {
                regime: {
                    "weights": list(pool.weights),
                    "temperatures": list(pool.temperatures),
                    "shares": list(pool.shares),
                    "confidence": self.confidence[regime].to_dict(),
                    "sets": self.sets[regime].to_dict(),
                    "novelty": self.novelty[regime].to_dict(),
                    "record": self.record[regime],
                }
                for regime, pool in self.pools.items()
            },
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Calibration:
        """Rebuild from :meth:`to_dict`."""
        regimes = data["regimes"]
        return cls(
            {
                k: Pool(tuple(v["weights"]), tuple(v["temperatures"]), tuple(v["shares"]))
                for k, v in regimes.items()
            },
            {k: Confidence.from_dict(v["confidence"]) for k, v in regimes.items()},
            {k: LabelSets.from_dict(v["sets"]) for k, v in regimes.items()},
            {k: Novelty.from_dict(v["novelty"]) for k, v in regimes.items()},
            {k: v["record"] for k, v in regimes.items()},
            data["held_out"],
            int(data["n_cells"]),
        )


def _nearer(n_batches: int, n_folds: int) -> float:
    """Return how far a new batch is from all batches, against how far a held-out one was from the rest.

    With batches that vary alike about what they have in common, the squared distance of a new one from
    the mean of n has an expectation in proportion to 1 + 1 / n; held-out ones see fewer.
    """
    if n_batches < 2 or n_folds < 2:
        return 1.0
    seen = n_batches * (n_folds - 1) / n_folds
    return (1.0 + 1.0 / n_batches) / (1.0 + 1.0 / seen)


def _per_label(
    truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], n_classes: int
) -> list[dict[str, Any]]:
    """Return, per class, the held-out cells, the share that got its label, and what most others got."""
    table = np.zeros((n_classes, n_classes), dtype=np.int64)
    np.add.at(table, (truth, predicted), 1)
    n, right = table.sum(axis=1), np.diag(table).copy()
    np.fill_diagonal(table, 0)
    return [
        {
            "n": int(n[k]),
            "recall": float(right[k] / n[k]) if n[k] else None,
            "taken_for": int(table[k].argmax()) if table[k].any() else None,
        }
        for k in range(n_classes)
    ]
