"""Names of groups by known markers: an index of markers, scores of terms, and their probabilities."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Candidate", "MarkerIndex", "Naming"]

#: Genes of a list that count, and how fast their weight falls: the i-th has 1 / (1 + i) ** FALL.
N_GENES, FALL = 30, 0.4
#: Markers that a term has in mind: long lists would win by chance. Added to the number of its genes.
SMALL, NORM = 5.0, 0.5
#: A marker that several tables or tissues name counts more, by this much for each doubling.
AGREEMENT = 0.3
#: Factor of a marker that a table names for the tissue asked for.
IN_TISSUE = 2.0
#: Part of the scores of its best descendants that a term collects, over so many of them.
COLLECTED, N_CHILDREN = 0.5, 5
#: Terms get probability in proportion to this power of their scores. The calibration error on the types
#: of ten data sets is 0.10 to 0.14 (benchmarks/names.py).
POWER = 3.0
#: Added to the number of terms with markers: the fewer there are, the likelier the true one is not among
#: them.
MISSING = 50.0
#: A list of which the best term explains less gets no name: most lists of random markers lie below.
UNKNOWN_BELOW = 0.25
#: Probability that the broad term must hold.
BROAD = 0.8
N_CANDIDATES = 10


@dataclass(frozen=True)
class Candidate:
    """A term that a group may be.

    Attributes
    ----------
    probability
        That the group is of this type, or of one above or below it in the Cell Ontology.
    supports
        Markers of the term among the genes of the group, with the tables that say so, strongest first.
    against
        Markers of the term that were measured and are not expressed in the group.
    """

    cl_id: str
    label: str
    probability: float
    supports: tuple[dict[str, Any], ...] = ()
    against: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "cl_id": self.cl_id,
            "label": self.label,
            "probability": round(self.probability, 4),
            "for": [dict(s) for s in self.supports],
            "against": list(self.against),
        }


@dataclass(frozen=True)
class Naming:
    """The names of one group, best first.

    Attributes
    ----------
    broad
        The deepest term that holds 80% of the probability with all below it; None where only "cell" does.
    status
        ``named``; ``broad`` where only a broader term is sure; ``unknown`` where no term fits.
    llm
        What a language model said, where one was asked: ``model``, ``votes``, ``agreement``, ``cl_id``,
        ``genes``, ``reason``, and ``offline``, the names without it.
    """

    group: str
    candidates: tuple[Candidate, ...]
    broad: Candidate | None
    status: str
    genes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    llm: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "group": self.group,
            "status": self.status,
            "candidates": [c.to_dict() for c in self.candidates],
            "broad": None if self.broad is None else self.broad.to_dict(),
            "genes": list(self.genes),
            "notes": list(self.notes),
            **({} if self.llm is None else {"llm": self.llm}),
        }


@dataclass
class _Entry:
    """What tables say of one gene of one term."""

    sources: set[str] = field(default_factory=set)
    tissues: set[str] = field(default_factory=set)
    weight: float = 0.0


class MarkerIndex:
    """Markers of all terms, over genes of one kind of id.

    Parameters
    ----------
    rows
        (cl_id, tissue, gene id, direction, weight, source) of each marker; genes of all species under the
        id of the human ortholog.
    labels
        Term -> its label.
    lineage
        Term -> its ancestors.
    """

    def __init__(
        self,
        rows: Iterable[tuple[str, str, str, str, float, str]],
        labels: Mapping[str, str],
        lineage: Mapping[str, frozenset[str]],
    ) -> None:
        self.labels, self.lineage = labels, lineage
        self._terms: dict[str, dict[str, _Entry]] = defaultdict(dict)
        self._absent: dict[str, set[str]] = defaultdict(set)
        for cl_id, tissue, gene, direction, weight, source in rows:
            if cl_id not in labels:
                continue
            if direction == "negative":
                self._absent[cl_id].add(gene)
                continue
            entry = self._terms[cl_id].setdefault(gene, _Entry())
            entry.sources.add(source)
            entry.tissues.add(tissue)
            entry.weight = max(entry.weight, weight)
        self._by_gene: dict[str, list[str]] = defaultdict(list)
        for cl_id, genes in self._terms.items():
            for gene in genes:
                self._by_gene[gene].append(cl_id)
        # Rarity: a gene that marks few terms tells more (inverse document frequency).
        n = len(self._terms)
        self._rarity = {g: float(np.log((n + 1) / (len(t) + 0.5))) for g, t in self._by_gene.items()}

    @property
    def n_terms(self) -> int:
        """Terms that have markers."""
        return len(self._terms)

    @property
    def genes(self) -> list[str]:
        """Ids of all marker genes."""
        return list(self._by_gene)

    @property
    def tissues(self) -> set[str]:
        """Tissues that tables name."""
        return {t for genes in self._terms.values() for entry in genes.values() for t in entry.tissues if t}

    def name(
        self,
        group: str,
        genes: Sequence[str],
        *,
        tissue: str = "",
        symbols: Mapping[str, str] | None = None,
        silent: frozenset[str] = frozenset(),
        notes: Sequence[str] = (),
    ) -> Naming:
        """Return the names of a group.

        Parameters
        ----------
        genes
            Ids of its specific genes, the most specific first.
        symbols
            Id -> what to call a gene.
        silent
            Genes that were measured and are not expressed in the group.
        """
        taken = list(dict.fromkeys(genes))[:N_GENES]
        spoken = symbols or {}
        weights = {g: 1.0 / (1 + i) ** FALL for i, g in enumerate(taken)}
        scores = self._scores(weights, tissue.lower(), silent)
        best = sum(w * self._rarity.get(g, 0.0) for g, w in weights.items())
        shown = tuple(spoken.get(g, g) for g in taken[:10])
        if not scores or best <= 0:
            return Naming(group, (), None, "unknown", shown, tuple(notes))
        terms = sorted(scores, key=lambda t: (-scores[t], t))
        values = np.array([scores[t] for t in terms])
        power = (values / values[0]) ** POWER
        proba = dict(zip(terms, (power / power.sum()).tolist(), strict=True))
        known = self.n_terms / (self.n_terms + MISSING)
        candidates = tuple(
            self._candidate(t, known * self._on_lineage(t, proba), weights, spoken, silent)
            for t in terms[:N_CANDIDATES]
        )
        broad = self._broad(proba, weights, spoken, silent)
        explained = self._explained(terms[0], weights) / best
        if explained < UNKNOWN_BELOW:
            status = "unknown"
        elif candidates[0].probability >= 0.5 or (broad and broad.cl_id == candidates[0].cl_id):
            status = "named"
        else:
            status = "broad" if broad else "unknown"
        return Naming(group, candidates, broad, status, shown, tuple(notes))

    def _scores(self, weights: Mapping[str, float], tissue: str, silent: frozenset[str]) -> dict[str, float]:
        own: dict[str, float] = {}
        for cl_id in {t for g in weights for t in self._by_gene.get(g, ())}:
            markers = self._terms[cl_id]
            score = 0.0
            for gene, weight in weights.items():
                entry = markers.get(gene)
                if entry is None:
                    continue
                said = len(entry.sources) + len(entry.tissues) - 1
                factor = 1.0 + AGREEMENT * float(np.log(said))
                if tissue and any(_same_tissue(tissue, t) for t in entry.tissues):
                    factor *= IN_TISSUE
                score += weight * self._rarity[gene] * factor
            lacking = sum(g in silent for g in markers) / len(markers)
            present = sum(g in weights for g in self._absent.get(cl_id, ()))
            own[cl_id] = score / (len(markers) + SMALL) ** NORM * (1.0 - 0.5 * lacking) * 0.7**present
        below: dict[str, list[float]] = defaultdict(list)
        for cl_id, score in own.items():
            for above in self.lineage.get(cl_id, ()):
                below[above].append(score)
        scores = dict(own)
        for above, found in below.items():
            if above in self.labels:
                collected = COLLECTED * sum(sorted(found, reverse=True)[:N_CHILDREN]) / N_CHILDREN
                scores[above] = scores.get(above, 0.0) + collected
        return scores

    def _on_lineage(self, cl_id: str, proba: Mapping[str, float]) -> float:
        """Return the probability of a term, all above it and all below it."""
        above = self.lineage.get(cl_id, frozenset())
        return sum(
            p for t, p in proba.items() if t == cl_id or t in above or cl_id in self.lineage.get(t, ())
        )

    def _explained(self, cl_id: str, weights: Mapping[str, float]) -> float:
        """Return the weight of the genes that mark a term or one below it."""
        terms = [t for t in self._terms if t == cl_id or cl_id in self.lineage.get(t, ())]
        marked = {g for t in terms for g in self._terms[t]}
        return sum(w * self._rarity[g] for g, w in weights.items() if g in marked)

    def _candidate(
        self,
        cl_id: str,
        probability: float,
        weights: Mapping[str, float],
        spoken: Mapping[str, str],
        silent: frozenset[str],
    ) -> Candidate:
        markers = self._terms.get(cl_id, {})
        hits = sorted((g for g in weights if g in markers), key=lambda g: -weights[g] * self._rarity[g])
        supports = tuple(
            {"gene": spoken.get(g, g), "sources": sorted(markers[g].sources)[:4]} for g in hits[:8]
        )
        known = sorted(markers, key=lambda g: (-len(markers[g].sources), -self._rarity[g], g))
        against = tuple(spoken.get(g, g) for g in known if g in silent)[:8]
        return Candidate(cl_id, self.labels[cl_id], probability, supports, against)

    def _broad(
        self,
        proba: Mapping[str, float],
        weights: Mapping[str, float],
        spoken: Mapping[str, str],
        silent: frozenset[str],
    ) -> Candidate | None:
        held: dict[str, float] = defaultdict(float)
        for cl_id, p in proba.items():
            for term in {cl_id, *self.lineage.get(cl_id, ())}:
                held[term] += p
        sure = [t for t, p in held.items() if p >= BROAD and t in self.labels and self.lineage.get(t)]
        # "cell" and the terms right below it say next to nothing.
        deep = [t for t in sure if len(self.lineage[t]) >= 3]
        if not deep:
            return None
        term = max(deep, key=lambda t: (len(self.lineage[t]), held[t], t))
        return self._candidate(term, min(held[term], 1.0), weights, spoken, silent)


def _same_tissue(asked: str, named: str) -> bool:
    return bool(named) and (asked == named or asked in named or named in asked)
