"""Cells of zarr folders and of Cell Ranger's files; oracle: the same cells as an h5ad."""

from __future__ import annotations

import gzip
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
import zarr
from anndata.io import sparse_dataset

from scvec.base.errors import InputError, ResourceError
from scvec.ingest.cells.matrix import open_matrix
from scvec.ingest.cells.source import CellSource
from scvec.ingest.cells.write import write_annotated

N, GENES = 40, 30
COUNTS = np.random.default_rng(0).poisson(0.7, (N, GENES)).astype(np.float32)
COUNTS[4] = 0
IDS = [f"ENSG{i:011d}" for i in range(GENES)]


def cells(kind: Callable = sp.csr_matrix) -> anndata.AnnData:
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical(["a", "b"] * (N // 2)), "donor": [f"d{i % 3}" for i in range(N)]},
        index=[f"c{i}" for i in range(N)],
    )
    return anndata.AnnData(kind(COUNTS), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(GENES)]))


def zarr_of(kind: Callable, version: int) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        adata = cells(kind)
        adata.obsm["X_pca"] = np.ones((N, 2))
        with anndata.settings.override(zarr_write_format=version), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zarr tells of times to come
            adata.write_zarr(folder / "x.zarr")
        return folder / "x.zarr"

    return build


def tenx(version: int, **instead) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        m = sp.csr_matrix(COUNTS)
        with h5py.File(folder / "x.h5", "w") as file:
            group = file.create_group("matrix" if version == 3 else "GRCh38")
            parts = {
                "data": m.data.astype(np.int32),
                "indices": m.indices.astype(np.int64),
                "indptr": m.indptr.astype(np.int64),
                "shape": np.array([GENES, N], dtype=np.int32),
                "barcodes": np.array([f"c{i}" for i in range(N)], dtype="S"),
            }
            names = np.array([f"G{i}" for i in range(GENES)], dtype="S")
            if version == 3:
                parts |= {"features/name": names, "features/id": np.array(IDS, dtype="S")}
                parts |= {"features/feature_type": np.array(["Gene Expression"] * GENES, dtype="S")}
            else:
                parts |= {"gene_names": names, "genes": np.array(IDS, dtype="S")}
            for name, values in (parts | instead).items():
                if values is not None:
                    group[name] = values
        return folder / "x.h5"

    return build


def mtx(*, packed: bool, features: str = "features.tsv") -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        where = folder / "filtered"
        where.mkdir()
        scipy.io.mmwrite(where / "matrix.mtx", sp.coo_matrix(COUNTS.T.astype(int)))
        (where / "barcodes.tsv").write_text("".join(f"c{i}\n" for i in range(N)))
        more = "\tGene Expression" if features == "features.tsv" else ""
        (where / features).write_text("".join(f"{IDS[i]}\tG{i}{more}\n" for i in range(GENES)))
        if packed:
            for path in list(where.iterdir()):
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
                path.unlink()
        return where

    return build


GOOD = {
    "zarr2-csr": zarr_of(sp.csr_matrix, 2),
    "zarr2-dense": zarr_of(np.asarray, 2),
    "zarr3-csr": zarr_of(sp.csr_matrix, 3),
    "zarr3-csc": zarr_of(sp.csc_matrix, 3),
    "zarr3-dense": zarr_of(np.asarray, 3),
    "tenx3": tenx(3),
    "tenx2": tenx(2),
    "mtx": mtx(packed=False),
    "mtx-gz": mtx(packed=True),
    "mtx-v2": mtx(packed=False, features="genes.tsv"),
}


@pytest.mark.parametrize("kind", GOOD)
def test_the_cells_are_those_of_the_h5ad(kind: str, tmp_path: Path) -> None:
    cells().write_h5ad(tmp_path / "same.h5ad")
    with CellSource.open(tmp_path / "same.h5ad") as expected, CellSource.open(GOOD[kind](tmp_path)) as got:
        assert got.obs_names == expected.obs_names and got.var_names == expected.var_names
        np.testing.assert_array_equal(got.totals, expected.totals)
        assert got.notes == expected.notes
        for a, b in zip(got.chunks(7), expected.chunks(7), strict=True):
            np.testing.assert_array_equal(a.toarray(), b.toarray())
        if kind.startswith("zarr"):
            assert list(got.obs["donor"]) == list(expected.obs["donor"])
        else:
            assert IDS in got.gene_name_candidates().values()


@pytest.mark.parametrize("kind", GOOD)
def test_the_annotated_copy_is_an_h5ad_with_the_same_cells(kind: str, tmp_path: Path) -> None:
    source, out = GOOD[kind](tmp_path), tmp_path / "out.h5ad"
    before = {p: p.read_bytes() for p in [source, *source.rglob("*")] if p.is_file()}
    table = pd.DataFrame({"label": pd.Categorical(["u", "v"] * (N // 2))})
    write_annotated(source, out, table, {"X_v": np.ones((N, 3), np.float32)}, {"k": "v"})
    found = anndata.read_h5ad(out)
    np.testing.assert_array_equal(found.X.toarray(), COUNTS)
    assert list(found.obs["label"]) == ["u", "v"] * (N // 2) and found.uns["k"] == "v"
    assert found.obsm["X_v"].shape == (N, 3)
    assert ("X_pca" in found.obsm) == kind.startswith("zarr")
    assert {p: p.read_bytes() for p in before} == before
    with CellSource.open(out) as again:
        assert again.obs_names == [f"c{i}" for i in range(N)]


class Lazy:
    """What dask's arrays can do, as far as it matters; remembers how many rows were worked out at once."""

    def __init__(self, values: np.ndarray, asked: list[int]) -> None:
        self.values, self.asked = values, asked
        self.shape, self.dtype = values.shape, values.dtype

    def __getitem__(self, rows: slice) -> Lazy:
        return Lazy(self.values[rows], self.asked)

    def compute(self) -> np.ndarray:
        self.asked.append(len(self.values))
        return self.values


def test_lazy_arrays_are_never_worked_out_as_a_whole() -> None:
    asked: list[int] = []
    reader = open_matrix(Lazy(COUNTS, asked), "X", N, GENES, 2**30)
    assert asked == []
    np.testing.assert_array_equal(reader.rows(3, 9).toarray(), COUNTS[3:9])
    assert asked == [6]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix])
def test_chunks_of_zeros_that_zarr_does_not_write(tmp_path: Path, version: int, kind: Callable) -> None:
    adata = anndata.AnnData(kind(COUNTS[:, :1]), var=pd.DataFrame(index=["INS"]))
    adata.layers["zeros"] = adata.X.copy()
    adata.layers["zeros"].data[:] = 0
    adata.obs["indices"] = adata.obs["data"] = 0
    with anndata.settings.override(zarr_write_format=version), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_zarr(tmp_path / "x.zarr")
    with CellSource.open(tmp_path / "x.zarr") as source:
        np.testing.assert_array_equal(source.stored_rows(np.arange(N)).toarray(), COUNTS[:, :1])


@pytest.mark.parametrize("version", [2, 3])
def test_records_in_uns_of_a_zarr_folder_are_copied(tmp_path: Path, version: int) -> None:
    adata = cells()
    kinds = [("alpha", "f4"), ("beta", "f8")]
    # As sc.tl.rank_genes_groups writes them.
    adata.uns["rank_genes_groups"] = {"scores": np.array([(1, 2), (5, 6)], dtype=kinds)}
    with anndata.settings.override(zarr_write_format=version), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_zarr(tmp_path / "x.zarr")
    write_annotated(tmp_path / "x.zarr", tmp_path / "o.h5ad", pd.DataFrame({"told": np.arange(N)}))
    found = anndata.read_h5ad(tmp_path / "o.h5ad").uns["rank_genes_groups"]["scores"]
    assert found["beta"].tolist() == [2, 6]


def test_x_of_an_object_may_lie_in_a_zarr_folder_or_an_h5ad(tmp_path: Path) -> None:
    adata = cells()
    adata.write_h5ad(tmp_path / "x.h5ad")
    with h5py.File(tmp_path / "x.h5ad") as file:
        group = zarr.open_group(str(zarr_of(sp.csr_matrix, 3)(tmp_path)), mode="r")
        for lying in (sparse_dataset(file["X"]), sparse_dataset(group["X"])):
            reader = open_matrix(lying, "X", N, GENES, 2**30)
            np.testing.assert_array_equal(reader.rows(0, N).toarray(), COUNTS)


def edited(build: Callable[[Path], Path], edit: Callable[[Path], object]) -> Callable[[Path], Path]:
    def bad(folder: Path) -> Path:
        path = build(folder)
        edit(path)
        return path

    return bad


def described(part: str, **changes) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        name = path / part / "zarr.json"
        name.write_text(json.dumps(json.loads(name.read_text()) | changes))

    return edit


def pickled(path: Path) -> None:
    name = path / "obs" / "_index" / ".zarray"
    name.write_text(json.dumps(json.loads(name.read_text()) | {"filters": [{"id": "pickle"}]}))


def linked(path: Path) -> None:
    (path / "X" / "data" / "zarr.json").unlink()
    (path / "X" / "data" / "zarr.json").symlink_to("/etc/hostname")


def folder_linked(path: Path) -> None:
    (path / "layers" / "counts").symlink_to("/etc")


def barcodes_linked(path: Path) -> None:
    (path / "barcodes.tsv").unlink()
    (path / "barcodes.tsv").symlink_to("/etc/hostname")


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        text = (path / name).read_text()
        assert old in text
        (path / name).write_text(text.replace(old, new, 1))

    return edit


PLAIN, ZARR = mtx(packed=False), zarr_of(sp.csr_matrix, 3)
NNZ = int((COUNTS > 0).sum())
POINTERS = sp.csr_matrix(COUNTS).indptr.astype(np.int64)
BAD = {
    "zarr-pickle": (edited(zarr_of(sp.csr_matrix, 2), pickled), "packed by|pickled"),
    "zarr-link": (edited(ZARR, linked), "not a regular file"),
    "zarr-folder-link": (edited(ZARR, folder_linked), "link leads out"),
    "zarr-claim": (edited(ZARR, described("X/data", shape=[10**10])), "claims 40.0 GB"),
    "zarr-piece": (
        edited(
            ZARR,
            described(
                "X/data",
                chunk_grid={"name": "regular", "configuration": {"chunk_shape": [10**10]}},
            ),
        ),
        "chunks of 40.0 GB",
    ),
    "zarr-shape": (edited(ZARR, described("X/indptr", shape=[N])), "is inconsistent"),
    "zarr-json": (edited(ZARR, lambda p: (p / "X" / "zarr.json").write_text("{")), "damaged"),
    "zarr-piece-missing": (
        edited(ZARR, lambda p: (p / "X/indices/c/0").unlink()),
        "1 of 1 chunks of the array",
    ),
    "zarr-piece-damaged": (edited(ZARR, lambda p: (p / "X/data/c/0").write_bytes(b"x" * 99)), "damaged"),
    "tenx-pointers": (tenx(3, indptr=POINTERS[::-1].copy()), "is inconsistent"),
    "tenx-index": (tenx(3, indices=np.full(NNZ, GENES, np.int64)), "outside 0 to"),
    "tenx-barcodes": (tenx(3, barcodes=np.array(["c1"], dtype="S")), "1 barcodes, but its matrix has 40"),
    "tenx-no-data": (tenx(2, data=None), "has no data"),
    "mtx-link": (edited(PLAIN, barcodes_linked), "link out of the folder"),
    "mtx-no-genes": (edited(PLAIN, lambda p: (p / "features.tsv").unlink()), "no features.tsv or genes.tsv"),
    "mtx-claim": (edited(PLAIN, replaced("matrix.mtx", f" {NNZ}\n", " 9999999999\n")), "too small for"),
    "mtx-fewer": (edited(PLAIN, replaced("matrix.mtx", f" {NNZ}\n", f" {NNZ + 9}\n")), "damaged"),
    "mtx-shape": (
        edited(PLAIN, replaced("barcodes.tsv", "c0\n", "")),
        "30 x 40, but the folder has 30 genes and 39",
    ),
    "mtx-outside": (edited(PLAIN, replaced("matrix.mtx", f"{GENES} {N} ", f"{GENES} 41 ")), "30 x 41"),
    "mtx-gz-broken": (
        edited(mtx(packed=True), lambda p: (p / "barcodes.tsv.gz").write_bytes(b"\x1f\x8b\x08zzzz")),
        "damaged",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_damaged_and_hostile_ones_are_refused_in_three_lines(kind: str, tmp_path: Path) -> None:
    build, message = BAD[kind]
    path = build(tmp_path)
    with pytest.raises(InputError, match=message) as caught, CellSource.open(path) as source:
        list(source.chunks())
    assert len(str(caught.value).splitlines()) <= 3 and caught.value.where and caught.value.fix


def test_names_that_unpack_to_more_than_the_memory_are_refused(tmp_path: Path) -> None:
    path = mtx(packed=True)(tmp_path)
    (path / "barcodes.tsv.gz").write_bytes(gzip.compress(b"\n" * 2**24))
    assert os.path.getsize(path / "barcodes.tsv.gz") < 2**15
    with pytest.raises(ResourceError, match="holds more than"):
        CellSource.open(path, memory="64M")
