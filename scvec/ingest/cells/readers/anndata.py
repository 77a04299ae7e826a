"""What an h5ad file or an AnnData object holds, before any choice is made: one shape for both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import pandas as pd

from scvec.base.arrays import Packed
from scvec.base.borders import reading
from scvec.base.errors import InputError
from scvec.ingest.cells.matrix import is_array, is_group
from scvec.ingest.cells.readers.tables import named, read_named, read_table, tidy_table, unnamed

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Contents", "Place", "contents_of_adata", "contents_of_file"]


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
    """

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
        if not self.n_obs:
            raise InputError("there are no cells", self.name, "give a file with at least one cell")
        if not self.places:
            fix = "write it with expression values: adata.X must not be None"
            raise InputError("there is no X: no matrix, no layers, no raw", self.name, fix)

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
            raise InputError(f"the file has no {name} table", str(path), fix)
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
    return Contents(str(path), table, places, path, notes, getattr(file, "close", lambda: None))


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
        raise InputError(what, "", "wrap the matrix: anndata.AnnData(X, obs=..., var=...)")
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
    return Contents("the AnnData object", obs, places, None, notes)
