"""Evidence from files and objects: the same, complete, and refused where it would be of something else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

import scvec
from scvec.base.errors import InputError, StoreError
from scvec.model.explanation import Explainer

OPTIONS: dict[str, Any] = {"label_key": "cell_type", "backbone": "random:16", "batch_key": "donor"}


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_adata: Callable[..., Any],
    new_store: Callable[[Path], Path],
) -> Path:
    path = tmp_path_factory.mktemp("explain")
    tiny_adata(90).write_h5ad(path / "ref.h5ad")
    tiny_adata(30, seed=1).write_h5ad(path / "new.h5ad")
    scvec.ingest_cells(new_store(path / "store"), [path / "ref.h5ad"], name="tiny", **OPTIONS)
    scvec.query(path / "store", path / "new.h5ad", output=path / "out.h5ad")
    return path


def test_a_label_is_explained_by_its_markers_and_voters(folder: Path):
    from conftest import MARKERS

    for label in ("alpha", "beta", "acinar"):
        found = scvec.explain(folder / "store", folder / "out.h5ad", label=label, n_genes=5)
        assert found.n_cells == found.n_labelled == 10 and found.cell == ""
        assert sum(g.symbol in MARKERS[label] for g in found.genes if g.contribution > 0) >= 3
        assert found.completeness_error < 1e-4
        total = found.genes_total + found.neighbors_total + found.constant + found.undivided
        assert total == pytest.approx(found.log_odds, rel=1e-3)
        assert sum(found.members.values()) == pytest.approx(found.log_odds, rel=1e-6)
        assert sum(found.against.values()) == 10 and label not in found.against
        assert any(g.description and g.source and g.kind for g in found.genes)
        votes = {v.label: 0 for v in found.voters}
        for voter in found.voters:
            assert voter.donor in ("donor1", "donor2") and voter.dataset == "ref.h5ad"
            votes[voter.label] += voter.n
        assert max(votes, key=votes.__getitem__) == label and sum(votes.values()) == 150
        json.dumps(found.to_dict(), allow_nan=False)


def test_a_cell_is_explained_with_each_of_its_neighbours(folder: Path):
    annotated = anndata.read_h5ad(folder / "out.h5ad")
    name, label = annotated.obs_names[4], annotated.obs["scvec_label"].iloc[4]
    found = scvec.explain(folder / "store", folder / "out.h5ad", cell=name, n_genes=3)
    assert (found.cell, found.label, len(found.genes), len(found.voters)) == (name, label, 3, 15)
    assert [v.distance for v in found.voters] == sorted(v.distance for v in found.voters)
    assert found.confidence == pytest.approx(annotated.obs["scvec_confidence"].iloc[4])
    log = np.log1p(annotated.X[4].toarray()[0] / annotated.X[4].sum() * 1e4)
    for gene in found.genes:
        [column] = np.flatnonzero(annotated.var_names == gene.symbol)
        assert gene.expression == pytest.approx(log[column], abs=1e-4)
    text = str(found)
    assert name in text and found.genes[0].symbol in text and "total" in text
    other = next(c for c in ("alpha", "beta", "acinar") if c not in (label, *found.against))
    compared = scvec.explain(folder / "store", folder / "out.h5ad", cell=name, against=other)
    assert list(compared.against) == [other] and compared.log_odds >= found.log_odds


def test_file_object_and_annotation_say_the_same(folder: Path, tiny_adata: Callable[..., Any]):
    from_file = scvec.explain(folder / "store", folder / "out.h5ad", label="beta")
    cells = tiny_adata(30, seed=1)
    annotation = scvec.query(folder / "store", cells)
    scvec.annotate(cells, folder / "store", key_added="mine")
    from_object = scvec.explain(folder / "store", cells, label="beta", key_added="mine")
    assert annotation.explain(label="beta").to_dict() == from_file.to_dict() == from_object.to_dict()
    with Explainer.of_annotation(annotation) as explainer:
        assert explainer.label("beta").log_odds == from_file.log_odds
        assert explainer.label("beta", max_cells=4).n_cells == 4


@pytest.mark.parametrize("method", ["knn", "head"])
def test_one_member_alone_is_explained_alone(folder: Path, method: str):
    annotation = scvec.query(folder / "store", folder / "new.h5ad", method=method, where="donor = 'donor1'")
    found = annotation.explain(label="alpha")
    assert list(found.members) == [method] and {v.donor for v in found.voters} == {"donor1"}
    assert bool(found.genes) == (method != "knn")
    assert found.completeness_error < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either a cell or a label"),
        ({"cell": "a", "label": "beta"}, "either a cell or a label"),
        ({"cell": "cell1-999"}, "no cell 'cell1-999'"),
        ({"label": "btea"}, "did you mean 'beta'"),
        ({"label": "beta", "against": "beta"}, "the explained label itself"),
        ({"label": "beta", "against": "gamma"}, "no label 'gamma'"),
        ({"label": "beta", "n_genes": -1}, "--n-genes must be"),
        ({"label": "beta", "key_added": "other"}, "scvec did not annotate"),
    ],
    ids=["nothing", "both", "cell", "label", "itself", "against", "n_genes", "key"],
)
def test_what_cannot_be_explained(folder: Path, options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        scvec.explain(folder / "store", folder / "out.h5ad", **options)


def test_files_that_were_not_annotated(folder: Path):
    with pytest.raises(InputError, match="scvec did not annotate"):
        scvec.explain(folder / "store", folder / "new.h5ad", label="beta")


def test_the_store_may_go_on_while_the_reference_stays(folder: Path, tiny_adata: Callable[..., Any]):
    moved = shutil.copytree(folder / "store", folder / "moved")
    before = scvec.explain(moved, folder / "out.h5ad", label="beta").to_dict()
    scvec.ingest_cells(moved, [tiny_adata(45, seed=7)], name="more", **OPTIONS | {"encoder": "pca"})
    scvec.compact(moved)
    assert scvec.explain(moved, folder / "out.h5ad", label="beta").to_dict() == before
    scvec.ingest_cells(moved, [tiny_adata(45, seed=8)], name="tiny", **OPTIONS | {"encoder": "pca"})
    # Generation 2 holds the reference still, but the file is of generation 1, which is gone.
    with pytest.raises(StoreError, match="another reference with this name"):
        scvec.explain(moved, folder / "out.h5ad", label="beta")
    scvec.rm(moved, "tiny")
    with pytest.raises(StoreError, match="does not have"):
        scvec.explain(moved, folder / "out.h5ad", label="beta")


def test_values_that_were_changed_after_the_annotation(folder: Path):
    cells = anndata.read_h5ad(folder / "out.h5ad")
    cells.X = cells.X[::-1].copy()
    with pytest.raises(InputError, match="no longer give the label"):
        scvec.explain(folder / "store", cells, label="alpha")


@pytest.mark.parametrize("text", ["{", "[]", '{"reference": 1}', '{"reference": "tiny", "generation": "x"}'])
def test_damaged_parameters_are_an_error(folder: Path, text: str):
    cells = anndata.read_h5ad(folder / "out.h5ad")
    cells.uns["scvec"]["parameters"] = text
    with pytest.raises(InputError, match="damaged"):
        scvec.explain(folder / "store", cells, label="beta")
