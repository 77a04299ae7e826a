"""Some real cells, and what every way of keeping them must give back."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from scvec.ingest.cells.source import CellSource
from scvec.ingest.cells.write import write_annotated

DATA = Path(__file__).parents[1] / "scvec" / "data" / "baron_human.h5ad"


def some_cells(n: int = 40, n_genes: int = 150) -> anndata.AnnData:
    """Return counts of real cells, the genes with most of them, in the order of their names."""
    adata = anndata.read_h5ad(DATA)[:n]
    most = np.sort(np.argsort(-np.asarray(adata.X.sum(axis=0)).ravel())[:n_genes])
    return adata[:, most].copy()


def assert_same(
    path: Path | str, adata: anndata.AnnData, *, labels: str | None = None, **options
) -> list[str]:
    """Compare all values, names and labels of cells with those that were kept; return the notes."""
    with CellSource.open(path, **options) as source:
        assert source.obs_names == adata.obs_names.tolist()
        assert source.var_names == adata.var_names.tolist()
        X = source.stored_rows(np.arange(source.n_obs)).toarray()
        np.testing.assert_array_equal(X, adata.X.toarray())
        assert source.state.kind == "counts"
        if labels is not None:
            assert source.obs[labels].astype(str).tolist() == adata.obs["cell_type"].astype(str).tolist()
        return source.notes


def assert_written(path: Path | str, adata: anndata.AnnData, out: Path) -> anndata.AnnData:
    """Annotate cells and read the h5ad that this writes."""
    write_annotated(path, out, pd.DataFrame({"told": np.arange(adata.n_obs)}))
    written = anndata.read_h5ad(out)
    np.testing.assert_array_equal(written.X.toarray(), adata.X.toarray())
    assert written.obs_names.tolist() == adata.obs_names.tolist()
    assert written.obs["told"].tolist() == list(range(adata.n_obs))
    return written
