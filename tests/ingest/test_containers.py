"""Loom and MuData files; oracle: the same cells as AnnData, written by loompy and mudata or to the letter."""

from __future__ import annotations

from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata.io import write_elem
from baron_parts import assert_same, assert_written, some_cells

from scvec.base.errors import InputError, ResourceError, ScvecError
from scvec.ingest.cells.readers import contents_of, kind_of
from scvec.ingest.cells.source import CellSource

PLENTY = 2**30


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    return some_cells()


def loom(path: Path, adata: anndata.AnnData, **options) -> Path:
    """Write a loom file as version 3 of the format says."""
    text = h5py.string_dtype()
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "matrix", data=adata.X.T.toarray(), **(options or {"chunks": True, "compression": "gzip"})
        )
        file["attrs/LOOM_SPEC_VERSION"] = "3.0.0"
        for name in ("layers", "row_graphs", "col_graphs"):
            file.create_group(name)
        file.create_dataset("row_attrs/Gene", data=adata.var_names.to_numpy(object), dtype=text)
        file.create_dataset("row_attrs/Accession", data=[f"E{i}" for i in range(adata.n_vars)], dtype=text)
        file.create_dataset("col_attrs/CellID", data=adata.obs_names.to_numpy(object), dtype=text)
        labels = adata.obs["cell_type"].astype(str).to_numpy(object)
        file.create_dataset("col_attrs/cell_type", data=labels, dtype=text)
        file["col_attrs/X_pca"] = np.ones((adata.n_obs, 2))
    return path


STORED = {
    "chunks": {"chunks": (64, 32), "compression": "gzip"},
    "thin": {"chunks": (1, 7)},
    "contiguous": {"chunks": None},
    "whole-numbers": {"dtype": "i4", "chunks": (16, 9)},
    "doubles": {"dtype": "f8", "chunks": (150, 1), "shuffle": True},
}


@pytest.mark.parametrize("memory", ["400K", "1G"])
@pytest.mark.parametrize("kind", STORED)
def test_loom_however_it_is_stored(kind: str, memory: str, cells, tmp_path: Path) -> None:
    path = loom(tmp_path / "x.loom", cells, **STORED[kind])
    assert kind_of(path, PLENTY) == "loom"
    assert_same(path, cells, labels="cell_type", memory=memory)
    if memory == "1G":
        written = assert_written(path, cells, tmp_path / "out.h5ad")
        assert written.var["Accession"].iloc[3] == "E3"


def test_loom_of_loompy(cells, tmp_path: Path) -> None:
    loompy = pytest.importorskip("loompy")
    path = tmp_path / "x.loom"
    rows = {"Gene": cells.var_names.to_numpy(str)}
    columns = {"CellID": cells.obs_names.to_numpy(str), "cell_type": cells.obs["cell_type"].to_numpy(str)}
    half = np.floor(cells.X.T.toarray() / 2)
    loompy.create(str(path), {"": cells.X.T.toarray(), "spliced": half}, rows, columns)
    assert_same(path, cells, labels="cell_type")
    with CellSource.open(path, layer="spliced") as source:
        np.testing.assert_array_equal(source.totals, half.sum(axis=0))
    written = assert_written(path, cells, tmp_path / "out.h5ad")
    np.testing.assert_array_equal(written.layers["spliced"].toarray(), half.T)


def test_loom_of_anndata(cells, tmp_path: Path) -> None:
    """As anndata.io.write_loom does: names under obs_names and var_names."""
    path = loom(tmp_path / "x.loom", cells)
    with h5py.File(path, "r+") as file:
        file.move("row_attrs/Gene", "row_attrs/var_names")
        file.move("col_attrs/CellID", "col_attrs/obs_names")
    assert any("var_names" in note for note in assert_same(path, cells, labels="cell_type"))


LOOM = {
    "no-cells": (lambda f: f.pop("col_attrs"), "col_attrs"),
    "no-names": (lambda f: (f["row_attrs"].pop("Gene"), f["row_attrs"].pop("Accession")), "no gene names"),
    "fewer-names": (
        lambda f: (f["col_attrs"].pop("CellID"), f.update({"col_attrs/CellID": ["a"]})),
        "CellID has 1",
    ),
    "flat": (lambda f: (f.pop("matrix"), f.update({"matrix": np.ones(9)})), "not a table"),
    "text": (lambda f: (f.pop("matrix"), f.update({"matrix": np.full((150, 40), b"x")})), "not real numbers"),
    "nan": (lambda f: f["matrix"].write_direct(np.full((150, 40), np.nan, "f4")), "NaN"),
    "link": (
        lambda f: f.update({"layers/far": h5py.ExternalLink("other.h5", "/x")}),
        "links to another file",
    ),
}


@pytest.mark.parametrize("kind", LOOM)
def test_bad_looms_are_refused(kind: str, cells, tmp_path: Path) -> None:
    change, message = LOOM[kind]
    path = loom(tmp_path / "x.loom", cells)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(InputError, match=message), CellSource.open(path):
        pass


def test_attributes_that_do_not_fit(cells, tmp_path: Path) -> None:
    path = loom(tmp_path / "x.loom", cells)
    with pytest.raises(ResourceError, match="attributes"):
        contents_of(path, 2**13)


def mudata_file(path: Path, parts: dict[str, anndata.AnnData], obs: pd.DataFrame) -> Path:
    """Write a file like mudata 0.2 and 0.3."""
    with h5py.File(path, "w") as file:
        file.attrs["encoding-type"], file.attrs["encoding-version"] = "MuData", "0.1.0"
        write_elem(file, "obs", obs)
        write_elem(file, "var", pd.DataFrame(index=[n for part in parts.values() for n in part.var_names]))
        for name, part in parts.items():
            write_elem(file, f"mod/{name}", part)
            write_elem(file, f"obsmap/{name}", np.arange(1, part.n_obs + 1))
        file["mod"].attrs["mod-order"] = list(parts)
    return path


def proteins(cells) -> anndata.AnnData:
    var = pd.DataFrame({"feature_types": "Antibody Capture"}, index=["CD3", "CD4"])
    return anndata.AnnData(sp.csr_matrix(np.ones((cells.n_obs, 2))), obs=cells.obs[[]], var=var)


@pytest.mark.parametrize("name", ["rna", "GEX", "only", "odd"])
def test_the_rna_of_mudata(name: str, cells, tmp_path: Path) -> None:
    rna = cells.copy()
    rna.obs, rna.obsm["X_pca"] = cells.obs[[]].copy(), np.ones((cells.n_obs, 3))
    if name == "odd":
        rna.var["feature_types"] = "Gene Expression"
    parts = {"prot": proteins(cells), name: rna} if name != "only" else {name: rna}
    shared = cells.obs[["cell_type"]].assign(**{f"{name}:x": 1}).iloc[::-1]
    path = mudata_file(tmp_path / "x.h5mu", parts, shared)
    assert kind_of(path, PLENTY) == "h5mu"
    notes = assert_same(path, cells, labels="cell_type")
    assert any(note.startswith(f"read {name} of") for note in notes)
    written = assert_written(path, cells, tmp_path / "out.h5ad")
    assert written.obsm["X_pca"].shape == (cells.n_obs, 3) and f"{name}:x" not in written.obs


def test_mudata_of_mudata(cells, tmp_path: Path) -> None:
    mudata = pytest.importorskip("mudata")
    made = mudata.MuData({"prot": proteins(cells), "rna": cells})
    made.write(tmp_path / "x.h5mu")
    assert_same(tmp_path / "x.h5mu", cells, labels="cell_type")


def test_mudata_without_rna_is_refused(cells, tmp_path: Path) -> None:
    path = mudata_file(tmp_path / "x.h5mu", {"a": proteins(cells), "b": proteins(cells)}, cells.obs)
    with pytest.raises(InputError, match="a, b"):
        contents_of(path, PLENTY)


@pytest.mark.parametrize("gone", ["mod/rna/obs", "mod/rna/var", "mod/rna/X/indptr", "mod/rna"])
def test_damaged_mudata_is_refused(gone: str, cells, tmp_path: Path) -> None:
    path = mudata_file(tmp_path / "x.h5mu", {"rna": cells}, cells.obs)
    with h5py.File(path, "r+") as file:
        del file[gone]
    with pytest.raises(ScvecError), CellSource.open(path):
        pass
