"""Tests of gene slots: choice and order of genes, and batches of cells."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.encoders.sentence import Slots, packed, ranked


def cells(n: int, n_genes: int, seed: int) -> sp.csr_matrix:
    rng = np.random.default_rng(seed)
    # Few distinct values, so that most genes are tied.
    return sp.csr_matrix((rng.poisson(0.8, (n, n_genes)) * (rng.random((n, 1)) < 0.9)).astype(np.float32))


@settings(max_examples=60)
@given(st.integers(0, 12), st.integers(1, 20), st.integers(1, 25), st.integers(0, 99))
def test_the_highest_expressed_genes_come_first(n: int, n_genes: int, most: int, seed: int) -> None:
    X = cells(n, n_genes, seed)
    slots = ranked(X, most)
    assert len(slots) == n and slots.mask.sum() == slots.counts.sum()
    for i, row in enumerate(X.toarray()):
        wanted = sorted((j for j in range(n_genes) if row[j] > 0), key=lambda j: (-row[j], j))[:most]
        assert slots.genes[i][: slots.counts[i]].tolist() == wanted
        assert slots.values[i][: slots.counts[i]].tolist() == [row[j] for j in wanted]
        assert not slots.genes[i][slots.counts[i] :].any() and not slots.values[i][slots.counts[i] :].any()


def test_stored_zeros_are_no_genes_and_columns_need_no_order() -> None:
    X = sp.csr_matrix((np.array([1.0, 0.0, 3.0], np.float32), np.array([4, 2, 0]), np.array([0, 3])), (1, 5))
    slots = ranked(X, 5)
    assert slots.genes.tolist() == [[0, 4]] and slots.counts.tolist() == [2]


def test_genes_are_dropped_before_they_are_ranked() -> None:
    X = sp.csr_matrix(np.tile(np.arange(1, 41, dtype=np.float32), (50, 1)))
    slots = ranked(X, 10, drop=0.5, rng=np.random.default_rng(0))
    assert (slots.counts == 10).all()  # other genes fill the places
    assert 15 < len(np.unique(slots.genes)) <= 40 and (np.diff(slots.values, axis=1) < 0).all()


@settings(max_examples=60)
@given(st.lists(st.integers(0, 64), max_size=40), st.integers(1, 64), st.integers(1, 9))
def test_every_cell_is_in_one_batch_that_holds_it(counts: list[int], n_genes: int, size: int) -> None:
    found = np.minimum(np.array(counts, dtype=np.int64), n_genes)
    batches = list(packed(found, n_genes, size))
    rows = np.concatenate([rows for rows, _ in batches]) if batches else np.zeros(0)
    assert sorted(rows.tolist()) == list(range(len(counts)))
    for rows, places in batches:
        assert 0 < len(rows) <= size and (found[rows] <= places).all()
        assert (places - np.maximum(found[rows], 1) < -(-n_genes // 8)).all()


def test_places_belong_to_the_cell_alone() -> None:
    alone = {count: next(packed(np.array([count]), 64, 4))[1] for count in range(65)}
    for rows, places in packed(np.arange(65), 64, 4):
        assert {alone[int(row)] for row in rows} == {places}


def test_slots_that_would_be_cut_are_refused() -> None:
    slots = ranked(cells(4, 20, 0), 10)
    with pytest.raises(ValueError, match="do not fit"):
        slots.take(np.arange(4), 1)
    with pytest.raises(ValueError, match="cells"):
        Slots(slots.genes, slots.values, slots.counts[:2])
