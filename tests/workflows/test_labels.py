"""Tests of the Cell Ontology terms of labels: matched at ingest, shown, changed, and used in predictions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

import scvec
from scvec.base.errors import InputError
from scvec.celltypes.terms import class_ontology, match_labels
from scvec.stores.knowledge.knowledge import KnowledgeBase
from scvec.stores.store.store import Store

GUESS = "retinal pigment epithelium"
OPTIONS: dict[str, Any] = {"label_key": "cell_type", "backbone": "random:16", "encoder": "pca"}


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_adata: Callable[..., Any],
    new_store: Callable[[Path], Path],
) -> Path:
    path = tmp_path_factory.mktemp("labels")
    cells = tiny_adata(75, classes=5)
    names = {"ductal": GUESS, "endothelial": "cluster 7"}
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.rename_categories(names)
    cells.write_h5ad(path / "ref.h5ad")
    path.joinpath("notes.txt").write_text(
        "\n".join(scvec.ingest_cells(new_store(path / "store"), [cells], name="tiny", **OPTIONS).notes)
    )
    return path


@pytest.fixture(scope="module")
def kb(folder: Path) -> Any:
    with Store(folder / "store").knowledge() as kb:
        yield kb


def test_terms_are_found_at_ingest(folder: Path):
    report = scvec.labels(folder / "store", "tiny")
    found = {row.label: row for row in report.labels}
    assert found["alpha"].cl_name == "pancreatic A cell" and found["alpha"].how == "tissue"
    assert found[GUESS].cl_name == "retinal pigment epithelial cell" and found[GUESS].how == "text"
    assert 0.75 <= found[GUESS].confidence < 1.0
    assert found["cluster 7"].cl_id == "" and found["cluster 7"].how == "no cell type"
    assert {row.n_cells for row in report.labels} == {15}
    text = str(report)
    assert "GUESSED" in text and "CL:0000171" in text and "4 of 5 labels" in text
    notes = folder.joinpath("notes.txt").read_text()
    assert (
        "guessed: 'retinal pigment epithelium' as 'retinal pigment epithelial cell' (scvec labels tiny"
        in notes
    )
    assert report.to_dict()["labels"][0]["label"] == "acinar"


def test_terms_are_changed_as_a_new_generation(folder: Path, tiny_adata: Callable[..., Any]):
    import shutil

    store = shutil.copytree(folder / "store", folder / "changed")
    new = tiny_adata(30, seed=1)
    before = scvec.query(store, new)
    report = scvec.labels(store, "tiny", set={"cluster 7": "cl:0000115"}, unset=[GUESS])
    assert report.generation == 3 and report.changed == ["cluster 7", GUESS]
    found = {row.label: (row.cl_name, row.how) for row in report.labels}
    assert found["cluster 7"] == ("endothelial cell", "hand") and found[GUESS] == ("", "hand")
    assert found["alpha"] == ("pancreatic A cell", "tissue")
    after = scvec.query(store, new)
    assert (before.label == after.label).all() and (before.proba == after.proba).all()
    assert scvec.verify(store).ok
    assert {r.label: r.how for r in scvec.labels(folder / "store", "tiny").labels}[
        "cluster 7"
    ] == "no cell type"
    # The reference did not change, so an earlier annotation can still be explained.
    scvec.compact(store)
    scvec.annotate(new, folder / "store")
    assert scvec.explain(store, new, label="beta").label == "beta"
    again = scvec.labels(store, "tiny", set={"cluster 7": "CL:0000115"})
    assert again.generation == 3, "a call without changes must not make a version"


@pytest.mark.parametrize(
    ("options", "code", "names"),
    [
        ({"set": {"alhpa": "CL:0000171"}}, "unknown-label", "did you mean 'alpha'"),
        ({"unset": ["x"]}, "unknown-label", "'x'"),
        ({"set": {"alpha": "CL:9999999"}}, "bad-name", "CL:9999999"),
        ({"set": {"alpha": "T cell"}}, "bad-name", "'T cell'"),
        ({"set": {"alpha": "CL:0000171"}, "unset": ["alpha"]}, "usage", "'alpha'"),
    ],
    ids=["label", "unset", "unknown-term", "no-id", "both"],
)
def test_what_cannot_be_set(folder: Path, options: dict[str, Any], code: str, names: str):
    with pytest.raises(InputError, match=names) as caught:
        scvec.labels(folder / "store", "tiny", **options)
    assert caught.value.code == code
    assert scvec.labels(folder / "store", "tiny").generation == 2


def test_ids_of_the_data_set_come_first(kb: KnowledgeBase):
    found, notes = match_labels(kb, ["B", "cluster 3"], known={"cluster 3": "CL:0000084"})
    assert (found["cluster 3"].name, found["cluster 3"].how) == ("T cell", "column") and notes == []


def test_predictions_carry_the_deepest_term_that_is_certain(kb: KnowledgeBase):
    classes = ["Memory CD4 T", "CD8 T", "B", "CD14+ Mono", "cluster 5"]
    found, _ = match_labels(kb, classes)
    ontology = class_ontology(kb, classes, found)
    proba = np.array(
        [[0.9, 0.05, 0.05, 0, 0], [0.5, 0.45, 0.05, 0, 0], [0.4, 0.2, 0.35, 0.05, 0], [0, 0, 0, 0.1, 0.9]]
    )
    names, ids = (np.asarray(p, object) for p in ontology.coded_broad(proba.astype(np.float32)))
    assert names[0] == "CD4-positive, alpha-beta memory T cell" and ids[3] == ""
    assert "T cell" in names[1] and "CD" not in names[1]
    assert "lymphocyte" in names[2]


def test_without_the_model_names_alone_must_do(kb: KnowledgeBase, monkeypatch: pytest.MonkeyPatch):
    from scvec import backbones as spec

    def none(*_: Any, **__: Any) -> Any:
        raise InputError("the model is not installed")

    monkeypatch.setattr(spec, "load_backbone", none)
    found, notes = match_labels(kb, [GUESS, "B"])
    assert not found[GUESS].cl_id and found["B"].cl_id
    assert any("not installed" in note for note in notes)


def test_a_majority_vote_comes_beside_the_labels(folder: Path, tiny_adata: Callable[..., Any]):
    pytest.importorskip("igraph")
    tiny_adata(60, classes=5, seed=2).write_h5ad(folder / "new.h5ad")
    plain = scvec.query(folder / "store", folder / "new.h5ad")
    found = scvec.query(
        folder / "store",
        folder / "new.h5ad",
        majority_vote=True,
        columns="celltypist",
        output=folder / "voted.h5ad",
    )
    assert (found.label == plain.label).all() and set(found.majority) <= set(found.classes)
    for cluster in np.unique(found.cluster):
        assert len(set(found.majority[found.cluster == cluster])) == 1
    obs = anndata.read_h5ad(folder / "voted.h5ad").obs
    assert list(obs["majority_voting"]) == list(obs["scvec_majority"]) == found.majority.tolist()
    assert {"predicted_labels", "over_clustering", "conf_score", "scvec_label"} <= set(obs.columns)
    scvec.query(folder / "store", folder / "new.h5ad", columns="celltypist", output=folder / "ct.csv")
    head = (folder / "ct.csv").read_text().splitlines()[0]
    assert head == "cell,predicted_labels,conf_score"


def test_the_tissue_column_helps(folder: Path, tiny_adata: Callable[..., Any]):
    from scvec.ingest.cells.source import CellSource
    from scvec.model.training import Labelled

    cells: anndata.AnnData = tiny_adata(30)
    cells.obs["tissue"] = "pancreas"
    with CellSource.open(cells) as source:
        assert Labelled.read([source], "cell_type", None).tissues() == ["pancreas"]
