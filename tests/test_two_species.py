"""A reference of human and mouse cells: either asks it, and everything says both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scvec
from scvec.model.calibration import accuracy
from scvec.model.storage import species_of
from scvec.stores.store.store import Store

Cells = Callable[..., Any]


def mouse_cells(tiny_adata: Cells, n: int, seed: int) -> Any:
    """Return cells of mice; one type has another name, and some genes are four times as high as in human."""
    cells = tiny_adata(n, seed=seed, species="mouse")
    level = np.where(np.arange(cells.n_vars) % 3 == 0, 4.0, 1.0).astype(np.float32)
    cells.X = cells.X.multiply(level[None, :]).tocsr()
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str).replace("alpha", "A cell")
    return cells


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, tiny_adata: Cells, new_store: Callable[[Path], Path]
) -> tuple[Path, Any]:
    store = new_store(tmp_path_factory.mktemp("species") / "store")
    report = scvec.ingest_cells(
        store,
        [mouse_cells(tiny_adata, 60, 5), tiny_adata(90)],
        name="both",
        label_key="cell_type",
        batch_key="donor",
        backbone="random:16",
        label_map={"A cell": "alpha"},
    )
    return store, report


def test_the_report_counts_both_species(made: tuple[Path, Any]) -> None:
    _, report = made
    assert report.classes == {"acinar": 50, "alpha": 50, "beta": 50}
    assert any("scaled to the level of human by 3 common labels" in note for note in report.notes)
    assert any("through orthologs" in note for note in report.notes)
    assert not any("one batch" in note for note in report.notes)
    assert report.calibration["held_out"] == "whole batches of donor"
    assert "human" in report.match_summary and "mouse" in report.match_summary


@pytest.mark.parametrize("species", ["human", "mouse"])
def test_queries_of_both_species_are_annotated(
    made: tuple[Path, Any], tiny_adata: Cells, species: str
) -> None:
    new = tiny_adata(60, seed=8) if species == "human" else mouse_cells(tiny_adata, 60, 8)
    truth = np.where(new.obs["cell_type"] == "A cell", "alpha", new.obs["cell_type"].astype(str))
    found = scvec.query(made[0], new, reference="both")
    assert not found.parameters["fitted"] and found.parameters["species"] == species
    assert found.parameters["reference_species"] == "human and mouse"
    assert json.loads(found.uns()["parameters"])["reference_species"] == "human and mouse"
    assert accuracy(truth, found.label) > 0.9
    alone = scvec.query(made[0], new[7:8].copy(), reference="both")
    np.testing.assert_allclose(alone.vectors[0], found.vectors[7], atol=1e-5)
    assert alone.label[0] == found.label[7]


def test_the_store_lists_both_species_and_is_intact(made: tuple[Path, Any]) -> None:
    [info] = scvec.info(made[0], "both").references
    assert info.species == "human and mouse" and info.details["cells"] == {"human": 90, "mouse": 60}
    assert [s["species"] for s in info.details["sources"]] == ["mouse", "human"]
    assert scvec.verify(made[0]).ok


def test_neighbours_can_be_limited_to_one_species(made: tuple[Path, Any], tiny_adata: Cells) -> None:
    found = scvec.query(made[0], tiny_adata(6, seed=8), reference="both", where="scvec_species = 'mouse'")
    assert (found.neighbors.indices < 60).all()  # the mouse file was given first


def test_a_reference_of_one_species_maps_the_other_through_orthologs(
    made: tuple[Path, Any], tiny_adata: Cells
) -> None:
    store, _ = made
    scvec.ingest_cells(store, [tiny_adata(60)], name="human", label_key="cell_type", encoder="pca")
    found = scvec.query(store, mouse_cells(tiny_adata, 9, 1), reference="human")
    assert any("orthologs" in note for note in found.notes)
    stored = Store(store).reference("human")
    assert species_of(stored.meta) == {"human": 60} and "scvec_species" not in stored.obs


@pytest.mark.slow
def test_species_of_one_file_each_are_held_out_by_cells(made: tuple[Path, Any], tiny_adata: Cells) -> None:
    files = [tiny_adata(60), mouse_cells(tiny_adata, 40, 2)]
    report = scvec.ingest_cells(made[0], files, name="two", label_key="cell_type", encoder="pca")
    assert report.calibration["held_out"] == "of the same batches"
    # Unmapped, the mouse name stays a type of its own.
    assert report.classes["A cell"] == 14 and report.classes["alpha"] == 20
