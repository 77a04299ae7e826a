"""Metrics of labels, confidence, label sets and novelty, for calibration, ``scvec eval`` and benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from scvec.base.types import Bool, Float64

__all__ = [
    "accuracy",
    "brier_score",
    "expected_calibration_error",
    "fpr_at_tpr",
    "macro_f1",
    "novelty_auroc",
    "on_lineage",
    "ontology_similarity",
    "reliability",
    "risk_coverage",
    "set_coverage",
]

Strings = npt.NDArray[np.str_]
Floats = npt.NDArray[np.floating]
Lineage = Mapping[str, Sequence[str]]
T = TypeVar("T")


def accuracy(truth: Strings, predicted: Strings) -> float:
    """Return the fraction (0-1) of cells with the correct label."""
    return float(np.mean(truth == predicted)) if len(truth) else float("nan")


def macro_f1(truth: Strings, predicted: Strings) -> float:
    """Return the unweighted mean F1 over the classes in ``truth``."""
    from sklearn.metrics import f1_score

    if len(truth) == 0:
        return float("nan")
    return float(f1_score(truth, predicted, average="macro", labels=np.unique(truth), zero_division=0))


def on_lineage(truth: Sequence[str], predicted: Sequence[str], lineage: Lineage) -> Bool:
    """Return (n,) bool: whether a term is the true term, one of its ancestors, or one of its descendants.

    A label with another level of detail ("T cell" for a "CD4-positive, alpha-beta T cell") is not an error. A
    sibling is an error.

    Parameters
    ----------
    truth, predicted
        n Cell Ontology ids; empty for a label without an id, which never matches.
    lineage
        Term -> the term and its ancestors.
    """

    def related(t: str, p: str) -> bool:
        return bool(t) and bool(p) and (t == p or p in lineage.get(t, ()) or t in lineage.get(p, ()))

    return np.array(_pairwise(related, truth, predicted), dtype=bool)


def ontology_similarity(truth: Sequence[str], predicted: Sequence[str], lineage: Lineage) -> Float64:
    """Return (n,) Jaccard indices (0-1) of the Cell Ontology terms of true and predicted type.

    The terms of a type are its own term and all ancestors. The index is 1 for the correct type, near 1 for a
    sibling, and near 0 for a type of another lineage. Parameters as in :func:`on_lineage`.
    """

    def shared(t: str, p: str) -> float:
        above_t, above_p = {t, *lineage.get(t, ())}, {p, *lineage.get(p, ())}
        return len(above_t & above_p) / len(above_t | above_p) if t and p else 0.0

    return np.array(_pairwise(shared, truth, predicted), dtype=np.float64)


def _pairwise(compare: Callable[[str, str], T], truth: Sequence[str], predicted: Sequence[str]) -> list[T]:
    # Each pair of types is compared once, because many cells share a pair.
    pairs = list(zip(truth, predicted, strict=True))
    known = {pair: compare(*pair) for pair in set(pairs)}
    return [known[pair] for pair in pairs]


def reliability(confidence: Floats, correct: Bool, n_bins: int = 15) -> list[dict[str, float]]:
    """Return the fraction (``share``), mean confidence and accuracy of each equal-width bin with cells."""
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    return [
        {
            "share": float((bins == b).mean()),
            "confidence": float(confidence[bins == b].mean()),
            "accuracy": float(correct[bins == b].mean()),
        }
        for b in np.unique(bins)
    ]


def expected_calibration_error(confidence: Floats, correct: Bool, n_bins: int = 15) -> float:
    """Return the mean absolute difference between confidence and accuracy over equal-width bins.

    Source: Naeini et al. 2015; Guo et al. 2017 (arXiv:1706.04599), equation 3.
    """
    found = reliability(confidence, correct, n_bins)
    return float(sum(b["share"] * abs(b["confidence"] - b["accuracy"]) for b in found))


def brier_score(confidence: Floats, correct: Bool) -> float:
    """Return the Brier score (0-1) for the event that the label is correct.

    Source: Brier 1950 (Monthly Weather Review 78).
    """
    from sklearn.metrics import brier_score_loss

    if len(correct) == 0:
        return float("nan")
    return float(brier_score_loss(correct, np.clip(confidence, 0.0, 1.0), labels=[False, True]))


def novelty_auroc(novelty: Floats, is_new: Bool) -> float:
    """Return the AUROC of novelty for cells of new against known types; nan if one kind has no cells."""
    from sklearn.metrics import roc_auc_score

    if is_new.all() or not is_new.any():
        return float("nan")
    return float(roc_auc_score(is_new, novelty))


def fpr_at_tpr(novelty: Floats, is_new: Bool, tpr: float = 0.95) -> float:
    """Return the false positive rate of novelty at the threshold with the true positive rate ``tpr``."""
    from sklearn.metrics import roc_curve

    if is_new.all() or not is_new.any():
        return float("nan")
    false, true, _ = roc_curve(is_new, novelty, drop_intermediate=False)
    return float(false[np.searchsorted(true, tpr)])


def risk_coverage(confidence: Floats, correct: Bool) -> Float64:
    """Return (n,) fractions of wrong labels among the i + 1 most confident cells; ties share their mean.

    Source: El-Yaniv and Wiener 2010 (JMLR 11). The mean of the curve is the area under it (Geifman, Uziel and
    El-Yaniv 2019, arXiv:1805.08206).
    """
    order = np.argsort(-confidence, kind="stable")
    _, group = np.unique(-confidence[order], return_inverse=True)
    wrong = ~correct[order]
    mean = np.bincount(group, wrong) / np.maximum(np.bincount(group), 1)
    return np.asarray(np.cumsum(mean[group]) / np.arange(1, len(wrong) + 1), dtype=np.float64)


def set_coverage(sets: Bool, truth: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return the coverage of label sets (n, n_classes) for the true classes (n,), and sizes of the sets."""
    if len(truth) == 0:
        return {"observed": float("nan"), "mean_size": float("nan"), "empty": float("nan")}
    size = sets.sum(axis=1)
    hit = sets[np.arange(len(truth)), truth] & (truth >= 0)
    return {
        "observed": float(hit.mean()),
        "mean_size": float(size.mean()),
        "empty": float((size == 0).mean()),
    }
