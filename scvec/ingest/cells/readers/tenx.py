"""Read Cell Ranger (10x Genomics) output: an h5 file of version 2 or 3, or a folder of three files."""

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
from scvec.ingest.cells.matrix import StoredRows
from scvec.ingest.cells.readers import Contents, Place, reader
from scvec.ingest.cells.readers.checks import Given, decoded, hard_items
from scvec.ingest.cells.transpose import Origin, Piece, Transposed, collected, index_dtype

__all__ = ["columns_in", "find_file", "names_in", "read_mtx", "read_tenx", "read_text", "var_of"]

_PARTS = ("data", "indices", "indptr", "shape", "barcodes")


def _genomes(file: h5py.File) -> list[str]:
    """Return the groups that hold a matrix: ``matrix`` in version 3, one per genome in version 2."""
    return [
        name for name, item in hard_items(file).items() if isinstance(item, h5py.Group) and "barcodes" in item
    ]


def _is_tenx(given: Given) -> bool:
    file = given.file
    return file is not None and not {"obs", "var", "row_attrs", "mod"} & set(file) and bool(_genomes(file))


@reader("10x", "an .h5 file of Cell Ranger", sniff=_is_tenx)
def read_tenx(given: Given, memory: int) -> Contents:
    """List the content of a checked, open Cell Ranger file.

    Raises
    ------
    InputError
        If parts are missing or inconsistent, or the file has a separate matrix for each of several genomes.
    """
    file, path = given.hdf5, given.path
    genomes = _genomes(file)
    if len(genomes) > 1:
        what = f"the file holds {len(genomes)} matrices: {', '.join(genomes[:4])}"
        raise InputError(
            what,
            str(path),
            "write each to its own file (scanpy.read_10x_h5, genome=...)",
            code="wrong-format",
        )
    where = f"{path} ({genomes[0]})"
    group = file[genomes[0]]
    with reading(path, genomes[0]):
        missing = [part for part in _PARTS if not isinstance(group.get(part), h5py.Dataset)]
    if missing:
        raise InputError(
            f"the 10x Genomics file has no {' and no '.join(missing)}", where, AGAIN, code="damaged-file"
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
                f"the file has {len(table):,} {what}, but its matrix has {n:,}",
                where,
                AGAIN,
                code="damaged-file",
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
        raise InputError(f"a list of names has shape {values.shape}", where, AGAIN, code="damaged-file")
    return [decoded(v) if isinstance(v, bytes) else str(v) for v in values[:]]


def var_of(names: list[str], ids: list[str], more: dict[str, list[str]], where: str) -> pd.DataFrame:
    lengths = {len(names), len(ids), *map(len, more.values())}
    if len(lengths) > 1:
        raise InputError(
            f"the columns of the genes differ in length: {sorted(lengths)}", where, AGAIN, code="damaged-file"
        )
    return pd.DataFrame({"gene_ids": ids, **more}, index=pd.Index(names, dtype=object))


def _is_mtx(given: Given) -> bool:
    return not given.head and any(
        os.path.lexists(given.path / name) for name in ("matrix.mtx", "matrix.mtx.gz")
    )


@reader("mtx", "a folder with matrix.mtx, features.tsv and barcodes.tsv", sniff=_is_mtx)
def read_mtx(given: Given, memory: int) -> Contents:
    """Read a folder of ``matrix.mtx``, ``features.tsv`` (or ``genes.tsv``) and ``barcodes.tsv``, or ``.gz``.

    The values of a Matrix Market file may be in any order, so it is read completely, with temporary files if
    it has many values (:func:`scvec.ingest.cells.readers.tenx.read_text`).

    Raises
    ------
    InputError
        If a file is missing, not a regular file, damaged, or does not match the others.
    ResourceError
        If the names do not fit in ``memory``, or the disk has no room for the values.
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
                    f"{path.name} is not a file",
                    str(folder),
                    "give the folder of Cell Ranger",
                    code="not-a-file",
                )
            if status.st_size == 0:
                raise InputError(f"{path.name} is empty (0 bytes)", str(folder), AGAIN, code="empty-file")
            return path
    what = f"the folder has a matrix but no {' or '.join(names)}"
    raise InputError(
        what,
        str(folder),
        "give the complete folder: matrix.mtx, features.tsv and barcodes.tsv",
        code="wrong-format",
    )


def names_in(path: Path, memory: int) -> list[list[str]]:
    """Return the rows of a file of tab-separated texts, whose unpacked size is limited by ``memory``."""
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


#: Headers of the last column of names, from R and pandas.
_TITLES = frozenset(
    "gene_id gene_ids gene_name gene_names gene_symbol gene genes symbol symbols feature features "
    "feature_type feature_types barcode barcodes cell cells cell_id x v1 0".split()
)


def columns_in(path: Path, memory: int) -> list[list[str]]:
    """Return the columns of a file of names, without quotes, header and row numbers.

    Raises
    ------
    InputError
        If the file is damaged or has no names.
    ResourceError
        See :func:`names_in`.
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
        raise InputError(f"{path.name} has no names", str(path.parent), AGAIN, code=code)
    return columns


AGAIN = "copy or download it again"
#: The fewest bytes of a value as text ("1 1 1" and a line break), and the best compression of gzip.
_LEAST_TEXT, _GZIP = 6, 1032
#: Bytes of a block of text: minimum, maximum, and fraction of the memory (1/128). Parsing needs six times as
#: much.
_LEAST, _MOST, _SHARE = 2**12, 2**21, 128
#: Longest accepted line; a line of three numbers is far shorter.
_LONGEST_LINE = 2**16


def open_text(path: Path) -> Any:
    """Open a text file for reading bytes; a ``.gz`` file is decompressed."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def read_text(path: Path, n_genes: int, n_cells: int, memory: int, *, by_cell: bool = False) -> Transposed:
    """Read a Matrix Market file once and sort its values by cell.

    Parameters
    ----------
    path
        The file, plain or ``.gz``.
    n_genes, n_cells
        The shape according to the files of genes and cells.
    memory
        Bytes that may be used. Values that do not fit in a fraction of it go to temporary files.
    by_cell
        Whether rows are cells if there are as many genes as cells; otherwise the shape decides.

    Returns
    -------
    (n_cells, n_genes) float32. Values stored twice for a cell and gene are kept twice.

    Raises
    ------
    InputError
        If the file is damaged, not a sparse matrix of numbers, or has another shape.
    ResourceError
        If the disk has no room for the temporary files.
    """
    where = str(path.parent)
    with reading(path):
        try:
            with open_text(path) as handle:
                whole, *claimed, n_values = _head(handle, path)
                turned = claimed == [n_cells, n_genes] and (by_cell or n_genes != n_cells)
                if not turned and claimed != [n_genes, n_cells]:
                    what = f"the matrix is {claimed[0]:,} x {claimed[1]:,}, "
                    what += f"but the folder has {n_genes:,} genes and {n_cells:,} cells"
                    raise InputError(what, where, AGAIN, code="damaged-file")
                size = path.stat().st_size * (_GZIP if path.suffix == ".gz" else 1)
                if not 0 <= n_values <= size // _LEAST_TEXT:
                    what = f"{path.name} is damaged: it is too small for the {n_values:,} values it claims"
                    raise InputError(what, where, AGAIN, code="damaged-file")
                origin = Origin(where, "is text", "give Cell Ranger's .h5 file instead of the folder")
                shape = n_cells, n_genes
                pieces = _pieces(handle, path, whole, shape, n_values, memory, turned=turned)
                return collected(pieces, n_values, shape, np.dtype(np.float32), origin, memory)
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path.name} is damaged: {reason}", str(path.parent), AGAIN, code="damaged-file")


def _head(handle: Any, path: Path) -> tuple[bool, int, int, int]:
    """Return whether values are whole numbers, and the numbers of rows, columns and values of the header."""
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
        raise InputError(f"{path.name} has no numbers", str(path.parent), AGAIN, code="wrong-format")
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

    ``turned`` says whether a line has the cell number before the gene number.
    """
    n_read = 0
    while block := handle.read(int(np.clip(memory // _SHARE, _LEAST, _MOST))):
        # The rest of a longer line does not have three numbers, so it is refused.
        text = block + handle.readline(_LONGEST_LINE)
        *numbers, values = _columns(text, path, whole, shape[::-1] if turned else shape, n_read)
        cells, genes = numbers if turned else reversed(numbers)
        for what, those, n in (("cell", cells, shape[0]), ("gene", genes, shape[1])):
            outside = (those < 1) | (those > n)
            if outside.any():
                at = int(outside.argmax())
                raise _damaged(path, f"value {n_read + at + 1:,} has {what} number {those[at]:,} of {n:,}")
        n_read += len(values)
        if n_read > n_values:
            raise _damaged(path, f"it has more values than the {n_values:,} of its header")
        with np.errstate(over="ignore"):  # infinite values are reported later
            yield cells - 1, genes - 1, values.astype(np.float32)
    if n_read < n_values:
        raise _damaged(path, f"it ends after {n_read:,} of {n_values:,} values")


def _columns(block: bytes, path: Path, whole: bool, shape: tuple[int, int], n_read: int) -> list[Any]:
    """Parse the genes, cells and values of some lines; ``n_read`` values were read before."""
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
        # Arrow's default memory pool does not return memory to the system.
        pool = pa.system_memory_pool()
        table = csv.read_csv(pa.BufferReader(text), lines, words, numbers, memory_pool=pool)
        return [column.to_numpy() for column in table.columns]

    try:
        return parsed(block.replace(b"\t", b" "))
    except (pa.ArrowInvalid, UnicodeError):
        pass
    try:
        # Arrow splits at single blanks; some programs write several, or blanks at line ends.
        return parsed(b"".join(b" ".join(line.split()) + b"\n" for line in block.splitlines()))
    except (pa.ArrowInvalid, UnicodeError) as error:
        # Arrow's message quotes the file, which may hold anything, so only the row number is used.
        row = re.search(r"Row #(\d+)", str(error))
        at = f"value {n_read + int(row[1]):,}" if row else f"a line after value {n_read:,}"
        kind = "whole number" if whole else "number"
        raise _damaged(path, f"{at} is not a gene, a cell and a {kind}") from error
