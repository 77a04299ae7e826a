"""What speaks for one class against another: genes, neighbours, and what belongs to neither."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.types import CellChunk, DividesByGene
from scvec.model.ensemble import MEMBERS
from scvec.model.members import OUT_OF_REACH, Scores
from scvec.model.reference import ReferenceModel

__all__ = ["Evidence", "weigh"]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Evidence:
    """The pooled log odds of one class against another, term by term, for n cells.

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
        Member -> (n, n_genes) what each of them adds; members that are not used are left out.
    neighbors
        (n,) what the labels of the nearest cells add.
    constant
        (n,) what intercepts add: the classes' odds for a cell without a profile.
    undivided
        (n,) what the head adds where its encoder's vectors are no sums over genes; else 0.
    members
        Member -> (n,) what it adds in all; they sum to the log odds.
    scores
        What the members said.
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
        """(n, n_genes) what each gene adds, over all members."""
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
    """Ask the members about cells as :meth:`ReferenceModel.predict` does, and take their answer apart.

    The head is a sum over genes, given the length of a cell's vector, or is divided by integrated gradients
    (:meth:`scvec.model.head.Head.directions`).

    Parameters
    ----------
    winner
        (n,) class numbers to speak for; each cell's likeliest when None.
    against
        Class number to compare with; each cell's likeliest other one when None.

    Raises
    ------
    InputError
        If ``against`` is the class itself, or none that could be given.
    """
    members, ensemble = model.members, model.calibration.ensemble
    seen = members.look(chunk, n_neighbors, subset=subset)
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

    said = {
        name: weights[name] * (s[rows, a].astype(np.float64) - s[rows, b])
        for name, s in scores.items()
        if weights[name]
    }
    genes: dict[str, Float64] = {}
    constant, undivided, neighbors = (np.zeros(len(chunk)) for _ in range(3))
    columns = members.genes
    if weights["head"]:
        directions, rest_of_it = members.head.directions(seen.vectors, a, b)
        constant += weights["head"] * rest_of_it
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
        neighbors += said["knn"]
    log_odds = z[rows, a] - z[rows, b]
    return Evidence(a, b, best, log_odds, columns, genes, neighbors, constant, undivided, said, seen)
