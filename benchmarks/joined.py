"""Several references at once: accuracy of the joined answer beside that of the right reference alone.

Each case cuts a data set in two references. `ALIKE` of `scvec.workflows.query_many` was chosen on the first
two cases; the others are reported only.

    python benchmarks/joined.py [--cells 60] [CASE ...]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import numpy.typing as npt
from tables import markdown

import scvec

DATA = Path(os.environ.get("SCVEC_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
COLUMNS = ("case", "reference", "cells", "alone", "joined", "others_sure")
ISLET = ("alpha", "beta", "delta", "gamma")
LYMPHOID = ("Naive CD4 T", "Memory CD4 T", "CD8 T", "B", "NK")
Case = tuple[dict[str, tuple[Any, str | None]], Any, dict[str, Any]]


def read(name: str) -> tuple[Any, Any]:
    """Return cells, and their types as text."""
    adata = anndata.read_h5ad(DATA / name)
    return adata, adata.obs["cell_type"].astype(str)


def cut(name: str, known: Callable[[Any, Any], Any], first: Callable[[Any, Any], Any]) -> Case:
    """Cut a data set into two references by type; cells that are not known are the query."""
    adata, label = read(name)
    learned = np.asarray(known(adata, label))
    counts = label[learned].value_counts()
    enough = label.isin(counts[counts >= 5].index).to_numpy()
    one = np.asarray(first(label, counts))
    batch = "donor" if "donor" in adata.obs and adata.obs["donor"][learned].nunique() > 1 else None
    sides = {"first": one, "second": ~one}
    references = {n: (adata[learned & enough & side].copy(), batch) for n, side in sides.items()}
    query = adata[~learned & enough].copy()
    return references, query, {n: side[~learned & enough] for n, side in sides.items()}


def donors(*names: str) -> Callable[[Any, Any], Any]:
    """Return what tells whether cells are of donors."""
    return lambda adata, _: adata.obs["donor"].astype(str).isin(names)


def half(seed: int) -> Callable[[Any, Any], Any]:
    """Return what tells whether cells are of a random half."""
    return lambda adata, _: np.random.default_rng(seed).random(adata.n_obs) < 0.5


def tissues(one: str, other: str) -> Case:
    """Return references of two tissues of Tabula Muris, a half of the cells each."""
    adata, _ = read("tabula_muris_facs_8tissues.h5ad")
    tissue = adata.obs["tissue"].astype(str).str.lower()
    sides = {name: tissue.str.contains(name).to_numpy() for name in (one, other)}
    learned, used = half(2)(adata, None), np.any(list(sides.values()), axis=0)
    references = {n: (adata[learned & side].copy(), None) for n, side in sides.items()}
    return references, adata[~learned & used].copy(), {n: s[~learned & used] for n, s in sides.items()}


def pancreas_and_blood() -> Case:
    """Return references of two tissues without a type in common."""
    blood, _ = read("pbmc3k_10x.h5ad")
    islets, _ = read("pancreas_baron_human.h5ad")
    first = np.asarray(donors("human1", "human2")(islets, None))
    known = np.random.default_rng(0).permutation(blood.n_obs) < blood.n_obs // 2
    mixed = anndata.concat([islets[~first], blood[~known]], join="inner")
    mixed.obs_names_make_unique()
    of = np.arange(mixed.n_obs) < int((~first).sum())
    references = {"pancreas": (islets[first].copy(), "donor"), "blood": (blood[known].copy(), None)}
    return references, mixed, {"pancreas": of, "blood": ~of}


CASES: dict[str, Callable[[], Case]] = {
    "baron, islet and rest": lambda: cut(
        "pancreas_baron_human.h5ad", donors("human1", "human2"), lambda label, _: label.isin(ISLET)
    ),
    "pbmc3k, lymphoid and rest": lambda: cut(
        "pbmc3k_10x.h5ad", half(1), lambda label, _: label.isin(LYMPHOID)
    ),
    "baron mouse, islet and rest": lambda: cut(
        "pancreas_baron_mouse.h5ad", donors("mouse1"), lambda label, _: label.isin(ISLET)
    ),
    "baron, every second type": lambda: cut(
        "pancreas_baron_human.h5ad",
        donors("human3", "human4"),
        lambda label, counts: label.isin(list(counts.index)[::2]),
    ),
    "pancreas and blood": pancreas_and_blood,
    "mouse liver and lung": lambda: tissues("liver", "lung"),
    "mouse kidney and heart": lambda: tissues("kidney", "heart"),
    "mouse brain and muscle": lambda: tissues("brain", "muscle"),
}


def fewer(adata: Any, most: int | None) -> npt.NDArray[np.int64]:
    """Return the numbers of at most so many cells of each type, drawn."""
    if most is None:
        return np.arange(adata.n_obs)
    label, rng = adata.obs["cell_type"].astype(str).to_numpy(), np.random.default_rng(4)
    return np.sort(
        np.concatenate([rng.permutation(np.flatnonzero(label == t))[:most] for t in np.unique(label)])
    )


def rows(case: str, most: int | None) -> list[dict[str, Any]]:
    """Measure a case with at most so many cells of each type in a reference and in the query."""
    references, query, sides = CASES[case]()
    references = {n: (a[fewer(a, most)].copy(), batch) for n, (a, batch) in references.items()}
    kept = fewer(query, most)
    query, sides = query[kept].copy(), {n: side[kept] for n, side in sides.items()}
    of = query.obs["cell_type"].astype(str).to_numpy()
    with tempfile.TemporaryDirectory() as folder:
        for name, (adata, batch) in references.items():
            scvec.ingest_cells(folder, [adata], name=name, label_key="cell_type", batch_key=batch)
        joint: Any = scvec.query(folder, query, reference=tuple(references))
    return [
        {
            "case": case,
            "reference": name,
            "cells": int(own.sum()),
            "alone": float(np.mean(joint.annotations[name].label[own] == of[own])),
            "joined": float(np.mean(joint.label[own] == of[own])),
            "others_sure": float(
                np.mean((joint.reference[own] != name) & (joint.status[own] == "confident"))
            ),
        }
        for name, own in sides.items()
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", nargs="*", help="of: " + "; ".join(CASES))
    parser.add_argument("--cells", type=int, metavar="N", help="of each type at most")
    asked = parser.parse_args()
    for number, case in enumerate(asked.case or CASES):
        table = markdown(COLUMNS, rows(case, asked.cells))
        print(table if number == 0 else "\n".join(table.splitlines()[2:]), flush=True)


if __name__ == "__main__":
    main()
