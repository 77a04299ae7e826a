"""Small and odd references and queries: each works, or says why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scvec
from scvec.base.errors import InputError
from scvec.model.calibration import accuracy

OPTIONS: dict[str, Any] = {"label_key": "cell_type", "backbone": "random:16"}
Cells = Callable[..., Any]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], Path]) -> Path:
    return new_store(tmp_path_factory.mktemp("small") / "store")


def labels(cells: Any) -> np.ndarray:
    return cells.obs["cell_type"].to_numpy().astype(str)


def check(found: Any, n: int) -> None:
    assert len(found) == n
    for values in (found.confidence, found.novelty, found.proba, found.vectors):
        assert np.isfinite(values).all()
    np.testing.assert_allclose(found.proba.sum(axis=1), 1.0, atol=1e-5)
    assert found.sets is not None and found.sets.shape == found.proba.shape


@pytest.mark.parametrize("encoder", ["discriminant", "adapted", "residual"])
@pytest.mark.slow
def test_one_cell_of_a_type(store: Path, tiny_adata: Cells, encoder: str):
    cells = tiny_adata(63, classes=3)
    kept = np.flatnonzero((labels(cells) != "acinar") | (np.arange(63) == 2))
    scvec.ingest_cells(store, [cells[kept].copy()], name="single", encoder=encoder, **OPTIONS)
    new = tiny_adata(60, classes=3, seed=1)
    found = scvec.query(store, new, reference="single", coverage=0.9)
    check(found, 60)
    common = labels(new) != "acinar"
    assert accuracy(labels(new)[common], found.label[common]) > 0.85


def test_two_types(store: Path, tiny_adata: Cells):
    scvec.ingest_cells(store, [tiny_adata(40, classes=2)], name="two", **OPTIONS)
    new = tiny_adata(30, classes=2, seed=1)
    found = scvec.query(store, new, reference="two", coverage=0.9)
    check(found, 30)
    assert accuracy(labels(new), found.label) > 0.9


def test_one_type_is_an_error(store: Path, tiny_adata: Cells):
    cells = tiny_adata(30, classes=2)
    cells.obs["cell_type"] = "alpha"
    with pytest.raises(InputError, match="all cells have the same label"):
        scvec.ingest_cells(store, [cells], name="one", **OPTIONS)


def test_files_of_one_type_each_are_a_reference(store: Path, tiny_adata: Cells):
    cells = tiny_adata(60, classes=2)
    files = [cells[labels(cells) == label].copy() for label in ("alpha", "beta")]
    report = scvec.ingest_cells(store, files, name="sorted", **OPTIONS)
    assert any("the batches share no labels" in note for note in report.notes)
    new = tiny_adata(30, classes=2, seed=1)
    assert accuracy(labels(new), scvec.query(store, new, reference="sorted").label) > 0.9
    assert scvec.append_cells(store, [files[0][:9]], name="sorted", label_key="cell_type").n_added == 0


@pytest.mark.parametrize("batch_key", [None, "donor"])
def test_fourteen_types_of_two_cells(store: Path, tiny_adata: Cells, batch_key: str | None):
    rng = np.random.default_rng(0)
    genes = list(tiny_adata(4, classes=2).var_names[:98])
    kinds = np.repeat(np.arange(14), 2)
    rate = np.full((28, len(genes)), 1.0)
    for k in range(14):
        rate[kinds == k, 7 * k : 7 * k + 7] = 40.0
    obs = pd.DataFrame(
        {"cell_type": [f"type {chr(65 + k)}" for k in kinds], "donor": ["x", "y"] * 14},
        index=[f"c{i}" for i in range(28)],
    )
    cells = anndata.AnnData(
        sp.csr_matrix(rng.poisson(rate).astype(np.float32)), obs=obs, var=pd.DataFrame(index=genes)
    )
    scvec.ingest_cells(store, [cells], name="fourteen", batch_key=batch_key, **OPTIONS)
    again = cells.copy()
    again.X = sp.csr_matrix(rng.poisson(rate).astype(np.float32))
    found = scvec.query(store, again, reference="fourteen", coverage=0.9)
    check(found, 28)
    assert accuracy(labels(again), found.label) > 0.8


@pytest.mark.parametrize("encoder", ["discriminant"])
def test_fifty_genes_in_common(store: Path, tiny_adata: Cells, encoder: str):
    scvec.ingest_cells(store, [tiny_adata(150, classes=5)], name="wide", encoder=encoder, **OPTIONS)
    new = tiny_adata(70, classes=5, seed=1)
    panel = np.random.default_rng(0).choice(new.n_vars, 50, replace=False)
    found = scvec.query(store, new[:, panel].copy(), reference="wide", coverage=0.9)
    check(found, 70)
    assert any("less certain" in note for note in found.notes)
    assert accuracy(labels(new), found.label) > 0.7
    # A small panel is no reason to call known cells new.
    assert (found.status == "novel").mean() < 0.25
    few = [g for g in new.var_names if g in ("INS", "GCG", "KRT19")]
    with pytest.raises(InputError, match="only 3 of"):
        scvec.query(store, new[:, few].copy(), reference="wide")


def test_seventy_reference_cells_and_one_query_cell(store: Path, tiny_adata: Cells):
    scvec.ingest_cells(store, [tiny_adata(90)], name="plain", batch_key="donor", **OPTIONS)
    new = tiny_adata(70, seed=1)
    many = scvec.query(store, new, reference="plain", coverage=0.9, novelty="absolute")
    check(many, 70)
    one = scvec.query(store, new[[5]].copy(), reference="plain", coverage=0.9)
    check(one, 1)
    assert one.label[0] == many.label[5] and one.label_sets()[0] == many.label_sets()[5]
    assert one.novelty[0] == pytest.approx(many.novelty[5], abs=1e-4)


def test_rare_labels_are_left_out_on_request_with_a_note(store: Path, tiny_adata: Cells):
    cells = tiny_adata(63, classes=3)
    kept = np.flatnonzero((labels(cells) != "acinar") | (np.arange(63) < 9))
    report = scvec.ingest_cells(store, [cells[kept].copy()], name="rare", min_cells=5, **OPTIONS)
    assert set(report.classes) == {"alpha", "beta"} and report.n_cells == len(kept)
    [finding] = report.to_dict()["label_findings"]
    assert finding["kind"] == "too few cells" and finding["labels"] == {"acinar": 3}
    assert any("'acinar' was left out: 3 cells" in note for note in report.notes)
    found = scvec.query(store, tiny_adata(30, seed=1), reference="rare")
    assert set(found.label) <= {"alpha", "beta"}
    with pytest.raises(InputError, match="fewer than two labels have at least 50 cells"):
        scvec.ingest_cells(store, [cells], name="rare", min_cells=50, **OPTIONS)


def test_odd_labels_are_reported_with_counts_and_kept(store: Path, tiny_adata: Cells):
    cells = tiny_adata(120, classes=3)
    names = labels(cells).astype(object)
    alpha = np.flatnonzero(names == "alpha")
    names[alpha[:15]] = "Alpha cells"
    rest = np.flatnonzero(names != "Alpha cells")
    # a label given to cells of all types alike
    names[np.random.default_rng(0).choice(rest, 24, replace=False)] = "unknown"
    cells.obs["cell_type"] = names
    report = scvec.ingest_cells(store, [cells], name="odd", **OPTIONS)
    assert {"alpha", "Alpha cells", "unknown"} <= set(report.classes)
    found = {(f["kind"], *sorted(f["labels"])): f for f in report.to_dict()["label_findings"]}
    twins = found["near-duplicate", "Alpha cells", "alpha"]
    assert twins["labels"]["Alpha cells"] == 15 and "kept separate" in twins["message"]
    assert found["no cell type", "unknown"]["labels"] == {"unknown": 24}
    loose = found["does not hang together", "unknown"]
    assert "24" in loose["message"] and ("does not hang together", "beta") not in found
    assert all(f["message"] in report.notes for f in found.values())


def test_sets_are_written_with_the_answer(store: Path, tiny_adata: Cells, tmp_path: Path):
    scvec.ingest_cells(store, [tiny_adata(120)], name="sets", batch_key="donor", **OPTIONS)
    new = tiny_adata(40, seed=1)
    new.write_h5ad(tmp_path / "new.h5ad")
    found = scvec.query(
        store, tmp_path / "new.h5ad", reference="sets", coverage=0.95, output=tmp_path / "o.h5ad"
    )
    out = anndata.read_h5ad(tmp_path / "o.h5ad")
    assert out.obsm["scvec_set"].dtype == bool and (out.obsm["scvec_set"] == found.sets).all()
    classes = np.array(out.uns["scvec"]["classes"])
    for row in range(40):
        inside = {*classes[out.obsm["scvec_set"][row]]}
        told = out.obs["scvec_set"].astype(str).iloc[row]
        assert {*told.split("|")} - {""} == inside and out.obs["scvec_set_size"].iloc[row] == len(inside)
    scvec.query(store, new, reference="sets", coverage=0.95, output=tmp_path / "o.csv")
    table = pd.read_csv(tmp_path / "o.csv", index_col=0, keep_default_na=False)
    assert list(table["scvec_set"]) == list(found.label_sets())
    assert "label sets" in "\n".join(found.lines()) and found.to_dict()["mean_set_size"] > 0
    plain = scvec.query(store, new, reference="sets")
    assert "scvec_set" not in plain.to_table() and plain.sets is None
    # a larger allowance of false alarms calls more cells novel
    loose = scvec.query(store, new, reference="sets", false_novel_rate=0.3)
    assert (loose.novelty > plain.novelty).all() and (loose.label == plain.label).all()


def test_labels_with_the_separator_are_also_listed_as_json(store: Path, tiny_adata: Cells, tmp_path: Path):
    cells = tiny_adata(120)
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str).replace({"beta": 'beta|B, "b"'})
    scvec.ingest_cells(store, [cells], name="marks", **OPTIONS)
    new = tiny_adata(40, seed=1)
    found = scvec.query(store, new, reference="marks", coverage=0.95, output=tmp_path / "o.csv")
    table = pd.read_csv(tmp_path / "o.csv", index_col=0, keep_default_na=False)
    for row, listed in enumerate(map(json.loads, table["scvec_set_json"])):
        assert {*listed} == {c for c, here in zip(found.classes, found.sets[row], strict=True) if here}
        assert "|".join(listed) == table["scvec_set"].iloc[row]
    assert 'beta|B, "b"' in {name for text in table["scvec_set_json"] for name in json.loads(text)}
    found.to_adata(new)
    scvec.query(store, new, reference="marks").to_adata(new)
    assert not [name for name in new.obs if "set" in name]


@pytest.mark.parametrize(
    ("batches", "told", "held_out"),
    [
        (lambda n: [f"b{i}" for i in range(n)], "120 values for 120 cells", "of the same batches"),
        (lambda n: [np.nan] * n, "is empty", "of the same batches"),
        (
            lambda n: [None if i % 4 == 0 else f"d{i % 3}" for i in range(n)],
            "30 cells with no batch",
            "whole",
        ),
    ],
    ids=["each", "none", "some"],
)
def test_columns_without_batches_are_not_used(batches, told, held_out, store: Path, tiny_adata: Cells):
    cells = tiny_adata(120)
    cells.obs["sample"] = batches(cells.n_obs)
    report = scvec.ingest_cells(store, [cells], name="odd-batches", batch_key="sample", **OPTIONS)
    assert any(told in note and "obs['sample']" in note for note in report.notes), report.notes
    assert report.calibration["held_out"].startswith(held_out)
