"""Simple baselines in scvec's own environment."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anndata
from protocol import Answer, Clock, serve

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import baselines


def answer(task: dict[str, Any], options: dict[str, Any], clock: Clock) -> Answer:
    """Match genes as scvec does, then one of the functions of ``baselines``."""
    labels = anndata.read_h5ad(task["plain_reference"], backed="r").obs["label"].to_numpy().astype(str)
    with clock("fit"):
        cells = baselines.matched(task["plain_reference"], task["plain_query"])
    with clock("predict"):
        label, confidence = getattr(baselines, options["classifier"])(cells, labels, int(task["seed"]))
    return Answer(label, confidence)


if __name__ == "__main__":
    serve(answer, "scikit-learn", "numpy")
