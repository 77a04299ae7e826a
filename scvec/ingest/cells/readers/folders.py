"""Read folders of STARsolo, kb and Parse, and Cell Ranger files with a sample prefix.

STARsolo, kb and Parse have their own file names; public archives add a prefix to the names of Cell Ranger.
A parent folder is accepted if it has a matrix at a known place, such as ``outs/filtered_feature_bc_matrix``.
"""

from __future__ import annotations

import csv
import io
import os
import re
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd

from scvec.base.errors import InputError, reading
from scvec.ingest.cells.readers import Contents, Place, contents_of, reader
from scvec.ingest.cells.readers.checks import Given, samples_with
from scvec.ingest.cells.readers.tenx import columns_in, find_file, names_in, read_text, var_of

__all__ = ["read_folder"]

#: Places of the matrix within a parent folder, best first: called cells before all droplets.
_INSIDE = (
    "filtered_feature_bc_matrix.h5",
    "filtered_feature_bc_matrix",
    "sample_filtered_feature_bc_matrix.h5",
    "sample_filtered_feature_bc_matrix",
    "filtered_gene_bc_matrices_h5.h5",
    "filtered_gene_bc_matrices",
    "outs",
    "count",
    "Solo.out",
    "Gene",
    "GeneFull",
    "filtered",
    "counts_filtered",
    "DGE_filtered",
    "raw_feature_bc_matrix.h5",
    "raw_feature_bc_matrix",
    "raw_gene_bc_matrices_h5.h5",
    "raw",
    "counts_unfiltered",
    "DGE_unfiltered",
)
_KB = re.compile(r"cells_x_(genes|tcc)(\.(cell|total|mature|nascent|ambiguous))?\.mtx(\.gz)?$")
_KB_ORDER = ("", "cell", "total", "mature", "nascent", "ambiguous")
_PARSE = ("DGE.mtx", "count_matrix.mtx")
_ENDS = ("tsv", "txt", "csv")


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder))
    except OSError:
        return []


def _has(folder: Path, names: tuple[str, ...]) -> bool:
    return any(os.path.lexists(folder / f"{name}{end}") for name in names for end in ("", ".gz"))


def _inside(folder: Path) -> Path | None:
    """Return the best folder of a matrix within a parent folder, or None. Links are not followed."""
    here = [name for name in _names(folder) if not (folder / name).is_symlink()]
    # STARsolo adds a prefix to Solo.out; Cell Ranger 2 has one folder per genome.
    found = {("Solo.out" if name.endswith("Solo.out") else name): folder / name for name in here}
    if folder.name in ("filtered_gene_bc_matrices", "raw_gene_bc_matrices") and len(here) == 1:
        return folder / here[0]
    return next((found[name] for name in _INSIDE if name in found), None)


def _is_folder(given: Given) -> bool:
    if given.head:
        return given.text.startswith(b"%%MatrixMarket")
    folder = given.path
    return bool(
        any(_KB.match(name) for name in _names(folder))
        or _has(folder, _PARSE)
        or samples_with(folder)
        or _inside(folder)
    )


@reader(
    "folder",
    "a folder of STARsolo, kb, Parse or Cell Ranger (outs), or PREFIX_matrix.mtx with its names",
    sniff=_is_folder,
)
def read_folder(given: Given, memory: int) -> Contents:
    """Read the matrix of a folder or of a sample prefix.

    Raises
    ------
    InputError
        If files are missing, damaged or inconsistent, or there are several samples.
    ResourceError
        See :func:`scvec.ingest.cells.readers.tenx.read_mtx`.
    """
    if given.head:
        return _beside(given.path, memory)
    folder = given.path
    if any(_KB.match(name) for name in _names(folder)):
        return _kb(folder, memory)
    if _has(folder, _PARSE):
        return _parse(folder, memory)
    samples = samples_with(folder)
    if samples:
        if not folder.is_dir() and folder.name in samples:
            samples = {folder.name: samples[folder.name]}
        if len(samples) > 1:
            what = f"the folder has {len(samples)} samples: {', '.join(list(samples)[:8])}"
            chosen = (folder if folder.is_dir() else folder.parent) / next(iter(samples))
            raise InputError(what, str(folder), f"give one by its prefix, such as {chosen}")
        ((prefix, matrix),) = samples.items()
        return _sample(prefix, matrix, memory)
    inside = _inside(folder)
    if inside is None:
        raise InputError(
            "the folder has no matrix of cells", str(folder), "give the folder of the matrix", code="no-cells"
        )
    contents = contents_of(inside, memory)
    note = f"read {inside.name} in {folder.name or folder}"
    contents.notes = (note, *contents.notes)
    return contents


def _contents(
    folder: Path, obs: pd.DataFrame, var: pd.DataFrame, places: dict[str, Any], notes: tuple[str, ...] = ()
) -> Contents:
    made = {name: Place(cache(open_it), lambda: (var, ())) for name, open_it in places.items()}
    return Contents(str(folder), obs, made, folder, notes)


def _named(names: list[str]) -> pd.DataFrame:
    return pd.DataFrame(index=pd.Index(names, dtype=object))


def _beside(matrix: Path, memory: int) -> Contents:
    """Read a Matrix Market file with the gene and cell names next to it."""
    folder = matrix.parent
    if _KB.match(matrix.name):
        return _kb(folder, memory, matrix.name)
    if matrix.name.removesuffix(".gz") in _PARSE:
        return _parse(folder, memory)
    for prefix, path in samples_with(folder).items():
        if path.name == matrix.name:
            return _sample(prefix, path, memory)
    if matrix.name.removesuffix(".gz") == "matrix.mtx":
        return contents_of(folder, memory)
    fix = "give its folder, with features.tsv and barcodes.tsv"
    what = "this Matrix Market file has no gene and cell names next to it"
    raise InputError(what, str(matrix), fix, code="wrong-format")


def _sample(prefix: str, matrix: Path, memory: int) -> Contents:
    """Read the files of one sample of a public archive."""
    folder = matrix.parent
    cells = columns_in(_of_sample(folder, prefix, ("barcodes", "cells")), memory)[0]
    features = columns_in(_of_sample(folder, prefix, ("features", "genes")), memory)
    more = {"feature_types": features[2]} if len(features) > 2 else {}
    var = var_of(features[min(1, len(features) - 1)], features[0], more, str(folder / prefix))
    matrix = find_file(folder, matrix.name.removesuffix(".gz"))
    open_it = partial(read_text, matrix, len(var), len(cells), memory)
    contents = _contents(folder, _named(cells), var, {"X": open_it}, (f"read the sample {prefix}",))
    contents.name = str(matrix)
    return contents


def _of_sample(folder: Path, prefix: str, kinds: tuple[str, ...]) -> Path:
    """Return the file of names of one sample, or the file that all samples of the folder share."""
    names = tuple(f"{prefix}{kind}.{end}" for kind in kinds for end in _ENDS)
    if _has(folder, names):
        return find_file(folder, *names)
    if kinds[0] == "features":
        shared = re.compile(rf"(.*[_.-])?({'|'.join(kinds)})\.({'|'.join(_ENDS)})(\.gz)?$", re.IGNORECASE)
        others = [name for name in _names(folder) if shared.match(name)]
        if len(others) == 1:
            return find_file(folder, others[0].removesuffix(".gz"))
    what = f"the folder has {prefix}matrix.mtx but no {prefix}{kinds[0]}.tsv"
    raise InputError(what, str(folder), "download all files of the sample")


def _kb(folder: Path, memory: int, asked: str = "") -> Contents:
    """Read the counts of kb (bustools), cells x genes; nuclei may have several matrices."""
    found = {m[3] or "": name for name in _names(folder) if (m := _KB.match(name)) and m[1] == "genes"}
    if not found:
        raise InputError("kb counted only transcripts here, not genes", str(folder), "give cells_x_genes.mtx")
    barcodes = [row[0] for row in names_in(find_file(folder, "cells_x_genes.barcodes.txt"), memory)]
    ids = [row[0] for row in names_in(find_file(folder, "cells_x_genes.genes.txt"), memory)]
    names = ids
    if _has(folder, ("cells_x_genes.genes.names.txt",)):
        named = [row[0] for row in names_in(find_file(folder, "cells_x_genes.genes.names.txt"), memory)]
        names = named if len(named) == len(ids) else ids
    first = next((kind for kind, name in found.items() if name == asked), None)
    main = next(kind for kind in _KB_ORDER if kind in found) if first is None else first
    places = {
        "X" if kind == main else f"layers/{kind}": partial(
            read_text,
            find_file(folder, name.removesuffix(".gz")),
            len(ids),
            len(barcodes),
            memory,
            by_cell=True,
        )
        for kind, name in sorted(found.items(), key=lambda item: item[0] != main)
    }
    notes = (f"used {found[main]} of {len(found)} matrices",) if len(found) > 1 else ()
    return _contents(folder, _named(barcodes), var_of(names, ids, {}, str(folder)), places, notes)


def _parse(folder: Path, memory: int) -> Contents:
    """Read the counts of Parse's pipeline, cells x genes, with the tables of cells and genes."""
    genes = _csv(folder, "all_genes.csv", memory)
    cells = _csv(folder, "cell_metadata.csv", memory)
    ids = genes.pop("gene_id") if "gene_id" in genes else genes.iloc[:, 0]
    names = genes.get("gene_name", ids)
    more = {"genome": genes["genome"].tolist()} if "genome" in genes else {}
    var = var_of(names.tolist(), ids.tolist(), more, str(folder))
    obs = cells.set_index(cells.columns[0])
    obs.index = pd.Index(obs.index.astype(str), dtype=object)
    matrix = find_file(folder, *_PARSE)
    open_it = partial(read_text, matrix, len(var), len(obs), memory, by_cell=True)
    return _contents(folder, obs, var, {"X": open_it})


def _csv(folder: Path, name: str, memory: int) -> pd.DataFrame:
    path = find_file(folder, name)
    text = "\n".join("\t".join(row) for row in names_in(path, memory))
    with reading(path):
        first = next(csv.reader([text.partition("\n")[0]]))[0]
        # NA and nan may be gene names.
        return pd.read_csv(
            io.StringIO(text), dtype={first: str, "gene_name": str}, keep_default_na=False, na_values={}
        )
