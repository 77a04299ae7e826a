"""Weights, novelty and the held-out record of a reference, per regime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scvec.annotate.crossfit import HeldOut
from scvec.annotate.metrics import expected_calibration_error, macro_f1
from scvec.annotate.novelty import Novelty, signals
from scvec.annotate.pool import PRIORS, VOICES, Pool

__all__ = ["Calibration"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was learned from held-out reference cells.

    Attributes
    ----------
    pools, novelty
        Per regime.
    record
        Per regime, how well the voices did: accuracy of each, and of the pool accuracy, macro-F1, ECE.
    held_out
        ``"batch"``, ``"cells"`` or ``"none"``.
    n_cells
        Number of held-out cells.
    """

    pools: dict[str, Pool]
    novelty: dict[str, Novelty]
    record: dict[str, dict[str, Any]]
    held_out: str
    n_cells: int

    @classmethod
    def fit(cls, seen: HeldOut, *, held_out: str) -> Calibration:
        """Learn weights and yardsticks for every regime."""
        pools, novelty, record = {}, {}, {}
        for regime, scores in seen.scores.items():
            truth = seen.labels[regime]
            pool = Pool.fit(scores, truth, prior=PRIORS[regime])
            proba = pool.combine(scores)
            predicted = proba.argmax(axis=1)
            correct = predicted == truth
            pools[regime] = pool
            cosines = scores[VOICES.index("prototype")]
            found = signals(seen.neighbors[regime], cosines, proba)
            novelty[regime] = Novelty.fit(found, predicted, proba.shape[1])
            record[regime] = {
                "accuracy": float(correct.mean()),
                "macro_f1": macro_f1(truth.astype(str), predicted.astype(str)),
                "ece": expected_calibration_error(proba.max(axis=1), correct),
                "voices": {
                    voice: {"accuracy": float((s.argmax(axis=1) == truth).mean()), "share": share}
                    for voice, s, share in zip(VOICES, scores, pool.shares, strict=True)
                },
            }
        return cls(pools, novelty, record, held_out, len(seen.labels["same"]))

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
            {k: Novelty.from_dict(v["novelty"]) for k, v in regimes.items()},
            {k: v["record"] for k, v in regimes.items()},
            data["held_out"],
            int(data["n_cells"]),
        )
