"""What the benchmark of annotation counts, and how it compares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

PROJECT = Path(__file__).resolve().parents[1]
RECORD = PROJECT / "docs" / "benchmarks" / "annotate.json"


def scored(bench: Any, truth: str, said: str, confidence: list[float], **options: Any) -> dict[str, Any]:
    n = np.full(len(truth), np.nan)
    options = {"known": {"a", "b"}, "terms": {}, "is_probability": True, "novelty": n} | options
    return bench.scores.score(np.array(list(truth)), np.array(list(said)), np.array(confidence), **options)


def test_cells_of_a_type_the_reference_lacks_count_for_novelty_only(bench):
    found = scored(bench, "aabx", "aaba", [0.9, 0.9, 0.9, 0.1])
    assert found["accuracy"] == found["macro_f1"] == 1.0
    assert found["n_novel"] == 1
    assert found["novelty_auroc"] == 1.0
    assert found["fpr95"] == 0.0
    assert found["aurc"] == pytest.approx(0.25 / 4)


def test_macro_f1_counts_classes_alike(bench):
    # a: precision 3/4, recall 1; b: precision 1, recall 1/2
    assert scored(bench, "aaabb", "aaaab", [0.5] * 5)["macro_f1"] == pytest.approx((6 / 7 + 2 / 3) / 2)


def test_the_novelty_of_a_method_wins_over_its_confidence(bench):
    found = scored(bench, "abx", "aba", [0.1, 0.2, 0.9], novelty=np.array([0.0, 0.1, 1.0]))
    assert found["novelty_auroc"] == 1.0


def test_a_score_that_is_no_probability_is_not_calibrated(bench):
    found = scored(bench, "ab", "ab", [12.0, 3.0], is_probability=False)
    assert "ece" not in found and "brier" not in found and found["aurc"] == 0.0


def test_status_is_counted_over_known_right_and_confident_cells(bench):
    status = np.array(["novel", "confident", "confident", "ambiguous", "confident", "novel"])
    found = scored(bench, "aaabxx", "aabbab", [0.5] * 6, status=status)
    assert found["known_novel"] == 1 / 4  # the first of aaab
    assert found["right_confident"] == 1 / 3  # right are cells 0, 1 and 3
    assert found["confident_accuracy"] == 1 / 3  # confident are 1, 2 and 4, and a novel cell's label is wrong
    assert "confident_accuracy" not in scored(bench, "ab", "ab", [1, 1], status=np.array(["novel"] * 2))
    assert "known_novel" not in scored(bench, "ab", "ab", [1, 1])


def test_ties_of_confidence_share_their_risk(bench):
    curve = bench.scores.risk_coverage(np.array([1.0, 1.0, 0.5]), np.array([True, False, True]))
    np.testing.assert_allclose(curve, [0.5, 0.5, 1 / 3])


def test_auroc_counts_ties_half(bench):
    assert bench.scores.auroc(np.array([1.0, 2.0]), np.array([1.0, 0.0])) == 0.875


def test_a_sibling_is_nearer_than_another_lineage(bench):
    terms = bench.pairs.BLOOD_TERMS

    def nearness(a: str, b: str) -> float:
        return bench.scores.relatedness(np.array([a]), np.array([b]), terms)

    assert nearness("CD4 T", "CD4 T") == 1.0
    assert nearness("CD4 T", "CD8 T") > nearness("CD4 T", "NK") > nearness("CD4 T", "Platelet")
    assert nearness("CD4 T", "no such type") is None


def test_every_label_of_a_pair_is_scored_under_a_name_with_a_term(bench):
    for pair in (*bench.pairs.OLD, *bench.pairs.LEAVE_ONE_OUT):  # the other pairs have no terms
        assert set(pair.labels.values()) <= set(pair.terms), pair.name


def test_seeds_pair_up_and_a_method_without_seeds_counts_once(bench):
    ours = {"p": {0: 0.9, 1: 0.7}, "q": {0: 0.5, 1: 0.5}}
    np.testing.assert_allclose(bench.compare.paired(ours, {"p": {0: 0.8, 1: 0.8}}), [0.1, -0.1])
    np.testing.assert_allclose(bench.compare.paired(ours, {"p": {0: 0.7}, "q": {0: 0.6}}), [0.1, -0.1])


def test_the_sign_flip_test_is_exact_for_few_differences(bench):
    assert bench.compare.sign_flip(np.array([1.0, 2.0, 3.0])) == 0.25
    assert bench.compare.sign_flip(np.array([1.0, -1.0])) == 1.0
    assert bench.compare.sign_flip(np.ones(20)) < 0.001


@pytest.mark.slow
def test_a_downsampled_query_keeps_its_fraction(bench, tmp_path):
    pair = next(p for p in bench.pairs.PAIRS if p.name == "donors-counts20")
    thin = bench.prepare.write(pair, tmp_path)
    whole = bench.prepare.write(bench.pairs.DONORS, tmp_path)
    few, all_ = (anndata.read_h5ad(p.query) for p in (thin, whole))
    assert few.X.sum() / all_.X.sum() == pytest.approx(0.2, abs=0.01)
    assert list(few.obs.columns) == []
    assert thin.has_counts and thin.digest != whole.digest
    assert bench.prepare.write(pair, tmp_path).digest == thin.digest


def test_a_pair_without_its_files_is_skipped(bench, tmp_path, monkeypatch):
    monkeypatch.setenv("SCVEC_SHARED_DATA", str(tmp_path))
    results = bench.results.Results(tmp_path / "cache")
    assert results.plan(bench.methods.METHODS, [bench.pairs.BLOOD], 1) == ([], ["pbmc"])


@pytest.mark.skipif(not RECORD.exists(), reason="not published")
def test_the_means_of_the_table_are_those_of_its_runs(bench):
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    families = {m.name: m.family for m in bench.methods.METHODS}
    runs = [r | {"family": families[r["method"]]} for r in record["runs"]]
    main = [r for r in runs if not r["pair"].startswith("without")]
    assert bench.summary.overall(main)[1] == record["rows"]
    for name in ("macro_f1", "risk"):
        assert (RECORD.parent / f"annotate_{name}.svg").exists()
