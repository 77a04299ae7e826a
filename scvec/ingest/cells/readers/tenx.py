"""Cells as 10x Genomics' Cell Ranger writes them: an h5 of version 2 or 3, or a folder of three files."""

from __future__ import annotations

import gzip
import os
import re
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from scvec.base.errors import InputError, ResourceError, reading
from scvec.base.results import human_bytes
from scvec.ingest.cells.contents import Contents, Place
from scvec.ingest.cells.matrix import StoredRows
from scvec.ingest.cells.readers import reader
from scvec.ingest.cells.readers.checks import Given, decoded, hard_items
from scvec.ingest.cells.transpose import Origin, Piece, Transposed, collected, index_dtype

__all__ = ["columns_in", "find_file", "names_in", "read_mtx", "read_tenx", "read_text", "var_of"]

_PARTS = ("data", "indices", "indptr", "shape", "barcodes")


def _genomes(file: h5py.File) -> list[str]:
    """Return the groups that hold a matrix: ``matrix`` in version 3, one a genome in version 2."""
    return [
        name for name, item in hard_items(file).items() if isinstance(item, h5py.Group) and "barcodes" in item
    ]


def _is_tenx(given: Given) -> bool:
    file = given.file
    return file is not None and not {"obs", "var", "row_attrs", "mod"} & set(file) and bool(_genomes(file))


@reader("10x", "an .h5 file of Cell Ranger", sniff=_is_tenx)
def read_tenx(given: Given, memory: int) -> Contents:
    """List what a checked, open Cell Ranger file holds.

    Raises
    ------
    InputError
        If parts are missing or contradict each other, or the file holds several genomes apart.
    """
    file, path = given.hdf5, given.path
    genomes = _genomes(file)
    if len(genomes) > 1:
        what = f"the file holds {len(genomes)} matrices: {', '.join(genomes[:4])}"
        raise InputError(
            what,
            str(path),
            "write them to files of their own (scanpy.read_10x_h5, genome=...)",
            code="wrong-format",
        )
    where = f"{path} ({genomes[0]})"
    group = file[genomes[0]]
    with reading(path, genomes[0]):
        missing = [part for part in _PARTS if not isinstance(group.get(part), h5py.Dataset)]
    if missing:
        raise InputError(
            f"the 10x Genomics file lacks its {' and '.join(missing)}", where, AGAIN, code="damaged-file"
        )
    with reading(path, genomes[0]):
        n_genes, n_cells = (int(n) for n in group["shape"][:])
        barcodes = _texts(group["barcodes"], where, memory)
        if isinstance(group.get("features"), h5py.Group):
            features = group["features"]
            names, ids = (_texts(features[part], where, memory) for part in ("name", "id"))
            more = {
                column: _texts(features[part], where, memory)
                for part, column in (("feature_type", "feature_types"), ("genome", "genome"))
                if part in features
            }
        else:
            names, ids = (_texts(group[part], where, memory) for part in ("gene_names", "genes"))
            more = {}
        var = var_of(names, ids, more, where)
    for what, table, n in (("barcodes", barcodes, n_cells), ("genes", names, n_genes)):
        if len(table) != n:
            raise InputError(
                f"there are {len(table):,} {what} for a matrix of {n:,}", where, AGAIN, code="damaged-file"
            )
    rows = StoredRows({part: group[part] for part in ("data", "indices", "indptr")}, (n_cells, n_genes))
    return Contents(
        str(path),
        pd.DataFrame(index=pd.Index(barcodes, dtype=object)),
        {"X": Place(rows, lambda: (var, ()))},
        path,
        close=file.close,
    )


def _texts(values: h5py.Dataset, where: str, memory: int) -> list[str]:
    if values.ndim != 1 or values.size * max(values.dtype.itemsize, 16) > memory:
        raise InputError(f"a list of names is of shape {values.shape}", where, AGAIN, code="damaged-file")
    return [decoded(v) if isinstance(v, bytes) else str(v) for v in values[:]]


def var_of(names: list[str], ids: list[str], more: dict[str, list[str]], where: str) -> pd.DataFrame:
    lengths = {len(names), len(ids), *map(len, more.values())}
    if len(lengths) > 1:
        raise InputError(
            f"the columns of the genes have {sorted(lengths)} entries", where, AGAIN, code="damaged-file"
        )
    return pd.DataFrame({"gene_ids": ids, **more}, index=pd.Index(names, dtype=object))


def _is_mtx(given: Given) -> bool:
    return not given.head and any(
        os.path.lexists(given.path / name) for name in ("matrix.mtx", "matrix.mtx.gz")
    )


@reader("mtx", "a folder with matrix.mtx, features.tsv and barcodes.tsv", sniff=_is_mtx)
def read_mtx(given: Given, memory: int) -> Contents:
    """Read a folder of ``matrix.mtx``, ``features.tsv`` (or ``genes.tsv``) and ``barcodes.tsv``, or ``.gz``.

    A Matrix Market file has no order that could be trusted, so it is read from end to end at once, into
    temporary files where its values are many (:func:`scvec.ingest.cells.readers.tenx.read_text`).

    Raises
    ------
    InputError
        If a file is missing, no plain file, damaged, or does not fit the others.
    ResourceError
        If the names do not fit into ``memory``, or the disk has no room for the values.
    """
    folder = given.path
    barcodes = columns_in(find_file(folder, "barcodes.tsv"), memory)[0]
    features = columns_in(find_file(folder, "features.tsv", "genes.tsv"), memory)
    more = {"feature_types": features[2]} if len(features) > 2 else {}
    var = var_of(features[min(1, len(features) - 1)], features[0], more, str(folder))
    X = read_text(find_file(folder, "matrix.mtx"), len(var), len(barcodes), memory)
    obs = pd.DataFrame(index=pd.Index(barcodes, dtype=object))
    return Contents(str(folder), obs, {"X": Place(X, lambda: (var, ()))}, folder)


def find_file(folder: Path, *names: str) -> Path:
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if not os.path.lexists(path):
                continue
            if path.is_symlink() and folder.resolve() not in path.resolve().parents:
                raise InputError(
                    f"{path.name} is a link out of the folder",
                    str(folder),
                    "copy the file here",
                    code="file-links-outside",
                )
            try:
                status = path.stat()
            except OSError as error:
                raise InputError(
                    f"{path.name} cannot be read", str(folder), AGAIN, code="damaged-file"
                ) from error
            if not stat.S_ISREG(status.st_mode):
                raise InputError(
                    f"{path.name} is no file",
                    str(folder),
                    "give the folder of Cell Ranger",
                    code="not-a-file",
                )
            if status.st_size == 0:
                raise InputError(f"{path.name} is empty (0 bytes)", str(folder), AGAIN, code="empty-file")
            return path
    what = f"there is no {' or '.join(names)} beside the matrix"
    raise InputError(
        what,
        str(folder),
        "give the whole folder: matrix.mtx, features.tsv and barcodes.tsv",
        code="wrong-format",
    )


def names_in(path: Path, memory: int) -> list[list[str]]:
    """Return the rows of a file of tab-separated texts, which must unpack to no more than the memory."""
    most = memory // 16
    try:
        with open_text(path) as handle:
            content = handle.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path.name} is damaged: {error}", str(path.parent), AGAIN, code="damaged-file"
        ) from error
    if len(content) > most:
        what = f"{path.name} holds more than {human_bytes(most)} of names"
        raise ResourceError(what, str(path.parent), "raise --memory, if you trust the file")
    return [line.split("\t") for line in decoded(content).splitlines() if line]


#: Titles of the last column of names, as R and pandas write them.
_TITLES = frozenset(
    "gene_id gene_ids gene_name gene_names gene_symbol gene genes symbol symbols feature features "
    "feature_type feature_types barcode barcodes cell cells cell_id x v1 0".split()
)


def columns_in(path: Path, memory: int) -> list[list[str]]:
    """Return the columns of a file of names, without quotes, titles and numbers of rows.

    Raises
    ------
    InputError
        If it is damaged, or holds no names.
    ResourceError
        As of :func:`names_in`.
    """
    rows = names_in(path, memory)
    if rows and len(rows[0]) == 1 and "," in rows[0][0]:
        rows = [row[0].split(",") for row in rows]
    rows = [[text.strip('"') for text in row] for row in rows]
    if rows and rows[0][-1].lower() in _TITLES:
        del rows[0]
    columns = [list(column) for column in zip(*rows, strict=False)]
    if len(columns) > 1 and columns[0] in [[str(i + k) for i in range(len(rows))] for k in (0, 1)]:
        del columns[0]
    if not columns:
        code = "no-genes" if path.name.startswith(("features", "genes")) else "no-cells"
        raise InputError(f"{path.name} holds no names", str(path.parent), AGAIN, code=code)
    return columns


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


def read_text(path: Path, n_genes: int, n_cells: int, memory: int, *, by_cell: bool = False) -> Transposed:
    """Read a Matrix Market file once, and bring it into the order of its cells.

    Parameters
    ----------
    path
        The file, plain or ``.gz``.
    n_genes, n_cells
        Its shape according to the files beside it.
    memory
        Bytes that may be used. Values that do not fit into a share of it go to temporary files.
    by_cell
        Whether its rows are cells where there are as many genes as cells; else its shape tells.

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
                turned = claimed == [n_cells, n_genes] and (by_cell or n_genes != n_cells)
                if not turned and claimed != [n_genes, n_cells]:
                    what = f"the matrix is {claimed[0]:,} x {claimed[1]:,}, "
                    what += f"but there are {n_genes:,} genes and {n_cells:,} cells"
                    raise InputError(what, where, AGAIN, code="damaged-file")
                size = path.stat().st_size * (_GZIP if path.suffix == ".gz" else 1)
                if not 0 <= n_values <= size // _LEAST_TEXT:
                    what = f"{path.name} claims {n_values:,} values, which it cannot hold: it is damaged"
                    raise InputError(what, where, AGAIN, code="damaged-file")
                origin = Origin(where, "is text", "give the .h5 of Cell Ranger in place of the folder")
                shape = n_cells, n_genes
                pieces = _pieces(handle, path, whole, shape, n_values, memory, turned=turned)
                return collected(pieces, n_values, shape, np.dtype(np.float32), origin, memory)
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path.name} is damaged: {reason}", str(path.parent), AGAIN, code="damaged-file")


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
        raise InputError(
            f"{path.name} is not a sparse Matrix Market file", str(path.parent), AGAIN, code="wrong-format"
        )
    if kind[3] not in (b"integer", b"real"):
        raise InputError(f"{path.name} holds no numbers", str(path.parent), AGAIN, code="wrong-format")
    n_genes, n_cells, n_values = claimed
    return kind[3] == b"integer", n_genes, n_cells, n_values


def _pieces(
    handle: Any,
    path: Path,
    whole: bool,
    shape: tuple[int, int],
    n_values: int,
    memory: int,
    *,
    turned: bool,
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
    turned
        Whether the file names the cell of a value before its gene.
    """
    n_read = 0
    while block := handle.read(int(np.clip(memory // _SHARE, _LEAST, _MOST))):
        # The rest of a longer line is then a line without three numbers, which is refused.
        text = block + handle.readline(_LONGEST_LINE)
        *numbers, values = _columns(text, path, whole, shape[::-1] if turned else shape, n_read)
        cells, genes = numbers if turned else reversed(numbers)
        for what, those, n in (("cell", cells, shape[0]), ("gene", genes, shape[1])):
            outside = (those < 1) | (those > n)
            if outside.any():
                at = int(outside.argmax())
                raise _damaged(path, f"value {n_read + at + 1:,} is of {what} {those[at]:,} of {n:,}")
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
        if b"x" in text or b"X" in text:
            raise pa.ArrowInvalid("Arrow would read 0x10 as 16")
        # Not of Arrow's own pool, which gives nothing back.
        pool = pa.system_memory_pool()
        table = csv.read_csv(pa.BufferReader(text), lines, words, numbers, memory_pool=pool)
        return [column.to_numpy() for column in table.columns]

    try:
        return parsed(block.replace(b"\t", b" "))
    except (pa.ArrowInvalid, UnicodeError):
        pass
    try:
        # Arrow splits at single blanks only; some programs write several, or some at the ends of lines.
        return parsed(b"".join(b" ".join(line.split()) + b"\n" for line in block.splitlines()))
    except (pa.ArrowInvalid, UnicodeError) as error:
        # What Arrow says has parts of the file in it, which may be anything.
        row = re.search(r"Row #(\d+)", str(error))
        at = f"value {n_read + int(row[1]):,}" if row else f"a line after value {n_read:,}"
        kind = "whole number" if whole else "number"
        raise _damaged(path, f"{at} is not a gene, a cell and a {kind}") from error
