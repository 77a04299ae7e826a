"""Scales of values and their conversion; oracle: plain NumPy on dense matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.ingest.cells.expression import (
    ExpressionState,
    MatrixProfile,
    linearise,
    normalize,
)
from scvec.ingest.cells.values import detect_state


def counts(seed: int = 0, n: int = 60, genes: int = 400) -> np.ndarray:
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.3, 3, (n, 1))
    return rng.poisson(rng.gamma(0.4, 2, genes) * depth).astype(np.float64)


def cp(x: np.ndarray, target: float = 1e4) -> np.ndarray:
    return x * target / x.sum(1, keepdims=True)


def state_of(x: np.ndarray) -> ExpressionState:
    profile = MatrixProfile()
    profile.add(sp.csr_matrix(x))
    return detect_state(profile, "X")


LENGTHS = np.random.default_rng(7).uniform(0.2, 5, 400)


@pytest.mark.parametrize(
    ("values", "kind", "base", "target"),
    [
        (counts(), "counts", None, None),
        (np.minimum(counts(), 1), "counts", None, None),
        (np.log1p(cp(counts())), "log1p_cp10k", math.e, 1e4),
        (np.log1p(cp(counts())).astype(np.float32), "log1p_cp10k", math.e, 1e4),
        (np.log1p(cp(counts(), 1e6)), "log", math.e, 1e6),
        (np.log1p(cp(counts(), 3271.5)), "log", math.e, 3271.5),
        (np.log2(cp(counts()) + 1), "log", 2.0, 1e4),
        (np.log2(cp(counts(), 1e6) + 1), "log", 2.0, 1e6),
        (np.log10(cp(counts(), 1e6) + 1), "log", 10.0, 1e6),
        (np.log1p(cp(counts()))[:, ::4], "log", math.e, None),
        (np.log2(cp(counts()) + 1)[:, ::4], "log", 2.0, None),
        (np.log10(cp(counts()) + 1)[:, ::4], "log", 10.0, None),
        (np.log1p(counts() * LENGTHS)[:, ::4], "log", None, None),
        (cp(counts() * LENGTHS, 1e6), "linear", None, 1e6),
        (counts() * LENGTHS, "linear", None, None),
        (cp(counts(), 1.0), "linear", None, 1.0),
        (counts() - 1, "scaled", None, None),
        (np.log1p(counts()) - 0.5, "scaled", None, None),
    ],
)
def test_scales_are_distinguished(values, kind, base, target) -> None:
    state = state_of(values)
    assert state.kind == kind
    assert state.base == base
    assert state.target_sum == (target if target is None else pytest.approx(target, rel=1e-4))
    assert "\n" not in state.message and state.message.startswith("X holds")


def test_one_cell_needs_a_round_sum() -> None:
    one = np.log1p(cp(counts()))[:1]
    assert state_of(one).kind == "log1p_cp10k"
    assert state_of(np.log1p(cp(counts(), 3271.5))[:1]).target_sum is None


@pytest.mark.parametrize("target", [1e4, 1e6, 2718.0])
@pytest.mark.parametrize("base", [math.e, 2.0, 10.0])
def test_logs_are_converted_exactly(base: float, target: float) -> None:
    x = counts()
    logged = np.log1p(cp(x, target)) / math.log(base)
    got = normalize(sp.csr_matrix(logged), state_of(logged)).toarray()
    np.testing.assert_allclose(got, np.log1p(cp(x)), atol=2e-4)


def test_counts_and_linear_values_are_normalised_by_the_cells_own_total() -> None:
    for x in (counts(), counts() * LENGTHS):
        got = normalize(sp.csr_matrix(x), state_of(x))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got.toarray(), np.log1p(cp(x)), rtol=1e-6)


def test_given_totals_are_used_for_counts() -> None:
    x = counts()
    got = normalize(sp.csr_matrix(x), state_of(x), totals=2 * x.sum(1)).toarray()
    np.testing.assert_allclose(got, np.log1p(cp(x, 5e3)), rtol=1e-6)


def test_log1p_cp10k_is_left_alone_and_the_input_never_changes() -> None:
    x = sp.csr_matrix(np.log1p(cp(counts())).astype(np.float32))
    before = x.data.copy()
    out = normalize(x, state_of(x.toarray()))
    np.testing.assert_array_equal(out.data, before)
    out.data[:] = 0
    np.testing.assert_array_equal(x.data, before)


def test_log_of_part_of_the_genes_becomes_natural() -> None:
    x = np.log2(cp(counts()) + 1)[:, ::4]
    np.testing.assert_allclose(
        normalize(sp.csr_matrix(x), state_of(x)).toarray(), np.log1p(cp(counts()))[:, ::4], rtol=1e-5
    )


def test_linearise_undoes_the_log() -> None:
    x = cp(counts(), 1e6)
    logged = np.log2(x + 1)
    np.testing.assert_allclose(linearise(sp.csr_matrix(logged), state_of(logged)).toarray(), x, rtol=1e-6)


def test_cells_without_counts_stay_empty() -> None:
    x = counts()
    x[3] = 0
    out = normalize(sp.csr_matrix(x), state_of(x))
    assert out[3].nnz == 0 and np.isfinite(out.data).all()


def test_scaled_values_cannot_be_normalised() -> None:
    with pytest.raises(ValueError, match="scaled"):
        normalize(sp.csr_matrix(counts()), ExpressionState("scaled", "X"))


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), rows=st.lists(st.integers(0, 59), min_size=1, max_size=10))
def test_a_cell_gets_the_same_values_alone_and_in_any_block(seed: int, rows: list[int]) -> None:
    x = sp.csr_matrix(counts(seed) * LENGTHS)
    state = ExpressionState("linear", "X")
    whole = normalize(x, state).toarray()
    np.testing.assert_array_equal(normalize(x[rows], state).toarray(), whole[rows])
    np.testing.assert_array_equal(normalize(x[rows[0] : rows[0] + 1], state).toarray()[0], whole[rows[0]])


def test_a_profile_counts_what_is_wrong_and_where() -> None:
    x = counts()
    x[5, 2], x[5, 3], x[9, 0] = np.nan, np.inf, -np.inf
    x[7, 1] = -4
    profile = MatrixProfile()
    for a in range(0, 60, 7):
        profile.add(sp.csr_matrix(x[a : a + 7]), a)
    assert (profile.n_nonfinite, profile.first_nonfinite) == (3, 5)
    assert (profile.n_negative, profile.first_negative) == (2, 7)
    assert profile.minimum == -4 and profile.all_integer
    assert profile.n_rows == 60


@pytest.mark.parametrize("name", ["pbmc68k_reduced_765genes", "pbmc_3assays_symphony_1767genes"])
def test_the_base_is_found_on_real_subsets_of_genes(name: str, shared_data) -> None:
    from scvec.ingest.cells.source import CellSource

    with CellSource.open(shared_data / f"{name}.h5ad") as source:
        assert source.state.kind == "log" and source.state.base == math.e
