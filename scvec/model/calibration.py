"""What held-out cells teach about a reference: temperatures, confidence, label sets, novelty."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.model.ensemble import MEMBERS, UNIFORM_MIXING, Ensemble
from scvec.model.heldout import HeldOut
from scvec.model.label_sets import LabelSets
from scvec.model.metrics import expected_calibration_error, macro_f1, reliability
from scvec.model.novelty import Novelty, signals

__all__ = ["Calibration"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What held-out cells taught.

    Attributes
    ----------
    ensemble, sets, novelty
        The first gives probabilities, the others what to make of them. No novelty where no cell could be
        held out.
    record
        Accuracy, macro-F1, calibration error and what became of the cells of each class.
    held_out
        ``batch`` if whole batches were held out, ``cells`` if cells of the same batches, ``none`` if no cell
        could be held out.
    n_cells
        Number of held-out cells.
    """

    ensemble: Ensemble
    sets: LabelSets
    novelty: Novelty | None
    record: dict[str, Any]
    held_out: str
    n_cells: int

    @classmethod
    def fit(cls, seen: HeldOut, *, held_out: str, n_batches: int = 0) -> Calibration:
        """Learn from held-out cells.

        Parameters
        ----------
        n_batches
            Batches of the reference, where whole ones were held out.
        """
        truth = seen.labels
        n_classes = seen.scores[0].shape[1]
        ensemble = Ensemble.fit(seen.scores, truth, mixing=UNIFORM_MIXING if held_out == "cells" else 0.0)
        proba = ensemble.combine(seen.scores)
        predicted = proba.argmax(axis=1)
        correct = predicted == truth
        novelty = Novelty.fit(
            signals(seen.distances, predicted),
            seen.depths,
            predicted,
            n_classes,
            shrink=_nearer(n_batches, len(np.unique(seen.folds))),
        )
        # The mixing is for other batches than these.
        sure = replace(ensemble, mixing=0.0).combine(seen.scores).max(axis=1)
        record = {
            "accuracy": float(correct.mean()),
            "macro_f1": macro_f1(truth.astype(str), predicted.astype(str)),
            "ece": expected_calibration_error(sure, correct),
            "reliability": reliability(sure, correct),
            "labels": _per_label(truth, predicted, n_classes),
            "members": {
                name: float((s.argmax(axis=1) == truth).mean())
                for name, s in zip(MEMBERS, seen.scores, strict=True)
            },
        }
        sets = LabelSets.fit(proba, truth)
        return cls(ensemble, sets, novelty, record, held_out, len(truth))

    @classmethod
    def unknown(cls, n_classes: int) -> Calibration:
        """Return what stands in where no cell can be held out, since no class has two."""
        labels = [{"n": 0, "recall": None, "taken_for": None}] * n_classes
        record: dict[str, Any] = {
            "accuracy": None,
            "macro_f1": None,
            "ece": None,
            "labels": labels,
            "members": {},
        }
        sets = LabelSets.fit(np.zeros((0, n_classes), np.float32), np.zeros(0, np.int64))
        return cls(Ensemble(mixing=UNIFORM_MIXING), sets, None, record, "none", 0)

    def without_neighbors(self) -> Calibration:
        """Return the same for a reference that holds no cells: the head answers alone."""
        return replace(self, ensemble=replace(self.ensemble, has_neighbors=False))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "held_out": self.held_out,
            "n_cells": self.n_cells,
            "temperatures": list(self.ensemble.temperatures),
            "sharpness": self.ensemble.sharpness,
            "mixing": self.ensemble.mixing,
            "sets": self.sets.to_dict(),
            "novelty": None if self.novelty is None else self.novelty.to_dict(),
            "record": self.record,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Calibration:
        """Rebuild from :meth:`to_dict`."""
        return cls(
            Ensemble(tuple(data["temperatures"]), float(data["sharpness"]), float(data["mixing"])),
            LabelSets.from_dict(data["sets"]),
            None if data["novelty"] is None else Novelty.from_dict(data["novelty"]),
            data["record"],
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
    """Return, for each class, held-out cells, the fraction that got its label, and what most others got."""
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
