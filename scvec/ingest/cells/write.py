"""Write annotated cells as h5ad or as a table, and read the parameters of an annotated h5ad."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd

from scvec.base.arrays import release
from scvec.base.errors import InputError, disk_errors, reading
from scvec.base.resources import expanded, parse_memory
from scvec.ingest.cells.matrix import MatrixReader, open_matrix
from scvec.ingest.cells.readers import Contents, contents_of, kind_of
from scvec.ingest.cells.readers.checks import check_h5ad

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "CELLTYPIST",
    "check_output",
    "earlier_names",
    "read_parameters",
    "replacing",
    "write_annotated",
    "write_table",
    "write_tables",
]

#: Suffixes of the columns of an annotation, after its key.
_OWN = (
    "label confidence novelty status label_knn label_head label_broad cl_id set set_size set_json "
    "majority cluster name name_cl_id name_confidence name_broad"
).split()
#: Columns with the names of CellTypist, which other tools write too.
CELLTYPIST = ("predicted_labels", "over_clustering", "majority_voting", "conf_score")


def earlier_names(uns: Mapping[str, Any], key: str | None) -> dict[str, list[str]]:
    """Return the names that an earlier annotation added to ``obs``, ``obsm`` and ``uns``.

    Names that begin with the key belong to scvec. Columns with CellTypist's names do if ``uns[key]`` says so.

    Parameters
    ----------
    uns
        The unstructured annotation: a dict, or the group of an h5ad.
    key
        ``key_added`` of the annotation; None for no annotation.
    """
    if key is None:
        return {"obs": [], "obsm": [], "uns": []}
    entry = uns.get(key)
    columns = entry.get("columns") if isinstance(entry, Mapping | h5py.Group) else None
    if isinstance(columns, h5py.Dataset):
        columns = columns[()] if columns.shape == () else None
    celltypist = CELLTYPIST if columns is not None and _text(columns) == "celltypist" else ()
    columns = [*(f"{key}_{name}" for name in _OWN), *celltypist]
    return {
        "obs": columns,
        "obsm": [f"X_{key}", f"X_{key}_umap", f"{key}_proba", f"{key}_set"],
        "uns": [key, f"{key}_name", *(f"{name}_colors" for name in columns)],
    }


_GZIP = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
# Generous estimate of the bytes that HDF5 needs in addition to the values: per file and per entry.
_FILE_ROOM, _ENTRY_ROOM = 2**22, 2**16
_BLOCK_ROWS = 2**16


def check_output(out_path: str | os.PathLike[str], source_path: str | os.PathLike[str] | None = None) -> Path:
    """Check, before any work, that an output can be written, and return its path.

    Raises
    ------
    InputError
        If the folder is missing or not writable, or the output is a folder or the input.
    """
    out = expanded(out_path)
    try:
        if out.is_dir():
            raise InputError(
                "the output is a folder", str(out), "give a file in it", code="output-not-writable"
            )
        if not out.parent.is_dir():
            if out.parent.exists():
                raise InputError(
                    "the folder of the output is a file",
                    str(out.parent),
                    "choose another",
                    code="output-not-writable",
                )
            raise InputError(
                "the folder of the output does not exist",
                str(out.parent),
                "create it first",
                code="output-not-writable",
            )
        if not os.access(out.parent, os.W_OK):
            raise InputError(
                "the folder of the output is not writable",
                str(out.parent),
                "choose another",
                code="permission-denied",
            )
        source = None if source_path is None else Path(source_path)  # its reader reports a missing file
        if source is not None and out.exists() and source.exists() and os.path.samefile(out, source):
            raise InputError(
                "the output is the input file, which scvec never changes",
                str(out),
                "choose another name",
                code="output-is-input",
            )
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot write the output: {error}", str(out), "choose another name", code="output-not-writable"
        ) from error
    return out


def write_annotated(
    source: str | os.PathLike[str] | AnnData,
    out_path: str | os.PathLike[str],
    obs: pd.DataFrame,
    obsm: Mapping[str, Any] | None = None,
    uns: Mapping[str, Any] | None = None,
    *,
    checked: bool = False,
    memory: str | int | None = None,
    replaces: str | None = None,
) -> None:
    """Write a copy with columns added; all other content of an h5ad is copied unchanged.

    The file is copied on disk and never loaded into memory. The output appears complete or not at all.
    Columns and entries with the same name are replaced.

    Parameters
    ----------
    source
        The file or folder of the cells, or the AnnData object; it is not changed.
    out_path
        The h5ad to write; an existing one is replaced.
    obs
        Columns to add, one row per cell in file order. The index is ignored.
    obsm
        Arrays (n_obs, ...) to add to obsm.
    uns
        Entries to add to uns. None values are left out, tuples become lists.
    checked
        The file was just checked (:func:`scvec.ingest.cells.readers.contents_of`): do not check it again.
    memory
        Memory for converting other formats than h5ad, such as folders and Cell Ranger files.
    replaces
        Key of an earlier annotation to remove (:func:`earlier_names`); None for none.

    Raises
    ------
    InputError
        If the output cannot be written, or is the input.
    ResourceError
        If the disk is full; the partial output is then removed.
    """
    obsm, uns = dict(obsm or {}), dict(uns or {})
    columns = {str(name): _storable_column(values) for name, values in obs.items()}
    for name in (*columns, *obsm, *uns):
        if "/" in name:
            raise InputError(
                f"a column cannot be called '{name}': the name has a slash", str(out_path), code="bad-name"
            )
    if not isinstance(source, str | os.PathLike):
        out = check_output(out_path)
        _write_object(source, out, columns, obsm, uns, replaces)
        return
    out = check_output(out_path, source)
    if kind_of(source, parse_memory(memory), checked=checked) != "h5ad":
        uns = {name: _storable(value) for name, value in uns.items()}
        with replacing(out) as temporary:
            write_as_h5ad(Path(source), temporary, _room(obs, obsm, uns), memory)
            _annotate(temporary, columns, obsm, uns, str(source), replaces)
        return
    with h5py.File(source, "r") as file:
        old = not isinstance(file.get("obs"), h5py.Group) or "raw.X" in file
    if old:  # anndata before 0.7 kept obs in one compound dataset, which takes no more columns
        import anndata

        with reading(str(source)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warns of the old format, which is replaced here
            adata = anndata.read_h5ad(source)
        _write_object(adata, out, columns, obsm, uns, replaces)
        return
    uns = {name: _storable(value) for name, value in uns.items()}
    with replacing(out) as temporary:
        _copy_with_room(Path(source), temporary, _room(obs, obsm, uns))
        _annotate(temporary, columns, obsm, uns, str(source), replaces)


def _room(obs: pd.DataFrame, obsm: Mapping[str, Any], uns: Mapping[str, Any]) -> int:
    """Return a generous estimate of the bytes that the additions take in a file."""
    added = int(obs.memory_usage(deep=True).sum()) + _n_bytes(obsm) + _n_bytes(uns)
    return 2 * added + _ENTRY_ROOM * (len(obs.columns) + len(obsm) + _n_entries(uns)) + _FILE_ROOM


def _annotate(
    path: Path,
    columns: dict[str, Any],
    obsm: Mapping[str, Any],
    uns: Mapping[str, Any],
    source: str,
    replaces: str | None,
) -> None:
    with h5py.File(path, "r+", locking="best-effort") as file:
        earlier = earlier_names(file["uns"] if isinstance(file.get("uns"), h5py.Group) else {}, replaces)
        _remove_columns(file["obs"], [name for name in earlier["obs"] if name not in columns], source)
        for part, added in (("obsm", obsm), ("uns", uns)):
            for name in earlier[part]:
                if name not in added and part in file and name in file[part]:
                    del file[part][name]
        _add_columns(file["obs"], columns, source)
        _add_entries(file, "obsm", obsm)
        _add_entries(file, "uns", uns)


def _copy_with_room(source: Path, target: Path, room: int) -> None:
    """Copy a file, with ``room`` more bytes of reserved disk space.

    HDF5 does not handle a full disk: every later step fails, destructors print tracebacks, and the process
    may crash. So the space is reserved before HDF5 starts; HDF5 truncates the file when it closes it.
    """
    size = source.stat().st_size
    with target.open("r+b") as out, source.open("rb") as data:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(out.fileno(), 0, size + room)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
        free = shutil.disk_usage(target.parent).free
        if free + os.fstat(out.fileno()).st_size < size + room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        shutil.copyfileobj(data, out, 2**22)


def _n_bytes(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(map(_n_bytes, value.values()))
    if isinstance(value, np.ndarray) and value.dtype == object:
        return sum(len(str(v)) + 32 for v in value.ravel())
    if isinstance(value, str):
        return len(value.encode())
    return int(getattr(value, "nbytes", None) or np.asarray(value).nbytes)


def _n_entries(value: Any) -> int:
    return 1 + sum(map(_n_entries, value.values())) if isinstance(value, Mapping) else 1


def _remove_columns(group: h5py.Group, names: list[str], source: str) -> None:
    with reading(source, "obs"):
        order = [_text(column) for column in group.attrs["column-order"]]
    gone = [name for name in names if name in order]
    categories = group.get("__categories")  # of anndata before 0.8
    for name in gone:
        del group[name]
        if isinstance(categories, h5py.Group) and name in categories:
            del categories[name]
    if gone:
        left = [name for name in order if name not in gone]
        group.attrs["column-order"] = np.array(left, dtype=h5py.string_dtype())


def _add_columns(group: h5py.Group, columns: dict[str, Any], source: str) -> None:
    """Add columns to the obs group itself, so that existing columns keep their encoding."""
    from anndata.io import write_elem

    with reading(source, "obs"):
        index = _text(group.attrs["_index"])
        order = [_text(column) for column in group.attrs["column-order"]]
        item = group[index]
        n_obs = len(
            item if isinstance(item, h5py.Dataset) else item["codes" if "codes" in item else "values"]
        )
    for name, values in columns.items():
        if len(values) != n_obs:
            raise ValueError(f"{len(values)} rows of annotation for {n_obs} cells")
        if name == index:
            raise InputError(
                f"obs already uses '{name}' for the names of the cells", source, code="output-not-writable"
            )
        write_elem(group, name, values, dataset_kwargs=_GZIP)
    order += [name for name in columns if name not in order]
    group.attrs["column-order"] = np.array(order, dtype=h5py.string_dtype())


def _add_entries(file: h5py.File, name: str, entries: Mapping[str, Any]) -> None:
    from anndata.io import write_elem

    if not entries:
        return
    if name not in file:
        write_elem(file, name, {})
    for key, value in entries.items():
        # HDF5 cannot compress scalars, of which uns has many.
        packed = _GZIP if name == "obsm" and _shrinks(value) else {}
        if isinstance(value, np.memmap):
            _add_blocks(file[name], key, value, packed)
        else:
            write_elem(file[name], key, value, dataset_kwargs=packed)


def _add_blocks(group: h5py.Group, key: str, value: np.memmap[Any, Any], packed: Mapping[str, Any]) -> None:
    """Write a memory-mapped array like anndata does, but with only one block in memory at a time."""
    if key in group:
        del group[key]
    item = group.create_dataset(key, value.shape, value.dtype, **packed)
    item.attrs["encoding-type"], item.attrs["encoding-version"] = "array", "0.2.0"
    for start in range(0, len(value), _BLOCK_ROWS):
        item[start : start + _BLOCK_ROWS] = value[start : start + _BLOCK_ROWS]
        release(value)


def _shrinks(value: Any) -> bool:
    """Return whether compression pays: cell vectors hardly shrink, and gzip takes seconds."""
    head = np.ascontiguousarray(np.asarray(value)[:256]).tobytes()
    return len(zlib.compress(head, 1)) < 0.8 * len(head)


def _write_object(
    adata: AnnData,
    out: Path,
    columns: dict[str, Any],
    obsm: Mapping[str, Any],
    uns: Mapping[str, Any],
    replaces: str | None,
) -> None:
    """Write an AnnData object with additions, through a shallow copy that shares its arrays."""
    from anndata.io import write_elem

    if adata.isbacked or not isinstance(adata.obs, pd.DataFrame):  # as read_lazy leaves it
        adata = adata.to_memory()
    if any(len(values) != adata.n_obs for values in columns.values()):
        raise ValueError(f"rows of annotation do not match {adata.n_obs} cells")
    earlier = earlier_names(adata.uns, replaces)
    table = adata.obs.copy(deep=False)
    table = table.drop(columns=[name for name in earlier["obs"] if name not in columns], errors="ignore")
    for name, values in columns.items():
        table[name] = pd.Series(values, index=table.index) if isinstance(values, pd.Categorical) else values
    # Into memory first, because HDF5 does not handle a full disk (see _copy_with_room).
    image = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # repeated names were already reported
            copy = _shallow_copy(adata, table, obsm, uns, earlier)
        with h5py.File(image, "w") as file:
            write_elem(file, "/", copy, dataset_kwargs={"compression": "gzip"})
    except MemoryError:
        raise
    except Exception as error:  # objects may hold anything
        reason = " ".join([str(error), *getattr(error, "__notes__", ())])
        what = f"anndata cannot write this object as h5ad: {reason}"
        fix = "remove what adata.write_h5ad() cannot write, or write .csv or .parquet"
        raise InputError(what, str(out), fix, code="output-not-writable") from error
    with replacing(out) as temporary:
        temporary.write_bytes(image.getbuffer())


def _shallow_copy(
    adata: AnnData,
    obs: pd.DataFrame,
    obsm: Mapping[str, Any],
    uns: Mapping[str, Any],
    earlier: Mapping[str, list[str]],
) -> AnnData:
    import anndata

    raw = adata.raw
    own_obsm, own_uns = (
        {name: value for name, value in entries.items() if name not in earlier[part]}
        for part, entries in (("obsm", adata.obsm), ("uns", adata.uns))
    )
    return anndata.AnnData(
        X=adata.X,
        obs=obs,
        var=adata.var,
        uns={**own_uns, **{name: _storable(value) for name, value in uns.items()}},
        obsm={**own_obsm, **{name: np.asarray(values) for name, values in obsm.items()}},
        varm=dict(adata.varm),
        layers=dict(adata.layers),
        obsp=dict(adata.obsp),
        varp=dict(adata.varp),
        raw=None if raw is None else {"X": raw.X, "var": raw.var, "varm": dict(raw.varm)},
    )


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``out`` that replaces it at the end, or is removed on any error."""
    temporary: Path | None = None
    try:
        with disk_errors(out):
            handle, name = tempfile.mkstemp(prefix=f".{out.name[:40]}.", suffix=".tmp", dir=out.parent)
            os.close(handle)
            temporary = Path(name)
            yield temporary
            # mkstemp makes private files; the output gets the mode of a normal new file.
            temporary.chmod(out.stat().st_mode & 0o777 if out.exists() else 0o666 & ~_umask())
            _sync(temporary)
            os.replace(temporary, out)
            _sync(out.parent)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    # os.umask() must be set to be read, which would affect other threads.
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _storable_column(values: pd.Series[Any]) -> Any:
    """Return a column in a form that every anndata version can store: text with gaps becomes categorical."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return values.array
    if values.dtype == object or isinstance(values.dtype, pd.StringDtype):
        if values.isna().any():
            return pd.Categorical(values.astype(object).map(str, na_action="ignore"))
        return values.astype(str).to_numpy(dtype=object)
    return values.to_numpy() if isinstance(values.dtype, np.dtype) else values.array


def _storable_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table that anndata can write: without slashes or ``_index`` as column names."""
    names = {name: "index_" if name == "_index" else str(name).replace("/", "|") for name in table}
    return pd.DataFrame({to: _storable_column(table[name]) for name, to in names.items()}, table.index)


def _storable(value: Any) -> Any:
    """Return an entry of uns in a form that h5ad can store."""
    if isinstance(value, Mapping):
        return {str(k).replace("/", "|"): _storable(v) for k, v in value.items() if v is not None}
    if isinstance(value, tuple | set | frozenset):
        return _storable(sorted(value) if isinstance(value, set | frozenset) else list(value))
    if isinstance(value, list):
        if any(isinstance(v, Mapping | list | tuple) or v is None for v in value):
            import json

            return json.dumps(value, default=str)
        return np.array([str(v) for v in value], dtype=object) if not _numeric(value) else np.array(value)
    return str(value) if isinstance(value, os.PathLike) else value


def _numeric(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(v, int | float | np.number | np.bool_) for v in values)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


_COPY_PIECE = 2**17
#: Fraction of the memory (1/16) for a block of rows.
_COPY_SHARE = 16


def write_as_h5ad(source: Path, target: Path, room: int = 0, memory: str | int | None = None) -> None:
    """Convert a folder, or a file of another format, to h5ad in the empty file ``target``.

    Matrices become CSR, float32 if their values have four bytes or fewer, and are never whole in memory.

    Parameters
    ----------
    room
        Bytes to be added afterwards. The disk space for all is reserved before HDF5 starts, because HDF5 does
        not handle a full disk.
    memory
        Memory that may be used, see :func:`scvec.base.resources.parse_memory`.

    Raises
    ------
    InputError, ResourceError
        See :func:`scvec.ingest.cells.readers.contents_of`.
    """
    from anndata.io import write_elem

    limit = parse_memory(memory)
    contents = contents_of(source, limit)
    try:
        readers = {name: _open_place(contents, name, limit) for name in contents.places}
        with h5py.File(target, "w"):
            pass
        _reserve(target, room + sum(_csr_bytes(reader) for reader in readers.values()))
        with h5py.File(target, "r+", locking="best-effort") as file:
            file.attrs["encoding-type"], file.attrs["encoding-version"] = "anndata", "0.1.0"
            write_elem(file, "obs", _storable_table(contents.obs))
            tables = [place.var()[0] for name, place in contents.places.items() if name != "raw"]
            if tables:
                write_elem(file, "var", _storable_table(tables[0]))
            if any(name.startswith("layers/") for name in readers):
                write_elem(file, "layers", {})
            for name, reader in readers.items():
                if name == "raw":
                    write_elem(file, "raw/var", _storable_table(contents.places[name].var()[0]))
                _write_rows(file, "raw/X" if name == "raw" else name, reader, limit)
            for name, value in contents.more():
                write_elem(file, name, value)
    finally:
        contents.close()


def _open_place(contents: Contents, name: str, memory: int) -> MatrixReader:
    place = contents.places[name]
    return open_matrix(place.item, f"{contents.name} ({name})", contents.n_obs, len(place.var()[0]), memory)


def _csr_bytes(reader: MatrixReader) -> int:
    """Return the most bytes that a matrix takes as CSR."""
    return 12 * reader.n_values + 16 * reader.shape[0]


def _reserve(target: Path, n_bytes: int) -> None:
    if not hasattr(os, "posix_fallocate"):
        return
    with target.open("r+b") as handle, contextlib.suppress(NotImplementedError):
        os.posix_fallocate(handle.fileno(), handle.seek(0, os.SEEK_END), n_bytes)


def _write_rows(file: h5py.File, name: str, reader: MatrixReader, memory: int) -> None:
    """Write a matrix as a CSR group, a block of rows at a time."""
    group = file.create_group(name)
    group.attrs["encoding-type"], group.attrs["encoding-version"] = "csr_matrix", "0.1.0"
    group.attrs["shape"] = np.array(reader.shape)
    options: dict[str, Any] = {"chunks": (_COPY_PIECE,), "maxshape": (None,), "compression": "gzip"}
    data = group.create_dataset("data", (0,), dtype=reader.stored_dtype, **options)
    indices = group.create_dataset("indices", (0,), dtype=np.int32, **options)
    indptr = np.zeros(reader.shape[0] + 1, dtype=np.int64)
    step = reader.rows_within(memory // _COPY_SHARE)
    for start in range(0, reader.shape[0], step):
        block = reader.rows(start, min(start + step, reader.shape[0]))
        end = int(indptr[start]) + block.nnz
        for stored, values in ((data, block.data), (indices, block.indices)):
            stored.resize((end,))
            stored[end - block.nnz :] = values
        indptr[start + 1 : start + 1 + block.shape[0]] = indptr[start] + block.indptr[1:]
    group.create_dataset("indptr", data=indptr)


SUFFIXES = (".csv", ".tsv", ".parquet")


def write_table(table: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write a table as .csv, .tsv or .parquet; the file appears complete or not at all.

    Text is written unchanged. Spreadsheets read a text that starts with ``=``, ``+``, ``-`` or ``@`` as a
    formula. A quote mark before it would prevent this, but it would change cell names such as ``-1_AAACCTG``
    and break every join on them. Control characters are quoted by the CSV rules.

    Raises
    ------
    InputError
        If the suffix is unknown, or the output cannot be written.
    ResourceError
        If the disk is full.
    """
    write_tables([table], path)


def write_tables(parts: Iterable[pd.DataFrame], path: str | os.PathLike[str]) -> None:
    """Write a table given in parts of its rows, with the same columns and categories in each part.

    The bytes of the file, and the errors, are those of :func:`write_table` for the whole table.
    """
    out = check_output(path)
    suffix = out.suffix.lower()
    if suffix not in SUFFIXES:
        fix = f"use the suffix {', '.join(SUFFIXES)} or .h5ad"
        raise InputError(f"unknown output format: '{out.suffix}'", str(out), fix, code="output-format")
    with replacing(out) as temporary:
        if suffix == ".parquet":
            _write_parquet(parts, temporary)
            return
        with temporary.open("w", encoding="utf-8", newline="") as file:
            for k, part in enumerate(parts):
                part.to_csv(file, sep="\t" if suffix == ".tsv" else ",", lineterminator="\n", header=k == 0)


def _write_parquet(parts: Iterable[pd.DataFrame], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Arrow needs 4 bytes per name plus the text, pandas 70. Columns are written in one piece, like pandas,
    # because the pieces determine the page bounds in the file.
    whole = pa.concat_tables([pa.Table.from_pandas(part) for part in parts]).combine_chunks()
    pq.write_table(whole, path)


#: Longest accepted parameters; real ones have a few thousand characters.
MAX_CHARACTERS = 2**20


def read_parameters(source: str | os.PathLike[str] | AnnData, key: str = "scvec") -> dict[str, Any]:
    """Return the parameters in ``uns[key]`` of an annotated file or AnnData object.

    A file is checked first.

    Raises
    ------
    InputError
        If there are no parameters, because scvec did not annotate the file, or they are damaged.
    """
    name = str(source) if isinstance(source, str | os.PathLike) else "the AnnData object"
    text = _parameters_of(source, key, name)
    if text is None:
        raise InputError(
            f"the file has no uns['{key}']: scvec did not annotate these cells",
            name,
            "annotate the cells first: scvec query FILE.h5ad --reference NAME -o OUT.h5ad; give OUT.h5ad",
            code="not-annotated",
        )
    try:
        found = json.loads(text)
        if not isinstance(found, dict) or not isinstance(found["reference"], str):
            raise ValueError("the name of the reference is missing")
        if not isinstance(found["generation"], int):
            raise ValueError("the version of the store is missing")
    except (ValueError, KeyError, RecursionError) as error:
        what = f"uns['{key}'] is damaged: {error}"
        raise InputError(what, name, "annotate the cells again: scvec query", code="damaged-file") from error
    return found


def _parameters_of(source: str | os.PathLike[str] | AnnData, key: str, name: str) -> str | None:
    if not isinstance(source, str | os.PathLike):
        entry = source.uns.get(key)
        text = entry.get("parameters") if hasattr(entry, "get") else None
        return None if text is None else str(text)
    import h5py

    check_h5ad(source)
    with reading(name, f"uns/{key}"), h5py.File(source, "r", locking="best-effort") as file:
        item = file.get("uns")
        for part in (key, "parameters"):
            item = item.get(part) if isinstance(item, h5py.Group) else None
        if not isinstance(item, h5py.Dataset) or item.shape != ():
            return None
        value = item[()]
        text = value.decode("utf-8") if isinstance(value, bytes) else str(value)
    if len(text) > MAX_CHARACTERS:
        raise InputError(
            f"uns['{key}'] holds {len(text):,} characters of parameters",
            name,
            "annotate again",
            code="not-annotated",
        )
    return text
