"""``scvec name``: names for groups of cells, or for marker lists, without a reference."""

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
from scvec.base.results import Report
from scvec.base.species import SPECIES
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
class NameOptions(LlmOptions):
    """How groups of cells are named; ``llm`` and what follows it are those of :class:`LlmOptions`.

    Attributes
    ----------
    groupby
        Column of obs with the groups; a column of clusters where there is one, else clusters are made.
    tissue
        Tissue of the cells, as people write it: ``lung``, ``PBMC``. Types known in it are preferred.
    species
        ``auto``, or a species whose genes the knowledge base has.
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
        super().__post_init__()
        if self.only not in (None, "novel"):
            raise InputError(f"only is novel, not {self.only!r}", "--only", "write --only novel")
        if len(self.tissue) > 200:
            raise InputError("the tissue is longer than 200 letters", "--tissue", "give a word, such as lung")


@dataclass(frozen=True, kw_only=True)
class NamesReport(Report):
    """Names of groups, best first; ``llm`` is the outcome of asking a language model."""

    groups: list[Naming]
    n_terms: int
    tissue: str = ""
    output: str = ""
    llm: LiveReport | None = None

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        lines = [f"{len(self.groups)} groups, by the markers of {self.n_terms:,} types"]
        for group in self.groups:
            lines += group.lines()
        if self.llm is not None:
            lines += self.llm.lines()
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

    The specific genes of each group are compared with the markers of all Cell Ontology terms: those that ship
    with scvec, and the tables that :func:`scvec.ingest_markers` read. The score of a term has learned weights
    (docs/names.md). It rises with rare markers, with markers in the tissue, and with the scores of the terms
    above and below it. It falls with markers that were measured and are absent.

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
    with knowledge(store) as (kb, resolver):
        key = ortholog_key(resolver)
        index = marker_index(kb, resolver, key)
        if markers is not None:
            lists = read_marker_lists(Path(markers))
            groups = _named_lists(lists, index, resolver, key, asked)
            places = [(tissue or asked.tissue, kind or asked.species) for _, _, tissue, kind, _ in lists]
            told = consult(store, kb, resolver, groups, places, asked, progress)
            return NamesReport(
                groups=told.groups,
                n_terms=index.n_terms,
                tissue=asked.tissue,
                llm=told.live,
                notes=list(told.notes),
            )
        progress("reading cells", 0, None)
        with CellSource.open(
            cells, layer=asked.layer, memory=asked.memory, columns=True, values=asked.values
        ) as source:
            matched = match_genes(source, resolver, species=asked.species, force=asked.force)
            if matched.match.species not in resolver.species:
                fix = "markers are of known genes: name cells of such genes by a reference (scvec query)"
                raise no_knowledge(matched.match.species, source.name, fix)
            obs = source.obs
            labels, made = _groups(obs, matched, asked, progress)
            groups = _named_groups(matched, labels, index, key, asked, progress)
            places = [(asked.tissue, matched.match.species)] * len(groups)
            told = consult(store, kb, resolver, groups, places, asked, progress)
            groups = told.groups
            if target is not None and not asked.dry_run:
                _write(target, cells, obs, labels, groups, asked, source.memory)
            notes = [*source.notes, *matched.notes, *made, *index.tissue_note(asked.tissue), *told.notes]
            notes = list(dict.fromkeys(notes))
    return NamesReport(
        groups=groups,
        n_terms=index.n_terms,
        tissue=asked.tissue,
        output="" if target is None or asked.dry_run else str(target),
        llm=told.live,
        notes=notes,
    )


@contextmanager
def knowledge(store: Path | str | None) -> Iterator[tuple[KnowledgeBase, GeneResolver]]:
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
        if species and species not in SPECIES:
            note = f"there are no markers of {species[:40]}: genes of human and mouse are known"
            named.append(Naming(group, (), None, "unknown", tuple(genes[:10]), (note,)))
            continue
        known, left = listed_genes(genes, species or asked.species, resolver, index, key)
        lacking, _ = listed_genes(absent, species or asked.species, resolver, index, key)
        notes = [f"{len(left)} of {len(genes)} names are not known genes, such as {left[0]}"] if left else []
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
        (n,) the group of each cell; None for those that are only compared with.
    """
    key = ortholog_key(resolver)
    asked = NameOptions(tissue=tissue)
    return _named_groups(matched, labels, marker_index(kb, resolver, key), key, asked, progress)


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
    """Return the answer of a language model about a group, for its row."""
    said = group.llm or {}
    return {
        "llm": said.get("model", ""),
        "llm_votes": said.get("votes", 0),
        "llm_agreement": said.get("agreement", float("nan")),
        "llm_cl_id": said.get("cl_id", ""),
        "llm_genes": " ".join(said.get("genes", ())),
        "llm_reason": said.get("reason", ""),
    }
