"""scANVI (Xu et al. 2021): reference and unlabelled query together, tutorial defaults, on CPU."""

from __future__ import annotations

import warnings
from typing import Any

import anndata
import numpy as np
import scanpy as sc
import scvi
from protocol import Answer, Clock, cells_of, serve


def answer(task: dict[str, Any], options: dict[str, Any], clock: Clock) -> Answer:
    """scVI on 2,000 variable genes of both, then scANVI from it, with the epochs scvi-tools chooses."""
    warnings.simplefilter("ignore")
    cells = cells_of(task)
    scvi.settings.seed = cells.seed
    both = anndata.concat(
        {"reference": cells.reference, "query": cells.query}, label="side", join="inner", index_unique="-"
    )
    with clock("fit"):
        sc.pp.highly_variable_genes(both, n_top_genes=2000, batch_key="side", subset=True)
        both.obs["label"] = np.concatenate(
            [cells.reference.obs["label"].astype(str).to_numpy(), np.full(cells.query.n_obs, "Unknown")]
        )
        scvi.model.SCVI.setup_anndata(both, layer="counts", batch_key="side")
        first = scvi.model.SCVI(both, n_layers=2, n_latent=30, gene_likelihood="nb")
        first.train(enable_progress_bar=False, accelerator="cpu")
        model = scvi.model.SCANVI.from_scvi_model(first, unlabeled_category="Unknown", labels_key="label")
        model.train(max_epochs=20, n_samples_per_label=100, enable_progress_bar=False, accelerator="cpu")
    with clock("predict"):
        proba = model.predict(both[both.obs["side"] == "query"].copy(), soft=True)
    facts = {"epochs": len(first.history["elbo_train"])}
    return Answer(proba.columns.to_numpy()[proba.to_numpy().argmax(1)], proba.to_numpy().max(1), facts=facts)


if __name__ == "__main__":
    serve(answer, "scvi-tools", "torch", "scanpy")
