"""What an h5ad file or an AnnData object holds, before any choice is made: one shape for both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd

from scvec.base.arrays import Packed, blocks
from scvec.base.errors import InputError, ResourceError, reading
from scvec.base.results import count_text, human_bytes
from scvec.ingest.cells.matrix import is_array, is_group

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "Contents",
    "Place",
    "contents_of_adata",
    "contents_of_file",
    "named",
    "read_named",
    "read_table",
    "tidy_table",
    "unnamed",
]


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
                code="damaged-file",
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
        needed, allowed = human_bytes(claimed), human_bytes(memory)
        what = f"{group.name.strip('/')} needs {needed} of memory; {allowed} may be used"
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


@dataclass(frozen=True)
class Place:
    """A matrix (as :func:`scvec.ingest.cells.matrix.open_matrix` takes it) and the table of its genes."""

    item: Any
    var: Callable[[], pd.DataFrame]


class Contents:
    """Cells, and the matrices over them by name: ``X``, ``raw``, ``layers/NAME``.

    Attributes
    ----------
    table, names
        The columns of obs, rows by number, and its index in less memory.
    obsm, variance
        Arrays of ``obsm`` by key, unread; what scanpy wrote into ``uns['pca']['variance']``, None without.
    """

    obsm: Mapping[str, Any]
    variance: Any

    def __init__(
        self,
        name: str,
        obs: pd.DataFrame | tuple[pd.DataFrame, Packed],
        places: dict[str, Place],
        path: Path | None = None,
        notes: list[str] | None = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.places, self.path, self.close = name, places, path, close
        self.notes: list[str] = [] if notes is None else notes
        self.table, self.names = obs if isinstance(obs, tuple) else unnamed(obs)
        self.obsm, self.variance = {}, None
        if not self.n_obs:
            raise InputError(
                "there are no cells", self.name, "give a file with at least one cell", code="no-cells"
            )

    def need_values(self) -> None:
        """Raise InputError where there is no matrix."""
        if not self.places:
            fix = "write it with expression values: adata.X must not be None"
            raise InputError("there is no X: no matrix, no layers, no raw", self.name, fix, code="no-values")

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return len(self.names)

    @property
    def obs(self) -> pd.DataFrame:
        """The table of the cells under their names, made anew each time."""
        return named(self.table, self.names)


def contents_of_file(file: Any, path: Path, memory: int) -> Contents:
    """Read obs of a checked, open h5ad or zarr group and list its matrices.

    Raises
    ------
    InputError
        If obs or var are missing or cannot be read, or if there is no cell or no matrix.
    """
    for name in ("obs", "var"):
        if name not in file:
            fix = "give a whole AnnData file, written by adata.write_h5ad()"
            raise InputError(f"the file has no {name} table", str(path), fix, code="wrong-format")
    if isinstance(file, h5py.File) and (is_array(file["obs"]) or is_array(file["var"]) or "raw.X" in file):
        return _old_file(file, path)
    notes: list[str] = []
    tables: dict[str, pd.DataFrame] = {}

    def var_of(name: str) -> pd.DataFrame:
        if name not in tables:
            with reading(path, name):
                group = file[name]
            tables[name] = read_table(group, str(path), memory, notes)
        return tables[name]

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
    table = read_named(obs, str(path), memory, notes)
    # A zarr folder is not held open.
    contents = Contents(str(path), table, places, path, notes, getattr(file, "close", lambda: None))
    with reading(path):
        contents.obsm = file["obsm"] if "obsm" in file and is_group(file["obsm"]) else {}
        contents.variance = file.get("uns/pca/variance")
    return contents


def _old_file(file: h5py.File, path: Path) -> Contents:
    """Read a file of anndata before 0.7 (obs as one compound dataset) whole: only anndata knows how."""
    import warnings

    import anndata

    file.close()
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's advice to rewrite the file is given below
        adata = anndata.read_h5ad(path)
    contents = contents_of_adata(adata)
    contents.name, contents.path = str(path), path
    contents.notes.insert(
        0, "written by an anndata older than 0.7; rewriting it with adata.write_h5ad() helps"
    )
    return contents


def contents_of_adata(adata: AnnData) -> Contents:
    """List what an AnnData object holds; of a backed one X stays on the disk.

    Raises
    ------
    InputError
        If it is no AnnData object, or has no cell or no matrix.
    """
    if not all(hasattr(adata, name) for name in ("obs", "var", "X", "layers")):
        what = f"cells come as an .h5ad path or an AnnData object, not as {type(adata).__name__}"
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
    notes: list[str] = []
    obs, var = tidy_table(adata.obs, "obs", notes), tidy_table(adata.var, "var", notes)
    places: dict[str, Place] = {}
    X = on_disk.get("X", adata.X)
    if X is not None:
        places["X"] = Place(X, lambda: var)
    raw = adata.raw
    if raw is not None:
        places["raw"] = Place(raw.X, lambda: tidy_table(raw.var, "raw/var", notes))
    for name, values in adata.layers.items():
        places[f"layers/{name}"] = Place(values, lambda: var)
    contents = Contents("the AnnData object", obs, places, None, notes)
    contents.obsm = getattr(adata, "obsm", {})
    pca = getattr(adata, "uns", {}).get("pca")
    contents.variance = pca.get("variance") if isinstance(pca, Mapping) else None
    return contents
