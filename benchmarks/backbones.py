"""Backbones and encoders beside each other and their controls, on the pancreas cells that ship with scvec.

    python benchmarks/backbones.py [--rows WORD...] [--seeds 3] [--pairs donors species] [--cells 300]
        [--llm smollm2] [--publish]

Reference and query are stratified subsamples of ``--cells`` cells, since a language model takes its
time: labels are capped at the same number of cells. A row is an encoder, a backbone, and the voice that
hears with that encoder alone: its head, or the neighbours where nothing is trained. Each run is a
process of its own, for its peak memory; runs that are done are kept in
``benchmarks/cache/backbones.json``, so that a table can be made in several sittings.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from tables import DOCS, markdown, publish

CACHE = Path(__file__).resolve().parent / "cache"
COLUMNS = (
    "pair", "encoder", "backbone", "voice", "seeds", "accuracy", "macro_f1", "sd_macro_f1", "ece", "fit_s",
    "s_per_1000", "peak_mb", "cost",
)  # fmt: skip

#: name -> (encoder, backbone, voice, options of ingest_cells)
ROWS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "adapted": ("adapted", "minilm", "head", {}),
    "adapted-all": ("adapted", "minilm", "both", {}),
    "adapted-use": ("adapted", "use-lite", "head", {}),
    "adapted-random": ("adapted", "random:384", "head", {}),
    "adapted-permuted": ("adapted", "permuted:minilm", "head", {}),
    "adapted-name": ("adapted", "name:minilm", "head", {}),
    "adapted-llm-mean": ("adapted", "hf:{folder},pooling=mean,max_tokens=128", "head", {}),
    "adapted-llm-eol": ("adapted", "hf:{folder},pooling=eol,max_tokens=128", "head", {}),
    "residual": ("residual", "minilm", "head", {}),
    "weighted": ("weighted", "minilm", "knn", {}),
    "weighted-use": ("weighted", "use-lite", "knn", {}),
    "sentence": ("sentence", "minilm", "head", {}),
    "sentence-use": ("sentence", "use-lite", "head", {}),
    "pca": ("pca", "minilm", "knn", {}),
    "none": ("prompt", "minilm", "head", {"prompt_order": "none", "n_genes": 64, "epochs": 8}),
    "none-random": ("prompt", "random:384", "head", {"prompt_order": "none", "n_genes": 64, "epochs": 8}),
    "untrained": ("prompt", "minilm", "head", {"llm": "{llm}", "n_genes": 64, "epochs": 0}),
    "prompt": ("prompt", "minilm", "head", {"llm": "{llm}", "n_genes": 64, "epochs": 3}),
    "prompt-code": (
        "prompt", "minilm", "head", {"llm": "{llm}", "n_genes": 64, "epochs": 3, "prompt_order": "code"}
    ),
    "logistic": ("logistic regression", "-", "-", {}),
}  # fmt: skip
SHOWN = {"paper": "prompt (paper)", "code": "prompt (code)", "none": "prompt without a language model"}


def subsample(cells: Any, n: int, seed: int) -> Any:
    """Return at most ``n`` cells: labels are capped at the same number, rare ones kept whole."""
    labels = cells.obs["cell_type"].to_numpy().astype(str)
    rng = np.random.default_rng(seed)
    counts = np.unique(labels, return_counts=True)[1]
    cap = next(c for c in range(int(counts.max()), 0, -1) if c == 1 or np.minimum(counts, c).sum() <= n)
    rows = [rng.permutation(np.flatnonzero(labels == label))[:cap] for label in np.unique(labels)]
    return cells[np.sort(np.concatenate(rows))].copy()


def one(job: dict[str, Any]) -> dict[str, Any]:
    """Run one row once; returns scores, seconds and memory."""
    from baron import pairs, score

    reference, new = pairs()[{"donors": "donors 1-2 -> 3-4", "species": "human -> mouse"}[job["pair"]]]
    reference, new = subsample(reference, job["cells"], 0), subsample(new, job["cells"], 1)
    truth = new.obs["cell_type"].to_numpy().astype(str)
    encoder, backbone, voice, options = ROWS[job["row"]]
    started = time.perf_counter()
    if encoder == "logistic regression":
        from baselines import logistic_regression, matched

        labels = reference.obs["cell_type"].to_numpy().astype(str)
        said, confidence = logistic_regression(matched(reference, new), labels, job["seed"])
        fit_s, query_s, cost = time.perf_counter() - started, 0.0, 0.0
    else:
        from scvec.api.cells import ingest_cells
        from scvec.api.query import query

        if "{folder}" in backbone:
            from scvec.backbones.language_model import find_model

            backbone = backbone.format(folder=find_model(job["llm"]))
        options = {k: v.format(llm=job["llm"]) if isinstance(v, str) else v for k, v in options.items()}
        report = ingest_cells(
            CACHE / "backbones-store",
            [reference],
            name=job["row"],
            label_key="cell_type",
            batch_key="donor",
            encoder=encoder,
            backbone=backbone,
            seed=job["seed"],
            **options,
        )
        fit_s, cost = sum(report.seconds[s] for s in ("train", "encode cells")), 0.0
        started = time.perf_counter()
        found = query(CACHE / "backbones-store", new, reference=job["row"], method=voice)
        query_s = time.perf_counter() - started
        said, confidence = found.label, found.confidence
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        **score(truth, said, confidence),
        "fit_s": fit_s,
        "s_per_1000": query_s / len(truth) * 1000,
        "peak_mb": peak,
        "cost": cost,
    }


def table(kept: dict[str, Any], cells: int) -> list[dict[str, Any]]:
    """Return a row per pair, encoder and backbone, best macro-F1 first."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for run in kept.values():
        if run["job"]["cells"] == cells:
            runs[run["job"]["pair"], run["job"]["row"]].append(run["found"])
    rows = []
    for (pair, name), found in runs.items():
        encoder, backbone, voice, options = ROWS[name]
        if encoder == "prompt":
            encoder = SHOWN[options.get("prompt_order", "paper")]
            encoder += ", untrained projection" if options["epochs"] == 0 else ""
        values = {c: float(np.mean([f[c] for f in found])) for c in ("accuracy", "macro_f1", "ece")}
        sd = float(np.std([f["macro_f1"] for f in found], ddof=1)) if len(found) > 1 else "-"
        rest = {c: round(float(np.mean([f[c] for f in found])), 1) for c in ("fit_s", "s_per_1000")}
        rows.append(
            {
                "pair": pair,
                "encoder": encoder,
                "backbone": backbone.replace("{folder}", "smollm2") if encoder != "pca" else "-",
                "voice": {"both": "all", "knn": "neighbours"}.get(voice, voice),
                "seeds": len(found),
                **values,
                "sd_macro_f1": sd,
                **{c: f"{v:.1f}" for c, v in rest.items()},
                "peak_mb": f"{max(f['peak_mb'] for f in found):.0f}",
                "cost": f"{sum(f['cost'] for f in found):.2f}",
            }
        )
    return sorted(rows, key=lambda row: (row["pair"], -row["macro_f1"]))


def verdict(kept: dict[str, Any], cells: int) -> list[str]:
    """Say which rows differ from ``adapted``, by the signed ranks of all pairs and seeds that both have."""
    from scipy.stats import wilcoxon

    runs = {
        (r["job"]["row"], r["job"]["pair"], r["job"]["seed"]): r["found"]["macro_f1"]
        for r in kept.values()
        if r["job"]["cells"] == cells
    }
    lines = []
    for name in ROWS:
        both = [
            (value, runs["adapted", pair, seed])
            for (row, pair, seed), value in runs.items()
            if row == name and ("adapted", pair, seed) in runs
        ]
        if name == "adapted" or not both:
            continue
        differences = np.array([a - b for a, b in both])
        p = float(wilcoxon(differences).pvalue) if len(both) > 1 and differences.any() else 1.0
        said = "differs" if p < 0.05 else "not told apart"
        mean = differences.mean()
        lines.append(f"{name}: {mean:+.3f} macro-F1 against adapted ({len(both)} runs, p {p:.2f}): {said}")
    return lines


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw macro-F1 against the seconds that a thousand query cells take."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    names = sorted({row["pair"] for row in rows})
    figure, panels = plt.subplots(1, len(names), figsize=(6 * len(names), 4.2), squeeze=False)
    for axes, pair in zip(panels[0], names, strict=True):
        here = [row for row in rows if row["pair"] == pair][::-1]
        axes.barh(
            range(len(here)),
            [row["macro_f1"] for row in here],
            xerr=[row["sd_macro_f1"] if isinstance(row["sd_macro_f1"], float) else 0.0 for row in here],
            color=["#3b6ea8" if row["encoder"].startswith("prompt") else "#cfd8e3" for row in here],
        )
        shown = [f"{row['encoder']}, {row['backbone']} ({row['voice']})" for row in here]
        axes.set_yticks(range(len(here)), shown, fontsize=7)
        axes.set_xlabel("macro-F1")
        axes.set_title(pair, fontsize=9)
    figure.tight_layout()
    figure.savefig(DOCS / "benchmarks" / "backbones.svg", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Run what is missing and print; with --publish, write docs/benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--pairs", nargs="+", default=["donors"], choices=["donors", "species"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--cells", type=int, default=300)
    parser.add_argument("--llm", default="smollm2")
    parser.add_argument("--publish", action="store_true")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(one(json.loads(options.job))))
        return
    CACHE.mkdir(exist_ok=True)
    file = CACHE / "backbones.json"
    kept = json.loads(file.read_text()) if file.is_file() else {}
    for row in options.rows:
        for pair in options.pairs:
            for seed in range(options.seeds if ROWS[row][0] not in ("pca", "weighted", "sentence") else 1):
                job = {"row": row, "pair": pair, "seed": seed, "cells": options.cells, "llm": options.llm}
                key = json.dumps(job, sort_keys=True)
                if key in kept:
                    continue
                command = [sys.executable, __file__, "--job", key]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    print(f"{row}, {pair}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                    continue
                kept[key] = {"job": job, "found": json.loads(done.stdout.splitlines()[-1])}
                file.write_text(json.dumps(kept, indent=1) + "\n")
                print(f"{row}, {pair}, seed {seed}: {kept[key]['found']}", flush=True)
    rows = table(kept, options.cells)
    print(markdown(COLUMNS, rows))
    print("\n".join(verdict(kept, options.cells)))
    if options.publish:
        publish("backbones", "python benchmarks/backbones.py --publish", COLUMNS, rows)
        draw(rows)


if __name__ == "__main__":
    main()
