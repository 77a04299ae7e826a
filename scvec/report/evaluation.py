"""What ``scvec eval`` reports."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from scvec.base.errors import InputError
from scvec.base.results import Report

__all__ = ["EvaluationReport", "draw", "need_matplotlib"]

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
    n_own
        Cells of the query that are cells of the reference, too: no scores of new cells.
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
    n_own: int = 0
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


def need_matplotlib(
    where: str = "--plot",
    fix: str = "pip install matplotlib, or leave --plot out: the JSON file holds every number of the figure",
) -> None:
    """Raise where matplotlib is not installed.

    Raises
    ------
    InputError
        It is not.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError(
            "a figure needs matplotlib, which is not installed", where, fix, code="extra-not-installed"
        ) from error


def draw(report: EvaluationReport, path: Path) -> None:
    """Write the figure: four panels, in the format that the ending names.

    Raises
    ------
    ResourceError
        If the disk is full.
    """
    # The object-oriented interface: no window system, no global state of pyplot.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from scvec.base.errors import disk_errors

    figure = Figure(figsize=(12, 10), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(2, 2)
    _confusion(axes[0, 0], figure, report)
    _calibration(axes[0, 1], report)
    _risk(axes[1, 0], report)
    _novelty(axes[1, 1], report)
    accuracy = report.scores["accuracy"]
    told = "" if accuracy is None or np.isnan(accuracy) else f", accuracy {accuracy:.3f}"
    figure.suptitle(f"reference {report.reference}: {report.n_scored:,} cells{told}")
    with disk_errors(str(path)):
        # Without the date, the same numbers give the same file.
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _confusion(axes: Any, figure: Any, report: EvaluationReport) -> None:
    labels = report.confusion["labels"]
    counts = np.array(report.confusion["counts"], dtype=np.float64)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    image = axes.imshow(share, vmin=0.0, vmax=1.0, cmap="Blues")
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set(xlabel="label given", ylabel="true label", title="confusion (share of the true label)")
    figure.colorbar(image, ax=axes, shrink=0.8)


def _calibration(axes: Any, report: EvaluationReport) -> None:
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    confidence, accuracy, share = (
        [b[name] for b in report.reliability] for name in ("confidence", "accuracy", "share")
    )
    axes.scatter(confidence, accuracy, s=20 + 400 * np.array(share))
    ece = report.scores["ece"]
    title = "calibration" if ece is None else f"calibration (error {ece:.3f})"
    axes.set(xlabel="confidence", ylabel="accuracy", title=title, xlim=(0, 1), ylim=(0, 1.03))


def _risk(axes: Any, report: EvaluationReport) -> None:
    coverage, risk = zip(*report.scores["risk_coverage"], strict=True)
    axes.plot(coverage, risk, marker=".")
    axes.set(
        xlabel="surest share of the cells",
        ylabel="share of wrong labels",
        title=f"risk and coverage (area {report.scores['aurc']:.3f})",
        xlim=(0, 1),
        ylim=(0, None),
    )


def _novelty(axes: Any, report: EvaluationReport) -> None:
    edges = np.array(report.novelty["edges"])
    for name, colour in (("known", "tab:blue"), ("unknown", "tab:orange")):
        n = np.array(report.novelty[name], dtype=np.float64)
        if n.sum():
            axes.stairs(n / n.sum(), edges, fill=True, alpha=0.5, color=colour, label=f"{name} types")
    axes.axvline(0.5, color="0.3", linewidth=1, linestyle=":")
    axes.set(xlabel="novelty", ylabel="share of the cells", title="novelty", xlim=(0, 1))
    axes.legend()
