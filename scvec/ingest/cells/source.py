"""Cells of a file, a folder or an AnnData object, checked, normalised and handed out in chunks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from scvec.base import arrays
from scvec.base.arrays import Packed, blocks, release
from scvec.base.resources import parse_memory
from scvec.base.results import count_text
from scvec.ingest.cells.choice import Choice, choose, gene_name_candidates
from scvec.ingest.cells.contents import Contents, named
from scvec.ingest.cells.expression import Codes, ExpressionState, normalize
from scvec.ingest.cells.label_columns import labels
from scvec.ingest.cells.matrix import is_only_here, open_matrix
from scvec.ingest.cells.readers import contents_of
from scvec.ingest.cells.readers.anndata import contents_of_adata
from scvec.ingest.cells.values import check_values

if TYPE_CHECKING:
    from anndata import AnnData

    from scvec.ingest.cells.matrix import MatrixReader

__all__ = ["CellSource", "FileRows", "RowsRecipe", "labels", "parse_memory", "recipe_of"]


# Columns of obs that say which sample a cell is of.
_BATCH = re.compile(
    r"(batch|sample|donor|dataset|study|library)([ _.-]?(id|name|key|label))?|orig[._]ident", re.IGNORECASE
)


@dataclass(frozen=True)
class RowsRecipe:
    """What another process needs to read the cells of a file as :class:`CellSource` does, without a pass.

    Attributes
    ----------
    path
        The file, absolute.
    size, mtime_ns
        Of the file: another one of the same name is not taken for it.
    state, feature_mask, totals, codes
        As of the source.
    """

    path: str
    size: int
    mtime_ns: int
    state: ExpressionState
    feature_mask: npt.NDArray[np.bool_]
    totals: npt.NDArray[np.float64]
    codes: Codes | None = None

    def is_here(self) -> bool:
        """Return whether this machine sees the same file."""
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == (self.size, self.mtime_ns)


def recipe_of(source: CellSource) -> RowsRecipe | None:
    """Return how to read a source elsewhere; None where that would cost more than sending its cells.

    That is so for AnnData objects in memory, and for CSC matrices, which each process
    would have to transpose. Folders are many files, of which nobody could tell that they are the same ones.
    """
    if source.path is None or is_only_here(source.reader) or not os.path.isfile(source.path):
        return None
    found = os.stat(source.path)
    return RowsRecipe(
        os.path.abspath(source.path),
        found.st_size,
        found.st_mtime_ns,
        source.state,
        source.feature_mask,
        np.asarray(source.totals),
        None if source.codes is None else np.asarray(source.codes),
    )


class FileRows:
    """An open file, and how to read its cells.

    Parameters
    ----------
    memory
        Bytes that reading may use.

    Raises
    ------
    InputError
        If the file cannot be read any more.
    """

    def __init__(self, recipe: RowsRecipe, memory: int) -> None:
        self._recipe = recipe
        contents = contents_of(recipe.path, memory)
        self.close = contents.close
        place = recipe.state.where
        shape = len(recipe.totals), len(recipe.feature_mask)
        self._reader = open_matrix(contents.places[place].item, f"{contents.name} ({place})", *shape, memory)
        self._genes = None if recipe.feature_mask.all() else np.flatnonzero(recipe.feature_mask)

    def rows(self, first: int, last: int) -> sp.csr_matrix[Any]:
        """Return cells ``first`` to ``last`` as ``CellSource.chunks`` does, (n, n_vars) CSR float32."""
        block = self._reader.rows(first, last)
        kept = block if self._genes is None else block[:, self._genes]
        recipe = self._recipe
        codes = None if recipe.codes is None else recipe.codes[first:last]
        return normalize(kept, recipe.state, recipe.totals[first:last], codes)


# Rows of a chunk that are this close are read in one go, and those between thrown away.
_GAP = 64
#: Share of the memory that the cells handled in one go may take. Up to four chunks are on their way at a
#: time (:mod:`scvec.base.parallel`), and what is made of one may be several times as large.
_SHARE = 16
#: Genes below which a barcode is hardly a cell, and the barcodes and their fraction from which that is told.
_POOR, _MANY, _MOSTLY = 50, 1000, 0.8


class CellSource:
    """Labelled or new cells, one format whatever the file holds.

    Open with :meth:`open`. All gene-wise attributes are over the genes that are kept, in file order;
    ``feature_mask`` says which of the features of the file those are.

    Attributes
    ----------
    path
        The file, or None for an AnnData object in memory.
    name
        What to call it in messages.
    n_obs, n_vars
        Number of cells, and of genes kept.
    names
        Names of the cells, unique, in little memory.
    batches
        The columns of obs that are named as those of samples, rows by number.
    var
        Table of the genes kept.
    var_names
        Names of the genes kept, as they are: they may repeat.
    feature_mask
        (n_features,) bool over the features of the matrix used.
    state
        What the values are and what is done about it.
    notes
        Lines for people, in order.
    totals
        (n_obs,) float64 counts of each cell over its genes (sums of linear values where there are none).
    n_genes_detected
        (n_obs,) int64 genes of each cell above zero.
    gene_totals
        (n_vars,) float64 counts of each gene over all cells (linear values where there are no counts).
    codes
        (n_obs,) uint8 numbers of the cells' scales in ``state.scales``; None where all are on one.
    memory
        Bytes that may be used.
    """

    path: Path | None
    name: str
    names: Packed
    batches: pd.DataFrame
    var: pd.DataFrame
    var_names: list[str]
    feature_mask: npt.NDArray[np.bool_]
    state: ExpressionState
    notes: list[str]
    totals: npt.NDArray[np.float64]
    n_genes_detected: npt.NDArray[np.int64]
    gene_totals: npt.NDArray[np.float64]
    codes: Codes | None

    def __init__(
        self,
        contents: Contents,
        *,
        layer: str | None,
        memory: int,
        columns: bool = True,
        values: str = "auto",
    ) -> None:
        self.path, self.name, self.memory = contents.path, contents.name, memory
        self._contents, self._layer, self._values = contents, layer, values
        self.batches = contents.table[[c for c in contents.table.columns if _BATCH.fullmatch(str(c))]]
        if not columns:
            contents.table = contents.table[[]]
        self._table, self.n_obs = contents.table, contents.n_obs
        self.names, self._renamed = _unique(contents.names)
        self.use(layer)

    def use(self, place: str | None, *why: str) -> None:
        """Read every value of another matrix of the file, or of the best one where none is named.

        Parameters
        ----------
        why
            Notes on the reason.

        Raises
        ------
        InputError
            If its values cannot be used; the source is then as it was.
        """
        choice, chosen = choose(self._contents, place, self.memory, self._values)
        self._reader, self.state = choice.reader, choice.state
        self.var, self.var_names, self.feature_mask = choice.var, choice.var_names, choice.feature_mask
        self.totals, self.gene_totals, self.codes = choice.totals, choice.gene_totals, choice.codes
        self.n_genes_detected = choice.n_genes_detected
        self.notes = [*self._contents.notes, *self._renamed, *chosen, *why, *_oddities(choice)]

    def other_names(self) -> dict[str, dict[str, list[str]]]:
        """Return the names of genes (:meth:`gene_name_candidates`) of the matrices that may be used as well.

        There are none where the user named a layer.
        """
        if self._layer is not None:
            return {}
        places = {name: place for name, place in self._contents.places.items() if name != self.state.where}
        tables = {name: place.var()[0] for name, place in places.items()}
        return {name: gene_name_candidates(list(var.index), var) for name, var in tables.items()}

    @classmethod
    def open(
        cls,
        path_or_adata: str | os.PathLike[str] | AnnData,
        *,
        layer: str | None = None,
        memory: str | int | None = None,
        columns: bool = True,
        values: str = "auto",
    ) -> CellSource:
        """Check a file or object, find usable values in it, and read every value once.

        Parameters
        ----------
        path_or_adata
            A file or folder of any format that has a reader (:mod:`scvec.ingest.cells.readers`), or an
            AnnData object (also a backed one); never changed.
        layer
            Where the values are: a layer, ``"X"`` or ``"raw"``. Found out where not given.
        memory
            Bytes that may be used, as a number or like ``"4G"``; half of what is free where not given.
        columns
            Whether ``obs`` is going to be asked for its columns; else they are checked and let go.
        values
            What the values are (:data:`scvec.ingest.cells.values.VALUES`); ``auto`` finds it out.

        Raises
        ------
        InputError
            If the file or its values cannot be used.
        ResourceError
            If the file needs more memory than may be used.
        """
        check_values(values)
        limit = parse_memory(memory)
        options: dict[str, Any] = {"layer": layer, "memory": limit, "columns": columns, "values": values}
        if not isinstance(path_or_adata, str | os.PathLike):
            return cls(contents_of_adata(path_or_adata), **options)
        contents = contents_of(path_or_adata, limit)
        try:
            return cls(contents, **options)
        except BaseException:
            contents.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._contents.close()

    def __enter__(self) -> CellSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def reader(self) -> MatrixReader:
        """The matrix used, over all features of the file."""
        return self._reader

    @property
    def obs_names(self) -> list[str]:
        """Names of the cells, unique."""
        return list(self.names.to_array())

    @property
    def obs(self) -> pd.DataFrame:
        """The table of the cells, its index unique; made anew each time."""
        return named(self._table, self.names)

    @property
    def n_vars(self) -> int:
        """Number of genes kept."""
        return len(self.var_names)

    @property
    def chunk_size(self) -> int:
        """Cells that are handled in one go within the memory: 2,048, or fewer where they are large."""
        return self._reader.rows_within(self.memory // _SHARE)

    def take_for(self, state: ExpressionState) -> None:
        """Take the values for something else, where nothing but a reference tells what they are."""
        self.notes = [state.message if note == self.state.message else note for note in self.notes]
        self.state = state

    def stored_rows(self, rows: npt.NDArray[np.integer[Any]]) -> sp.csr_matrix[Any]:
        """Return cells as they are stored, (n, n_vars) CSR float64."""
        return self._genes_of(self._take(np.asarray(rows, np.int64)))

    def gene_name_candidates(self) -> dict[str, list[str]]:
        """Return lists of names for the genes kept: ``"index"`` (``var_names``), then columns of ``var``."""
        return gene_name_candidates(self.var_names, self.var)

    def chunks(
        self, size: int | None = None, rows: npt.NDArray[np.integer[Any]] | None = None
    ) -> Iterator[sp.csr_matrix[Any]]:
        """Yield normalised cells, (n, n_vars) CSR float32 log1p CP10k with n <= ``size``.

        Parameters
        ----------
        size
            Cells in a chunk, :attr:`chunk_size` where not given. The values of a cell do not depend on it.
        rows
            Numbers of the cells wanted, in the order wanted; all in file order where not given. Ascending
            numbers are read fastest.
        """
        size = self.chunk_size if size is None else size
        if size < 1:
            raise ValueError(f"size must be positive, not {size}")
        if rows is not None and len(rows) and (np.min(rows) < 0 or np.max(rows) >= self.n_obs):
            raise IndexError(f"rows must lie in 0 to {self.n_obs - 1}")
        for some in blocks(self.n_obs if rows is None else len(rows), size):
            part = np.arange(some.start, some.stop) if rows is None else np.asarray(rows[some], np.int64)
            totals = self.totals[part]
            codes = None if self.codes is None else self.codes[part]
            release(self.totals)
            yield normalize(self._genes_of(self._take(part)), self.state, totals, codes)

    def _take(self, rows: npt.NDArray[np.int64]) -> sp.csr_matrix[Any]:
        """Read rows in any order, in as few stretches as are sensible."""
        ascending, back = np.unique(rows, return_inverse=True)
        parts = []
        most = max(self.chunk_size, len(ascending))
        for near in np.split(ascending, np.flatnonzero(np.diff(ascending) > _GAP) + 1):
            # Rows that are thrown away at once must not be many at once.
            for stretch in np.split(near, np.flatnonzero(np.diff((near - near[0]) // most)) + 1):
                first, last = int(stretch[0]), int(stretch[-1]) + 1
                block = self._reader.rows(first, last)
                parts.append(block if len(stretch) == last - first else block[stretch - first])
        block = parts[0] if len(parts) == 1 else sp.vstack(parts, format="csr")
        return block if np.array_equal(back, np.arange(len(ascending))) else block[back]

    def _genes_of(self, block: sp.csr_matrix[Any]) -> sp.csr_matrix[Any]:
        return block if self.feature_mask.all() else block[:, np.flatnonzero(self.feature_mask)]


def _unique(names: Packed) -> tuple[Packed, tuple[str, ...]]:
    """Return names of cells that all differ, and a note where some had to be changed."""
    if names.all_differ():
        return names, ()
    from anndata.utils import make_index_unique

    index = pd.Index(names.to_array(), dtype=object)
    repeated = count_text(int(index.duplicated().sum()), "repeated cell name")
    return Packed(make_index_unique(index)), (f"made {repeated} unique with -1, -2, ...",)


def _oddities(choice: Choice) -> list[str]:
    """Return notes on what reading every value showed."""
    reader, notes = choice.reader, []
    if reader.n_unsorted:
        notes.append(f"sorted the gene numbers within {count_text(reader.n_unsorted, 'cell')}")
    if reader.n_duplicates:
        notes.append(f"added up {count_text(reader.n_duplicates, 'value')} stored twice for a cell and gene")
    repeated = len(choice.var_names) - len(set(choice.var_names))
    if repeated:
        notes.append(f"added up the values of {count_text(repeated, 'repeated gene name')}")
    empty = int((choice.n_genes_detected == 0).sum())
    arrays.release(choice.n_genes_detected)
    if empty:
        notes.append(f"{count_text(empty, 'cell')} with no counts at all")
    n = len(choice.n_genes_detected)
    poor = sum(int((choice.n_genes_detected[rows] < _POOR).sum()) for rows in blocks(n))
    arrays.release(choice.n_genes_detected)
    if n >= _MANY and poor > _MOSTLY * n and len(choice.var_names) >= 100 * _POOR:
        notes.append(
            f"warning: {poor / n:.0%} of {n:,} barcodes have fewer than {_POOR} genes: is this an unfiltered "
            "matrix (raw_feature_bc_matrix)? give the filtered one, of cells"
        )
    return notes
