"""The result of a query as a table, in AnnData and in words."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scvec
from scvec.base.display import label_colors
from scvec.base.errors import InputError
from scvec.base.types import Neighbors
from scvec.model.annotation import Annotation
from scvec.model.calibration import STATUSES

#: The columns that the documentation promises.
COLUMNS = [
    "scvec_label",
    "scvec_confidence",
    "scvec_novelty",
    "scvec_status",
    "scvec_label_knn",
    "scvec_label_head",
    "scvec_label_broad",
    "scvec_cl_id",
]
PARAMETERS = {
    "scvec": "0.1.0",
    "reference": "pancreas",
    "generation": 3,
    "space": "0123456789abcdef",
    "encoder": "discriminant",
    "where": None,
    "shares": {"head": 0.5, "knn": 0.25},
    "mixed": [1, "two", None, 3.5],
}


def make(n: int = 5) -> Annotation:
    rng = np.random.default_rng(0)
    classes = ("alpha", "beta", "delta")
    proba = rng.dirichlet([1.0, 1.0, 1.0], n).astype(np.float32)
    names = np.array(["beta", "alpha", "beta", "delta", "beta"] * n)[:n]
    return Annotation(
        cells=np.array([f"c{i}" for i in range(n)]),
        classes=classes,
        label=names,
        label_knn=np.roll(names, 1),
        label_head=names,
        label_broad=np.array(["endocrine cell", ""] * n)[:n],
        cl_id=np.array(["CL:0000163", ""] * n)[:n],
        status=np.array(["confident", "ambiguous", "novel", "confident", "low_quality"] * n)[:n],
        confidence=proba.max(axis=1),
        novelty=rng.random(n).astype(np.float32),
        proba=proba,
        vectors=rng.normal(size=(n, 4)).astype(np.float32),
        neighbors=Neighbors(np.zeros((n, 2), np.int64), np.zeros((n, 2), np.float32)),
        parameters=dict(PARAMETERS),
        notes=["a note"],
        seconds={"read": 0.123456},
    )


def adata(n: int = 5, names: Any = None) -> Any:
    import anndata
    import pandas as pd
    import scipy.sparse as sp

    obs = pd.DataFrame({"donor": ["x"] * n}, index=names or [f"c{i}" for i in range(n)])
    return anndata.AnnData(X=sp.csr_matrix(np.eye(n, 6, dtype=np.float32)), obs=obs)


def test_the_table_has_the_promised_columns() -> None:
    result = make()
    table = result.to_table()
    assert table.columns.tolist() == COLUMNS and table.index.tolist() == ["c0", "c1", "c2", "c3", "c4"]
    for name in COLUMNS:
        np.testing.assert_array_equal(table[name].to_numpy(), getattr(result, name.removeprefix("scvec_")))
    for name in ("label", "status", "label_knn", "label_head", "label_broad", "cl_id"):
        assert table[f"scvec_{name}"].dtype == "category"
    assert table["scvec_confidence"].dtype == table["scvec_novelty"].dtype == np.float32
    # All statuses are categories, so that colours and counts do not depend on the data.
    assert tuple(table["scvec_status"].cat.categories) == STATUSES
    assert make().to_table("mine").columns[0] == "mine_label"


def test_the_result_goes_into_adata_in_place() -> None:
    result, target = make(), adata()
    before = target.X.copy()
    assert result.to_adata(target) is None
    assert target.obs.columns.tolist() == ["donor", *COLUMNS]
    np.testing.assert_array_equal(target.obsm["X_scvec"], result.vectors)
    np.testing.assert_array_equal(target.obsm["scvec_proba"], result.proba)
    assert list(target.uns["scvec"]["classes"]) == ["alpha", "beta", "delta"]
    assert (before != target.X).nnz == 0


def test_a_copy_leaves_adata_as_it_was() -> None:
    result, target = make(), adata()
    other = result.to_adata(target, copy=True, key_added="k")
    assert target.obs.columns.tolist() == ["donor"] and not target.obsm and not target.uns
    assert "k_label" in other.obs and "X_k" in other.obsm and "k_proba" in other.obsm and "k" in other.uns


def test_cells_are_matched_by_position() -> None:
    # The annotation makes names unique; adata still has the old ones.
    target = adata(names=["a", "a", "b", "b", "b"])
    make().to_adata(target)
    assert target.obs["scvec_label"].tolist() == ["beta", "alpha", "beta", "delta", "beta"]
    assert target.obs["scvec_confidence"].tolist() == make().confidence.tolist()


def test_a_second_annotation_replaces_the_first() -> None:
    target = adata()
    make().to_adata(target)
    other = dataclasses.replace(make(), label=np.array(["gamma"] * 5))
    other.to_adata(target)
    assert target.obs["scvec_label"].tolist() == ["gamma"] * 5 and target.obs.shape[1] == 1 + len(COLUMNS)


def test_adata_of_another_size_is_refused() -> None:
    target = adata(4)
    with pytest.raises(ValueError, match="5 cells, adata 4"):
        make().to_adata(target)
    assert target.obs.columns.tolist() == ["donor"]


def test_everything_survives_a_file(tmp_path: Path) -> None:
    import anndata

    target = adata()
    result = make()
    result.to_adata(target)
    target.write_h5ad(tmp_path / "out.h5ad")
    back = anndata.read_h5ad(tmp_path / "out.h5ad")
    for name in COLUMNS:
        np.testing.assert_array_equal(back.obs[name].to_numpy(), getattr(result, name.removeprefix("scvec_")))
    assert tuple(back.obs["scvec_status"].cat.categories) == STATUSES
    np.testing.assert_array_equal(back.obsm["X_scvec"], result.vectors)
    uns = back.uns["scvec"]
    assert list(uns["classes"]) == list(result.classes)
    assert json.loads(uns["parameters"]) == PARAMETERS
    assert (uns["version"], uns["reference"], int(uns["generation"])) == ("0.1.0", "pancreas", 3)
    assert uns["space"] == "0123456789abcdef"


@pytest.mark.parametrize(
    "part",
    [
        "label",
        "label_knn",
        "label_head",
        "label_broad",
        "cl_id",
        "status",
        "confidence",
        "novelty",
        "proba",
        "vectors",
    ],
)
def test_parts_of_another_length_are_refused(part: str) -> None:
    result = make()
    with pytest.raises(ValueError, match=f"{part} 4"):
        dataclasses.replace(result, **{part: getattr(result, part)[:-1]})


def test_neighbors_and_classes_of_another_length_are_refused() -> None:
    result = make()
    few = Neighbors(np.zeros((4, 2), np.int64), np.zeros((4, 2), np.float32))
    with pytest.raises(ValueError, match="neighbors 4"):
        dataclasses.replace(result, neighbors=few)
    with pytest.raises(ValueError, match="2 classes"):
        dataclasses.replace(result, classes=("alpha", "beta"))


def test_summaries() -> None:
    result = make()
    assert len(result) == 5
    assert list(result.counts().items()) == [("beta", 3), ("alpha", 1), ("delta", 1)]
    summary = result.to_dict()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["status"] == {"confident": 2, "ambiguous": 1, "novel": 1, "low_quality": 1}
    assert summary["mean_confidence"] == pytest.approx(float(result.confidence.mean()))
    assert summary["seconds"] == {"read": 0.123}
    lines = result.lines()
    assert lines[0] == "5 cells annotated by reference 'pancreas'"
    assert lines[1].split() == [
        "beta",
        "3",
        "confidence",
        f"{result.confidence[[0, 2, 4]].mean():.2f}",
        "33%",
        "confident",
    ]
    assert lines[-1] == "status: 2 confident, 1 ambiguous, 1 novel, 1 low_quality"
    assert dataclasses.replace(result, output="a.h5ad").lines()[-1] == "written to a.h5ad"


def test_no_cells() -> None:
    nothing = make(0)
    assert nothing.to_table().shape == (0, len(COLUMNS)) and nothing.counts() == {}
    assert nothing.to_dict()["mean_confidence"] is None
    assert nothing.lines()[0].startswith("0 cells")


def test_columns_as_celltypist_writes_them() -> None:
    plain = make()
    table = plain.to_table(columns="celltypist")
    assert table.columns.tolist() == ["predicted_labels", "conf_score"]
    assert table["predicted_labels"].tolist() == plain.label.tolist()
    assert table["conf_score"].tolist() == plain.confidence.tolist()
    cluster = np.array([0, 0, 1, 1, 1])
    voted = dataclasses.replace(plain, cluster=cluster, majority=plain.label[[0, 0, 2, 2, 2]])
    table = voted.to_table(columns="celltypist")
    assert table.columns.tolist() == ["predicted_labels", "over_clustering", "majority_voting", "conf_score"]
    assert table["over_clustering"].tolist() == list("00111")
    assert voted.to_table().columns.tolist() == [*COLUMNS, "scvec_majority", "scvec_cluster"]
    assert "majority vote over 2 clusters" in repr(voted)
    assert sum(voted.to_dict()["majority"].values()) == 5 and plain.to_dict()["majority"] is None
    with pytest.raises(InputError, match="'seurat'") as caught:
        plain.to_table(columns="seurat")
    assert caught.value.code == "unknown-choice"


def test_colours_are_in_the_place_that_scanpy_uses(tmp_path: Path) -> None:
    import anndata

    result = make()
    target = anndata.AnnData(np.ones((5, 2), np.float32))
    target.obs_names = [str(c) for c in result.cells]
    result.to_adata(target)
    target.write_h5ad(tmp_path / "a.h5ad")
    back = anndata.read_h5ad(tmp_path / "a.h5ad")
    for column in ("scvec_label", "scvec_label_knn", "scvec_label_head", "scvec_status"):
        assert len(back.uns[f"{column}_colors"]) == len(back.obs[column].cat.categories)
    of = dict(zip(back.obs["scvec_label"].cat.categories, back.uns["scvec_label_colors"], strict=True))
    assert [of[name] for name in of] == label_colors(result.classes, list(of))


def test_only_an_annotation_of_a_query_can_be_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"scvec\.query"):
        make().explain(label="alpha")
    with pytest.raises(ValueError, match=r"scvec\.query"):
        scvec.write_report(make(), tmp_path / "report.html")


def with_novel(n: int, **changes: Any) -> Annotation:
    """Return 100 cells, n of them novel."""
    status = np.array(["novel"] * n + ["confident"] * (100 - n))
    return make(100).changed(status=status, **changes)


@pytest.mark.parametrize(
    ("annotation", "words", "again"),
    [
        (with_novel(2), ("-o", "annotated.h5ad", "--report", "report.html"), True),
        (with_novel(2, output="my cells.h5ad"), ("explain", "my cells.h5ad", "--label", "beta"), False),
        (with_novel(30, output="a.h5ad"), ("name", "a.h5ad", "--only", "novel", "-o", "named.h5ad"), False),
        (with_novel(95, output="a.h5ad"), ("name", "a.h5ad", "-o", "named.h5ad"), False),
        (
            with_novel(30, output="a.h5ad", parameters={**PARAMETERS, "contrast": 0.1}),
            ("name", "a.h5ad", "-o", "named.h5ad"),
            False,
        ),
        (with_novel(2, output="a.csv"), ("--report", "report.html"), True),
        (with_novel(2, output="a.csv", report="r.html"), None, False),
        (with_novel(2, output="a.h5ad", parameters={**PARAMETERS, "encoder": "obsm"}), None, False),
    ],
)
def test_the_next_step_depends_on_the_result(
    annotation: Annotation, words: tuple[str, ...] | None, again: bool
) -> None:
    step = annotation.next_step
    assert (step.words, step.again) == (words, again) if words else step is None
