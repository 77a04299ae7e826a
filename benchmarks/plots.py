"""Plots of the annotation benchmark, from docs/benchmarks/annotate.json (needs matplotlib: make peers).

python benchmarks/plots.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"
DEFAULT = "scvec"
#: Shown in the risk-coverage plot; the others are in the JSON.
CURVES = (
    "scvec", "CellTypist", "SingleR", "ACTINN", "scANVI", "logistic regression, 2,000 HVG",
    "nearest centroid (cosine)", "PCA-50 + kNN",
)  # fmt: skip
#: Of the pairs.
COLORS = matplotlib.colormaps["tab20"]


def macro_f1(runs: list[dict[str, Any]], methods: list[str], pairs: list[str]) -> None:
    """Draw a dot per method and pair, the mean as a bar."""
    value = {(m, p): _mean([r["macro_f1"] for r in runs if (r["method"], r["pair"]) == (m, p)])
             for m in methods for p in pairs}  # fmt: skip
    figure, axes = plt.subplots(figsize=(9, 0.26 * len(methods) + 1.2))
    for y, method in enumerate(reversed(methods)):
        points = [(value[method, p], i) for i, p in enumerate(pairs) if value[method, p] is not None]
        axes.barh(y, _mean([v for v, _ in points]), color="#3b6ea8" if method == DEFAULT else "#cfd8e3")
        axes.scatter(
            [v for v, _ in points], [y] * len(points), c=[COLORS(i) for _, i in points], s=12, zorder=3
        )
    axes.set_yticks(range(len(methods)), list(reversed(methods)), fontsize=7)
    for i, pair in enumerate(pairs):
        axes.scatter([], [], color=COLORS(i), s=12, label=pair)
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_xlabel("macro-F1 (bar: mean over pairs)")
    _save(figure, "annotate_macro_f1")


def risk(runs: list[dict[str, Any]], methods: list[str], pairs: list[str]) -> None:
    """Draw the share of wrong labels among the surest cells, a panel per pair."""
    columns = 4
    lines = -(-len(pairs) // columns)
    figure, panels = plt.subplots(lines, columns, figsize=(10, 2.5 * lines), squeeze=False)
    for axes, pair in zip(panels.flat, pairs, strict=False):
        for method in methods:
            curve = next(
                (r["risk"] for r in runs if (r["method"], r["pair"]) == (method, pair) and "risk" in r), None
            )
            if curve and method in CURVES:
                axes.plot(*zip(*curve, strict=True), lw=2 if method == DEFAULT else 0.8, label=method)
        axes.set_title(pair, fontsize=8)
        axes.tick_params(labelsize=6)
    panels[0][0].legend(fontsize=5)
    figure.supxlabel("coverage (surest cells first)", fontsize=8)
    figure.supylabel("share of wrong labels", fontsize=8)
    _save(figure, "annotate_risk")


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _save(figure: Any, name: str) -> None:
    figure.tight_layout()
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Draw all plots."""
    matplotlib.rcParams["svg.hashsalt"] = "scvec"  # the same file on every run
    matplotlib.rcParams["svg.fonttype"] = "none"
    record = json.loads((FOLDER / "annotate.json").read_text(encoding="utf-8"))
    runs = [r for r in record["runs"] if not r["pair"].startswith("without") and "-cells" not in r["pair"]]
    methods = list(dict.fromkeys(r["method"] for r in record["rows"]))
    pairs = list(dict.fromkeys(r["pair"] for r in runs))
    macro_f1(runs, methods, pairs)
    risk(runs, methods, pairs)


if __name__ == "__main__":
    main()
