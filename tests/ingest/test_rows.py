"""Cells that another process reads again are the cells that were read first."""

from __future__ import annotations

import os

import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from scvec.ingest.cells.source import CellSource, FileRows, recipe_of

MEMORY = 1 << 28


@pytest.fixture
def path(tmp_path, tiny_adata):
    adata = tiny_adata(37)
    # A tag that is no gene: the mask must leave it out again.
    adata.var["feature_types"] = ["Gene Expression"] * (adata.n_vars - 1) + ["Antibody Capture"]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def test_rows_read_again_have_the_same_bits(path):
    with CellSource.open(path) as source:
        chunks = list(source.chunks(10))
        recipe = recipe_of(source)
    assert not recipe.feature_mask.all()
    again = FileRows(recipe, MEMORY)
    for i, chunk in enumerate(chunks):
        found = again.rows(10 * i, min(10 * i + 10, 37))
        assert found.shape == chunk.shape
        for part in ("data", "indices", "indptr"):
            assert getattr(found, part).tobytes() == getattr(chunk, part).tobytes()
    again.close()


def test_dense_values_of_a_layer_are_found_again(tmp_path, tiny_adata):
    adata = tiny_adata(20)
    adata.layers["counts"] = adata.X.toarray()
    adata.X = np.asarray(adata.X.toarray() - 1.0)
    adata.write_h5ad(tmp_path / "layers.h5ad")
    with CellSource.open(tmp_path / "layers.h5ad") as source:
        chunk = next(source.chunks())
        recipe = recipe_of(source)
    assert recipe.state.where == "layers/counts"
    assert (FileRows(recipe, MEMORY).rows(0, 20) != chunk).nnz == 0


def test_a_file_that_was_changed_is_not_taken_for_the_one_that_was_read(path):
    with CellSource.open(path) as source:
        recipe = recipe_of(source)
    assert recipe.is_here()
    os.utime(path, ns=(1, 1))
    assert not recipe.is_here()
    path.unlink()
    assert not recipe.is_here()


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_what_is_in_memory_and_folders_are_sent_instead(tmp_path, tiny_adata):
    adata = tiny_adata(12)
    adata.write_zarr(tmp_path / "cells.zarr")
    with CellSource.open(tmp_path / "cells.zarr") as source:
        assert recipe_of(source) is None
    with CellSource.open(adata) as source:
        assert recipe_of(source) is None
    adata.X = sp.csc_matrix(adata.X)
    adata.write_h5ad(tmp_path / "columns.h5ad")
    with CellSource.open(tmp_path / "columns.h5ad") as source:
        assert recipe_of(source) is None


def test_a_file_of_cell_ranger_is_read_again_too(tmp_path, tiny_adata):
    adata = tiny_adata(12)
    counts = sp.csr_matrix(adata.X).astype(np.int32)
    with h5py.File(tmp_path / "filtered.h5", "w") as file:
        matrix = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            matrix[name] = getattr(counts, name).astype(np.int64)
        matrix["shape"] = np.array([adata.n_vars, adata.n_obs])
        matrix["barcodes"] = np.array(list(adata.obs_names), dtype="S")
        names = np.array(list(adata.var_names), dtype="S")
        for column, values in {"id": names, "name": names}.items():
            matrix[f"features/{column}"] = values
        matrix["features/feature_type"] = np.array([b"Gene Expression"] * adata.n_vars)
        matrix["features/genome"] = np.array([b"GRCh38"] * adata.n_vars)
    with CellSource.open(tmp_path / "filtered.h5") as source:
        chunk = next(source.chunks())
        recipe = recipe_of(source)
    found = FileRows(recipe, MEMORY).rows(0, 12)
    assert found.data.tobytes() == chunk.data.tobytes()
