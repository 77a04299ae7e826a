"""Read loom files: a matrix of genes x cells with attributes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd

from scvec.base.errors import InputError, ResourceError, reading
from scvec.base.results import count_text
from scvec.ingest.cells.readers import Contents, Place, reader
from scvec.ingest.cells.readers.anndata import tidy_table
from scvec.ingest.cells.readers.checks import Given, hard_items
from scvec.ingest.cells.transpose import Origin, Piece, Transposed, by_cell, index_dtype, values_within

__all__ = ["read_loom"]

_PARTS = ("matrix", "layers", "row_attrs", "col_attrs")
_CELLS = ("CellID", "obs_names", "cell_id", "cellid", "barcode", "Barcode", "cell_names", "barcodes", "index")
_GENES = ("Gene", "var_names", "gene", "gene_name", "GeneName", "Symbol", "gene_names", "Accession", "index")
_ANEW = (
    "write it again with loompy.create(), or convert it: anndata.io.read_loom(FILE).write_h5ad('out.h5ad')"
)


def _is_loom(given: Given) -> bool:
    return (
        given.file is not None
        and "matrix" in given.file
        and bool({"row_attrs", "col_attrs"} & set(given.file))
    )


@reader("loom", "a loom file", sniff=_is_loom, parts=_PARTS)
def read_loom(given: Given, memory: int) -> Contents:
    """List the content of a checked, open loom file: ``matrix`` as X, and its layers.

    Raises
    ------
    InputError
        If parts are missing or inconsistent.
    """
    file, path = given.hdf5, str(given.path)
    with reading(path):
        found = hard_items(file)
        tables = [found.get(name) for name in ("col_attrs", "row_attrs")]
        matrix, layers = found["matrix"], found.get("layers", {})
        if not all(isinstance(table, h5py.Group) for table in tables):
            raise InputError(
                "this loom file has no row_attrs or no col_attrs", path, _ANEW, code="wrong-format"
            )
        if not isinstance(matrix, h5py.Dataset) or matrix.ndim != 2:
            raise InputError(
                "the matrix of this loom file is not a table of numbers", path, _ANEW, code="wrong-format"
            )
        n_genes, n_cells = (int(n) for n in matrix.shape)
        obs, obs_notes = _table(tables[0], n_cells, _CELLS, "cell", path, memory)
        var, var_notes = _table(tables[1], n_genes, _GENES, "gene", path, memory)
        stored = {"X": matrix} | {f"layers/{name}": item for name, item in hard_items(layers).items() if name}
    places = {
        name: Place(cache(partial(_by_cell, item, f"{path} ({name})", memory)), lambda: (var, var_notes))
        for name, item in stored.items()
        if isinstance(item, h5py.Dataset) and item.shape == matrix.shape
    }
    return Contents(path, obs, places, given.path, obs_notes, file.close)


def _table(
    group: Any, n: int, names: tuple[str, ...], what: str, path: str, memory: int
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return the table of attributes of the cells or genes, with their names as index; and notes."""
    columns: dict[str, Any] = {}
    claimed, odd = 0, 0
    for name, item in hard_items(group).items():
        if not isinstance(item, h5py.Dataset) or item.ndim != 1:
            odd += 1  # an embedding or a graph
            continue
        if item.shape[0] != n:
            raise InputError(f"{name} has {item.shape[0]:,} values for {n:,} {what}s", path, _ANEW)
        claimed += item.size * max(item.dtype.itemsize, 64)
        if claimed > memory // 2:
            raise ResourceError(
                f"the attributes of the {what}s do not fit into the memory", path, "raise --memory"
            )
        text = h5py.check_string_dtype(item.dtype) is not None
        columns[name] = item.asstr(errors="replace")[:] if text else item[:]
    index = next((name for name in names if name in columns), None)
    notes = [f"ignored {count_text(odd, 'attribute')} of the {what}s with several dimensions"] if odd else []
    if index is None and what == "gene":
        shown = ", ".join(sorted(columns)[:5]) or "nothing"
        fix = "store the gene names in row_attrs/Gene"
        raise InputError(f"this loom file has no gene names (row_attrs: {shown})", path, fix, code="no-genes")
    if index is None:
        notes.append("the cells have no names (col_attrs/CellID): they were numbered")
    elif index not in ("CellID", "Gene"):
        notes.append(f"used {index} as names of the {what}s")
    labels = columns.pop(index) if index else [f"cell{i + 1}" for i in range(n)]
    table, tidy_notes = tidy_table(pd.DataFrame(columns, index=pd.Index(labels, dtype=object)), f"{what}s")
    return table, (*notes, *tidy_notes)


def _by_cell(matrix: h5py.Dataset, where: str, memory: int) -> Transposed:
    """Transpose a matrix of genes x cells: count the values of each cell, then put them in place."""
    n_genes, n_cells = (int(n) for n in matrix.shape)
    if matrix.dtype.kind not in "biuf":
        raise InputError(f"the matrix holds {matrix.dtype} values, not real numbers", where, _ANEW)
    counts = np.zeros(n_cells, np.int64)
    with reading(where):
        for _, first, tile in _tiles(matrix, memory):
            counts[first : first + tile.shape[1]] += np.count_nonzero(tile, axis=0)
    origin = Origin(where, "is stored by gene", "convert it to h5ad on a larger machine")
    dtype = np.dtype(np.float32 if matrix.dtype.itemsize <= 4 else np.float64)
    return by_cell(_values(matrix, where, dtype, memory), counts, n_genes, dtype, origin, memory)


def _tiles(matrix: h5py.Dataset, memory: int) -> Iterator[tuple[int, int, npt.NDArray[Any]]]:
    """Yield the matrix in tiles of whole HDF5 chunks, each with its first gene and cell."""
    most = values_within(memory)
    chunk = matrix.chunks or (1, min(most, matrix.shape[1]))
    # At least one chunk; if memory allows, more cells, then more genes.
    width = max(1, most // chunk[0] // chunk[1]) * chunk[1]
    width = min(width, matrix.shape[1])
    height = max(1, most // width // chunk[0]) * chunk[0]
    for gene in range(0, matrix.shape[0], height):
        for cell in range(0, matrix.shape[1], width):
            yield gene, cell, matrix[gene : gene + height, cell : cell + width]


def _values(matrix: h5py.Dataset, where: str, dtype: np.dtype[Any], memory: int) -> Iterator[Piece]:
    kinds = [index_dtype(n) for n in matrix.shape]
    for gene, cell, tile in _tiles(matrix, memory):
        genes, cells = np.nonzero(tile)
        yield (
            (cells + cell).astype(kinds[1]),
            (genes + gene).astype(kinds[0]),
            tile[genes, cells].astype(dtype),
        )
