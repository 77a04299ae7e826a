"""What people read of a reference."""

from __future__ import annotations

from typing import Any

from scvec.api.reference_lines import reference_lines

VOTES = {"knn": {"share": 0.25}, "head": {"share": 0.75}, "linear": {"share": 1e-13}}
DETAILS: dict[str, Any] = {
    "genes": 3000,
    "embed_dim": 128,
    "index": {"kind": "flat", "search": "exact", "added": 10_000, "gone": 7, "layers": 2},
    "options": {"backbone": "minilm", "seed": 0, "memory": None},
    "sources": [
        {"name": "a.h5ad", "n_cells": 1200, "species": "mouse", "genes": "9 of 10 genes", "expression": None}
    ],
    "held out": "batch",
    "record": {
        "few": {"accuracy": None, "macro_f1": None, "ece": None, "voices": {}},
        "same": {"accuracy": 0.9, "macro_f1": 0.8, "ece": 0.01, "voices": VOTES},
        "of a later version": {"accuracy": 1.0, "macro_f1": 1.0, "ece": 0.0},
    },
    "more": 5,
}


def test_a_person_reads_lines_and_no_dicts():
    assert reference_lines(DETAILS) == [
        "  3,000 genes, 128 dimensions",
        "  from a.h5ad: 1,200 mouse cells; 9 of 10 genes",
        "  index: flat, exact; 10,000 cells added, 7 gone, 2 layers (scvec compact puts them together)",
        "  options: backbone minilm, seed 0",
        "  on held-out cells (batch), by what a query is judged as:",
        "    query                     accuracy  macro-F1    ECE  votes",
        "    like the reference's own     0.900     0.800  0.010  head 0.75, knn 0.25",
        "    few of its genes                 -         -      -",
        "    of a later version           1.000     1.000  0.000",
        "  more: 5",
    ]


def test_an_approximate_index_says_what_it_finds():
    near = {"kind": "ivf", "search": "approximate", "n_lists": 2048, "nprobe": 24, "factor": 4}
    index = {**near, "target": 0.95, "recall": {"at_15": 0.967, "unseen_15": 0.965}}
    [line] = reference_lines({"index": index})
    assert line == (
        "  index: ivf, approximate; 2,048 lists, 24 opened, factor 4; recall at 15 0.967, unseen 15 0.965"
        " (asked 0.95)"
    )
    assert "24 opened at most, factor 4" in reference_lines({"index": {**index, "reach": 0.5}})[0]


def test_nothing_is_said_of_nothing():
    assert reference_lines({}) == []
