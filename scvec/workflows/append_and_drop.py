"""``scvec ingest cells --append`` and ``scvec rm --where``: cells join a reference and leave it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.types import Progress, no_progress
from scvec.workflows.reports import GrowReport

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from scvec.base.types import Float32
    from scvec.ingest.cells.source import CellSource
    from scvec.stores.store.reference_reader import StoredReference

__all__ = ["append_cells", "drop_cells"]


def append_cells(
    store: Path | str,
    refs: Sequence[Path | str | AnnData],
    *,
    name: str,
    label_key: str,
    species: str = "auto",
    layer: str | None = None,
    values: str = "auto",
    memory: str | int | None = None,
    label_map: Mapping[str, str] | Path | str | None = None,
    force: bool = False,
    device: str = "auto",
    llm: str | None = None,
    progress: Progress = no_progress,
) -> GrowReport:
    """Add cells to a reference that is there, encoded as a query's are. Nothing is trained.

    Their vectors are kept beside the others', in an exact index of their own that is searched too, until they
    are many (`scvec.model.cell_index`). The neighbours know the new cells at once. Cell space, head,
    calibration and novelty stay as they were learned from the first cells, and so do fits to the genes of a
    query, until all cells are ingested together.

    Parameters
    ----------
    name
        A reference of the store.
    label_key
        Column of obs with the labels: those of the reference, or none.
    label_map
        As for :func:`scvec.ingest_cells`; an empty name leaves cells without a label.
    species, layer, values, memory, force, device, llm
        As for :func:`scvec.query`.

    Raises
    ------
    InputError
        If there is no such reference, a label is none of the reference's, or a file cannot be used.
    """
    import pandas as pd

    from scvec.base.device import check_device
    from scvec.ingest.cells.label_columns import as_label_map
    from scvec.ingest.cells.source import CellSource
    from scvec.model.cell_index import changed_meta, counts_of, grows_apart, put_whole
    from scvec.model.matching import match_genes
    from scvec.model.resolvers import stored_resolver
    from scvec.model.storage import CODE_COLUMN, SOURCE_COLUMN, SPECIES_COLUMN, load_model
    from scvec.model.unmatched import query_genes
    from scvec.stores.store.store import Store
    from scvec.workflows.query import check_overlap

    check_device(device)
    names = as_label_map(label_map)
    if not refs:
        raise InputError("no file was given", fix="name at least one h5ad file")
    opened = Store(store)
    opened.reference(name)  # names those there are
    with opened.begin("ingest cells --append", {"name": name, "label_key": label_key}) as txn:
        stored = opened.reference(name)
        model, resolver = load_model(stored, device=device, llm=llm), stored_resolver(opened)
        encoder, wanted = model.members.encoder, model.members.genes
        vectors: list[Float32] = []
        tables, notes, added = [_with_files(stored)], [], []
        for ref in refs:
            with CellSource.open(ref, layer=layer, memory=memory, values=values) as source:
                codes = _codes(source, label_key, names, stored)
                matched = match_genes(source, resolver, species=species, force=force)
                genes = query_genes(opened, stored, matched, device=device, progress=progress)
                check_overlap(source, genes.measured[model.members.vector_genes], force)
                table = _table(source, label_key, stored)
                table[CODE_COLUMN] = codes
                table[SOURCE_COLUMN] = PurePath(source.name).name
                if SPECIES_COLUMN in stored.obs.columns:
                    table[SPECIES_COLUMN] = matched.match.species
                tables.append(table)
                for chunk in matched.chunks(genes):
                    vectors.append(
                        encoder.encode(chunk.select(wanted) if len(wanted) < len(genes.measured) else chunk)
                    )
                    progress("encoding cells", sum(map(len, vectors)), None)
                notes += source.notes
                added.append({"name": source.name, "n_cells": source.n_obs, "species": matched.match.species})
        meta = changed_meta(stored, appended=[*stored.meta.get("appended", []), *added])
        obs, new = pd.concat(tables), np.concatenate(vectors)
        if grows_apart(stored, len(new)):
            txn.add_cells(name, meta={**meta, "counts": counts_of(stored, obs)}, obs=obs, vectors=new)
        else:
            notes += put_whole(txn, stored, meta, obs, np.concatenate([stored.vectors, new]), memory)
        generation = txn.commit()
        notes += txn.notes
    notes.append(
        "neighbours know the new cells; cell space, head, calibration and novelty stay those of the first "
        "cells until all are ingested together"
    )
    return GrowReport(
        name=name,
        n_added=len(obs) - stored.n,
        n_dropped=0,
        n_cells=len(obs),
        generation=str(generation.number),
        notes=list(dict.fromkeys(notes)),
    )


def drop_cells(store: Path | str, reference: str, *, where: str) -> GrowReport:
    """Take the cells out of a reference for which a SQL condition over its obs is true.

    No neighbour is found among them from then on, and their row of obs is gone. Their vectors, and what older
    generations hold of them, stay until :func:`scvec.compact`. What was learned from them, the head and the
    mean cells, stays as it is: to be rid of that too, ingest the others again.

    Raises
    ------
    InputError
        If there is no such reference, no cell fulfils the condition, or none would be left.
    """
    from scvec.model.cell_index import changed_meta, counts_of, put_whole, shrinks_in_place
    from scvec.stores.knowledge.where import rows_where
    from scvec.stores.store.store import Store

    opened = Store(store)
    opened.reference(reference)
    with opened.begin("rm --where", {"reference": reference, "where": where}) as txn:
        stored = opened.reference(reference)
        gone = rows_where(stored.obs, where)
        if len(gone) == stored.n:
            fix = f"to drop the reference itself: scvec rm {reference}"
            raise InputError("no cell would be left in the reference", where, fix, code="where-no-match")
        kept = np.setdiff1d(np.arange(stored.n), gone)
        obs = _with_files(stored).iloc[kept]
        meta = changed_meta(stored, dropped=int(stored.meta.get("dropped", 0)) + len(gone))
        tensors = {**_without_probes(stored, gone), **_sample_without(stored, gone)}
        notes = []
        if shrinks_in_place(stored, len(gone)):
            counted = {**meta, "counts": counts_of(stored, obs)}
            txn.drop_cells(reference, gone, meta=counted, tensors=tensors, obs=obs)
        else:
            vectors = np.ascontiguousarray(stored.vectors[kept])
            notes += put_whole(txn, stored, meta, obs, vectors, None, tensors=tensors)
        generation = txn.commit()
    left = sorted(c for c, n in counts_of(stored, obs).items() if n == 0)
    if left:
        notes.append(f"no cell has these labels any more, but the head knows them: {', '.join(left)}")
    notes.append("their vectors and older generations stay until: scvec compact")
    return GrowReport(
        name=reference,
        n_added=0,
        n_dropped=len(gone),
        n_cells=len(obs),
        generation=str(generation.number),
        notes=notes,
    )


def _with_files(stored: StoredReference) -> pd.DataFrame:
    """Return obs of a reference with the file that each cell came from, which its sizes alone tell so far."""
    from scvec.model.explanation import files_of
    from scvec.model.storage import SOURCE_COLUMN

    return stored.obs.assign(**{SOURCE_COLUMN: files_of(stored)})


def _codes(
    source: CellSource, label_key: str, names: Mapping[str, str], stored: StoredReference
) -> npt.NDArray[np.int64]:
    """Return the class numbers of cells; InputError names a label that the reference has not learned."""
    from scvec.ingest.cells.label_columns import read_names

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
            "ingest all files together without --append, or give --label-map: another label, or none",
            code="label-not-learned",
        )
    return np.array([number[text] for text in given], dtype=np.int64)


def _table(source: CellSource, label_key: str, stored: StoredReference) -> pd.DataFrame:
    """Return obs of new cells, the labels in the column that the reference has them in."""
    table = source.obs.copy()
    own = stored.meta.get("options", {}).get("label_key", label_key)
    if own != label_key:
        table[own] = table[label_key]
    return table


def _without_probes(stored: StoredReference, gone: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors with the cells kept for `verify` that are still there, under their new rows."""
    from scvec.model.storage import probe_cells, probe_tensors

    cells, rows = probe_cells(stored.tensors, len(stored.meta["genes"]))
    still = ~np.isin(rows, gone)
    moved = rows - np.searchsorted(gone, rows)
    kept = type(cells)(cells.X[still], cells.measured)
    return {**stored.tensors, **probe_tensors(kept, moved[still])}


def _sample_without(stored: StoredReference, gone: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of the training cells that are still there, under their new rows.

    Deleted cells take no part in later fits to the genes of a query.
    """
    from scvec.model.storage import sample_of

    if "sample" not in stored.meta:
        return {}
    tensors, _ = sample_of(stored).without(gone).state()
    return {f"sample.{name}": values for name, values in tensors.items()}
