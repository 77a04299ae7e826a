"""Rows of a file that somebody has read already, read again elsewhere."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from scvec.ingest.cells.expression import Codes, ExpressionState, normalize
from scvec.ingest.cells.matrix import is_only_here, open_matrix
from scvec.ingest.cells.readers import contents_of

if TYPE_CHECKING:
    from scvec.ingest.cells.source import CellSource

__all__ = ["FileRows", "RowsRecipe", "recipe_of"]


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

    That is so for AnnData objects in memory, and for matrices that are stored by gene, which each process
    would have to turn over. Folders are many files, of which nobody could tell that they are the same ones.
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
