"""Reading, writing and checking the files of the store.

Arrays are safetensors, tables are parquet, everything else is JSON; nothing is pickled. Writes are complete
and flushed to the disk, and reads check the content.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError, ResourceError, ScvecError, StoreError
from scvec.base.types import Float32

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "check_file",
    "check_folder",
    "check_reference_name",
    "content_name",
    "holds",
    "is_full",
    "is_plain_name",
    "map_vectors",
    "open_regular",
    "os_errors",
    "plain_json",
    "read_json",
    "read_table",
    "read_tensors",
    "sha256_file",
    "sync_file",
    "sync_folder",
    "write_atomic",
    "write_json",
    "write_table",
    "write_tensors",
]

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXT = ("No space left on device", "Disk quota exceeded", "File too large")

# (path, inode, mtime in ns, size) -> SHA-256 of files that this process has already read completely.
_seen: dict[tuple[str, int, int, int], str] = {}


def is_plain_name(name: object) -> bool:
    """Return whether ``name`` is a file name that cannot lead out of its folder."""
    return isinstance(name, str) and _PLAIN.fullmatch(name) is not None and ".." not in name


def check_reference_name(name: str) -> None:
    """Raise InputError if ``name`` is not a valid name of a reference."""
    if not is_plain_name(name):
        raise InputError(
            f"{name!r} is not a valid name of a reference",
            "--name",
            "use letters, digits, '.', '_' and '-', a letter or digit first",
            code="bad-name",
        )


def content_name(name: str, sha256: str, ext: str) -> str:
    """Return ``name-<16 hex digits>.ext``, the file name of content with this SHA-256."""
    full = f"{name}-{sha256[:16]}.{ext}"
    if not is_plain_name(full):
        raise ValueError(f"not a plain file name: {full!r}")
    return full


@contextmanager
def os_errors(where: str | Path) -> Iterator[None]:
    """Translate a full disk, exhausted memory or missing permissions into errors of scvec.

    Each library reports a full disk in its own way (FAISS as RuntimeError, safetensors and DuckDB with their
    own classes), so this also checks the text of foreign errors.
    """
    try:
        yield
    except ScvecError:
        raise
    except MemoryError as error:
        raise ResourceError("out of memory", str(where), "free memory or use a smaller reference") from error
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else None
        if is_full(error):
            raise ResourceError(
                "the disk is full; the store was not changed",
                str(where),
                "free space, then run the command again",
                code="disk-full",
            ) from error
        if code in (errno.EISDIR, errno.ENOTDIR, errno.ELOOP):
            odd = getattr(error, "filename", None) or where
            raise StoreError("a file of the store is not a regular file", str(odd), "delete it") from error
        if code in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise InputError(
                f"no permission to write ({os.strerror(code)})",
                str(where),
                "choose another folder with --store",
                code="permission-denied",
            ) from error
        raise


def check_folder(path: Path) -> None:
    """Raise StoreError if ``path`` is a link or a file. The folders of a store must not be links."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        what = "is a link" if stat.S_ISLNK(mode) else "is not a folder"
        raise StoreError(f"a folder of the store {what}", str(path), "replace it with a folder")


def open_regular(path: Path, flags: int = os.O_RDONLY, mode: int = 0o666) -> int:
    """Open a regular file and return its descriptor. Never follow a link, never wait for a pipe.

    Raises
    ------
    StoreError
        ``path`` is not a regular file.
    """
    odd = StoreError("a file of the store is not a regular file", str(path), "move it elsewhere")
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        fd = os.open(path, flags, mode)
    except OSError as error:
        # ENXIO: a pipe without a reader.
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR) or path.is_dir():
            raise odd from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise odd
    return fd


def is_full(error: BaseException) -> bool:
    """Return whether an error means that the disk is full."""
    code = error.errno if isinstance(error, OSError) else None
    return code in _FULL or any(text in str(error) for text in _FULL_TEXT)


def sync_file(path: Path) -> None:
    """Flush a file to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk, if the platform supports it."""
    if os.name == "nt":  # Windows cannot open a folder
        return
    sync_file(path)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a small file atomically: readers see the old or the new content, also after a power failure."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "xb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hex; the file is read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def holds(path: Path, n_bytes: int, sha256: str) -> bool:
    """Return whether the file exists with this size and SHA-256."""
    try:
        return path.stat().st_size == n_bytes and sha256_file(path) == sha256
    except OSError:
        return False


def _damaged(path: Path, what: str) -> StoreError:
    return StoreError(
        f"a file of the store {what}",
        str(path),
        "run `scvec verify` to see all damage; restore the store from a copy, or ingest again",
    )


def check_file(path: Path, n_bytes: int, sha256: str, *, fresh: bool = False) -> Path:
    """Check size and SHA-256 of a file and return ``path``.

    A process reads each file once, until its inode, size or modification time changes. ``fresh`` always reads
    the file.

    Raises
    ------
    StoreError
        The file is missing, is not a regular file, or has another size or SHA-256.
    """
    try:
        # lstat: the store never writes a link or a pipe, and reading a pipe would block.
        found = os.lstat(path)
    except FileNotFoundError:
        raise _damaged(path, "is missing") from None
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(found.st_mode):
        raise _damaged(path, "is not a regular file")
    if found.st_size != n_bytes:
        raise _damaged(path, f"has {found.st_size:,} bytes instead of {n_bytes:,}")
    key = (str(path), found.st_ino, found.st_mtime_ns, found.st_size)
    actual = None if fresh else _seen.get(key)
    if actual is None:
        try:
            actual = sha256_file(path)
        except OSError as error:
            raise _damaged(path, f"cannot be read ({error.strerror})") from error
        _seen[key] = actual
    if actual != sha256:
        raise _damaged(path, f"is damaged (SHA-256 {actual[:12]}… instead of {sha256[:12]}…)")
    return path


_KINDS = {"b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"}


def write_tensors(path: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write named arrays of numbers or bools as safetensors; equal arrays give equal bytes.

    Raises
    ------
    InputError
        An array holds text, objects or complex numbers.
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
        # safetensors copies raw memory, so a transposed or big-endian array would be read back wrong.
        ready[name] = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    # safetensors writes files that only their owner can read. Give them the default mode of a new file.
    path.touch()
    mode = path.stat().st_mode & 0o777
    save_file(ready, str(path))
    path.chmod(mode)


def read_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays that :func:`write_tensors` wrote; raise StoreError if the file is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        loaded: dict[str, npt.NDArray[Any]] = load_file(str(path))
    except (SafetensorError, ValueError, KeyError) as error:
        raise _unreadable(path, "safetensors", error) from error
    return loaded


def map_vectors(path: Path, name: str = "vectors") -> Float32:
    """Return the (n, dim) float32 array ``name`` of a safetensors file, memory-mapped and read-only.

    The system loads rows on first access, so a reference may be larger than memory.

    Raises
    ------
    StoreError
        The file is damaged.
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
    """Convert numpy numbers, arrays, tuples, sets and paths in ``value`` to JSON values.

    Raises
    ------
    InputError
        JSON cannot hold a value, such as NaN or infinity.
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
        return value.name  # a stored path must not reveal folders of the user's machine
    raise InputError(f"a {type(value).__name__} cannot be stored as JSON")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value; equal values give equal bytes."""
    text = json.dumps(plain_json(value), sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file; raise StoreError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, "JSON", error) from error


def write_table(path: Path, table: pd.DataFrame) -> list[str]:
    """Write a table with its index as parquet (zstd); return notes on columns stored as text.

    A column with values of several types becomes text, because a parquet column has one type. So does a
    column of a type that parquet lacks.

    Raises
    ------
    InputError
        Two columns have the same name.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [str(c) for c in table.columns]
    if len(set(names)) != len(names):
        twice = sorted({n for n in names if names.count(n) > 1})
        raise InputError(f"several columns have the same name: {', '.join(twice[:5])}", fix="rename them")
    table = table.set_axis(names, axis="columns").copy(deep=False)
    notes: list[str] = []
    for name in names:
        column = table[name]
        try:
            pa.Table.from_pandas(table[[name]], preserve_index=False)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            values = [None if _missing(v) else str(v) for v in column.tolist()]
            table[name] = pd.Series(values, index=table.index, dtype=object)
            notes.append(f"column {name} has values of several types or an odd type; it is stored as text")
    pq.write_table(pa.Table.from_pandas(table, preserve_index=True), str(path), compression="zstd")
    return notes


def read_table(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """Read the table that :func:`write_table` wrote; raise StoreError if the file is damaged."""
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
        f"a file of the store cannot be read as {kind} ({type(error).__name__})",
        str(path),
        "run `scvec verify`; restore the store from a copy, or ingest again",
    )
