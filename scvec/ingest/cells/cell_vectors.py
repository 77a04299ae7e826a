"""Read cells by the vectors in an array of ``obsm``, in chunks, with the interface of expression sources."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from scvec.base.errors import InputError, reading
from scvec.base.resources import parse_memory
from scvec.ingest.cells.expression import ExpressionState
from scvec.ingest.cells.matrix import is_group, open_matrix
from scvec.ingest.cells.readers import contents_of
from scvec.ingest.cells.readers.anndata import contents_of_adata
from scvec.ingest.cells.source import CellSource, unique_names

if TYPE_CHECKING:
    from anndata import AnnData

    from scvec.ingest.cells.readers import Contents

__all__ = ["VectorSource", "open_cells"]

#: Largest number of dimensions: the most genes that an encoder uses. A wider array is a matrix of genes.
MAX_DIM = 3000
#: Values above this, after division by the scale of the reference, come from another model.
LARGEST = 6e4


def open_cells(
    cells: str | os.PathLike[str] | AnnData,
    obsm: str | None = None,
    *,
    layer: str | None = None,
    memory: str | int | None = None,
    columns: bool = True,
    values: str = "auto",
) -> CellSource:
    """Open cells by their vectors in ``obsm``, or by their genes if ``obsm`` is None."""
    if obsm is None:
        return CellSource.open(cells, layer=layer, memory=memory, columns=columns, values=values)
    limit = parse_memory(memory)
    is_file = isinstance(cells, str | os.PathLike)
    contents = contents_of(cells, limit) if is_file else contents_of_adata(cells)
    try:
        return VectorSource(contents, obsm, limit, columns=columns)
    except BaseException:
        contents.close()
        raise


class VectorSource(CellSource):
    """Cells whose dimensions of ``obsm[key]`` take the place of genes.

    Rows are read from the file on demand.

    Attributes
    ----------
    key
        Key of ``obsm``.
    scale
        Divisor of the vectors: the scale of the reference.
    variance
        Variances of the components, if scanpy fitted the PCA on this file; else empty.
    """

    def __init__(self, contents: Contents, key: str, memory: int, *, columns: bool = True) -> None:
        self.path, self.name, self.memory, self.key = contents.path, contents.name, memory, key
        self._contents, self._layer, self._values = contents, f"obsm/{key}", "auto"
        self._table, self.n_obs = contents.table if columns else contents.table[[]], contents.n_obs
        self.batches = contents.table[[]]
        self.names, renamed = unique_names(contents.names)
        self.notes = [*contents.notes, *renamed]
        where, item = f"{self.name} (obsm/{key})", _array(contents, key)
        dim = int(item.shape[1])
        self._reader = open_matrix(item, where, self.n_obs, dim, memory)
        message = f"used the vectors of {dim} dimensions in obsm[{key!r}], unchanged"
        self.state = ExpressionState("vectors", f"obsm/{key}", message=message)
        self.var_names = [f"{key}:{number}" for number in range(dim)]
        self.var = pd.DataFrame(index=self.var_names)
        self.feature_mask, self.codes, self.scale = np.ones(dim, dtype=bool), None, 1.0
        self.totals, self.gene_totals = np.ones(self.n_obs), np.ones(dim)
        self.n_genes_detected = np.full(self.n_obs, dim, dtype=np.int64)
        self.variance = _variance(contents, key)

    def chunks(
        self, size: int | None = None, rows: npt.NDArray[np.integer[Any]] | None = None
    ) -> Iterator[sp.csr_matrix[Any]]:
        """Yield vectors divided by ``scale``, (n, dim) CSR float32, as :meth:`CellSource.chunks`.

        Raises
        ------
        InputError
            If a vector is not finite.
        """
        for block in super().chunks(size, rows):
            block.data /= np.float32(self.scale)
            if not (np.abs(block.data) < LARGEST).all():  # NaN too
                raise InputError(
                    "some vectors are not finite, or much longer than the vectors of the reference",
                    f"{self.name} (obsm/{self.key})",
                    "remove these cells, or compute the vectors again",
                    code="values-not-finite",
                )
            yield block

    def some(self, most: int) -> npt.NDArray[np.float32]:
        """Return the vectors, divided by ``scale``, of at most ``most`` cells spread over the file."""
        rows = np.unique(np.linspace(0, self.n_obs - 1, min(most, self.n_obs)).astype(np.int64))
        return np.concatenate([block.toarray() for block in self.chunks(rows=rows)])


def _array(contents: Contents, key: str) -> Any:
    """Return the array of a key, not yet read; raise InputError if it is missing or not two-dimensional."""
    where = f"{contents.name} (obsm/{key})"
    with reading(where):
        keys = sorted(str(k) for k in contents.obsm)
        item: Any = contents.obsm[key] if key in keys else None
    if item is None:
        known = f"the file has: {', '.join(keys[:12])}" if keys else "the file has no obsm"
        what = f"the file has no obsm[{key!r}]"
        raise InputError(what, contents.name, f"give the key of the vectors; {known}", code="unknown-obsm")
    item = item.to_numpy() if isinstance(item, pd.DataFrame) else item
    shape: tuple[int, ...] = getattr(item, "shape", ())
    if is_group(item) or len(shape) != 2 or not 1 < shape[1] <= MAX_DIM:
        what = f"obsm[{key!r}] is not an array with 2 to {MAX_DIM:,} columns"
        raise InputError(what, where, "store the vectors as a plain array", code="wrong-format")
    return item


def _variance(contents: Contents, key: str) -> tuple[float, ...]:
    """Return the variances of scanpy's principal components; empty if ``key`` is not scanpy's PCA."""
    if key != "X_pca" or contents.variance is None:
        return ()
    with reading(contents.name, "uns/pca/variance"):
        if getattr(contents.variance, "ndim", 0) != 1 or len(contents.variance) > MAX_DIM:
            return ()
        return tuple(float(v) for v in np.asarray(contents.variance[:], dtype=np.float64))
