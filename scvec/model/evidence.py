"""What moved the voices from one class to another: genes, neighbours, and what belongs to neither."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scvec.errors import InputError
from scvec.model.model import ReferenceModel
from scvec.model.pool import VOICES
from scvec.model.voices import OUT_OF_REACH, Heard
from scvec.protocols import DividesByGene
from scvec.types import CellChunk

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
        (n,) natural logarithm of the odds, of the pool before it is bent to confidence.
    columns
        (n_genes,) int64 numbers of the genes that any voice hears, of those that the cells come with.
    genes
        Voice -> (n, n_genes) what each of them adds; voices that are not heard are left out.
    neighbors
        (n,) what the labels of the nearest cells add.
    constant
        (n,) what intercepts add: the classes' odds for a cell without a profile.
    undivided
        (n,) what the head adds where its encoder's vectors are no sums over genes; else 0.
    voices
        Voice -> (n,) what it adds in all; they sum to the log odds.
    heard
        What the voices said.
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
    voices: dict[str, Float64]
    heard: Heard

    @property
    def by_gene(self) -> Float64:
        """(n, n_genes) what each gene adds, over all voices."""
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
    regime: str,
    method: str = "both",
    n_neighbors: int = 15,
    subset: Int64 | None = None,
    winner: Int64 | None = None,
    against: int | None = None,
) -> Evidence:
    """Ask the voices about cells as :meth:`ReferenceModel.predict` does, and take their answer apart.

    Prototypes and the linear voice are sums over genes, given the length of a cell's profile; the head is
    divided by integrated gradients (:meth:`scvec.model.head.Head.directions`).

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
    voices, pool = model.voices, model.calibration.pools[regime]
    heard = voices.listen(chunk, n_neighbors, subset=subset)
    if subset is not None:
        heard = heard.restricted(np.isin(np.arange(voices.n_classes), voices.labels[subset]))
    weights = dict(zip(VOICES, pool.weights, strict=True))
    if method != "both":
        alone = pool.temperatures[VOICES.index(method)]
        weights = {name: alone if name == method else 0.0 for name in VOICES}
    scores = dict(zip(VOICES, heard.scores, strict=True))
    z = sum(weights[name] * scores[name].astype(np.float64) for name in VOICES if weights[name])
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
        raise InputError("there is no other label to compare with", "", "name another one, or loosen --where")

    said = {
        name: weights[name] * (s[rows, a].astype(np.float64) - s[rows, b])
        for name, s in scores.items()
        if weights[name]
    }
    parts: dict[str, tuple[Int64, Float64]] = {}
    constant, undivided, neighbors = (np.zeros(len(chunk)) for _ in range(3))
    known = chunk.select(voices.genes)
    for name, prototypes in (("prototype", voices.prototypes), ("centroid", voices.centroids)):
        if weights[name]:
            numbers, found = prototypes.contributions(chunk, a, b)
            parts[name] = numbers, weights[name] * found
    if weights["linear"]:
        found, rest_of_it = voices.linear.contributions(known, a, b)
        parts["linear"] = voices.genes, weights["linear"] * found
        constant += weights["linear"] * rest_of_it
    if weights["head"]:
        directions, rest_of_it = voices.head.directions(heard.vectors, a, b)
        constant += weights["head"] * rest_of_it
        if isinstance(voices.encoder, DividesByGene):
            parts["head"] = voices.genes, weights["head"] * voices.encoder.shares(known, directions)
        else:
            undivided += weights["head"] * (directions * heard.vectors).sum(axis=1)
    if weights["knn"]:
        neighbors += said["knn"]
    columns, genes = _aligned(parts, len(chunk))
    log_odds = z[rows, a] - z[rows, b]
    return Evidence(a, b, best, log_odds, columns, genes, neighbors, constant, undivided, said, heard)


def _aligned(parts: dict[str, tuple[Int64, Float64]], n: int) -> tuple[Int64, dict[str, Float64]]:
    """Return the genes that any voice hears, and each voice's part over these."""
    columns = np.unique(np.concatenate([np.zeros(0, np.int64), *(numbers for numbers, _ in parts.values())]))
    genes = {}
    for name, (numbers, found) in parts.items():
        genes[name] = np.zeros((n, len(columns)))
        genes[name][:, np.searchsorted(columns, numbers)] = found
    return columns, genes
