"""``scvec query``: naming new cells by a reference."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.annotate.annotation import Annotation
from scvec.api.stages import Stages
from scvec.errors import InputError
from scvec.protocols import Progress, no_progress

if TYPE_CHECKING:
    from anndata import AnnData

    from scvec.annotate.model import Prediction, ReferenceModel
    from scvec.api.matching import MatchedSource
    from scvec.ingest.cells import CellSource
    from scvec.ingest.identity import GeneMap
    from scvec.stores.stored import StoredReference

__all__ = ["annotate", "query"]

CHUNK = 2048
#: Fewer genes of the reference than this say nothing about a cell.
MIN_GENES = 10
OUTPUTS = (".h5ad", ".csv", ".parquet")


def query(
    store: Path | str,
    path: Path | str | AnnData,
    *,
    reference: str | None = None,
    output: Path | str | None = None,
    n_neighbors: int = 15,
    method: str = "both",
    species: str = "auto",
    layer: str | None = None,
    memory: str | int | None = None,
    where: str | None = None,
    exact: bool = False,
    coverage: float | None = None,
    false_novel_rate: float = 0.05,
    force: bool = False,
    device: str = "auto",
    llm: str | None = None,
    progress: Progress = no_progress,
) -> Annotation:
    """Name the cells of a file by a reference.

    Parameters
    ----------
    path
        An h5ad file or an AnnData object; never changed.
    reference
        Name of the reference; may be left out where the store has one.
    output
        ``.h5ad`` (everything in the input, and the annotation), ``.csv`` or ``.parquet`` (the annotation).
    n_neighbors
        Neighbours that vote; clipped to the number of reference cells.
    method
        ``both``, ``knn``, ``head``, ``prototype`` or ``linear``.
    memory
        Bytes that reading may use, as a number or like ``"4G"``; half of what is free where not given.
    where
        SQL condition over the reference's obs: only those cells are neighbours, only their labels are given.
    exact
        Search exactly. (Flat indices, the only ones so far, always do.)
    coverage
        Also give sets of labels that hold the true one for this share (0-1) of the cells of each type.
    false_novel_rate
        Share (0-1) of cells of known types that may be called novel.
    force
        Go on where few genes match.
    device
        ``auto``, ``cpu`` or ``cuda``.
    llm
        Where the language model of a ``prompt`` reference lies, if it was moved since.

    Raises
    ------
    InputError
        If the file or an option cannot be used.
    StoreError
        If the store is damaged.
    """
    from scvec.annotate.pool import VOICES
    from scvec.api.device import check_device
    from scvec.api.matching import match_genes
    from scvec.api.references import load_model
    from scvec.api.resolvers import stored_resolver
    from scvec.ingest.cells import CellSource
    from scvec.stores.store import Store

    check_device(device)
    _check_share("coverage", coverage)
    _check_share("false_novel_rate", false_novel_rate)
    target = _check_output(output, path)
    stages = Stages()
    with stages("open store"):
        opened = Store(store)
        stored = opened.reference(_only(opened, reference))
        subset = _subset(stored, where)
    with stages("read"):
        progress("reading cells", 0, None)
        source = CellSource.open(path, layer=layer, memory=memory)
    with source:
        with stages("genes"):
            resolver = stored_resolver(opened)
            matched = match_genes(source, resolver, species=species, force=force)
            genes = resolver.map_to(matched.match, stored.meta["genes"], stored.meta["species"])
            source.notes += [matched.summary, *genes.notes]
            share = _check_overlap(source, genes, force)
        with stages("load reference"):
            model = load_model(stored, device=device, llm=llm)
        available = len(subset) if subset is not None else stored.n
        if n_neighbors > available:
            source.notes.append(f"n_neighbors clipped from {n_neighbors} to the {available} reference cells")
            n_neighbors = available
        with stages("encode and search"):
            prediction, regime = _predict(
                model,
                matched,
                genes,
                share=share,
                progress=progress,
                method=method,
                n_neighbors=n_neighbors,
                subset=subset,
                coverage=coverage,
                false_novel_rate=false_novel_rate,
            )
        if model.calibration.held_out == "cells":
            source.notes.append(
                "confidence is optimistic for data from elsewhere: the reference was calibrated on held-out "
                "cells of its own batches (ingest it with --batch-key)"
            )
        parameters = {
            **_provenance(opened.generation.number, stored, matched),
            "method": method,
            "n_neighbors": n_neighbors,
            "where": where,
            "coverage": coverage,
            "false_novel_rate": false_novel_rate,
            "regime": regime,
            "reference_genes_measured": share,
            "voices": dict(zip(VOICES, model.calibration.pools[regime].shares, strict=True)),
        }
        with stages("judge"):
            annotation = _annotation(source, stored, model, prediction, share, parameters, stages)
        if target is not None:
            with stages("write"):
                progress("writing", 0, None)
                annotation = _write(annotation, path, target)
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


def _only(opened: Any, reference: str | None) -> str:
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


def _check_output(output: Path | str | None, path: Any) -> Path | None:
    if output is None:
        return None
    from scvec.ingest.h5ad_output import check_output

    target = check_output(output, path if isinstance(path, str | Path) else None)
    if target.suffix not in OUTPUTS:
        what = (
            f"the ending {target.suffix!r} names no format" if target.suffix else "the output has no ending"
        )
        raise InputError(what, str(target), f"end its name in {', '.join(OUTPUTS[:-1])} or {OUTPUTS[-1]}")
    return target


def _check_share(option: str, value: float | None) -> None:
    if value is not None and not 0.0 < value < 1.0:
        raise InputError(f"{option} is a share between 0 and 1, not {value:g}", fix="give one such as 0.9")


def _check_overlap(source: CellSource, genes: GeneMap, force: bool) -> float:
    """Return the share of the reference's genes that were measured; refuse where it is next to none."""
    n, total = int(genes.measured.sum()), len(genes.measured)
    if n < min(MIN_GENES, total) and not force:
        raise InputError(
            f"only {n} of the {total:,} genes of the reference are in the query",
            source.name,
            "check --species and the names of genes, choose another reference, or go on with --force",
        )
    if n < 0.5 * total:
        source.notes.append(
            f"warning: {n:,} of the {total:,} genes of the reference were measured; labels are less certain"
        )
    return n / total


def _subset(stored: StoredReference, where: str | None) -> npt.NDArray[np.int64] | None:
    if where is None:
        return None
    from scvec.stores.where import rows_where

    return rows_where(stored.obs, where)


def _predict(
    model: ReferenceModel,
    matched: MatchedSource,
    genes: GeneMap,
    *,
    share: float,
    progress: Progress,
    **options: Any,
) -> tuple[Prediction, str]:
    from scvec.annotate.model import Prediction
    from scvec.annotate.shift import regime_of

    regime = regime_of(via_orthologs=genes.via_orthologs, measured_share=share)
    total, parts = matched.source.n_obs, []
    done = 0
    for chunk in matched.chunks(genes, CHUNK):
        parts.append(model.predict(chunk, regime=regime, **options))
        done += len(chunk)
        progress("annotating cells", done, total)
    return Prediction.concatenate(parts), regime


def _provenance(generation: int, stored: StoredReference, matched: MatchedSource) -> dict[str, Any]:
    from scvec import __version__

    meta = stored.meta
    return {
        "scvec": __version__,
        "reference": stored.name,
        "reference_species": meta["species"],
        "generation": generation,
        "space": meta["space"]["fingerprint"] if meta["space"] else "none",
        "backbone": meta["space"]["backbone"] if meta["space"] else "none",
        "encoder": meta["model"]["encoder"]["name"],
        "calibrated_on": meta["model"]["calibration"]["held_out"],
        "genes": matched.summary,
        "species": matched.match.species,
        "expression": matched.source.state.message,
    }


def _annotation(
    source: CellSource,
    stored: StoredReference,
    model: ReferenceModel,
    found: Prediction,
    share: float,
    parameters: dict[str, Any],
    stages: Stages,
) -> Annotation:
    from scvec.annotate.ontology import ClassOntology
    from scvec.annotate.status import statuses

    classes = np.array(stored.meta["classes"])
    best = found.proba.argmax(axis=1)
    knn, head = (found.voices[v].argmax(axis=1) for v in ("knn", "head"))
    confidence = found.proba[np.arange(len(best)), best].astype(np.float32)
    low = found.n_detected < model.floor * share
    status = statuses(confidence=confidence, novelty=found.novelty, agree=knn == head, low_quality=low)
    broad, ids = ClassOntology.from_dict(stored.meta["ontology"]).broad(found.proba)
    return Annotation(
        cells=np.array(source.obs_names),
        classes=tuple(str(c) for c in classes),
        label=classes[best],
        label_knn=classes[knn],
        label_head=classes[head],
        label_broad=np.array(broad),
        cl_id=np.array(ids),
        status=status,
        confidence=confidence,
        novelty=found.novelty,
        proba=found.proba,
        sets=found.sets,
        vectors=found.vectors,
        neighbors=found.neighbors,
        parameters=parameters,
        notes=list(dict.fromkeys(source.notes)),
        seconds=stages.seconds,
    )


def _write(annotation: Annotation, path: Any, target: Path) -> Annotation:
    from dataclasses import replace

    from scvec.ingest.h5ad_output import write_annotated, write_table

    table = annotation.to_table()
    if target.suffix == ".h5ad":
        write_annotated(path, target, obs=table, obsm=annotation.obsm(), uns={"scvec": annotation.uns()})
    else:
        write_table(table.rename_axis("cell"), target)
    return replace(annotation, output=str(target))
