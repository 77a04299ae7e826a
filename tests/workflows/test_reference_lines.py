"""Tests of the text lines about a reference in ``scvec info``."""

from __future__ import annotations

from typing import Any

import pytest

from scvec.workflows.admin import reference_lines

DETAILS: dict[str, Any] = {
    "genes": 3000,
    "embed_dim": 128,
    "index": {"kind": "flat", "search": "exact", "appended": 10_000, "deleted": 7, "segments": 2},
    "options": {"backbone": "minilm", "seed": 0, "memory": None},
    "sources": [
        {"name": "a.h5ad", "n_cells": 1200, "species": "mouse", "genes": "9 of 10 genes", "expression": None}
    ],
    "held out": "batch",
    "record": {"accuracy": 0.9, "macro_f1": 0.8, "ece": 0.01, "members": {"knn": 0.75, "head": 0.8514}},
    "more": 5,
}


def test_reports_are_lines_of_text_not_dicts():
    assert reference_lines(DETAILS) == [
        "  3,000 genes, 128 dimensions",
        "  from a.h5ad: 1,200 mouse cells; 9 of 10 genes",
        "  index: flat, exact; 10,000 cells appended, 7 deleted, 2 segments (scvec compact merges them)",
        "  options: backbone minilm, seed 0",
        "  on held-out batches: accuracy 0.900, macro-F1 0.800, calibration error 0.010; "
        "accuracy of one classifier alone: nearest cells 0.750, trained classifier 0.851",
        "  more: 5",
    ]


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            {"accuracy": None, "macro_f1": None, "ece": None, "members": {}},
            "  no cell could be held out; confidence is not calibrated, and novelty is not scored",
        ),
        (
            {"accuracy": 1.0, "macro_f1": 1.0, "ece": 0.0, "of a later version": 3},
            "  on held-out batches: accuracy 1.000, macro-F1 1.000, calibration error 0.000",
        ),
    ],
    ids=["none held out", "of a later version"],
)
def test_a_record_may_lack_cells_or_members(record: dict[str, Any], line: str):
    assert reference_lines({"held out": "batch", "record": record}) == [line]


def test_an_approximate_index_says_what_it_finds():
    near = {"kind": "ivf", "search": "approximate", "n_lists": 2048, "nprobe": 24, "factor": 4}
    index = {**near, "target": 0.95, "recall": {"at_15": 0.967, "unseen_15": 0.965}}
    [line] = reference_lines({"index": index})
    assert line == (
        "  index: ivf, approximate; 2,048 lists, 24 searched, factor 4; recall at 15 0.967, unseen 15 0.965"
        " (requested 0.95)"
    )
    assert "24 searched at most, factor 4" in reference_lines({"index": {**index, "reach": 0.5}})[0]


def test_empty_details_give_no_line():
    assert reference_lines({}) == []
