"""Tests of gene statistics against NumPy, and of the choice of variable genes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scvec.base.errors import InputError
from scvec.encoders.statistics import GeneStatistics, StatisticsAccumulator, most_variable, variability


def log_cells(seed: int, n: int, n_genes: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    linear = rng.poisson(rng.gamma(0.5, 2.0, n_genes), (n, n_genes)) * rng.uniform(0.5, 5.0, (n, 1))
    return np.log1p(linear).astype(np.float32)


def gather(X: np.ndarray[Any, Any], cuts: list[int]) -> GeneStatistics:
    gathered = StatisticsAccumulator(X.shape[1])
    for part in np.split(X, cuts):
        gathered.add(sp.csr_matrix(part))
    return gathered.result()


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(1, 30), st.lists(st.integers(0, 30), max_size=5))
def test_statistics_are_those_of_numpy_however_cut(seed: int, n: int, cuts: list[int]) -> None:
    X = log_cells(seed, n, 7)
    got = gather(X, sorted(min(c, n) for c in cuts))
    log = X.astype(np.float64)
    linear = np.expm1(log)
    assert got.n_cells == n
    np.testing.assert_allclose(got.mean, log.mean(axis=0), rtol=1e-9, atol=1e-12)
    # Cancellation under the root loses half of the digits.
    np.testing.assert_allclose(got.sd, log.std(axis=0), atol=1e-6)
    np.testing.assert_allclose(got.linear_mean, linear.mean(axis=0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(got.linear_var, linear.var(axis=0), rtol=1e-6, atol=1e-6)


def test_a_constant_gene_has_no_spread_and_no_nan() -> None:
    got = gather(np.full((1000, 1), 3.7, np.float32), [10, 500])
    assert got.sd[0] < 1e-6 and got.linear_var[0] >= 0


def test_select_takes_the_genes_asked_for() -> None:
    stats = gather(log_cells(0, 20, 6), [])
    part = stats.select(np.array([4, 1]))
    for name in ("mean", "sd", "linear_mean", "linear_var"):
        np.testing.assert_array_equal(getattr(part, name), getattr(stats, name)[[4, 1]])
    assert part.n_cells == 20


def test_no_cells_is_an_input_error() -> None:
    gathered = StatisticsAccumulator(3)
    gathered.add(sp.csr_matrix((0, 3), dtype=np.float32))
    with pytest.raises(InputError) as caught:
        gathered.result()
    assert caught.value.code == "no-cells"


def planted(n: int = 1000, n_genes: int = 200) -> tuple[GeneStatistics, set[int]]:
    """Poisson genes of all levels. One in twenty is expressed in a fifth of the cells, at the same level."""
    rng = np.random.default_rng(3)
    level = np.exp(np.linspace(-1, 3, n_genes))
    rate = np.tile(level, (n, 1))
    chosen = np.arange(5, n_genes, 20)
    on = np.argsort(rng.random((n, len(chosen))), axis=0) < n // 5
    rate[:, chosen] *= np.where(on, 5.0, 0.0)
    return gather(np.log1p(rng.poisson(rate)).astype(np.float32), [100]), set(chosen.tolist())


def test_planted_variable_genes_are_found() -> None:
    stats, chosen = planted()
    found = most_variable(variability(stats), len(chosen))
    assert found.dtype == np.int64 and (np.diff(found) > 0).all()
    assert set(found.tolist()) == chosen


def test_the_choice_is_within_bins_of_expression() -> None:
    # A variable gene of low level must win against genes with more variance only because of their level.
    mean = np.repeat([1.0, 100.0], 40)
    var = mean * np.tile(np.linspace(0.9, 1.1, 40), 2) * np.where(mean > 1, 50.0, 1.0)
    var[7], var[47] = 4.0, 100.0 * 200
    stats = GeneStatistics(9, mean, np.sqrt(var), mean, var)
    assert most_variable(variability(stats, n_bins=2), 2).tolist() == [7, 47]


def test_fewer_genes_than_asked_for() -> None:
    stats = gather(log_cells(1, 30, 5) + 0.1, [])
    assert most_variable(variability(stats), 3000).tolist() == [0, 1, 2, 3, 4]


def test_genes_without_counts_are_never_chosen() -> None:
    X = log_cells(2, 30, 10) + 0.1
    X[:, [0, 3, 9]] = 0.0
    assert most_variable(variability(gather(X.astype(np.float32), [])), 10).tolist() == [1, 2, 4, 5, 6, 7, 8]
    assert most_variable(variability(gather(np.zeros((4, 6), np.float32), [])), 3).tolist() == []


def test_one_cell() -> None:
    X = np.log1p(np.array([[0, 1, 2, 3]], np.float32))
    found = most_variable(variability(gather(X, [])), 2)
    assert len(found) == 2 and 0 not in found


def test_a_gene_that_differs_between_groups_only_is_not_variable() -> None:
    rng = np.random.default_rng(0)
    linear = rng.poisson(5.0, (400, 8)).astype(float)
    linear[:, 3] *= np.repeat([20.0, 0.05], 200)  # the level depends on the group and is constant within it
    linear[:, 5] *= np.tile([4.0, 0.2], 200)
    groups = [gather(part, []) for part in np.split(np.log1p(linear).astype(np.float32), [200])]
    together = gather(np.log1p(linear).astype(np.float32), [])
    assert most_variable(variability(together, n_bins=1), 1).tolist() == [3]
    assert most_variable(variability(groups, n_bins=1), 1).tolist() == [5]


def test_groups_of_cells_are_summed_and_absence_in_one_is_not_variability() -> None:
    X = log_cells(4, 30, 9)
    X[:12, 2] = 0.0
    X[:, 7] = 0.0
    whole, parts = StatisticsAccumulator(9), [StatisticsAccumulator(9) for _ in range(2)]
    whole.add(sp.csr_matrix(X))
    for part, rows in zip(parts, np.split(X, [12]), strict=True):
        part.add(sp.csr_matrix(rows))
    groups = [part.result() for part in parts]
    parts[0].merge(parts[1])
    for name in ("mean", "sd", "linear_mean", "linear_var"):
        np.testing.assert_allclose(getattr(parts[0].result(), name), getattr(whole.result(), name))
    chosen = most_variable(variability(groups, n_bins=1), 9).tolist()
    assert 7 not in chosen and 2 in chosen
    assert (
        most_variable(variability([whole.result()]), 5).tolist()
        == most_variable(variability(whole.result()), 5).tolist()
    )


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_what_varies_little_about_a_high_mean_is_not_lost(step: int) -> None:
    # Two adjacent float32 numbers near ln 10,001: squares of CP10k are 1e8, but their variance is 1e-5.
    high = np.float32(9.21)
    X = np.where(np.arange(1000)[:, None] % 2, high, np.nextafter(high, np.float32(10)))
    gathered = StatisticsAccumulator(1)
    for start in range(0, len(X), step):
        gathered.add(sp.csr_matrix(X[start : start + step]))
    exact = np.expm1(X.astype(np.float64))
    found = gathered.result()
    assert found.linear_var[0] == pytest.approx(exact.var(), rel=1e-6)
    assert found.sd[0] == pytest.approx(X.astype(np.float64).std(), rel=1e-6)
