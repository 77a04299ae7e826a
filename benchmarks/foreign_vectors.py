"""How vectors of another model are told: limits chosen on some data sets, counted on others.

Prints, per data set and model, the foreign tries that were refused (20 of all cells, 20 of 100 cells) and
the true queries that were refused by mistake: cells of other donors or
batches, types alone, draws of 100 cells.
``python benchmarks/foreign_vectors.py DATA``, DATA the folder of the cells.
"""

from __future__ import annotations

import argparse
import itertools
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import anndata
import numpy as np
from sklearn.decomposition import NMF, PCA
from sklearn.exceptions import ConvergenceWarning

from scvec.encoders import obsm
from scvec.encoders.obsm import MIN_CELLS, VectorStatistics

#: Data set -> file, column of batches, batches of the reference, and whether limits are chosen on it.
SETS = {
    "Baron human, donors 1-2 to 3-4": ("pancreas_baron_human", "donor", ("human1", "human2"), True),
    "Tabula Muris, halves": ("tabula_muris_facs_8tissues", None, (), True),
    "pbmc3k, halves": ("pbmc3k_10x", None, (), True),
    "Baron human, donors 3-4 to 1-2": ("pancreas_baron_human", "donor", ("human3", "human4"), False),
    "Baron mouse, mouse 1 to 2": ("pancreas_baron_mouse", "donor", ("mouse1",), False),
    "Symphony, one chemistry to others": ("pbmc_3assays_symphony_1767genes", "batch", (), False),
    "Kang, control to stimulated": ("pbmc_kang_ifnb_1267genes", "condition", (), False),
}
N_TRIES = 20
#: Cells of a data set.
MOST = 1500


def cells_of(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return log expression of 500 genes, labels, who is of the reference, and folds of the reference."""
    file, column, own, _ = SETS[name]
    adata = anndata.read_h5ad(folder / f"{file}.h5ad")
    adata = adata[np.random.default_rng(1).permutation(adata.n_obs)[:MOST]]
    labels = adata.obs["cell_type"].astype(str).to_numpy()
    X = adata.X.toarray().astype(np.float64)
    if X.max() > 30:
        X = np.log1p(X / np.maximum(X.sum(axis=1, keepdims=True), 1e-9) * 1e4)
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 4, len(X)).astype(str)
    if column is not None and column in adata.obs:
        batch = adata.obs[column].astype(str).to_numpy()
    names = np.unique(batch)
    mine = np.isin(batch, own or names[: max(1, len(names) // 2)])
    folds = np.unique(batch[mine], return_inverse=True)[1]
    if len(np.unique(folds)) < 2:
        folds = rng.integers(0, 3, mine.sum())
    known = X[mine]
    most = np.argsort(-known.var(axis=0) / (known.mean(axis=0) + 1e-9))[:500]
    return X[:, most], labels, mine, folds


def components(X: np.ndarray, rows: np.ndarray, n: int = 30) -> np.ndarray:
    """Return principal components fitted on some cells."""
    Z = np.clip((X - X[rows].mean(axis=0)) / (X[rows].std(axis=0) + 1e-2), -10, 10)
    return PCA(n, random_state=0).fit(Z[rows]).transform(Z)


def network(Z: np.ndarray, seed: int, n: int = 10) -> np.ndarray:
    """Return the output of a network whose axes have no order, as of scVI; its weights are drawn."""
    rng = np.random.default_rng(seed)
    hidden = np.tanh(Z @ rng.normal(size=(Z.shape[1], 64)) / np.sqrt(Z.shape[1]))
    return hidden @ rng.normal(size=(64, n)) / 8.0


def models(X: np.ndarray, mine: np.ndarray) -> Iterator[tuple[str, np.ndarray, list[np.ndarray]]]:
    """Yield name, vectors of all cells by a model of the reference, and by other models."""
    ours, theirs = components(X, mine), components(X, ~mine)
    yield "components", ours, [theirs]
    Z = ours / ours.std()
    yield "network", network(Z, 0), [network(Z, seed) for seed in (1, 2, 3)]
    parts = [NMF(15, init="nndsvda", random_state=0, max_iter=60).fit(X[rows]) for rows in (mine, ~mine)]
    yield "factors", parts[0].transform(X), [parts[1].transform(X)]


def foreign(new: np.ndarray, others: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Return :data:`N_TRIES` sets of vectors that the model of the reference did not make."""
    dim = new.shape[1]
    tries = [*others, *(new * factor for factor in (0.1, 0.4, 2.5, 10.0)), -new]
    whitened = np.tanh(new / new.std(axis=0)) @ np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    tries += [whitened, new * rng.choice([-1.0, 1.0], dim)]
    tries += [new[:, rng.permutation(dim)] for _ in range(5)]
    while len(tries) < N_TRIES:
        tries.append(new @ np.linalg.qr(rng.normal(size=(dim, dim)))[0])
    return tries


def true_queries(new: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the cells, their types alone, and ten draws of 100."""
    names, sizes = np.unique(labels, return_counts=True)
    alone = [new[labels == name] for name, n in zip(names, sizes, strict=True) if n >= MIN_CELLS]
    return [new, *alone, *(new[rng.choice(len(new), min(100, len(new)), False)] for _ in range(10))]


def measured(folder: Path, name: str) -> list[dict]:
    """Return the measures of the tries of a data set, and what batches of its reference reach."""
    X, labels, mine, folds = cells_of(folder, name)
    codes, found = np.unique(labels, return_inverse=True)[1], []
    known = np.isin(labels, np.unique(labels[mine]))
    for model, ours, others in models(X, mine):
        rng, new = np.random.default_rng(0), ours[~mine & known]
        looks = VectorStatistics._of(ours[mine].astype(np.float32), codes[mine], 0)
        own = [(0.0, 0.0)]
        for fold in np.unique(folds):
            here, rest = folds == fold, folds != fold
            part = VectorStatistics._of(ours[mine][rest].astype(np.float32), codes[mine][rest], 0)
            seen = here & np.isin(codes[mine], codes[mine][rest])
            if seen.sum() >= MIN_CELLS:
                own.append(part.measures(ours[mine][seen].astype(np.float32)))
        tries = foreign(new, [o[~mine & known] for o in others], rng)
        few = rng.choice(len(new), min(100, len(new)), replace=False)
        tries += [vectors[few] for vectors in tries]
        queries = true_queries(new, labels[~mine & known], rng)
        found.append(
            {
                "model": model,
                "own": np.max(own, axis=0).tolist(),
                "foreign": [looks.measures(v.astype(np.float32)) for v in tries],
                "true": [looks.measures(v.astype(np.float32)) for v in queries],
            }
        )
    return found


def refused(one: dict, which: str, limits: tuple[float, float, float]) -> np.ndarray:
    """Return (n,) bool which tries are refused by limits FAR, WIDE and ROOM."""
    far, wide, room = limits
    most = np.maximum((far, wide), room * np.array(one["own"]))
    return (np.array(one[which]) > most).any(axis=1)


def main() -> None:
    """Choose and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--keep", type=Path, help="Keep the measures here, or read them.")
    asked = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    if asked.keep and asked.keep.exists():
        found = json.loads(asked.keep.read_text())
    else:
        found = {name: measured(asked.data, name) for name in SETS}
        if asked.keep:
            asked.keep.write_text(json.dumps(found))
    grid = list(
        itertools.product(np.arange(1.3, 2.6, 0.05), np.arange(1.2, 2.2, 0.05), (1.0, 1.1, 1.2, 1.3, 1.5))
    )

    def cost(limits: tuple[float, float, float]) -> float:
        """A refusal by mistake weighs as much as a foreign set that passes."""
        chosen = [one for name in SETS if SETS[name][3] for one in found[name]]
        return float(
            np.mean(
                [(~refused(o, "foreign", limits)).mean() + refused(o, "true", limits).mean() for o in chosen]
            )
        )

    costs = np.array([cost(limits) for limits in grid])
    best = [g for g, c in zip(grid, costs, strict=True) if c <= costs.min() + 1e-9]
    middle = np.median(best, axis=0)
    limits = min(best, key=lambda g: float(np.abs(np.array(g) - middle).sum()))
    print(f"chosen FAR {limits[0]:.2f}, WIDE {limits[1]:.2f}, ROOM {limits[2]:.1f}; {len(best)} are as good")
    print(f"in use {obsm.FAR}, {obsm.WIDE}, {obsm.ROOM}")
    for name in SETS:
        for one in found[name]:
            row = [name, "chosen on" if SETS[name][3] else "", one["model"]]
            for which in (limits, (obsm.FAR, obsm.WIDE, obsm.ROOM)):
                seen = {kind: refused(one, kind, which) for kind in ("foreign", "true")}
                row += [f"{int(v.sum())}/{len(v)}" for v in seen.values()]
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
