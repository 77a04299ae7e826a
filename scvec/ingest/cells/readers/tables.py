"""Read obs and var of an h5ad: odd encodings become plain columns, and what cannot be read is named."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
import pandas as pd

from scvec.base.arrays import Packed, blocks
from scvec.base.borders import count_text, reading, size_text
from scvec.base.errors import InputError, ResourceError
from scvec.ingest.cells.matrix import is_array, is_group

__all__ = ["named", "read_named", "read_table", "tidy_table", "unnamed"]


def read_table(group: Any, path: str, memory: int, notes: list[str]) -> pd.DataFrame:
    """Return what :func:`read_named` does as one: a table whose index is str."""
    table, names = read_named(group, path, memory, notes)
    return named(table, names)


def named(table: pd.DataFrame, names: Packed) -> pd.DataFrame:
    """Return a table with names for its index; the columns are the same arrays."""
    table = table.copy(deep=False)
    table.index = pd.Index(names.to_array(), dtype=object)
    return table


def unnamed(table: pd.DataFrame) -> tuple[pd.DataFrame, Packed]:
    """Return a table without its index, which takes most of its memory, and the index in little of it."""
    names, table = Packed(table.index), table.copy(deep=False)
    table.index = pd.RangeIndex(len(table))
    return table, names


def read_named(group: Any, path: str, memory: int, notes: list[str]) -> tuple[pd.DataFrame, Packed]:
    """Read an anndata dataframe, of HDF5 or zarr, column by column.

    Parameters
    ----------
    group
        ``obs``, ``var`` or ``raw/var``.
    path
        The file, for messages.
    memory
        Bytes the table may claim.
    notes
        Gets a line for every column that had to be left out.

    Returns
    -------
    Table, rows by number, duplicate column names dropped; and its index.

    Raises
    ------
    InputError
        If the index cannot be read, or lengths disagree.
    ResourceError
        If the table claims more than ``memory``.
    """
    from anndata.io import read_elem

    name = group.name.strip("/")
    with reading(path, name):
        _check_claim(group, path, memory)
        if _text(group.attrs.get("encoding-version", "")) != "0.2.0":
            return unnamed(tidy_table(read_elem(group), name, notes))
        index = _read_names(group[_text(group.attrs["_index"])])
        order = [_text(column) for column in group.attrs["column-order"]]
        n = len(index)
    columns: dict[str, Any] = {}
    unreadable: list[str] = []
    for column in dict.fromkeys(order):
        try:
            values = read_elem(group[column])
            length = values.shape[0]
        except MemoryError:
            raise
        except Exception:
            # Encodings come and go with versions of anndata: a column nobody asked for must not stop us.
            unreadable.append(column)
            continue
        if length != n:
            raise InputError(
                f"{name} contradicts itself: column '{column}' has {length:,} values for {n:,} rows",
                f"{path} ({name}/{column})",
                "the file is damaged: write it anew with adata.write_h5ad()",
            )
        if values.ndim == 1:
            columns[column] = values
        else:
            unreadable.append(column)
    if unreadable:
        shown = ", ".join(unreadable[:5]) + (", ..." if len(unreadable) > 5 else "")
        notes.append(f"{name}: left out {count_text(len(unreadable), 'unreadable column')}: {shown}")
    with reading(path, name):
        return _tidy_columns(pd.DataFrame(columns, index=pd.RangeIndex(n)), name, notes), index


def _read_names(item: Any) -> Packed:
    """Return the index of a table; of HDF5's texts never all are objects at once."""
    from anndata.io import read_elem

    if isinstance(item, h5py.Dataset) and _text(item.attrs.get("encoding-type", "")) == "string-array":
        texts = item.asstr()
        return Packed.gather(texts[rows] for rows in blocks(len(item)))
    return Packed([_text(v) for v in np.asarray(pd.Index(read_elem(item)))])


def _check_claim(group: Any, path: str, memory: int) -> None:
    """Refuse a table that would not fit, before reading any of it."""
    claimed = 0
    seen: set[int] = set()
    stack = [group]
    while stack:
        item = stack.pop()
        if is_array(item):
            claimed += int(item.size or 0) * np.dtype(item.dtype).itemsize
        elif is_group(item) and not isinstance(item, h5py.Group):
            stack += [item[key] for key in item]  # folders hold no links (scvec.ingest.cells.readers.checks)
        elif isinstance(item, h5py.Group):
            # A soft link may lead back to a group above it.
            address = h5py.h5o.get_info(item.id).addr
            if address not in seen:
                seen.add(address)
                stack += [item[key] for key in item if key in item]
    if claimed > memory:
        what = (
            f"{group.name.strip('/')} needs {size_text(claimed)} of memory; {size_text(memory)} may be used"
        )
        raise ResourceError(what, path, "remove columns that are not needed, or raise --memory")


def tidy_table(frame: pd.DataFrame, name: str, notes: list[str]) -> pd.DataFrame:
    """Return a table whose index is str and whose column names are unique str; bytes are decoded."""
    frame = _tidy_columns(frame, name, notes)
    frame.index = pd.Index([_text(v) for v in np.asarray(frame.index)], dtype=object)
    return frame


def _tidy_columns(frame: pd.DataFrame, name: str, notes: list[str]) -> pd.DataFrame:
    frame = frame.copy(deep=False)
    frame.columns = pd.Index([_text(column) for column in frame.columns], dtype=object)
    repeated = frame.columns.duplicated()
    if repeated.any():
        which = ", ".join(sorted(set(frame.columns[repeated])))
        notes.append(f"{name}: used the first of repeated columns: {which}")
        frame = frame.loc[:, ~repeated]
    for column in frame.columns:
        values = frame[column]
        if isinstance(values.dtype, pd.CategoricalDtype):
            categories = values.cat.categories
            if any(isinstance(c, bytes) for c in categories):
                frame[column] = values.astype(object).map(_text, na_action="ignore").astype("category")
        elif values.dtype == object and any(isinstance(v, bytes) for v in values):
            frame[column] = [_text(v) if isinstance(v, bytes) else v for v in values]
        elif values.dtype.kind == "S":
            frame[column] = [_text(v) for v in values]
    return frame


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
