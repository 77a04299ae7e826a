"""The genes and reference cells that support a label, computed again from the values of the cells."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError, StoreError, check_range, did_you_mean
from scvec.base.resources import Closes
from scvec.base.results import Record, Report, human_odds
from scvec.base.types import CellChunk, DividesByGene, Float64, Int64, Progress, no_progress
from scvec.ingest.cells.values import VALUES
from scvec.model.classifiers import CLASSIFIERS, MEMBERS, OUT_OF_REACH, Scores
from scvec.model.known_markers import markers_of
from scvec.model.reference import ReferenceModel
from scvec.model.storage import SOURCE_COLUMN

if TYPE_CHECKING:
    from anndata import AnnData

    from scvec.base.types import Neighbors
    from scvec.ingest.cells.source import CellSource
    from scvec.model.annotation import Annotation
    from scvec.stores.store.reference_reader import StoredReference
    from scvec.stores.store.store import Store

__all__ = [
    "Explainer",
    "Explanation",
    "GeneEvidence",
    "Voter",
    "files_of",
    "generation_of",
    "same_reference",
    "weigh",
]


@dataclass(frozen=True, slots=True)
class Evidence:
    """The log odds of one class against another for n cells, as a sum of contributions.

    Attributes
    ----------
    winner, other
        (n,) int64 class numbers: the odds are those of ``winner`` against ``other``.
    best
        (n,) int64 most probable class.
    log_odds
        (n,) natural logarithm of the odds, before calibration.
    columns
        (n_genes,) int64 numbers of the genes of the cell vectors.
    by_gene
        (n, n_genes) contribution of each gene, by the head; no columns if the head has no weight or its
        encoder's vectors are not sums over genes.
    neighbors
        (n,) contribution of the labels of the nearest cells.
    constant
        (n,) contribution of the intercepts: the odds for a cell without expression.
    undivided
        (n,) contribution of the head if the vectors of its encoder are not sums over genes; else 0.
    members
        Member -> (n,) its total contribution; the sum over members is the log odds.
    scores
        Scores of the members.
    """

    winner: Int64
    other: Int64
    best: Int64
    log_odds: Float64
    columns: Int64
    by_gene: Float64
    neighbors: Float64
    constant: Float64
    undivided: Float64
    members: dict[str, Float64]
    scores: Scores

    @property
    def gap(self) -> Float64:
        """(n,) completeness error: log odds minus the sum of all terms."""
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
    """Score cells like :meth:`ReferenceModel.predict`, and return the score as a sum of contributions.

    At a fixed length of the cell vector, the head is a sum over genes. Otherwise it is decomposed by
    integrated gradients (:meth:`scvec.model.classifiers.Head.directions`).

    Parameters
    ----------
    winner
        (n,) class numbers to explain. Default: the most probable class of each cell.
    against
        Class number to compare with. Default: the second most probable class of each cell.

    Raises
    ------
    InputError
        If ``against`` is the class itself, or an excluded class.
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
            "give another label, or a broader --where",
            code="one-label",
        )

    parts = {
        name: weights[name] * (s[rows, a].astype(np.float64) - s[rows, b])
        for name, s in scores.items()
        if weights[name]
    }
    columns, by_gene = np.zeros(0, np.int64), np.zeros((len(chunk), 0))
    constant, undivided, neighbors = (np.zeros(len(chunk)) for _ in range(3))
    if weights["head"]:
        directions, intercepts = members.head.directions(seen.vectors, a, b)
        constant += weights["head"] * intercepts
        if isinstance(members.encoder, DividesByGene):
            chosen = chunk.select(members.genes) if len(members.genes) < chunk.X.shape[1] else chunk
            shares = members.encoder.shares(chosen, directions)
            used = np.flatnonzero(shares.any(axis=0))
            columns, by_gene = members.genes[used], weights["head"] * shares[:, used]
        else:
            undivided += weights["head"] * (directions * seen.vectors).sum(axis=1)
    if weights["knn"]:
        neighbors += parts["knn"]
    log_odds = z[rows, a] - z[rows, b]
    return Evidence(a, b, best, log_odds, columns, by_gene, neighbors, constant, undivided, parts, seen)


def generation_of(store: Path | str, parameters: Mapping[str, Any]) -> Store:
    """Return the version of the store that annotated the cells, or the current one if it was deleted."""
    from scvec.stores.store.store import Store

    opened = Store(store)
    number = int(parameters["generation"])
    if number == opened.generation.number:
        return opened
    try:
        return opened.at(number)
    except InputError:
        return opened


def same_reference(store: Store, parameters: Mapping[str, Any]) -> StoredReference:
    """Return the reference of an annotation.

    Raises
    ------
    StoreError
        If the store does not have the reference, or has another one with this name.
    """
    name, number = str(parameters["reference"]), int(parameters["generation"])
    fix = "give the --store that annotated the file, or annotate the cells again: scvec query"
    if name not in store.generation.manifest.references:
        what = f"the cells were annotated with reference {name!r}, which this store does not have"
        raise StoreError(what, str(store.path), fix, code="annotation-outdated")
    stored = store.reference(name)
    if not stored.has_fingerprint(str(parameters["reference_fingerprint"])):
        what = (
            f"the cells were annotated with reference {name!r} in version {number} of the store; "
            f"the current version {store.generation.number} has another reference with this name"
        )
        raise StoreError(what, str(store.path), fix, code="annotation-outdated")
    return stored


WIDTH = 100
#: Most lines about voters in the printed output.
MAX_VOTERS = 15
NO_LABEL = "(no label)"


@dataclass(frozen=True, kw_only=True)
class GeneEvidence(Record):
    """The contribution of one gene to the log odds.

    Attributes
    ----------
    gene_id, symbol
        Gene of the reference's species.
    contribution
        Mean over the cells, in natural-log odds; positive supports the label. A gene with low expression can
        support a label that does not express it.
    expression
        log1p of counts per ten thousand, mean over the cells.
    expected, expected_against
        Mean expression over the reference cells of the label, and of the other label (if cells have several
        other labels, the mean over cells).
    description, source, source_version, kind
        The best text of the knowledge base and its source, or empty. ``kind`` is ``human``, ``llm``,
        ``composed`` or ``borrowed``.
    marker_of
        Tables that list the gene as a marker of the label's type or of a subtype.
    """

    gene_id: str
    symbol: str
    contribution: float
    expression: float
    expected: float
    expected_against: float
    description: str = ""
    source: str = ""
    source_version: str = ""
    kind: str = ""
    marker_of: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Voter(Record):
    """Reference cells that voted: one cell if a cell is explained, all of a donor and label for a label.

    Attributes
    ----------
    cell
        Name of the reference cell; empty for several.
    label
        Its label; empty for a cell without one, which has no vote.
    dataset, donor
        Its file or study, and its donor or batch; empty if unknown.
    n
        Number of votes, over all cells explained.
    distance
        Euclidean distance between cell vectors (the mean for several).
    """

    cell: str
    label: str
    dataset: str
    donor: str
    n: int
    distance: float


@dataclass(frozen=True, kw_only=True)
class Explanation(Report):
    """The reasons why a cell, or the cells of a label, got their label and not another.

    ``log_odds`` is the sum of the contributions of genes (``genes_total``), ``neighbors_total``, ``constant``
    and ``undivided``, except for ``completeness_error``. All are natural-log odds of ``label`` against the
    other label, before calibration, and means over the ``n_cells`` cells.

    Attributes
    ----------
    reference, label
        The reference, and the explained label.
    cell
        Name of the cell; empty if a label is explained.
    against
        Other label -> number of cells: the second most probable label of each cell, or the requested one.
    n_cells, n_labelled
        Cells used, and cells with the label.
    confidence
        Mean calibrated probability of the label.
    genes
        The genes with the largest absolute contributions, largest first.
    n_genes, genes_total
        Number of contributing genes, and the sum of their contributions, including those in ``genes``.
    neighbors_total
        Contribution of the labels of the nearest reference cells.
    constant
        Contribution of the intercept of the head.
    undivided
        Contribution of a head whose encoder's vectors are not sums over genes (``sentence``, ``prompt``).
    members
        Member -> its total contribution; they sum to ``log_odds``.
    voters
        The reference cells that voted.
    completeness_error
        Mean absolute difference between a cell's log odds and the sum of its terms, relative to the mean
        absolute log odds (0.01 is 1%).
    parameters
        Reference, store version, space and method.
    """

    reference: str
    label: str
    cell: str
    against: dict[str, int]
    n_cells: int
    n_labelled: int
    confidence: float
    log_odds: float
    genes: list[GeneEvidence]
    n_genes: int
    genes_total: float
    neighbors_total: float
    constant: float
    undivided: float
    members: dict[str, float]
    voters: list[Voter]
    completeness_error: float
    parameters: dict[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return the explanation as lines of text."""
        if self.cell:
            other = next(iter(self.against))
            head = f"cell {self.cell}: '{self.label}' (confidence {self.confidence:.2f}), not '{other}'"
        else:
            looked = "" if self.n_cells == self.n_labelled else f"{self.n_cells:,} of "
            cells = "cell" if self.n_labelled == 1 else "cells"
            head = (
                f"label '{self.label}': {looked}{self.n_labelled:,} {cells} (mean confidence "
                f"{self.confidence:.2f}), not {self._others()}"
            )
        lines = [head, f"log odds {self.log_odds:+.2f}: {human_odds(self.log_odds)}"]
        lines += self._gene_lines()
        listed = sum(g.contribution for g in self.genes)
        rows = [(f"the other {self.n_genes - len(self.genes):,} genes", self.genes_total - listed)]
        rows += [("the nearest reference cells", self.neighbors_total), ("a constant", self.constant)]
        if self.undivided:
            rows.append(("the trained classifier (not a sum over genes)", self.undivided))
        lines += [f"  {value:+7.2f}  {name}" for name, value in rows]
        lines.append(f"  {self.log_odds:+7.2f}  total (exact to {100 * self.completeness_error:.2g}%)")
        each = (f"{CLASSIFIERS.get(name, name)} {value:+.2f}" for name, value in self.members.items())
        lines.append(f"by classifier: {', '.join(each)}")
        return [*lines, *self._voter_lines(), *self._text_lines()]

    def _others(self) -> str:
        if len(self.against) == 1:
            return f"'{next(iter(self.against))}'"
        names = [f"'{name}' ({n:,})" for name, n in self.against.items()]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        return f"each cell's second label: {', '.join(names[:4])}{more}"

    def _gene_lines(self) -> list[str]:
        if not self.genes:
            return []
        against = next(iter(self.against)) if len(self.against) == 1 else "the others"
        heads = ["gene", "here", _cut(self.label), _cut(against)]
        width = max(len(heads[0]), *(len(g.symbol) for g in self.genes))
        one, two = max(len(heads[2]), 5), max(len(heads[3]), 5)
        lines = [
            f"  {'':>7}  {'':<{width}}  mean log1p of counts per 10,000",
            f"  {'adds':>7}  {heads[0]:<{width}}  {heads[1]:>5}  {heads[2]:>{one}}  {heads[3]:>{two}}",
        ]
        for g in self.genes:
            lines.append(
                f"  {g.contribution:+7.2f}  {g.symbol:<{width}}  {g.expression:>5.2f}  "
                f"{g.expected:>{one}.2f}  {g.expected_against:>{two}.2f}"
                + (f"  known marker ({', '.join(g.marker_of[:3])})" if g.marker_of else "")
            )
        return lines

    def _voter_lines(self) -> list[str]:
        if not self.voters:
            return []
        n = sum(v.n for v in self.voters)
        head = f"{n:,} nearest reference cells:" if self.cell else f"{n:,} votes of nearest reference cells:"
        shown = self.voters[:MAX_VOTERS]
        width = max(len(_cut(v.label or NO_LABEL)) for v in shown)
        lines = [head, f"  distance  {'label':<{width}}  from"]
        for v in shown:
            who = v.cell or f"{v.n:,} of"
            origin = ", ".join(filter(None, [v.dataset, v.donor]))
            origin = f"({origin})" if origin and v.cell else origin
            lines.append(
                f"  {v.distance:8.3f}  {_cut(v.label or NO_LABEL):<{width}}  {who} {origin}".rstrip()
            )
        if len(self.voters) > len(shown):
            left = sum(v.n for v in self.voters[len(shown) :])
            lines.append(f"  and {left:,} more")
        return lines

    def _text_lines(self) -> list[str]:
        lines = []
        for g in self.genes:
            if g.description:
                source = " ".join(filter(None, [g.source, g.source_version]))
                text = f"{g.symbol} [{g.kind}, {source}] {g.description}"
                short = textwrap.shorten(text, 2 * WIDTH, placeholder=" …")
                lines += textwrap.wrap(short, WIDTH, initial_indent="  ", subsequent_indent="    ")
        return ["descriptions of these genes (all texts: scvec info genes SYMBOL):", *lines] if lines else []


def _cut(text: str, width: int = 24) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


Strings = npt.NDArray[Any]

#: Usual columns of obs with the study and the donor of a cell, the likeliest first.
DATASET_COLUMNS = ("dataset", "dataset_id", "dataset_title", "study", "study_id")
DONOR_COLUMNS = ("donor", "donor_id", "individual", "patient", "subject", "sample", "sample_id", "batch")


def origins(stored: StoredReference) -> tuple[Strings, Strings]:
    """Return (n,) data set and (n,) donor of every reference cell, or empty texts.

    The data set comes from a column of obs, else from the file; the donor from the batch key, else from obs.
    """
    obs, meta = stored.obs, stored.meta
    batch = meta["options"].get("batch_key")

    def column(names: tuple[str, ...]) -> Strings | None:
        for name in names:
            if name in obs.columns:
                values = obs[name]
                return np.where(values.isna(), "", values.astype(str)).astype(object)
        return None

    dataset = column(DATASET_COLUMNS)
    donor = column((str(batch), *DONOR_COLUMNS) if batch else DONOR_COLUMNS)
    nothing = np.full(stored.n, "", dtype=object)
    return files_of(stored) if dataset is None else dataset, nothing if donor is None else donor


def files_of(stored: StoredReference) -> Strings:
    """Return (n,) the source file of every reference cell; empty if unknown."""
    if SOURCE_COLUMN in stored.obs.columns:
        return stored.obs[SOURCE_COLUMN].astype(str).to_numpy(dtype=object)
    sources = stored.meta["sources"]
    sizes = [int(source["n_cells"]) for source in sources]
    if sum(sizes) != stored.n:  # cells were appended or deleted without a record of their files
        return np.full(stored.n, "", dtype=object)
    names = [PurePath(str(source["name"])).name for source in sources]
    return np.repeat(np.array(names, dtype=object), sizes)


def voters(
    neighbors: Neighbors,
    codes: npt.NDArray[np.int64],
    classes: list[str],
    names: Strings,
    dataset: Strings,
    donor: Strings,
    *,
    single: bool,
) -> list[Voter]:
    """Return the voters: each neighbour of a single cell, nearest first; for a label, most votes first.

    Parameters
    ----------
    codes
        (n_reference,) int64 class numbers, -1 for none.
    names
        (n_reference,) names of the reference cells.
    """
    there = neighbors.indices >= 0
    rows, distances = neighbors.indices[there], np.sqrt(np.maximum(neighbors.distances[there], 0.0))
    label = np.array([*classes, ""], dtype=object)[codes[rows]]  # -1 selects the empty text at the end
    if single:
        return [
            Voter(
                cell=str(names[r]),
                label=str(of),
                dataset=str(dataset[r]),
                donor=str(donor[r]),
                n=1,
                distance=float(d),
            )
            for r, of, d in zip(rows, label, distances, strict=True)
        ]
    groups: dict[tuple[str, str, str], list[float]] = {}
    for r, of, d in zip(rows, label, distances, strict=True):
        groups.setdefault((str(of), str(dataset[r]), str(donor[r])), []).append(float(d))
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        Voter(cell="", label=of, dataset=data, donor=who, n=len(each), distance=float(np.mean(each)))
        for (of, data, who), each in ordered
    ]


#: Most cells of a label for the means; more would hardly change them.
MAX_CELLS = 500


def read_again(annotation: Annotation) -> CellSource:
    """Open the annotated file or object again.

    Raises
    ------
    ValueError
        If the annotation is not from a query.
    InputError
        If the cells cannot be read, or have changed.
    """
    from scvec.ingest.cells.source import CellSource

    options = annotation.options
    if options is None:
        raise ValueError("the annotation is not from a query: use scvec.explain, or scvec.query with report")
    source = CellSource.open(
        annotation.data, layer=options.layer, values=options.values, memory=options.memory
    )
    if source.n_obs != len(annotation):
        what = f"the annotation has {len(annotation):,} cells, the data {source.n_obs:,}"
        source.close()
        raise InputError(what, source.name, "query the cells again", code="annotation-outdated")
    return source


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """Options of ``explain``.

    Attributes
    ----------
    cell, label
        Either the name of a cell, or a label of cells.
    against
        Label to compare with. Default: the second most probable label of each cell.
    n_genes
        Number of genes to list, those with the largest contributions.
    """

    cell: str | None = None
    label: str | None = None
    against: str | None = None
    n_genes: int = 10


class Explainer(Closes):
    """An open annotated data set for several explanations; close it, or use it as a context manager.

    Make one with :meth:`of_file` or :meth:`of_annotation`.
    """

    def __init__(
        self,
        store: Store,
        source: CellSource,
        parameters: Mapping[str, Any],
        label: npt.NDArray[np.str_],
        confidence: npt.NDArray[np.float32],
    ) -> None:
        from scvec.model.gene_fit import fitted_to
        from scvec.model.matching import by_gene_sets, match_genes, obsm_key, query_genes
        from scvec.model.resolvers import stored_resolver
        from scvec.model.storage import load_model

        self._store, self._source = store, source
        self._label, self._confidence = label, confidence
        self.parameters = dict(parameters)
        self._stored = same_reference(store, parameters)
        if obsm_key(self._stored) is not None:
            raise InputError(
                "the reference was made from vectors in obsm, so it has no genes for evidence",
                f"reference {self._stored.name}",
                "also ingest the cells by genes, under another name, and query with that reference",
                code="vectors-without-genes",
            )
        species = str(parameters.get("species", "auto"))
        matched = match_genes(source, stored_resolver(store), species=species, force=True)
        unmatched = str(parameters.get("unmatched_genes", "drop"))
        # Search like the query, so that the listed cells are those that voted.
        recall = parameters.get("recall")
        found = float(recall) if isinstance(recall, (float, np.floating)) and 0 < recall < 1 else None
        model = load_model(self._stored, exact=bool(parameters.get("exact")), recall=found)
        self._parts = []
        for part in by_gene_sets(matched, ""):
            genes = query_genes(store, self._stored, part, unmatched_genes=unmatched)
            fitted, _ = fitted_to(store.path, self._stored, model, genes.measured)
            self._parts.append((part, genes, fitted))
        self._subset = self._stored.rows_where(parameters.get("where"))
        self._origins = origins(self._stored)
        self._symbols: dict[str, str] | None = None
        self._markers: dict[str, dict[str, list[str]]] | None = None

    @classmethod
    def of_file(
        cls,
        store: Path | str,
        path: Path | str | AnnData,
        *,
        key_added: str = "scvec",
        memory: str | int | None = None,
        progress: Progress = no_progress,
    ) -> Explainer:
        """Open an annotated h5ad file or AnnData object; for errors see :func:`explain`."""
        from scvec.ingest.cells.source import CellSource
        from scvec.ingest.cells.write import read_parameters

        with ExitStack() as stack:
            progress("reading cells", 0, None)
            parameters = read_parameters(path, key_added)
            source = stack.enter_context(CellSource.open(path, memory=memory, **_values_of(parameters)))
            columns = [f"{key_added}_label", f"{key_added}_confidence"]
            if any(c not in source.obs.columns for c in columns):
                raise InputError(
                    f"obs has no {' or '.join(columns)}",
                    source.name,
                    "annotate the cells again: scvec query",
                    code="unknown-column",
                )
            label = source.obs[columns[0]].astype(str).to_numpy().astype(np.str_)
            confidence = source.obs[columns[1]].to_numpy(dtype=np.float32)
            made = cls(generation_of(store, parameters), source, parameters, label, confidence)
            stack.pop_all()  # it stays open
            return made

    @classmethod
    def of_annotation(cls, annotation: Annotation) -> Explainer:
        """Open the cells of a query again.

        Raises
        ------
        ValueError
            If the annotation is not from a query.
        InputError, StoreError
            See :func:`scvec.explain`.
        """
        with ExitStack() as stack:
            source = stack.enter_context(read_again(annotation))
            parameters = annotation.parameters
            opened, label = generation_of(annotation.store, parameters), annotation.label.astype(np.str_)
            made = cls(opened, source, parameters, label, annotation.confidence)
            stack.pop_all()  # it stays open
            return made

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    @property
    def reference_vectors(self) -> tuple[Int64, npt.NDArray[np.float32]]:
        """Rows of the reference, ascending, and their (n, embed_dim) vectors in the space of the query.

        All cells, or only the training cells if the cell space was fitted to the genes of the query.
        """
        members = self._parts[0][2].members
        if members.rows is None:
            return np.arange(self._stored.n), np.asarray(self._stored.vectors)
        return members.rows, np.array(members.index.vectors())

    def explain(self, asked: ExplainOptions) -> Explanation:
        """Explain either a cell or a label (see :func:`scvec.explain`)."""
        _one_of(asked.cell, asked.label, asked.n_genes)
        if asked.cell is not None:
            return self.cell(asked.cell, against=asked.against, n_genes=asked.n_genes)
        return self.label(str(asked.label), against=asked.against, n_genes=asked.n_genes)

    def cell(self, name: str, *, against: str | None = None, n_genes: int = 10) -> Explanation:
        """Explain the label of one cell."""
        names = self._source.obs_names
        rows = np.flatnonzero(np.array(names, dtype=object) == name)
        if len(rows) == 0:
            raise InputError(
                f"the file has no cell {name!r}", self._source.name, _near(name, names), code="unknown-cell"
            )
        return self._explain(rows[:1], 1, name, str(self._label[rows[0]]), against, n_genes)

    def label(
        self, name: str, *, against: str | None = None, n_genes: int = 10, max_cells: int = MAX_CELLS
    ) -> Explanation:
        """Explain a label by means over at most ``max_cells`` of its cells."""
        rows = np.flatnonzero(self._label == name)
        if len(rows) == 0:
            given = sorted(set(self._label.tolist()))
            raise InputError(
                f"no cell has the label {name!r}",
                self._source.name,
                _near(name, given),
                code="unknown-label",
            )
        # Where cells measured other genes: those of the part that has most of the label.
        rows, n_labelled = (
            max((rows[self._part_of(rows) == k] for k in range(len(self._parts))), key=len),
            len(rows),
        )
        looked = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), max_cells)).astype(np.int64))]
        return self._explain(looked, n_labelled, "", name, against, n_genes)

    def _part_of(self, rows: Int64) -> Int64:
        """Return (n,) the part of the cells that measured the same genes."""
        part = np.zeros(self._source.n_obs, dtype=np.int64)
        for number, (matched, _, _) in enumerate(self._parts):
            if matched.rows is not None:
                part[matched.rows] = number
        return np.asarray(part[rows])

    def _explain(
        self, rows: Int64, n_labelled: int, cell: str, label: str, against: str | None, n_genes: int
    ) -> Explanation:
        from scvec.model.storage import CODE_COLUMN

        classes = [str(c) for c in self._stored.meta["classes"]]
        winner = _number(classes, label, self._source.name)
        other = None if against is None else _number(classes, against, "--against")
        if other == winner:
            raise InputError(
                f"{label!r} is the explained label itself", "--against", "give another label of the reference"
            )
        matched, genes, model = self._parts[int(self._part_of(rows[:1])[0])]
        [chunk] = matched.chunks(genes, len(rows), rows)
        found = weigh(
            model,
            chunk,
            method=str(self.parameters.get("method", "both")),
            n_neighbors=int(self.parameters.get("n_neighbors", 15)),
            subset=self._subset,
            winner=np.full(len(rows), winner, dtype=np.int64),
            against=other,
        )
        # A tie may be decided differently on another machine; more changes mean other cells or another model.
        changed = int((found.best != winner).sum())
        if changed > 0.02 * len(rows):
            raise InputError(
                f"the values of {changed:,} of {len(rows):,} cells no longer give the label {label!r}",
                self._source.name,
                "they changed after the annotation: annotate the cells again with scvec query",
                code="annotation-outdated",
            )
        names, numbers = np.unique(found.other, return_counts=True)
        order = np.argsort(-numbers, kind="stable")
        log_odds = float(found.log_odds.mean())
        size = max(float(np.abs(found.log_odds).mean()), 1e-9)
        return Explanation(
            reference=self._stored.name,
            label=label,
            cell=cell,
            against={classes[names[i]]: int(numbers[i]) for i in order},
            n_cells=len(rows),
            n_labelled=n_labelled,
            confidence=float(self._confidence[rows].mean()),
            log_odds=log_odds,
            genes=self._gene_evidence(found, chunk, winner, n_genes),
            n_genes=int((found.by_gene != 0).any(axis=0).sum()),
            genes_total=float(found.by_gene.sum(axis=1).mean()),
            neighbors_total=float(found.neighbors.mean()),
            constant=float(found.constant.mean()),
            undivided=float(found.undivided.mean()),
            members={name: float(part.mean()) for name, part in found.members.items()},
            voters=voters(
                found.scores.neighbors,
                self._stored.obs[CODE_COLUMN].to_numpy(dtype=np.int64),
                classes,
                self._stored.obs.index.astype(str).to_numpy(dtype=object),
                *self._origins,
                single=bool(cell),
            ),
            completeness_error=float(np.abs(found.gap).mean()) / size,
            parameters={
                k: self.parameters.get(k)
                for k in ("scvec", "reference", "generation", "space", "encoder", "method", "where")
            },
        )

    def _gene_evidence(
        self, found: Evidence, chunk: CellChunk, winner: int, n_genes: int
    ) -> list[GeneEvidence]:
        from scvec.model.storage import class_statistics, genes_of

        total = found.by_gene.mean(axis=0)
        top = np.lexsort((np.arange(len(total)), -np.abs(total)))[:n_genes]
        top = top[total[top] != 0]
        if len(top) == 0:
            return []
        all_genes = genes_of(self._stored)
        columns = found.columns[top]
        gene_ids = [str(all_genes[g]) for g in columns]
        with self._store.knowledge() as kb:
            if self._symbols is None:  # read once, because reading all genes is the slowest step
                table = kb.genes()
                self._symbols = dict(zip(table["gene_id"], table["symbol"], strict=True))
            texts = kb.descriptions(gene_ids)
            terms = [str(term) for term in self._stored.meta["ontology"]["terms"]]
            if self._markers is None:
                self._markers = markers_of(kb, terms)
            known = self._markers[terms[winner]]
        expression = np.asarray(chunk.X[:, columns].mean(axis=0)).ravel()
        means = class_statistics(self._stored.tensors)[0][:, columns]
        expected, other = means[found.winner].mean(axis=0), means[found.other].mean(axis=0)
        genes = []
        for i, g in enumerate(top):
            text = texts.get(gene_ids[i])
            genes.append(
                GeneEvidence(
                    gene_id=gene_ids[i],
                    symbol=str(self._symbols.get(gene_ids[i]) or gene_ids[i]),
                    contribution=float(total[g]),
                    expression=float(expression[i]),
                    expected=float(expected[i]),
                    expected_against=float(other[i]),
                    description=text.text if text else "",
                    source=text.source if text else "",
                    source_version=text.source_version if text else "",
                    kind=text.kind if text else "",
                    marker_of=tuple(known.get(str(self._symbols.get(gene_ids[i], "")).upper(), ())),
                )
            )
        return genes


def _number(classes: list[str], label: str, where: str) -> int:
    if label not in classes:
        raise InputError(
            f"the reference has no label {label!r}", where, _near(label, classes), code="unknown-label"
        )
    return classes.index(label)


def _near(name: str, known: Sequence[str]) -> str:
    listed = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
    return f"{did_you_mean(name, known[:20_000], 2)}known: {listed}"


def _values_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the layer and the scale of the values that the query used."""
    values = str(parameters.get("values", "auto"))
    return {"layer": parameters.get("layer"), "values": values if values in VALUES else "auto"}


def _one_of(cell: str | None, label: str | None, n_genes: int) -> None:
    if (cell is None) == (label is None):
        raise InputError("give either a cell or a label", "", "give --cell ID or --label NAME")
    check_range("--n-genes", n_genes, 0)
