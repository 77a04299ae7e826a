"""Folders of STARsolo, kb, Parse, outs/ and public archives; oracle: the same cells as AnnData."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp
from baron_parts import assert_same, assert_written, some_cells

from scvec.base.errors import InputError
from scvec.ingest.cells.readers import contents_of, kind_of
from scvec.ingest.cells.source import CellSource

PLENTY = 2**30


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    return some_cells()


def put(path: Path, lines: list[str], *, packed: bool = False) -> None:
    text = "".join(f"{line}\n" for line in lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.with_name(f"{path.name}.gz") if packed else path
    path.write_bytes(gzip.compress(text) if packed else text)


def matrix(X, *, field: str = "integer") -> list[str]:
    m = sp.coo_matrix(X)
    rows = [f"{i + 1} {j + 1} {int(v)}" for i, j, v in zip(m.row, m.col, m.data, strict=True)]
    return [
        f"%%MatrixMarket matrix coordinate {field} general",
        "%",
        f"{m.shape[0]} {m.shape[1]} {m.nnz}",
        *rows,
    ]


def ten(
    folder: Path, c, *, prefix: str = "", packed: bool = False, features: str = "features", turned=False
) -> None:
    put(folder / f"{prefix}matrix.mtx", matrix(c.X if turned else c.X.T), packed=packed)
    put(folder / f"{prefix}barcodes.tsv", list(c.obs_names), packed=packed)
    rows = [f"E{i}\t{name}\tGene Expression" for i, name in enumerate(c.var_names)]
    put(folder / f"{prefix}{features}.tsv", rows, packed=packed)


def wrong(c):
    """Return other cells, for files that must not be read."""
    return c[::-1].copy()


def starsolo(folder: Path, c) -> Path:
    ten(folder / "S1_Solo.out" / "Gene" / "filtered", c)
    ten(folder / "S1_Solo.out" / "Gene" / "raw", wrong(c))
    ten(folder / "S1_Solo.out" / "GeneFull" / "filtered", wrong(c))
    put(folder / "S1_Solo.out" / "Barcodes.stats", ["x"])
    return folder


def kb(folder: Path, c) -> Path:
    where = folder / "counts_unfiltered"
    put(where / "cells_x_genes.mtx", matrix(c.X, field="real"))
    put(where / "cells_x_genes.barcodes.txt", list(c.obs_names))
    put(where / "cells_x_genes.genes.txt", [f"E{i}.1" for i in range(c.n_vars)])
    put(where / "cells_x_genes.genes.names.txt", list(c.var_names))
    return folder


def kb_nuclei(folder: Path, c) -> Path:
    for kind, X in {"mature": c.X * 0, "nascent": c.X, "ambiguous": c.X * 3, "total": c.X}.items():
        put(folder / f"cells_x_genes.{kind}.mtx", matrix(X))
    put(folder / "cells_x_genes.barcodes.txt", list(c.obs_names))
    put(folder / "cells_x_genes.genes.txt", list(c.var_names))
    return folder


def parse(folder: Path, c, *, name: str = "count_matrix.mtx", packed: bool = False) -> Path:
    where = folder / "DGE_filtered"
    put(where / name, matrix(c.X, field="real"), packed=packed)
    genes = [f"ENSG{i:011d},{name},hg38" for i, name in enumerate(c.var_names)]
    put(where / "all_genes.csv", ["gene_id,gene_name,genome", *genes], packed=packed)
    rows = [f'{name},"a, b",{kind}' for name, kind in zip(c.obs_names, c.obs["cell_type"], strict=True)]
    put(where / "cell_metadata.csv", ["bc_wells,sample,cell_type", *rows], packed=packed)
    return folder


def outs(folder: Path, c, *, h5: bool = True) -> Path:
    where = folder / "outs"
    ten(where / "raw_feature_bc_matrix", wrong(c), packed=True)
    if not h5:
        ten(where / "filtered_feature_bc_matrix", c, packed=True)
        return folder
    m = sp.csr_matrix(c.X)
    with h5py.File(where / "filtered_feature_bc_matrix.h5", "w") as file:
        group = file.create_group("matrix")
        group["data"], group["indices"] = m.data.astype("i4"), m.indices.astype("i8")
        group["indptr"], group["shape"] = m.indptr.astype("i8"), np.array(c.shape[::-1])
        group["barcodes"] = np.array(c.obs_names, "S")
        group["features/name"] = group["features/id"] = np.array(c.var_names, "S")
    return folder


def ranger2(folder: Path, c) -> Path:
    ten(folder / "filtered_gene_bc_matrices" / "GRCh38", c, features="genes")
    return folder


def geo(folder: Path, c, **how) -> Path:
    ten(folder, c, prefix="GSM1_A_", packed=True, **how)
    return folder


def geo_shared(folder: Path, c) -> Path:
    geo(folder, c)
    (folder / "GSM1_A_features.tsv.gz").rename(folder / "GSE1_features.tsv.gz")
    return folder


def geo_titles(folder: Path, c) -> Path:
    """As R's write.csv writes names: quoted, with titles and numbers of rows."""
    put(folder / "GSM1.A.matrix.mtx", matrix(c.X.T))
    put(folder / "GSM1.A.barcodes.csv", ['"","x"', *(f'"{i + 1}","{n}"' for i, n in enumerate(c.obs_names))])
    put(folder / "GSM1.A.genes.csv", ['"","x"', *(f'"{i + 1}","{n}"' for i, n in enumerate(c.var_names))])
    return folder


GOOD: dict[str, Callable] = {
    "starsolo": starsolo,
    "starsolo-gene": lambda f, c: starsolo(f, c) / "S1_Solo.out" / "Gene",
    "kb": kb,
    "kb-counts": lambda f, c: kb(f, c) / "counts_unfiltered",
    "kb-file": lambda f, c: kb(f, c) / "counts_unfiltered" / "cells_x_genes.mtx",
    "kb-nuclei": kb_nuclei,
    "parse": parse,
    "parse-old": lambda f, c: parse(f, c, name="DGE.mtx", packed=True),
    "parse-file": lambda f, c: parse(f, c) / "DGE_filtered" / "count_matrix.mtx",
    "outs-above": outs,
    "outs": lambda f, c: outs(f, c) / "outs",
    "outs-no-h5": lambda f, c: outs(f, c, h5=False) / "outs",
    "ranger2": ranger2,
    "geo": geo,
    "geo-genes": lambda f, c: geo(f, c, features="genes"),
    "geo-turned": lambda f, c: geo(f, c, turned=True),
    "geo-prefix": lambda f, c: geo(f, c) / "GSM1_A_",
    "geo-part": lambda f, c: geo(f, c) / "GSM1",
    "geo-file": lambda f, c: geo(f, c) / "GSM1_A_matrix.mtx.gz",
    "geo-shared": geo_shared,
    "geo-titles": geo_titles,
    "file-of-10x": lambda f, c: (ten(f, c, packed=True), f / "matrix.mtx.gz")[1],
}


@pytest.mark.parametrize("kind", GOOD)
def test_every_folder_gives_the_same_cells(kind: str, cells, tmp_path: Path) -> None:
    path = GOOD[kind](tmp_path / "data", cells)
    assert kind_of(path, PLENTY) == "folder"
    assert_same(path, cells, labels="cell_type" if "parse" in kind else None)
    assert_written(path, cells, tmp_path / "out.h5ad")


def test_a_10x_folder_may_be_of_cells_by_genes(cells, tmp_path: Path) -> None:
    ten(tmp_path / "x", cells, turned=True)
    for memory in ("400K", "1G"):
        assert_same(tmp_path / "x", cells, memory=memory)


def test_as_many_cells_as_genes(cells, tmp_path: Path) -> None:
    """Nothing but who wrote a square matrix tells which way it lies."""
    square = cells[:, : cells.n_obs].copy()
    assert_same(parse(tmp_path / "parse", square), square)
    assert_same(kb(tmp_path / "kb", square), square)
    assert_same(geo(tmp_path / "geo", square), square)


def test_nuclei_keep_their_parts(cells, tmp_path: Path) -> None:
    path = kb_nuclei(tmp_path / "kb", cells)
    with CellSource.open(path, layer="ambiguous") as source:
        np.testing.assert_array_equal(source.totals, 3 * np.asarray(cells.X.sum(axis=1)).ravel())
    one = path / "cells_x_genes.ambiguous.mtx"
    with CellSource.open(one) as source:
        np.testing.assert_array_equal(source.totals, 3 * np.asarray(cells.X.sum(axis=1)).ravel())


def test_several_samples_are_listed_and_one_is_chosen(cells, tmp_path: Path) -> None:
    geo(tmp_path, wrong(cells))
    ten(tmp_path, cells, prefix="GSM2_B_", packed=True)
    ten(tmp_path, wrong(cells), prefix="GSM2_B_2_", packed=True)
    for path in (tmp_path, tmp_path / "GSM"):
        with pytest.raises(InputError, match="GSM1_A_, GSM2_B_") as caught:
            contents_of(path, PLENTY)
        assert str(tmp_path / "GSM1_A_") in caught.value.fix
    assert any("GSM2_B_" in note for note in assert_same(tmp_path / "GSM2_B_", cells))
    assert_same(tmp_path / "GSM2_B_matrix.mtx.gz", cells)
    with pytest.raises(InputError, match="no such file"):
        contents_of(tmp_path / "GSM3", PLENTY)


def test_a_note_names_the_folder_that_was_read(cells, tmp_path: Path) -> None:
    notes = assert_same(outs(tmp_path / "run", cells), cells)
    assert any("filtered_feature_bc_matrix.h5" in note for note in notes)


def _geo_less(what: str) -> Callable:
    def build(folder: Path, c) -> Path:
        (geo(folder, c) / f"GSM1_A_{what}.tsv.gz").unlink()
        return folder

    return build


def _linked(folder: Path, c) -> Path:
    geo(folder, c)
    (folder / "GSM1_A_barcodes.tsv.gz").unlink()
    (folder / "GSM1_A_barcodes.tsv.gz").symlink_to("/etc/hostname")
    return folder


def _looped(folder: Path, c) -> Path:
    folder.mkdir()
    (folder / "outs").symlink_to(folder)
    return folder


def _edited(build: Callable, name: str, content: bytes) -> Callable:
    def edited(folder: Path, c) -> Path:
        (build(folder, c) / name).write_bytes(content)
        return folder

    return edited


BAD: dict[str, tuple[Callable, str]] = {
    "geo-no-barcodes": (_geo_less("barcodes"), "no GSM1_A_barcodes"),
    "geo-no-features": (_geo_less("features"), "no GSM1_A_features"),
    "geo-link": (_linked, "link out of the folder"),
    "geo-fewer": (_edited(geo, "GSM1_A_barcodes.tsv.gz", gzip.compress(b"a\nb\n")), "2 cells"),
    "geo-packed": (_edited(geo, "GSM1_A_features.tsv.gz", b"\x1f\x8b\x08zz"), "damaged"),
    "kb-empty": (_edited(kb, "counts_unfiltered/cells_x_genes.mtx", b""), "empty"),
    "kb-outside": (
        _edited(
            kb,
            "counts_unfiltered/cells_x_genes.mtx",
            "\n".join(matrix(np.ones((40, 150)))).replace("\n40 150 1", "\n41 150 1").encode(),
        ),
        "value 6,000 has cell number 41",
    ),
    "parse-table": (_edited(parse, "DGE_filtered/cell_metadata.csv", b'a,b\n"x'), "damaged"),
    "loop": (_looped, "folder"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_folders_are_refused(kind: str, cells, tmp_path: Path) -> None:
    build, message = BAD[kind]
    path = build(tmp_path / "data", cells)
    with pytest.raises(InputError, match=message), CellSource.open(path):
        pass


def test_a_matrix_alone_is_refused(cells, tmp_path: Path) -> None:
    scipy.io.mmwrite(tmp_path / "x.mtx", sp.coo_matrix(cells.X))
    with pytest.raises(InputError, match="Matrix Market") as caught:
        contents_of(tmp_path / "x.mtx", PLENTY)
    assert "features.tsv" in caught.value.fix
    assert os.listdir(tmp_path) == ["x.mtx"]
