"""List the content of an h5ad file, a zarr folder or an AnnData object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd

from scvec.base.arrays import Packed, blocks
from scvec.base.errors import InputError, ResourceError, reading
from scvec.base.results import count_text, human_bytes
from scvec.ingest.cells.matrix import is_array, is_group
from scvec.ingest.cells.readers import Contents, Place, named, reader
from scvec.ingest.cells.readers.checks import H5AD_PARTS, Given, decoded, is_h5ad, is_zarr, open_zarr

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["contents_of_adata", "contents_of_group", "read_h5ad", "read_table", "read_zarr", "tidy_table"]


def read_table(group: Any, path: str, memory: int) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return the result of :func:`read_named` as one table with an index of str, and its notes."""
    table, names, notes = read_named(group, path, memory)
    return named(table, names), notes


def read_named(group: Any, path: str, memory: int) -> tuple[pd.DataFrame, Packed, tuple[str, ...]]:
    """Read a dataframe of anndata, in HDF5 or zarr, column by column.

    Parameters
    ----------
    group
        ``obs``, ``var`` or ``raw/var``.
    path
        The file, for messages.
    memory
        Bytes that the table may take.

    Returns
    -------
    The table with row numbers as index and unique columns, its row names, and notes about dropped columns.

    Raises
    ------
    InputError
        If the index cannot be read, or lengths disagree.
    ResourceError
        If the table takes more than ``memory``.
    """
    name = group.name.strip("/")
    with reading(path, name):
        _check_claim(group, path, memory)
        if not is_group(group):
            raise ValueError("it is not a table")
        key = _index_of(group)
        index = _read_names(group[key])
        hidden = {key, "__categories"}
        order = [_text(c) for c in group.attrs.get("column-order", ())] or sorted(set(group) - hidden)
        n = len(index)
    columns: dict[str, Any] = {}
    unreadable: list[str] = []
    for column in dict.fromkeys(order):
        try:
            values = _read_column(group, column)
            length = values.shape[0]
        except MemoryError:
            raise
        except Exception:
            # Encodings vary between versions of anndata: an unreadable column must not stop the reader.
            unreadable.append(column)
            continue
        if length != n:
            raise InputError(
                f"{name} is inconsistent: column '{column}' has {length:,} values for {n:,} rows",
                f"{path} ({name}/{column})",
                "the file is damaged: write it again with adata.write_h5ad()",
                code="damaged-file",
            )
        if values.ndim == 1:
            columns[column] = values
        else:
            unreadable.append(column)
    left_out: tuple[str, ...] = ()
    if unreadable:
        shown = ", ".join(unreadable[:5]) + (", ..." if len(unreadable) > 5 else "")
        left_out = (f"{name}: ignored {count_text(len(unreadable), 'unreadable column')}: {shown}",)
    with reading(path, name):
        table, notes = _tidy_columns(pd.DataFrame(columns, index=pd.RangeIndex(n)), name)
        return table, index, (*left_out, *notes)


def _index_of(group: Any) -> str:
    """Return the name of the column with the row names; older programs do not record it."""
    for key in (_text(group.attrs.get("_index", "")), "_index", "index"):
        if key and key in group:
            return key
    raise KeyError("the table has no index")


def _read_column(group: Any, column: str) -> Any:
    """Return a column, including the forms that anndata before 0.8 and SeuratDisk write."""
    from anndata.io import read_elem

    item = group[column]
    levels = group.get("__categories", {})
    if is_group(item):
        if _text(item.attrs.get("encoding-type", "")) == "categorical" and _is_text(item["categories"]):
            # anndata fails on text that is not UTF-8.
            ordered = bool(item.attrs.get("ordered", False))
            return _categorical(item["codes"][:], _read_names(item["categories"]).to_array(), ordered)
        return read_elem(item)
    if column in levels:
        texts = levels[column]
        ordered = bool(texts.attrs.get("ordered", False))
        return _categorical(item[:], _read_names(texts).to_array() if _is_text(texts) else texts[:], ordered)
    return _read_names(item).to_array() if _is_text(item) else read_elem(item)


def _categorical(codes: npt.NDArray[Any], categories: Any, ordered: bool) -> Any:
    """Return a categorical from integer codes; codes out of range, such as R's NA, are missing."""
    known = (codes >= 0) & (codes < len(categories))
    return pd.Categorical.from_codes(np.where(known, codes, -1).astype(np.int64), categories, ordered=ordered)


def _is_text(item: Any) -> bool:
    return isinstance(item, h5py.Dataset) and item.ndim == 1 and item.dtype.kind in "SO"


def _read_names(item: Any) -> Packed:
    """Return a column of texts; HDF5 texts are converted in blocks, to limit Python objects in memory."""
    from anndata.io import read_elem

    if not _is_text(item):
        return Packed([_text(v) for v in np.asarray(pd.Index(read_elem(item)))])
    if item.dtype.kind == "S":
        return Packed.gather([_text(v) for v in item[rows]] for rows in blocks(len(item)))
    try:
        texts = item.asstr()
        return Packed.gather(texts[rows] for rows in blocks(len(item)))
    except UnicodeDecodeError:
        return Packed.gather([_text(v) for v in item[rows]] for rows in blocks(len(item)))


def _check_claim(group: Any, path: str, memory: int) -> None:
    """Refuse a table that does not fit in memory, before reading it."""
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
            # A soft link may lead back to a parent group.
            address = h5py.h5o.get_info(item.id).addr
            if address not in seen:
                seen.add(address)
                stack += [item[key] for key in item if key in item]
    if claimed > memory:
        needed, allowed = human_bytes(claimed), human_bytes(memory)
        what = f"{group.name.strip('/')} needs {needed} of memory; {allowed} may be used"
        raise ResourceError(what, path, "remove columns that are not needed, or raise --memory")


def tidy_table(frame: pd.DataFrame, name: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return a table with an index of str, unique column names and decoded bytes; and notes."""
    if isinstance(frame.index, pd.MultiIndex):
        levels = frame.index.to_frame(name=[str(n or f"level_{i}") for i, n in enumerate(frame.index.names)])
        frame = pd.concat([levels, frame], axis=1)
        frame.index = pd.Index(["_".join(map(_text, names)) for names in frame.index], dtype=object)
    frame, notes = _tidy_columns(frame, name)
    frame.index = pd.Index([_text(v) for v in np.asarray(frame.index)], dtype=object)
    return frame, notes


_NO_VALUES = (bytes, list, tuple, dict, set, np.ndarray)


def _tidy_columns(frame: pd.DataFrame, name: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    frame, notes = frame.copy(deep=False), []
    frame.columns = pd.Index([_text(column) for column in frame.columns], dtype=object)
    repeated = frame.columns.duplicated()
    if repeated.any():
        which = ", ".join(sorted(set(frame.columns[repeated])))
        notes.append(f"{name}: used the first of repeated columns: {which}")
        frame = frame.loc[:, ~repeated]
    for column in frame.columns:
        values = frame[column]
        if isinstance(values.dtype, pd.IntervalDtype | pd.PeriodDtype):
            frame[column] = values.astype(str)
        elif isinstance(values.dtype, pd.CategoricalDtype):
            categories = values.cat.categories
            if isinstance(categories.dtype, pd.IntervalDtype | pd.PeriodDtype):  # as pd.cut makes them
                frame[column] = values.cat.rename_categories([str(c) for c in categories])
            if any(isinstance(c, bytes) for c in categories):
                frame[column] = values.astype(object).map(_text, na_action="ignore").astype("category")
        elif values.dtype == object and any(isinstance(v, _NO_VALUES) for v in values):
            # Values that cannot be compared or hashed become text.
            frame[column] = [_text(v) if isinstance(v, _NO_VALUES) else v for v in values]
        elif values.dtype.kind == "S":
            frame[column] = [_text(v) for v in values]
    return frame, tuple(notes)


def _text(value: Any) -> str:
    return decoded(value) if isinstance(value, bytes) else str(value)


@reader("h5ad", "an h5ad file", sniff=is_h5ad, parts=H5AD_PARTS)
def read_h5ad(given: Given, memory: int) -> Contents:
    """Read obs of a checked, open h5ad and list its matrices."""
    return contents_of_group(given.hdf5, given.path, memory)


@reader("zarr", "a zarr folder of anndata", sniff=lambda given: not given.head and is_zarr(given.path))
def read_zarr(given: Given, memory: int) -> Contents:
    """Check a zarr folder, read its obs and list its matrices."""
    return contents_of_group(open_zarr(given.path, memory=memory), given.path, memory)


def contents_of_group(file: Any, path: Path, memory: int) -> Contents:
    """Read obs of an HDF5 or zarr group that is an AnnData object, and list its matrices.

    Raises
    ------
    InputError
        If obs or var are missing or unreadable, or there are no cells or no matrix.
    """
    for name in ("obs", "var"):
        if name not in file:
            fix = "give a complete AnnData file, written by adata.write_h5ad()"
            raise InputError(f"the file has no {name} table", str(path), fix, code="wrong-format")
    if isinstance(file, h5py.File) and (is_array(file["obs"]) or is_array(file["var"]) or "raw.X" in file):
        return _old_file(file, path)

    @cache
    def var_of(name: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
        with reading(path, name):
            group = file[name]
        return read_table(group, str(path), memory)

    places: dict[str, Place] = {}
    with reading(path):
        if "X" in file and file["X"].attrs.get("encoding-type") != "null":
            places["X"] = Place(file["X"], lambda: var_of("var"))
        if "raw" in file and is_group(file["raw"]) and "X" in file["raw"]:
            places["raw"] = Place(file["raw/X"], lambda: var_of("raw/var"))
        if "layers" in file and is_group(file["layers"]):
            for name in sorted(file["layers"]):
                places[f"layers/{name}"] = Place(file["layers"][name], lambda: var_of("var"))
        obs = file["obs"]
    table, names, notes = read_named(obs, str(path), memory)
    # A zarr folder has no open file to close.
    close = file.file.close if isinstance(file, h5py.Group) else lambda: None
    contents = Contents(str(path), (table, names), places, path, notes, close, lambda: _others(file, path))
    with reading(path):
        contents.obsm = file["obsm"] if "obsm" in file and is_group(file["obsm"]) else {}
        contents.variance = file.get("uns/pca/variance")
    return contents


def _others(file: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the other entries of an AnnData (obsm, uns, ...); each is small compared with the matrices."""
    from anndata.io import read_elem

    for name in ("obsm", "varm", "obsp", "varp", "uns"):
        if name in file:
            with reading(path, name):
                value = read_elem(file[name])
            yield name, value


def _old_file(file: h5py.File, path: Path) -> Contents:
    """Load a file of anndata before 0.7 (obs as one compound dataset) into memory, by anndata."""
    import warnings

    import anndata

    file.close()
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the note below replaces anndata's warning
        adata = anndata.read_h5ad(path)
    contents = contents_of_adata(adata)
    contents.name, contents.path = str(path), path
    note = "the file is from anndata before 0.7; rewrite it with adata.write_h5ad() to read it faster"
    contents.notes = (note, *contents.notes)
    return contents


def _in_memory(table: Any) -> pd.DataFrame:
    """Return a table of anndata, which ``read_lazy`` leaves on disk."""
    return table if isinstance(table, pd.DataFrame) else table.to_memory()


def contents_of_adata(adata: AnnData) -> Contents:
    """List the content of an AnnData object; X of a backed object stays on disk.

    Raises
    ------
    InputError
        If it is not an AnnData object, or has no cells or no matrix.
    """
    if not all(hasattr(adata, name) for name in ("obs", "var", "X", "layers")):
        what = f"cells must be a path or an AnnData object, not {type(adata).__name__}"
        raise InputError(
            what, "", "wrap the matrix: anndata.AnnData(X, obs=..., var=...)", code="wrong-format"
        )
    on_disk: Any = {}
    if adata.isbacked:
        with reading(str(adata.filename)):
            if adata.is_view or adata.raw is not None:
                adata = adata.to_memory()
            else:
                on_disk = {"X": adata.file["X"]}
    (obs, notes), var = tidy_table(_in_memory(adata.obs), "obs"), tidy_table(_in_memory(adata.var), "var")
    places: dict[str, Place] = {}
    X = on_disk.get("X", adata.X)
    if X is not None:
        places["X"] = Place(X, lambda: var)
    raw = adata.raw
    if raw is not None:
        places["raw"] = Place(raw.X, lambda: tidy_table(_in_memory(raw.var), "raw/var"))
    for name, values in adata.layers.items():
        places[f"layers/{name}"] = Place(values, lambda: var)
    contents = Contents("the AnnData object", obs, places, None, notes)
    contents.obsm = getattr(adata, "obsm", {})
    pca = getattr(adata, "uns", {}).get("pca")
    contents.variance = pca.get("variance") if isinstance(pca, Mapping) else None
    return contents
