"""Evidence for one class against another: contributions of genes, of neighbours, and the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.types import CellChunk, DividesByGene
from scvec.model.classifiers import MEMBERS, OUT_OF_REACH, Scores
from scvec.model.reference import ReferenceModel

__all__ = ["Evidence", "weigh"]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Evidence:
    """The log odds of one class against another for n cells, as a sum of contributions.

    Attributes
    ----------
    winner, other
        (n,) int64 class numbers: the odds are of the one against the other.
    best
        (n,) int64 likeliest class.
    log_odds
        (n,) natural logarithm of the odds, before they are calibrated to a confidence.
    columns
        (n_genes,) int64 numbers of the genes that cell vectors are made of.
    genes
        Member -> (n, n_genes) contribution of each gene; members with weight 0 are left out.
    neighbors
        (n,) contribution of the labels of the nearest cells.
    constant
        (n,) contribution of the intercepts: the odds for a cell without expression.
    undivided
        (n,) contribution of the head where vectors of its encoder are not sums over genes; else 0.
    members
        Member -> (n,) its whole contribution; they sum to the log odds.
    scores
        Scores of the members.
    """

    winner: Int64
    other: Int64
    best: Int64
    log_odds: Float64
    columns: Int64
    genes: dict[str, Float64]
    neighbors: Float64
    constant: Float64
    undivided: Float64
    members: dict[str, Float64]
    scores: Scores

    @property
    def by_gene(self) -> Float64:
        """(n, n_genes) contribution of each gene over all members."""
        total = np.zeros((len(self.log_odds), len(self.columns)))
        for part in self.genes.values():
            total += part
        return total

    @property
    def gap(self) -> Float64:
        """(n,) log odds less the sum of all terms: the completeness error."""
        terms = self.by_gene.sum(axis=1) + self.neighbors + self.constant + self.undivided
        return np.asarray(self.log_odds - terms, dtype=np.float64)


def weigh(
    model: ReferenceModel,
    chunk: CellChunk,
    *,
    method: str = "both",
    n_neighbors: int = 15,
    subset: Int64 | None = None,
    winner: Int64 | None = None,
    against: int | None = None,
) -> Evidence:
    """Score cells as :meth:`ReferenceModel.predict` does, and return the score as a sum of contributions.

    The head is a sum over genes, given the length of a cell's vector, or is divided by integrated gradients
    (:meth:`scvec.model.classifiers.Head.directions`).

    Parameters
    ----------
    winner
        (n,) class numbers to explain; each cell's likeliest when None.
    against
        Class number to compare with; each cell's likeliest other one when None.

    Raises
    ------
    InputError
        If ``against`` is the class itself, or a class that is not allowed.
    """
    members, ensemble = model.members, model.calibration.ensemble
    seen = members.score(chunk, n_neighbors, subset=subset)
    if subset is not None:
        seen = seen.restricted(np.isin(np.arange(members.n_classes), members.labels_among(subset)))
    weights = dict(zip(MEMBERS, ensemble.weights, strict=True))
    if method != "both":
        alone = ensemble.temperatures[MEMBERS.index(method)]
        weights = {name: alone if name == method else 0.0 for name in MEMBERS}
    scores = dict(zip(MEMBERS, seen.scores, strict=True))
    z = sum(weights[name] * scores[name].astype(np.float64) for name in MEMBERS if weights[name])
    z = np.asarray(z, dtype=np.float64)
    rows = np.arange(len(chunk))
    best = z.argmax(axis=1)
    a = best if winner is None else winner
    if against is None:
        rest = z.copy()
        rest[rows, a] = -np.inf
        b = rest.argmax(axis=1)
    else:
        b = np.full(len(chunk), against, dtype=np.int64)
    reach = OUT_OF_REACH / 2
    if (a == b).any() or any((s[rows, b] < reach).any() for s in scores.values()):
        raise InputError(
            "there is no other label to compare with",
            "",
            "name another one, or loosen --where",
            code="one-label",
        )

    parts = {
        name: weights[name] * (s[rows, a].astype(np.float64) - s[rows, b])
        for name, s in scores.items()
        if weights[name]
    }
    genes: dict[str, Float64] = {}
    constant, undivided, neighbors = (np.zeros(len(chunk)) for _ in range(3))
    columns = members.genes
    if weights["head"]:
        directions, intercepts = members.head.directions(seen.vectors, a, b)
        constant += weights["head"] * intercepts
        if isinstance(members.encoder, DividesByGene):
            chosen = chunk.select(columns) if len(columns) < chunk.X.shape[1] else chunk
            shares = members.encoder.shares(chosen, directions)
            used = np.flatnonzero(shares.any(axis=0))
            columns = columns[used]
            genes["head"] = weights["head"] * shares[:, used]
        else:
            undivided += weights["head"] * (directions * seen.vectors).sum(axis=1)
    if not genes:
        columns = np.zeros(0, np.int64)
    if weights["knn"]:
        neighbors += parts["knn"]
    log_odds = z[rows, a] - z[rows, b]
    return Evidence(a, b, best, log_odds, columns, genes, neighbors, constant, undivided, parts, seen)
