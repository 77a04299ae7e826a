"""Calibration on held-out cells, the status of cells, and metrics of accuracy, calibration and novelty."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from scvec.base.arrays import Texts, blocks, coded, release
from scvec.base.types import Bool, Float32, Float64
from scvec.model.classifiers import MEMBERS, log_softmax
from scvec.model.novelty import Novelty, signals
from scvec.model.training import HeldOut

__all__ = [
    "COVERAGE",
    "STATUSES",
    "UNIFORM_MIXING",
    "Calibration",
    "Ensemble",
    "LabelSets",
    "accuracy",
    "brier_score",
    "calibration_record",
    "expected_calibration_error",
    "fpr_at_tpr",
    "low_quality_floor",
    "macro_f1",
    "novelty_auroc",
    "on_lineage",
    "ontology_similarity",
    "reliability",
    "risk_coverage",
    "set_coverage",
    "set_names",
    "status_codes",
    "statuses",
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


#: Temperatures of the members of a reference without held-out cells: the medians over the references of the
#: development pairs (docs/benchmarks.md).
DEFAULTS = (10.0, 1.0)
#: Assumed fraction of wrong labels that held-out cells of the same batches cannot reveal. Examples: another
#: study defines types differently, or another chemistry shifts one type onto another. Across data sets the
#: F1 of the best classifiers is 0.02 to 0.1 lower than within one (Abdelaal et al. 2019,
#: doi:10.1186/s13059-019-1795-z).
UNIFORM_MIXING = 0.05


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Ensemble of the members: the mean of their log probabilities, with equal weights.

    The scores of each member are first multiplied by its temperature, and the mean by a common factor (Guo et
    al. 2017, arXiv:1706.04599). Equal weights cannot be overfitted to a data set.

    Attributes
    ----------
    temperatures
        Factor on the scores of each member, in the order of :data:`MEMBERS`.
    sharpness
        Factor on the mean.
    mixing
        Fraction (0-1) of uniform mixing: the weight of equal probabilities for all classes in the result. It
        is positive if only cells of the same batches were held out, since such cells cannot show how well the
        labels hold in other batches.
    has_neighbors
        False for a reference without cells, which uses the head alone.

    Raises
    ------
    ValueError
        If a temperature is missing or not positive.
    """

    temperatures: tuple[float, ...] = DEFAULTS
    sharpness: float = 1.0
    mixing: float = 0.0
    has_neighbors: bool = True

    def __post_init__(self) -> None:
        positive = all(factor > 0 for factor in (*self.temperatures, self.sharpness))
        if len(self.temperatures) != len(MEMBERS) or not positive:
            raise ValueError("one positive temperature for each member, and a positive sharpness")

    @classmethod
    def fit(cls, scores: list[Float32], labels: npt.NDArray[np.int64], *, mixing: float = 0.0) -> Ensemble:
        """Fit temperatures and sharpness on held-out cells.

        Parameters
        ----------
        scores
            For each member, (n, n_classes) float32 scores of held-out cells.
        labels
            (n,) int64 true classes.
        """
        from scipy.optimize import minimize

        rows = np.arange(len(labels))

        def factor(z: Float64, sample: Float64, reach: float) -> float:
            """Return the factor on ``z`` with the lowest log loss, between exp(-reach) and exp(reach)."""

            def loss(t: Float64) -> float:
                return float(-(log_softmax(np.exp(t[0]) * z)[rows, labels] * sample).sum())

            return float(np.exp(minimize(loss, [0.0], bounds=[(-reach, reach)]).x[0]))

        counts = np.bincount(labels, minlength=scores[0].shape[1])
        rare = 1.0 / np.sqrt(counts[labels])
        temperatures = tuple(factor(s.astype(np.float64), rare / rare.sum(), 6.0) for s in scores)
        # Temperatures give rare classes more weight, but confidence must hold for natural frequencies.
        mean = cls(temperatures).logits(scores)
        return cls(temperatures, factor(mean, np.full(len(labels), 1.0 / len(labels)), 3.0), mixing)

    @property
    def weights(self) -> tuple[float, ...]:
        """Factor on the scores of each member in :meth:`logits`."""
        return tuple(self.sharpness * t / len(MEMBERS) for t in self.temperatures)

    def logits(self, scores: list[Float32]) -> Float64:
        """Return (n, n_classes) float64 logits. Their softmax gives the probabilities."""
        z = sum(w * s.astype(np.float64) for w, s in zip(self.weights, scores, strict=True))
        return np.asarray(z, dtype=np.float64)

    def combine(self, scores: list[Float32]) -> Float32:
        """Return (n, n_classes) float32 calibrated probabilities of the ensemble."""
        head = MEMBERS.index("head")
        found = (
            np.exp(log_softmax(self.logits(scores)))
            if self.has_neighbors
            else self.alone("head", scores[head])
        )
        if self.mixing:
            found = (1.0 - self.mixing) * found + self.mixing / found.shape[1]
        return np.asarray(found, dtype=np.float32)

    def alone(self, member: str, scores: Float32) -> Float32:
        """Return (n, n_classes) float32 calibrated probabilities of one member."""
        factor = self.temperatures[MEMBERS.index(member)]
        return np.asarray(np.exp(log_softmax(factor * scores)), dtype=np.float32)


#: Held-out cells that a class needs for its own threshold. With n cells the coverage of a class exceeds the
#: requested one by up to 1 / (n + 1), with a standard deviation of about 0.3 / sqrt(n).
MIN_CELLS = 20
#: Number of quantiles kept per class. They keep coverage exact to half a percent for any number of cells.
N_KEPT = 199


@dataclass(frozen=True, slots=True)
class LabelSets:
    """Split conformal prediction with one threshold per class (Mondrian).

    The score of a cell is one minus the probability of its true class, which gives the smallest sets on
    average (Sadinle, Lei and Wasserman 2019, doi:10.1080/01621459.2017.1395341). The threshold of a class is
    the ``ceil((n + 1) coverage)``-th smallest score of its n held-out cells. The set of a new cell contains
    each class whose score is at most the threshold (Vovk, Gammerman and Shafer 2005, *Algorithmic Learning in
    a Random World*, chapter 4). If new cells are exchangeable with the held-out cells, each class has the
    requested coverage. Classes with few held-out cells use one threshold from all cells.

    A set may be empty: the cell then fits every class worse than the requested fraction of held-out cells.

    Attributes
    ----------
    scores
        Ascending scores of the held-out cells of each class, or ``N_KEPT`` quantiles of them.
    counts
        Number of held-out cells of each class.
    overall
        Ascending scores of all held-out cells, or quantiles of them.
    """

    scores: tuple[tuple[float, ...], ...]
    counts: tuple[int, ...]
    overall: tuple[float, ...]

    @classmethod
    def fit(cls, proba: Float32, labels: npt.NDArray[np.int64]) -> LabelSets:
        """Fit on probabilities (n, n_classes) float32 of held-out cells and their true classes (n,) int64."""
        score = 1.0 - proba[np.arange(len(labels)), labels].astype(np.float64)
        of_class = [score[labels == k] for k in range(proba.shape[1])]
        return cls(tuple(_kept(s) for s in of_class), tuple(len(s) for s in of_class), _kept(score))

    def thresholds(self, coverage: float) -> Float64:
        """Return the threshold of each class, (n_classes,) float64; inf with too few held-out cells.

        Raises
        ------
        ValueError
            If ``coverage`` is not between 0 and 1.
        """
        if not 0.0 < coverage < 1.0:
            raise ValueError(f"coverage must lie between 0 and 1, not {coverage}")
        shared = _threshold(self.overall, coverage)
        enough = max(MIN_CELLS, int(np.ceil(coverage / (1.0 - coverage))))
        return np.array(
            [
                _threshold(scores, coverage) if count >= enough else shared
                for scores, count in zip(self.scores, self.counts, strict=True)
            ]
        )

    def sets(self, proba: Float32, coverage: float) -> Bool:
        """Return the label sets as (n, n_classes) bool.

        Parameters
        ----------
        proba
            (n, n_classes) float32 calibrated probabilities.
        coverage
            Requested fraction (0-1) of sets with the true label.
        """
        # The margin absorbs rounding, so that a cell does not exceed a threshold that equals its own score.
        return np.asarray(1.0 - proba.astype(np.float64) <= self.thresholds(coverage) + 1e-7)

    def sizes(self, proba: Float32, coverage: float) -> npt.NDArray[np.int64]:
        """Return (n,) int64 sizes of the label sets. Labels with too few held-out cells do not count."""
        known = np.isfinite(self.thresholds(coverage))
        return np.asarray((self.sets(proba, coverage) & known).sum(axis=1), dtype=np.int64)

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
    """Return the scores in ascending order, downsampled to ``N_KEPT`` evenly spaced ranks if longer."""
    ordered = np.sort(scores)
    if len(ordered) > N_KEPT:
        ranks = np.ceil(np.arange(1, N_KEPT + 1) * (len(ordered) + 1) / (N_KEPT + 1)).astype(int)
        ordered = ordered[np.minimum(ranks, len(ordered)) - 1]
    # Seven digits hold float32 probabilities; more digits would only make the file larger.
    return tuple(float(f"{v:.7g}") for v in ordered)


def _threshold(kept: tuple[float, ...], coverage: float) -> float:
    """Return the ``ceil((n + 1) coverage)``-th smallest of n ascending scores; inf if n is too small."""
    rank = int(np.ceil((len(kept) + 1) * coverage - 1e-9))
    return float(kept[rank - 1]) if 0 < rank <= len(kept) else float("inf")


def set_names(
    proba: Float32,
    sets: npt.NDArray[np.bool_],
    classes: Sequence[str],
    join: Callable[[list[str]], str] = "|".join,
) -> Texts:
    """Return the label set of each cell as text, most probable first, as in ``alpha|beta``; may be empty.

    Parameters
    ----------
    proba
        (n, n_classes) float32.
    sets
        (n, n_classes) bool label sets.
    join
        Makes one text of several labels.
    """
    number = {join([]): 0}
    codes = np.zeros(len(proba), dtype=np.int32)
    for rows in blocks(len(proba)):
        order = np.argsort(-proba[rows], axis=1, kind="stable")
        here = sets[rows]
        for row in np.flatnonzero(here.any(axis=1)):
            name = join([classes[k] for k in order[row] if here[row, k]])
            codes[rows.start + row] = number.setdefault(name, len(number))
        release(proba)
        release(sets)
    return coded(codes, list(number))


@dataclass(frozen=True, slots=True)
class Calibration:
    """Calibration of a reference, fitted on held-out cells.

    Attributes
    ----------
    ensemble, sets, novelty
        Fitted ensemble, label sets and novelty. ``novelty`` is None if no cell could be held out.
    record
        Accuracy, macro-F1, calibration error, reliability, and recall per class.
    held_out
        ``batch`` if whole batches were held out, ``cells`` if single cells were, ``none`` if no cell could be
        held out.
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
        """Fit on held-out cells.

        Parameters
        ----------
        n_batches
            Number of batches of the reference, if whole batches were held out.
        """
        truth = seen.labels
        n_classes = seen.scores[0].shape[1]
        ensemble = Ensemble.fit(seen.scores, truth, mixing=UNIFORM_MIXING if held_out == "cells" else 0.0)
        proba = ensemble.combine(seen.scores)
        predicted = proba.argmax(axis=1)
        novelty = Novelty.fit(
            signals(seen.distances, predicted),
            seen.depths,
            predicted,
            n_classes,
            shrink=_new_to_held_out(n_batches, len(np.unique(seen.folds))),
        )
        # Uniform mixing applies to other batches. The held-out cells come from the same batches.
        sure = replace(ensemble, mixing=0.0).combine(seen.scores)
        record = calibration_record(sure, truth, dict(zip(MEMBERS, seen.scores, strict=True)), predicted)
        sets = LabelSets.fit(proba, truth)
        return cls(ensemble, sets, novelty, record, held_out, len(truth))

    @classmethod
    def unknown(cls, n_classes: int) -> Calibration:
        """Return the calibration of a reference without held-out cells, because no class has two cells."""
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
        """Return the calibration for the same reference without cells, which uses the head alone."""
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


def calibration_record(
    proba: Float32,
    truth: npt.NDArray[np.int64],
    members: Mapping[str, Float32],
    predicted: npt.NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """Return accuracy, macro-F1, calibration error, reliability and recalls of held-out cells.

    Parameters
    ----------
    members
        Name of a part of the answer -> its scores or probabilities (n, n_classes).
    predicted
        (n,) predicted classes, if they are not those of ``proba``.
    """
    predicted = proba.argmax(axis=1) if predicted is None else predicted
    sure, correct = proba.max(axis=1), predicted == truth
    return {
        "accuracy": float(correct.mean()),
        "macro_f1": macro_f1(truth.astype(str), predicted.astype(str)),
        "ece": expected_calibration_error(sure, correct),
        "reliability": reliability(sure, correct),
        "labels": _per_label(truth, predicted, proba.shape[1]),
        "members": {name: float((s.argmax(axis=1) == truth).mean()) for name, s in members.items()},
    }


def _new_to_held_out(n_batches: int, n_folds: int) -> float:
    """Return the ratio of expected squared distances: a new batch from all batches, to a held-out batch.

    If batches scatter around a common mean, the expected squared distance of a new batch from the mean of n
    batches is proportional to 1 + 1 / n. A held-out batch is compared with fewer batches than a new one.
    """
    if n_batches < 2 or n_folds < 2:
        return 1.0
    seen = n_batches * (n_folds - 1) / n_folds
    return (1.0 + 1.0 / n_batches) / (1.0 + 1.0 / seen)


def _per_label(
    truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], n_classes: int
) -> list[dict[str, Any]]:
    """Return the number of held-out cells, the recall and the most frequent wrong label of each class."""
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


STATUSES = ("confident", "ambiguous", "novel", "low_quality")
#: Cells with a lower confidence are ambiguous: other labels together are as probable as the predicted one.
MIN_CONFIDENCE = 0.5
#: Coverage of the label sets. A set with several labels makes a cell ambiguous.
COVERAGE = 0.9


def status_codes(
    *,
    confidence: npt.NDArray[np.float32],
    novelty: npt.NDArray[np.float32],
    n_labels: npt.NDArray[np.integer[Any]],
    low_quality: npt.NDArray[np.bool_],
) -> npt.NDArray[np.int8]:
    """Return (n,) indices into :data:`STATUSES`, the worst status that applies to each cell.

    Parameters
    ----------
    confidence, novelty
        (n,) values from 0 to 1.
    n_labels
        (n,) number of labels in the label set of each cell at :data:`COVERAGE`.
    low_quality
        (n,) bool, cells with too few detected genes.
    """
    status = np.full(len(confidence), STATUSES.index("ambiguous"), dtype=np.int8)
    status[(n_labels <= 1) & (confidence >= MIN_CONFIDENCE)] = STATUSES.index("confident")
    status[novelty > 0.5] = STATUSES.index("novel")
    status[low_quality] = STATUSES.index("low_quality")
    return status


def statuses(**measures: npt.NDArray[Any]) -> npt.NDArray[np.object_]:
    """Return (n,) status names as an object array; parameters as in :func:`status_codes`."""
    return np.array(STATUSES, dtype=object)[status_codes(**measures)]


def low_quality_floor(n_detected: npt.NDArray[np.int64]) -> float:
    """Return the threshold for low quality: half of the 1st percentile of detected genes per reference cell.

    A percentile instead of the minimum, so that one odd cell does not set the threshold.

    Parameters
    ----------
    n_detected
        (n,) int64 number of detected genes in each labelled reference cell.
    """
    return float(max(1.0, 0.5 * np.quantile(n_detected, 0.01)))
