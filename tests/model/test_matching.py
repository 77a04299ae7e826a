"""Cells over target genes, against dense arithmetic on the linear scale."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.base.errors import InputError
from scvec.base.types import GeneMatch
from scvec.model.matching import MatchedSource, match_genes, over_targets


def log_cells(seed: int, n: int, n_names: int) -> sp.csr_matrix:
    rng = np.random.default_rng(seed)
    # Levels far under 1 as well: there the way to the linear scale and back changes last bits.
    linear = rng.poisson(1.0, (n, n_names)) * np.exp(rng.uniform(-5, 6, (n, n_names)))
    return sp.csr_matrix(np.log1p(linear).astype(np.float32))


def dense(X: Any, weights: Any) -> Any:
    return np.log1p(np.expm1(X.toarray().astype(np.float64)) @ weights.toarray().astype(np.float64))


@settings(max_examples=80)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 12), st.integers(1, 9))
def test_sums_are_taken_on_the_linear_scale(seed: int, n: int, n_names: int, n_targets: int) -> None:
    rng = np.random.default_rng(seed)
    weights = sp.csr_matrix(
        (rng.choice([0.0, 0.5, 1.0], (n_names, n_targets), p=[0.6, 0.1, 0.3])).astype(np.float32)
    )
    X = log_cells(seed, n, n_names)
    got = over_targets(X, weights)
    assert got.shape == (n, n_targets) and got.dtype == np.float32 and got.format == "csr"
    assert got.has_sorted_indices and (got.data != 0).all()
    np.testing.assert_allclose(got.toarray(), dense(X, weights), rtol=1e-4, atol=1e-5)


def test_two_mouse_genes_become_one_human_gene() -> None:
    # Ins1 and Ins2 are INS; the third name is no target, and one target has no name.
    weights = sp.csr_matrix(np.array([[0, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]], np.float32))
    linear = np.array([[10.0, 30.0, 5.0, 2.0], [0.0, 7.0, 0.0, 0.0]])
    got = over_targets(sp.csr_matrix(np.log1p(linear).astype(np.float32)), weights)
    np.testing.assert_allclose(np.expm1(got.toarray()), [[2, 40, 0], [0, 7, 0]], rtol=1e-5)


def test_a_plain_selection_is_exact() -> None:
    X = log_cells(1, 20, 30)
    columns = np.random.default_rng(0).permutation(30)[:12]
    weights = sp.csr_matrix((np.ones(12, np.float32), (columns, np.arange(12))), shape=(30, 12))
    np.testing.assert_array_equal(over_targets(X, weights).toarray(), X.toarray()[:, columns])


def test_one_name_for_two_targets_is_still_exact() -> None:
    X = log_cells(1, 5, 4)
    weights = sp.csr_matrix(np.array([[1, 1], [0, 0], [0, 0], [0, 0]], np.float32))
    np.testing.assert_array_equal(over_targets(X, weights).toarray(), X.toarray()[:, [0, 0]])


def test_no_targets_matched_and_no_cells() -> None:
    X = log_cells(1, 5, 4)
    nothing = over_targets(X, sp.csr_matrix((4, 3), dtype=np.float32))
    assert nothing.shape == (5, 3) and nothing.nnz == 0
    assert over_targets(X[:0], sp.csr_matrix(np.eye(4, dtype=np.float32))).shape == (0, 4)


def test_the_cells_given_are_left_alone() -> None:
    X = log_cells(1, 5, 4)
    before = X.copy()
    over_targets(X, sp.csr_matrix(np.ones((4, 2), np.float32)))
    over_targets(X, sp.csr_matrix(np.eye(4, dtype=np.float32)))
    np.testing.assert_array_equal(X.toarray(), before.toarray())


def test_cells_come_chunk_by_chunk_over_the_targets() -> None:
    X = log_cells(2, 7, 3)
    weights = sp.csr_matrix(np.array([[1, 0], [0, 0], [1, 0]], np.float32))
    genes = SimpleNamespace(weights=weights, measured=np.array([True, False]))

    class Source:
        def chunks(self, size: int, rows: Any = None) -> Any:
            wanted = np.arange(7) if rows is None else rows
            for start in range(0, len(wanted), size):
                yield X[wanted[start : start + size]]

    matched = MatchedSource(Source(), None, "index", 1.0)  # type: ignore[arg-type]
    chunks = list(matched.chunks(genes, 3, np.array([6, 0, 1, 2])))  # type: ignore[arg-type]
    assert [len(c) for c in chunks] == [3, 1]
    assert all((c.measured == [True, False]).all() for c in chunks)
    got = np.concatenate([c.X.toarray() for c in chunks])
    np.testing.assert_allclose(got, dense(X[[6, 0, 1, 2]], weights), rtol=1e-5)


class Names:
    """A data set whose first genes hold most counts, and a resolver that knows some names."""

    name = "q.h5ad"
    species = ("human", "mouse")

    def __init__(self, known_share: dict[str, float]) -> None:
        self.gene_totals = np.full(100, 1.0)
        self.notes: list[str] = []
        self.known_share = known_share
        self.asked: list[str] = []
        self.obs_names: list[str] = []
        self.var_names: list[str] = []

    def other_names(self) -> dict[str, Any]:
        return {}

    def gene_name_candidates(self) -> dict[str, list[str]]:
        return {column: [f"{column}{i}" for i in range(100)] for column in self.known_share}

    def resolve(self, names: list[str], species: str) -> GeneMatch:
        column = names[0][:-1]
        self.asked.append(column)
        n = round(100 * self.known_share[column])
        ids = tuple(f"HGNC:{i}" if i < n else None for i in range(100))
        return GeneMatch(tuple(names), ids, tuple("symbol" if i else "" for i in ids), "human", "symbols")


def match(shares: dict[str, float], **options: Any) -> tuple[MatchedSource, Names]:
    source = Names(shares)
    return match_genes(source, source, **options), source  # type: ignore[arg-type]


def test_the_names_that_hold_most_counts_win() -> None:
    found, source = match({"index": 0.6, "symbol": 0.9, "gene": 0.7})
    assert (found.names_from, found.share) == ("symbol", 0.9) and found.notes == ()
    assert found.summary.endswith("(names from var['symbol'])")
    found, source = match({"index": 0.96, "symbol": 1.0})
    assert found.names_from == "index" and source.asked == ["index"]  # good enough: no other is tried
    assert "names from" not in found.summary


def test_few_known_genes_are_warned_of_and_next_to_none_refused() -> None:
    found, source = match({"index": 0.47})
    assert found.share == 0.47 and any("few genes are known" in note for note in found.notes)
    with pytest.raises(InputError) as caught:
        match({"index": 0.3})
    assert caught.value.code == "genes-not-recognised"
    with pytest.raises(InputError, match="almost no gene is known") as caught:
        match({"index": 0.05})
    assert "'index5', 'index6', 'index7'" in caught.value.where and "--force" in caught.value.fix
    found, source = match({"index": 0.05}, force=True)
    assert found.share == 0.05 and found.notes and source.notes == []
    with pytest.raises(InputError):
        match({})
