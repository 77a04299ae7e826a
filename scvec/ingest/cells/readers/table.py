"""Read text tables, plain or .gz: genes x cells or cells x genes, recognised by the names.

The numbers of a block of lines are joined to one column of text, which Arrow parses. This works for any
number of columns and refuses everything that is not a number.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from scvec.base.errors import InputError, ResourceError
from scvec.base.results import count_text, human_bytes
from scvec.ingest.cells.readers import Contents, Place, reader
from scvec.ingest.cells.readers.checks import Given, guess_kind

__all__ = ["genes_in_rows", "read_text_table"]

_SEPARATORS = (b"\t", b",", b";", b" ")
#: Lines, and values of them, that are read to detect the layout.
_PROBED_LINES, _PROBED_VALUES = 100, 200_000
#: Bytes of a block of text: minimum, maximum, and fraction of the memory (1/128).
_LEAST, _MOST, _SHARE = 2**16, 2**22, 128
#: Bytes of memory for a value above zero (two CSR copies while transposing), and for a name.
_VALUE_BYTES, _NAME_BYTES = 24, 160
_SMALLER = (
    "raise --memory, or write it as h5ad: anndata.AnnData(scipy.sparse.csr_matrix(X), ...).write_h5ad()"
)
_MISSING = ("", "na", "nan", "null", "none", "n/a")
_NUMBER = re.compile(rb"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+")
_UNNAMED = re.compile(r"(unnamed: 0|x|v1|index|row|rows|row\.?names|\.\.\.1)?", re.IGNORECASE)
_NAME_TITLE = re.compile(
    r"(unnamed: 0|x|index|ids?|.*(gene|symbol|ensembl|entrez|cell|barcode|feature|name).*)?",
    re.IGNORECASE,
)
#: Columns of gene positions, which featureCounts writes between the names and the counts.
_POSITIONS = ("chr", "start", "end", "strand", "length")
#: Columns of quality metrics of cells among the genes.
_OF_CELLS = re.compile(
    r"n_?(counts?|genes?|umis?|reads)(_.*)?|total_(counts|umis)(_.*)?|(pct|percent)[._].*|n(count|feature)_.*"
    r"|leiden.*|louvain.*|seurat_clusters|clusters?|.*_res\.[\d.]+|doublet_scores?|batch"
    r"|([ux]_?)?(umap|tsne|pca?)[._ -]?\d+",
    re.IGNORECASE,
)
_ID = re.compile(r"ENS[A-Z]{0,6}G\d{11}(\.\d+)?|FBgn\d{7}|WBGene\d{8}|HGNC:\d+|MGI:\d+", re.IGNORECASE)
_BARCODE = re.compile(r"(^|[^A-Za-z])[ACGTN]{8,}([^A-Za-z]|$)")
_PARTS = re.compile(r"[|:;_,/ ]+")


def _is_table(given: Given) -> bool:
    text = given.text
    kind, _ = guess_kind(given.path, text.replace(b"\0", b" "))
    is_text = kind in ("a tab-separated text table", "a CSV text table", "a text file")
    printable = sum(byte >= 32 or byte in b"\t\r\n" for byte in text)
    return is_text and printable >= 0.95 * len(text) and any(sep in text.strip() for sep in _SEPARATORS)


@reader("table", "a table of text (.csv, .tsv, .txt, also .gz)", sniff=_is_table, last=True)
def read_text_table(given: Given, memory: int) -> Contents:
    """Read a table of genes x cells or cells x genes into memory, as CSR.

    Raises
    ------
    InputError
        If a line has a wrong number of columns, a value that is not a number, or a byte that is not text,
        or if the file is not a table.
    ResourceError
        If the values above zero do not fit in memory.
    """
    try:
        with _open(given) as handle:
            layout = _layout(handle, given.path, memory)
        with _open(given) as handle:
            table = _read(handle, layout, memory)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"the file is damaged: {error}", str(given.path), "copy or download it again", code="damaged-file"
        ) from error
    return _contents(table, layout, given.path)


def _open(given: Given) -> IO[bytes]:
    packed = given.head.startswith(b"\x1f\x8b")
    return gzip.open(given.path, "rb") if packed else given.path.open("rb")  # type: ignore[return-value]


@dataclass
class _Layout:
    """The layout of a text table.

    Attributes
    ----------
    path
        The file.
    skipped
        Number of lines before the first row of values.
    sep
        Separator of columns.
    titles
        (n_columns,) names of all columns; empty if there is no header.
    texts
        Numbers of the columns of text, ascending.
    names
        Number of the column with the row names, or None.
    decimal
        Decimal point.
    trailing
        Whether lines end with a separator.
    notes
        Problems found.
    """

    path: Path
    skipped: int
    sep: bytes
    titles: list[str]
    texts: list[int]
    names: int | None
    decimal: str = "."
    trailing: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def width(self) -> int:
        return len(self.titles)

    def refuse(self, line: int, what: str, fix: str = "fix the line, or write the table again") -> InputError:
        return InputError(f"line {line:,} {what}", str(self.path), fix)


def _lines(handle: IO[bytes], path: Path, memory: int) -> Iterator[list[bytes]]:
    """Yield all lines, without line ends, in blocks."""
    size = int(np.clip(memory // _SHARE, _LEAST, _MOST))
    longest, n = memory // 16, 0
    while block := handle.read(size):
        block += handle.readline(longest)
        if len(block) >= longest and not block.endswith(b"\n"):
            what = f"line {n + block.count(10) + 1:,} is longer than {human_bytes(longest)}"
            raise ResourceError(what, str(path), _SMALLER)
        lines = block.removesuffix(b"\n").split(b"\n")
        if b"\0" in block:
            at = next(i for i, line in enumerate(lines) if b"\0" in line)
            what = f"line {n + at + 1:,} has a zero byte: the file is not text, or is damaged"
            raise InputError(what, str(path), "copy or download it again", code="wrong-format")
        n += len(lines)
        yield [line.removesuffix(b"\r") for line in lines]


def _fields(line: bytes, sep: bytes) -> list[bytes]:
    """Split a line into columns, some of which may be quoted."""
    if b'"' not in line:
        return line.split(sep)
    text = line.decode("latin-1")  # Latin-1 keeps every byte unchanged when it is encoded again
    # The length of a line is already bounded. The limit of csv is global, so it is restored afterwards.
    usual = csv.field_size_limit(2**31 - 1)
    try:
        return [one.encode("latin-1") for one in next(csv.reader([text], delimiter=sep.decode()))]
    finally:
        csv.field_size_limit(usual)


def _texts(values: Sequence[bytes], layout_path: Path, line: int) -> list[str]:
    try:
        return [value.decode().strip().strip("\"'") for value in values]
    except UnicodeDecodeError as error:
        what = f"line {line:,} has names that are not UTF-8"
        fix = "convert the file to UTF-8: iconv -f latin1 -t utf-8 FILE > new.csv"
        raise InputError(what, str(layout_path), fix, code="wrong-format") from error


def _layout(handle: IO[bytes], path: Path, memory: int) -> _Layout:
    """Detect the layout of a table from its first lines."""
    some: list[bytes] = []
    for block in _lines(handle, path, memory):
        some += block
        if (sum(map(len, some)) > _LEAST and len(some) > 3) or len(some) > _PROBED_LINES:
            break
    some = some[:_PROBED_LINES]
    if some and some[0].rstrip().count(b"\r") > 2:
        what, fix = "the lines end with carriage returns alone", "convert: tr '\\r' '\\n' < FILE > new.csv"
        raise InputError(what, str(path), fix, code="wrong-format")
    some[:1] = [line.removeprefix(b"\xef\xbb\xbf") for line in some[:1]]
    numbered = [(i + 1, line) for i, line in enumerate(some) if line.strip()]
    if numbered and numbered[0][1].startswith(b"#1."):  # GCT: a version, then the shape
        numbered = numbered[2:]
    found = []
    for each in _SEPARATORS:
        # Lines above the table may be comments; the last lines are values.
        widths = Counter(len(_fields(line, each)) for _, line in numbered[-40:])
        (most, times), *_ = widths.most_common(1) or [(0, 0)]
        if most > 1:
            named = any(0 <= most - len(_fields(line, each)) <= 1 for _, line in numbered[:2])
            found.append((times / sum(widths.values()), named, most, each))
    alike, _, width, sep = max(found, default=(0, False, 0, b""))
    while numbered and numbered[0][1].startswith(b"#") and len(_fields(numbered[0][1], sep or b",")) != width:
        numbered.pop(0)
    if alike < 0.5 or not numbered:
        raise InputError("this text is not a table of numbers", str(path), "give a table of genes and cells")
    probe = [_fields(line, sep) for _, line in numbered[1 : 2 + max(3, _PROBED_VALUES // width)]]
    probe = [fields for fields in probe if len(fields) == width] or [_fields(numbered[0][1], sep)]
    trailing = width > 2 and all(fields[-1] == b"" for fields in probe)
    head = _fields(numbered[0][1].removeprefix(b"#"), sep)
    if trailing:
        width, probe = width - 1, [fields[:-1] for fields in probe]
        head = head[:-1] if head[-1] == b"" else head
    return _columns(path, numbered[0][0], sep, head, probe, trailing)


def _columns(
    path: Path, first: int, sep: bytes, head: list[bytes], probe: list[list[bytes]], trailing: bool
) -> _Layout:
    """Find the columns of names, text and numbers; ``first`` is the line number of ``head``."""
    columns = [[value.decode("latin-1").strip() for value in column] for column in zip(*probe, strict=True)]
    short = len(head) == len(columns) - 1
    titles = [""] * short + _texts(head, path, first)
    flat = [value for column in columns for value in column[:5]]
    decimal = "," if sep != b"," and any(map(_DECIMAL_COMMA.fullmatch, flat)) else "."
    if decimal == "," and any(re.fullmatch(r"-?\d+\.\d+", value) for value in flat):
        decimal = "."

    def numeric(values: list[str]) -> bool:
        present = [value for value in values if value.lower() not in _MISSING]
        good = sum(_NUMBER.fullmatch(value.replace(decimal, ".").encode()) is not None for value in present)
        return 2 * good >= len(present)

    texts = [j for j, column in enumerate(columns) if not numeric(column)]
    if len(titles) != len(columns):
        what = f"has {len(titles):,} columns, but the lines below have {len(columns):,}"
        raise InputError(f"line {first:,} {what}", str(path), "fix the line, or write the table again")
    if titles[0].lower() in ("geneid", "gene_id") and "chr" in (title.lower() for title in titles[:3]):
        texts += [j for j in range(1, 8) if j < len(titles) and titles[j].lower() in _POSITIONS]
    layout = _Layout(path, first, sep, titles, sorted(set(texts)), None, decimal, trailing)
    values = [title for j, title in enumerate(titles) if j not in layout.texts and (j or not short)]
    if len(layout.texts) == len(columns):
        raise InputError(
            "the table holds no numbers", str(path), "give a table of genes and cells", code="wrong-format"
        )
    if not short and values and not _is_heading(values):
        layout.skipped, layout.titles = first - 1, [""] * len(titles)
        layout.notes.append("the table has no header line")
    if layout.texts:
        layout.names = layout.texts[0]
        if layout.names > 0 and _UNNAMED.fullmatch(titles[0]) and _is_run(columns[0]):
            layout.texts.insert(0, 0)
            layout.notes.append("ignored the first column: it holds row numbers")
    elif short or (layout.titles[0] == titles[0] and _NAME_TITLE.fullmatch(titles[0])):
        layout.names, layout.texts = 0, [0]
    return layout


def _is_run(values: Sequence[str]) -> bool:
    """Return whether values are 0, 1, 2, ... or 1, 2, 3, ..."""
    return any(list(values) == [str(i + start) for i in range(len(values))] for start in (0, 1))


def _is_heading(titles: list[str]) -> bool:
    """Return whether the first line is a header; a header of numbers must be unlike values."""
    numbers = sum(_NUMBER.fullmatch(title.encode()) is not None for title in titles)
    different = len(set(titles)) == len(titles)
    odd = (_is_run(titles) and len(titles) > 1) or (different and len(titles) >= 20)
    return 2 * numbers < len(titles) or odd


@dataclass
class _Table:
    """A table in memory: (n_rows, n_columns) float32, and n_rows texts for each column of text."""

    values: sp.csr_matrix[Any]
    texts: dict[int, list[str]]


def _read(handle: IO[bytes], layout: _Layout, memory: int) -> _Table:
    blocks: list[sp.csr_matrix[Any]] = []
    texts: dict[int, list[str]] = {j: [] for j in layout.texts}
    n, used = 0, layout.width * _NAME_BYTES
    for lines in _lines(handle, layout.path, memory):
        numbered = [(n + i + 1, line) for i, line in enumerate(lines)]
        n += len(lines)
        rows = [(i, line) for i, line in numbered if i > layout.skipped and line.strip()]
        if not rows:
            continue
        values = _values(rows, layout, texts)
        with np.errstate(over="ignore"):  # values too large for float32 are reported later, as infinite
            block = sp.csr_matrix(values.astype(np.float32))
        blocks.append(block)
        used += _VALUE_BYTES * block.nnz + len(rows) * _NAME_BYTES * max(1, len(texts))
        if used > memory // 2:
            what = f"the table needs more than {human_bytes(memory)} of memory"
            raise ResourceError(f"{what} (after line {n:,})", str(layout.path), _SMALLER)
    if not blocks:
        raise InputError(
            "the table has no rows", str(layout.path), "give a table of genes and cells", code="empty-file"
        )
    return _Table(sp.vstack(blocks, format="csr"), texts)


def _values(
    rows: list[tuple[int, bytes]], layout: _Layout, texts: dict[int, list[str]]
) -> npt.NDArray[np.float64]:
    """Return the numbers of some lines, (n_lines, n_values), and add their texts to ``texts``."""
    width, sep, apart = layout.width, layout.sep, set(layout.texts)
    leading = len(apart) if layout.texts == list(range(len(apart))) else -1
    parts: list[bytes] = []
    for number, line in rows:
        if line.count(b'"') % 2:
            raise layout.refuse(number, "has an opening quote without a closing one")
        if layout.trailing:
            line = line.removesuffix(sep)
        plain = line.count(sep) == width - 1
        if plain and leading >= 0:
            *some, rest = line.split(sep, leading)
        else:
            fields = line.split(sep) if plain else _fields(line, sep)
            if len(fields) != width:
                raise layout.refuse(number, f"has {len(fields):,} columns instead of {width:,}")
            some = [fields[j] for j in layout.texts]
            rest = sep.join(value for j, value in enumerate(fields) if j not in apart)
        for j, value in zip(layout.texts, _texts(some, layout.path, number), strict=True):
            texts[j].append(value)
        parts.append(rest)
    text = b"\n".join(parts).replace(sep, b"\n").replace(b'"', b"")
    n = width - len(apart)
    values = _parsed(text, layout.decimal)
    if values is None or len(values) != len(rows) * n or not np.isfinite(values).all():
        raise _no_number(rows, parts, layout)
    return values.reshape(len(rows), n)


def _parsed(text: bytes, decimal: str) -> npt.NDArray[np.float64] | None:
    """Parse a text with one number per line; return None if a line is not a number."""
    import pyarrow as pa
    from pyarrow import csv as arrow

    if b"x" in text or b"X" in text:  # Arrow would read 0x10 as 16
        return None
    one = arrow.ReadOptions(use_threads=False, column_names=["value"], block_size=len(text) + 2**10)
    lines = arrow.ParseOptions(delimiter="\x01", quote_char=False, ignore_empty_lines=False)
    numbers = arrow.ConvertOptions(
        column_types={"value": pa.float64()}, null_values=[], check_utf8=False, decimal_point=decimal
    )
    try:
        # Arrow's default memory pool does not return memory to the system.
        pool = pa.system_memory_pool()
        table = arrow.read_csv(pa.BufferReader(text + b"\n"), one, lines, numbers, memory_pool=pool)
    except (pa.ArrowInvalid, UnicodeError):
        return None
    values: npt.NDArray[np.float64] = table.column(0).to_numpy()
    return values


def _no_number(rows: list[tuple[int, bytes]], parts: list[bytes], layout: _Layout) -> InputError:
    """Return the error for the first line with a value that is not a number."""
    titles = [title for j, title in enumerate(layout.titles) if j not in layout.texts]
    for (number, _), part in zip(rows, parts, strict=True):
        for j, value in enumerate(part.split(layout.sep)):
            text = value.replace(b'"', b"").strip().replace(layout.decimal.encode(), b".")
            if not _NUMBER.fullmatch(text) or not np.isfinite(float(text)):
                shown = ascii(value[:20].decode("latin-1"))
                column = f"{titles[j][:40]!a}" if titles[j] else f"{j + 1:,} of the numbers"
                return layout.refuse(
                    number,
                    f"has {shown}, which is not a number (column {column})",
                    "give numbers for all values",
                )
    return layout.refuse(rows[0][0], "or one of the next lines has a value that is not a number")


@cache
def _symbols() -> frozenset[str]:
    """Return the gene symbols that ship with the package, in capitals."""
    import pyarrow.parquet as pq

    path = Path(str(files("scvec").joinpath("data", "snapshot", "genes.parquet")))
    if not path.is_file():
        return frozenset()
    return frozenset(name.upper() for name in pq.read_table(path, columns=["symbol"])[0].to_pylist())


def _share(names: Sequence[str], *, parts: bool = False) -> float:
    """Return the fraction of names (of at most 2,000) that are gene names.

    Parameters
    ----------
    parts
        Whether a part of a name is enough, as in ``INS__chr11``.
    """
    some = names[:: max(1, len(names) // 2000)]

    def known(name: str) -> bool:
        if _ID.fullmatch(name) or name.upper() in _symbols():
            return True
        return parts and any(
            _ID.fullmatch(p) or p.upper() in _symbols() for p in _PARTS.split(name) if len(p) > 1
        )

    return sum(map(known, some)) / max(1, len(some))


def genes_in_rows(rows: list[str], columns: list[str]) -> tuple[bool, str]:
    """Return whether the rows of a table are its genes, and why."""
    for parts in (False, True):
        shares = _share(rows, parts=parts), _share(columns, parts=parts)
        if max(shares) >= 0.1 and max(shares) > 2 * min(shares):
            return shares[0] > shares[1], f"{max(shares):.0%} of the names are known genes"
    barcodes = [sum(map(bool, map(_BARCODE.search, names))) / max(1, len(names)) for names in (rows, columns)]
    if max(barcodes) > 0.5 > min(barcodes):
        return barcodes[1] > barcodes[0], "the others have barcodes as names"
    entrez = [
        all(name.isdigit() for name in names[:2000]) and not _is_run(names) for names in (rows, columns)
    ]
    if entrez[0] != entrez[1]:
        return entrez[0], "the names are Entrez ids"
    return True, "no name is known; most tables have genes in rows"


def _contents(table: _Table, layout: _Layout, path: Path) -> Contents:
    """Return the cells and genes of a table."""
    n_rows = table.values.shape[0]
    columns = [title for j, title in enumerate(layout.titles) if j not in table.texts]
    rows = [] if layout.names is None else table.texts[layout.names]
    rows_are_genes, why = genes_in_rows(rows, columns)
    genes, cells = (rows, columns) if rows_are_genes else (columns, rows)
    if not any(genes):
        what = f"the genes in the {'rows' if rows_are_genes else 'columns'} of the table have no names"
        raise InputError(what, str(path), "give a table with gene names")
    shape = table.values.shape[::-1] if rows_are_genes else table.values.shape
    if not any(cells):
        cells = [f"cell{i + 1}" for i in range(shape[0])]
    side = "rows" if rows_are_genes else "columns"
    note = f"read a table with {count_text(shape[1], 'gene')} in its {side} ({why})"
    note += f" and {count_text(shape[0], 'cell')}"
    others = pd.DataFrame(
        {layout.titles[j] or f"column{j + 1}": table.texts[j] for j in layout.texts if j != layout.names},
        index=range(n_rows),
    )
    if layout.names and layout.texts[0] == 0 and not layout.titles[0]:
        others = others.drop(columns="column1", errors="ignore")  # row numbers
    X = table.values.T.tocsr() if rows_are_genes else table.values
    var, obs = (others, pd.DataFrame(index=range(len(cells)))) if rows_are_genes else (None, others)
    if var is None:
        about = np.array([_OF_CELLS.fullmatch(name) is not None and not _share([name]) for name in genes])
        for j in np.flatnonzero(about):
            obs[genes[j]] = X[:, [j]].toarray()[:, 0]
        if about.any():
            some = ", ".join(np.array(genes)[about][:4])
            layout.notes.append(f"used {count_text(int(about.sum()), 'column')} as obs, not as genes: {some}")
            genes, X = list(np.array(genes, object)[~about]), X[:, np.flatnonzero(~about)]
        var = pd.DataFrame(index=range(len(genes)))
    obs.index, var.index = pd.Index(cells, dtype=object), pd.Index(genes, dtype=object)
    return Contents(str(path), obs, {"X": Place(X, lambda: (var, ()))}, path, (note, *layout.notes))
