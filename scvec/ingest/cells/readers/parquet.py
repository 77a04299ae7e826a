"""Read a parquet table of cell vectors and labels, without genes, as exported from LanceDB or a notebook."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scvec.base.arrays import Packed
from scvec.base.errors import InputError, ResourceError
from scvec.base.results import human_bytes
from scvec.ingest.cells.readers import Contents, reader
from scvec.ingest.cells.readers.checks import Given, unreadable

__all__ = ["read_parquet"]

#: Columns that may hold cell names, if the file has no index.
NAMES = ("cell", "cell_id", "cell_name", "barcode", "obs_names", "observation_joinid", "_id", "id")
#: A column of one dimension of a vector: ``X_scVI_0``, ``X_scVI_1`` and so on.
_NUMBERED = re.compile(r"(.*[^\d_.-])[_.-]?(\d{1,4})")


@reader(
    "parquet", "a parquet table of vectors and labels", sniff=lambda given: given.head.startswith(b"PAR1")
)
def read_parquet(given: Given, memory: int) -> Contents:
    """Read a table with one cell per row: vectors become ``obsm``, all other columns ``obs``.

    Vectors are either a column of lists of numbers (LanceDB's ``vector``), whose name becomes the key, or one
    column of numbers per dimension, numbered from 0 or 1 (``X_scVI_0``, ``X_scVI_1``), whose common prefix
    becomes the key.

    Raises
    ------
    InputError
        If the file is damaged, or the lists of a column differ in length or are missing.
    ResourceError
        If the table does not fit in memory.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = str(given.path)
    try:
        about = pq.read_metadata(given.path)
        size = sum(about.row_group(g).total_byte_size for g in range(about.num_row_groups))
        if 3 * max(size, 8 * about.num_rows * about.num_columns) > memory:
            raise ResourceError(f"the table needs {human_bytes(3 * size)}", where, "raise --memory")
        table = pq.read_table(given.path)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        what = f"the parquet file cannot be read ({type(error).__name__})"
        raise InputError(what, where, "copy or download it again", code="damaged-file") from error
    arrays, rest = _vectors(table, where)
    if not arrays:
        raise unreadable(given, "the table has no vectors: a column of lists, or columns NAME_0, NAME_1, ...")
    return _contents(table.select(rest).to_pandas(), arrays, given.path)


def _is_lance(given: Given) -> bool:
    return (given.path / "_versions").is_dir() and given.path.suffix == ".lance"


@reader("lance", "a parquet table written of one of LanceDB", sniff=_is_lance)
def refuse_lance(given: Given, memory: int) -> Contents:
    """Raise InputError, which explains how to export a LanceDB table."""
    name = given.path.stem
    raise InputError(
        "this is a LanceDB table, which only LanceDB can read",
        str(given.path),
        f"pyarrow.parquet.write_table(lancedb.connect(FOLDER).open_table('{name}').to_arrow(), FILE)",
        code="wrong-format",
    )


def _contents(obs: pd.DataFrame, arrays: Mapping[str, Any], path: Path) -> Contents:
    named = next((name for name in NAMES if name in obs.columns and obs[name].is_unique), None)
    if not isinstance(obs.index, pd.RangeIndex):
        names = obs.index.astype(str)
    elif named is not None:
        names = pd.Index(obs[named].astype(str))
    else:
        names = pd.Index([f"cell {row}" for row in range(len(obs))])
    made = Contents(str(path), (obs.reset_index(drop=True), Packed(list(names))), {}, path)
    made.obsm = arrays
    return made


def _vectors(table: Any, where: str) -> tuple[dict[str, Any], list[str]]:
    """Return the vectors (n, dim) float32 by key, and the names of the other columns."""
    import pyarrow as pa

    found: dict[str, Any] = {}
    rest: list[str] = []
    numbered: dict[str, dict[int, str]] = {}
    for field in table.schema:
        kind, name = field.type, field.name
        if any(t(kind) for t in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)):
            if pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type):
                found[name] = _lists(table[name], name, where)
            continue
        if pa.types.is_nested(kind):
            continue
        rest.append(name)
        match = _NUMBERED.fullmatch(name)
        if match and pa.types.is_floating(kind):
            numbered.setdefault(match[1], {})[int(match[2])] = name
    for key, columns in numbered.items():
        order = sorted(columns)
        if (
            len(order) > 1
            and key not in found
            and order
            in (
                list(range(len(order))),
                list(range(1, len(order) + 1)),
            )
        ):
            found[key] = np.stack(
                [table[columns[k]].to_numpy().astype(np.float32, copy=False) for k in order], axis=1
            )
            rest = [name for name in rest if name not in set(columns.values())]
    return found, rest


def _lists(column: Any, name: str, where: str) -> Any:
    """Return a column of lists of equal length as (n, dim) float32."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    flat = pc.list_flatten(column)
    if len(lengths) != 1 or not lengths[0] or column.null_count or flat.null_count:
        what = f"the lists of column {name!r} differ in length, or some are missing"
        raise InputError(what, where, "remove these cells", code="wrong-format")
    whole = flat.combine_chunks() if isinstance(flat, pa.ChunkedArray) else flat
    return whole.to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(-1, lengths[0])
