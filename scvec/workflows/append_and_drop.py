"""``scvec ingest cells --append`` and ``scvec rm --where``: append cells to a reference, and delete cells."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from scvec.base.errors import InputError
from scvec.base.options import options_of, takes_options
from scvec.base.results import NextStep, Report
from scvec.base.types import Progress, no_progress
from scvec.ingest.cells.cell_vectors import open_cells
from scvec.ingest.cells.label_columns import as_label_map, read_names
from scvec.ingest.cells.source import CellSource
from scvec.model.cell_index import changed_meta, counts_of, grows_apart, put_whole, shrinks_in_place
from scvec.model.copies import (
    HASH_COLUMN,
    Seen,
    cell_hashes,
    gene_keys,
    is_primary,
    left_out_notes,
    source_digest,
)
from scvec.model.explanation import files_of
from scvec.model.gene_members import without_rows
from scvec.model.matching import by_gene_sets, match_genes, obsm_key, query_genes, reference_share
from scvec.model.resolvers import stored_resolver
from scvec.model.storage import (
    CODE_COLUMN,
    FACTOR,
    SOURCE_COLUMN,
    SPECIES_COLUMN,
    genes_of,
    load_model,
    probe_cells,
    probe_tensors,
    sample_of,
)
from scvec.stores.knowledge.where import rows_where
from scvec.stores.store.store import Store
from scvec.workflows.ingest_options import AppendOptions

if TYPE_CHECKING:
    from anndata import AnnData

    from scvec.base.types import Float32
    from scvec.model.reference import ReferenceModel
    from scvec.stores.store.reference_reader import StoredReference

__all__ = ["GrowReport", "append_cells", "drop_cells"]


@takes_options(AppendOptions)
def append_cells(
    store: Path | str,
    refs: Sequence[Path | str | AnnData],
    options: AppendOptions | None = None,
    *,
    progress: Progress = no_progress,
    **keywords: Any,
) -> GrowReport:
    """Append cells to a reference. They are encoded like a query; nothing is trained.

    The new vectors form a segment with an exact index, until there are many (`scvec.model.cell_index`). The
    neighbours include the new cells at once. Cell space, head, calibration, novelty and fits to the genes of
    a query do not change until all cells are ingested together.

    Parameters
    ----------
    store
        Folder of the store.
    options, keywords
        :class:`AppendOptions`, or its fields as keywords; ``name`` and ``label_key`` are required. Each cell
        must have a label of the reference, or none.

    Returns
    -------
    GrowReport
        Number of appended cells. Cells that the reference has already are left out (``n_known``), so that
        appending a file twice changes nothing.

    Raises
    ------
    InputError
        If the reference does not exist or lacks a label, or a file cannot be used.
    """
    asked = options_of(AppendOptions, options, keywords)
    names = as_label_map(asked.label_map)
    if not refs:
        raise InputError("no file was given", fix="give at least one h5ad file", code="usage")
    opened = Store(store)
    opened.reference(asked.name)  # raises an error that lists the references
    record = {"name": asked.name, "label_key": asked.label_key}
    with opened.begin("ingest cells --append", record) as txn:
        stored = opened.reference(asked.name)
        if stored.meta.get("without_cells"):
            what = "cells cannot be appended, because the reference was packed without its cells"
            raise InputError(what, asked.name, "pull a pack with cells, or ingest your own reference")
        model = load_model(stored, device=asked.device, llm=asked.llm)
        known = _Known(stored)
        added = [_encoded(opened, stored, model, known, ref, names, asked, progress) for ref in refs]
        n_known, n_added = known.n_met, sum(len(part.obs) for part in added)
        notes = [note for part in added for note in part.notes]
        if n_added == 0:
            return GrowReport(
                name=asked.name,
                n_added=0,
                n_dropped=0,
                n_known=n_known,
                n_cells=stored.n,
                generation=str(opened.generation.number),
                notes=list(dict.fromkeys(notes)),
            )
        meta = changed_meta(
            stored,
            appended=[*stored.meta.get("appended", []), *(part.record for part in added if len(part.obs))],
        )
        obs = pd.concat([_with_files(stored), *(part.obs for part in added)])
        vectors = np.concatenate([part.vectors for part in added])
        if grows_apart(stored, len(vectors)):
            counted = {**meta, "counts": counts_of(stored, obs)}
            txn.add_cells(asked.name, meta=counted, obs=obs, vectors=vectors)
        else:
            whole = np.concatenate([stored.vectors, vectors])
            notes += put_whole(txn, stored, meta, obs, whole, asked.memory)
        version = txn.commit()
        notes += txn.notes
    notes.append(
        "neighbours include the new cells; cell space, head, calibration and novelty are still those of the "
        "first cells, until all cells are ingested together"
    )
    return GrowReport(
        name=asked.name,
        n_added=n_added,
        n_dropped=0,
        n_known=n_known,
        n_cells=len(obs),
        generation=str(version.number),
        notes=list(dict.fromkeys(notes)),
    )


@dataclass(frozen=True)
class _Added:
    """New cells of one file: obs, vectors (n, embed_dim), the record for the reference, and notes."""

    obs: pd.DataFrame
    vectors: Float32
    record: dict[str, Any]
    notes: list[str]


def _encoded(
    opened: Store,
    stored: StoredReference,
    model: ReferenceModel,
    known: _Known,
    ref: Path | str | AnnData,
    names: Mapping[str, str],
    asked: AppendOptions,
    progress: Progress,
) -> _Added:
    """Return the cells of a file that the reference lacks, encoded like a query."""
    encoder, wanted = model.members.encoder, model.members.genes
    key = obsm_key(stored)
    with open_cells(ref, key, layer=asked.layer, memory=asked.memory, values=asked.values) as source:
        codes = _codes(source, asked.label_key, names, stored)
        matched = match_genes(
            source,
            stored_resolver(opened),
            species=asked.species,
            force=asked.force,
            reference=stored.meta["species"],
        )
        alike, few = by_gene_sets(matched, "each is encoded by the genes that it measured"), list[str]()
        parts = []
        for part in alike:
            genes = query_genes(
                opened, stored, part, device=asked.device, force=asked.force, progress=progress
            )
            few += reference_share(part, genes.measured[model.members.vector_genes], force=asked.force)[1]
            parts.append((part, genes))
        obs = _table(source, asked.label_key, stored)
        obs[CODE_COLUMN], obs[SOURCE_COLUMN] = codes, PurePath(source.name).name
        if SPECIES_COLUMN in stored.obs.columns:
            obs[SPECIES_COLUMN] = matched.match.species
        factors = stored.tensors.get(FACTOR + matched.match.species)
        primary, done = is_primary(source), 0
        cells, new = np.zeros(source.n_obs, dtype=np.int64), np.zeros(source.n_obs, dtype=bool)
        vectors, at = [np.empty((0, stored.dim), dtype=np.float32)], [np.zeros(0, dtype=np.int64)]
        for part, genes in parts:
            rows, start = np.arange(source.n_obs) if part.rows is None else part.rows, 0
            for chunk in part.chunks(genes):
                here = rows[start : start + len(chunk)]
                start += len(chunk)
                cells[here] = cell_hashes(chunk.X, known.keys, factors)
                new[here] = is_new = known.seen.first(cells[here], primary[here])
                some = chunk if is_new.all() else chunk.take(np.flatnonzero(is_new))
                if len(some):
                    some = some.select(wanted) if len(wanted) < len(genes.measured) else some
                    vectors.append(encoder.encode(some))
                    at.append(here[is_new])
                done += len(chunk)
                progress("encoding cells", done, source.n_obs)
        encoded = np.concatenate(vectors)[np.argsort(np.concatenate(at))]
        digest = source_digest(cells)
        if digest in known.digests:  # also recognises cells with too few genes for a hash
            encoded = encoded[cells[new] != 0]
            new &= cells != 0
        known.digests.add(digest)
        if HASH_COLUMN in stored.obs.columns:
            obs[HASH_COLUMN] = cells
        n_met = int((primary & ~new).sum())
        known.n_met += n_met
        cell_notes = left_out_notes(n_met, int((~primary).sum())) + _same_names(stored, obs.index[new])
        record = {
            "name": source.name,
            "n_cells": int(new.sum()),
            "labels": {label: n for label, n in counts_of(stored, obs[new]).items() if n},
            "species": matched.match.species,
            "digest": digest,
            "date": _now(),
        }
        of_genes = [f"{p.name}: {n}" if p.name else n for p, genes in parts for n in genes.notes]
        notes = [*source.notes, *alike[0].notes, *of_genes, *few, *cell_notes]
        return _Added(obs[new], encoded, record, notes)


#: Fraction of new cells with a name of the reference's. The barcodes of two 10x samples share under 1%.
SAME_NAMES = 0.1


def _same_names(stored: StoredReference, names: pd.Index) -> list[str]:
    """Return a warning if many new cells have names of cells of the reference.

    Names such as ``12`` and ``cell_12`` only count cells, so that they are the same in any two files.
    """
    same = names.isin(stored.obs.index) & ~names.astype(str).str.fullmatch(r"\D{0,12}\d+")
    if same.sum() <= SAME_NAMES * len(names):
        return []
    return [
        f"warning: {same.sum():,} of {len(names):,} appended cells have the names of cells of the reference, "
        "but other values; the same cells with fewer genes or corrected counts count twice now"
    ]


class _Known:
    """Hashes of the cells that a reference has or that are about to be appended, and of their files."""

    def __init__(self, stored: StoredReference) -> None:
        # A pack without cells has no hashes.
        there = HASH_COLUMN in stored.obs.columns
        self.seen = Seen(stored.obs[HASH_COLUMN].to_numpy(dtype=np.int64) if there else None)
        files = [*stored.meta.get("sources", []), *stored.meta.get("appended", [])]
        self.digests = {str(file.get("digest")) for file in files}
        self.keys = gene_keys(genes_of(stored))
        self.n_met = 0


def drop_cells(store: Path | str, reference: str, *, where: str) -> GrowReport:
    """Delete the cells of a reference for which a SQL condition over its obs is true.

    The cells are no longer neighbours, and their rows of obs are deleted. Their vectors and older versions of
    the store stay until :func:`scvec.compact`. The head and the class means do not change. To remove the
    cells from these too, ingest the other cells again.

    Parameters
    ----------
    store
        Folder of the store.
    reference
        Name of the reference.
    where
        Condition, such as ``"donor = 'human2'"``.

    Raises
    ------
    InputError
        If the reference does not exist, no cell fulfils the condition, or no cell would be left.
    """
    opened = Store(store)
    opened.reference(reference)
    with opened.begin("rm --where", {"reference": reference, "where": where}) as txn:
        stored = opened.reference(reference)
        deleted = rows_where(stored.obs, where)
        if len(deleted) == stored.n:
            fix = f"to delete the whole reference: scvec rm {reference}"
            raise InputError("no cell would be left in the reference", where, fix, code="where-no-match")
        kept = np.setdiff1d(np.arange(stored.n), deleted)
        obs = _with_files(stored).iloc[kept]
        labels = {label: n for label, n in counts_of(stored, stored.obs.iloc[deleted]).items() if n}
        deletion = {"n_cells": len(deleted), "labels": labels, "date": _now()}
        meta = changed_meta(stored, deletions=[*stored.meta.get("deletions", []), deletion])
        tensors = {
            **_without_probes(stored, deleted),
            **_sample_without(stored, deleted),
            **without_rows(stored, deleted),
        }
        notes = []
        if shrinks_in_place(stored, len(deleted)):
            counted = {**meta, "counts": counts_of(stored, obs)}
            txn.drop_cells(reference, deleted, meta=counted, tensors=tensors, obs=obs)
        else:
            vectors = np.ascontiguousarray(stored.vectors[kept])
            notes += put_whole(txn, stored, meta, obs, vectors, None, tensors=tensors)
        version = txn.commit()
    left = sorted(c for c, n in counts_of(stored, obs).items() if n == 0)
    if left:
        notes.append(f"these labels have no cells left, but the head still predicts them: {', '.join(left)}")
    notes.append("scvec compact deletes their vectors and the older versions of the store")
    return GrowReport(
        name=reference,
        n_added=0,
        n_dropped=len(deleted),
        n_cells=len(obs),
        generation=str(version.number),
        notes=notes,
    )


def _now() -> str:
    """Return the time as text, in UTC."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _with_files(stored: StoredReference) -> pd.DataFrame:
    """Return obs of a reference with a column for the source file of each cell.

    Without this column, the files follow from the order of the cells and the number of cells per file.
    """
    return stored.obs.assign(**{SOURCE_COLUMN: files_of(stored)})


def _codes(
    source: CellSource, label_key: str, names: Mapping[str, str], stored: StoredReference
) -> npt.NDArray[np.int64]:
    """Return the class numbers of cells (n,) int64. InputError names a label that the reference lacks."""
    classes = list(stored.meta["classes"])
    number = {**{c: i for i, c in enumerate(classes)}, "": -1}
    given = [names.get(str(text), str(text)) for text in read_names(source, label_key)]
    unknown = sorted(set(given) - set(number))
    if unknown:
        near = difflib.get_close_matches(unknown[0], classes, n=1)
        raise InputError(
            f"the reference has not learned the label '{unknown[0]}'"
            + (f" (it has '{near[0]}')" if near else "")
            + (f", and {len(unknown) - 1} others" if len(unknown) > 1 else ""),
            f"{source.name} (obs['{label_key}'])",
            "ingest all files together without --append, or map it to another label or none with --label-map",
            code="label-not-learned",
        )
    return np.array([number[text] for text in given], dtype=np.int64)


def _table(source: CellSource, label_key: str, stored: StoredReference) -> pd.DataFrame:
    """Return obs of new cells, with the labels in the label column of the reference."""
    table = source.obs.copy()
    own = stored.meta.get("options", {}).get("label_key", label_key)
    if own != label_key:
        table[own] = table[label_key]
    return table


def _without_probes(stored: StoredReference, deleted: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors of the cells kept for `verify`, without deleted cells and with new row numbers."""
    cells, rows = probe_cells(stored.tensors, len(stored.meta["genes"]))
    still = ~np.isin(rows, deleted)
    moved = rows - np.searchsorted(deleted, rows)
    kept = type(cells)(cells.X[still], cells.measured)
    return {**stored.tensors, **probe_tensors(kept, moved[still])}


def _sample_without(stored: StoredReference, deleted: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of the training cells, without deleted cells and with new row numbers.

    Later fits to the genes of a query do not use deleted cells.
    """
    if "sample" not in stored.meta:
        return {}
    tensors, _ = sample_of(stored).without(deleted).state()
    return {f"sample.{name}": values for name, values in tensors.items()}


@dataclass(frozen=True, kw_only=True)
class GrowReport(Report):
    """Result of appending cells to a reference, or of deleting cells.

    Attributes
    ----------
    n_known
        Number of cells in the files that were left out, because the reference has them already.
    """

    name: str
    n_added: int
    n_dropped: int
    n_cells: int
    n_known: int = 0
    generation: str = ""

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        done = f"{self.n_added:,} cells appended" if self.n_added else f"{self.n_dropped:,} cells deleted"
        if not self.n_added and not self.n_dropped:
            done = "nothing to append"
        return [f"reference '{self.name}': {done}, {self.n_cells:,} now"]

    @property
    def next_step(self) -> NextStep | None:
        """The query of new cells with the larger reference."""
        return NextStep.query(self.name) if self.n_added else None
