"""``scvec ingest cells``: make a reference from labelled cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scvec import __version__
from scvec.backbones import load_backbone
from scvec.base.display import html_table
from scvec.base.errors import InputError, ResourceError
from scvec.base.options import options_of, takes_options
from scvec.base.resources import expanded
from scvec.base.results import NextStep, Report, Stages, counts_line, plain, table, times_line
from scvec.base.types import Progress, no_progress
from scvec.celltypes.terms import class_ontology, match_labels, term_notes
from scvec.encoders import DEFAULT_ENCODER, Material
from scvec.encoders.obsm import ObsmEncoder, VectorStatistics
from scvec.engines import check_engine, encode_cells
from scvec.ingest.cells.cell_vectors import open_cells
from scvec.ingest.cells.label_columns import as_label_map
from scvec.ingest.cells.source import CellSource
from scvec.model.cell_index import put_cells
from scvec.model.copies import source_digest
from scvec.model.gene_members import fit_beside
from scvec.model.gene_vectors import EncodedGenes, encode_genes, stored_genes
from scvec.model.known_markers import marker_notes
from scvec.model.matching import (
    Axis,
    MatchedSource,
    ReferenceGenes,
    common_axis,
    dimension_axis,
    dimensions,
    match_genes,
    reference_genes,
)
from scvec.model.reference import train
from scvec.model.resolvers import ensure_knowledge, no_knowledge, resolver_of
from scvec.model.storage import FACTOR, N_PROBES, model_state, prepared, probe_tensors
from scvec.model.training import Labelled, class_tensors, incoherent_labels, read_sample, training_workers
from scvec.model.unmeasured import left_out
from scvec.stores.store.store import Store
from scvec.workflows.ingest_options import IngestOptions

if TYPE_CHECKING:
    from anndata import AnnData

    from scvec.base.types import Float32, Space
    from scvec.model.reference import ReferenceModel
    from scvec.model.resolvers import GeneMap
    from scvec.model.training import TrainingSample
    from scvec.stores.knowledge.knowledge import KnowledgeBase
    from scvec.stores.store.transaction import Transaction

__all__ = ["CellsReport", "ingest_cells"]


@takes_options(IngestOptions)
def ingest_cells(
    store: Path | str,
    refs: Sequence[Path | str | AnnData],
    options: IngestOptions | None = None,
    *,
    progress: Progress = no_progress,
    **keywords: Any,
) -> CellsReport:
    """Make a reference from labelled cells: cell vectors, index, classifiers, calibration.

    Parameters
    ----------
    store
        Folder of the store; created if missing.
    refs
        Files or folders of any readable format, or AnnData objects, of one or several species. Only genes
        that all of them measured are used; species share genes through orthologs.
    options, keywords
        :class:`scvec.IngestOptions`, or its fields as keywords; ``name`` and ``label_key`` are required.

    Raises
    ------
    InputError
        If the files, the label column or an option cannot be used.
    """
    asked = options_of(IngestOptions, options, keywords)
    refs = [expanded(ref) if isinstance(ref, str | Path) else ref for ref in refs]
    known = load_models(asked)
    stages = Stages()
    with ExitStack() as stack:
        with stages("read"):
            labelled = read_labelled(stack, refs, asked, progress)
        opened = Store.open(store, create=True)
        txn = stack.enter_context(opened.begin("ingest cells", asked.record()))
        with stages("genes"):
            kb = txn.open_knowledge()
            matched, axis = match_all(txn, kb, labelled, asked, progress)
        with stages("count genes"):
            if asked.obsm:
                genes, known = dimensions(axis, matched)
            else:
                genes = reference_genes(axis, matched, labelled.codes, progress, labelled.primary)
                labelled = labelled.hashed(genes.hashes)
            cells = Cells(labelled, matched, genes)
        texts = None
        if asked.kind.texts and not asked.obsm and kb.genes(axis.species).empty:
            fix = "omit --encoder: the default encoder needs no texts"
            raise no_knowledge(axis.species, f"--encoder {asked.encoder}", fix)
        if asked.kind.texts == "genes":
            with stages("encode genes"):
                texts = encode_texts(txn, kb, genes.narrow.gene_ids, asked, progress)
        with stages("train"):
            material = material_of(kb, genes, texts, known, asked)
            trained = train_model(cells, asked, material, progress)
            beside = genes_beside(stack, kb, refs, cells, trained, asked, progress)
        with stages("encode cells"):
            maps = genes.with_genes(len(trained.model.members.genes)).maps
            vectors = encode_cells(trained.model.members.encoder, matched, maps, asked.cluster, progress)
        with stages("write"):
            written = write_reference(txn, kb, cells, trained, vectors, texts, beside, asked)
            version = txn.commit()
    notes = [*trained.notes, *beside.notes, *getattr(known, "notes", ()), *written, *txn.notes]
    report = report_of(asked, cells, trained, texts, notes)
    return replace(report, seconds=stages.seconds, generation=str(version.number))


@dataclass(frozen=True)
class Cells:
    """Labelled cells and their genes."""

    labelled: Labelled
    matched: list[MatchedSource]
    genes: ReferenceGenes

    @cached_property
    def species(self) -> npt.NDArray[np.str_] | None:
        """(n,) the species of each cell; None if all cells are of one species."""
        if len(self.genes.axis.n_cells) == 1:
            return None
        return np.concatenate([np.full(m.source.n_obs, m.match.species) for m in self.matched])

    @cached_property
    def n_of_species(self) -> dict[str, int]:
        """Species -> number of cells; the species of the gene ids comes first."""
        found = dict.fromkeys(map(str, self.genes.axis.n_cells), 0)
        for k, m in enumerate(self.matched):
            found[m.match.species] += self.labelled.n_of_source(k)
        return found


@dataclass(frozen=True)
class Trained:
    """A trained model, its training cells, and notes."""

    model: ReferenceModel
    sample: TrainingSample
    notes: list[str]


def load_models(asked: IngestOptions) -> Any:
    """Load the requested models, and return what the encoder needs.

    This comes first, so that wrong options are refused before a large file is read.
    """
    check_engine(asked.engine, asked.ray_address)
    if asked.kind.texts == "genes" and not asked.spec.is_stored:
        load_backbone(asked.spec, device=asked.device)
    return prepared(asked.kind, asked.of_encoder, asked.spec, device=asked.device, max_cost=asked.max_cost)


def read_labelled(
    stack: ExitStack, refs: Sequence[Path | str | AnnData], asked: IngestOptions, progress: Progress
) -> Labelled:
    """Open the files and read their labels; ``stack`` closes the files."""
    names = as_label_map(asked.label_map)
    progress("reading cells", 0, None)
    sources = [
        stack.enter_context(
            open_cells(ref, asked.obsm, layer=asked.layer, memory=asked.memory, values=asked.values)
        )
        for ref in refs
    ]
    return Labelled.read(
        sources, asked.label_key, asked.batch_key, min_cells=asked.min_cells, label_map=names
    )


def match_all(
    txn: Transaction, kb: KnowledgeBase, labelled: Labelled, asked: IngestOptions, progress: Progress
) -> tuple[list[MatchedSource], Axis]:
    """Match the genes of all files, and find the genes that all files measured."""
    fresh, stored = ensure_knowledge(kb, progress=progress), txn.base.manifest.knowledge
    resolver = resolver_of(kb, None if fresh or stored is None else stored.digest)
    matched = [match_genes(s, resolver, species=asked.species, force=asked.force) for s in labelled.sources]
    if asked.obsm:
        return matched, dimension_axis(matched)
    for i, m in enumerate(matched):
        match, warned = left_out(m.match, m.source)
        matched[i] = replace(m, match=match, notes=(*m.notes, *warned))
    return matched, common_axis(matched, resolver)


def encode_texts(
    txn: Transaction, kb: KnowledgeBase, gene_ids: list[str], asked: IngestOptions, progress: Progress
) -> EncodedGenes:
    """Return the vectors of genes; new ones are saved in the store."""
    if asked.spec.is_stored:
        return stored_genes(txn, kb, gene_ids, asked.spec)
    encoded = encode_genes(
        kb,
        txn.vectors(),
        gene_ids,
        asked.spec,
        device=asked.device,
        max_cost=asked.max_cost,
        progress=progress,
    )
    if not asked.spec.permuted:
        txn.put_space(encoded.space, encoded.table, encoded.vectors, merge=True)
    return encoded


def material_of(
    kb: KnowledgeBase,
    genes: ReferenceGenes,
    texts: EncodedGenes | None,
    known: Any,
    asked: IngestOptions,
) -> Callable[..., Material]:
    """Return a function that makes the input of a training; all trainings share the genes."""
    symbols: list[str] = []
    if asked.kind.texts == "cells":
        named = kb.genes().set_index("gene_id")["symbol"]
        symbols = named.loc[genes.narrow.gene_ids].astype(str).tolist()
    return partial(
        Material,
        gene_vectors=texts.vectors if texts else None,
        variability=genes.variability,
        symbols=symbols,
        prepared=known,
    )


def train_model(
    cells: Cells, asked: IngestOptions, material: Callable[..., Material], progress: Progress
) -> Trained:
    """Train on a sample of the cells, and calibrate."""
    labelled, genes, kind = cells.labelled, cells.genes, asked.kind
    rows, sampled = labelled.sample(asked.memory, len(genes.chosen), asked.seed, capped=kind.refits)
    sample, notes = read_sample(labelled, rows, cells.matched, genes.axis.maps, cells.species, asked.seed)
    model = train(
        sample,
        kind,
        material,
        genes=None if kind.refits else genes.chosen,
        seed=asked.seed,
        progress=progress,
        n_workers=training_workers(asked.memory),
    )
    if isinstance(encoder := model.members.encoder, ObsmEncoder):
        vectors = sample.X.toarray()
        encoder.statistics = VectorStatistics.fit(vectors, sample.labels, sample.folds, seed=asked.seed)
    return Trained(model, sample, [*sampled, *notes, *getattr(model.members.encoder, "notes", ())])


class Beside(NamedTuple):
    """Tensors, meta data and notes of the gene-based members of a reference of vectors; may be empty."""

    tensors: dict[str, npt.NDArray[Any]]
    meta: Mapping[str, Any]
    notes: Sequence[str]


def genes_beside(
    stack: ExitStack,
    kb: KnowledgeBase,
    refs: Sequence[Path | str | AnnData],
    cells: Cells,
    trained: Trained,
    asked: IngestOptions,
    progress: Progress,
) -> Beside:
    """Train gene-based members for a reference of vectors, if the files also have values of genes."""
    if not asked.obsm or asked.vectors_only:
        return Beside({}, {}, [])
    labelled = cells.labelled
    try:
        sources = [
            stack.enter_context(
                CellSource.open(ref, layer=asked.layer, memory=asked.memory, values=asked.values)
            )
            for ref in refs
        ]
        resolver = resolver_of(kb, None)
        matched = [match_genes(source, resolver, species=asked.species) for source in sources]
        matched = [replace(m, match=left_out(m.match, m.source)[0]) for m in matched]
        axis = common_axis(matched, resolver)
        genes = reference_genes(axis, matched, labelled.codes, progress, labelled.primary)
    except (InputError, ResourceError) as error:
        return Beside({}, {}, [f"genes are not used beside the vectors: {error.what}"])
    vectors, memory, seed = (trained.model, trained.sample), asked.memory, asked.seed
    return Beside(*fit_beside(labelled, matched, genes, vectors, memory=memory, seed=seed, progress=progress))


def write_reference(
    txn: Transaction,
    kb: KnowledgeBase,
    cells: Cells,
    trained: Trained,
    vectors: Float32,
    texts: EncodedGenes | None,
    beside: Beside,
    asked: IngestOptions,
) -> list[str]:
    """Write the reference to the store, and return notes about its labels and its index."""
    labelled, members = cells.labelled, trained.model.members
    axis = cells.genes.with_genes(len(members.genes))
    tensors, state = model_state(trained.model)
    statistics = cells.genes.statistics.select(members.genes)
    tensors |= {"genes.mean": statistics.mean, "genes.sd": statistics.sd}
    tensors |= {f"{FACTOR}{species}": values for species, values in axis.factors.items()}
    tensors |= class_tensors(trained.sample) | _probes(cells, axis.maps)
    space = space_of(trained, texts)
    found, notes = match_labels(
        kb, labelled.classes, known=labelled.known_terms(), tissues=labelled.tissues(), device=asked.device
    )
    meta = {
        "scvec": __version__,
        "species": axis.species,
        "species_cells": cells.n_of_species,
        "classes": labelled.classes,
        "counts": labelled.counts(),
        "genes": axis.gene_ids,
        "all_genes": cells.genes.axis.gene_ids,
        "vector_genes": [cells.genes.axis.gene_ids[g] for g in members.vector_genes],
        "space": space.to_dict() if space else None,
        "options": asked.record(),
        "ontology": class_ontology(kb, labelled.classes, found).to_dict(),
        "sources": [
            {
                "name": m.source.name,
                "n_cells": labelled.n_of_source(k),
                "digest": source_digest(cells.genes.hashes[labelled.of_source(k)]),
                "species": m.match.species,
                "genes": m.summary,
                "expression": m.source.state.to_dict(),
            }
            for k, m in enumerate(cells.matched)
        ],
        "model": state,
    }
    if beside.meta:
        meta["beside"] = dict(beside.meta)
        tensors |= beside.tensors
    if asked.origin is not None:
        meta["origin"] = plain(asked.origin)
    if asked.kind.refits:
        kept, meta["sample"] = trained.sample.state()
        tensors |= {f"sample.{name}": values for name, values in kept.items()}
    notes += term_notes(meta, asked.name)
    if not asked.obsm:
        entry = txn.base.manifest.knowledge
        resolver = resolver_of(kb, entry.digest if entry else None)
        terms = {c: found[c].cl_id for c in labelled.classes}
        notes += marker_notes(kb, resolver, trained.sample, cells.genes.axis.gene_ids, terms)
    if txn.reference(asked.name) is not None:
        notes.append(f"replaced the existing reference {asked.name!r}")
    how = (asked.index, asked.recall, asked.memory)
    vectors = labelled.kept(vectors)
    return notes + put_cells(txn, asked.name, vectors, meta, tensors, labelled.table(cells.species), how)


def _probes(cells: Cells, maps: list[GeneMap]) -> dict[str, npt.NDArray[Any]]:
    """Return a few cells of the first file with cells, for :func:`scvec.workflows.admin.verify`."""
    labelled = cells.labelled
    k = next(k for k in range(len(maps)) if labelled.n_of_source(k))
    part = labelled.of_source(k)
    there = np.arange(part.stop - part.start)
    if labelled.primary is not None:
        there = there[labelled.primary[part]]
    spread = np.unique(np.linspace(0, len(there) - 1, min(N_PROBES, len(there))).astype(np.int64))
    rows = there[spread]
    [chunk] = cells.matched[k].chunks(maps[k], len(rows), rows)
    return probe_tensors(chunk, labelled.numbers[part][rows])


def space_of(trained: Trained, texts: EncodedGenes | None) -> Space | None:
    """Return the space of the gene texts of the reference; None without texts."""
    return texts.space if texts else getattr(trained.model.members.encoder, "space", None)


def report_of(
    asked: IngestOptions, cells: Cells, trained: Trained, texts: EncodedGenes | None, notes: list[str]
) -> CellsReport:
    """Return the report; ``notes`` are from the training, the reference and the store."""
    labelled, sources, calibration = cells.labelled, cells.labelled.sources, trained.model.calibration
    record, space = calibration.record, space_of(trained, texts)
    findings = [
        *labelled.findings,
        *incoherent_labels(labelled.counts(), labelled.classes, record["labels"]),
    ]
    found = [
        *(note for m in cells.matched for note in (*m.source.notes, *m.notes)),
        *labelled.notes,
        *cells.genes.axis.notes,
        *cells.genes.notes,
        *notes,
        *(texts.notes if texts else ()),
        *(finding.message for finding in findings),
    ]
    # The scale of the values has its own line in the report.
    values = list(dict.fromkeys(source.state.message for source in sources))
    return CellsReport(
        name=asked.name,
        n_cells=labelled.n,
        n_genes_matched=min(m.match.n_matched for m in cells.matched),
        match_summary="; ".join(m.summary for m in cells.matched),
        expression="; ".join(values),
        classes=labelled.counts(),
        encoder=asked.encoder,
        space=space.fingerprint if space else "none",
        texts=texts.counts() if texts else {},
        calibration={
            **{name: record[name] for name in ("accuracy", "macro_f1", "ece")},
            "n_cells": calibration.n_cells,
            "held_out": {
                "batch": f"whole batches of {asked.batch_key or 'file'}",
                "cells": "of the same batches",
                "none": "none",
            }[calibration.held_out],
        },
        seconds={},
        label_findings=[finding.to_dict() for finding in findings],
        notes=[note for note in dict.fromkeys(found) if note not in values],
    )


@dataclass(frozen=True, kw_only=True)
class CellsReport(Report):
    """Result of ``ingest cells``.

    Attributes
    ----------
    match_summary, expression
        One line each: the gene names found, and the scale of the values and their conversion.
    classes
        Cells per label.
    calibration
        Scores on held-out cells (``log_loss``, ``ece``, ``accuracy``, ``macro_f1``), and ``held_out``: how
        the cells were held out.
    label_findings
        Problems of the labels (``kind``, ``labels`` with their numbers of cells, ``message``); the
        messages are also in the notes.
    texts
        Number of gene texts by the source of their vectors; empty if no texts are used.
    seconds
        Seconds per stage.
    """

    name: str
    n_cells: int
    n_genes_matched: int
    match_summary: str
    expression: str
    classes: dict[str, int]
    encoder: str
    space: str
    calibration: dict[str, Any]
    seconds: dict[str, float]
    texts: dict[str, int] = field(default_factory=dict)
    label_findings: list[dict[str, Any]] = field(default_factory=list)
    generation: str = ""

    def _figures(self) -> str:
        names = {"macro_f1": "macro-F1", "ece": "calibration error of the confidence"}
        figures = {k: v for k, v in self.calibration.items() if isinstance(v, float)}
        return ", ".join(f"{names.get(k, k.replace('_', ' '))} {v:.3f}" for k, v in figures.items())

    def _repr_html_(self) -> str:
        scores = self._figures()
        parts = [
            f"<p>reference <b>{escape(self.name)}</b>: {self.n_cells:,} cells of "
            f"{len(self.classes)} labels</p>",
            f"<p>on held-out cells: {escape(scores)}</p>" if scores else "",
            html_table(("label", "cells"), sorted(self.classes.items(), key=lambda row: -row[1])[:20]),
            *(f"<p>{escape(note)}</p>" for note in self.notes),
            "<small>Next: <code>scvec.query(store, cells, "
            f"reference={escape(repr(self.name))})</code></small>",
        ]
        return f"<div>{''.join(parts)}</div>"

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        how = "" if self.encoder == DEFAULT_ENCODER else f" (encoder {self.encoder})"
        lines = [
            f"reference '{self.name}': {self.n_cells:,} cells of {len(self.classes)} labels{how}",
            f"genes: {self.match_summary}",
            *([f"gene texts: {counts_line(self.texts)}"] if self.texts else []),
            f"values: {self.expression}",
            *table(self.classes),
        ]
        if figures := self._figures():
            how = self.calibration.get("held_out", "")
            lines.append(f"on held-out cells{f' ({how})' if how else ''}: {figures}")
        return [*lines, f"took {sum(self.seconds.values()):.1f} s ({times_line(self.seconds)})"]

    @property
    def next_step(self) -> NextStep:
        """The query of new cells with the reference."""
        return NextStep.query(self.name)
