"""``scvec query``: annotate new cells with a reference."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scvec.base import arrays
from scvec.base.arrays import coded
from scvec.base.errors import InputError, ResourceError
from scvec.base.options import options_of, takes_options
from scvec.base.resources import check_device, expanded
from scvec.base.results import Stages
from scvec.base.types import Int64, Progress, no_progress
from scvec.engines import check_engine, predict_cells
from scvec.ingest.cells.cell_vectors import VectorSource, open_cells
from scvec.ingest.cells.write import check_output, write_annotated, write_tables
from scvec.model.annotation import Annotation, Judged, judge, provenance
from scvec.model.classifiers import clusters, majority, need_igraph
from scvec.model.gene_fit import fitted_to, rotation
from scvec.model.gene_members import GeneSide, gene_side
from scvec.model.matching import (
    MatchedSource,
    by_gene_sets,
    match_genes,
    obsm_key,
    query_genes,
    reference_share,
)
from scvec.model.query_options import QueryOptions
from scvec.model.reference import Prediction
from scvec.model.resolvers import stored_resolver
from scvec.model.storage import load_model
from scvec.report.write_report import check_report, write_report
from scvec.stores.index.shards import ShardedIndex
from scvec.stores.store.store import Store
from scvec.workflows.query_many import JointAnnotation, query_many

if TYPE_CHECKING:
    from anndata import AnnData

    from scvec.ingest.cells.source import CellSource
    from scvec.model.reference import ReferenceModel
    from scvec.model.resolvers import GeneMap
    from scvec.stores.store.reference_reader import StoredReference

__all__ = ["annotate", "only_reference", "query", "query_one"]

#: Formats of an output.
OUTPUTS = (".h5ad", ".csv", ".parquet")


@takes_options(QueryOptions)
def query(
    store: Path | str,
    cells: Path | str | AnnData,
    options: QueryOptions | None = None,
    *,
    progress: Progress = no_progress,
    **keywords: Any,
) -> Annotation | JointAnnotation:
    """Annotate the cells of a file with a reference, or with several together.

    Options are keywords, such as ``scvec.query("store", "new.h5ad", reference="pancreas")``, or an object
    that several queries share.

    Parameters
    ----------
    store
        Folder of the store.
    cells
        An h5ad file, a zarr folder of anndata, an .h5 file or a folder (``matrix.mtx``, ``features.tsv``,
        ``barcodes.tsv``) of Cell Ranger, or an AnnData object; never changed.
    options
        :class:`scvec.QueryOptions`.
    **keywords
        Fields of :class:`scvec.QueryOptions`. Keywords override ``options``.

    Returns
    -------
    Annotation or JointAnnotation
        With one reference, or with several.

    Raises
    ------
    InputError
        If the file or an option cannot be used.
    StoreError
        If the store is damaged.
    NetworkError
        If the Ray cluster is unreachable, or loses a part that cannot be restored.
    """
    options = options_of(QueryOptions, options, keywords)
    if isinstance(cells, str | Path):
        cells = expanded(cells)
    if isinstance(options.reference, tuple):
        target, _ = _checked(options, cells)
        return query_many(query_one, store, cells, options, target, progress=progress)
    return query_one(store, cells, options, progress=progress)


def query_one(
    store: Path | str,
    cells: Path | str | AnnData,
    options: QueryOptions,
    *,
    progress: Progress = no_progress,
) -> Annotation:
    """Annotate cells with one reference; see :func:`query`."""
    target, page = _checked(options, cells)
    stages = Stages()
    with stages("open store"):
        opened = Store(store)
        stored = opened.reference(only_reference(opened, options.one_reference))
        subset = stored.rows_where(options.where)
    with ExitStack() as files:
        with stages("read"):
            progress("reading cells", 0, None)
            source, fits, side, read = _read(files, cells, options, stored, columns=page is not None)
        ready = _prepare(opened, fits, source, options, stages, progress)
        beside = _beside(files, cells, opened, side, options, stages, progress)
        used, clipped = _clipped(options, stored.n if subset is None else len(subset))
        with stages("encode and search"):
            prediction = _predict(opened, stored, ready, used, subset, progress)
            if beside.ready is not None and side is not None:
                of_genes = _predict(opened, stored, beside.ready, used, subset, progress)
                prediction = side.joint.join(prediction, of_genes, options.coverage)
        with stages("judge"):
            annotation = _judge(opened, stored, ready, used, prediction, beside.ready)
        notes = [*source.notes, *read, *beside.notes, *ready.notes, *clipped, *annotation.notes]
        annotation = annotation.changed(notes=list(dict.fromkeys(notes)), seconds=stages.seconds)
        annotation = annotation.changed(store=store, data=cells, options=options)
        if options.majority_vote:
            with stages("cluster"):
                annotation = _clustered(annotation, progress)
        if options.name_novel:
            with stages("name"):
                annotation = _named(opened, beside.ready or ready, annotation, progress)
        if target is not None:
            with stages("write"):
                annotation = _write(annotation, target, source.memory, progress)
        if page is not None:
            with stages("report"):
                annotation = write_report(annotation, page, stored=stored, obs=source.obs, progress=progress)
    return annotation


class _Part(NamedTuple):
    """Cells of a query with the same measured genes, matched to the genes of a reference.

    Attributes
    ----------
    share
        Fraction (0-1) of the genes of the reference's cell vectors that they measured.
    fitted
        Whether the model was fitted to their genes.
    """

    matched: MatchedSource
    genes: GeneMap
    model: ReferenceModel
    share: float
    fitted: bool


class _Prepared(NamedTuple):
    """A reference, and the cells of a query: all, and in parts that measured the same genes."""

    fits: StoredReference | GeneSide
    matched: MatchedSource
    parts: list[_Part]
    notes: list[str]


def _checked(options: QueryOptions, cells: Any) -> tuple[Path | None, Path | None]:
    """Return the paths of output and report; raise InputError if this machine cannot run the query."""
    check_device(options.device)
    check_engine(options.engine, options.ray_address)
    if options.majority_vote:
        need_igraph()
    page = check_report(options.report, cells)
    if options.output is None:
        return None, page
    target = check_output(options.output, cells if isinstance(cells, str | Path) else None)
    if target.suffix not in OUTPUTS:
        what = f"unknown output format {target.suffix!r}" if target.suffix else "the output has no suffix"
        raise InputError(
            what,
            str(target),
            f"use the suffix {', '.join(OUTPUTS[:-1])} or {OUTPUTS[-1]}",
            code="output-format",
        )
    return target, page


class _Read(NamedTuple):
    """Cells of a query, the model that fits their values, the genes used beside their vectors, and notes."""

    source: CellSource
    fits: StoredReference | GeneSide
    side: GeneSide | None
    notes: list[str]


def _read(
    files: ExitStack, cells: Any, options: QueryOptions, stored: StoredReference, *, columns: bool
) -> _Read:
    """Open cells as vectors if the reference has vectors, else by their genes."""
    genes = None if options.vectors_only or options.method != "both" else gene_side(stored)
    keywords: dict[str, Any] = {"layer": options.layer, "memory": options.memory, "values": options.values}
    notes: list[str] = []
    try:
        source = open_cells(cells, obsm_key(stored), columns=columns, **keywords)
    except InputError as error:
        if genes is None or error.code != "unknown-obsm":
            raise
        notes.append(f"{error.what}: labels are by the genes alone")
        source = open_cells(cells, None, columns=columns, **keywords)
    files.enter_context(source)
    if isinstance(source, VectorSource):
        return _Read(source, stored, genes, notes)
    return _Read(source, genes or stored, None, notes)


class _Beside(NamedTuple):
    """Genes of a query that are used beside its vectors, None without, and notes."""

    ready: _Prepared | None
    notes: list[str]


def _beside(
    files: ExitStack,
    cells: Any,
    opened: Store,
    side: GeneSide | None,
    options: QueryOptions,
    stages: Stages,
    progress: Progress,
) -> _Beside:
    """Return what gene-based members need of the cells beside their vectors."""
    if side is None:
        return _Beside(None, [])
    try:
        with stages("read"):
            source = files.enter_context(
                open_cells(
                    cells, columns=False, layer=options.layer, memory=options.memory, values=options.values
                )
            )
        ready = _prepare(opened, side, source, options, stages, progress)
    except (InputError, ResourceError) as error:
        return _Beside(None, [f"genes are not used beside the vectors: {error.what}"])
    warnings = [note for note in (*source.notes, *ready.notes) if note.startswith("warning: ")]
    return _Beside(ready, [f"genes are used beside the vectors: {ready.matched.summary}", *warnings])


def _prepare(
    opened: Store,
    stored: StoredReference | GeneSide,
    source: CellSource,
    options: QueryOptions,
    stages: Stages,
    progress: Progress,
) -> _Prepared:
    """Match the genes of a query to the genes of the reference, and load the model for them."""
    device, force = options.device, options.force

    def genes_of(one: MatchedSource) -> GeneMap:
        unmatched = options.unmatched_genes
        return query_genes(
            opened, stored, one, unmatched_genes=unmatched, device=device, force=force, progress=progress
        )

    with stages("genes"):
        matched = match_genes(
            source,
            stored_resolver(opened),
            species=options.species,
            force=force,
            reference=stored.meta["species"],
        )
        alike = by_gene_sets(matched, "each is annotated by the genes that it measured")
        if len(alike) > 1 and source.state.candidates:
            genes_of(matched)  # all cells together decide the scale of the values
        each = [(one, genes_of(one)) for one in alike]
    with stages("load reference"):
        # On a cluster, the shards have the index; only labels and weights are loaded here.
        held = options.engine == "local" or isinstance(stored, GeneSide)
        index = None if held else ShardedIndex(stored.dim, [(0, stored.n)])  # type: ignore[union-attr]
        exact, recall = options.exact, options.recall
        ingested = (
            stored.model
            if isinstance(stored, GeneSide)
            else load_model(stored, device=device, llm=options.llm, index=index, exact=exact, recall=recall)
        )
    parts, notes = [], list(alike[0].notes)
    for one, genes in each:
        share, few = reference_share(one, genes.measured[ingested.members.vector_genes], force=force)
        with stages("fit to genes"):
            model, note = fitted_to(opened.path, stored, ingested, genes.measured, progress=progress)
        added = [*genes.notes, *few, *([note] if note else [])]
        notes += [f"{one.name}: {text}" for text in added] if one.name else added
        fitted = model is not ingested or isinstance(stored, GeneSide)
        parts.append(_Part(one, genes, model, share, fitted))
    return _Prepared(stored, matched, parts, notes)


def _clipped(options: QueryOptions, available: int) -> tuple[QueryOptions, list[str]]:
    """Return the options with at most as many neighbours as reference cells, and notes."""
    wanted = options.n_neighbors
    if wanted <= available:
        return options, []
    note = f"n_neighbors reduced from {wanted} to {available}, the number of reference cells"
    return replace(options, n_neighbors=available), [note]


def _predict(
    opened: Store,
    stored: StoredReference,
    ready: _Prepared,
    options: QueryOptions,
    subset: Int64 | None,
    progress: Progress,
) -> Prediction:
    """Encode the cells, search their neighbours and combine the classifiers."""
    arrays.trim()  # return the memory of reading, because the chunks need memory
    found = []
    for part in ready.parts:
        prediction = predict_cells(
            part.model,
            part.matched,
            part.genes,
            options,
            reference=(opened, stored),
            fitted=part.fitted,
            subset=subset,
            progress=progress,
        )
        arrays.trim()  # return the memory of the chunks
        if part.matched.rows is None:
            return prediction
        # One space for all cells: maps and clusters compare them.
        turned = rotation(ready.fits, part.model, ready.parts[0].model)
        if turned is not None:
            vectors = np.empty((len(prediction), turned.shape[1]), dtype=np.float32)
            for rows in arrays.blocks(len(prediction)):
                vectors[rows] = prediction.vectors[rows] @ turned
            prediction = replace(prediction, vectors=vectors)
        found.append((part.matched.rows, prediction))
    return Prediction.placed(found)


def _judge(
    opened: Store,
    stored: StoredReference,
    ready: _Prepared,
    options: QueryOptions,
    prediction: Prediction,
    beside: _Prepared | None,
) -> Annotation:
    """Return the annotation from the predictions, with its parameters."""
    first = ready.parts[0]
    parameters = {
        **provenance(opened.generation.number, stored, ready.matched),
        **options.answer(),
        "reference_genes_measured": first.share,
        "fitted": first.fitted,
        **({"orthologs": dict(first.genes.crossed)} if first.genes.crossed else {}),
    }
    if beside is not None:
        parameters["genes_beside"] = beside.matched.summary
    elif isinstance(ready.fits, GeneSide):
        parameters["by_genes_alone"] = True
    if len(ready.parts) > 1:
        parameters["gene_sets"] = [
            {
                "cells": part.matched.name,
                "n_cells": part.matched.n_obs,
                "genes": part.matched.summary,
                "reference_genes_measured": part.share,
                "fitted": part.fitted,
            }
            for part in ready.parts
        ]
    by_genes = obsm_key(stored) is None
    judged = [
        Judged(
            p.matched,
            p.genes if by_genes else None,
            p.model,
            float(p.genes.measured[p.model.members.vector_genes].mean()),
        )
        for p in ready.parts
    ]
    others = [name for name in opened.references() if name != stored.name]
    return judge(judged, stored, prediction, parameters, others)


def _clustered(annotation: Annotation, progress: Progress) -> Annotation:
    """Return the annotation with clusters and the majority label of each cluster."""
    progress("clustering cells", 0, None)
    cluster = clusters(annotation.vectors)
    voted = coded(majority(annotation.proba, cluster), annotation.classes)
    return annotation.changed(cluster=cluster, majority=voted)


def _named(opened: Store, ready: _Prepared, annotation: Annotation, progress: Progress) -> Annotation:
    """Return the annotation with groups of novel cells, named by markers."""
    from scvec.workflows.name import name_groups

    novel = np.flatnonzero(annotation.status == "novel")
    groups = np.full(len(annotation), None, dtype=object)
    if not len(novel):
        return annotation.changed(
            novel_group=groups,
            novel_names=(),
            notes=[*annotation.notes, "no cell is novel, so no names were added"],
        )
    # Cells of one unknown type mostly have the same nearest label (docs/names.md). Clusters of cell vectors
    # mix types: the vectors separate the labels of the reference, not the types that it lacks.
    groups[novel] = [f"novel, like {label}" for label in annotation.label[novel]]
    tissue = annotation.options.tissue if annotation.options else ""
    with opened.knowledge() as kb:
        names = name_groups(kb, stored_resolver(opened), ready.matched, groups, tissue, progress)
    added = [f"{n}: {g.group}" for g in names for n in g.notes]
    return annotation.changed(
        novel_group=groups, novel_names=tuple(names), notes=[*annotation.notes, *dict.fromkeys(added)]
    )


def _write(annotation: Annotation, target: Path, memory: int, progress: Progress) -> Annotation:
    """Write an annotation to a copy of the cells, or as a table; return it with the name of the file.

    Parameters
    ----------
    memory
        Bytes that may be used if the cells are read again.
    """
    progress("writing", 0, None)
    columns = annotation.options.columns if annotation.options else "scvec"
    if target.suffix == ".h5ad":
        table = annotation.to_table(named=False)
        if columns != "scvec":
            table = table.join(annotation.to_table(columns=columns, named=False))
        uns = {"scvec": annotation.uns(columns), **annotation.colors()}
        # The query has just checked these cells.
        write_annotated(
            annotation.data,
            target,
            obs=table,
            obsm=annotation.obsm(),
            uns=uns,
            checked=True,
            memory=memory,
            replaces="scvec",
        )
    else:
        write_tables((part.rename_axis("cell") for part in annotation.tables(columns=columns)), target)
    return annotation.changed(output=str(target))


@takes_options(QueryOptions)
def annotate(
    adata: AnnData,
    store: Path | str,
    options: QueryOptions | None = None,
    *,
    key_added: str = "scvec",
    copy: bool = False,
    progress: Progress = no_progress,
    **keywords: Any,
) -> AnnData | None:
    """Annotate the cells of an AnnData object in place.

    Parameters
    ----------
    store
        Folder of the store.
    adata
        Cells; ``obs``, ``obsm`` and ``uns`` get the annotation, X does not change.
    key_added
        Prefix of the columns and keys.
    copy
        Return an annotated copy and do not change ``adata``.
    options, **keywords
        See :func:`query`.

    Returns
    -------
    AnnData or None
        The copy if ``copy``. Warnings are issued as Python warnings; all notes are in
        ``uns[key_added]["notes"]``.
    """
    if isinstance(adata, (str, Path)):
        raise InputError(
            "the first argument of annotate must be an AnnData object",
            str(adata),
            "call scvec.annotate(adata, store), or for a file scvec.query(store, path)",
            code="wrong-format",
        )
    found = query(store, adata, options_of(QueryOptions, options, keywords), progress=progress)
    for note in found.notes:
        if note.startswith("warning: "):
            warnings.warn(note.removeprefix("warning: "), stacklevel=2)
    annotated: AnnData | None = found.to_adata(adata, key_added=key_added, copy=copy)
    return annotated


def only_reference(opened: Store, reference: str | None) -> str:
    """Return the name of the reference: the given one, or the only one in the store.

    Raises
    ------
    InputError
        If no name is given, and the store has no reference or several.
    """
    if reference is not None:
        return reference
    names = sorted(opened.generation.manifest.references)
    if len(names) == 1:
        return str(names[0])
    if not names:
        raise InputError(
            "the store has no reference yet",
            str(opened.path),
            "run: scvec ingest cells REF.h5ad --name NAME --label-key COLUMN",
            code="store-empty",
        )
    raise InputError(
        "the store has several references",
        str(opened.path),
        f"give --reference: {', '.join(names)}",
        code="reference-not-named",
    )
