"""A few cells kept with a reference, to prove later that its encoder still gives the vectors stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.types import CellChunk

__all__ = ["N_PROBES", "probe_cells", "probe_tensors"]

N_PROBES = 16


def probe_tensors(chunk: CellChunk, rows: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    """Return arrays that hold cells (n, n_genes) and their row numbers in the reference."""
    X = chunk.X
    return {
        "probe.rows": rows,
        "probe.data": X.data,
        "probe.indices": X.indices.astype(np.int32),
        "probe.indptr": X.indptr.astype(np.int64),
    }


def probe_cells(
    tensors: dict[str, npt.NDArray[Any]], n_genes: int
) -> tuple[CellChunk, npt.NDArray[np.int64]]:
    """Return the cells and their row numbers."""
    import scipy.sparse as sp

    rows = tensors["probe.rows"]
    X = sp.csr_matrix(
        (tensors["probe.data"], tensors["probe.indices"], tensors["probe.indptr"]), shape=(len(rows), n_genes)
    )
    return CellChunk(X, np.ones(n_genes, dtype=bool)), rows
