"""Pairs of the benchmark of annotation: filters, maps of labels, draws, and the rotation."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

TEXT = json.dumps(
    {
        "a->b": {
            "reference": "a.h5ad",
            "query": "b.h5ad",
            "reference_labels": {"T1": "T", "T2": "T", "dirt": None},
            "query_labels": {"t": "T", "odd": None},
            "query_where": {"tissue": ["x", "y"]},
        }
    }
)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the two files of TEXT: linear values, 10 genes."""
    monkeypatch.setenv("SCVEC_SHARED_DATA", str(tmp_path))
    rng = np.random.default_rng(0)
    genes = ["CD3D", "CD3E", "MS4A1", "CD79A", "LYZ", "CD14", "NKG7", "GNLY", "PPBP", "FCER1A"]
    for name, labels, tissues in (
        ("a", ["T1"] * 4 + ["T2"] * 2 + ["dirt", "B", "B"], ["x"] * 9),
        ("b", ["t", "t", "odd", "B", "mast", "t"], ["x", "y", "x", "y", "x", "z"]),
    ):
        X = sp.csr_matrix(rng.poisson(3, (len(labels), 10)).astype(np.float32) + 0.5)
        obs = pd.DataFrame(
            {"cell_type": labels, "tissue": tissues}, index=[f"{name}{i}" for i in range(len(labels))]
        )
        anndata.AnnData(X, obs=obs, var=pd.DataFrame(index=genes)).write_h5ad(tmp_path / f"{name}.h5ad")
    return tmp_path


def test_a_pair_is_read_with_its_filters_and_maps(bench, small):
    (pair,) = bench.pairs.read_pairs(TEXT)
    assert (pair.name, pair.query_rows, pair.reference_rows) == ("a->b", ("tissue", ("x", "y")), None)
    reference, query, labels, truth, novel = bench.prepare.prepare(pair)
    assert Counter(labels) == {"T": 6, "B": 2}  # null leaves cells out, what is not in the map keeps its name
    assert list(query.obs_names) == ["b0", "b1", "b3", "b4"]  # neither "odd" nor tissue z
    assert list(truth) == ["T", "T", "B", "mast"]
    assert list(novel) == [False, False, False, True]
    assert list(reference.obs["label"]) == list(labels) and list(query.obs.columns) == []


def test_a_filter_of_two_columns_is_refused(bench):
    facts = json.loads(TEXT)
    facts["a->b"]["query_where"]["donor"] = ["1"]
    with pytest.raises(ValueError):
        bench.pairs.read_pairs(json.dumps(facts))


def test_other_tools_get_log1p_of_ten_thousand_and_scvec_the_file(bench, small, tmp_path, monkeypatch):
    (pair,) = bench.pairs.read_pairs(TEXT)
    monkeypatch.setitem(bench.pairs.VALUES, "a.h5ad", "linear")
    monkeypatch.setitem(bench.pairs.VALUES, "b.h5ad", "log2(TPM/10+1)")
    files = bench.prepare.write(pair, tmp_path / "cache")
    raw, plain = (anndata.read_h5ad(p).X.toarray() for p in (files.reference, files.plain_reference))
    np.testing.assert_allclose(plain, np.log1p(raw / raw.sum(axis=1, keepdims=True) * 1e4), rtol=1e-5)
    raw, plain = (anndata.read_h5ad(p).X.toarray() for p in (files.query, files.plain_query))
    tpm = 2.0**raw - 1
    np.testing.assert_allclose(plain, np.log1p(tpm / tpm.sum(axis=1, keepdims=True) * 1e4), rtol=1e-5)
    np.testing.assert_array_equal(raw, anndata.read_h5ad(small / "b.h5ad")[[0, 1, 3, 4]].X.toarray())
    assert files.mapped == files.plain_query  # one species


def test_a_draw_has_the_promised_numbers_and_is_the_same_again(bench):
    labels = np.array(["a"] * 30 + ["b"] * 3 + ["c"] * 8)
    for n in bench.pairs.PER_TYPE:
        rows = bench.prepare.drawn(labels, n, 4)
        assert Counter(labels[rows]) == {"a": min(n, 30), "b": min(n, 3), "c": min(n, 8)}
        np.testing.assert_array_equal(rows, bench.prepare.drawn(labels, n, 4))
    few, many = (set(bench.prepare.drawn(labels, n, 4)) for n in (2, 10))
    assert few < many
    assert len({tuple(bench.prepare.drawn(labels, 5, seed)) for seed in range(5)}) == 5


def test_each_seed_of_a_learning_curve_draws_other_cells(bench, tmp_path):
    pair = next(p for p in bench.pairs.CURVES if p.name == "donors-cells2")
    methods = bench.methods.chosen("nearest centroid (cosine)") + bench.methods.chosen("PCA-50 + kNN")
    runs, absent = bench.results.Results(tmp_path / "cache").plan(methods, [pair], 3)
    assert absent == [] and {r.method.name for r in runs} == {"nearest centroid (cosine)"}
    assert [r.seed for r in runs] == [0, 1, 2]
    assert len({r.key for r in runs}) == len({r.files.digest for r in runs}) == 3
    assert len({r.files.query for r in runs}) == 1  # the query is written once
    labels = anndata.read_h5ad(runs[0].files.reference).obs["label"]
    assert max(Counter(labels).values()) == 2 and set(labels) == set(runs[0].files.known)


def test_a_reference_of_few_cells_is_asked_once(bench, small, tmp_path):
    (pair,) = bench.pairs.read_pairs(TEXT)
    results = bench.results.Results(tmp_path / "cache")
    some = [
        pair,
        replace(pair, name="a->b-cells6", per_type=6),
        replace(pair, name="a->b-cells5", per_type=5),
    ]
    runs, _ = results.plan(bench.methods.chosen("SingleR"), some, 1)
    assert len(runs) == 3 and runs[0].key == runs[1].key != runs[2].key
    assert {r.key for r in results.missing(runs)} == {r.key for r in runs} and len(results.missing(runs)) == 2


def test_the_rotation_never_reports_on_cells_it_chose_on(bench):
    seen: list[str] = []
    for tissue, chosen, reported in bench.pairs.rotation():
        assert {p.tissue for p in reported} == {tissue} and tissue not in {p.tissue for p in chosen}
        asked = {cell for p in reported for cell in cells(p)}
        assert chosen and not asked & {cell for p in chosen for cell in cells(p)}
        seen += [p.name for p in reported]
    assert sorted(seen) == sorted(p.name for p in bench.pairs.PAIRS)


def cells(pair: Any) -> set[tuple[str, str]]:
    """Return names that two pairs share where they ask the same cells: of parts of a file, or of all."""
    parts = ("brain", "liver", "human3", "human4", "1") if pair.query_rows is None else pair.query_rows[1]
    return {(pair.query, part) for part in parts}


def test_the_rotation_reports_what_was_not_chosen_on(bench):
    rows = [
        {"method": m, "pair": p, "seed": 0, "macro_f1": f1}
        for m, f1s in (("SingleR", (0.9, 0.2)), ("CellTypist", (0.5, 0.6)))
        for p, f1 in zip(("donors", "pbmc"), f1s, strict=True)
    ]
    _, table = bench.summary.rotated(rows)
    found = {r["tissue"]: (r["chosen"], r["macro_f1"], r["hindsight"]) for r in table}
    assert found["pancreas"] == ("CellTypist", 0.5, 0.9)  # chosen on blood
    assert found["blood"] == ("SingleR", 0.2, 0.6)
    assert found["mean of pairs"][1:] == (pytest.approx(0.35), pytest.approx(0.75))


def test_each_pair_is_compared_with_its_best_row(bench):
    rows = [
        {
            "method": m,
            "pair": "pbmc",
            "seed": s,
            "macro_f1": f1,
            "novelty_auroc": a,
            "n": 9,
            "n_novel": 1,
            **more,
        }
        for m, s, f1, a, more in (
            ("scvec", 0, 0.8, 0.7, {"known_novel": 0.1, "right_confident": 0.5, "confident_accuracy": 0.9}),
            ("scvec", 1, 0.6, 0.5, {"known_novel": 0.3, "right_confident": 0.7, "confident_accuracy": 1.0}),
            ("SingleR", 0, 0.9, 0.2, {}),
            ("CellTypist", 0, 0.5, 0.8, {}),
        )
    ]
    ((row,), columns) = bench.summary.each_pair(rows)[1], bench.summary.each_pair(rows)[0]
    assert row["best_row"] == "SingleR" and row["best"] == 0.9 and row["best_auroc"] == 0.8
    assert (row["scvec"], row["under_best"], row["auroc"]) == pytest.approx((0.7, 0.2, 0.6))
    assert [row[c] for c in columns[-3:]] == pytest.approx([0.2, 0.6, 0.95])


def test_learning_curves_end_with_all_cells(bench):
    sizes = bench.pairs.PER_TYPE
    rows = [
        {"method": "SingleR", "pair": f"donors-cells{n}", "seed": s, "macro_f1": n / 100 + s / 10}
        for n in sizes
        for s in (0, 1)
    ]
    rows.append({"method": "SingleR", "pair": "donors", "seed": 0, "macro_f1": 0.9})
    columns, table = bench.summary.learning(rows)
    assert columns[2:] == ("1", "2", "5", "10", "20", "all")
    for row, name in zip(table, ("donors", "mean"), strict=True):
        assert row["pair"] == name and row["all"] == 0.9
        assert [row[str(n)] for n in sizes] == pytest.approx([n / 100 + 0.05 for n in sizes])


def test_maps_name_labels_of_the_files_and_nothing_else(bench):
    """A label that is misspelt in a map would count its cells as of another type, or as novel."""
    some = [p for p in (*bench.pairs.SIX, *bench.pairs.TISSUES) if bench.pairs.find_file(p.reference)]
    if not some:
        pytest.skip("the shared data are not here")
    for pair in some:
        there = []
        for name, key in ((pair.reference, pair.reference_key), (pair.query, pair.query_key)):
            there.append(set(anndata.read_h5ad(bench.pairs.find_file(name), backed="r").obs[key].astype(str)))
        assert set(pair.reference_labels) <= there[0] and set(pair.query_labels) <= there[1], pair.name
        assert set(pair.labels) <= there[0] | there[1], pair.name


#: Types that the reference lacks, by what the files hold.
NOVEL = {
    "pbmc3k->kang": set(),
    "pbmc3k->puram": {"Endothelial", "Fibroblast", "Mast"},
    "darmanis->tm_brain": set(),
    "tm_brain->darmanis": {"fetal progenitor"},
    "aizarani->tm_liver": set(),
    "tm_liver->aizarani": {"Epithelial cell", "Stellate cell/Myofibroblast"},
    "muris->baron_mouse": {"alpha", "beta", "gamma", "delta", "ductal", "schwann"},
    "muris->darmanis": {"fetal_replicating"},
    "muris->aizarani": set(),
}


@pytest.mark.parametrize("name", NOVEL)
def test_novel_types_are_those_the_reference_lacks(bench, name):
    pair = next((p for p in (*bench.pairs.SIX, *bench.pairs.TISSUES) if p.name == name), None)
    made = None if pair is None else bench.prepare.prepare(pair)
    if made is None:
        pytest.skip("the shared data are not here")
    assert set(made.truth[made.novel]) == NOVEL[name]
    assert len(set(made.labels)) >= 5 and len(set(made.truth[~made.novel])) >= 4


def test_groups_hold_what_they_say(bench):
    groups = {name: {p.name for p in some} for name, some in bench.pairs.GROUPS.items()}
    assert len(groups["old"]) == 8 and len(groups["tissues"]) == 3 and len(groups["six"]) in (0, 6)
    assert groups["main"] == groups["old"] | groups["six"] | groups["tissues"]
    assert groups["all"] == groups["main"] | groups["out"] | groups["curve"]
    assert len(groups["all"]) == len(bench.pairs.GROUPS["all"])  # no name twice
    assert [p.name for p in bench.pairs.chosen("six")] == [p.name for p in bench.pairs.SIX]
