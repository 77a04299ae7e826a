"""ACTINN (Ma and Pellegrini 2020) in its JAX form: a small neural network on counts, defaults."""

from __future__ import annotations

from typing import Any

import actinn_jax
import anndata
import numpy as np
from protocol import Answer, Clock, cells_of, serve


def _counts(cells: Any) -> Any:
    """Return cells with counts as X; where there are none, what log1p was taken of."""
    if "counts" in cells.layers:
        return anndata.AnnData(cells.layers["counts"], obs=cells.obs, var=cells.var[[]])
    X = cells.X.copy()
    X.data = np.expm1(X.data)
    return anndata.AnnData(X, obs=cells.obs, var=cells.var[[]])


def answer(task: dict[str, Any], options: dict[str, Any], clock: Clock) -> Answer:
    """Train on the genes that both have, as the original does, and predict."""
    cells = cells_of(task)
    shared = sorted(set(cells.reference.var_names) & set(cells.query.var_names))
    reference, query = (_counts(a[:, shared].copy()) for a in (cells.reference, cells.query))
    with clock("fit"):
        model = actinn_jax.train_reference(
            reference, train_label_name="label", seed=cells.seed, print_cost=False, **options
        )
    with clock("predict"):
        frame, _ = model.predict_frame(query)
    return Answer(frame["celltype"].to_numpy(), frame["celltype_probability"].to_numpy())


if __name__ == "__main__":
    serve(answer, "actinn-jax", "jax")
