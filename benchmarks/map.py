"""How well the map of the report agrees with labels: the demo's queries, beside umap-learn if it is there.

    python benchmarks/map.py

Of the ten cells nearest to a query cell on the map, reference and query together: the share that has the
label the query cell was given, and the share that has its true label. Beside it the trustworthiness of the
reference's map (15 neighbours), and seconds of CPU. Stellate and immune types are merged for mice.
"""

from __future__ import annotations

import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from sklearn.manifold import trustworthiness
from sklearn.neighbors import NearestNeighbors
from tables import markdown

import scvec
from scvec.model.explanation import Explainer, generation_of, same_reference
from scvec.model.storage import CODE_COLUMN
from scvec.report.layout import add_cells, lay_out_cells
from scvec.workflows.demo import merge_labels

COLUMNS = ("query", "map", "own_label", "true_label", "trustworthiness", "cpu_s")


def shares(places: Any, labels: Any, at: Any, given: Any, k: int = 10) -> float:
    """Return the share of the ``k`` nearest of each cell at ``at``, itself left out, that have its label."""
    everywhere, everyone = np.concatenate([places, at]), np.concatenate([labels, given])
    near = NearestNeighbors(n_neighbors=k + 1).fit(everywhere).kneighbors(at)[1]
    own = np.arange(len(places), len(everywhere))[:, None]
    order = np.argsort(near == own, axis=1, kind="stable")[:, :k]
    near = np.take_along_axis(near, order, axis=1)
    return float((everyone[near] == given[:, None]).mean())


def by_umap(vectors: Any, query: Any) -> tuple[Any, Any]:
    """Return the places that umap-learn gives: its fit of the reference, and its transform of the query."""
    from umap import UMAP

    model = UMAP(n_neighbors=15, min_dist=0.3, random_state=0, n_jobs=1, init="pca").fit(vectors)
    return model.embedding_, model.transform(query)


def rows_of(folder: Path, query: str) -> list[dict[str, Any]]:
    """Return a row for each way to draw the map."""
    found = scvec.query(folder / "store", folder / f"{query}_query.h5ad", reference="demo-pancreas")
    with Explainer.of_annotation(found) as explainer:
        rows, vectors = explainer.reference_vectors
    stored = same_reference(generation_of(found.store, found.parameters), found.parameters)
    codes = stored.obs[CODE_COLUMN].to_numpy()[rows]
    truth = anndata.read_h5ad(folder / f"{query}_query.h5ad").obs["cell_type"].to_numpy().astype(str)
    labels, given = np.array(found.classes)[codes], found.label.astype(str)
    if query == "mouse":
        labels, given, truth = merge_labels(labels), merge_labels(given), merge_labels(truth)

    def scvec_map() -> tuple[Any, Any]:
        places = lay_out_cells(np.asarray(stored.vectors)[rows])
        return places, add_cells(places, vectors, np.asarray(found.vectors), codes, found.proba)

    ways = {"scvec": scvec_map}
    if find_spec("umap"):
        ways["umap-learn"] = lambda: by_umap(vectors, np.asarray(found.vectors))
    table = []
    for name, draw in ways.items():
        start = time.process_time()
        places, at = draw()
        seconds = time.process_time() - start
        space = np.asarray(stored.vectors)[rows] if name == "scvec" else vectors
        table.append(
            {
                "query": query,
                "map": name,
                "own_label": shares(places, labels, at, given),
                "true_label": shares(places, labels, at, truth),
                "trustworthiness": float(trustworthiness(space, places, n_neighbors=15)),
                "cpu_s": round(seconds, 1),
            }
        )
    return table


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        scvec.demo(made)
        print(markdown(COLUMNS, [row for query in ("mouse", "human") for row in rows_of(Path(made), query)]))
