"""``scvec query``: naming new cells by a reference."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base import arrays
from scvec.base.arrays import coded
from scvec.base.errors import InputError
from scvec.base.parallel import n_cores, side_by_side
from scvec.base.results import Stages
from scvec.base.types import Progress, no_progress
from scvec.engines.engine import AT_ONCE
from scvec.model.annotation import Annotation, check_columns
from scvec.model.judging import judged, provenance
from scvec.model.majority import clusters, majority, need_igraph

if TYPE_CHECKING:
    from anndata import AnnData

    from scvec.ingest.cells.source import CellSource
    from scvec.ingest.genes.names import GeneMap
    from scvec.model.matching import MatchedSource
    from scvec.model.reference import Prediction, ReferenceModel

__all__ = ["annotate", "check_overlap", "only_reference", "query"]

#: Chunks after which what was freed goes back to the system: several threads leave holes in several heaps,
#: and more of them the more chunks there are.
TRIM_EVERY = 16
#: What novelty may be judged by.
NOVELTY = ("relative", "absolute")
#: Fewer genes of the reference than this say nothing about a cell.
MIN_GENES = 10


def query(
    store: Path | str,
    path: Path | str | AnnData,
    *,
    reference: str | None = None,
    output: Path | str | None = None,
    report: Path | str | None = None,
    title: str | None = None,
    n_neighbors: int = 15,
    method: str = "both",
    species: str = "auto",
    layer: str | None = None,
    values: str = "auto",
    memory: str | int | None = None,
    where: str | None = None,
    exact: bool = False,
    recall: float | None = None,
    coverage: float | None = None,
    false_novel_rate: float = 0.05,
    novelty: str = "relative",
    majority_vote: bool = False,
    columns: str = "scvec",
    unmatched_genes: str = "drop",
    force: bool = False,
    device: str = "auto",
    llm: str | None = None,
    engine: str = "local",
    ray_address: str | None = None,
    progress: Progress = no_progress,
) -> Annotation:
    """Name the cells of a file by a reference.

    Parameters
    ----------
    path
        A file or folder of any kind that is read (docs/scale.md): h5ad, zarr, loom, h5mu, a table of text, an
        rds of R, what Cell Ranger, STARsolo, kb or Parse wrote; or an AnnData object. Never changed.
    reference
        Name of the reference; may be left out where the store has one.
    output
        ``.h5ad`` (everything in the input, and the annotation), ``.csv`` or ``.parquet`` (the annotation).
    report
        An ``.html`` file for people: a map of the cells, tables, evidence for each label; the same numbers go
        into a ``.json`` file beside it. Needs the extra ``report``.
    title
        What to call the cells in the report; the name of the file where not given.
    n_neighbors
        Neighbours that vote; clipped to the number of reference cells.
    method
        ``both``, ``knn`` or ``head``.
    values
        What the values are: ``counts``, ``linear`` (CPM, TPM, RPKM), ``log1p``, ``log2-cpm``, ... (all in
        :data:`scvec.ingest.cells.values.VALUES`); ``auto`` finds it out, in a note.
    memory
        Bytes that may be used, as a number or like ``"4G"``; half of what is free where not given. It cuts
        the cells that are handled in one go and changes no answer.
    where
        SQL condition over the reference's obs: only those cells are neighbours, only their labels are given.
    exact
        Look at every cell of the reference. Flat indices, those of less than 200,000 cells, always do.
    recall
        Share (0-1) of the nearest cells that an approximate index is to find; that of the ingest by default.
    coverage
        Also give sets of labels that hold the true one for this share (0-1) of the cells of each type.
    false_novel_rate
        Fraction (0-1) of cells of known types that may be called novel.
    novelty
        ``relative``: what all cells of the query have in common against the reference (another platform, or
        another species) does not make them novel. ``absolute``: it does.
    majority_vote
        Also cluster the cells and give each the label of most of its cluster, in columns of its own. That
        label depends on the other cells of the query; needs the extra ``cluster``.
    columns
        ``scvec``, or ``celltypist``: tables get the columns that CellTypist writes instead, an h5ad both.
    unmatched_genes
        ``drop``, or ``text``: a gene of the query that stands for none of the reference's stands for one
        that is left over, where the text vectors of the two are alike (docs/species.md: what it is worth).
    force
        Go on where few genes match.
    device
        ``auto``, ``cpu`` or ``cuda``.
    llm
        Where the language model of a ``prompt`` reference lies, if it was moved since.
    engine
        ``local``, or ``ray``: workers and shards of the index on a Ray cluster, with the same answers.
        ``memory`` is then divided among the workers. Needs the extra ``ray``.
    ray_address
        ``HOST:PORT`` of the cluster's head, or ``auto`` on a node of it; one of this machine's own is started
        and stopped where not given.

    Raises
    ------
    InputError
        If the file or an option cannot be used.
    StoreError
        If the store is damaged.
    NetworkError
        If the cluster cannot be reached, or a part of it is lost that cannot be restored.
    """
    asked = dict(locals())  # first: the report repeats the command
    from scvec.base.device import check_device
    from scvec.engines.engine import check_engine
    from scvec.ingest.cells.source import CellSource
    from scvec.model.gene_fit import fitted_to
    from scvec.model.matching import match_genes
    from scvec.model.resolvers import stored_resolver
    from scvec.model.storage import load_model
    from scvec.model.unmatched import UNMATCHED, query_genes
    from scvec.report.write_report import check_report
    from scvec.stores.index.shards import unsearched
    from scvec.stores.store.store import Store
    from scvec.workflows.query_output import (
        check_output_file,
        explainer_of,
        report_query,
        reporter_of,
        write_output,
    )

    check_device(device)
    check_engine(engine, ray_address)
    check_columns(columns)
    if majority_vote:
        need_igraph()
    if unmatched_genes not in UNMATCHED:
        raise InputError(
            f"unmatched_genes is drop or text, not {unmatched_genes!r}", fix="give one of the two"
        )
    if novelty not in NOVELTY:
        raise InputError(f"novelty is relative or absolute, not {novelty!r}", fix="give one of the two")
    _check_share("coverage", coverage)
    _check_share("recall", recall)
    _check_share("false_novel_rate", false_novel_rate)
    target = check_output_file(output, path)
    page = check_report(report, path)
    stages = Stages()
    with stages("open store"):
        opened = Store(store)
        stored = opened.reference(only_reference(opened, reference))
        subset = stored.rows_where(where)
    with stages("read"):
        progress("reading cells", 0, None)
        # Only a report asks what else is known of the cells.
        source = CellSource.open(path, layer=layer, memory=memory, columns=page is not None, values=values)
    with source:
        with stages("genes"):
            resolver = stored_resolver(opened)
            matched = match_genes(source, resolver, species=species, force=force)
            genes = query_genes(
                opened, stored, matched, unmatched_genes=unmatched_genes, device=device, progress=progress
            )
        with stages("load reference"):
            # On a cluster shards hold the index; what is left here is labels and weights.
            elsewhere = None if engine == "local" else unsearched(stored)
            model = load_model(stored, device=device, llm=llm, index=elsewhere, exact=exact, recall=recall)
        share = check_overlap(source, genes.measured[model.members.vector_genes], force)
        with stages("fit to genes"):
            ingested = model
            model, fitted = fitted_to(opened.path, stored, model, genes.measured, progress=progress)
            if fitted:
                source.notes.append(fitted)
        available = len(subset) if subset is not None else stored.n
        if n_neighbors > available:
            source.notes.append(f"n_neighbors clipped from {n_neighbors} to the {available} reference cells")
            n_neighbors = available
        spread = None
        if engine == "ray":
            from scvec.engines.ray_engine import predict_by_ray

            spread = partial(
                predict_by_ray,
                opened,
                stored,
                address=ray_address,
                memory=memory,
                exact=exact,
                recall=recall,
                device=device,
                llm=llm,
                fitted=None if model is ingested else model,
            )
        arrays.trim()  # of the reading: what the chunks need comes on top of it else
        with stages("encode and search"):
            prediction = _predict(
                model,
                matched,
                genes,
                progress=progress,
                method=method,
                n_neighbors=n_neighbors,
                subset=subset,
                coverage=coverage,
                spread=spread,
            )
        if model.calibration.held_out == "cells":
            source.notes.append(
                "confidence is optimistic for data from elsewhere: the reference was calibrated on held-out "
                "cells of its own batches (ingest it with --batch-key)"
            )
        parameters = {
            **provenance(opened.generation.number, stored, matched),
            "method": method,
            "n_neighbors": n_neighbors,
            "where": where,
            "exact": exact,
            "recall": recall,
            "layer": layer,
            "values": values,
            "coverage": coverage,
            "false_novel_rate": false_novel_rate,
            "novelty": novelty,
            "unmatched_genes": unmatched_genes,
            "reference_genes_measured": share,
            "fitted": model is not ingested,
        }
        arrays.trim()  # of the chunks
        with stages("judge"):
            detected = float(genes.measured[model.members.vector_genes].mean())
            annotation = judged(source, stored, model, prediction, detected, parameters, stages)
            annotation = annotation.changed(explainer=explainer_of(store, path), reporter=reporter_of(asked))
        if majority_vote:
            with stages("cluster"):
                progress("clustering cells", 0, None)
                cluster = clusters(annotation.vectors)
                voted = coded(majority(annotation.proba, cluster), annotation.classes)
                annotation = annotation.changed(cluster=cluster, majority=voted)
        if target is not None:
            with stages("write"):
                progress("writing", 0, None)
                annotation = write_output(annotation, path, target, columns, source.memory)
        if page is not None:
            with stages("report"):
                annotation = report_query(page, annotation, stored, source.obs, asked, progress)
    return annotation


def annotate(
    adata: AnnData,
    store: Path | str,
    *,
    reference: str | None = None,
    key_added: str = "scvec",
    copy: bool = False,
    **options: Any,
) -> AnnData | None:
    """Name the cells of an AnnData object in place.

    Parameters
    ----------
    adata
        Cells; ``obs``, ``obsm`` and ``uns`` get the annotation, X stays as it is.
    key_added
        Prefix of the columns and keys.
    copy
        Return an annotated copy and leave ``adata`` as it is.
    **options
        As for :func:`query`.

    Returns
    -------
    The copy, or None. Warnings are given as Python warnings; all notes are in ``uns[key_added]["notes"]``.
    """
    if isinstance(adata, (str, Path)):
        raise InputError(
            "annotate takes an AnnData object first, then the store",
            str(adata),
            "scvec.annotate(adata, store); for a file: scvec.query(store, path)",
        )
    result = query(store, adata, reference=reference, **options)
    for note in result.notes:
        if note.startswith("warning: "):
            warnings.warn(note.removeprefix("warning: "), stacklevel=2)
    annotated: AnnData | None = result.to_adata(adata, key_added=key_added, copy=copy)
    return annotated


def only_reference(opened: Any, reference: str | None) -> str:
    """Return the name of the reference to ask: the one given, else the only one of the store."""
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
        )
    raise InputError(
        "the store has several references", str(opened.path), f"give --reference: {', '.join(names)}"
    )


def _check_share(option: str, value: float | None) -> None:
    if value is not None and not 0.0 < value < 1.0:
        raise InputError(f"{option} is a share between 0 and 1, not {value:g}", fix="give one such as 0.9")


def check_overlap(source: CellSource, measured: npt.NDArray[np.bool_], force: bool) -> float:
    """Return the share of the reference's genes that were measured; refuse where it is next to none."""
    n, total = int(measured.sum()), len(measured)
    if n < min(MIN_GENES, total) and not force:
        raise InputError(
            f"only {n} of the {total:,} genes of the reference were measured",
            source.name,
            "check --species and the names of genes, choose another reference, or go on with --force",
        )
    if n < 0.5 * total:
        source.notes.append(
            f"warning: {n:,} of the {total:,} genes of the reference were measured; labels are less certain"
        )
    return n / total


def _predict(
    model: ReferenceModel,
    matched: MatchedSource,
    genes: GeneMap,
    *,
    progress: Progress,
    spread: Callable[..., Iterator[Prediction]] | None = None,
    **options: Any,
) -> Prediction:
    from scvec.model.reference import Prediction

    total = matched.source.n_obs
    if spread is not None:
        return Prediction.gather(spread(matched, genes, progress=progress, **options), total)

    def parts() -> Iterator[Prediction]:
        done = 0
        jobs = (partial(model.predict, chunk, **options) for chunk in matched.chunks(genes))
        with closing(side_by_side(jobs, 1 if model.takes_turns else min(n_cores(), AT_ONCE))) as predictions:
            for number, prediction in enumerate(predictions, 1):
                done += len(prediction)
                yield prediction
                if number % TRIM_EVERY == 0:
                    arrays.trim()
                progress("annotating cells", done, total)

    return Prediction.gather(parts(), total)
