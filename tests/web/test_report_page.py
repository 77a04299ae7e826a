"""Tests of the report file: its contents, its size, and its security policy."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from web_parts import HOSTILE, Shelf

import scvec
from scvec.base.errors import InputError
from scvec.report import write_report
from scvec.report.write_report import (
    _packed,
    check_report,
    columns_of,
    inline_policy,
    render_report,
    script_json,
    truth_column,
)


def facts(page: str) -> Any:
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_twin_has_what_the_page_draws(shelf: Shelf):
    found = shelf.annotation
    twin = json.loads(shelf.report.with_suffix(".json").read_text(encoding="utf-8"))
    drawn = facts(shelf.report.read_text(encoding="utf-8"))
    assert twin["cells"]["names"] == drawn["names"] == found.cells.tolist()
    assert [twin["cells"]["classes"][k] for k in twin["cells"]["label"]] == found.label.tolist()
    assert twin["cells"]["confidence"] == pytest.approx(found.confidence.tolist(), abs=1e-6)
    codes = np.frombuffer(base64.b64decode(drawn["label"]), "<u2")
    assert [drawn["classes"][k] for k in codes] == found.label.tolist()
    shares = np.frombuffer(base64.b64decode(drawn["confidence"]), "u1") / 255
    assert shares == pytest.approx(found.confidence, abs=0.002)
    assert {row["label"]: row["n_cells"] for row in twin["labels"]} == found.counts()
    assert sum(twin["n_status"].values()) == 60 and found.report == str(shelf.report)


def test_evidence_calibration_and_the_command_are_there(shelf: Shelf):
    twin = json.loads(shelf.report.with_suffix(".json").read_text(encoding="utf-8"))
    assert {e["label"] for e in twin["evidence"]} == set(shelf.annotation.counts())
    (beta,) = [e for e in twin["evidence"] if e["label"] == HOSTILE]
    assert HOSTILE in [g["symbol"] for g in beta["genes"]] and beta["completeness_error"] < 0.01
    bins = twin["calibration"]["reliability"]
    assert sum(b["share"] for b in bins) == pytest.approx(1.0)
    weighted = sum(b["share"] * b["accuracy"] for b in bins)
    assert weighted == pytest.approx(twin["calibration"]["accuracy"], abs=1e-6)
    assert twin["command"].startswith("scvec query ") and "--report" in twin["command"]
    assert twin["cells"]["truth"] == "cell_type"


def test_an_annotation_writes_its_report_later(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    later = tmp_path / "later.html"
    assert scvec.write_report(shelf.annotation, later).report == str(later)
    first, second = (
        json.loads(page.with_suffix(".json").read_text(encoding="utf-8")) for page in (shelf.report, later)
    )
    assert str(later) in second["command"]
    differ = {name for name in first if first[name] != second[name]}
    assert differ <= {"created", "command", "provenance"}, differ
    with pytest.raises(InputError, match="HTML"):
        scvec.write_report(shelf.annotation, tmp_path / "later.pdf")


def test_nothing_of_the_file_is_markup(shelf: Shelf):
    page = shelf.report.read_text(encoding="utf-8")
    assert HOSTILE not in page and "<script>alert" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert len(re.findall(r"<script\b", page)) == 3 and "style=" not in page and " on" + "click=" not in page


def test_the_policy_lets_run_what_the_page_holds_and_nothing_else(shelf: Shelf):
    page = shelf.report.read_text(encoding="utf-8")
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', page)
    policy = policy.replace("&#39;", "'")
    assert "unsafe" not in policy and "default-src 'none'" in policy and "http" not in policy
    for tag in ("script", "style"):
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        wanted = {base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in texts}
        (listed,) = re.findall(rf"{tag}-src ([^;]*)", policy)
        assert wanted == set(re.findall(r"sha256-([^']+)", listed)) and texts
    assert inline_policy(["a"], ["b"]) != inline_policy(["b"], ["a"])


@given(st.text(alphabet="<>&/!-scriptSTYLE\u2028\u2029 ") | st.text())
def test_json_never_ends_its_element(text: str):
    shown = script_json({"a": text})
    assert json.loads(shown) == {"a": text}
    assert not set(shown) & set("<>&\u2028\u2029")


def test_a_hundred_thousand_cells_stay_small(shelf: Shelf):
    n, rng = 100_000, np.random.default_rng(0)
    twin = json.loads(shelf.report.with_suffix(".json").read_text(encoding="utf-8"))
    drawn = {
        "n": n,
        "names": [f"donor{i % 7}_lib{i % 3}_AAACCTGAGCATC{i:06d}-1" for i in range(n)],
        "classes": twin["cells"]["classes"],
        "statuses": twin["cells"]["statuses"],
        "truth": None,
        **{k: twin["cells"][k] for k in ("colors", "status_colors", "palette")},
        "label": rng.integers(0, 3, n),
        "status": rng.integers(0, 4, n),
        "candidates": rng.integers(0, 3, (n, 3)),
        "probabilities": rng.random((n, 3)),
        "columns": [
            {"name": f"c{k}", "kind": "category", "values": ["a", "b"], "codes": rng.integers(-1, 2, n)}
            for k in range(10)
        ]
        + [{"name": f"d{k}", "kind": "number", "numbers": rng.random(n)} for k in range(5)],
        "reference": {"x": rng.random(8000), "y": rng.random(8000), "label": rng.integers(-1, 3, 8000)},
        **{k: rng.random(n) for k in ("x", "y", "confidence", "novelty")},
    }
    page = render_report({k: v for k, v in twin.items() if k != "cells"}, _packed(drawn))
    assert len(page.encode()) < 25e6
    assert shelf.report.stat().st_size < 5e6


def test_numbers_survive_packing():
    column = {"name": "x", "kind": "number", "numbers": np.array([1.0, np.nan, 3.0, np.inf, -np.inf])}
    packed = write_report._packed_column(column)
    codes = np.frombuffer(base64.b64decode(packed["numbers"]), "<u2")
    assert codes.tolist() == [0, 65535, 65534, 65535, 65535] and (packed["low"], packed["high"]) == (1.0, 3.0)


def test_columns_that_are_no_groups_are_left_out():
    pd = pytest.importorskip("pandas")
    obs = pd.DataFrame(
        {
            "donor": ["a", "b", None] * 100,
            "barcode": [f"b{i}" for i in range(300)],
            "male": [True, False, True] * 100,
            "scvec_label": ["x"] * 300,
            "Cluster": pd.Categorical(["1", "2", "3"] * 100),
            "age": [1.5, None, 3.0] * 100,
        }
    )
    columns, left = columns_of(obs, np.arange(300))
    assert [c["name"] for c in columns] == ["donor", "male", "Cluster", "age"] and left == ["barcode"]
    assert columns[0]["codes"][:3].tolist() == [0, 1, -1] and columns[1]["values"] == ["False", "True"]
    assert truth_column(columns, None) == "Cluster" and truth_column(columns, "donor") == "donor"


def test_the_map_of_a_reference_is_kept(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def made(vectors: Any, **_: Any) -> Any:
        raise AssertionError("the map is there")

    monkeypatch.setattr(write_report, "lay_out_cells", made)
    scvec.write_report(shelf.annotation, tmp_path / "again.html")
    first, second = (
        json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))["cells"]["reference"]
        for page in (shelf.report, tmp_path / "again.html")
    )
    assert first == second and len(first["x"]) > 0
    for kept in (shelf.store / "fits").iterdir():
        kept.write_bytes(kept.read_bytes()[:-1])  # damaged ones are made again
    with pytest.raises(AssertionError, match="is there"):
        scvec.write_report(shelf.annotation, tmp_path / "again.html")


def test_cells_beyond_the_sample_lie_among_their_neighbours(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(write_report, "MAX_TRANSFORMED", 30)
    monkeypatch.setattr(write_report, "MAX_REFERENCE", 80)
    scvec.write_report(shelf.annotation, tmp_path / "few.html")
    cells = json.loads((tmp_path / "few.json").read_text(encoding="utf-8"))["cells"]
    reference = np.array([cells["reference"]["x"], cells["reference"]["y"]]).T
    query = np.array([cells["x"], cells["y"]]).T
    labels = np.array(cells["reference"]["label"])
    assert len(reference) == 80 and len(query) == 60 and np.isfinite(query).all()
    nearest = np.linalg.norm(query[:, None] - reference[None], axis=2).argmin(axis=1)
    assert np.mean(labels[nearest] == np.array(cells["label"])) > 0.9


def test_errors_of_a_report_come_before_any_work(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="an HTML file"):
        check_report(tmp_path / "report.pdf", None)
    with pytest.raises(InputError, match="does not exist"):
        check_report(tmp_path / "no" / "report.html", None)
