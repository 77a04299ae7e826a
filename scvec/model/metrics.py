"""Metrics of labels, confidences, label sets and novelty, for calibration, ``scvec eval`` and benchmarks."""

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
    """Return the fraction (0-1) of cells whose label is right."""
    return float(np.mean(truth == predicted)) if len(truth) else float("nan")


def macro_f1(truth: Strings, predicted: Strings) -> float:
    """Return the mean F1 over the classes of the truth, with equal weights."""
    from sklearn.metrics import f1_score

    if len(truth) == 0:
        return float("nan")
    return float(f1_score(truth, predicted, average="macro", labels=np.unique(truth), zero_division=0))


def on_lineage(truth: Sequence[str], predicted: Sequence[str], lineage: Lineage) -> Bool:
    """Return (n,) whether a term is the true one, one of its ancestors, or one of its descendants.

    Labels of different grain ("T cell" for a "CD4-positive, alpha-beta T cell") are not errors; a sibling is.

    Parameters
    ----------
    truth, predicted
        n Cell Ontology ids; empty where a label has none, which is on no lineage.
    lineage
        Term -> the term and its ancestors.
    """

    def related(t: str, p: str) -> bool:
        return bool(t) and bool(p) and (t == p or p in lineage.get(t, ()) or t in lineage.get(p, ()))

    return np.array(_pairwise(related, truth, predicted), dtype=bool)


def ontology_similarity(truth: Sequence[str], predicted: Sequence[str], lineage: Lineage) -> Float64:
    """Return (n,) the fraction (0-1) of Cell Ontology terms that two types have in common.

    The terms of a type are its own and all above it (Jaccard index): 1 for the right type, near 1 for a
    sibling, near 0 for a type of another lineage. Parameters as for :func:`on_lineage`.
    """

    def shared(t: str, p: str) -> float:
        above_t, above_p = {t, *lineage.get(t, ())}, {p, *lineage.get(p, ())}
        return len(above_t & above_p) / len(above_t | above_p) if t and p else 0.0

    return np.array(_pairwise(shared, truth, predicted), dtype=np.float64)


def _pairwise(compare: Callable[[str, str], T], truth: Sequence[str], predicted: Sequence[str]) -> list[T]:
    # Many cells, few pairs of types.
    pairs = list(zip(truth, predicted, strict=True))
    known = {pair: compare(*pair) for pair in set(pairs)}
    return [known[pair] for pair in pairs]


def reliability(confidence: Floats, correct: Bool, n_bins: int = 15) -> list[dict[str, float]]:
    """Return, per equal-width bin with cells, their fraction (``share``), mean confidence and accuracy."""
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
    """Return the mean gap between confidence and accuracy over equal-width bins.

    Naeini et al. 2015; Guo et al. 2017 (arXiv:1706.04599), equation 3.
    """
    found = reliability(confidence, correct, n_bins)
    return float(sum(b["share"] * abs(b["confidence"] - b["accuracy"]) for b in found))


def brier_score(confidence: Floats, correct: Bool) -> float:
    """Return the mean squared gap (0-1) between the confidence in a label and whether it is right.

    Brier 1950 (Monthly Weather Review 78), for the event that the label is right.
    """
    from sklearn.metrics import brier_score_loss

    if len(correct) == 0:
        return float("nan")
    return float(brier_score_loss(correct, np.clip(confidence, 0.0, 1.0), labels=[False, True]))


def novelty_auroc(novelty: Floats, is_new: Bool) -> float:
    """Return how often (0-1) a new cell has a higher novelty than a known one; nan without both kinds."""
    from sklearn.metrics import roc_auc_score

    if is_new.all() or not is_new.any():
        return float("nan")
    return float(roc_auc_score(is_new, novelty))


def fpr_at_tpr(novelty: Floats, is_new: Bool, tpr: float = 0.95) -> float:
    """Return the fraction of known cells above the threshold that new cells exceed at the rate ``tpr``."""
    from sklearn.metrics import roc_curve

    if is_new.all() or not is_new.any():
        return float("nan")
    false, true, _ = roc_curve(is_new, novelty, drop_intermediate=False)
    return float(false[np.searchsorted(true, tpr)])


def risk_coverage(confidence: Floats, correct: Bool) -> Float64:
    """Return (n,) the fraction of wrong labels among the i + 1 surest cells; ties share their mean.

    El-Yaniv and Wiener 2010 (JMLR 11); the mean of the curve is the area under it (Geifman, Uziel and
    El-Yaniv 2019, arXiv:1805.08206).
    """
    order = np.argsort(-confidence, kind="stable")
    _, group = np.unique(-confidence[order], return_inverse=True)
    wrong = ~correct[order]
    mean = np.bincount(group, wrong) / np.maximum(np.bincount(group), 1)
    return np.asarray(np.cumsum(mean[group]) / np.arange(1, len(wrong) + 1), dtype=np.float64)


def set_coverage(sets: Bool, truth: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return how often the true class (n,) is in the set (n, n_classes), and how large the sets are."""
    if len(truth) == 0:
        return {"observed": float("nan"), "mean_size": float("nan"), "empty": float("nan")}
    size = sets.sum(axis=1)
    hit = sets[np.arange(len(truth)), truth] & (truth >= 0)
    return {
        "observed": float(hit.mean()),
        "mean_size": float(size.mean()),
        "empty": float((size == 0).mean()),
    }
