"""Objects that R saved, written to the letter of R's format; oracle: the same cells as AnnData."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from baron_parts import assert_same, assert_written, some_cells
from r_parts import R, data_frame, dense, dgc, experiment, named, s4, save, save_rds, seurat

from scvec.base.errors import InputError, ResourceError, ScvecError
from scvec.ingest.cells.readers import contents_of, kind_of

PLENTY = 2**30
pytest.importorskip("rdata")


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    return some_cells()


SEURATS = {
    "v3": {"version": 3},
    "v4": {"version": 4},
    "v5": {"version": 5},
    "v5-split": {"version": 5, "split": 3},
}


@pytest.mark.parametrize("kind", SEURATS)
def test_seurat(kind: str, cells, tmp_path: Path) -> None:
    path = save_rds(tmp_path / "x.rds", seurat(cells, **SEURATS[kind]))
    assert kind_of(path, PLENTY) == "rds"
    notes = assert_same(path, cells, labels="cell_type")
    assert any("counts of the assay RNA" in note and "ADT" in note for note in notes)
    written = assert_written(path, cells, tmp_path / "out.h5ad")
    np.testing.assert_array_equal(written.obsm["X_pca"], np.arange(2.0 * cells.n_obs).reshape(-1, 2))
    assert written.obs["active.ident"].astype(str).tolist() == cells.obs["cell_type"].astype(str).tolist()
    assert written.obs["donor"].isna().tolist() == [True] + [False] * (cells.n_obs - 1)
    np.testing.assert_array_equal(written.obs["nCount_RNA"], np.asarray(cells.X.sum(axis=1)).ravel())
    np.testing.assert_array_equal(written.var["vst.mean"], np.arange(cells.n_vars))
    if kind in ("v3", "v4"):
        np.testing.assert_allclose(written.layers["data"].toarray(), np.log1p(cells.X.toarray()), rtol=1e-6)


def test_seurat_with_normalised_values_only(cells, tmp_path: Path) -> None:
    item = seurat(cells, version=4)
    slots = item.attributes["assays"].value[1].attributes
    slots["counts"] = dense(np.zeros((0, 0)))
    contents = contents_of(save_rds(tmp_path / "x.rds", item), PLENTY)
    assert list(contents.places) == ["X"] and "data of the assay RNA" in contents.notes[0]
    np.testing.assert_allclose(contents.places["X"].item.toarray(), np.log1p(cells.X.toarray()), rtol=1e-6)


@pytest.mark.parametrize("named_by", ["ranges", "symbols"])
def test_single_cell_experiment(named_by: str, cells, tmp_path: Path) -> None:
    path = save_rds(tmp_path / "x.rds", experiment(cells, named_by=named_by))
    assert_same(path, cells, labels="cell_type")
    written = assert_written(path, cells, tmp_path / "out.h5ad")
    assert written.obsm["X_pca"].shape == (cells.n_obs, 3) and written.var["ID"].iloc[2] == "ENSG00000000002"
    np.testing.assert_allclose(written.layers["logcounts"].toarray(), np.log1p(cells.X.toarray()), rtol=1e-6)


@pytest.mark.parametrize("packed", [gzip, bz2, lzma, None])
def test_every_packing(packed, cells, tmp_path: Path) -> None:
    assert_same(save_rds(tmp_path / "x.rds", seurat(cells, version=5), packed=packed), cells)


def test_an_image_of_several_values(cells, tmp_path: Path) -> None:
    path = save(tmp_path / "x.RData", {"note": R(["a text"]), "pancreas": seurat(cells, version=4)})
    assert_same(path, cells, labels="cell_type")
    save(path, {"a": seurat(cells, version=4), "b": experiment(cells)})
    with pytest.raises(InputError, match="2 objects with cells: a, b"):
        contents_of(path, PLENTY)


@pytest.mark.parametrize("kind", ["genes", "cells", "dense", "triplets"])
def test_a_matrix_of_counts(kind: str, cells, tmp_path: Path) -> None:
    names = [list(cells.var_names), list(cells.obs_names)]
    item = dgc(cells.X.T, names)
    if kind == "cells":
        item = dgc(cells.X, names[::-1])
    elif kind == "dense":
        item = dense(cells.X.T.toarray().astype(int), names)
    elif kind == "triplets":
        m = cells.X.T.tocoo()
        item = s4(
            "dgTMatrix", "Matrix", i=m.row, j=m.col, Dim=np.array(m.shape), Dimnames=R(tuple(names)), x=m.data
        )
    assert_same(save_rds(tmp_path / "x.rds", item), cells)


def test_rdata_reads_what_the_fixtures_write(cells, tmp_path: Path) -> None:
    """The fixtures are no oracle of themselves: rdata's own conversion agrees."""
    import rdata

    table = pd.DataFrame({"a": [1.5, 2.0], "b": pd.Categorical(["x", "y"])}, index=["r1", "r2"])
    pd.testing.assert_frame_equal(rdata.read_rds(save_rds(tmp_path / "x.rds", data_frame(table))), table)


def test_without_the_extra_three_lines_say_what_to_do(cells, tmp_path: Path, monkeypatch) -> None:
    path = save_rds(tmp_path / "x.rds", seurat(cells, version=5))
    monkeypatch.setitem(sys.modules, "rdata", None)
    monkeypatch.setitem(sys.modules, "rdata.parser", None)
    with pytest.raises(InputError, match="rdata") as caught:
        contents_of(path, PLENTY)
    assert "pip install" in caught.value.fix and len(str(caught.value).splitlines()) == 3


def nested(depth: int) -> R:
    item = R((None,))
    for _ in range(depth):
        item = R((item,))
    return item


ON_DISK = s4("Assay5", "SeuratObject", layers=named({"counts": s4("RenameDims", "BPCells")}))
OUTSIDE = dgc(np.ones((2, 1)), [["INS", "GCG"], ["c"]])
OUTSIDE.attributes["i"] = np.array([0, 9])
BAD = {
    "other": (data_frame(pd.DataFrame({"a": [1.0]}, index=["r"])), "no cells"),
    "list": (named({"a": np.array([1.0])}), "no cells"),
    "version-2": (s4("seurat", "Seurat"), "version 2"),
    "no-assay": (s4("Seurat", "SeuratObject", assays=R(())), "no assay"),
    "on-disk": (s4("Seurat", "SeuratObject", assays=named({"RNA": ON_DISK})), "no readable matrix"),
    "no-names": (dgc(np.ones((3, 2))), "no row or column names"),
    "pointers": (OUTSIDE, "damaged"),
    "deep": (nested(30_000), "nested too deep"),
}


@pytest.mark.parametrize("kind", BAD)
def test_other_values_are_refused(kind: str, tmp_path: Path) -> None:
    item, message = BAD[kind]
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(200_000)
    path = save_rds(tmp_path / "x.rds", item)
    sys.setrecursionlimit(limit)
    with pytest.raises(InputError, match=message):
        contents_of(path, PLENTY)
    assert sys.getrecursionlimit() == limit


def test_damaged_files_are_refused(cells, tmp_path: Path) -> None:
    whole = gzip.decompress(save_rds(tmp_path / "x.rds", seurat(cells, version=5)).read_bytes())
    rng = np.random.default_rng(0)
    (tmp_path / "x.rds").write_bytes(gzip.compress(whole)[:-40])
    with pytest.raises(InputError, match="damaged"):
        contents_of(tmp_path / "x.rds", PLENTY)
    survived = 0
    for _ in range(60):
        content = bytearray(whole)
        at = int(rng.integers(30, len(content)))
        content[at] ^= int(rng.integers(1, 256))
        (tmp_path / "x.rds").write_bytes(
            bytes(content[: int(rng.integers(at, len(content)))] if rng.random() < 0.3 else content)
        )
        with contextlib.suppress(ScvecError):
            contents_of(tmp_path / "x.rds", PLENTY)
            survived += 1  # a byte of a value or a name
    assert survived < 60


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.rds"
    path.write_bytes(gzip.compress(b"X\n\x00\x00\x00\x03" + bytes(2**26)))
    with pytest.raises(ResourceError, match="needs more than") as caught:
        contents_of(path, 2**26)
    assert "writeH5AD" in caught.value.fix
