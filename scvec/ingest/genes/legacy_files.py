"""Files of earlier systems as plain records: JSON, CSV and pickles, read without trusting them."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np

from scvec.base.borders import count_text, parse_memory, size_text
from scvec.base.errors import InputError, ResourceError
from scvec.ingest.genes.safe_pickle import load_plain

__all__ = ["Records", "read_records"]

_FIX = "give JSON or CSV (also .gz) or a pickle, of texts or vectors by gene; see docs/genes.md"
_GZIP = b"\x1f\x8b"
#: Bytes of memory that a byte of JSON may take as objects.
_PER_BYTE = 8
_MAX_CELL = 1 << 20


@dataclass
class Records:
    """Key -> value, as the file has it.

    Attributes
    ----------
    sha256
        Of the file as it lies there.
    """

    values: dict[Any, Any]
    sha256: str
    notes: list[str] = field(default_factory=list)


def read_records(path: Path, *, memory: str | int | None = None) -> Records:
    """Return the records of a JSON, CSV or pickle file.

    Raises
    ------
    InputError
        The file is missing, damaged, or none of these.
    ResourceError
        It needs more memory than it may use.
    """
    allowed = parse_memory(memory)
    if not path.is_file():
        what = "this is a folder, not a file" if path.is_dir() else "no such file"
        raise InputError(what, str(path), "check the path")
    try:
        with path.open("rb") as raw:
            sha256 = hashlib.file_digest(raw, "sha256").hexdigest()
            raw.seek(0)
            head = raw.read(512)
        packed = head.startswith(_GZIP)
        name = path.name.lower().removesuffix(".gz")
        if packed:
            with gzip.open(path) as unpacked:
                head = unpacked.read(512)
        notes: list[str] = []
        start = head.lstrip(b"\xef\xbb\xbf \r\n\t")
        if name.endswith((".pkl", ".pickle", ".p")) or head.startswith(b"\x80"):
            if packed:
                raise InputError(
                    "the pickle lies in a gzip file", str(path), f"unpack it first: gunzip {path.name}"
                )
            values = load_plain(path, memory=memory)
            if not isinstance(values, dict):
                what = f"the pickle holds a {type(values).__name__}, not a dictionary by gene"
                raise InputError(what, str(path), _FIX)
        elif start.startswith(b"{") or name.endswith(".json"):
            values = _json(path, packed, allowed, notes)
        elif name.endswith((".csv", ".tsv", ".txt")):
            values = _csv(path, packed, allowed, notes)
        else:
            raise InputError("this is no file of an earlier system that scvec reads", str(path), _FIX)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError("the file is truncated or damaged", f"{path}: {error}", "get it again") from error
    except UnicodeDecodeError as error:
        raise InputError("the file is not UTF-8 text", f"{path}: {error}", _FIX) from error
    except OSError as error:
        raise InputError(f"the file cannot be read: {error}", str(path), "check the file") from error
    return Records(values, sha256, notes)


def _json(path: Path, packed: bool, memory: int, notes: list[str]) -> dict[Any, Any]:
    limit = memory // _PER_BYTE
    with gzip.open(path) if packed else path.open("rb") as raw:
        content = raw.read(limit + 1)
    if len(content) > limit:
        what = f"the JSON has more than {size_text(limit)}, which may take {size_text(memory)} of memory"
        raise ResourceError(what, str(path), "raise --memory, or split the file")
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice.extend(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        return found

    try:
        values = json.loads(content.decode("utf-8-sig"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        raise InputError(f"the JSON cannot be read: {error}", str(path), "get it again") from error
    if not isinstance(values, dict):
        what = f"the JSON holds a {type(values).__name__}, not an object by gene"
        raise InputError(what, str(path), _FIX)
    if twice:
        notes.append(_repeated(path, twice))
    return values


def _csv(path: Path, packed: bool, memory: int, notes: list[str]) -> dict[Any, Any]:
    with (
        gzip.open(path) if packed else path.open("rb") as raw,
        io.TextIOWrapper(cast("Any", raw), encoding="utf-8-sig", newline="") as text,
    ):
        return _rows(text, path, memory, notes)


def _rows(text: TextIO, path: Path, memory: int, notes: list[str]) -> dict[Any, Any]:
    values: dict[Any, Any] = {}
    twice: list[str] = []
    used = 0
    first = text.readline(_MAX_CELL)
    separator = "\t" if first.count("\t") > first.count(",") else ","
    lines = _bounded(first, text, path)
    try:
        for number, cells in enumerate(csv.reader(lines, delimiter=separator), 1):
            if len(cells) < 3:
                if number == 1:
                    raise InputError("the table has no columns of numbers", f"{path}, line 1", _FIX)
                if any(cells):
                    values[cells[0]] = None
                continue
            try:
                vector: Any = np.array(cells[1:], dtype=np.float32)
            except ValueError:
                if number == 1:
                    continue  # the names of the columns
                vector = None
            if number == 1 and vector is not None and np.array_equal(vector, np.arange(len(vector))):
                continue  # pandas numbers the columns
            if cells[0] in values:
                twice.append(cells[0])
            values[cells[0]] = vector
            used += 4 * len(cells) + 200
            if used > memory:
                what = f"the table needs more than {size_text(memory)} of memory"
                raise ResourceError(what, str(path), "raise --memory, or split the file")
    except csv.Error as error:
        raise InputError(f"the csv cannot be read: {error}", str(path), "write it again") from error
    if twice:
        notes.append(_repeated(path, twice))
    return values


def _repeated(path: Path, twice: list[str]) -> str:
    shown = ", ".join(dict.fromkeys(twice[:3]))
    return f"{path.name}: {count_text(len(twice), 'record')} repeat a key, such as {shown}: the last counts"


def _bounded(first: str, text: TextIO, path: Path) -> Any:
    line = first
    while line:
        if len(line) >= _MAX_CELL:
            raise InputError("a line is longer than 1 MB", str(path), _FIX)
        yield line
        line = text.readline(_MAX_CELL)
