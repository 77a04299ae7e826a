"""How good the answers of a method are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from pairs import PROJECT

from scvec.model.calibration import expected_calibration_error

__all__ = ["auroc", "false_positive_rate", "relatedness", "risk_coverage", "score"]

ANCESTORS = PROJECT / "scvec" / "data" / "snapshot" / "cl_ancestors.parquet"


def score(
    truth: np.ndarray,
    said: np.ndarray,
    confidence: np.ndarray,
    novelty: np.ndarray,
    *,
    status: np.ndarray | None = None,
    known: set[str],
    terms: Mapping[str, str],
    is_probability: bool,
) -> dict[str, Any]:
    """Return all scores of one run.

    ``accuracy``, ``macro_f1``, ``ece`` and ``brier`` are over the cells whose type the reference has: no
    method could name the others. ``aurc`` and ``ontology`` are over all cells; a novel cell's label is wrong.
    Of a status: ``known_novel``, the share of cells of known types that are called novel;
    ``right_confident``, the share of rightly labelled cells that are called confident;
    ``confident_accuracy``, the share of right labels among all that are called confident (left out where none
    is).

    Parameters
    ----------
    truth, said
        (n,) labels under the names that are scored.
    confidence
        (n,) the larger, the surer; NaN where the method has none.
    novelty
        (n,) the larger, the newer; where all NaN, minus the confidence stands for it.
    status
        (n,) words, of which ``confident`` and ``novel`` count; None where the method gives none.
    known
        Labels of the reference.
    terms
        Label -> Cell Ontology id.
    is_probability
        Whether the confidence is meant as the probability that the label is right.
    """
    from sklearn.metrics import f1_score

    is_known = np.isin(truth, sorted(known))
    right = truth == said
    shared = sorted(set(truth[is_known]))
    found: dict[str, Any] = {
        "n": len(truth),
        "n_novel": int((~is_known).sum()),
        "accuracy": float(right[is_known].mean()),
        "macro_f1": float(
            f1_score(truth[is_known], said[is_known], labels=shared, average="macro", zero_division=0)
        ),
        "ontology": relatedness(truth, said, terms),
    }
    has_confidence = bool(np.isfinite(confidence).all())
    if has_confidence:
        curve = risk_coverage(confidence, right)
        found["aurc"] = float(curve.mean())
        steps = np.unique(np.linspace(0, len(curve) - 1, 21).astype(int))
        found["risk"] = [[round((i + 1) / len(curve), 4), round(float(curve[i]), 4)] for i in steps]
    if has_confidence and is_probability:
        p = np.clip(confidence[is_known], 0.0, 1.0)
        found["ece"] = float(expected_calibration_error(p, right[is_known]))
        found["brier"] = float(np.mean((p - right[is_known]) ** 2))
    newness = novelty if np.isfinite(novelty).all() else -confidence
    if found["n_novel"] and is_known.any() and np.isfinite(newness).all():
        found["novelty_auroc"] = auroc(newness[~is_known], newness[is_known])
        found["fpr95"] = false_positive_rate(newness[~is_known], newness[is_known])
    if status is not None:
        confident = status == "confident"
        found["known_novel"] = float((status[is_known] == "novel").mean())
        found["right_confident"] = float(confident[right].mean()) if right.any() else 0.0
        if confident.any():
            found["confident_accuracy"] = float(right[confident].mean())
    return found


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return (n,) share of wrong labels among the i+1 surest cells; ties share their mean.

    El-Yaniv and Wiener 2010 (JMLR 11); its mean is the area under the curve (Geifman et al. 2019,
    arXiv:1805.08206).
    """
    order = np.argsort(-confidence, kind="stable")
    _, group = np.unique(-confidence[order], return_inverse=True)
    wrong = ~right[order]
    mean = np.bincount(group, wrong) / np.bincount(group)
    return np.asarray(np.cumsum(mean[group]) / np.arange(1, len(wrong) + 1))


def auroc(novel: np.ndarray, known: np.ndarray) -> float:
    """Return the chance that a novel cell's score is above a known cell's; ties count half."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([novel, known]))[: len(novel)]
    return float((ranks.sum() - len(novel) * (len(novel) + 1) / 2) / (len(novel) * len(known)))


def false_positive_rate(novel: np.ndarray, known: np.ndarray, *, sensitivity: float = 0.95) -> float:
    """Return the share of known cells flagged at the threshold that flags that share of the novel ones."""
    threshold = np.sort(novel)[::-1][int(np.ceil(sensitivity * len(novel))) - 1]
    return float((known >= threshold).mean())


@cache
def _ancestors() -> dict[str, frozenset[str]]:
    table = pd.read_parquet(ANCESTORS, columns=["cl_id", "ancestor_id"])
    return {t: frozenset({t, *above}) for t, above in table.groupby("cl_id")["ancestor_id"]}


def relatedness(truth: np.ndarray, said: np.ndarray, terms: Mapping[str, str]) -> float | None:
    """Return the mean share of Cell Ontology terms that the label given and the true one have in common.

    The terms of a label are its own and all above it: 1 for the right label, near 1 for a sibling, near 0 for
    a type of another lineage. None where a label has no term.
    """
    labels = {*truth.tolist(), *said.tolist()}
    if any(label not in terms for label in labels):
        return None
    above = {label: _ancestors().get(terms[label], frozenset({terms[label]})) for label in labels}
    table = {(t, s): len(above[t] & above[s]) / len(above[t] | above[s]) for t in labels for s in labels}
    return float(np.mean([table[t, s] for t, s in zip(truth.tolist(), said.tolist(), strict=True)]))
