"""Simulated shifts keep what a cell is and change how a data set shows it."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scvec.model.shift import REGIMES, Regime, regime_of, simulate
from scvec.types import CellChunk


def cells(n_genes: int = 2000) -> CellChunk:
    rng = np.random.default_rng(0)
    X = sp.csr_matrix((rng.gamma(2, 1, (6, n_genes)) * (rng.random((6, n_genes)) < 0.5)).astype(np.float32))
    measured = np.arange(n_genes) % 10 > 0
    X = sp.csr_matrix(X.multiply(measured.astype(np.float32)))
    X.eliminate_zeros()
    return CellChunk(X, measured)


@pytest.mark.parametrize(
    ("via_orthologs", "share", "regime"),
    [(False, 1.0, "same"), (False, 0.56, "same"), (False, 0.54, "panel"), (False, 0.16, "panel"),
     (False, 0.15, "few"), (False, 0.0, "few"), (True, 1.0, "species"), (True, 0.23, "species"),
     (True, 0.2, "species_few"), (True, 0.0, "species_few")],
)  # fmt: skip
def test_regime_of(via_orthologs: bool, share: float, regime: str) -> None:
    assert regime_of(via_orthologs=via_orthologs, measured_share=share) == regime
    assert regime in REGIMES


def test_the_same_regime_changes_nothing() -> None:
    chunk = cells()
    assert simulate(chunk, REGIMES["same"]) is chunk


@pytest.mark.parametrize("name", ["panel", "species"])
def test_a_shift_is_one_factor_a_gene_and_some_genes_less(name: str) -> None:
    chunk, regime = cells(), REGIMES[name]
    before = chunk.X.copy()
    shifted = simulate(chunk, regime, seed=4)
    assert shifted.X.shape == chunk.X.shape and shifted.X.dtype == np.float32
    assert (before != chunk.X).nnz == 0 and chunk.measured.sum() == 1800  # the cells given are left alone
    # Nothing is measured that was not, and the share that is lost is the regime's.
    assert not (shifted.measured & ~chunk.measured).any()
    assert shifted.measured.sum() / chunk.measured.sum() == pytest.approx(1 - regime.missing, abs=0.05)
    a, b = chunk.X.toarray(), shifted.X.toarray()
    assert (b[:, ~shifted.measured] == 0).all() and (shifted.X.data != 0).all()
    assert ((b > 0) == ((a > 0) & shifted.measured)).all()
    a, b = a[:, (b > 0).any(axis=0)].astype(float), b[:, (b > 0).any(axis=0)].astype(float)
    ratio = np.ma.masked_invalid(np.expm1(b) / np.where(b > 0, np.expm1(a), np.nan))
    factor = ratio.max(axis=0).data
    np.testing.assert_allclose(ratio.min(axis=0).data, factor, rtol=1e-3)
    assert np.log(factor).std() == pytest.approx(np.hypot(regime.sigma, regime.specific), rel=0.1)
    assert np.log(factor).mean() == pytest.approx(0.0, abs=0.25)


def test_a_shift_is_decided_by_its_seed() -> None:
    chunk, regime = cells(), REGIMES["species"]
    a, b, c = (simulate(chunk, regime, seed=s) for s in (1, 1, 2))
    assert (a.X != b.X).nnz == 0 and (a.measured == b.measured).all()
    assert (a.X != c.X).nnz > 0 and (a.measured != c.measured).any()


def test_a_cell_is_shifted_alone_as_in_company() -> None:
    chunk, regime = cells(), REGIMES["panel"]
    whole = simulate(chunk, regime, seed=3)
    one = simulate(CellChunk(chunk.X[2], chunk.measured), regime, seed=3)
    assert (whole.X[2] != one.X).nnz == 0


def test_every_gene_can_be_lost() -> None:
    none = simulate(cells(), Regime("void", 0.0, 0.0, 1.0))
    assert none.X.nnz == 0 and not none.measured.any()


def test_each_class_has_a_factor_of_its_own_beside_the_shared_one() -> None:
    chunk, regime = cells(4000), Regime("apart", 0.9, 0.5, 0.0)
    labels = np.array([3, 3, 7, 7, 7, 3])
    a, b = chunk.X.toarray().astype(float), simulate(chunk, regime, labels, seed=1).X.toarray().astype(float)
    with np.errstate(all="ignore"):
        log_factor = np.log(np.expm1(b) / np.expm1(a))
    first, second = (np.nanmean(log_factor[labels == k], axis=0) for k in (3, 7))
    assert np.nanmax(np.nanstd(log_factor[labels == 3], axis=0)) < 1e-3
    both = np.isfinite(first) & np.isfinite(second)
    assert np.std(first[both] - second[both]) == pytest.approx(0.5 * 2**0.5, rel=0.1)
    assert np.cov(first[both], second[both])[0, 1] == pytest.approx(0.9**2, rel=0.1)
