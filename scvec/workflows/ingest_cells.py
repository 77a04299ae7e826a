"""``scvec ingest cells``: labelled cells into a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.results import Stages
from scvec.base.types import Progress, no_progress
from scvec.model.labelled import Labelled, incoherent_labels, training_workers
from scvec.workflows.reports import CellsReport

if TYPE_CHECKING:
    from anndata import AnnData

    from scvec.base.types import Space
    from scvec.encoders.statistics import GeneStatistics
    from scvec.ingest.genes.names import GeneMap
    from scvec.model.axis import Axis
    from scvec.model.matching import MatchedSource
    from scvec.model.reference import ReferenceModel

__all__ = ["ingest_cells"]

#: Variable genes that a reference is built on.
N_GENES = 3000


def ingest_cells(
    store: Path | str,
    refs: Sequence[Path | str | AnnData],
    *,
    name: str,
    label_key: str,
    species: str = "auto",
    layer: str | None = None,
    values: str = "auto",
    memory: str | int | None = None,
    backbone: str = "minilm",
    base_url: str | None = None,
    max_cost: float | None = None,
    encoder: str = "discriminant",
    batch_key: str | None = None,
    label_map: Mapping[str, str] | Path | str | None = None,
    min_cells: int = 1,
    seed: int = 0,
    force: bool = False,
    device: str = "auto",
    llm: str | None = None,
    n_genes: int | None = None,
    prompt_order: str | None = None,
    lora: int | None = None,
    epochs: int | None = None,
    checkpoint: Path | str | None = None,
    engine: str = "local",
    ray_address: str | None = None,
    index: str = "auto",
    recall: float = 0.95,
    progress: Progress = no_progress,
) -> CellsReport:
    """Turn labelled cells into a reference: vectors, index, head, calibration.

    Parameters
    ----------
    store
        Folder of the store; made where there is none.
    refs
        Files or folders as :func:`scvec.query` takes them, or AnnData objects, of human, of mouse, or some of
        each. Genes that one of them lacks are left out; the two species share genes through orthologs.
    name
        What the reference is called; one of that name is replaced.
    label_key
        Column of obs with the labels.
    values
        What the values are: ``counts``, ``linear`` (CPM, TPM, RPKM), ``log1p``, ``log2-cpm``, ... (all in
        :data:`scvec.ingest.cells.values.VALUES`); ``auto`` finds it out, in a note.
    memory
        Bytes that may be used, as a number or like ``"4G"``; half of what is free where not given. It cuts
        the cells that are handled in one go, which changes no result, and below about 3G those that are
        trained on, which does.
    batch_key
        Column of obs with donors or batches: whole ones are held out to calibrate the confidence.
    label_map
        Label -> the one it becomes, for files that call one type by two names; a mapping, or a JSON, csv or
        tsv file of it. Labels that are missing stay; an empty name takes the label from its cells.
    min_cells
        Labels of fewer cells are left out: their cells are neighbours without a vote.
    backbone, encoder
        Where gene vectors come from (:func:`scvec.backbones.parse_spec`), and ``discriminant``
        (the default: no text), ``weighted``, ``prompt``, ``sentence``, ``pca``, ``adapted`` or ``residual``.
    base_url, max_cost
        Address of the server that ``openai:`` asks, and US dollars that it may cost.
    seed
        Two runs with one seed give the same reference.
    force
        Go on where few genes match.
    device
        ``auto``, ``cpu`` or ``cuda``.
    llm
        Language model of the encoder ``prompt``: a folder, a GGUF file, ``smollm2`` or an id of the hub.
    n_genes
        Genes of a cell that ``prompt`` and ``sentence`` read, highest expression first.
    prompt_order, lora, epochs
        Of ``prompt``: ``paper``, ``code`` or ``none``; rank of adapters inside the language model; epochs.
    checkpoint
        Folder in which ``prompt`` keeps how far its training came; in the store by default.
    engine, ray_address
        ``ray`` encodes the cells by workers of a Ray cluster, as :func:`scvec.query` does; training stays
        here.
    index, recall
        ``auto``, ``flat`` or ``ivf``; share (0-1) of neighbours that the last is to find (docs/index.md).

    Raises
    ------
    InputError
        If the files, the label column or an option cannot be used.
    """
    from scvec.backbones import load_backbone, parse_spec
    from scvec.base.device import check_device
    from scvec.celltypes.label_terms import term_notes
    from scvec.encoders import needs_text
    from scvec.encoders.statistics import most_variable
    from scvec.engines.engine import Engine, check_engine, encode_cells
    from scvec.ingest.cells.label_columns import as_label_map
    from scvec.ingest.cells.source import CellSource
    from scvec.model.axis import align_species, common_axis, gene_statistics
    from scvec.model.cell_index import check_index, put_cells
    from scvec.model.encoder_parts import (
        PromptSettings,
        calibration_notes,
        forget_trainings,
        parts_for,
        portable_spec,
        training_folder,
        with_symbols,
    )
    from scvec.model.gene_vectors import encode_genes, stored_genes
    from scvec.model.matching import match_genes
    from scvec.model.resolvers import ensure_knowledge, resolver_of
    from scvec.model.storage import FACTOR
    from scvec.model.training import class_tensors, read_sample, train
    from scvec.stores.store.files import check_reference_name
    from scvec.stores.store.store import Store

    # What can be refused at once is, before a large file is read.
    check_reference_name(name)
    check_index(index, recall)
    spec = parse_spec(backbone, base_url=base_url)
    with_text = needs_text(encoder)
    check_device(device)
    check_engine(engine, ray_address)
    names = as_label_map(label_map)
    if with_text and not spec.is_stored:
        load_backbone(spec, device=device)
    settings = PromptSettings(llm, n_genes, prompt_order, lora, epochs, checkpoint)
    parts = parts_for(encoder, settings, spec, device=device, max_cost=max_cost)
    stages = Stages()
    with ExitStack() as stack:
        with stages("read"):
            progress("reading cells", 0, None)
            how: dict[str, Any] = {"layer": layer, "memory": memory, "values": values}
            sources = [stack.enter_context(CellSource.open(ref, **how)) for ref in refs]
            labelled = Labelled.read(sources, label_key, batch_key, min_cells=min_cells, label_map=names)
        opened = Store.open(store, create=True)
        params = {
            "name": name,
            "label_key": label_key,
            "encoder": encoder,
            "backbone": portable_spec(backbone, spec) if encoder == "sentence" else backbone,
            "batch_key": batch_key,
            "seed": seed,
        }
        txn = stack.enter_context(opened.begin("ingest cells", params))
        with stages("genes"):
            kb = txn.open_knowledge()
            fresh, known = ensure_knowledge(kb, progress=progress), txn.base.manifest.knowledge
            resolver = resolver_of(kb, None if fresh or known is None else known.digest)
            matched = [match_genes(s, resolver, species=species, force=force) for s in sources]
            axis = common_axis(matched, resolver)
        with stages("count genes"):
            stats, scores = gene_statistics(axis, matched, progress)
            axis, aligned = align_species(axis, matched, labelled.codes)
        with stages("genes"):
            chosen = most_variable(scores, N_GENES)
            strata = _strata(matched, axis)
            # The genes of encoders that do not choose for themselves.
            narrow = axis.select(chosen)
            gene_ids = narrow.gene_ids
        encoded = None
        if with_text:
            with stages("encode genes"):
                if spec.is_stored:
                    encoded = stored_genes(txn, kb, gene_ids, spec)
                else:
                    encoded = encode_genes(
                        kb,
                        txn.vectors(),
                        gene_ids,
                        spec,
                        device=device,
                        max_cost=max_cost,
                        progress=progress,
                    )
                if not (spec.permuted or spec.is_stored):
                    txn.put_space(encoded.space, encoded.table, encoded.vectors, merge=True)
        if parts is not None:
            symbols = kb.genes().set_index("gene_id").loc[gene_ids, "symbol"].astype(str)
            parts = with_symbols(parts, symbols.tolist()).kept_in(training_folder(opened.path))
        with stages("train"):
            rows, sampled = labelled.sample(memory, len(chosen), seed, encoder=encoder)
            sample, notes = read_sample(labelled, rows, matched, axis.maps, strata, seed)
            model = train(
                sample,
                chosen,
                scores,
                encoder,
                encoded,
                parts,
                seed,
                progress,
                training_workers(memory),
            )
            notes = [
                *sampled,
                *notes,
                *getattr(model.members.encoder, "notes", []),
                *calibration_notes(parts),
            ]
        with stages("encode cells"):
            cluster = Engine(engine, ray_address, memory, device, llm, portable_spec(backbone, spec))
            whole = len(model.members.genes) == len(axis.gene_ids)
            maps = axis.maps if whole else narrow.maps
            vectors = encode_cells(model.members.encoder, matched, maps, cluster, progress)
        with stages("write"):
            space = encoded.space if encoded else parts.backbone.space if parts and parts.backbone else None
            taken = axis if whole else narrow
            tensors, meta = _describe(
                labelled,
                matched,
                taken,
                stats.select(model.members.genes),
                model,
                space,
                kb,
                options=params,
                device=device,
            )
            meta["all_genes"] = axis.gene_ids
            meta["vector_genes"] = [axis.gene_ids[g] for g in model.members.vector_genes]
            tensors |= {f"{FACTOR}{s}": values for s, values in axis.factors.items()}
            tensors |= class_tensors(sample) | _probes(matched, maps)
            if encoder == "discriminant":
                kept, meta["sample"] = sample.state()
                tensors |= {f"sample.{name}": values for name, values in kept.items()}
            obs = labelled.table(strata)
            notes += [*aligned, *term_notes(meta, name)]
            if txn.reference(name) is not None:
                notes.append(f"reference {name!r} was there and is replaced")
            notes += put_cells(txn, name, vectors, meta, tensors, obs, (index, recall, memory))
            generation = txn.commit()
        forget_trainings(opened.path)
        notes = [n for s in sources for n in s.notes] + notes + txn.notes
        notes += encoded.notes if encoded is not None else ()
    calibration = model.calibration
    record = calibration.record
    findings = [
        *labelled.findings,
        *incoherent_labels(labelled.counts(), labelled.classes, record["labels"]),
    ]
    notes += [finding.message for finding in findings]
    return CellsReport(
        name=name,
        n_cells=labelled.n,
        n_genes_matched=min(m.match.n_matched for m in matched),
        match_summary="; ".join(m.summary for m in matched),
        expression="; ".join(dict.fromkeys(s.state.message for s in sources)),
        classes=labelled.counts(),
        encoder=encoder,
        space=space.fingerprint if space else "none",
        texts=encoded.counts() if encoded is not None else {},
        calibration={
            "accuracy": record["accuracy"],
            "macro_f1": record["macro_f1"],
            "ece": record["ece"],
            "n_cells": calibration.n_cells,
            "held_out": {
                "batch": f"whole batches of {batch_key or 'file'}",
                "cells": "of the same batches",
                "none": "none",
            }[calibration.held_out],
        },
        label_findings=[finding.to_dict() for finding in findings],
        seconds=stages.seconds,
        generation=str(generation.number),
        # What was done with the values has a line of its own.
        notes=[n for n in dict.fromkeys(notes) if n not in {s.state.message for s in sources}],
    )


def _strata(matched: list[MatchedSource], axis: Axis) -> npt.NDArray[np.str_] | None:
    """Return (n,) the species of each cell where there are two, else None."""
    if len(axis.n_cells) == 1:
        return None
    return np.concatenate([np.full(m.source.n_obs, m.match.species) for m in matched])


def _probes(matched: list[MatchedSource], maps: list[GeneMap]) -> dict[str, npt.NDArray[Any]]:
    """Return cells spread over the first file, for :func:`scvec.workflows.admin.verify`."""
    from scvec.model.storage import N_PROBES, probe_tensors

    n = matched[0].source.n_obs
    rows = np.unique(np.linspace(0, n - 1, min(N_PROBES, n)).astype(np.int64))
    [chunk] = matched[0].chunks(maps[0], len(rows), rows)
    return probe_tensors(chunk, rows)


def _describe(
    labelled: Labelled,
    matched: list[MatchedSource],
    axis: Axis,
    stats: GeneStatistics,
    model: ReferenceModel,
    space: Space | None,
    kb: Any,
    *,
    options: dict[str, Any],
    device: str,
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Return the arrays and the JSON values that a reference is stored as."""
    from scvec import __version__
    from scvec.celltypes.label_terms import class_ontology, match_labels
    from scvec.model.storage import model_state

    tensors, state = model_state(model)
    tensors["genes.mean"], tensors["genes.sd"] = stats.mean, stats.sd
    found, notes = match_labels(
        kb, labelled.classes, known=labelled.known_terms(), tissues=labelled.tissues(), device=device
    )
    matched[0].source.notes += notes
    ontology = class_ontology(kb, labelled.classes, found)
    meta = {
        "scvec": __version__,
        "species": axis.species,
        "species_cells": axis.n_cells,
        "classes": labelled.classes,
        "counts": labelled.counts(),
        "genes": axis.gene_ids,
        "space": space.to_dict() if space else None,
        "options": options,
        "ontology": ontology.to_dict(),
        "sources": [
            {
                "name": m.source.name,
                "n_cells": m.source.n_obs,
                "species": m.match.species,
                "genes": m.summary,
                "expression": m.source.state.to_dict(),
            }
            for m in matched
        ],
        "model": state,
    }
    return tensors, meta
