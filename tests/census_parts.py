"""A small Census: TileDB-SOMA objects of the schema of CELLxGENE Census (version 2), from cells that ship."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

#: Columns of obs that are dictionaries, and those that are numbers, as the builder of the Census has them.
TEXTS = (
    *("dataset_id", "assay", "assay_ontology_term_id", "cell_type", "cell_type_ontology_term_id"),
    *("development_stage", "development_stage_ontology_term_id", "disease", "disease_ontology_term_id"),
    *("donor_id", "self_reported_ethnicity", "sex", "suspension_type", "tissue"),
    *("tissue_ontology_term_id", "tissue_general", "tissue_general_ontology_term_id", "tissue_type"),
)
EXPERIMENTS = {"human": "homo_sapiens", "mouse": "mus_musculus"}


def obs_of(adata: Any, organism: str, first_dataset: int) -> pd.DataFrame:
    """Return obs as the Census has it, of AnnData with ``cell_type``, ``cell_ontology_*`` and ``donor``.

    Donors are spread over datasets, one in ten cells has a disease, and one in twelve is there twice: once as
    primary data, and once not.
    """
    n = adata.n_obs
    donors = pd.factorize(adata.obs["donor"], sort=True)[0]
    rng = np.random.default_rng(3)
    obs = pd.DataFrame({name: "unknown" for name in TEXTS}, index=range(n))
    obs["dataset_id"] = [f"dataset-{first_dataset + d // 2}" for d in donors]
    obs["donor_id"] = adata.obs["donor"].astype(str).to_numpy()
    obs["cell_type"] = adata.obs["cell_ontology_class"].astype(str).to_numpy()
    obs["cell_type_ontology_term_id"] = adata.obs["cell_ontology_id"].astype(str).to_numpy()
    obs["assay"], obs["assay_ontology_term_id"] = "inDrop", "EFO:0008780"
    obs["disease"] = np.where(rng.random(n) < 0.1, "type 2 diabetes mellitus", "normal")
    obs["tissue"], obs["tissue_general"] = "islet of Langerhans", "pancreas"
    obs["tissue_type"], obs["suspension_type"] = "tissue", "cell"
    obs["observation_joinid"] = [f"{organism}{k}" for k in range(n)]
    obs["is_primary_data"] = True
    counts = sp.csr_matrix(adata.X)
    obs["raw_sum"] = np.asarray(counts.sum(axis=1)).ravel().astype(np.float64)
    obs["nnz"] = np.diff(counts.indptr).astype(np.int64)
    obs["n_measured_vars"] = np.int64(adata.n_vars)
    return obs


def write_census(
    path: Path, animals: Mapping[str, Any], absent: Mapping[str, list[int]] | None = None
) -> Path:
    """Write a Census of AnnData by organism; ``absent`` has var numbers that a dataset did not measure."""
    import pyarrow as pa
    import tiledbsoma as soma

    def frame(parent: Any, name: str, table: pd.DataFrame, texts: tuple[str, ...] = ()) -> None:
        table = table.reset_index(drop=True)
        table.insert(0, "soma_joinid", np.arange(len(table), dtype=np.int64))
        arrays = {c: pa.array(table[c]) for c in table.columns}
        for name_, array in arrays.items():
            if pa.types.is_string(array.type):
                arrays[name_] = array.cast(pa.large_string())
            if name_ in texts:
                arrays[name_] = arrays[name_].dictionary_encode()
        data = pa.table(arrays)
        # Not add_new_dataframe: a child writes at the time at which its collection was opened, and then reads
        # a schema without the values of its dictionaries.
        where = f"{parent.uri}/{name}"
        with soma.DataFrame.create(where, schema=data.schema, domain=[[0, len(table) - 1]]) as made:
            made.write(data)
        parent.set(name, soma.DataFrame.open(where), use_relative_uri=True)

    def matrix(parent: Any, name: str, values: Any, kind: Any) -> None:
        coo = sp.coo_matrix(values)
        with parent.add_new_sparse_ndarray(name, type=kind, shape=coo.shape) as made:
            made.write(
                pa.table(
                    {
                        "soma_dim_0": pa.array(coo.row.astype(np.int64)),
                        "soma_dim_1": pa.array(coo.col.astype(np.int64)),
                        "soma_data": pa.array(coo.data, type=kind),
                    }
                )
            )

    obs = {}
    for k, (organism, adata) in enumerate(animals.items()):
        once = obs_of(adata, organism, 10 * k)
        twice = once.iloc[::12].assign(is_primary_data=False, dataset_id="dataset-99")
        obs[organism] = pd.concat([once, twice], ignore_index=True)
    ids = sorted({d for table in obs.values() for d in table["dataset_id"]})
    with soma.Collection.create(str(path)) as census:
        info = census.add_new_collection("census_info")
        total = sum(map(len, obs.values()))
        facts = {
            "census_schema_version": "2.0.0",
            "census_build_date": "2025-01-30",
            "dataset_schema_version": "5.0.0",
            "total_cell_count": str(total),
        }
        frame(info, "summary", pd.DataFrame({"label": list(facts), "value": list(facts.values())}))
        datasets = {
            "citation": [f"Publication: https://doi.org/10.1/{d} Dataset Version: made up" for d in ids],
            "collection_id": ids,
            "collection_name": ["Islets"] * len(ids),
            "collection_doi": [f"10.1/{d}" for d in ids],
            "dataset_id": ids,
            "dataset_version_id": ids,
            "dataset_title": [f"Title of {d}" for d in ids],
            "dataset_h5ad_path": [f"{d}.h5ad" for d in ids],
            "dataset_total_cell_count": np.ones(len(ids), np.int64),
        }
        frame(info, "datasets", pd.DataFrame(datasets))
        counts = {
            "organism": ["Homo sapiens" if o == "human" else "Mus musculus" for o in obs],
            "category": ["tissue_general"] * len(obs),
            "label": ["pancreas"] * len(obs),
            "ontology_term_id": ["UBERON:0001264"] * len(obs),
            "total_cell_count": np.array([len(t) for t in obs.values()], np.int64),
            "unique_cell_count": np.array([t["is_primary_data"].sum() for t in obs.values()], np.int64),
        }
        frame(info, "summary_cell_counts", pd.DataFrame(counts), ("organism", "category"))
        data = census.add_new_collection("census_data")
        for organism, adata in animals.items():
            where = f"{path}/census_data/{EXPERIMENTS[organism]}"
            with soma.Experiment.create(where) as experiment:
                frame(experiment, "obs", obs[organism], TEXTS)
                measurements = experiment.add_new_collection("ms")
                rna = measurements.add_new_collection("RNA", soma.Measurement)
                features = {
                    "feature_id": list(adata.var_names),
                    "feature_name": list(adata.var_names),
                    "feature_length": np.ones(adata.n_vars, np.int64),
                }
                frame(rna, "var", pd.DataFrame(features))
                layers = rna.add_new_collection("X")
                values = sp.csr_matrix(adata.X)
                matrix(layers, "raw", sp.vstack([values, values[::12]]), pa.float32())
                present = np.ones((len(ids), adata.n_vars), dtype=bool)
                for dataset, genes in (absent or {}).items():
                    present[ids.index(dataset), genes] = False
                matrix(rna, "feature_dataset_presence_matrix", present, pa.bool_())
            data.set(EXPERIMENTS[organism], soma.Experiment.open(where))
    return path
