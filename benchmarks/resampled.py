"""Any number of cells, made of those of a real data set: drawn again and thinned, written as they are made.

The cells are Baron's human pancreas: each new one is one of them, drawn at random, of whose counts a random
share is kept, so that about one in twenty of its genes is left above zero. What such cells cost to read,
encode and search is what new ones would; how well they are told apart says nothing, and is not asked. Beyond
``DISTINCT`` cells the first ones come again, under other names: drawing them takes longer than reading them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import write_elem

SOURCE = "pancreas_baron_human.h5ad"
#: Genes above zero in a cell, of 20,000: 5%.
FILLED = 1000
BLOCK = 4096
DISTINCT = 25 * BLOCK


def make(
    path: Path,
    n: int,
    source: Path,
    *,
    seed: int = 0,
    n_genes: int | None = None,
    compression: str | None = None,
) -> None:
    """Write ``n`` cells to an h5ad (CSR, float32, labels and donors in obs), a block at a time.

    Parameters
    ----------
    source
        The h5ad with counts in X that cells are drawn from.
    n_genes
        Keep that many genes, those of most counts; all by default.
    """
    cells = anndata.read_h5ad(source)
    X = sp.csr_matrix(cells.X)
    genes = np.arange(X.shape[1])
    if n_genes is not None:
        genes = np.sort(np.argsort(-np.asarray(X.sum(axis=0)).ravel(), kind="stable")[:n_genes])
    X = X[:, genes].tocsr()
    rng = np.random.default_rng(seed)
    drawn = rng.integers(X.shape[0], size=DISTINCT)
    drawn = np.resize(drawn, n)
    share = kept_share(X)
    options: dict[str, Any] = {"compression": compression, "chunks": (2**17,), "maxshape": (None,)}
    with h5py.File(path, "w") as file:
        write_elem(file, "/", anndata.AnnData(obs=table(cells.obs, drawn), var=cells.var.iloc[genes][[]]))
        group = file.create_group("X")
        group.attrs["encoding-type"], group.attrs["encoding-version"] = "csr_matrix", "0.1.0"
        group.attrs["shape"] = np.array([n, len(genes)])
        data = group.create_dataset("data", (0,), dtype=np.float32, **options)
        indices = group.create_dataset("indices", (0,), dtype=np.int32, **options)
        counts = np.zeros(n + 1, dtype=np.int64)
        for start in range(0, n, BLOCK):
            rows = drawn[start : start + BLOCK]
            if start < DISTINCT:
                block = X[rows]
                left = rng.binomial(
                    block.data.astype(np.int64), np.repeat(share[rows], np.diff(block.indptr))
                )
                block = sp.csr_matrix((left.astype(np.float32), block.indices, block.indptr), block.shape)
                block.eliminate_zeros()
                lengths, values, columns = np.diff(block.indptr), block.data, block.indices
            else:
                first = start % DISTINCT
                lengths = counts[first + 1 : first + 1 + len(rows)]
                a = int(counts[: first + 1].sum())
                b = a + int(lengths.sum())
                values, columns = data[a:b], indices[a:b]
            for stored, new in ((data, values), (indices, columns)):
                stored.resize((len(stored) + len(new),))
                stored[-len(new) :] = new
            counts[start + 1 : start + 1 + len(rows)] = lengths
        group.create_dataset("indptr", data=np.cumsum(counts))


def table(obs: pd.DataFrame, drawn: np.ndarray[Any, Any]) -> pd.DataFrame:
    """Return label and donor of the cells drawn, under names of their own."""
    columns = [name for name in ("cell_type", "donor", "batch") if name in obs.columns]
    found = obs[columns].iloc[drawn].copy()
    found.index = pd.Index([f"cell_{i}" for i in range(len(drawn))])
    return found


def kept_share(X: sp.csr_matrix[Any]) -> np.ndarray[Any, Any]:
    """Return (n,) the share of each cell's counts to keep so that ``FILLED`` of its genes stay, at most 1."""
    low, high = np.zeros(X.shape[0]), np.ones(X.shape[0])
    row = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
    for _ in range(20):
        middle = (low + high) / 2
        expected = np.bincount(row, 1.0 - (1.0 - middle[row]) ** X.data, minlength=X.shape[0])
        low, high = np.where(expected < FILLED, middle, low), np.where(expected < FILLED, high, middle)
    return (low + high) / 2
