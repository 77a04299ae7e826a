"""Simple baselines in scvec's own environment."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anndata
from protocol import Answer, Clock, serve

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import baselines

#: Cells matched last: all classifiers ask the same ones.
_last: dict[str, Any] = {}


def answer(task: dict[str, Any], options: dict[str, Any], clock: Clock) -> Answer:
    """Match genes as scvec does, then one of the functions of ``baselines``."""
    reference, query = task["plain_reference"], task["plain_query"]
    if f"{reference} {query}" not in _last:
        labels = anndata.read_h5ad(reference, backed="r").obs["label"].to_numpy().astype(str)
        own = Clock()
        with own("fit"):
            cells = baselines.matched(reference, query)
        _last.clear()
        _last[f"{reference} {query}"] = (cells, labels, own.seconds)
    cells, labels, seconds = _last[f"{reference} {query}"]
    clock.add("fit", seconds["fit_seconds"], seconds["fit_cpu_seconds"])
    with clock("predict"):
        label, confidence = getattr(baselines, options["classifier"])(cells, labels, int(task["seed"]))
    return Answer(label, confidence)


if __name__ == "__main__":
    serve(answer, "scikit-learn", "numpy")
