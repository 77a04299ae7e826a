"""CellTypist (Domínguez Conde et al. 2022): logistic regression trained on the reference, defaults."""

from __future__ import annotations

from typing import Any

import celltypist
import numpy as np
from protocol import Answer, Clock, cells_of, serve

#: Models of the reference at hand: with and without majority voting ask the same one.
_last: dict[str, Any] = {}


def answer(task: dict[str, Any], options: dict[str, Any], clock: Clock) -> Answer:
    """Train, and annotate; ``majority_voting`` and ``feature_selection`` are CellTypist's own options."""
    cells = cells_of(task)
    selection = bool(options.get("feature_selection"))
    of, key = f"{task['reference']} {cells.seed}", f"selection {selection}"
    if _last.get("of") != of:
        _last.clear()
        _last["of"] = of
    if key not in _last:
        np.random.seed(cells.seed)
        own = Clock()
        with own("fit"):
            model = celltypist.train(cells.reference, labels="label", feature_selection=selection)
        _last[key] = (model, own.seconds)
    model, seconds = _last[key]
    clock.add("fit", seconds["fit_seconds"], seconds["fit_cpu_seconds"])
    voting = bool(options.get("majority_voting"))
    with clock("predict"):
        found = celltypist.annotate(cells.query, model=model, majority_voting=voting)
    by = "majority_voting" if "majority_voting" in found.predicted_labels else "predicted_labels"
    table = found.to_adata(insert_conf=True, insert_conf_by=by).obs
    return Answer(table[by].to_numpy(), table["conf_score"].to_numpy())


if __name__ == "__main__":
    serve(answer, "celltypist", "scikit-learn", "scanpy")
