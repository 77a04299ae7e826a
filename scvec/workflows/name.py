"""``scvec name``: names for groups of cells, or for marker lists, without a reference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.options import options_of, takes_options
from scvec.base.results import Report
from scvec.base.species import SPECIES
from scvec.base.types import Progress, no_progress
from scvec.celltypes.markers import read_marker_lists
from scvec.ingest.cells.source import CellSource
from scvec.ingest.cells.write import check_output, write_annotated, write_table
from scvec.model.classifiers import clusters, need_igraph
from scvec.model.matching import MatchedSource, match_genes
from scvec.model.resolvers import resolver_of, snapshot_resolver
from scvec.stores.knowledge.snapshot import Snapshot

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from scvec.model.resolvers import GeneResolver
    from scvec.stores.knowledge.knowledge import KnowledgeBase

__all__ = ["Candidate", "MarkerIndex", "NameOptions", "NamesReport", "Naming", "name"]

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
    """

    group: str
    candidates: tuple[Candidate, ...]
    broad: Candidate | None
    status: str
    genes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "group": self.group,
            "status": self.status,
            "candidates": [c.to_dict() for c in self.candidates],
            "broad": None if self.broad is None else self.broad.to_dict(),
            "genes": list(self.genes),
            "notes": list(self.notes),
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


#: Columns of obs that are taken for clusters, where none is named.
CLUSTERS = ("leiden", "louvain", "seurat_clusters", "clusters", "cluster")
#: A gene of a group must be found in this fraction of its cells, or it counts for little.
FOUND, RARE = 0.2, 0.3
#: Added to the standard error of a difference of means, in log1p CP10k.
STEADY = 0.05
#: Weight of the difference from the shipped background, beside that from the other groups.
BACKGROUND = 0.2
#: A marker found in less than this fraction of the cells of a group speaks against a term.
SILENT = 0.02
#: Cells that clusters are made of at most; principal components of them.
MAX_CLUSTERED, N_COMPONENTS, N_VARIABLE = 200_000, 30, 2000


@dataclass(frozen=True, kw_only=True)
class NameOptions:
    """How groups of cells are named.

    Attributes
    ----------
    groupby
        Column of obs with the groups; a column of clusters where there is one, else clusters are made.
    tissue
        Of the cells, in words as markers name it: ``lung``, ``blood``. Markers of it count twice.
    species
        ``auto``, ``human`` or ``mouse``.
    only
        ``novel``: only the cells that ``scvec query`` called novel are named; the others are compared with.
    layer, values, memory
        As for :func:`scvec.query`.
    key_added
        Prefix of the columns that are written, and of those that ``scvec query`` wrote.
    force
        Go on where few genes match.
    """

    groupby: str | None = None
    tissue: str = ""
    species: str = "auto"
    only: str | None = None
    layer: str | None = None
    values: str = "auto"
    memory: str | int | None = None
    key_added: str = "scvec"
    force: bool = False

    def __post_init__(self) -> None:
        if self.only not in (None, "novel"):
            raise InputError(f"only is novel, not {self.only!r}", "--only", "write --only novel")
        if len(self.tissue) > 200:
            raise InputError("the tissue is longer than 200 letters", "--tissue", "give a word, such as lung")


@dataclass(frozen=True, kw_only=True)
class NamesReport(Report):
    """Names of groups, best first."""

    groups: list[Naming]
    n_terms: int
    tissue: str = ""
    output: str = ""

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        lines = [f"{len(self.groups)} groups, by the markers of {self.n_terms:,} types"]
        for group in self.groups:
            if not group.candidates:
                lines.append(f"{group.group}: unknown (no gene of it is a known marker)")
                continue
            best = group.candidates[0]
            genes = ", ".join(s["gene"] for s in best.supports[:6])
            name = best.label if group.status == "named" else group.status
            lines.append(
                f"{group.group}: {name} ({best.cl_id} {best.label}, {best.probability:.2f}; {genes})"
            )
            if group.broad and group.broad.cl_id != best.cl_id:
                lines.append(f"    surely: {group.broad.label} ({group.broad.probability:.2f})")
            others = ", ".join(f"{c.label} {c.probability:.2f}" for c in group.candidates[1:4])
            lines.append(f"    or: {others}")
            if best.against:
                lines.append(f"    against: {', '.join(best.against[:6])} not found")
        if self.output:
            lines.append(f"written to {self.output}")
        return lines


@takes_options(NameOptions)
def name(
    store: Path | str | None,
    cells: Path | str | AnnData | None = None,
    options: NameOptions | None = None,
    *,
    markers: Path | str | None = None,
    output: Path | str | None = None,
    progress: Progress = no_progress,
    **keywords: Any,
) -> NamesReport:
    """Name groups of cells, or published marker lists, by known markers of cell types.

    Each group's specific genes are compared with the markers of all Cell Ontology terms: those that ship
    with scvec and the tables that :func:`scvec.ingest_markers` read. A marker counts more the fewer types it
    marks, the more tables name it, and if a table names it for the tissue; a term collects part of the
    scores of the terms below it.

    Parameters
    ----------
    store
        Folder of the store; with None, or where it has no knowledge yet, the shipped markers are used.
    cells
        A file or AnnData object as for :func:`scvec.query`; or None, with ``markers``.
    markers
        A table with the columns ``group, genes`` and, optional, ``tissue, species``.
    output
        ``.h5ad`` (the input and ``scvec_name`` columns), ``.csv`` (a row for each group), from cells only.

    Raises
    ------
    InputError
        Neither or both of ``cells`` and ``markers`` are given, or one of them cannot be used.
    """
    asked = options_of(NameOptions, options, keywords)
    if (cells is None) == (markers is None):
        raise InputError("cells or marker lists are named", "", "give a file of cells, or --markers FILE")
    target = (
        None if output is None else check_output(output, cells if isinstance(cells, str | Path) else None)
    )
    with _knowledge(store) as (kb, resolver):
        key = _ortholog_key(resolver)
        index = _index(kb, resolver, key)
        if markers is not None:
            groups = _named_lists(Path(markers), index, resolver, key, asked)
            return NamesReport(groups=groups, n_terms=index.n_terms, tissue=asked.tissue)
        progress("reading cells", 0, None)
        with CellSource.open(
            cells, layer=asked.layer, memory=asked.memory, columns=True, values=asked.values
        ) as source:
            matched = match_genes(source, resolver, species=asked.species, force=asked.force)
            obs = source.obs
            labels, told = _groups(obs, matched, asked, progress)
            groups = _named_groups(matched, labels, index, key, asked, progress)
            if target is not None:
                _write(target, cells, obs, labels, groups, asked, source.memory)
            notes = list(dict.fromkeys([*source.notes, *matched.notes, *told]))
    return NamesReport(
        groups=groups,
        n_terms=index.n_terms,
        tissue=asked.tissue,
        output="" if target is None else str(target),
        notes=notes,
    )


@contextmanager
def _knowledge(store: Path | str | None) -> Iterator[tuple[KnowledgeBase, GeneResolver]]:
    """Yield a knowledge base and its resolver: that of a store, else what ships with scvec."""
    import tempfile

    from scvec.stores.knowledge.knowledge import KnowledgeBase
    from scvec.stores.store.store import Store

    try:
        opened = None if store is None else Store(store)
    except InputError:
        opened = None  # there is no store yet
    if opened is not None and opened.generation.manifest.knowledge is not None:
        with opened.knowledge() as kb:
            yield kb, resolver_of(kb, opened.generation.manifest.knowledge.digest)
        return
    with tempfile.TemporaryDirectory() as folder, KnowledgeBase.open(Path(folder) / "kb.duckdb") as kb:
        kb.load_snapshot()
        yield kb, snapshot_resolver()


def _ortholog_key(resolver: GeneResolver) -> Callable[[str], str]:
    """Return a function from a gene id to that of its best ortholog in the first species, or itself."""
    partners = resolver.partners(SPECIES[0])
    return lambda gene_id: partners.get(gene_id, gene_id)


def _index(kb: KnowledgeBase, resolver: GeneResolver, key: Callable[[str], str]) -> MarkerIndex:
    """Return the markers of the knowledge base, genes under the id of their ortholog in the first species."""
    rows = kb.markers()
    ids: dict[tuple[str, str], str] = {}
    for species in resolver.species:
        symbols = list(dict.fromkeys(gene for _, _, kind, gene, *_ in rows if kind == species))
        for symbol, gene_id in zip(symbols, resolver.resolve(symbols, species).gene_ids, strict=True):
            if gene_id is not None:
                ids[species, symbol] = key(gene_id)
    kept = (
        (cl_id, tissue, ids[species, gene], direction, weight, source)
        for cl_id, tissue, species, gene, direction, weight, source in rows
        if (species, gene) in ids
    )
    labels = {cl_id: label for cl_id, label, own in kb.cl_names() if own}
    return MarkerIndex(kept, labels, kb.cl_lineage())


def _named_lists(
    path: Path,
    index: MarkerIndex,
    resolver: GeneResolver,
    key: Callable[[str], str],
    asked: NameOptions,
) -> list[Naming]:
    """Return the names of published marker lists."""
    named = []
    for group, genes, tissue, species in read_marker_lists(path):
        match = resolver.resolve(genes, species or asked.species)
        known = {n: key(g) for n, g in zip(genes, match.gene_ids, strict=True) if g is not None}
        spoken = {gene_id: n for n, gene_id in reversed(known.items())}
        left = [g for g in genes if g not in known]
        notes = [f"{len(left)} of {len(genes)} names are not known genes, such as {left[0]}"] if left else []
        place = tissue or asked.tissue
        named.append(index.name(group, list(known.values()), tissue=place, symbols=spoken, notes=notes))
    return named


def _groups(
    obs: pd.DataFrame, matched: MatchedSource, asked: NameOptions, progress: Progress
) -> tuple[npt.NDArray[Any], list[str]]:
    """Return (n,) the group of each cell, None for those that are only compared with, and notes."""
    column, notes = asked.groupby, []
    if column is None:
        column = next((c for c in CLUSTERS if c in obs.columns), None)
        if column is not None:
            notes.append(f"groups are those of obs['{column}']")
    if column is not None and column not in obs.columns:
        listed = ", ".join(map(str, obs.columns[:12]))
        raise InputError(
            f"obs has no column {column!r}", "--groupby", f"it has: {listed}", code="unknown-column"
        )
    wanted = np.ones(len(obs), dtype=bool)
    if asked.only == "novel":
        status = f"{asked.key_added}_status"
        if status not in obs.columns:
            raise InputError(
                f"obs has no column {status!r}, so that novel cells are not known",
                "--only novel",
                "annotate the cells first: scvec query",
                code="unknown-column",
            )
        wanted = (obs[status].astype(str) == "novel").to_numpy()
        if not wanted.any():
            raise InputError("no cell is novel", matched.source.name, "leave --only out")
    if column is not None:
        labels = obs[column].astype(object).where(obs[column].notna(), None).to_numpy(dtype=object)
        labels = np.array([None if v is None else str(v) for v in labels], dtype=object)
    else:
        rows = np.flatnonzero(wanted)
        made = _clustered(matched, rows, progress)
        labels = np.full(len(obs), None, dtype=object)
        labels[rows] = [f"cluster {c + 1}" for c in made]
        notes.append(f"{len(set(made))} clusters were made (--groupby names a column instead)")
    labels[~wanted] = None
    return labels, notes


def _clustered(matched: MatchedSource, rows: npt.NDArray[np.int64], progress: Progress) -> Any:
    """Return the cluster of each row: Leiden on principal components of the most variable genes."""
    import scipy.sparse as sp
    from sklearn.decomposition import TruncatedSVD

    if len(rows) > MAX_CLUSTERED:
        raise InputError(
            f"{len(rows):,} cells are too many to make clusters of",
            matched.source.name,
            "name a column of clusters: --groupby leiden",
        )
    if len(rows) < 30:
        return np.zeros(len(rows), dtype=np.int64)
    need_igraph()
    progress("clustering cells", 0, None)
    X = sp.vstack(list(matched.source.chunks(rows=rows)), format="csr")
    mean = np.asarray(X.mean(axis=0)).ravel()
    spread = np.asarray(X.multiply(X).mean(axis=0)).ravel() - mean**2
    chosen = np.argsort(-spread / (mean + 0.1), kind="stable")[:N_VARIABLE]
    n = min(N_COMPONENTS, len(rows) - 1, len(chosen) - 1)
    vectors = TruncatedSVD(n, random_state=0).fit_transform(X[:, np.sort(chosen)])
    return clusters(np.ascontiguousarray(vectors, dtype=np.float32))


@dataclass(frozen=True)
class _Sums:
    """Per group, and over all cells: how many, and sums, squares and cells with each gene."""

    n: npt.NDArray[np.float64]
    sums: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]
    found: npt.NDArray[np.float64]


def _summed(matched: MatchedSource, codes: npt.NDArray[np.int64], n_groups: int, progress: Progress) -> _Sums:
    """Return sums over the groups; the last row is of cells without a group."""
    import scipy.sparse as sp

    source = matched.source
    shape = (n_groups + 1, source.n_vars)
    sums, squares, found = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    done = 0
    for X in source.chunks():
        here = codes[done : done + X.shape[0]]
        here = np.where(here < 0, n_groups, here)
        member = sp.csr_matrix(
            (np.ones(len(here)), (here, np.arange(len(here)))), shape=(n_groups + 1, len(here))
        )
        sums += (member @ X).toarray()
        squares += (member @ X.multiply(X)).toarray()
        found += (member @ (X > 0)).toarray()
        done += X.shape[0]
        progress("comparing groups", done, source.n_obs)
    n = np.bincount(np.where(codes < 0, n_groups, codes), minlength=n_groups + 1).astype(np.float64)
    return _Sums(n, sums, squares, found)


def _named_groups(
    matched: MatchedSource,
    labels: npt.NDArray[Any],
    index: MarkerIndex,
    key: Callable[[str], str],
    asked: NameOptions,
    progress: Progress,
) -> list[Naming]:
    """Return the names of the groups of cells, in the order of their names."""
    names = sorted({v for v in labels if v is not None}, key=lambda v: (len(v), v))
    if not names:
        raise InputError("no cell has a group", matched.source.name, "name another column: --groupby COLUMN")
    number = {v: i for i, v in enumerate(names)}
    codes = np.array([-1 if v is None else number[v] for v in labels], dtype=np.int64)
    of = _summed(matched, codes, len(names), progress)
    ids = [None if g is None else key(g) for g in matched.match.gene_ids]
    spoken = {g: n for g, n in zip(ids, matched.match.names, strict=True) if g is not None}
    usual = _background(matched)
    named = []
    for i, group in enumerate(names):
        n, rest = of.n[i], of.n.sum() - of.n[i]
        mean, share = of.sums[i] / n, of.found[i] / n
        score = BACKGROUND * _beyond(mean, usual)
        notes = []
        if rest >= 3:
            other = (of.sums.sum(axis=0) - of.sums[i]) / rest
            noise = np.maximum(of.squares[i] / n - mean**2, 0) / n
            noise += np.maximum((of.squares.sum(axis=0) - of.squares[i]) / rest - other**2, 0) / rest
            score += (mean - other) / (np.sqrt(noise) + STEADY)
        else:
            notes.append("there are no other cells: compared with the cells that ship with scvec")
        if n < 10:
            notes.append(f"only {int(n)} cells")
        score = np.where(share > FOUND, score, RARE * score)
        order = [g for g in np.argsort(-score, kind="stable")[:200] if score[g] > 0 and ids[g] is not None]
        genes = list(dict.fromkeys(str(ids[g]) for g in order))
        silent = frozenset(
            str(g) for g, s in zip(ids, share, strict=True) if g is not None and s < SILENT and n >= 10
        )
        silent -= {str(g) for g, s in zip(ids, share, strict=True) if g is not None and s >= SILENT}
        named.append(
            index.name(group, genes, tissue=asked.tissue, symbols=spoken, silent=silent, notes=notes)
        )
    return named


def _background(matched: MatchedSource) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return (n_vars,) mean log1p CP10k of the genes over the types of the shipped cells, and the spread."""
    species = matched.match.species
    table = Snapshot.open().table("background").to_pandas()
    table = table[table["species"] == species].drop_duplicates("gene").set_index("gene")
    names = list(matched.match.names)
    mean = table["mean"].reindex(names).to_numpy(dtype=np.float64)
    spread = table["spread"].reindex(names).to_numpy(dtype=np.float64)
    return mean, spread


def _beyond(
    mean: npt.NDArray[np.float64], usual: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
) -> npt.NDArray[np.float64]:
    """Return (n_vars,) how far means lie above the background; genes that it lacks count as silent there."""
    expected, spread = np.nan_to_num(usual[0]), np.nan_to_num(usual[1])
    found: npt.NDArray[np.float64] = np.maximum(mean - expected, 0) / (spread + 0.3)
    return found


def _write(
    target: Path,
    cells: Any,
    obs: pd.DataFrame,
    labels: npt.NDArray[Any],
    groups: list[Naming],
    asked: NameOptions,
    memory: int,
) -> None:
    """Write the names beside the cells, or as a table of the groups."""
    import pandas as pd

    if target.suffix != ".h5ad":
        rows = [
            {
                "group": g.group,
                "status": g.status,
                "name": g.candidates[0].label if g.candidates else "",
                "cl_id": g.candidates[0].cl_id if g.candidates else "",
                "confidence": g.candidates[0].probability if g.candidates else 0.0,
                "broad": g.broad.label if g.broad else "",
                "genes": " ".join(g.genes),
            }
            for g in groups
        ]
        write_table(pd.DataFrame(rows).set_index("group"), target)
        return
    by = {g.group: g for g in groups}

    def column(value: Callable[[Naming], Any], empty: Any) -> list[Any]:
        return [empty if v is None else value(by[v]) for v in labels]

    prefix = f"{asked.key_added}_name"
    named = pd.DataFrame(
        {
            prefix: pd.Categorical(column(_said, "")),
            f"{prefix}_cl_id": pd.Categorical(
                column(lambda g: g.candidates[0].cl_id if g.status == "named" else "", "")
            ),
            f"{prefix}_confidence": np.array(
                column(lambda g: g.candidates[0].probability if g.candidates else 0.0, np.nan),
                dtype=np.float32,
            ),
            f"{prefix}_broad": pd.Categorical(column(lambda g: g.broad.label if g.broad else "", "")),
        },
        index=obs.index,
    )
    uns = {prefix: {"groups": [g.group for g in groups], "names": [_said(g) for g in groups]}}
    write_annotated(cells, target, obs=named, uns=uns, checked=True, memory=memory)


def _said(group: Naming) -> str:
    if group.status == "named":
        return group.candidates[0].label
    return group.broad.label if group.status == "broad" and group.broad else "unknown"
