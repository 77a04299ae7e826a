"""Cells that are annotated again: nothing of the earlier answer is left, and nothing else is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

import scvec
from scvec.ingest.cells.write import write_annotated


@pytest.fixture(scope="module")
def store(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_adata: Callable[..., Any],
    new_store: Callable[[Path], Path],
) -> Path:
    path = new_store(tmp_path_factory.mktemp("again") / "store")
    scvec.ingest_cells(path, [tiny_adata(60)], name="tiny", label_key="cell_type", encoder="pca")
    return path


@pytest.fixture
def cells(tiny_adata: Callable[..., Any]) -> Any:
    adata = tiny_adata(24, classes=3, seed=4)
    adata.obs["mine"] = np.arange(24)
    adata.obs["scvec_mine"] = "kept"
    adata.obsm["X_umap"] = np.ones((24, 2))
    adata.uns["mine_colors"] = np.array(["#000000"], dtype=object)
    return adata


def names(adata: Any) -> dict[str, set[str]]:
    return {part: set(getattr(adata, part)) for part in ("obs", "obsm", "uns")}


#: What an earlier run was asked for.
EARLIER: dict[str, dict[str, Any]] = {
    "sets": {"coverage": 0.9},
    "names of CellTypist": {"columns": "celltypist"},
    "both": {"coverage": 0.8, "columns": "celltypist"},
}


@pytest.mark.parametrize("form", ["h5ad", "zarr", "object"])
@pytest.mark.parametrize("earlier", EARLIER)
def test_files_hold_the_last_answer_alone(
    store: Path, cells: Any, tmp_path: Path, earlier: str, form: str
) -> None:
    fresh, first, second = (tmp_path / f"{name}.h5ad" for name in ("fresh", "first", "second"))
    scvec.query(store, cells, output=fresh)
    scvec.query(store, cells, output=first, **EARLIER[earlier])
    annotated = anndata.read_h5ad(first)
    assert not names(annotated)["obs"] <= names(anndata.read_h5ad(fresh))["obs"]
    annotated.obsm["X_scvec_umap"] = np.zeros((24, 2))
    annotated.uns["predicted_labels_colors"] = np.array(["#ffffff"], dtype=object)
    before = set(annotated.uns)
    given: Any = annotated
    if form != "object":
        given = tmp_path / f"given.{form}"
        getattr(annotated, f"write_{form}")(given)
    scvec.query(store, given, output=second)
    found, expected = anndata.read_h5ad(second), anndata.read_h5ad(fresh)
    other = {"predicted_labels_colors"} if "columns" not in EARLIER[earlier] else set()  # not ours to remove
    assert names(found) == {**names(expected), "uns": names(expected)["uns"] | other} and before
    for name in expected.obs:
        assert (found.obs[name] == expected.obs[name]).all()
    with h5py.File(second) as file:
        assert set(file["obs"]) - {file["obs"].attrs["_index"]} == set(file["obs"].attrs["column-order"])


def test_other_columns_are_added_beside_an_annotation(store: Path, cells: Any, tmp_path: Path) -> None:
    one, two = tmp_path / "one.h5ad", tmp_path / "two.h5ad"
    scvec.query(store, cells, output=one)
    write_annotated(one, two, pd.DataFrame({"added": np.arange(24)}))
    before, after = anndata.read_h5ad(one), anndata.read_h5ad(two)
    assert names(after) == {**names(before), "obs": names(before)["obs"] | {"added"}}


def test_columns_of_celltypist_itself_stay(store: Path, cells: Any, tmp_path: Path) -> None:
    cells.obs["predicted_labels"], cells.obs["conf_score"] = "alpha", 0.5
    scvec.query(store, cells, output=tmp_path / "one.h5ad")
    scvec.query(store, tmp_path / "one.h5ad", output=tmp_path / "two.h5ad")
    found = anndata.read_h5ad(tmp_path / "two.h5ad")
    assert (found.obs["predicted_labels"] == "alpha").all() and (found.obs["conf_score"] == 0.5).all()


@pytest.mark.parametrize("key", ["scvec", "other"])
@pytest.mark.parametrize("view", [False, True])
@pytest.mark.filterwarnings("ignore:.*view:UserWarning")
def test_objects_hold_the_last_answer_alone(store: Path, cells: Any, key: str, view: bool) -> None:
    expected = scvec.annotate(cells, store, key_added=key, copy=True)
    scvec.annotate(cells, store, key_added=key, coverage=0.9)
    scvec.annotate(cells, store, key_added="else", coverage=0.9)
    cells.obsm[f"X_{key}_umap"] = np.zeros((24, 2))
    found = cells[:, ::-1] if view else cells
    scvec.annotate(found, store, key_added=key)
    kept = names(scvec.annotate(cells, store, key_added="else", coverage=0.9, copy=True))
    own = {part: {name for name in kept[part] if "else" in name} for part in kept}
    assert names(found) == {part: names(expected)[part] | own[part] for part in own}
    assert list(found.obs[f"{key}_label"]) == list(expected.obs[f"{key}_label"])
    assert (found.obs["scvec_mine"] == "kept").all() and (found.obs["mine"] == np.arange(24)).all()


def test_an_entry_that_another_tool_damaged_is_no_hindrance(store: Path, cells: Any, tmp_path: Path) -> None:
    for k, entry in enumerate(("text", {"columns": np.array(["celltypist"] * 3)}, {"columns": {"a": 1}})):
        cells.uns["scvec"] = entry
        cells.write_h5ad(tmp_path / f"{k}.h5ad")
        for given in (tmp_path / f"{k}.h5ad", cells.copy()):
            scvec.query(store, given, output=tmp_path / "out.h5ad")
            assert "scvec_label" in anndata.read_h5ad(tmp_path / "out.h5ad").obs
        scvec.annotate(cells, store)
