"""scanpy.tl.ingest (Wolf et al. 2018): labels by neighbours in the reference's PCA, tutorial defaults."""

from __future__ import annotations

from typing import Any

import scanpy as sc
from protocol import Answer, Clock, cells_of, serve


def answer(task: dict[str, Any], options: dict[str, Any], clock: Clock) -> Answer:
    """Do as the tutorial does: the variable genes, PCA, neighbours and UMAP of the reference, then ingest."""
    cells = cells_of(task)
    shared = sorted(set(cells.reference.var_names) & set(cells.query.var_names))
    reference, query = cells.reference[:, shared].copy(), cells.query[:, shared].copy()
    reference.obs["label"] = reference.obs["label"].astype("category")
    with clock("fit"):
        sc.pp.highly_variable_genes(reference)
        reference = reference[:, reference.var["highly_variable"]].copy()
        sc.pp.pca(reference, random_state=int(task["seed"]))
        sc.pp.neighbors(reference, random_state=int(task["seed"]))
        sc.tl.umap(reference, random_state=int(task["seed"]))
    with clock("predict"):
        query = query[:, reference.var_names].copy()
        sc.tl.ingest(query, reference, obs="label")
    return Answer(query.obs["label"].to_numpy())


if __name__ == "__main__":
    serve(answer, "scanpy", "umap-learn", "scikit-learn")
