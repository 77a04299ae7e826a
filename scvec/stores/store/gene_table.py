"""The genes of a space, in step with their vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvec.base.errors import InputError
from scvec.base.types import Float32
from scvec.stores.index.distances import checked_vectors

if TYPE_CHECKING:
    import pandas as pd

    from scvec.stores.store.reference_reader import StoredSpace

__all__ = ["GENE_COLUMNS", "checked_genes", "merged_genes"]

GENE_COLUMNS = ("gene_id", "species", "symbol", "text_sha256")


def checked_genes(genes: pd.DataFrame, vectors: Float32, dim: int) -> tuple[pd.DataFrame, Float32]:
    """Return table and vectors of n genes as they are stored.

    Raises
    ------
    InputError
        A column is missing, a gene is there twice, or the vectors are not finite (n, dim) float32.
    """
    missing = [c for c in GENE_COLUMNS if c not in genes.columns]
    if missing:
        raise InputError(f"the table of genes lacks the columns {', '.join(missing)}")
    table = genes.loc[:, list(GENE_COLUMNS)].reset_index(drop=True)
    ready = checked_vectors(vectors, dim, "gene vectors")
    if len(table) != len(ready):
        raise InputError(f"{len(table):,} genes but {len(ready):,} vectors")
    twice = table["gene_id"].duplicated()
    if twice.any():
        raise InputError(f"gene {table['gene_id'][twice].iloc[0]} is there twice")
    return table, ready


def merged_genes(
    old: StoredSpace | None, table: pd.DataFrame, vectors: Float32
) -> tuple[pd.DataFrame, Float32]:
    """Return the genes of ``old`` that ``table`` does not name, and those of ``table``, sorted by gene_id."""
    import pandas as pd

    if old is not None:
        keep = (~old.genes["gene_id"].isin(table["gene_id"])).to_numpy()
        table = pd.concat([old.genes.loc[keep], table], ignore_index=True)
        vectors = np.concatenate([old.vectors[keep], vectors])
    order = np.argsort(table["gene_id"].to_numpy(dtype=str), kind="stable")
    return table.iloc[order].reset_index(drop=True), np.ascontiguousarray(vectors[order])
