"""Read a pickle without running it: plain values and numpy arrays only, in a process of its own.

A pickle is a program, and reading one with Python's pickle module runs it. Here a child process
(:mod:`scvec.ingest.pickle_child`) reads it with stand-ins for the few names that arrays need, within limits
of memory and time, and hands back numbers and JSON.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from scvec.errors import InputError, ResourceError, ScvecError
from scvec.ingest import pickle_child
from scvec.ingest.borders import parse_memory, size_text

__all__ = ["load_plain"]

MAX_BYTES = 4 * 2**30
_MIN_MEMORY = 2**29
_ADVICE = (
    "where the file was made, turn it into a dictionary of lists or numpy arrays, or write JSON or "
    "CSV; see docs/genes.md"
)
_START = "import sys; sys.path += sys.argv[1:3]; from scvec.ingest.pickle_child import main; main()"
_HEADS = (
    (b"\x1f\x8b", "a gzip file", "unpack it first: gunzip FILE"),
    (b"BZh", "a bzip2 file", "unpack it first: bunzip2 FILE"),
    (b"\xfd7zXZ\x00", "an xz file", "unpack it first: unxz FILE"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "unpack it first: unzstd FILE"),
    (b"PK\x03\x04", "a zip archive (torch.save and numpy.savez write such)", _ADVICE),
    (b"\x89HDF", "an HDF5 file", _ADVICE),
    (b"\x93NUMPY", "a NumPy array", _ADVICE),
    (b"PAR1", "a parquet table", _ADVICE),
    (b'{"', "JSON", "name it with the ending .json"),
    (b"version https://git-lfs", "a Git LFS pointer, not the data", "fetch the data with: git lfs pull"),
    (b"<", "a web page, so a download went wrong", "download the file again"),
)
_KINDS = {f"<{k}{n}" for k in "iuf" for n in (2, 4, 8)} | {"|b1", "|i1", "|u1"}


def load_plain(
    path: Path | str,
    *,
    max_bytes: int = MAX_BYTES,
    memory: str | int | None = None,
    timeout: float | None = None,
) -> Any:
    """Return what a pickle holds, if that is plain: nothing of the file is run.

    Parameters
    ----------
    path
        The file, of any pickle protocol. Not compressed.
    max_bytes
        Larger files are refused.
    memory
        What reading may use, see :func:`scvec.ingest.borders.parse_memory`; half of what is free by default.
    timeout
        Seconds until reading is given up; by default 60 and a second for each 2 MB.

    Returns
    -------
    object
        None, bool, int, float, str, bytes, list, tuple, set, frozenset and dict (keys str or int) of these,
        and numpy arrays of numbers, booleans or texts (read-only). 64 floats or more in a list come back as a
        float64 array; numpy scalars and ordered dictionaries as Python's own.

    Raises
    ------
    InputError
        The file is no pickle, is damaged, or holds anything else; the message names the class.
    ResourceError
        It needs more memory than it may use.
    """
    path = Path(path)
    allowed = max(parse_memory(memory), _MIN_MEMORY)
    try:
        if not path.is_file():
            what = "this is a folder, not a file" if path.is_dir() else "no such file"
            raise InputError(what, str(path), "check the path")
        size = path.stat().st_size
        if size > max_bytes:
            what = f"the pickle has {size_text(size)}; at most {size_text(max_bytes)} are read"
            raise InputError(what, str(path), _ADVICE)
        with path.open("rb") as file, tempfile.TemporaryDirectory(prefix="scvec-pickle-") as folder:
            _check_head(file, path)
            result = Path(folder) / "result"
            code = _run(file, result, Path(folder), allowed, timeout or 60.0 + size / 2e6, path)
            return _read(result, code, path, allowed)
    except OSError as error:
        raise InputError(
            f"the pickle cannot be read: {error.strerror}", str(path), "check the file"
        ) from error


def _check_head(file: BinaryIO, path: Path) -> None:
    head = file.read(64)
    file.seek(0)
    if not head:
        raise InputError("the file is empty (0 bytes)", str(path), "copy or download it again")
    for start, what, fix in _HEADS:
        if head.lstrip(b" \r\n\t" if start in (b"<", b'{"') else b"").startswith(start):
            raise InputError(f"this is no pickle but {what}", str(path), fix)


def _run(file: BinaryIO, result: Path, folder: Path, memory: int, seconds: float, path: Path) -> int:
    roots = [
        str(Path(file).resolve().parents[k]) for file, k in ((pickle_child.__file__, 2), (np.__file__, 1))
    ]
    # Isolated (-I): whatever lies in its folder or stands in the environment, and it gets no keys.
    command = [sys.executable, "-I", "-c", _START, *roots, str(memory), str(int(seconds) + 1)]
    kept = {k: v for k, v in os.environ.items() if k.upper() in ("SYSTEMROOT", "LD_LIBRARY_PATH")}
    quiet = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with result.open("wb") as out:
        try:
            done = subprocess.run(
                command,
                stdin=file,
                stdout=out,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={**kept, **quiet},
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            what = f"reading the pickle took more than {seconds:.0f} s, and was ended"
            raise InputError(what, str(path), _ADVICE) from error
    return done.returncode


def _read(result: Path, code: int, path: Path, memory: int) -> Any:
    size = result.stat().st_size
    tail = 8 + len(pickle_child.MAGIC)
    blob = np.fromfile(result, dtype=np.uint8) if size else np.empty(0, dtype=np.uint8)
    end = blob[-tail:].tobytes()
    if size < tail or end[8:] != pickle_child.MAGIC:
        what = f"the process that read the pickle broke off (code {code}); nothing else was touched"
        raise InputError(what, str(path), f"get the file again, or {_ADVICE}")
    length = struct.unpack("<Q", end[:8])[0]
    try:
        said = json.loads(blob[max(0, size - tail - length) : size - tail].tobytes())
        if "value" in said:
            blob.flags.writeable = False
            return _decode(said["value"], blob[: size - tail - length])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError("the pickle could not be read", str(path), _ADVICE) from error
    raise _refusal(said, path, memory)


def _refusal(said: dict[str, Any], path: Path, memory: int) -> ScvecError:
    what, name, kind = (str(said.get(key, "")) for key in ("refused", "name", "kind"))
    if kind == "memory":
        fix = f"{size_text(memory)} may be used: raise --memory, or use a larger machine"
        return ResourceError(what, str(path), fix)
    if kind == "damaged":
        return InputError(f"this is no sound pickle: {what}", str(path), "copy or download it again")
    said_name = what or f"the pickle asks for {name}, which scvec does not run"
    return InputError(said_name, str(path), _ADVICE)


def _decode(said: Any, blob: npt.NDArray[np.uint8]) -> Any:
    """Rebuild a value. What the child says is checked too: it has read what nobody trusts."""
    if not isinstance(said, dict):
        return said
    ((kind, content),) = said.items()
    if kind == "array":
        start, length, dtype, shape = content
        if dtype not in _KINDS and not (dtype[:2] in ("<U", "|S") and dtype[2:].isdigit()):
            raise ValueError(dtype)
        return _bytes(blob, start, length).view(np.dtype(dtype)).reshape(shape)
    if kind == "bytes":
        return _bytes(blob, *content).tobytes()
    if kind == "dict":
        return {key: _decode(value, blob) for key, value in content}
    make = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind]
    return make(_decode(value, blob) for value in content)


def _bytes(blob: npt.NDArray[np.uint8], start: int, length: int) -> npt.NDArray[np.uint8]:
    if not 0 <= start <= start + length <= len(blob):
        raise ValueError("a blob lies outside")
    part = blob[start : start + length]
    # A view that begins at an odd address is slow and, for some types, not allowed.
    return part if start % 8 == 0 else part.copy()
