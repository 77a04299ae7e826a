"""Vectors with their rows as files that vector databases read: parquet and h5ad."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from scvec.base.errors import InputError, ResourceError
from scvec.base.resources import parse_memory
from scvec.base.results import human_bytes
from scvec.base.types import Float32
from scvec.ingest.cells.readers.anndata import read_table
from scvec.ingest.cells.readers.checks import open_h5ad
from scvec.ingest.cells.write import check_output, replacing

__all__ = ["ROW", "VECTOR", "VectorFile", "check_target", "read_vectors", "write_vectors"]

#: Columns that scvec adds: the number of a row, and its vector.
ROW, VECTOR = "scvec_row", "vector"
#: Key of the JSON tags of a file; rows written at once.
TAGS, BLOCK = "scvec", 65_536


@dataclass(frozen=True)
class VectorFile:
    """A table of n rows, (n, dim) float32 vectors, unchecked, and the tags of a file."""

    path: Path
    rows: pd.DataFrame
    vectors: Float32
    tags: dict[str, Any]
    notes: list[str]


def check_target(to: str, output: str | os.PathLike[str]) -> Path:
    """Return the path of the output; InputError says why this format cannot be written there."""
    path = check_output(output)
    if to not in ("parquet", "h5ad"):
        raise InputError(f"there is no format {to!r} to export to", fix="formats: parquet, h5ad")
    if path.suffix in (".parquet", ".h5ad") and path.suffix != f".{to}":
        what = f"the output ends in {path.suffix}, but {to} is to be written"
        raise InputError(what, str(path), f"give -o NAME.{to}, or another --to", code="output-format")
    return path


def write_vectors(path: Path, to: str, rows: pd.DataFrame, vectors: Float32, tags: Mapping[str, Any]) -> None:
    """Write rows and their vectors (n, dim) float32, whole or not at all.

    ``tags`` are JSON values. A column named as the vectors is renamed; the tag ``columns`` has its name.
    """
    other = next(f"{VECTOR}{'_' * n}" for n in range(1, 99) if f"{VECTOR}{'_' * n}" not in rows.columns)
    table = rows.rename(columns={VECTOR: other})
    said = {**tags, "columns": {other: VECTOR} if VECTOR in rows.columns else {}}
    with replacing(path) as part:
        if to == "h5ad":
            _write_h5ad(part, table, vectors, said)
        else:
            _write_parquet(part, table, vectors, said)


def _write_h5ad(part: Path, table: pd.DataFrame, vectors: Float32, tags: Mapping[str, Any]) -> None:
    import anndata

    obs = table.set_index(_key(tags))
    obs.index = obs.index.astype(str)
    said = {k: str(tags[k]) for k in ("reference", "space") if k in tags} | {"export": json.dumps(tags)}
    anndata.AnnData(obs=obs, obsm={"X_scvec": np.asarray(vectors)}, uns={TAGS: said}).write_h5ad(part)


def _write_parquet(part: Path, table: pd.DataFrame, vectors: Float32, tags: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain, dim = pa.Schema.from_pandas(table, preserve_index=False), vectors.shape[1]
    said = {TAGS: json.dumps(tags)} | {
        f"scvec.{k}": str(tags[k]) for k in ("reference", "space") if k in tags
    }
    schema = pa.schema([*plain, pa.field(VECTOR, pa.list_(pa.float32(), dim))], metadata=said)
    with pq.ParquetWriter(part, schema, compression="zstd") as writer:
        for start in range(0, len(table), BLOCK):
            block, rows = vectors[start : start + BLOCK], table.iloc[start : start + BLOCK]
            lists = pa.array(np.ascontiguousarray(block, dtype=np.float32).ravel())
            columns = pa.RecordBatch.from_pandas(rows, schema=plain, preserve_index=False).columns
            columns.append(pa.FixedSizeListArray.from_arrays(lists, dim))
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def read_vectors(path: str | os.PathLike[str], *, memory: str | int | None = None) -> VectorFile:
    """Read a file of :func:`write_vectors`, or of a program that kept its tags; nothing in it is trusted.

    InputError says why it cannot be read, ResourceError that it needs more than ``memory``.
    """
    where = Path(path)
    if not where.is_file():
        raise InputError("there is no such file", str(where), "check the name", code="file-not-found")
    read = _read_h5ad if where.suffix == ".h5ad" else _read_parquet
    try:
        rows, vectors, tags, notes = read(where, parse_memory(memory))
    except (InputError, ResourceError):
        raise
    except MemoryError as error:
        raise ResourceError("the file asks for more memory than there is", str(where)) from error
    except Exception as error:  # readers let errors of every kind through when a file lies
        reason = (str(error).split("\n")[0] or type(error).__name__)[:160]
        raise InputError(
            f"the file cannot be read: {reason}", str(where), "export it again", code="damaged-file"
        ) from error
    names = tags.get("columns")
    renamed = {str(k): str(v) for k, v in names.items()} if isinstance(names, dict) else {}
    return VectorFile(where, rows.rename(columns=renamed), vectors, tags, notes)


_Read: TypeAlias = tuple[pd.DataFrame, Float32, dict[str, Any], list[str]]


def _read_h5ad(path: Path, budget: int) -> _Read:
    with open_h5ad(path, memory=budget) as file:
        tags = _tags(file["uns/scvec/export"][()] if "uns/scvec/export" in file else None, path)
        vectors = file.get("obsm/X_scvec")
        if getattr(vectors, "ndim", 0) != 2 or vectors.dtype.kind != "f":
            raise InputError(
                "obsm['X_scvec'] holds no vectors", str(path), "export it again", code="wrong-format"
            )
        _check_size(vectors.size * 4, budget, path)
        matrix = np.asarray(vectors[:], dtype=np.float32)
        obs, notes = read_table(file["obs"], str(path), budget)
    key = _key(tags)
    return obs.drop(columns=[key], errors="ignore").reset_index(names=key), matrix, tags, list(notes)


def _read_parquet(path: Path, budget: int) -> _Read:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    groups = range(file.metadata.num_row_groups)
    _check_size(sum(file.metadata.row_group(i).total_byte_size for i in groups), budget, path)
    tags = _tags((file.schema_arrow.metadata or {}).get(TAGS.encode()), path)
    table = file.read()
    kind = table.schema.field(VECTOR).type if VECTOR in table.column_names else None
    if kind is None or not (pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type)):
        raise InputError(
            f"no column {VECTOR!r} holds vectors of one length",
            str(path),
            "export it again",
            code="wrong-format",
        )
    column = table.column(VECTOR)
    if column.null_count:
        raise InputError(
            f"{column.null_count:,} rows have no vector", str(path), "export it again", code="wrong-format"
        )
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    vectors = np.concatenate([np.empty(0, np.float32), *flat], dtype=np.float32)
    rows = table.drop_columns([VECTOR]).to_pandas()
    return rows, vectors.reshape(len(table), kind.list_size), tags, []


def _key(tags: Mapping[str, Any]) -> str:
    return "cell" if tags.get("kind") == "cells" else "gene_id"


def _tags(said: object, path: Path) -> dict[str, Any]:
    try:
        tags = json.loads(said) if isinstance(said, str | bytes) else None
    except (ValueError, RecursionError):
        tags = None
    if not isinstance(tags, dict) or tags.get("kind") not in ("cells", "genes"):
        fix = "give one that scvec export wrote; for other vectors of genes: scvec import-legacy"
        raise InputError("the file does not say which vectors it holds", str(path), fix, code="wrong-format")
    return tags


def _check_size(claimed: int, budget: int, path: Path) -> None:
    if claimed > budget:
        what = f"the file needs {human_bytes(claimed)} of memory"
        raise ResourceError(what, str(path), "give more with --memory, as 8G")
