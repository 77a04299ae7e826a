"""Recognise a file or folder of cells by its content (not by its name), check it, and open it.

A reader is one file with one registration, and one line in ``_MODULES``::

    @reader("toy", "a .toy file", sniff=lambda given: given.head.startswith(b"TOY"))
    def read_toy(given: Given, memory: int) -> Contents: ...
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from scvec.base.arrays import Packed
from scvec.base.errors import InputError
from scvec.ingest.cells.readers.checks import Given, check_hdf5, look_at, unreadable

__all__ = ["Contents", "Place", "Reader", "contents_of", "formats", "kind_of", "named", "reader", "unnamed"]


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


#: Modules of this folder that register readers; the first reader whose ``sniff`` returns True is used.
_MODULES = ("tenx", "anndata", "loom", "mudata", "folders", "rds", "parquet", "table")


@dataclass(frozen=True)
class Reader:
    """A format: how to recognise and to read it.

    Attributes
    ----------
    name
        Short name, such as ``h5ad``.
    title
        Name for messages, such as "an h5ad file".
    sniff
        Returns whether a file has this format, from its first bytes or from the root of an HDF5 file.
    read
        Lists the content within some bytes of memory; ``Contents.close`` closes ``given.file``.
    parts
        Groups in the root of an HDF5 file that ``read`` uses: only these are checked for unknown types
        and huge chunks. Empty means all.
    last
        Whether to try the other readers first, because ``sniff`` accepts files of other formats too.
    """

    name: str
    title: str
    sniff: Callable[[Given], bool]
    read: Callable[[Given, int], Contents]
    parts: tuple[str, ...] = ()
    last: bool = False


_READERS: dict[str, Reader] = {}


def reader(
    name: str, title: str, *, sniff: Callable[[Given], bool], parts: tuple[str, ...] = (), last: bool = False
) -> Callable[[Callable[[Given, int], Contents]], Callable[[Given, int], Contents]]:
    """Register a function as the reader of a format; see :class:`Reader`."""

    def register(read: Callable[[Given, int], Contents]) -> Callable[[Given, int], Contents]:
        _READERS[name] = Reader(name, title, sniff, read, parts, last)
        return read

    return register


def _readers() -> list[Reader]:
    for module in _MODULES:
        import_module(f"{__name__}.{module}")
    return sorted(_READERS.values(), key=lambda each: each.last)


def formats() -> str:
    """Return the readable formats, for messages: "an h5ad file, ... or ..."."""
    *titles, last = (each.title for each in _readers())
    return f"{', '.join(titles)} or {last}"


def _reader_of(given: Given) -> Reader:
    for each in _readers():
        if each.sniff(given):
            return each
    raise unreadable(given, f"give {formats()}")


def kind_of(path: str | os.PathLike[str], memory: int, *, checked: bool = False) -> str:
    """Return the name of the format of a file or folder, and check it unless ``checked``.

    Raises
    ------
    InputError
        If no reader recognises it, or it is damaged.
    """
    given = look_at(path, checked=checked)
    try:
        found = _reader_of(given)
        if given.file is not None and not checked:
            check_hdf5(given, memory, found.parts)
        return found.name
    finally:
        given.close()


def contents_of(path: str | os.PathLike[str], memory: int) -> Contents:
    """Check and open a file or folder of any format that has a reader.

    Raises
    ------
    InputError
        If no reader recognises it, or it is damaged.
    ResourceError
        If it needs more than ``memory``.
    """
    given = look_at(path)
    try:
        found = _reader_of(given)
        if given.file is not None:
            check_hdf5(given, memory, found.parts)
        return found.read(given, memory)
    except BaseException:
        given.close()
        raise
