"""``scvec name``: name clusters of cells or marker lists, without a reference."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.options import options_of, takes_options
from scvec.base.results import WITHOUT_DRY_RUN, NextStep, Report
from scvec.base.types import Progress, no_progress
from scvec.celltypes.markers import MarkerList, read_marker_lists
from scvec.celltypes.naming import MarkerIndex, Naming, name_columns
from scvec.ingest.cells.source import CellSource
from scvec.ingest.cells.write import check_output, write_annotated, write_table
from scvec.model.classifiers import clusters, need_igraph
from scvec.model.known_markers import listed_genes, marker_index, ortholog_key
from scvec.model.matching import MatchedSource, match_genes
from scvec.model.resolvers import no_knowledge, resolver_of, snapshot_resolver
from scvec.stores.knowledge.snapshot import Snapshot
from scvec.workflows.live import LiveReport
from scvec.workflows.name_llm import LlmOptions, consult

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from scvec.model.resolvers import GeneResolver
    from scvec.stores.knowledge.knowledge import KnowledgeBase

__all__ = ["NameOptions", "NamesReport", "knowledge", "name", "name_groups"]

#: Columns of obs with clusters, used if ``--groupby`` is not given.
CLUSTERS = ("leiden", "louvain", "seurat_clusters", "clusters", "cluster")
#: A gene detected in less than this fraction of a group's cells gets the weight ``RARE``.
FOUND, RARE = 0.2, 0.3
#: Added to the standard error of a difference of means (log1p CP10k), to stabilise small groups.
STEADY = 0.05
#: Weight of the difference from the shipped background, relative to the difference from the other groups.
BACKGROUND = 0.2
#: A marker detected in less than this fraction of a group's cells is evidence against a term.
SILENT = 0.02
#: Most cells for clustering; numbers of principal components and of variable genes.
MAX_CLUSTERED, N_COMPONENTS, N_VARIABLE = 200_000, 30, 2000
#: Resolution of Leiden, as the default of scanpy; docs/names.md compares others.
RESOLUTION = 1.0


@dataclass(frozen=True, kw_only=True)
class NameOptions(LlmOptions):
    """Options of ``name``; ``llm`` and the following ones are those of :class:`LlmOptions`.

    Attributes
    ----------
    groupby
        Column of obs with the groups. Default: a column of clusters, else scvec clusters the cells.
    tissue
        Tissue of the cells, such as ``lung`` or ``PBMC``. Cell types of this tissue are preferred.
    species
        ``auto``, or a species of the knowledge base.
    only
        ``novel``: name only the cells that ``scvec query`` called novel; the others serve as background.
    layer, values, memory
        See :func:`scvec.query`.
    key_added
        Prefix of the output columns, and of the columns of ``scvec query``.
    force
        Continue even if few genes match.
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
        super().__post_init__()
        if self.only not in (None, "novel"):
            raise InputError(f"unknown value of --only: {self.only!r}", "--only", "give --only novel")
        if len(self.tissue) > 200:
            raise InputError("the tissue has more than 200 letters", "--tissue", "give a word, such as lung")


@dataclass(frozen=True, kw_only=True)
class NamesReport(Report):
    """Names of groups, best first.

    Attributes
    ----------
    column
        Column of obs for the names; empty for marker lists.
    only
        ``novel`` if only novel cells were named.
    llm
        Result of the requests to a language model.
    """

    groups: list[Naming]
    n_terms: int
    tissue: str = ""
    column: str = ""
    only: str = ""
    output: str = ""
    llm: LiveReport | None = None

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        lines = [
            f"{len(self.groups)} groups, compared with the markers of {self.n_terms:,} cell types (a number "
            "is the probability of this type, or of a broader or narrower one)"
        ]
        for group in self.groups:
            lines += group.lines()
        if self.llm is not None:
            lines += self.llm.lines()
        if self.output:
            lines.append(f"written to {self.output}")
        return lines

    @property
    def next_step(self) -> NextStep | None:
        """The output, if there is none; more markers for groups without a name; a reference of the names."""
        if self.llm is not None and self.llm.dry_run:
            return WITHOUT_DRY_RUN
        if self.column and not self.output:
            return NextStep(("-o", "named.h5ad"), again=True)
        if any(group.said == "unknown" for group in self.groups):
            tissue = ("--tissue", self.tissue) if self.tissue else ()
            return NextStep(("ingest", "markers", "--source", "cellguide", *tissue))
        several = len({group.said for group in self.groups}) > 1
        if several and self.output.endswith(".h5ad") and not self.only:
            return NextStep(("ingest", "cells", self.output, "--name", "mine", "--label-key", self.column))
        return None


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
    """Name groups of cells, or published marker lists, with known markers of cell types.

    The specific genes of each group are compared with the markers of all Cell Ontology terms: the shipped
    markers, and the tables of :func:`scvec.ingest_markers`. The score of a term has learned weights
    (docs/names.md). It increases with rare markers, with markers of the tissue, and with the scores of parent
    and child terms. It decreases with markers that were measured but are absent.

    Parameters
    ----------
    store
        Folder of the store. Without a store, or if it has no markers yet, the shipped markers are used.
    cells
        A file or AnnData object, see :func:`scvec.query`; or None, with ``markers``.
    markers
        A table with the columns ``group, genes`` and, optionally, ``tissue, species``.
    output
        ``.h5ad`` (the input with ``scvec_name`` columns) or ``.csv`` (one row per group); needs ``cells``.

    Raises
    ------
    InputError
        Neither or both of ``cells`` and ``markers`` are given, or one of them cannot be used.
    """
    asked = options_of(NameOptions, options, keywords)
    if (cells is None) == (markers is None):
        raise InputError("give either cells or marker lists", "", "give a file of cells, or --markers FILE")
    target = (
        None if output is None else check_output(output, cells if isinstance(cells, str | Path) else None)
    )
    with knowledge(store) as (kb, resolver):
        key = ortholog_key(resolver)
        index = marker_index(kb, resolver, key)
        if markers is not None:
            lists = read_marker_lists(Path(markers))
            groups = _named_lists(lists, index, resolver, key, asked)
            places = [(tissue or asked.tissue, kind or asked.species) for _, _, tissue, kind, _ in lists]
            consulted = consult(store, kb, resolver, groups, places, asked, progress)
            return NamesReport(
                groups=consulted.groups,
                n_terms=index.n_terms,
                tissue=asked.tissue,
                llm=consulted.live,
                notes=list(consulted.notes),
            )
        progress("reading cells", 0, None)
        with CellSource.open(
            cells, layer=asked.layer, memory=asked.memory, columns=True, values=asked.values
        ) as source:
            matched = match_genes(source, resolver, species=asked.species, force=asked.force)
            if matched.match.species not in resolver.species:
                fix = "markers need known genes; annotate these cells with a reference (scvec query)"
                raise no_knowledge(matched.match.species, source.name, fix)
            obs = source.obs
            labels, made = _groups(obs, matched, asked, progress)
            groups = _named_groups(matched, labels, index, key, asked, progress)
            places = [(asked.tissue, matched.match.species)] * len(groups)
            consulted = consult(store, kb, resolver, groups, places, asked, progress)
            groups = consulted.groups
            if target is not None and not asked.dry_run:
                _write(target, cells, obs, labels, groups, asked, source.memory)
            notes = [*source.notes, *matched.notes, *made, *index.tissue_note(asked.tissue), *consulted.notes]
            notes = list(dict.fromkeys(notes))
    return NamesReport(
        groups=groups,
        n_terms=index.n_terms,
        tissue=asked.tissue,
        column=f"{asked.key_added}_name",
        only=asked.only or "",
        output="" if target is None or asked.dry_run else str(target),
        llm=consulted.live,
        notes=notes,
    )


@contextmanager
def knowledge(store: Path | str | None) -> Iterator[tuple[KnowledgeBase, GeneResolver]]:
    """Yield the knowledge base of a store, or else the shipped one, and its gene resolver."""
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
        yield kb, snapshot_resolver(kb)


def _named_lists(
    lists: list[MarkerList],
    index: MarkerIndex,
    resolver: GeneResolver,
    key: Callable[[str], str],
    asked: NameOptions,
) -> list[Naming]:
    """Return the names of published marker lists."""
    named = []
    for group, genes, tissue, species, absent in lists:
        if species and species not in resolver.species:
            loaded = ", ".join(resolver.species)
            note = f"the knowledge base has no genes of {species[:40]}: give genes of {loaded}"
            named.append(Naming(group, (), None, "unknown", tuple(genes[:10]), (note,)))
            continue
        known, left = listed_genes(genes, species or asked.species, resolver, index, key)
        lacking, _ = listed_genes(absent, species or asked.species, resolver, index, key)
        notes = [f"{len(left)} of {len(genes)} names are unknown genes, such as {left[0]}"] if left else []
        place = tissue or asked.tissue
        notes += index.tissue_note(place)
        silent = frozenset(lacking) - set(known)
        spoken = {**lacking, **known}
        named.append(index.name(group, list(known), tissue=place, symbols=spoken, silent=silent, notes=notes))
    return named


def name_groups(
    kb: KnowledgeBase,
    resolver: GeneResolver,
    matched: MatchedSource,
    labels: npt.NDArray[Any],
    tissue: str,
    progress: Progress = no_progress,
) -> list[Naming]:
    """Return the names of the groups of an open file.

    Parameters
    ----------
    labels
        (n,) the group of each cell; None for background cells.
    """
    key = ortholog_key(resolver)
    asked = NameOptions(tissue=tissue)
    return _named_groups(matched, labels, marker_index(kb, resolver, key), key, asked, progress)


def _groups(
    obs: pd.DataFrame, matched: MatchedSource, asked: NameOptions, progress: Progress
) -> tuple[npt.NDArray[Any], list[str]]:
    """Return (n,) the group of each cell (None for background cells), and notes."""
    column, notes = asked.groupby, []
    if column is None:
        column = next((c for c in CLUSTERS if c in obs.columns), None)
        if column is not None:
            notes.append(f"used the groups of obs['{column}']")
    if column is not None and column not in obs.columns:
        listed = ", ".join(map(str, obs.columns[:12]))
        raise InputError(
            f"obs has no column {column!r}",
            "--groupby",
            f"it has: {listed}; or omit --groupby, and scvec clusters the cells",
            code="unknown-column",
        )
    wanted = np.ones(len(obs), dtype=bool)
    if asked.only == "novel":
        status = f"{asked.key_added}_status"
        if status not in obs.columns:
            raise InputError(
                f"obs has no column {status!r}, so the novel cells are unknown",
                "--only novel",
                "annotate the cells first: scvec query",
                code="unknown-column",
            )
        wanted = (obs[status].astype(str) == "novel").to_numpy()
        if not wanted.any():
            raise InputError("no cell is novel", matched.source.name, "omit --only")
    if column is not None:
        labels = obs[column].astype(object).where(obs[column].notna(), None).to_numpy(dtype=object)
        labels = np.array([None if v is None else str(v) for v in labels], dtype=object)
    elif asked.only == "novel" and f"{asked.key_added}_label" in obs.columns:
        # As `query --name-novel`: cells of one unknown type mostly have the same nearest label.
        nearest = obs[f"{asked.key_added}_label"].astype(str).to_numpy()
        labels = np.array([f"novel, like {label}" for label in nearest], dtype=object)
    else:
        rows = np.flatnonzero(wanted)
        made = _clustered(matched, rows, progress)
        labels = np.full(len(obs), None, dtype=object)
        labels[rows] = [f"cluster {c + 1}" for c in made]
        notes.append(f"clustered the cells into {len(set(made))} groups (--groupby uses a column instead)")
    labels[~wanted] = None
    return labels, notes


def _clustered(matched: MatchedSource, rows: npt.NDArray[np.int64], progress: Progress) -> Any:
    """Return the cluster of each row: Leiden on principal components of the most variable genes."""
    import scipy.sparse as sp
    from sklearn.decomposition import TruncatedSVD

    if len(rows) > MAX_CLUSTERED:
        raise InputError(
            f"{len(rows):,} cells are too many for clustering by scvec",
            matched.source.name,
            "give a column of clusters, such as --groupby leiden",
        )
    if len(rows) < 30:
        return np.zeros(len(rows), dtype=np.int64)
    need_igraph("clustering the cells", "--groupby", "give a column of groups: --groupby COLUMN")
    progress("clustering cells", 0, None)
    X = sp.vstack(list(matched.source.chunks(rows=rows)), format="csr")
    mean = np.asarray(X.mean(axis=0)).ravel()
    spread = np.asarray(X.multiply(X).mean(axis=0)).ravel() - mean**2
    chosen = np.argsort(-spread / (mean + 0.1), kind="stable")[:N_VARIABLE]
    n = min(N_COMPONENTS, len(rows) - 1, len(chosen) - 1)
    vectors = TruncatedSVD(n, random_state=0).fit_transform(X[:, np.sort(chosen)])
    return clusters(np.ascontiguousarray(vectors, dtype=np.float32), RESOLUTION)


@dataclass(frozen=True)
class _Sums:
    """Per group and for all cells: cells, and for each gene the sum, sum of squares and cells above 0."""

    n: npt.NDArray[np.float64]
    sums: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]
    found: npt.NDArray[np.float64]


def _summed(matched: MatchedSource, codes: npt.NDArray[np.int64], n_groups: int, progress: Progress) -> _Sums:
    """Return sums over the groups; the last row is for cells without a group."""
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
        raise InputError("no cell has a group", matched.source.name, "give another column: --groupby COLUMN")
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
            notes.append("all cells are in this group: compared with the shipped background cells")
        if n < 10:
            notes.append(f"the group has only {int(n)} cells")
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
    """Return (n_vars,) mean and spread of log1p CP10k over the cell types of the shipped background."""
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
    """Return (n_vars,) means relative to the background; a gene missing in the background counts as 0."""
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
    """Write the names to a copy of the cells, or as a table of the groups."""
    import pandas as pd

    if target.suffix != ".h5ad":
        rows = [
            {
                "group": g.group,
                "status": g.status,
                "name": g.said,
                "cl_id": g.cl_id,
                "confidence": g.confidence,
                "broad": g.broad.label if g.broad else "",
                "candidates": "; ".join(f"{c.label} {c.probability:.2f}" for c in g.candidates[:3]),
                "genes": " ".join(g.genes),
                **({} if asked.llm is None else _llm_columns(g)),
            }
            for g in groups
        ]
        write_table(pd.DataFrame(rows).set_index("group"), target)
        return
    prefix = f"{asked.key_added}_name"
    named = pd.DataFrame(name_columns(groups, labels, prefix), index=obs.index)
    uns = {prefix: {"groups": [g.group for g in groups], "names": [g.said for g in groups]}}
    if asked.llm is not None:
        uns[prefix]["llm"] = [json.dumps(g.llm, ensure_ascii=False) for g in groups]
    write_annotated(cells, target, obs=named, uns=uns, checked=True, memory=memory)


def _llm_columns(group: Naming) -> dict[str, Any]:
    """Return the columns with the answer of a language model about a group."""
    said = group.llm or {}
    return {
        "llm": said.get("model", ""),
        "llm_votes": said.get("votes", 0),
        "llm_agreement": said.get("agreement", float("nan")),
        "llm_cl_id": said.get("cl_id", ""),
        "llm_genes": " ".join(said.get("genes", ())),
        "llm_reason": said.get("reason", ""),
    }
