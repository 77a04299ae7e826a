"""Cells that nothing is wrong with."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

import scvec

__all__ = ["N_CELLS", "N_GENES", "TYPES", "good_adata", "good_file", "save"]

N_CELLS, N_GENES = 60, 300
TYPES = ("alpha", "beta", "ductal")


@cache
def gene_symbols(species: str = "human", n: int = N_GENES) -> tuple[str, ...]:
    """Symbols of well measured genes, from the demo data."""
    path = Path(scvec.__file__).parent / "data" / f"baron_{species}.h5ad"
    with h5py.File(path) as file:
        names = file["var"][file["var"].attrs["_index"]].asstr()[:]
        totals = np.bincount(file["X/indices"][:], weights=file["X/data"][:], minlength=len(names))
    return tuple(names[np.argsort(-totals, kind="stable")[:n]])


def good_adata(seed: int = 0, n_cells: int = N_CELLS, species: str = "human") -> anndata.AnnData:
    """Counts of three cell types that raise 30 genes each."""
    rng = np.random.default_rng(seed)
    names = gene_symbols(species)
    rate = np.tile(np.random.default_rng(99).gamma(1.0, 2.0, len(names)) + 0.2, (n_cells, 1))
    kind = np.arange(n_cells) % len(TYPES)
    for k in range(len(TYPES)):
        rate[kind == k, 30 * k : 30 * (k + 1)] *= 8
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical([TYPES[k] for k in kind]),
            "donor": [f"d{i % 2}" for i in range(n_cells)],
        },
        index=[f"cell-{i}" for i in range(n_cells)],
    )
    x = sp.csr_matrix(rng.poisson(rate).astype(np.float32))
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=pd.Index(names, dtype=object)))


def good_file(folder: Path, name: str = "good.h5ad", seed: int = 0) -> Path:
    """Write :func:`good_adata`."""
    return save(good_adata(seed), folder, name)


def save(adata: anndata.AnnData, folder: Path, name: str = "case.h5ad") -> Path:
    adata.write_h5ad(folder / name)
    return folder / name
