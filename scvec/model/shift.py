"""How a query differs from the reference, and held-out cells made to differ in the same way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scvec.types import CellChunk

__all__ = ["NOVELTY_REGIMES", "REGIMES", "Regime", "regime_of", "simulate"]


@dataclass(frozen=True, slots=True)
class Regime:
    """A kind of difference between reference and query.

    Attributes
    ----------
    sigma
        Standard deviation of the log of a random factor on every gene's expression.
    specific
        The same of a factor on every gene in every class: types change apart.
    missing
        Share of genes that are not measured.
    """

    name: str
    sigma: float
    specific: float
    missing: float

    @property
    def shifts(self) -> bool:
        """Whether cells of this regime differ from the reference's at all."""
        return self.sigma > 0 or self.specific > 0 or self.missing > 0


#: The log ratio of human to mouse orthologs within the cell types of the Baron data has a standard deviation
#: of 1.2 on variable genes: 0.9 is the gene's in all types, 0.8 the type's own. Between human donors of that
#: study it is 0.5 and 0.45, sampling noise among it, and studies differ by no less.
REGIMES = {
    regime.name: regime
    for regime in (
        Regime("same", 0.0, 0.0, 0.0),
        Regime("panel", 0.5, 0.45, 0.7),
        Regime("few", 0.5, 0.45, 0.92),
        Regime("species", 0.9, 0.8, 0.4),
        Regime("species_few", 0.9, 0.8, 0.92),
    )
}
#: Regimes of queries of the reference's species, and of another one.
NEAR, FAR = ("same", "panel", "few"), ("species", "species_few")

#: What counts as novel in a regime is judged by held-out cells of this one. Cells of another species look
#: newer than the spread of their genes makes them: with the measured one a quarter of the mouse cells
#: asked of a human reference would be novel. The wider 2.5 was set on that pair.
NOVELTY_REGIMES = {
    "same": REGIMES["same"],
    "panel": REGIMES["panel"],
    "few": REGIMES["few"],
    "species": Regime("far", 2.5, 0.0, 0.4),
    "species_few": Regime("far_few", 2.5, 0.0, 0.92),
}


def regime_of(*, via_orthologs: bool, measured_share: float) -> str:
    """Return the regime of a query from its genes alone: the answer for a cell never depends on other cells.

    Parameters
    ----------
    measured_share
        Share (0-1) of the reference's genes that the query measured.
    """
    share = max(measured_share, 1e-6)

    def apart(name: str) -> float:
        """Return how far the share is from the one simulated, as a ratio."""
        return abs(float(np.log(share / (1.0 - REGIMES[name].missing))))

    return min(FAR if via_orthologs else NEAR, key=apart)


def simulate(
    chunk: CellChunk, regime: Regime, labels: npt.NDArray[np.int64] | None = None, seed: int = 0
) -> CellChunk:
    """Return the cells as a data set of another kind would show them.

    Every gene's linear expression is multiplied by a log-normal factor, another one in each class, and a
    share of genes is unmeasured.

    Parameters
    ----------
    labels
        (n,) int64 class numbers of the cells; all of one class when None.
    """
    if not regime.shifts:
        return chunk
    rng = np.random.default_rng(seed)
    n, n_genes = chunk.X.shape
    measured = chunk.measured & (rng.random(n_genes) >= regime.missing)
    codes = np.zeros(n, dtype=np.int64) if labels is None else np.unique(labels, return_inverse=True)[1]
    log_factor = rng.normal(0.0, regime.sigma, n_genes)
    log_factor = log_factor + rng.normal(0.0, regime.specific, (int(codes.max(initial=0)) + 1, n_genes))
    X = chunk.X.copy()
    factor = np.exp(log_factor[np.repeat(codes, np.diff(X.indptr)), X.indices])
    values = np.log1p(np.expm1(X.data.astype(np.float64)) * factor)
    X.data = np.where(measured[X.indices], values, 0.0).astype(np.float32)
    X.eliminate_zeros()
    return CellChunk(X, measured)
