"""Expression matrices as text (Matrix Market, ``matrix.mtx``), a block of lines at a time."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scvec.errors import InputError
from scvec.ingest.borders import reading
from scvec.ingest.turned import Origin, Piece, Turned, collected, index_dtype, values_within

__all__ = ["AGAIN", "open_text", "read_text"]

AGAIN = "copy or download it again"
#: The fewest bytes that a value takes as text ("1 1 1" and a line break), and how often gzip can shrink it.
_LEAST_TEXT, _GZIP = 6, 1032
#: Bytes of text in work at most, at least, and as a share of the memory: ten times as much is made of them.
_MOST, _LEAST, _SHARE = 2**23, 2**12, 128
#: A line of three numbers is far shorter.
_LONGEST_LINE = 2**16
_NUMBERS = b"0123456789+-.eE \t\r\nnNaAiIfFtTyY"  # with "nan" and "infinity", which are told of later
_BLANK = re.compile(rb"\n[ \t\r]*(?=\n)")
_BLANK_ENDS = (b"\n\n", b" \n", b"\t\n", b"\r\n")


@dataclass(frozen=True)
class _Head:
    """What the first lines say.

    Attributes
    ----------
    field
        ``integer`` or ``real``.
    n_genes, n_cells, n_values
        The size claimed.
    n_lines
        Lines up to here.
    """

    field: str
    n_genes: int
    n_cells: int
    n_values: int
    n_lines: int


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
                head = _head(handle, path)
                if (head.n_genes, head.n_cells) != (n_genes, n_cells):
                    what = f"the matrix is {head.n_genes:,} x {head.n_cells:,}, "
                    what += f"but there are {n_genes:,} genes and {n_cells:,} cells"
                    raise InputError(what, where, AGAIN)
                size = path.stat().st_size * (_GZIP if path.suffix == ".gz" else 1)
                if head.n_values < 0 or head.n_values > size // _LEAST_TEXT:
                    what = f"{path.name} claims {head.n_values:,} values, which it cannot hold: it is damaged"
                    raise InputError(what, where, AGAIN)
                origin = Origin(where, "is text", "give the .h5 of Cell Ranger in place of the folder")
                pieces = _pieces(handle, head, path, memory)
                shape = n_cells, n_genes
                return collected(pieces, head.n_values, shape, np.dtype(np.float32), origin, memory)
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path.name} is damaged: {reason}", str(path.parent), AGAIN)


def _head(handle: Any, path: Path) -> _Head:
    """Read the first lines, up to the one that tells the size."""
    first, line, n_lines = handle.readline(1024), b"%", 1
    while line.startswith(b"%"):
        line, n_lines = handle.readline(_LONGEST_LINE), n_lines + 1
    kind = first.lower().split()
    try:
        claimed = [int(word) for word in line.split()]
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if (
        kind[:3] != [b"%%matrixmarket", b"matrix", b"coordinate"]
        or kind[4:] != [b"general"]
        or len(claimed) != 3
    ):
        raise InputError(f"{path.name} is no sparse Matrix Market file", str(path.parent), AGAIN)
    if kind[3] not in (b"integer", b"real"):
        raise InputError(f"{path.name} holds no numbers", str(path.parent), AGAIN)
    n_genes, n_cells, n_values = claimed
    return _Head(kind[3].decode(), n_genes, n_cells, n_values, n_lines)


def _pieces(handle: Any, head: _Head, path: Path, memory: int) -> Iterator[Piece]:
    """Yield all values as cells, genes and float32; see to it that they are as many as was claimed."""
    most, n_lines, left = values_within(memory), head.n_lines, head.n_values
    for block in _blocks(handle, path, int(np.clip(memory // _SHARE, _LEAST, _MOST))):
        cells, genes, data = _parsed(block, head, path, n_lines)
        n_lines += block.count(b"\n")
        left -= len(data)
        if left < 0:
            raise _damaged(path, f"there are more values than the {head.n_values:,} it claims")
        for a in range(0, len(data), most):
            yield cells[a : a + most], genes[a : a + most], data[a : a + most]
    if left:
        raise _damaged(path, f"it ends after {head.n_values - left:,} of {head.n_values:,} values")


def _blocks(handle: Any, path: Path, size: int) -> Iterator[bytes]:
    """Yield whole lines of together about ``size`` bytes."""
    rest = b""
    while text := handle.read(size):
        end = text.rfind(b"\n") + 1
        if end:
            yield rest + text[:end]
            rest = b""
        rest += text[end:]
        if len(rest) > _LONGEST_LINE:
            raise _damaged(path, f"a line has more than {_LONGEST_LINE:,} bytes")
    if rest:
        yield rest + b"\n"


def _parsed(block: bytes, head: _Head, path: Path, n_lines: int) -> Piece:
    """Turn whole lines into numbers, counted from 0.

    scipy's reader runs past the end of a text whose last line does not end, or that has a zero byte, and the
    process with it. So a block ends with a line break and is made of nothing but what belongs into numbers.
    """
    from scipy.io import mmread

    odd = block.translate(None, _NUMBERS)
    if odd:
        raise _damaged(path, f"{odd[:1]!r} has no place in a number")
    n = block.count(b"\n")
    if block.startswith(b"\n") or any(end in block for end in _BLANK_ENDS):
        n -= sum(1 for _ in _BLANK.finditer(b"\n" + block))
    title = f"%%MatrixMarket matrix coordinate {head.field} general\n{head.n_genes} {head.n_cells} {n}\n"
    try:
        found: Any = mmread(io.BytesIO(title.encode() + block))
    except (ValueError, OverflowError) as error:
        # Its lines are counted from the title, which has two.
        told = re.sub(r"^Line (\d+)", lambda m: f"line {int(m[1]) - 2 + n_lines:,}", str(error))
        raise _damaged(path, told.rstrip(".")) from error
    cells = found.col.astype(index_dtype(head.n_cells), copy=False)
    genes = found.row.astype(index_dtype(head.n_genes), copy=False)
    with np.errstate(over="ignore"):  # infinite values are told of when all are read
        return cells, genes, found.data.astype(np.float32)
