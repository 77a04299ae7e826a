"""A figure of an evaluation: confusion, calibration, risk and novelty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from scvec.base.errors import InputError
from scvec.report.evaluation import EvaluationReport

__all__ = ["draw", "need_matplotlib"]


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
        raise InputError("a figure needs matplotlib, which is not installed", where, fix) from error


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

    from scvec.base.borders import disk_errors

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
