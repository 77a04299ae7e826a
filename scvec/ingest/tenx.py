"""Cells as 10x Genomics' Cell Ranger writes them: an h5 of version 2 or 3, or a folder of three files."""

from __future__ import annotations

import os
import stat
import zlib
from pathlib import Path

import h5py
import pandas as pd

from scvec.errors import InputError, ResourceError
from scvec.ingest.borders import reading, size_text
from scvec.ingest.contents import Contents, Place
from scvec.ingest.file_kinds import tenx_groups
from scvec.ingest.matrices import StoredRows
from scvec.ingest.matrix_market import AGAIN, open_text, read_text

__all__ = ["contents_of_mtx", "contents_of_tenx", "is_mtx"]

_PARTS = ("data", "indices", "indptr", "shape", "barcodes")


def contents_of_tenx(file: h5py.File, path: Path, memory: int) -> Contents:
    """List what a checked, open Cell Ranger file holds.

    Raises
    ------
    InputError
        If parts are missing or contradict each other, or the file holds several genomes apart.
    """
    genomes = tenx_groups(file)
    if len(genomes) > 1:
        what = f"the file holds {len(genomes)} matrices: {', '.join(genomes[:4])}"
        raise InputError(what, str(path), "write them to files of their own (scanpy.read_10x_h5, genome=...)")
    where = f"{path} ({genomes[0]})"
    group = file[genomes[0]]
    missing = [part for part in _PARTS if not isinstance(group.get(part), h5py.Dataset)]
    if missing:
        raise InputError(f"the 10x Genomics file lacks its {' and '.join(missing)}", where, AGAIN)
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
        var = _var(names, ids, more, where)
    for what, table, n in (("barcodes", barcodes, n_cells), ("genes", names, n_genes)):
        if len(table) != n:
            raise InputError(f"there are {len(table):,} {what} for a matrix of {n:,}", where, AGAIN)
    rows = StoredRows({part: group[part] for part in ("data", "indices", "indptr")}, (n_cells, n_genes))
    return Contents(
        str(path),
        pd.DataFrame(index=pd.Index(barcodes, dtype=object)),
        {"X": Place(rows, lambda: var)},
        path,
        [],
        file.close,
    )


def _texts(values: h5py.Dataset, where: str, memory: int) -> list[str]:
    if values.ndim != 1 or values.size * max(values.dtype.itemsize, 16) > memory:
        raise InputError(f"a list of names is of shape {values.shape}", where, AGAIN)
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values[:]]


def _var(names: list[str], ids: list[str], more: dict[str, list[str]], where: str) -> pd.DataFrame:
    lengths = {len(names), len(ids), *map(len, more.values())}
    if len(lengths) > 1:
        raise InputError(f"the columns of the genes have {sorted(lengths)} entries", where, AGAIN)
    return pd.DataFrame({"gene_ids": ids, **more}, index=pd.Index(names, dtype=object))


def is_mtx(path: Path) -> bool:
    """Return whether a folder is one that Cell Ranger wrote: ``matrix.mtx`` or ``matrix.mtx.gz`` in it."""
    return any(os.path.lexists(path / name) for name in ("matrix.mtx", "matrix.mtx.gz"))


def contents_of_mtx(folder: Path, memory: int) -> Contents:
    """Read a folder of ``matrix.mtx``, ``features.tsv`` (or ``genes.tsv``) and ``barcodes.tsv``, or ``.gz``.

    A Matrix Market file has no order that could be trusted, so it is read from end to end at once, into
    temporary files where its values are many (:func:`scvec.ingest.matrix_market.read_text`).

    Raises
    ------
    InputError
        If a file is missing, no plain file, damaged, or does not fit the others.
    ResourceError
        If the names do not fit into ``memory``, or the disk has no room for the values.
    """
    barcodes = [row[0] for row in _table(_find(folder, "barcodes.tsv"), memory)]
    features = _table(_find(folder, "features.tsv", "genes.tsv"), memory)
    width = min((len(row) for row in features), default=0)
    if width == 0:
        raise InputError("there are no genes", str(folder), AGAIN)
    ids = [row[0] for row in features]
    names = [row[1] for row in features] if width > 1 else ids
    more = {"feature_types": [row[2] for row in features]} if width > 2 else {}
    var = _var(names, ids, more, str(folder))
    X = read_text(_find(folder, "matrix.mtx"), len(features), len(barcodes), memory)
    obs = pd.DataFrame(index=pd.Index(barcodes, dtype=object))
    return Contents(str(folder), obs, {"X": Place(X, lambda: var)}, folder)


def _find(folder: Path, *names: str) -> Path:
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if not os.path.lexists(path):
                continue
            if path.is_symlink() and folder.resolve() not in path.resolve().parents:
                raise InputError(
                    f"{path.name} is a link out of the folder", str(folder), "copy the file here"
                )
            try:
                status = path.stat()
            except OSError as error:
                raise InputError(f"{path.name} cannot be read", str(folder), AGAIN) from error
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path.name} is no file", str(folder), "give the folder of Cell Ranger")
            if status.st_size == 0:
                raise InputError(f"{path.name} is empty (0 bytes)", str(folder), AGAIN)
            return path
    what = f"there is no {' or '.join(names)} beside the matrix"
    raise InputError(what, str(folder), "give the whole folder: matrix.mtx, features.tsv and barcodes.tsv")


def _table(path: Path, memory: int) -> list[list[str]]:
    """Return the rows of a file of tab-separated texts, which must unpack to no more than the memory."""
    most = memory // 16
    try:
        with open_text(path) as handle:
            content = handle.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path.name} is damaged: {error}", str(path.parent), AGAIN) from error
    if len(content) > most:
        what = f"{path.name} holds more than {size_text(most)} of names"
        raise ResourceError(what, str(path.parent), "raise --memory, if you trust the file")
    return [line.split("\t") for line in content.decode("utf-8", "replace").splitlines() if line]
