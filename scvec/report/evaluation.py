"""What ``scvec eval`` reports."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scvec.base.results import Report

__all__ = ["EvaluationReport"]

#: Scores shown to people, and what they are.
SHOWN = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "ontology_accuracy": "accuracy, terms on one line of the Cell Ontology counted as right",
    "ontology_similarity": "Cell Ontology terms shared with the true type",
    "mean_confidence": "mean confidence",
    "ece": "expected calibration error",
    "brier": "Brier score of the confidence",
    "aurc": "area under the risk-coverage curve",
    "novelty_auroc": "AUROC of novelty, types that the reference lacks",
    "novelty_fpr_at_95_tpr": "known cells above the bar that 95% of those pass",
    "false_novel": "share of known types called novel",
    "true_novel": "share of lacking types called novel",
}


@dataclass(frozen=True, kw_only=True)
class EvaluationReport(Report):
    """Answers compared with true labels.

    Attributes
    ----------
    n_cells, n_scored, n_known
        Cells of the query; those with a true label; those of a type that the reference has. ``accuracy``,
        ``macro_f1``, ``ece``, ``brier`` and the sets are over the last, as no answer could be right
        elsewhere; the risk-coverage curve is over all that are scored.
    unknown_labels
        True labels that the reference lacks, with their cells.
    scores
        Numbers by name, None where they mean nothing: see ``SHOWN``; ``sets`` (coverage asked for and
        observed, mean size, share of empty sets); ``risk_coverage`` ([coverage, risk] points).
    reliability
        Share of cells, mean confidence and accuracy per bin of confidence.
    status
        Share and accuracy of the cells of each status.
    labels
        Per true label: cells, precision, recall, F1, mean novelty, share called novel.
    confusion
        ``labels``, and ``counts`` with true labels in rows.
    novelty
        Histogram of novelty of cells of known and of unknown types.
    parameters
        What made the answers.
    """

    reference: str
    truth_key: str
    n_cells: int
    n_scored: int
    n_known: int
    unknown_labels: dict[str, int]
    scores: dict[str, Any]
    reliability: list[dict[str, float]]
    status: dict[str, dict[str, Any]]
    labels: list[dict[str, Any]]
    confusion: dict[str, Any]
    novelty: dict[str, list[float]]
    parameters: dict[str, Any] = field(default_factory=dict)
    output: str = ""
    plot: str = ""

    def with_files(self, *, output: Path | None, plot: Path | None) -> EvaluationReport:
        """Return the same with the names of the files it is written to."""
        return replace(self, output=str(output or ""), plot=str(plot or ""))

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        lines = [
            f"{self.n_scored:,} of {self.n_cells:,} cells scored against obs['{self.truth_key}'], "
            f"{self.n_known:,} of them of types that reference '{self.reference}' has"
        ]
        if self.unknown_labels:
            told = ", ".join(f"{label} ({n:,})" for label, n in sorted(self.unknown_labels.items())[:12])
            lines.append(f"types that the reference lacks: {told}")
        shown = self.to_dict()["scores"]
        for name, meaning in SHOWN.items():
            if shown.get(name) is not None:
                lines.append(f"  {shown[name]:6.3f}  {meaning}")
        sets = shown.get("sets")
        if sets and sets["observed"] is not None:
            lines.append(
                f"  {sets['observed']:6.3f}  label sets with the true label, {sets['coverage']:g} asked for "
                f"(mean size {sets['mean_size']:.2f}, {sets['empty']:.0%} empty)"
            )
        width = max((len(row["label"]) for row in self.labels), default=0)
        lines.append(f"  {'label':<{width}}    cells  precision  recall     F1  novel")
        for row in self.labels:
            lines.append(
                f"  {row['label']:<{width}}  {row['n']:>7,}  {row['precision']:9.2f}  {row['recall']:6.2f}"
                f"  {row['f1']:5.2f}  {row['novel']:5.2f}"
            )
        lines += [f"written to {path}" for path in (self.output, self.plot) if path]
        return lines
