"""Read R files of cells: Seurat objects (version 3 to 5), SingleCellExperiment, and matrices of counts.

The package ``rdata`` parses the bytes; no R code is run. It returns a tree of R values, of which only tables,
matrices and names are used here.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
import warnings
import zlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from scvec.base.errors import InputError, ResourceError, reading
from scvec.base.results import human_bytes
from scvec.ingest.cells.readers import Contents, Place, reader
from scvec.ingest.cells.readers.anndata import tidy_table
from scvec.ingest.cells.readers.checks import Given
from scvec.ingest.cells.readers.table import genes_in_rows

__all__ = ["read_rds"]

_PACKED = {b"\x1f\x8b": gzip, b"BZ": bz2, b"\xfd7": lzma}
_NAMES = (".rds", ".rdata", ".rda")
#: Fraction of the memory (1/6) for the unpacked file; the R values and the matrices made from it need more.
_SHARE = 6
_PIECE = 2**22
#: R nests attributes in values. Seurat objects are nested deeper than Python's default recursion limit.
_DEPTH = 20_000
_IN_R = "in R: zellkonverter::writeH5AD(as.SingleCellExperiment(object), 'out.h5ad')"
_SAVE = "in R: saveRDS(object, 'one.rds') of a Seurat object, a SingleCellExperiment or a matrix"


def _is_r(given: Given) -> bool:
    text = given.text
    if text.startswith((b"X\n\x00\x00", b"X\n\x00", b"RDX2\n", b"RDX3\n", b"A\n2\n", b"A\n3\n")):
        return True
    return given.head.startswith((b"BZh", b"\xfd7zXZ")) and given.path.suffix.lower() in _NAMES


@reader("rds", "an .rds file of Seurat or SingleCellExperiment", sniff=_is_r)
def read_rds(given: Given, memory: int) -> Contents:
    """Read an R file into memory: counts, tables and reductions of its object.

    Raises
    ------
    InputError
        If ``rdata`` is not installed, or the file is damaged or has no cells.
    ResourceError
        If the unpacked file takes more than a sixth of the memory.
    """
    try:
        import rdata.parser as parser
    except ImportError as error:
        what = "reading an R .rds file needs the package rdata"
        raise InputError(
            what, str(given.path), f"pip install 'scvec[r]', or {_IN_R}", code="extra-not-installed"
        ) from error
    path = given.path
    content = _unpacked(path, given.head, memory)
    limit = sys.getrecursionlimit()
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tags and names that are not used here
        try:
            sys.setrecursionlimit(max(limit, _DEPTH))
            tree = parser.parse_data(content, extension=None if content.startswith(b"RD") else ".rds").object
        except RecursionError:
            raise InputError("the values in the file are nested too deep", str(path), _IN_R) from None
        finally:
            sys.setrecursionlimit(limit)
        del content
        return _contents(_object(tree, path), path)


def _unpacked(path: Path, head: bytes, memory: int) -> bytes:
    most, content = memory // _SHARE, bytearray()
    opened: Any = next((module.open for start, module in _PACKED.items() if head.startswith(start)), open)
    try:
        with opened(path, "rb") as handle:
            while piece := handle.read(_PIECE):
                content += piece
                if len(content) > most:
                    what = f"the R file needs more than {human_bytes(most)} unpacked, a sixth of the memory"
                    raise ResourceError(what, str(path), f"raise --memory, or {_IN_R}")
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise InputError(
            f"the file is damaged: {error}", str(path), "copy or download it again", code="damaged-file"
        ) from error
    return bytes(content)


def _real(item: Any) -> Any:
    """Resolve a reference to an earlier value of the file."""
    while item is not None and item.referenced_object is not None:
        item = item.referenced_object
    return item


def _kind(item: Any) -> str:
    return "NILVALUE" if item is None else str(item.info.type.name)


def _pairs(item: Any) -> dict[str, Any]:
    """Return an R pairlist as a dict."""
    found, item = {}, _real(item)
    while item is not None and _kind(item) in ("LIST", "LANG"):
        tag = _real(item.tag)
        if tag is not None and tag.value is not None:
            found[_char(tag.value)] = _real(item.value[0])
        item = _real(item.value[1])
    return found


def _char(item: Any) -> str:
    value = item.value
    return "" if value is None else value.decode("utf-8", "replace")


def _attributes(item: Any) -> dict[str, Any]:
    return {} if item is None else _pairs(item.attributes)


def _strings(item: Any) -> list[str]:
    item = _real(item)
    return [_char(text) for text in item.value] if _kind(item) == "STR" else []


def _classes(item: Any) -> list[str]:
    return _strings(_attributes(_real(item)).get("class"))


def _list(item: Any) -> dict[str, Any]:
    """Return the named elements of an R list as a dict."""
    item = _real(item)
    if _kind(item) != "VEC":
        return {}
    names = _strings(_attributes(item).get("names"))
    return {name: _real(value) for name, value in zip(names, item.value, strict=False) if name}


def _environment(item: Any) -> dict[str, Any]:
    """Return the variables of an R environment."""
    value = _real(item).value
    found = _pairs(value.frame)
    table = _real(value.hash_table)
    for chain in table.value if _kind(table) == "VEC" else ():
        found |= _pairs(chain)
    return found


def _object(tree: Any, path: Path) -> Any:
    """Return the object of the file; if an .RData file has several, the one with cells."""
    tree = _real(tree)
    if _kind(tree) != "LIST":
        return tree
    items = _pairs(tree)
    known = {name: item for name, item in items.items() if _reading_of(item)}
    # If another object has cells, a data.frame is a table about them, not counts.
    known = known or {name: item for name, item in items.items() if _counts_of(item) is not None}
    if len(known) != 1:
        what = f"the file holds {len(known)} objects with cells" + (f": {', '.join(known)}" if known else "")
        raise InputError(what, str(path), _SAVE, code="wrong-format")
    return next(iter(known.values()))


def _reading_of(item: Any) -> Any:
    classes = set(_classes(item))
    if "Seurat" in classes:
        return _seurat
    if classes & {"SingleCellExperiment", "SummarizedExperiment", "RangedSummarizedExperiment"}:
        return _experiment
    if classes & {"SpatialExperiment", "SingleCellLoomExperiment", "TreeSummarizedExperiment"}:
        return _experiment
    return _plain if _matrix(item) is not None else None


def _counts_of(item: Any) -> pd.DataFrame | None:
    """Return a data.frame of numbers, with row names or one column of names; else None."""
    if "data.frame" not in _classes(item):
        return None
    frame = _frame(item)
    texts = [name for name in frame.columns if frame[name].dtype.kind not in "biuf"]
    if len(texts) == 1 and isinstance(frame.index, pd.RangeIndex):
        frame = frame.set_index(texts[0])
    elif texts or isinstance(frame.index, pd.RangeIndex):
        return None
    return frame if len(frame.columns) > 1 else None


def _contents(item: Any, path: Path) -> Contents:
    read = _reading_of(item)
    if read is None and _counts_of(item) is not None:
        read = _plain
    if read is None:
        classes = _classes(item)
        if "seurat" in classes:
            fix = "in R: saveRDS(Seurat::UpdateSeuratObject(object), 'new.rds')"
            raise InputError("this is a Seurat object of version 2", str(path), fix)
        what = f"the R file holds no cells, but {' '.join(classes[:2]) or _kind(item).lower()}"
        raise InputError(what, str(path), _SAVE)
    contents: Contents = read(item, path)
    return contents


def _vector(item: Any) -> npt.NDArray[Any] | None:
    """Return a column of a table as an array; None for other R values."""
    item, kind = _real(item), _kind(_real(item))
    attributes = _attributes(item)
    if kind == "STR":
        texts = [None if text.value is None else _char(text) for text in item.value]
        return np.array(texts, dtype=object)
    if kind not in ("INT", "REAL", "LGL"):
        return None
    values = item.value
    if "levels" in attributes:
        levels = _strings(attributes["levels"])
        codes = np.ma.filled(np.ma.asarray(values), 0).astype(np.int64) - 1
        codes[(codes < 0) | (codes >= len(levels))] = -1
        unique = dict.fromkeys(levels)
        if len(unique) < len(levels):
            return np.array([levels[code] if code >= 0 else None for code in codes], dtype=object)
        labels: Any = levels
        factor: Any = pd.Categorical.from_codes(codes, labels)
        return factor  # type: ignore[no-any-return]
    if np.ma.is_masked(values):
        return np.asarray(np.ma.filled(values.astype(np.float64), np.nan))
    return np.asarray(values)


def _frame(item: Any) -> pd.DataFrame:
    """Return a data.frame, or a DataFrame of S4Vectors, with its row names as index."""
    item = _real(item)
    attributes = _attributes(item)
    if "listData" in attributes:
        columns, names = _list(attributes["listData"]), _strings(attributes.get("rownames"))
        n = int(attributes["nrows"].value[0]) if "nrows" in attributes else len(names)
    else:
        columns, names = _list(item), _strings(attributes.get("row.names"))
        n = len(names)
    vectors = {name: _vector(column) for name, column in columns.items()}
    n = n or max((len(v) for v in vectors.values() if v is not None), default=0)
    kept = {name: v for name, v in vectors.items() if v is not None and len(v) == n}
    index = pd.Index(names, dtype=object) if len(names) == n else pd.RangeIndex(n)
    return pd.DataFrame(kept, index=index)


def _dimnames(item: Any) -> list[list[str]]:
    attributes = _attributes(_real(item))
    names = _real(attributes.get("Dimnames", attributes.get("dimnames")))
    both = [_strings(each) for each in names.value] if _kind(names) == "VEC" else []
    return both if len(both) == 2 else [[], []]


def _matrix(item: Any) -> sp.csr_matrix[Any] | npt.NDArray[Any] | None:
    """Return an R matrix transposed to cells x genes; None for other objects."""
    item = _real(item)
    attributes = _attributes(item)
    if "dim" in attributes and _kind(item) in ("INT", "REAL", "LGL"):
        shape = [int(n) for n in attributes["dim"].value]
        values = (
            np.ma.filled(item.value.astype(np.float64), np.nan) if np.ma.is_masked(item.value) else item.value
        )
        return np.asarray(values).reshape(shape[::-1]) if len(shape) == 2 else None
    if "Dim" not in attributes or not {"i", "j", "x"} & set(attributes):
        return None
    n_rows, n_columns = (int(n) for n in attributes["Dim"].value)
    numbers = {
        name: np.asarray(attributes[name].value) for name in ("i", "j", "p", "x") if name in attributes
    }
    parts: Any
    made: sp.csr_matrix[Any]
    if "x" not in numbers:  # ngCMatrix has positions but no values
        numbers["x"] = np.ones(len(numbers.get("i", numbers.get("j", ()))))
    if {"i", "p"} <= set(numbers):  # R's columns become rows
        parts = numbers["x"].astype(np.float64), numbers["i"], numbers["p"]
        made = sp.csr_matrix(parts, shape=(n_columns, n_rows))
    elif {"j", "p"} <= set(numbers):
        parts = numbers["x"].astype(np.float64), numbers["j"], numbers["p"]
        made = sp.csc_matrix(parts, shape=(n_columns, n_rows)).tocsr()
    else:
        parts = numbers["x"].astype(np.float64), (numbers["j"], numbers["i"])
        made = sp.coo_matrix(parts, shape=(n_columns, n_rows)).tocsr()
    made.check_format(full_check=True)
    return made


def _table_of(names: list[str], about: pd.DataFrame) -> pd.DataFrame:
    """Return a table with ``names`` as index, and the columns of ``about`` if it has all the names."""
    index = pd.Index(names, dtype=object)
    if not len(about.columns):
        return pd.DataFrame(index=index)
    if isinstance(about.index, pd.RangeIndex) and len(about) == len(names):
        return about.set_index(index)
    return about.reindex(index) if about.index.is_unique else pd.DataFrame(index=index)


def _made(
    path: Path,
    obs: pd.DataFrame,
    places: dict[str, tuple[Any, pd.DataFrame]],
    reductions: dict[str, npt.NDArray[Any]],
    notes: Iterable[str],
) -> Contents:
    table, tidy_notes = tidy_table(obs, "obs")
    found = {name: Place(item, partial(tidy_table, var, "var")) for name, (item, var) in places.items()}
    if not found:
        what = "the R object has no readable matrix; its values may be in another file"
        raise InputError(what, str(path), _IN_R)
    # All matrices of an h5ad share one var.
    obsm = {name: values for name, values in reductions.items() if values.shape[0] == len(obs)}
    return Contents(
        str(path), table, found, path, (*notes, *tidy_notes), more=lambda: [("obsm", obsm)] if obsm else []
    )


def _plain(item: Any, path: Path) -> Contents:
    """Read a matrix with row and column names."""
    names, frame = _dimnames(item), _counts_of(item)
    X: Any = _matrix(item)
    if frame is not None:
        names, X = [list(frame.index.astype(str)), list(frame.columns)], frame.to_numpy().T
    if not all(names):
        raise InputError("the matrix in the R file has no row or column names", str(path), _SAVE)
    in_rows, why = genes_in_rows(*names)
    genes, cells = names if in_rows else names[::-1]
    X = X if in_rows else X.T
    var = pd.DataFrame(index=pd.Index(genes, dtype=object))
    note = f"read an R matrix with genes in its {'rows' if in_rows else 'columns'} ({why})"
    return _made(path, pd.DataFrame(index=pd.Index(cells, dtype=object)), {"X": (X, var)}, {}, [note])


def _seurat(item: Any, path: Path) -> Contents:
    """Read the RNA of a Seurat object, of version 3 to 5."""
    slots = _attributes(item)
    assays = _list(slots.get("assays"))
    if not assays:
        raise InputError("the Seurat object has no assay", str(path), _SAVE)
    active = (_strings(slots.get("active.assay")) or [""])[0]
    name = next((n for n in ("RNA", "originalexp", "Spatial", active) if n in assays), next(iter(assays)))
    assay = assays[name]
    obs = _frame(slots.get("meta.data"))
    v5 = "layers" in _attributes(assay)
    cells, genes, matrices, about = (_layers if v5 else _slots)(assay, list(obs.index))
    if not matrices:
        return _made(path, obs, {}, {}, [])
    var = _table_of(genes, about)
    rows = _table_of(cells, obs)
    ident = slots.get("active.ident")
    labels, named = _vector(ident) if ident is not None else None, _strings(_attributes(ident).get("names"))
    if labels is not None and len(labels) == len(named) == len(set(named)) and "active.ident" not in rows:
        rows["active.ident"] = pd.Series(labels, index=named).reindex(cells).to_numpy(dtype=object)
    first = "counts" if "counts" in matrices else next(iter(matrices))
    places = {"X" if n == first else f"layers/{n}": (values, var) for n, values in matrices.items()}
    reductions = {}
    for key, reduction in _list(slots.get("reductions")).items():
        embedding = _attributes(reduction).get("cell.embeddings")
        values, names = _matrix(embedding), _dimnames(embedding)[0]
        if isinstance(values, np.ndarray) and names:
            reductions[f"X_{key}"] = pd.DataFrame(values.T, index=names).reindex(cells).to_numpy(np.float64)
    others = ", ".join(n for n in assays if n != name)
    note = f"read {first} of the assay {name}" + (f", not {others}" if others else "")
    return _made(path, rows, places, reductions, [note])


_Found = tuple[list[str], list[str], dict[str, Any], pd.DataFrame]


def _slots(assay: Any, cells: list[str]) -> _Found:
    """Return cells, genes, matrices and the table of genes of an assay of version 3 or 4."""
    slots = _attributes(assay)
    found: dict[str, Any] = {}
    genes: list[str] = []
    named = cells
    for name in ("counts", "data"):
        values = _matrix(slots.get(name))
        if values is None or not all(values.shape):
            continue
        rows, columns = _dimnames(slots[name])
        if not found:
            genes, named = rows, columns or cells
        if values.shape == (len(named), len(genes)):
            found[name] = values
    return named, genes, found, _frame(slots.get("meta.features"))


def _layers(assay: Any, cells: list[str]) -> _Found:
    """Return the same for an assay of version 5, whose layers have a map of cells and one of genes."""
    slots = _attributes(assay)
    maps = [_map(slots.get(name)) for name in ("cells", "features")]
    all_cells, all_genes = maps[0][0] or cells, maps[1][0]
    at = [{name: i for i, name in enumerate(names)} for names in (all_cells, all_genes)]
    found: dict[str, sp.csr_matrix[Any]] = {}
    for name, item in _list(slots["layers"]).items():
        kind = name.split(".")[0]  # layers of several samples are counts.1, counts.2, ...
        values = _matrix(item)
        if kind not in ("counts", "data") or values is None:
            continue
        own = _dimnames(item)
        rows = own[1] or maps[0][1].get(name, all_cells)
        columns = own[0] or maps[1][1].get(name, all_genes)
        if values.shape != (len(rows), len(columns)):
            continue
        # Place the values of this layer among all cells and genes.
        some = sp.coo_matrix(values)
        where = np.array([at[0][r] for r in rows]), np.array([at[1][c] for c in columns])
        parts: Any = (some.data, (where[0][some.row], where[1][some.col]))
        placed = sp.coo_matrix(parts, shape=(len(all_cells), len(all_genes))).tocsr()
        found[kind] = found[kind] + placed if kind in found else placed
    about = _frame(slots["meta.data"]) if "meta.data" in slots else pd.DataFrame()
    return all_cells, all_genes, found, about


def _map(item: Any) -> tuple[list[str], dict[str, list[str]]]:
    """Return the names of a LogMap, and those of each layer."""
    item = _real(item)
    attributes = _attributes(item)
    values = _matrix(attributes.get(".Data", item))
    names, layers = _dimnames(item)
    if not isinstance(values, np.ndarray):
        return names, {}
    some = {layer: values[k].astype(bool) for k, layer in enumerate(layers) if values.shape[1] == len(names)}
    return names, {
        layer: [n for n, inside in zip(names, mask, strict=True) if inside] for layer, mask in some.items()
    }


def _experiment(item: Any, path: Path) -> Contents:
    """Read a SingleCellExperiment."""
    slots = _attributes(item)
    obs = _frame(slots.get("colData"))
    held = _real(slots.get("assays"))
    slot = _attributes(held)
    data = slot.get("data")
    if data is None and _kind(_real(slot.get(".xData"))) == "ENV":
        data = _environment(slot[".xData"]).get("data")
    assays = _list(_attributes(_real(data)).get("listData"))
    matrices = {
        name: (values, assays[name]) for name in assays if (values := _matrix(assays[name])) is not None
    }
    ranges = _attributes(slots.get("rowRanges"))
    names = _strings(slots.get("NAMES"))
    for part in ("partitioning", "ranges"):
        names = names or _strings(_attributes(ranges.get(part)).get("NAMES"))
    dimnames: list[list[str]] = next(
        (_dimnames(each) for _, each in matrices.values() if _dimnames(each)[0]), [[], []]
    )
    names = names or dimnames[0]
    if isinstance(obs.index, pd.RangeIndex):
        shape = next((values.shape for values, _ in matrices.values()), (0, 0))
        cells = dimnames[1] or [f"cell{i + 1}" for i in range(shape[0])]
        obs = _table_of(cells, obs)
    about = _frame(ranges.get("elementMetadata", slots.get("elementMetadata")))
    if not names and len(about):
        column = next((c for c in ("Symbol", "symbol", "gene_name", "ID", "id") if c in about), None)
        names = [] if column is None else [str(name) for name in about[column]]
    if matrices and not names:
        raise InputError("the SingleCellExperiment has no gene names", str(path), "set rownames(object)")
    var = _table_of(names, about)
    shape = len(obs), len(var)
    kept = {name: values for name, (values, _) in matrices.items() if values.shape == shape}
    first = "counts" if "counts" in kept else next(iter(kept), "")
    places = {"X" if n == first else f"layers/{n}": (values, var) for n, values in kept.items()}
    reductions = {}
    inner = _list(_attributes(slots.get("int_colData")).get("listData"))
    for key, each in _list(_attributes(inner.get("reducedDims")).get("listData")).items():
        values = _matrix(each)
        if isinstance(values, np.ndarray):
            reductions[f"X_{key.lower()}"] = values.T.astype(np.float64)
    return _made(path, obs, places, reductions, [f"read {first} of the SingleCellExperiment"])
