"""Many notes of a kind are one line."""

from __future__ import annotations

import pytest

from scvec.base.results import one_line_a_kind


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_notes_are_printed_separately(n: int) -> None:
    notes = ["X holds raw counts", *(f"label 'a{i}' was left out: {i} cells" for i in range(n))]
    assert one_line_a_kind(notes) == notes


def test_many_similar_notes_become_one_line_with_their_subjects() -> None:
    labels = [f"label 'a{i}' was left out: {i + 1} cells, fewer than 5" for i in range(14)]
    files = [f"warning: f{i}.h5ad: {10 * i + 5:,} cells have no counts" for i in range(4)]
    told = one_line_a_kind([labels[0], "X holds raw counts", *labels[1:], *files])
    assert told[0].startswith(f"{labels[0]} (and 13 more like it: 'a1', 'a2', ") and told[0].endswith(
        "'a8', ...)"
    )
    assert told[1:] == ["X holds raw counts", f"{files[0]} (and 3 more like it: f1.h5ad, f2.h5ad, f3.h5ad)"]


def test_notes_that_differ_in_numbers_only() -> None:
    notes = [f"{i} names stand for 2 genes" for i in range(2, 9)]
    assert one_line_a_kind(notes) == ["2 names stand for 2 genes (and 6 more like it)"]
