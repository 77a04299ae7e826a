"""Arrays as safetensors, tables as parquet, everything else as JSON. Nothing is pickled."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError, StoreError
from scvec.base.types import Float32

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "map_vectors",
    "plain_json",
    "read_json",
    "read_table",
    "read_tensors",
    "write_json",
    "write_table",
    "write_tensors",
]

_KINDS = {"b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"}


def write_tensors(path: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write named arrays of numbers or bools as safetensors, the same bytes for the same arrays.

    Raises
    ------
    InputError
        An array of text, objects or complex numbers.
    """
    from safetensors.numpy import save_file

    ready: dict[str, npt.NDArray[Any]] = {}
    for name in sorted(tensors):
        array = np.asarray(tensors[name])
        kind = f"{array.dtype.kind}{array.dtype.itemsize}"
        if kind not in _KINDS:
            raise InputError(
                f"an array of {array.dtype} cannot be stored", name, "store numbers here and text as JSON"
            )
        # safetensors copies memory as it lies: a transposed or big-endian array would come back scrambled.
        ready[name] = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    # safetensors makes files that only their owner may read: they get the mode that any new file has here.
    path.touch()
    mode = path.stat().st_mode & 0o777
    save_file(ready, str(path))
    path.chmod(mode)


def read_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read what :func:`write_tensors` wrote; raise StoreError if it is none."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        loaded: dict[str, npt.NDArray[Any]] = load_file(str(path))
    except (SafetensorError, ValueError, KeyError) as error:
        raise _unreadable(path, "safetensors", error) from error
    return loaded


def map_vectors(path: Path, name: str = "vectors") -> Float32:
    """Return the (n, dim) float32 array ``name`` of a safetensors file, mapped read-only.

    Rows come from the disk as they are touched, so a reference larger than memory can be used.
    """
    try:
        with open(path, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length)) if 0 < length <= 1 << 20 else {}
        entry = header[name]
        n, dim = (int(v) for v in entry["shape"])
        start, stop = (int(v) for v in entry["data_offsets"])
        if entry["dtype"] != "F32" or n < 0 or dim < 0 or stop - start != 4 * n * dim:
            raise ValueError(f"{name} is {entry['dtype']} {entry['shape']}")
        if n * dim == 0:
            return np.zeros((n, dim), dtype=np.float32)
        return np.asarray(np.memmap(path, dtype="<f4", mode="r", offset=8 + length + start, shape=(n, dim)))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(path, "safetensors", error) from error


def plain_json(value: Any) -> Any:
    """Return ``value`` with numpy numbers, arrays, tuples and paths made plain JSON values.

    Raises
    ------
    InputError
        A value that JSON cannot hold, NaN and infinity included.
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        if not math.isfinite(value):
            raise InputError(f"{value} cannot be stored as JSON", fix="use None")
        return float(value)
    if value is None or isinstance(value, str):
        return None if value is None else str(value)
    if isinstance(value, Mapping):
        return {str(k): plain_json(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain_json(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain_json(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return [plain_json(v) for v in sorted(value)]
    if isinstance(value, Path):
        return value.name  # where a file lay on somebody's machine is nobody else's business
    raise InputError(f"a {type(value).__name__} cannot be stored as JSON")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value, the same bytes for equal values."""
    text = json.dumps(plain_json(value), sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file; raise StoreError if it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, "JSON", error) from error


def write_table(path: Path, table: pd.DataFrame) -> list[str]:
    """Write a table with its index as parquet (zstd); return notes on columns stored as text.

    Columns of mixed types become text, as parquet has one type a column.

    Raises
    ------
    InputError
        Two columns of one name.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [str(c) for c in table.columns]
    if len(set(names)) != len(names):
        twice = sorted({n for n in names if names.count(n) > 1})
        raise InputError(f"columns of one name: {', '.join(twice[:5])}", fix="rename them")
    table = table.set_axis(names, axis="columns").copy(deep=False)
    notes: list[str] = []
    for name in names:
        column = table[name]
        try:
            pa.Array.from_pandas(column)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            values = [None if _missing(v) else str(v) for v in column.tolist()]
            table[name] = pd.Series(values, index=table.index, dtype=object)
            notes.append(f"column {name} has values of several types; stored as text")
    pq.write_table(pa.Table.from_pandas(table, preserve_index=True), str(path), compression="zstd")
    return notes


def read_table(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """Read what :func:`write_table` wrote; raise StoreError if it is none."""
    import pandas as pd
    import pyarrow as pa

    try:
        return pd.read_parquet(path, columns=columns, engine="pyarrow")
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise _unreadable(path, "parquet", error) from error


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _unreadable(path: Path, kind: str, error: BaseException) -> StoreError:
    return StoreError(
        f"a file of the store is no readable {kind} ({type(error).__name__})",
        str(path),
        "run `scvec verify`; restore the store from a copy, or ingest again",
    )
