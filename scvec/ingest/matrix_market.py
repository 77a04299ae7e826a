"""Expression matrices as text (Matrix Market, ``matrix.mtx``), a block of lines at a time."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scvec.errors import InputError
from scvec.ingest.borders import reading
from scvec.ingest.turned import Origin, Piece, Turned, collected, index_dtype

__all__ = ["AGAIN", "open_text", "read_text"]

AGAIN = "copy or download it again"
#: The fewest bytes that a value takes as text ("1 1 1" and a line break), and how often gzip can shrink it.
_LEAST_TEXT, _GZIP = 6, 1032
#: Bytes of text in work at least, at most, and as a share of the memory: six times as much is made of them.
_LEAST, _MOST, _SHARE = 2**12, 2**21, 128
#: A line of three numbers is far shorter.
_LONGEST_LINE = 2**16


def open_text(path: Path) -> Any:
    """Open a file of text, unpacked if it is called ``.gz``, for reading bytes."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def read_text(path: Path, n_genes: int, n_cells: int, memory: int) -> Turned:
    """Read a Matrix Market file of genes by cells once, and bring it into the order of its cells.

    Parameters
    ----------
    path
        The file, plain or ``.gz``.
    n_genes, n_cells
        Its shape according to the files beside it.
    memory
        Bytes that may be used. Values that do not fit into a share of it go to temporary files.

    Returns
    -------
    (n_cells, n_genes) float32. What was written twice for a cell and gene is there twice.

    Raises
    ------
    InputError
        If it is damaged, no sparse matrix of numbers, or of another shape.
    ResourceError
        If there is no room for the temporary files.
    """
    where = str(path.parent)
    with reading(path):
        try:
            with open_text(path) as handle:
                whole, *claimed, n_values = _head(handle, path)
                if claimed != [n_genes, n_cells]:
                    what = f"the matrix is {claimed[0]:,} x {claimed[1]:,}, "
                    what += f"but there are {n_genes:,} genes and {n_cells:,} cells"
                    raise InputError(what, where, AGAIN)
                size = path.stat().st_size * (_GZIP if path.suffix == ".gz" else 1)
                if not 0 <= n_values <= size // _LEAST_TEXT:
                    what = f"{path.name} claims {n_values:,} values, which it cannot hold: it is damaged"
                    raise InputError(what, where, AGAIN)
                origin = Origin(where, "is text", "give the .h5 of Cell Ranger in place of the folder")
                shape = n_cells, n_genes
                pieces = _pieces(handle, path, whole, shape, n_values, memory)
                return collected(pieces, n_values, shape, np.dtype(np.float32), origin, memory)
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path.name} is damaged: {reason}", str(path.parent), AGAIN)


def _head(handle: Any, path: Path) -> tuple[bool, int, int, int]:
    """Read the first lines, up to the one with the size.

    Returns
    -------
    Whether the values are whole numbers, and how many genes, cells and values the file claims to have.
    """
    kind, line = handle.readline(1024).lower().split(), b"%"
    while line.startswith(b"%"):
        line = handle.readline(_LONGEST_LINE)
    try:
        claimed = [int(word) for word in line.split()]
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    shape = [b"%%matrixmarket", b"matrix", b"coordinate"], [b"general"]
    if (kind[:3], kind[4:]) != shape or len(claimed) != 3:
        raise InputError(f"{path.name} is not a sparse Matrix Market file", str(path.parent), AGAIN)
    if kind[3] not in (b"integer", b"real"):
        raise InputError(f"{path.name} holds no numbers", str(path.parent), AGAIN)
    n_genes, n_cells, n_values = claimed
    return kind[3] == b"integer", n_genes, n_cells, n_values


def _pieces(
    handle: Any, path: Path, whole: bool, shape: tuple[int, int], n_values: int, memory: int
) -> Iterator[Piece]:
    """Yield all values as cells, genes and float32, counted from 0.

    Parameters
    ----------
    whole
        Whether the values are whole numbers.
    shape
        (n_cells, n_genes) that all numbers must be within.
    n_values
        How many values there must be.
    """
    n_read = 0
    while block := handle.read(int(np.clip(memory // _SHARE, _LEAST, _MOST))):
        # The rest of a longer line is then a line without three numbers, which is refused.
        genes, cells, values = _columns(block + handle.readline(_LONGEST_LINE), path, whole, shape, n_read)
        for what, numbers, n in (("cell", cells, shape[0]), ("gene", genes, shape[1])):
            outside = (numbers < 1) | (numbers > n)
            if outside.any():
                at = int(outside.argmax())
                raise _damaged(path, f"value {n_read + at + 1:,} is of {what} {numbers[at]:,} of {n:,}")
        n_read += len(values)
        if n_read > n_values:
            raise _damaged(path, f"there are more values than the {n_values:,} it claims")
        with np.errstate(over="ignore"):  # infinite values are reported when all are read
            yield cells - 1, genes - 1, values.astype(np.float32)
    if n_read < n_values:
        raise _damaged(path, f"it ends after {n_read:,} of {n_values:,} values")


def _columns(block: bytes, path: Path, whole: bool, shape: tuple[int, int], n_read: int) -> list[Any]:
    """Return the genes, cells and values of some lines of text; ``n_read`` values were before them."""
    import pyarrow as pa
    from pyarrow import csv

    cell, gene = (pa.from_numpy_dtype(index_dtype(n)) for n in shape)
    types = {"gene": gene, "cell": cell, "value": pa.int64() if whole else pa.float64()}
    lines = csv.ReadOptions(use_threads=False, block_size=2**20, column_names=list(types))
    words = csv.ParseOptions(delimiter=" ", quote_char=False)
    numbers = csv.ConvertOptions(column_types=types, null_values=[], check_utf8=False)

    def parsed(text: bytes) -> list[Any]:
        # Not of Arrow's own pool, which gives nothing back.
        pool = pa.system_memory_pool()
        table = csv.read_csv(pa.BufferReader(text), lines, words, numbers, memory_pool=pool)
        return [column.to_numpy() for column in table.columns]

    try:
        return parsed(block)
    except (pa.ArrowInvalid, UnicodeError):
        pass
    try:
        # Arrow splits at single blanks only; some programs write tabs, or blanks at the ends of lines.
        return parsed(b"".join(b" ".join(line.split()) + b"\n" for line in block.splitlines()))
    except (pa.ArrowInvalid, UnicodeError) as error:
        # What Arrow says has parts of the file in it, which may be anything.
        row = re.search(r"Row #(\d+)", str(error))
        at = f"value {n_read + int(row[1]):,}" if row else f"a line after value {n_read:,}"
        kind = "whole number" if whole else "number"
        raise _damaged(path, f"{at} is not a gene, a cell and a {kind}") from error
