"""The default against its controls and simple baselines, on the pancreas cells that ship with scvec.

    python benchmarks/baron.py [--seeds 3] [--publish]

Two pairs: Baron human donors 1-2 -> donors 3-4, and Baron human -> mouse (stellate types merged, immune
types merged).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from importlib.resources import files
from typing import Any

import anndata
import numpy as np
from baselines import logistic_regression, matched
from tables import markdown, publish

from scvec.api.cells import ingest_cells
from scvec.api.demo import merge_labels
from scvec.api.query import query
from scvec.model.metrics import accuracy, expected_calibration_error, macro_f1

COLUMNS = ("pair", "method", "accuracy", "macro_f1", "sd_macro_f1", "ece")

#: name -> (backbone, encoder, method)
METHODS = {
    "scvec default": ("minilm", "discriminant", "both"),
    "head alone": ("minilm", "discriminant", "head"),
    "neighbours alone": ("minilm", "discriminant", "knn"),
    "control: random vectors": ("random:384", "adapted", "both"),
    "control: random vectors, head": ("random:384", "adapted", "head"),
    "control: permuted text, head": ("permuted:minilm", "adapted", "head"),
    "control: name-only text, head": ("name:minilm", "adapted", "head"),
    "control: residual only": ("minilm", "residual", "both"),
    "control: residual only, head": ("minilm", "residual", "head"),
    "GenePT-w (weighted text mean), neighbours": ("minilm", "weighted", "knn"),
    "PCA-50 + kNN": ("minilm", "pca", "knn"),
    "nearest centroid (cosine, log expression)": ("minilm", "pca", "prototype"),
}


def pairs() -> dict[str, tuple[anndata.AnnData, anndata.AnnData]]:
    """Return reference and query of each pair, labels in obs['cell_type']."""
    data = files("scvec") / "data"
    human = anndata.read_h5ad(str(data / "baron_human.h5ad"))
    mouse = anndata.read_h5ad(str(data / "baron_mouse.h5ad"))
    first = human.obs["donor"].isin(["human1", "human2"]).to_numpy()
    merged = []
    for cells in (human, mouse):
        cells = cells.copy()
        cells.obs["cell_type"] = merge_labels(cells.obs["cell_type"].to_numpy().astype(str))
        merged.append(cells)
    return {
        "donors 1-2 -> 3-4": (human[first].copy(), human[~first].copy()),
        "human -> mouse": (merged[0], merged[1]),
    }


def score(truth: np.ndarray, said: np.ndarray, confidence: np.ndarray) -> dict[str, float]:
    """Return accuracy, macro-F1 and expected calibration error."""
    return {
        "accuracy": accuracy(truth, said),
        "macro_f1": macro_f1(truth, said),
        "ece": expected_calibration_error(confidence, truth == said),
    }


def run(seeds: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return the rows of the table, and the seconds of the default's stages."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for pair, (reference, new) in pairs().items():
            truth = new.obs["cell_type"].to_numpy().astype(str)
            for seed in range(seeds):
                ingested: dict[tuple[str, str], str] = {}
                for method, (backbone, encoder, voice) in METHODS.items():
                    if encoder in ("pca", "weighted") and seed > 0:
                        continue  # nothing random in them but the solver's start
                    key = (backbone, encoder)
                    if key not in ingested:
                        ingested[key] = f"r{len(ingested)}"
                        report = ingest_cells(
                            folder,
                            [reference],
                            name=ingested[key],
                            label_key="cell_type",
                            batch_key="donor",
                            backbone=backbone,
                            encoder=encoder,
                            seed=seed,
                        )
                        if method.startswith("scvec default"):
                            seconds |= {f"{pair}: ingest, {k}": v for k, v in report.seconds.items()}
                    answer = query(folder, new, reference=ingested[key], method=voice)
                    if method.startswith("scvec default"):
                        seconds |= {f"{pair}: query, {k}": v for k, v in answer.seconds.items()}
                    found.setdefault((pair, method), []).append(score(truth, answer.label, answer.confidence))
            labels = reference.obs["cell_type"].to_numpy().astype(str)
            label, confidence = logistic_regression(matched(reference, new), labels, 0)
            found[pair, "logistic regression, 2,000 HVG"] = [score(truth, label, confidence)]
    rows = []
    for (pair, method), scores in found.items():
        values = {k: float(np.mean([s[k] for s in scores])) for k in ("accuracy", "macro_f1", "ece")}
        sd = float(np.std([s["macro_f1"] for s in scores], ddof=1)) if len(scores) > 1 else "-"
        rows.append({"pair": pair, "method": method, **values, "sd_macro_f1": sd})
    return rows, seconds


def main() -> None:
    """Run and print; with --publish, write docs/benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    started = time.monotonic()
    rows, seconds = run(options.seeds)
    print(markdown(COLUMNS, rows))
    print()
    for stage, value in seconds.items():
        print(f"{stage:<40} {value:6.2f} s")
    print(f"all: {time.monotonic() - started:.0f} s")
    if options.publish:
        publish("baron", f"python benchmarks/baron.py --seeds {options.seeds} --publish", COLUMNS, rows)


if __name__ == "__main__":
    main()
