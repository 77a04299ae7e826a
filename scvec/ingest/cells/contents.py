"""The content of a file, folder or AnnData object of cells, before a matrix is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from scvec.base.arrays import Packed
from scvec.base.errors import InputError

__all__ = ["Contents", "Place", "named", "unnamed"]


def named(table: pd.DataFrame, names: Packed) -> pd.DataFrame:
    """Return a table with ``names`` as its index; the columns are not copied."""
    table = table.copy(deep=False)
    table.index = pd.Index(names.to_array(), dtype=object)
    return table


def unnamed(table: pd.DataFrame) -> tuple[pd.DataFrame, Packed]:
    """Return a table without its index, and the index in a compact form (it takes most of the memory)."""
    names, table = Packed(table.index), table.copy(deep=False)
    table.index = pd.RangeIndex(len(table))
    return table, names


@dataclass(frozen=True)
class Place:
    """A matrix and the table of its genes.

    Attributes
    ----------
    item
        As :func:`scvec.ingest.cells.matrix.open_matrix` takes it.
    var
        Returns the table of the genes, and notes on reading it.
    """

    item: Any
    var: Callable[[], tuple[pd.DataFrame, tuple[str, ...]]]


class Contents:
    """Cells, and the matrices over them by name: ``X``, ``raw``, ``layers/NAME``.

    Attributes
    ----------
    name
        Name for messages.
    table, names
        The columns of obs with row numbers as index, and the cell names in a compact form.
    path
        The file or folder, or None.
    notes
        Notes about reading obs.
    close
        Closes the file.
    obsm, variance
        Arrays of ``obsm`` by key, not yet read; scanpy's ``uns['pca']['variance']``, or None.
    more
        Returns the other entries for an h5ad of these cells, such as ``("obsm", {"X_pca": array})``.

    Raises
    ------
    InputError
        If there are no cells.
    """

    obsm: Mapping[str, Any]
    variance: Any

    def __init__(
        self,
        name: str,
        obs: pd.DataFrame | tuple[pd.DataFrame, Packed],
        places: Mapping[str, Place],
        path: Path | None = None,
        notes: tuple[str, ...] = (),
        close: Callable[[], None] = lambda: None,
        more: Callable[[], Iterable[tuple[str, Any]]] = tuple,
    ) -> None:
        self.name, self.places, self.path, self.notes = name, dict(places), path, notes
        self.close, self.more = close, more
        self.table, self.names = obs if isinstance(obs, tuple) else unnamed(obs)
        self.obsm, self.variance = {}, None
        if not self.n_obs:
            raise InputError(
                "there are no cells", self.name, "give a file with at least one cell", code="no-cells"
            )

    def need_values(self) -> None:
        """Raise InputError if there is no matrix."""
        if not self.places:
            fix = "write the file with expression values in adata.X"
            raise InputError("the file has no X, no raw and no layers", self.name, fix, code="no-values")

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return len(self.names)

    @property
    def obs(self) -> pd.DataFrame:
        """The table of the cells with their names as index; a new table on each access."""
        return named(self.table, self.names)
