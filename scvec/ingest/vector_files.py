"""Vectors with their rows as files that vector databases read: parquet, h5ad and Lance."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvec.errors import InputError, ResourceError
from scvec.ingest.borders import disk_errors, parse_memory, size_text
from scvec.ingest.checks import open_h5ad
from scvec.ingest.tables import read_table
from scvec.ingest.write import check_output, replacing
from scvec.types import Float32

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ENDINGS", "ROW", "VECTOR", "VectorFile", "check_target", "read_vectors", "write_vectors"]

#: Format -> ending of its files. A Lance data set is a folder.
ENDINGS = {"parquet": ".parquet", "h5ad": ".h5ad", "lance": ".lance"}
#: Columns of our own: the number of a row, and its vector.
ROW, VECTOR = "scvec_row", "vector"
#: Key of what is said of the whole file, as JSON.
TAGS = "scvec"
#: Rows written at once.
BLOCK = 65_536


@dataclass(frozen=True)
class VectorFile:
    """What a file of vectors holds.

    Attributes
    ----------
    path
        Where it lies.
    rows
        Table of n rows, without the vectors.
    vectors
        (n, dim) float32, as they are in the file: unchecked.
    tags
        What the file says of itself.
    notes
        What could not be read.
    """

    path: Path
    rows: pd.DataFrame
    vectors: Float32
    tags: dict[str, Any]
    notes: list[str]


def check_target(to: str, output: str | os.PathLike[str]) -> Path:
    """Check before any work that a file of this format can be written, and return its path.

    Raises
    ------
    InputError
        No such format, the wrong ending, a folder that is missing or is no Lance data set, or Lance is not
        installed.
    """
    if to not in ENDINGS:
        raise InputError(f"{to!r} is no format to export to", fix=f"formats: {', '.join(ENDINGS)}")
    path = Path(output)
    if path.suffix in ENDINGS.values() and path.suffix != ENDINGS[to]:
        raise InputError(
            f"the output ends in {path.suffix}, but {to} is to be written",
            str(path),
            f"give -o NAME{ENDINGS[to]}, or another --to",
        )
    if to != "lance":
        return check_output(path)
    _lance()
    if path.is_dir() and not (path / "_versions").is_dir():
        raise InputError("the output is a folder and no Lance data set", str(path), "give -o NAME.lance")
    if path.exists() and not path.is_dir():
        raise InputError("the output is a file, a Lance data set is a folder", str(path), "give another -o")
    check_output(path.with_name(f".{path.name}.tmp"))
    return path


def write_vectors(path: Path, to: str, rows: pd.DataFrame, vectors: Float32, tags: Mapping[str, Any]) -> None:
    """Write rows and their vectors (n, dim) float32; the file appears whole or not at all.

    ``tags`` are JSON values. Columns that a format cannot hold under their names are written under others,
    which the tags tell (``columns``).
    """
    names = _names(rows, to)
    table = rows.set_axis(names, axis="columns")
    said = {**tags, "columns": {new: old for new, old in zip(names, rows.columns, strict=True) if new != old}}
    if to == "h5ad":
        _write_h5ad(path, table, vectors, said)
    elif to == "parquet":
        import pyarrow.parquet as pq

        with replacing(path) as part:
            schema, batches = _batches(table, vectors, said)
            with pq.ParquetWriter(part, schema, compression="zstd") as writer:
                for batch in batches:
                    writer.write_batch(batch)
    else:
        _write_lance(path, table, vectors, said)


def read_vectors(path: str | os.PathLike[str], *, memory: str | int | None = None) -> VectorFile:
    """Read what :func:`write_vectors` wrote, or another program that kept its tags, believing nothing in it.

    Raises
    ------
    InputError
        No such file, no file of vectors, or not one of scvec.
    ResourceError
        It claims more memory than may be used.
    """
    where = Path(path)
    if not where.exists():
        raise InputError("there is no such file", str(where), "check the name")
    budget = parse_memory(memory)
    try:
        if where.suffix == ".h5ad":
            return _read_h5ad(where, budget)
        table, said = _read_lance(where, budget) if where.is_dir() else _read_parquet(where, budget)
        tags = _tags(said, where)
        if VECTOR not in table.column_names:
            raise InputError(f"the file has no column {VECTOR!r}", str(where), "export again")
        vectors = _matrix(table.column(VECTOR), where)
        rows = table.drop_columns([VECTOR]).to_pandas()
    except (InputError, ResourceError):
        raise
    except MemoryError as error:
        raise ResourceError("the file asks for more memory than there is", str(where)) from error
    except Exception as error:  # readers let errors of every kind through when a file lies
        reason = (str(error).split("\n")[0] or type(error).__name__)[:160]
        raise InputError(f"the file cannot be read: {reason}", str(where), "export it again") from error
    return VectorFile(where, _renamed(rows, tags), vectors, tags, [])


def _names(rows: pd.DataFrame, to: str) -> list[str]:
    """Return the names of columns as the format can hold them: Lance has no dots, and none is ours twice."""
    names: list[str] = []
    for column in map(str, rows.columns):
        name = column.replace(".", "_") if to == "lance" else column
        while name in names or name == VECTOR:
            name += "_"
        names.append(name)
    return names


def _renamed(rows: pd.DataFrame, tags: Mapping[str, Any]) -> pd.DataFrame:
    columns = tags.get("columns", {})
    return rows.rename(
        columns={str(k): str(v) for k, v in columns.items()} if isinstance(columns, dict) else {}
    )


def _batches(
    table: pd.DataFrame, vectors: Float32, tags: Mapping[str, Any]
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Return the schema, and the rows in blocks."""
    import pyarrow as pa

    plain = pa.Schema.from_pandas(table, preserve_index=False)
    fields = [*plain, pa.field(VECTOR, pa.list_(pa.float32(), vectors.shape[1]))]
    said = {TAGS: json.dumps(tags), "scvec.space": str(tags.get("space", "none"))}
    if "reference" in tags:
        said["scvec.reference"] = str(tags["reference"])
    schema = pa.schema(fields, metadata=said)

    def blocks() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(table), BLOCK):
            part = np.ascontiguousarray(vectors[start : start + BLOCK], dtype=np.float32)
            columns = pa.RecordBatch.from_pandas(
                table.iloc[start : start + BLOCK], schema=plain, preserve_index=False
            ).columns
            rows = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), vectors.shape[1])
            yield pa.RecordBatch.from_arrays([*columns, rows], schema=schema)

    return schema, blocks()


def _write_h5ad(path: Path, table: pd.DataFrame, vectors: Float32, tags: Mapping[str, Any]) -> None:
    import anndata

    key = "cell" if tags.get("kind") == "cells" else "gene_id"
    obs = table.set_index(key)
    obs.index = obs.index.astype(str)
    adata = anndata.AnnData(obs=obs, obsm={"X_scvec": np.asarray(vectors)})
    adata.uns[TAGS] = {k: str(tags[k]) for k in ("reference", "space") if k in tags}
    adata.uns[TAGS]["export"] = json.dumps(tags)
    with replacing(path) as part:
        adata.write_h5ad(part)


def _read_h5ad(path: Path, budget: int) -> VectorFile:
    notes: list[str] = []
    with open_h5ad(path, memory=budget) as file:
        if "uns/scvec/export" not in file or "obsm/X_scvec" not in file:
            raise _not_ours(path)
        said = file["uns/scvec/export"][()]
        tags = _tags(said, path)
        vectors = file["obsm/X_scvec"]
        if getattr(vectors, "ndim", 0) != 2 or vectors.dtype.kind != "f":
            raise InputError("obsm['X_scvec'] holds no vectors", str(path), "export it again")
        if vectors.size * 4 > budget:
            raise _too_large(path, vectors.size * 4)
        matrix = np.asarray(vectors[:], dtype=np.float32)
        obs = read_table(file["obs"], str(path), budget, notes)
    key = "cell" if tags.get("kind") == "cells" else "gene_id"
    rows = obs.drop(columns=[key], errors="ignore").reset_index(names=key)
    return VectorFile(path, _renamed(rows, tags), matrix, tags, notes)


def _read_parquet(path: Path, budget: int) -> tuple[Any, Any]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    claimed = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
    if claimed > budget:
        raise _too_large(path, claimed)
    return file.read(), (file.schema_arrow.metadata or {}).get(TAGS.encode())


def _write_lance(path: Path, table: pd.DataFrame, vectors: Float32, tags: Mapping[str, Any]) -> None:
    import pyarrow as pa

    lance = _lance()
    for column in table.columns:  # dictionaries differ from block to block
        if isinstance(table[column].dtype, pd.CategoricalDtype):
            table[column] = table[column].astype(object)
    schema, batches = _batches(table, vectors, tags)
    beside = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex[:8]}.tmp")
    old = beside.with_suffix(".old")
    try:
        with disk_errors(path):
            lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches), str(beside))
            if path.exists():
                os.replace(path, old)
            os.replace(beside, path)
    finally:
        for leftover in (beside, old):
            with contextlib.suppress(OSError):
                shutil.rmtree(leftover)


def _read_lance(path: Path, budget: int) -> tuple[Any, Any]:
    found = _lance().dataset(str(path))
    dim = getattr(found.schema.field(VECTOR).type, "list_size", 0) if VECTOR in found.schema.names else 0
    claimed = 4 * dim * found.count_rows()
    if claimed > budget:
        raise _too_large(path, claimed)
    return found.to_table(), (found.schema.metadata or {}).get(TAGS.encode())


def _lance() -> Any:
    try:
        import lance
    except ImportError as error:
        raise InputError(
            "Lance is not installed", fix="pip install -c constraints.txt -e '.[lance]'"
        ) from error
    return lance


def _matrix(column: Any, path: Path) -> Float32:
    """Return a column of lists as (n, dim) float32."""
    import pyarrow as pa

    kind = column.type
    if not (pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type)):
        raise InputError(f"the column {VECTOR!r} holds {kind} and no vectors of one length", str(path))
    if column.null_count:
        raise InputError(f"{column.null_count:,} rows have no vector", str(path), "export it again")
    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], type=kind)
    flat = values.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, dtype=np.float32).reshape(len(values), kind.list_size)


def _tags(said: object, path: Path) -> dict[str, Any]:
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    try:
        tags = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        tags = None
    if not isinstance(tags, dict) or tags.get("kind") not in ("cells", "genes"):
        raise _not_ours(path)
    return tags


def _not_ours(path: Path) -> InputError:
    return InputError(
        "the file does not say which vectors it holds",
        str(path),
        "give one that scvec export wrote; other vectors of genes: scvec import-legacy",
    )


def _too_large(path: Path, claimed: int) -> ResourceError:
    return ResourceError(
        f"the file needs {size_text(claimed)} of memory", str(path), "give more with --memory, as 8G"
    )
