"""Names of groups by known markers: an index of markers, scores of terms, and their probabilities."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache, cached_property, lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from scvec.base.types import Float64, Int64

__all__ = ["FEATURES", "Candidate", "MarkerIndex", "NameFit", "Naming", "Tissues", "name_columns"]

#: What the score of a term is made of; the weights are learned (benchmarks/names.py --fit).
FEATURES = (
    "own",  # cosine of the list and the markers of the term, each gene by its rarity
    "pooled",  # the same, with the markers of all terms below it
    "in tissue",  # the same as own, of markers that tables name for the tissue
    "tissue part",  # fraction of the list that marks the term in the tissue
    "explained",  # fraction of the list that marks the term or one below it
    "shared",  # log of the number of genes that they share
    "odds",  # mean log odds of the genes: markers of the term and those below it, against all markers
    "at home",  # whether tables know the term, or one below it, in the tissue
    "above",  # best cosine of the terms above it
    "below",  # mean of the best cosines of the terms below it
    "tables",  # fraction of the tables that know the term
    "lacking",  # fraction of its markers that were measured and are not expressed
    "negative",  # genes of the list that the term lacks
)
#: Genes of a list that count, and how fast their weight falls: the i-th has 1 / (1 + i) ** FALL.
N_GENES, FALL = 30, 0.4
#: A marker that several tables or tissues name counts more, by this much for each doubling.
AGREEMENT = 0.3
#: Added to the squared length of a term's markers: few markers would win by chance.
SMALL, SMALL_POOLED, SMALL_ODDS = 50.0, 10.0, 5.0
#: Terms below, the best of which count.
N_BELOW = 3
#: A list gets no name if the best term explains a smaller fraction of it. The probability already depends on
#: this fraction, so a higher limit would mostly hide right names of lists with few known genes.
UNKNOWN_BELOW = 0.15
#: Weight of the same lineage beside the similarity to the true term, in what names are chosen for.
LINEAGE = 0.7
#: Probability that a name, and the broad term, must have.
SURE, BROAD = 0.5, 0.8
N_CANDIDATES = 10
#: Terms with fewer terms above them, such as "cell", say next to nothing: no candidates, and not broad.
LEAST_DEPTH, BROAD_DEPTH = 2, 3


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
    above
        Whether it lies above the first candidate in the Cell Ontology, so that it is no other answer.
    """

    cl_id: str
    label: str
    probability: float
    supports: tuple[dict[str, Any], ...] = ()
    against: tuple[str, ...] = ()
    above: bool = False

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

    All outputs have the same :attr:`said`, :attr:`cl_id`, :attr:`confidence` and ``broad``.

    Attributes
    ----------
    broad
        The deepest term of which the group is, with a probability of 80%; None where only "cell" is, and
        where the group is unknown.
    status
        ``named``; ``broad`` where only a broader term is sure; ``unknown`` where no term fits.
    llm
        Answer of a language model, if one was asked: ``model``, ``votes``, ``agreement``, ``cl_id``,
        ``genes``, ``reason``, and ``offline``, the names without it.
    """

    group: str
    candidates: tuple[Candidate, ...]
    broad: Candidate | None
    status: str
    genes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    llm: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.status == "unknown":
            object.__setattr__(self, "broad", None)
        elif self._term is None:
            raise ValueError(f"the group {self.group!r} is {self.status}, but has no such term")

    @property
    def _term(self) -> Candidate | None:
        """The term that the group is called."""
        if self.status == "named":
            return self.candidates[0] if self.candidates else None
        return self.broad

    @property
    def said(self) -> str:
        """What to call the group: a type, a broader one, or ``unknown``."""
        return self._term.label if self._term else "unknown"

    @property
    def cl_id(self) -> str:
        """Cell Ontology id of :attr:`said`; empty for ``unknown``."""
        return self._term.cl_id if self._term else ""

    @property
    def confidence(self) -> float:
        """Probability of :attr:`said`, 0 to 1; NaN for ``unknown``."""
        return self._term.probability if self._term else math.nan

    def lines(self) -> list[str]:
        """Return the names as lines for people."""
        if not self.candidates:
            why = "; ".join(self.notes) or "no gene of it is a known marker"
            return [f"{self.group}: unknown ({why})"]
        term, best = self._term, self.candidates[0]
        if term is None:
            lines = [f"{self.group}: unknown"]
        else:
            genes = "".join(f"; {gene}" for gene in [_genes(term)] if gene)
            lines = [f"{self.group}: {term.label} {term.probability:.2f} ({term.cl_id}{genes})"]
        if self.broad and term and self.broad.cl_id != term.cl_id:
            lines.append(f"    broader: {self.broad.label} {self.broad.probability:.2f}")
        shown = {c.cl_id for c in (term, self.broad) if c is not None}
        others = [c for c in self.candidates if c.cl_id not in shown and not c.above][:3]
        if others:
            what = "perhaps" if term is None else "or"
            lines.append(f"    {what}: {', '.join(f'{c.label} {c.probability:.2f}' for c in others)}")
        if self.status != "named" and (genes := _genes(best)):
            lines.append(f"    genes for {best.label}: {genes}")
        if best.against:
            lines.append(f"    against {best.label}: {', '.join(best.against[:6])} not found")
        if self.llm and "agreement" in self.llm:
            lines.append(_llm_line(self.llm))
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "group": self.group,
            "status": self.status,
            "name": self.said,
            "cl_id": self.cl_id,
            "confidence": None if math.isnan(self.confidence) else round(self.confidence, 4),
            "candidates": [c.to_dict() for c in self.candidates],
            "broad": None if self.broad is None else self.broad.to_dict(),
            "genes": list(self.genes),
            "notes": list(self.notes),
            **({} if self.llm is None else {"llm": self.llm}),
        }


def _genes(candidate: Candidate) -> str:
    return ", ".join(list(dict.fromkeys(s["gene"] for s in candidate.supports))[:6])


def _llm_line(said: Mapping[str, Any]) -> str:
    chosen = said["label"] or "none of them"
    if said["looked_up"]:
        chosen += " (from the model, looked up)"
    reason = f": {said['reason']}" if said["reason"] else ""
    return f"    {said['model']}, {said['agreement']:.0%} of {said['votes']} votes: {chosen}{reason}"


def name_columns(groups: Sequence[Naming], labels: npt.NDArray[Any], prefix: str) -> dict[str, Any]:
    """Return the columns of cells: name, id, confidence and broader term of their group.

    Parameters
    ----------
    labels
        (n,) the group of each cell; None where it has none.
    prefix
        Name of the first column, and beginning of the others.
    """
    import pandas as pd

    by = {g.group: g for g in groups}

    def column(value: Callable[[Naming], Any], empty: Any) -> list[Any]:
        return [empty if v is None else value(by[v]) for v in labels]

    return {
        prefix: pd.Categorical(column(lambda g: g.said, "")),
        f"{prefix}_cl_id": pd.Categorical(column(lambda g: g.cl_id, "")),
        f"{prefix}_confidence": np.array(column(lambda g: g.confidence, np.nan), dtype=np.float32),
        f"{prefix}_broad": pd.Categorical(column(lambda g: g.broad.label if g.broad else "", "")),
    }


@dataclass(frozen=True)
class NameFit:
    """What was learned from lists of known types.

    Attributes
    ----------
    weights
        Of each of :data:`FEATURES`; features that it lacks count nothing.
    lineage
        Logistic regression on :func:`_doubts`: is a candidate of the right lineage?
    within
        The same: is the group of this term, or of one below it?
    """

    weights: Mapping[str, float]
    lineage: tuple[float, ...]
    within: tuple[float, ...]

    @classmethod
    @cache
    def shipped(cls) -> NameFit:
        """Return what ships with scvec."""
        found = json.loads((files("scvec") / "data" / "naming.json").read_text(encoding="utf-8"))
        return cls(found["weights"], tuple(found["lineage"]), tuple(found["within"]))

    @property
    def vector(self) -> Float64:
        """(n_features,) the weights in the order of :data:`FEATURES`."""
        return np.array([self.weights.get(name, 0.0) for name in FEATURES])


#: Words that people write, and what Uberon calls them.
MEANT_TISSUES = {
    "pbmc": "blood", "pbmcs": "blood", "islets": "islet of langerhans", "islet": "islet of langerhans",
    "muscle": "skeletal muscle tissue", "bladder": "urinary bladder", "vessel": "blood vessel",
    "vessels": "blood vessel", "cortex": "cerebral cortex", "gut": "intestine", "bowel": "intestine",
    "fat": "adipose tissue", "airway": "lung", "airways": "lung", "bronchi": "lung",
    "marrow": "bone marrow", "skin": "skin of body", "prostate": "prostate gland",
    "thyroid": "thyroid gland", "adrenal": "adrenal gland", "cns": "central nervous system",
    "colorectum": "colon", "colorectal": "colon", "renal": "kidney", "hepatic": "liver",
    "pulmonary": "lung", "cardiac": "heart", "gastric": "stomach", "pancreatic": "pancreas",
    "bal": "lung", "balf": "lung", "retinal": "retina", "rpe": "retina", "bm": "bone marrow",
    "adipose": "adipose tissue", "wat": "adipose tissue", "bat": "brown adipose tissue", "testes": "testis",
    "testicular": "testis", "ovarian": "ovary", "uterine": "uterus", "placental": "placenta",
    "mammary": "breast", "epidermis": "skin of body", "epidermal": "skin of body", "scalp": "skin of body",
    "hippocampus": "brain", "hippocampal": "brain", "pfc": "cerebral cortex", "dlpfc": "cerebral cortex",
    "cerebral": "cerebral cortex", "cerebellar": "cerebellum", "hypophysis": "pituitary gland",
    "pituitary": "pituitary gland", "pns": "peripheral nervous system", "drg": "dorsal root ganglion",
    "intestinal": "intestine", "splenic": "spleen", "thymic": "thymus", "nasal": "nose", "aortic": "aorta",
    "urothelial": "urinary bladder", "ln": "lymph node", "crc": "colon", "nsclc": "lung", "hcc": "liver",
    "pdac": "pancreas", "gbm": "brain", "glioma": "brain", "glioblastoma": "brain",
    "melanoma": "skin of body",
}  # fmt: skip


class Tissues:
    """How near two tissues are, by the organs and systems of Uberon that they are part of.

    Parameters
    ----------
    parts
        (name of a tissue in small letters, names of the organs and systems above it).
    """

    #: Nearness of tissues that share an organ, or only a system.
    ORGAN, SYSTEM = 1.0, 0.4

    def __init__(self, parts: Iterable[tuple[str, str]] = ()) -> None:
        self._parts = dict(parts)

    def near(self, asked: str, named: str) -> float:
        """Return 1 for tissues that share an organ, 0.4 for those that share a system, else 0."""
        if not asked or not named:
            return 0.0
        common = self._organs(asked.lower()) & self._organs(named.lower())
        if any(not organ.endswith(" system") for organ in common):
            return self.ORGAN
        return self.SYSTEM if common else 0.0

    def nearest(self, asked: str, others: Iterable[str]) -> str | None:
        """Return "" for a known tissue, or one of ``others``; else the most alike name, None if none is."""
        names = {*self._parts, *MEANT_TISSUES, *others}
        if len(self._organs(asked.lower())) > 1 or asked.lower() in names:
            return ""
        return next(iter(get_close_matches(asked.lower(), names, 1, 0.7)), None)

    @lru_cache(4096)  # noqa: B019 - one object a process
    def _organs(self, tissue: str) -> frozenset[str]:
        plain = " ".join(re.sub(r"[^a-z0-9]+", " ", tissue).split())
        name = MEANT_TISSUES.get(plain, plain)
        found = self._above(name)
        if name not in self._parts:
            # "brain cortex", "mouse lung": the organs of the words, the longest parts first.
            said = plain.split()
            spans = ((i, i + n) for n in range(len(said) - 1, 0, -1) for i in range(len(said) - n + 1))
            for start, stop in spans:
                part = " ".join(said[start:stop])
                found |= self._above(MEANT_TISSUES.get(part, part))
                if any(not organ.endswith(" system") for organ in found):
                    break
        return found | {name}

    def _above(self, name: str) -> frozenset[str]:
        # Split here: a process asks for few of many thousand tissues.
        return frozenset(self._parts[name].split("|")) if name in self._parts else frozenset()


@dataclass
class _Entry:
    """What tables say of one gene of one term."""

    sources: set[str] = field(default_factory=set)
    tissues: set[str] = field(default_factory=set)


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
    tissues
        How near tissues are; without it only equal names are.
    fit
        Weights of the scores and calibration; those that ship with scvec where not given.
    """

    def __init__(
        self,
        rows: Iterable[tuple[str, str, str, str, float, str]],
        labels: Mapping[str, str],
        lineage: Mapping[str, frozenset[str]],
        *,
        tissues: Tissues | None = None,
        fit: NameFit | None = None,
    ) -> None:
        self.labels, self.lineage = labels, lineage
        self.fit = fit or NameFit.shipped()
        self._near = tissues or Tissues()
        self._markers: dict[str, dict[str, _Entry]] = defaultdict(dict)
        self._absent: dict[str, set[str]] = defaultdict(set)
        for cl_id, tissue, gene, direction, _, source in rows:
            if cl_id not in labels:
                continue
            if direction == "negative":
                self._absent[cl_id].add(gene)
                continue
            entry = self._markers[cl_id].setdefault(gene, _Entry())
            entry.sources.add(source)
            entry.tissues.add(tissue)
        genes = sorted({gene for found in self._markers.values() for gene in found})
        self._column = {gene: j for j, gene in enumerate(genes)}
        above = {a for t in self._markers for a in lineage.get(t, ()) if a in labels}
        #: Terms that may be named: those with markers, and those above them that say something.
        self.terms = sorted({*self._markers, *(a for a in above if len(lineage.get(a, ())) >= LEAST_DEPTH)})
        self._row = {cl_id: i for i, cl_id in enumerate(self.terms)}

    @property
    def n_terms(self) -> int:
        """Terms that have markers."""
        return len(self._markers)

    @property
    def genes(self) -> list[str]:
        """Ids of all marker genes."""
        return list(self._column)

    def tissue_note(self, tissue: str) -> list[str]:
        """Return a note if no table, nor Uberon, knows a tissue, so that it says nothing."""
        near = self._near.nearest(tissue, self.tissues) if tissue else ""
        if near == "":
            return []
        meant = f"; is {near} meant?" if near else ""
        return [f"the tissue {tissue[:60]!r} is not known, and does not count{meant}"]

    @property
    def tissues(self) -> set[str]:
        """Tissues that tables name."""
        return {t for found in self._markers.values() for e in found.values() for t in e.tissues if t}

    def markers(self, cl_id: str) -> dict[str, list[str]]:
        """Return the markers of a term: gene id -> the tables that say so, most agreed first."""
        found = self._markers.get(cl_id, {})
        order = sorted(found, key=lambda g: (-len(found[g].sources), -self._rarity_of(g), g))
        return {gene: sorted(found[gene].sources) for gene in order}

    def below(self, cl_id: str) -> list[str]:
        """Return the terms with markers that lie below a term."""
        return [t for t in self._markers if cl_id in self.lineage.get(t, ())]

    def telling_markers(self, cl_id: str, n_terms: int = 4) -> list[str]:
        """Return the markers of a term that mark at most so many terms, or that two tables agree on."""
        found = self.markers(cl_id)
        return [g for g in found if self._n_marked[self._column[g]] <= n_terms or len(found[g]) > 1]

    def together(self, genes: Iterable[str], others: Iterable[str]) -> list[str]:
        """Return, of genes, the one that marks most of the terms that others mark; none if none does."""
        marks = self._own > 0
        shared = np.asarray(
            marks[:, [self._column[g] for g in others if g in self._column]].sum(axis=1)
        ).ravel()
        best, most = "", 0.0
        for gene in genes:
            listed = marks[:, [self._column[gene]]].toarray().ravel() if gene in self._column else np.zeros(1)
            fit = float((shared * listed).sum()) / max(float(listed.sum()), 1.0) ** 0.5
            best, most = (gene, fit) if fit > most else (best, most)
        return [best] if best else []

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
        tissue
            Where the cells are from, in plain words.
        symbols
            Id -> what to call a gene. Genes of one name, such as those that CD3 means, count as one.
        silent
            Genes that were measured and are not expressed in the group.
        """
        spoken = symbols or {}
        taken, _ = _weighted(genes, spoken)
        shown = tuple(dict.fromkeys(spoken.get(g, g) for g in taken))[:10]
        rows, values = self.features(genes, tissue, silent, spoken)
        if not len(rows):
            return Naming(group, (), None, "unknown", shown, tuple(notes))
        order, proba = self.ranked(rows, values @ self.fit.vector)
        rows, values = rows[order], values[order]
        known = self.known(genes, spoken)
        n = len({spoken.get(g, g) for g in taken})
        sure = _logistic(self.fit.lineage, _doubts(self.on_lineage(rows, proba), values, known, n))
        within = _logistic(self.fit.within, _doubts(self.within(rows, proba), values, known, n))

        above = self.lineage.get(self.terms[rows[0]], frozenset())

        def candidate(k: int, probability: float) -> Candidate:
            term = self.terms[rows[k]]
            found = self._candidate(term, float(probability), taken, spoken, silent)
            return replace(found, above=term in above)

        candidates = tuple(candidate(k, sure[k]) for k in range(min(N_CANDIDATES, len(rows))))
        depth = np.array([len(self.lineage.get(self.terms[i], ())) for i in rows])
        deep = [k for k in range(len(rows)) if within[k] >= BROAD and depth[k] >= BROAD_DEPTH]
        broad = None
        if deep:
            k = max(deep, key=lambda k: (depth[k], within[k], -k))
            broad = candidate(k, within[k])
        if values[0, FEATURES.index("explained")] * known < UNKNOWN_BELOW:
            status = "unknown"
        elif sure[0] >= SURE:
            status = "named"
        else:
            status = "broad" if broad else "unknown"
        return Naming(group, candidates, broad, status, shown, tuple(notes))

    def features(
        self,
        genes: Sequence[str],
        tissue: str = "",
        silent: frozenset[str] = frozenset(),
        said: Mapping[str, str] | None = None,
    ) -> tuple[Int64, Float64]:
        """Return (n,) numbers of the terms that share a gene with a list, and (n, n_features) values.

        Genes that are called the same, in ``said`` (id -> name), are the family that a list names: they have
        the place and the weight of one gene.
        """
        listed, share = _weighted(genes, said or {})
        known = np.array([g in self._column for g in listed], dtype=bool)
        if not known.any():
            return np.zeros(0, dtype=np.int64), np.zeros((0, len(FEATURES)))
        columns = np.array([self._column[g] for g in listed if g in self._column])
        weight, part = share[known].prod(axis=1), share[known, 1]
        rarity = self._rarity[columns]
        importance = weight * rarity
        length = float(np.sqrt((importance**2).sum()))
        own = self._own[:, columns].toarray()
        pooled = self._pooled[:, columns].toarray()
        cosine = own @ (importance * rarity) / length / self._length
        rows = np.flatnonzero(pooled.any(axis=1))
        below, has = self._below[rows], pooled[rows] > 0
        least = min(N_BELOW, len(self.terms))
        at_home = in_tissue = np.zeros((len(self.terms), len(columns)))
        if tissue:
            there, at_home = self._in_tissue(tissue)
            in_tissue = own * there[:, columns].toarray()
        odds = np.log1p(pooled[rows] / (self._n_pooled[rows, None] + SMALL_ODDS) / self._usual[columns])
        found = {
            "own": cosine[rows],
            "pooled": pooled[rows] @ (importance * rarity) / length / self._length_pooled[rows],
            "in tissue": (in_tissue @ (importance * rarity) / length / self._length)[rows],
            "tissue part": (in_tissue @ importance / importance.sum())[rows],
            "explained": has @ importance / importance.sum(),
            "shared": np.log1p((own[rows] > 0) @ part),
            "odds": odds @ weight / weight.sum(),
            "at home": at_home[rows] if tissue else np.zeros(len(rows)),
            "above": (self._below.T[rows] * cosine).max(axis=1, initial=0.0),
            "below": np.partition(below * cosine, -least, axis=1)[:, -least:].sum(axis=1) / N_BELOW,
            "tables": self._tables[rows],
        }
        terms = [self.terms[i] for i in rows]
        markers = [self._markers.get(t, {}) for t in terms]
        found["lacking"] = np.array([sum(g in silent for g in m) / len(m) if m else 0.0 for m in markers])
        found["negative"] = np.array([sum(g in self._absent.get(t, ()) for g in listed) for t in terms])
        return rows, np.stack([found[name] for name in FEATURES], axis=1)

    def known(self, genes: Sequence[str], said: Mapping[str, str] | None = None) -> float:
        """Return the fraction of a list, by weight, that is a marker of some term."""
        listed, share = _weighted(genes, said or {})
        weight = share.prod(axis=1)
        return float(weight @ [g in self._column for g in listed] / weight.sum()) if listed else 0.0

    def ranked(self, rows: Int64, scores: Float64) -> tuple[Int64, Float64]:
        """Return (n,) the order of terms, best first, and the softmax of their scores in it.

        First comes not the term with the highest score, but that of which most is hoped: the mean similarity
        to all terms, and whether it is on one lineage with them, each term by its softmax. Names are learned
        and measured by the same. The others follow by their scores.
        """
        proba = np.exp(scores - scores.max())
        proba /= proba.sum()
        hoped = self._similar[np.ix_(rows, rows)] @ proba + LINEAGE * self.on_lineage(rows, proba)
        order = np.lexsort((rows, -scores))
        best = min(range(len(rows)), key=lambda k: (-hoped[k], rows[k]))
        order = np.concatenate([[best], order[order != best]])
        return order, proba[order]

    def on_lineage(self, rows: Int64, proba: Float64) -> Float64:
        """Return (n,) the probability of each term, all above it and all below it."""
        related = self._below[np.ix_(rows, rows)] + self._below[np.ix_(rows, rows)].T
        return np.minimum(proba + related @ proba, 1.0)

    def within(self, rows: Int64, proba: Float64) -> Float64:
        """Return (n,) the probability of each term and all below it."""
        return np.minimum(proba + self._below[np.ix_(rows, rows)] @ proba, 1.0)

    @cached_property
    def _below(self) -> Float64:
        """(n_terms, n_terms) 1 where the second term lies below the first."""
        found = np.zeros((len(self.terms), len(self.terms)))
        for t, j in self._row.items():
            for above in self.lineage.get(t, ()):
                if above in self._row:
                    found[self._row[above], j] = 1.0
        return found

    @cached_property
    def _similar(self) -> Float64:
        """(n_terms, n_terms) Jaccard index of the terms that two terms are, or lie below."""
        number: dict[str, int] = {}
        entries = [
            (i, number.setdefault(a, len(number)))
            for i, t in enumerate(self.terms)
            for a in {t, *self.lineage.get(t, ())}
        ]
        i, j = zip(*entries, strict=True) if entries else ((), ())
        above = sp.csr_matrix((np.ones(len(i)), (i, j)), shape=(len(self.terms), len(number)))
        shared: Float64 = (above @ above.T).toarray()
        size = shared.diagonal()
        return shared / (size[:, None] + size - shared)

    @cached_property
    def _own(self) -> sp.csc_matrix:
        """(n_terms, n_genes) how well tables agree that a gene marks a term."""
        entries = [
            (self._row[t], self._column[g], 1.0 + AGREEMENT * np.log(_n_tables(e) + len(e.tissues) - 1))
            for t, found in self._markers.items()
            for g, e in found.items()
        ]
        i, j, value = zip(*entries, strict=True) if entries else ((), (), ())
        return sp.csc_matrix((value, (i, j)), shape=(len(self.terms), len(self._column)))

    @cached_property
    def _pooled(self) -> sp.csc_matrix:
        """(n_terms, n_genes) the mean of the markers of a term and all below it."""
        has = np.array([t in self._markers for t in self.terms], dtype=float)
        member = self._below + np.eye(len(self.terms))
        n = np.maximum(member @ has, 1.0)
        return sp.csc_matrix(sp.diags(1.0 / n) @ sp.csr_matrix(member) @ self._own)

    @cached_property
    def _rarity(self) -> Float64:
        """(n_genes,) inverse document frequency: a gene that marks few terms tells more."""
        found: Float64 = np.log((self.n_terms + 1) / (self._n_marked + 0.5))
        return found

    @cached_property
    def _n_marked(self) -> Float64:
        """(n_genes,) how many terms a gene marks."""
        return np.asarray((self._own > 0).sum(axis=0), dtype=np.float64).ravel()

    def _rarity_of(self, gene: str) -> float:
        return float(self._rarity[self._column[gene]]) if gene in self._column else 0.0

    @cached_property
    def _usual(self) -> Float64:
        """(n_genes,) the fraction of all markers that are this gene."""
        return np.asarray((self._n_marked + 0.5) / (self._n_marked.sum() + 1.0))

    @cached_property
    def _length(self) -> Float64:
        return np.asarray(np.sqrt(self._squared(self._own) + SMALL))

    @cached_property
    def _length_pooled(self) -> Float64:
        return np.asarray(np.sqrt(self._squared(self._pooled) + SMALL_POOLED))

    def _squared(self, markers: sp.csc_matrix) -> Float64:
        weighted = markers @ sp.diags(self._rarity)
        return np.asarray(weighted.power(2).sum(axis=1), dtype=np.float64).ravel()

    @cached_property
    def _n_pooled(self) -> Float64:
        return np.asarray(self._pooled.sum(axis=1), dtype=np.float64).ravel()

    @cached_property
    def _tables(self) -> Float64:
        """(n_terms,) the fraction of the tables that know a term."""
        of = [
            {s.split(":")[0] for e in self._markers.get(t, {}).values() for s in e.sources}
            for t in self.terms
        ]
        n = len(set().union(*of)) or 1
        return np.array([len(found) / n for found in of])

    @lru_cache(64)  # noqa: B019 - one object a process
    def _in_tissue(self, tissue: str) -> tuple[sp.csc_matrix, Float64]:
        """Return (n_terms, n_genes) nearness of the tissues of markers, and (n_terms,) of terms."""
        near = {t: self._near.near(tissue, t) for t in self.tissues}
        entries = [
            (self._row[t], self._column[g], max((near.get(x, 0.0) for x in e.tissues), default=0.0))
            for t, found in self._markers.items()
            for g, e in found.items()
        ]
        i, j, value = zip(*entries, strict=True) if entries else ((), (), ())
        there = sp.csc_matrix((value, (i, j)), shape=(len(self.terms), len(self._column)))
        best = there.max(axis=1).toarray().ravel()
        return there, np.maximum(best, (self._below * best).max(axis=1, initial=0.0))

    def _candidate(
        self,
        cl_id: str,
        probability: float,
        genes: Sequence[str],
        spoken: Mapping[str, str],
        silent: frozenset[str],
    ) -> Candidate:
        markers = self.markers(cl_id)
        place = {g: i for i, g in enumerate(genes)}
        hits = sorted(
            (g for g in genes if g in markers), key=lambda g: -self._rarity_of(g) / (1 + place[g]) ** FALL
        )
        supports = tuple({"gene": spoken.get(g, g), "sources": markers[g][:4]} for g in hits[:8])
        against = tuple(spoken.get(g, g) for g in markers if g in silent)[:8]
        return Candidate(cl_id, self.labels[cl_id], probability, supports, against)


def _n_tables(entry: _Entry) -> int:
    return len({source.split(":")[0] for source in entry.sources})


def _weighted(genes: Sequence[str], said: Mapping[str, str]) -> tuple[list[str], Float64]:
    """Return the genes of a list that count, and (n, 2) the weight of their place, and their part of it."""
    unique = list(dict.fromkeys(genes))
    names = [said.get(g, g) for g in unique]
    place = {name: i for i, name in enumerate(dict.fromkeys(names))}
    size = Counter(names)
    kept = [(g, name) for g, name in zip(unique, names, strict=True) if place[name] < N_GENES]
    share = [(1.0 / (1 + place[name]) ** FALL, 1.0 / size[name]) for _, name in kept]
    return [g for g, _ in kept], np.array(share).reshape(-1, 2)


def _doubts(mass: Float64, values: Float64, known: float, n_genes: int) -> Float64:
    """Return (n, 5) what the probability of a term is computed from.

    A constant, the log odds of its softmax, the fraction of the list that it explains, how many genes, and
    one by the length of the list: a few genes may mark a term by chance. ``explained`` is a part of the genes
    that tables know; of the list it is as much less as they know less.
    """
    odds = np.log((mass + 1e-3) / (1.0 - mass + 1e-3))
    explained = values[:, FEATURES.index("explained")] * known
    one = np.ones(len(mass))
    return np.stack(
        [one, odds, explained, values[:, FEATURES.index("shared")], one / max(n_genes, 1)], axis=1
    )


def _logistic(weights: Sequence[float], values: Float64) -> Float64:
    return np.asarray(1.0 / (1.0 + np.exp(-(values @ np.array(weights)))))
