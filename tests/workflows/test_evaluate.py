"""Tests of evaluation against true labels: scores by hand, label maps, and errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

import scvec
from scvec.base.errors import InputError

OPTIONS: dict[str, Any] = {"label_key": "cell_type", "backbone": "random:16", "encoder": "pca"}


@pytest.fixture(scope="module")
def store(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_adata: Callable[..., Any],
    new_store: Callable[[Path], Path],
) -> Path:
    path = new_store(tmp_path_factory.mktemp("evaluate") / "store")
    reference = tiny_adata(120, classes=3)
    terms = {"alpha": "CL:0000171", "beta": "CL:0000169", "acinar": "CL:0002064"}
    reference.obs["cell_type_ontology_term_id"] = reference.obs["cell_type"].astype(str).map(terms)
    scvec.ingest_cells(path, [reference], name="three", batch_key="donor", **OPTIONS)
    return path


@pytest.fixture(scope="module")
def cells(tiny_adata: Callable[..., Any]) -> Any:
    """Cells of four types. The reference lacks one type, and half of another type has another name."""
    new = tiny_adata(80, classes=4, seed=1)
    truth = new.obs["cell_type"].astype(str).to_numpy(dtype=object)
    truth[:3] = ["beta", None, "unknown sort"]  # wrong label; no label; unknown name
    new.obs["truth"] = truth
    return new


def test_numbers_are_those_of_scikit_learn(store: Path, cells: Any, tmp_path: Path):
    report = scvec.evaluate(store, cells, truth_key="truth", output=tmp_path / "eval.json", coverage=0.8)
    found = scvec.query(store, cells, coverage=0.8)
    truth = cells.obs["truth"].fillna("").to_numpy().astype(str)
    known = np.isin(truth, ["alpha", "beta", "acinar"])
    said = np.asarray(found.label)
    assert (report.n_cells, report.n_scored, report.n_known) == (80, 79, int(known.sum()))
    assert report.unknown_labels == {"ductal": 20, "unknown sort": 1}
    scores = report.scores
    assert scores["accuracy"] < 1 and scores["accuracy"] == pytest.approx(
        accuracy_score(truth[known], said[known])
    )
    expected = f1_score(truth[known], said[known], average="macro", labels=np.unique(truth[known]))
    assert scores["macro_f1"] == pytest.approx(expected)
    scored = truth != ""
    expected = roc_auc_score(~known[scored], found.novelty[scored])
    assert scores["novelty_auroc"] == pytest.approx(expected)
    assert scores["false_novel"] == pytest.approx(np.mean(found.status[known] == "novel"))
    classes = list(found.classes)
    inside = [found.sets[i, classes.index(truth[i])] for i in np.flatnonzero(known)]
    assert scores["sets"]["coverage"] == 0.8 and scores["sets"]["observed"] == pytest.approx(np.mean(inside))
    counts = np.array(report.confusion["counts"])
    assert counts.sum() == 79
    rows = {name: n for name, n in zip(report.confusion["labels"], counts.sum(axis=1), strict=True)}
    assert rows["ductal"] == 20 and sum(row["n"] for row in report.labels) == 79
    assert scores["risk_coverage"][-1][0] == 1.0
    assert scores["risk_coverage"][-1][1] == pytest.approx(1 - np.mean((said == truth)[scored]))
    written = json.loads((tmp_path / "eval.json").read_text(encoding="utf-8"))
    assert written == report.to_dict() and written["scores"]["accuracy"] == scores["accuracy"]
    text = "\n".join(report.lines())
    assert "79 of 80 cells" in text and "ductal (20)" in text and "macro-F1" in text


def test_names_that_mean_the_same_are_scored_as_one(store: Path, cells: Any, tmp_path: Path):
    table = tmp_path / "names.csv"
    table.write_text("alpha,endocrine\nbeta,endocrine\nunknown sort,\n", encoding="utf-8")
    report = scvec.evaluate(store, cells, truth_key="truth", label_map=table)
    assert report.scores["accuracy"] == 1.0  # the one wrong label was alpha for beta
    assert report.n_scored == 78 and report.unknown_labels == {"ductal": 20}
    assert "endocrine" in report.confusion["labels"] and "beta" not in report.confusion["labels"]
    as_json = tmp_path / "names.json"
    as_json.write_text(json.dumps({"alpha": "endocrine", "beta": "endocrine", "unknown sort": ""}))
    again = scvec.evaluate(store, cells, truth_key="truth", label_map=as_json)
    assert again.scores == report.scores
    mapping = {"alpha": "endocrine", "beta": "endocrine", "unknown sort": ""}
    assert scvec.evaluate(store, cells, truth_key="truth", label_map=mapping).scores == report.scores


def test_labels_of_the_ontology_are_compared_by_their_ancestors(store: Path, cells: Any):
    scores = scvec.evaluate(store, cells, truth_key="cell_type").scores
    assert scores["accuracy"] == scores["ontology_accuracy"] == scores["ontology_similarity"] == 1.0
    scores = scvec.evaluate(store, cells, truth_key="truth").scores
    # The only wrong label is a sibling of the true one: wrong, but similar.
    assert scores["ontology_accuracy"] == scores["accuracy"] < scores["ontology_similarity"] < 1.0


def test_a_figure_of_it(store: Path, cells: Any, tmp_path: Path):
    pytest.importorskip("matplotlib")
    for name, magic in (("eval.png", b"\x89PNG"), ("eval.svg", b"<?xml"), ("eval.pdf", b"%PDF")):
        report = scvec.evaluate(store, cells, truth_key="truth", plot=tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(magic) and report.plot.endswith(name)


def test_without_matplotlib_a_figure_says_what_to_install(
    store: Path, cells: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError) as caught:
        scvec.evaluate(store, cells, truth_key="truth", plot=tmp_path / "eval.png")
    assert caught.value.code == "extra-not-installed" and "pip install matplotlib" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused(store: Path, cells: Any, tmp_path: Path):
    for options, code in (
        ({"truth_key": "trut"}, "unknown-column"),
        ({"output": tmp_path / "eval.txt"}, "output-format"),
        ({"coverage": 90}, "option-out-of-range"),
        ({"label_map": tmp_path / "none.csv"}, "file-not-found"),
    ):
        with pytest.raises(InputError) as caught:
            scvec.evaluate(store, cells, **{"truth_key": "truth", **options})
        assert caught.value.code == code
    for name, text in (
        ("a.csv", "a,b,c\n"),
        ("b.csv", "a,b\na,c\n"),
        ("c.json", "{"),
        ("d.json", '{"a": 1}'),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match="label map"):
            scvec.evaluate(store, cells, truth_key="truth", label_map=tmp_path / name)
    nothing = cells.copy()
    nothing.obs["truth"] = None
    with pytest.raises(InputError) as caught:
        scvec.evaluate(store, nothing, truth_key="truth")
    assert caught.value.code == "no-labels"
