"""The report of ``scvec eval``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from scvec.base.errors import InputError
from scvec.base.results import NextStep, Report

__all__ = ["EvaluationReport", "draw", "need_matplotlib"]

#: Scores in the printed report, with their descriptions.
SHOWN = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "ontology_accuracy": "accuracy, with ancestors and descendants in the Cell Ontology as correct",
    "ontology_similarity": "fraction of Cell Ontology terms shared with the true type",
    "mean_confidence": "mean confidence",
    "ece": "expected calibration error",
    "brier": "Brier score of the confidence",
    "aurc": "area under the risk-coverage curve",
    "novelty_auroc": "AUROC of novelty: cells of unseen against known types",
    "novelty_fpr_at_95_tpr": "false positive rate of novelty at 95% true positives",
    "false_novel": "fraction of cells of known types called novel",
    "true_novel": "fraction of cells of unseen types called novel",
}


@dataclass(frozen=True, kw_only=True)
class EvaluationReport(Report):
    """Predicted labels compared with true labels.

    Attributes
    ----------
    n_cells, n_scored, n_known
        Cells of the query; cells with a true label; cells of a type that the reference has. ``accuracy``,
        ``macro_f1``, ``ece``, ``brier`` and the sets use only the last, because no label could be correct
        for the others; the risk-coverage curve uses all scored cells.
    unknown_labels
        True labels that the reference does not have, with their numbers of cells.
    scores
        Numbers by name, None if undefined: see ``SHOWN``; ``sets`` (requested and observed coverage, mean
        size, fraction of empty sets); ``risk_coverage`` ([coverage, risk] points).
    reliability
        Fraction of cells, mean confidence and accuracy per bin of confidence.
    status
        Fraction and accuracy of the cells of each status.
    labels
        Per true label: cells, precision, recall, F1, mean novelty, fraction called novel.
    confusion
        ``labels``, and ``counts`` with true labels in rows.
    novelty
        Histogram of novelty of cells of known and of unknown types.
    parameters
        The parameters of the query.
    n_own
        Cells of the query that are also in the reference; their scores do not hold for new cells.
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
        """Return a copy with the names of its files."""
        return replace(self, output=str(output or ""), plot=str(plot or ""))

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        lines = [
            f"{self.n_scored:,} of {self.n_cells:,} cells scored against obs['{self.truth_key}'], "
            f"{self.n_known:,} of them of types in reference '{self.reference}'"
        ]
        if self.unknown_labels:
            shown = ", ".join(f"{label} ({n:,})" for label, n in sorted(self.unknown_labels.items())[:12])
            lines.append(f"types not in the reference: {shown}")
            if not self.n_known:
                lines.append("if these are other names of its types, give --label-map FILE (old, new label)")
        shown = self.to_dict()["scores"]
        for name, meaning in SHOWN.items():
            if shown.get(name) is not None:
                lines.append(f"  {shown[name]:6.3f}  {meaning}")
        sets = shown.get("sets")
        if sets and sets["observed"] is not None:
            lines.append(
                f"  {sets['observed']:6.3f}  label sets with the true label, {sets['coverage']:g} requested "
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

    @property
    def next_step(self) -> NextStep:
        """A figure of the scores, if there is none; else the query of new cells."""
        figure = NextStep(("--plot", "eval.png"), again=True)
        return NextStep.query(self.reference) if self.plot else figure


def need_matplotlib(
    where: str = "--plot",
    fix: str = "pip install matplotlib, or omit --plot: the JSON file has all numbers of the figure",
) -> None:
    """Check that matplotlib is installed.

    Raises
    ------
    InputError
        If it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError(
            "a figure needs matplotlib, which is not installed", where, fix, code="extra-not-installed"
        ) from error


def draw(report: EvaluationReport, path: Path) -> None:
    """Write the figure of four panels, in the format of the suffix.

    Raises
    ------
    ResourceError
        If the disk is full.
    """
    # The object-oriented interface needs no window system and no global state of pyplot.
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
    shown = "" if accuracy is None or np.isnan(accuracy) else f", accuracy {accuracy:.3f}"
    n_other = report.n_scored - report.n_known
    other = f"; {n_other:,} cells of other types" if n_other else ""
    figure.suptitle(
        f"reference {report.reference}: {report.n_known:,} cells of types in the reference{shown}{other}"
    )
    with disk_errors(str(path)):
        # Without the date, equal numbers give equal files.
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _confusion(axes: Any, figure: Any, report: EvaluationReport) -> None:
    labels = report.confusion["labels"]
    counts = np.array(report.confusion["counts"], dtype=np.float64)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    image = axes.imshow(share, vmin=0.0, vmax=1.0, cmap="Blues")
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set(
        xlabel="label given",
        ylabel="true label",
        title=f"confusion (fraction of the true label)\n{report.n_scored:,} cells of all types",
    )
    figure.colorbar(image, ax=axes, shrink=0.8)


def _calibration(axes: Any, report: EvaluationReport) -> None:
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    confidence, accuracy, share = (
        [b[name] for b in report.reliability] for name in ("confidence", "accuracy", "share")
    )
    axes.scatter(confidence, accuracy, s=20 + 400 * np.array(share))
    ece = report.scores["ece"]
    title = "calibration" if ece is None else f"calibration (error {ece:.3f})"
    title += f"\n{report.n_known:,} cells of types in the reference"
    axes.set(xlabel="confidence", ylabel="accuracy", title=title, xlim=(0, 1), ylim=(0, 1.03))


def _risk(axes: Any, report: EvaluationReport) -> None:
    coverage, risk = zip(*report.scores["risk_coverage"], strict=True)
    axes.plot(coverage, risk, marker=".")
    axes.set(
        xlabel="fraction of cells, most confident first",
        ylabel="fraction of wrong labels",
        title=f"risk and coverage (area {report.scores['aurc']:.3f})\n{report.n_scored:,} cells of all types",
        xlim=(0, 1),
        ylim=(0, None),
    )


def _novelty(axes: Any, report: EvaluationReport) -> None:
    edges = np.array(report.novelty["edges"])
    kinds = {"known": ("tab:blue", "types in the reference"), "unknown": ("tab:orange", "other types")}
    for name, (colour, label) in kinds.items():
        n = np.array(report.novelty[name], dtype=np.float64)
        if n.sum():
            axes.stairs(
                n / n.sum(),
                edges,
                fill=True,
                alpha=0.5,
                color=colour,
                label=f"{label} ({n.sum():,.0f} cells)",
            )
    axes.axvline(0.5, color="0.3", linewidth=1, linestyle=":")
    axes.set(
        xlabel="novelty",
        ylabel="fraction of these cells",
        title=f"novelty\n{report.n_scored:,} cells of all types",
        xlim=(0, 1),
    )
    axes.legend()
