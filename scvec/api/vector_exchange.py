"""``scvec export`` and ``scvec import``: vectors to files of other systems, and back."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scvec.api.reports import ExportReport, ImportReport
from scvec.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from scvec.ingest.vector_files import VectorFile
    from scvec.stores.store import Store
    from scvec.stores.stored import StoredReference, StoredSpace
    from scvec.types import Space

__all__ = ["export", "import_vectors"]

CLASS = "scvec_class"
#: Largest difference between two vectors that are the same one.
SAME = 1e-6


def export(
    store: Path | str,
    reference: str | None = None,
    *,
    to: str,
    output: Path | str,
    space: str | None = None,
) -> ExportReport:
    """Write a reference or a space to a file: its rows, ids, labels and vectors, and which space they are of.

    Parameters
    ----------
    reference
        Whose cells: their obs, ``cell``, ``scvec_class``, ``scvec_row`` and ``vector``.
    to
        ``parquet`` and ``lance`` (vectors as fixed-size lists of float32), or ``h5ad`` (vectors in
        ``obsm['X_scvec']``, no expression).
    space
        Instead of a reference: fingerprint or backbone of a space, for its genes: ``gene_id``, ``species``,
        ``symbol``, ``text_sha256`` and ``vector``.

    Raises
    ------
    InputError
        If there is no such reference, space or format, or the output cannot be written.
    """
    from scvec.ingest.vector_files import check_target, write_vectors
    from scvec.stores.store import Store

    if (reference is None) == (space is None):
        raise InputError("name a reference or a space, and one only", "scvec export", "see: scvec info")
    target = check_target(to, output)
    opened = Store(store)
    if space is not None:
        stored_space = _space(opened, space)
        rows, vectors, tags = stored_space.genes, stored_space.vectors, _gene_tags(stored_space)
        name = stored_space.space.fingerprint
    else:
        stored = opened.reference(str(reference))
        rows, vectors, tags = _cells(stored), stored.vectors, _cell_tags(stored)
        name = stored.name
    write_vectors(target, to, rows, vectors, tags)
    size = sum(p.stat().st_size for p in target.rglob("*") if p.is_file()) if target.is_dir() else 0
    return ExportReport(
        reference=name,
        kind=tags["kind"],
        to=to,
        files=[target],
        n_cells=len(rows),
        size_bytes=size or target.stat().st_size,
    )


def import_vectors(
    store: Path | str,
    file: Path | str,
    *,
    reference: str | None = None,
    memory: str | int | None = None,
    dry_run: bool = False,
) -> ImportReport:
    """Take back what :func:`export` wrote, wherever it has been since.

    Genes become a space of the store, or are added to it: any store will do. Cells go back to the reference
    they came from: their labels and columns are taken, new columns too, and their vectors must be those of
    the reference, since no others could be compared with what its encoder makes of a query. Voices that were
    trained keep the labels that they learned until the reference is ingested again; neighbours vote with
    the new ones.

    Parameters
    ----------
    reference
        Of cells: its name, where that has changed.
    dry_run
        Check only.

    Raises
    ------
    InputError
        The file is of another space or reference, vectors are missing, of another length, not finite or not
        those of the reference, ids are missing or there twice, or a label is none of the reference's.
    """
    from scvec.ingest.vector_files import read_vectors
    from scvec.stores.store import Store

    found = read_vectors(file, memory=memory)
    if found.tags["kind"] == "genes":
        if reference is not None:
            raise InputError("the file holds genes, not cells", str(found.path), "leave out --reference")
        return _import_genes(Store.open(store, create=True), found, dry_run)
    return _import_cells(Store(store), found, reference, dry_run)


def _cells(stored: StoredReference) -> pd.DataFrame:
    from scvec.api.references import CODE_COLUMN
    from scvec.ingest.vector_files import ROW

    classes = np.array([*stored.meta["classes"], ""], dtype=object)
    obs = stored.obs.copy()
    labels = classes[obs.pop(CODE_COLUMN).to_numpy()]  # -1 takes the empty one at the end
    # What an earlier import or another tool called so would else be there twice.
    obs = obs.drop(columns=[c for c in (ROW, CLASS, "cell") if c in obs.columns])
    obs.insert(0, ROW, np.arange(len(obs), dtype=np.int64))
    obs.insert(1, "cell", obs.index.astype(str))
    obs[CLASS] = labels
    return obs.reset_index(drop=True)


def _cell_tags(stored: StoredReference) -> dict[str, Any]:
    space = stored.meta["space"]
    return {
        **_common("cells", stored.n, stored.dim),
        "reference": stored.name,
        "cells": stored.cells_fingerprint,
        "space": space["fingerprint"] if space else "none",
    }


def _gene_tags(stored: StoredSpace) -> dict[str, Any]:
    record = stored.space.to_dict()
    return {
        **_common("genes", stored.n, stored.space.dim),
        "space": record["fingerprint"],
        "space_record": record,
    }


def _common(kind: str, n: int, dim: int) -> dict[str, Any]:
    from scvec import __version__

    return {"kind": kind, "format": 1, "scvec": __version__, "n": n, "dim": dim}


def _space(opened: Store, name: str) -> StoredSpace:
    spaces = opened.spaces()
    matching = [f for f, s in spaces.items() if name in (f, s.space.backbone)]
    if len(matching) == 1:
        return spaces[matching[0]]
    if matching:
        what = f"{len(matching)} spaces have the backbone {name!r}"
        raise InputError(what, str(opened.path), f"give the fingerprint of one: {', '.join(matching)}")
    there = ", ".join(f"{f} ({s.space.backbone})" for f, s in list(spaces.items())[:6])
    raise InputError(
        f"the store has no space {name!r}",
        str(opened.path),
        f"it has: {there or 'none: scvec ingest embeddings'}",
    )


def _checked(found: VectorFile, dim: int, *ids: str) -> Any:
    """Return the vectors, after what any import asks of them; InputError says what is wrong."""
    from scvec.stores.distances import checked_vectors

    where = str(found.path)
    missing = [c for c in ids if c not in found.rows.columns]
    if missing:
        raise InputError(f"the file lacks the columns {', '.join(missing)}", where, "export it again")
    if found.vectors.shape[1] != dim:
        raise InputError(
            f"the vectors have {found.vectors.shape[1]} numbers and not {dim}", where, "export it again"
        )
    try:
        return checked_vectors(found.vectors, dim, "the vectors of the file")
    except InputError as error:
        raise InputError(error.what, where, "export it again") from error


def _import_genes(opened: Store, found: VectorFile, dry_run: bool) -> ImportReport:
    from scvec.types import SPECIES

    space, where = _space_of(found), str(found.path)
    vectors = _checked(found, space.dim, "gene_id", "species", "symbol", "text_sha256")
    table = found.rows.loc[:, ["gene_id", "species", "symbol", "text_sha256"]].astype(str)
    twice = table["gene_id"].duplicated()
    if twice.any():
        raise InputError(f"gene {table['gene_id'][twice].iloc[0]} is there twice", where, "export it again")
    odd = ~(table["species"].isin(SPECIES) & table["text_sha256"].str.fullmatch("[0-9a-f]{64}|"))
    if odd.any():
        raise InputError(f"gene {table['gene_id'][odd].iloc[0]} has no species or text known", where)
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if space.normalized and len(vectors) and np.abs(lengths - 1).max() > 1e-2:
        raise InputError("the vectors are not of length one, as those of their space are", where)
    there = opened.spaces().get(space.fingerprint)
    changed = 0 if there is None else _conflicts(there, table, vectors)
    if changed:
        raise InputError(
            f"{changed:,} genes have another vector for the same text than the store has",
            where,
            "vectors of one space cannot differ: export again from where they are right",
        )
    known = set() if there is None else set(there.genes["gene_id"])
    new = int((~table["gene_id"].isin(known)).sum())
    generation = ""
    with opened.begin("import", {"file": found.path.name, "space": space.fingerprint}) as txn:
        txn.put_space(space, table, vectors, merge=True)
        if not dry_run:
            generation = str(txn.commit().number)
    return ImportReport(
        kind="genes",
        name=space.fingerprint,
        n_rows=len(table),
        n_new=new,
        columns=[],
        generation=generation,
        dry_run=dry_run,
        notes=found.notes,
    )


def _space_of(found: VectorFile) -> Space:
    from scvec.types import Space

    where, record = str(found.path), found.tags.get("space_record")
    try:
        space = Space.from_dict(record if isinstance(record, dict) else {})
    except (TypeError, ValueError) as error:
        raise InputError("the file does not say of which space its vectors are", where) from error
    if {space.fingerprint} != {found.tags.get("space"), found.tags["space_record"].get("fingerprint")}:
        raise InputError(
            "the fingerprint of the space does not fit what the file says of it", where, "export it again"
        )
    return space


def _conflicts(there: StoredSpace, table: pd.DataFrame, vectors: Any) -> int:
    """Return how many genes have the text that the store has and another vector."""
    rows = {g: i for i, g in enumerate(there.genes["gene_id"])}
    at = np.array([rows.get(g, -1) for g in table["gene_id"]], dtype=np.int64)
    here = np.flatnonzero(at >= 0)
    same_text = there.genes["text_sha256"].to_numpy()[at[here]] == table["text_sha256"].to_numpy()[here]
    here = here[same_text]
    differ = np.abs(np.asarray(there.vectors[at[here]]) - vectors[here]).max(axis=1, initial=0.0)
    return int((differ > SAME).sum())


def _import_cells(opened: Store, found: VectorFile, reference: str | None, dry_run: bool) -> ImportReport:
    from scvec.api.merging import changed_meta
    from scvec.api.references import CODE_COLUMN
    from scvec.ingest.vector_files import ROW

    where = str(found.path)
    stored = opened.reference(reference if reference is not None else str(found.tags.get("reference")))
    if not stored.is_the_one(str(found.tags.get("cells"))):
        raise InputError(
            f"the cells of the file are not those of reference {stored.name!r}, or it was ingested again",
            where,
            "export it again; cells of other files: scvec ingest cells",
        )
    space = stored.meta["space"]
    if found.tags.get("space") != (space["fingerprint"] if space else "none"):
        raise InputError("the vectors are of another space than the reference", where, "export it again")
    vectors = _checked(found, stored.dim, ROW, "cell", CLASS)
    order = _order(found, stored)
    rows = found.rows.iloc[order].reset_index(drop=True)
    if list(rows["cell"].astype(str)) != list(stored.obs.index.astype(str)):
        raise InputError(
            "cells have other names than in the reference", where, "leave the column cell as it is"
        )
    differ = 0
    for start in range(0, stored.n, 65_536):
        part = np.asarray(stored.vectors[start : start + 65_536])
        differ += int((np.abs(vectors[order[start : start + 65_536]] - part).max(axis=1) > SAME).sum())
    if differ:
        raise InputError(
            f"the vectors of {differ:,} cells are not those of the reference",
            where,
            "no other could be compared with a query; leave the column vector as it is",
        )
    codes = _codes(rows[CLASS], stored, where)
    obs = rows.drop(columns=[ROW, "cell", CLASS]).set_index(stored.obs.index)
    kept = [c for c in stored.obs.columns if c not in obs.columns and c != CODE_COLUMN]
    for column in kept:
        obs[column] = stored.obs[column]
    obs[CODE_COLUMN] = codes
    old = stored.obs[CODE_COLUMN].to_numpy()
    moved = int((old != codes).sum())
    counts = np.bincount(codes[codes >= 0], minlength=len(stored.meta["classes"]))
    ranked = np.argsort(-counts, kind="stable")
    meta = changed_meta(stored, counts={stored.meta["classes"][i]: int(counts[i]) for i in ranked})
    generation = ""
    with opened.begin("import", {"file": found.path.name, "reference": stored.name}) as txn:
        txn.put_meta(stored.name, meta, obs=obs)
        if not dry_run:
            generation = str(txn.commit().number)
    notes = list(found.notes)
    if moved:
        notes.append(
            f"{moved:,} cells have other labels now: neighbours vote with them, the other voices know them "
            "once the reference is ingested again"
        )
    return ImportReport(
        kind="cells",
        name=stored.name,
        n_rows=stored.n,
        n_new=moved,
        columns=[str(c) for c in obs.columns if c not in stored.obs.columns],
        generation=generation,
        dry_run=dry_run,
        notes=notes,
    )


def _order(found: VectorFile, stored: StoredReference) -> Any:
    """Return the places of the file at which rows 0, 1, ... of the reference are."""
    from scvec.ingest.vector_files import ROW

    where, numbers = str(found.path), found.rows[ROW]
    if numbers.dtype.kind not in "iu":
        raise InputError(f"the column {ROW} holds no row numbers", where, "leave it as it is")
    if numbers.duplicated().any():
        raise InputError(f"row {numbers[numbers.duplicated()].iloc[0]} is there twice", where, "remove one")
    outside = ~numbers.between(0, stored.n - 1)
    if outside.any():
        raise InputError(f"the reference has no row {numbers[outside].iloc[0]}", where, "remove it")
    if len(numbers) != stored.n:
        raise InputError(
            f"{stored.n - len(numbers):,} of the {stored.n:,} cells are missing", where, "import all of them"
        )
    return np.argsort(numbers.to_numpy(), kind="stable")


def _codes(labels: Any, stored: StoredReference, where: str) -> Any:
    classes = [str(c) for c in stored.meta["classes"]]
    number = {**{c: i for i, c in enumerate(classes)}, "": -1}
    given = labels.astype(object).where(labels.notna(), "").astype(str)
    unknown = sorted(set(given) - set(number))
    if unknown:
        near = difflib.get_close_matches(unknown[0], classes, n=1)
        shown = re.sub(r"[^\x20-\x7e]", "?", unknown[0])[:60]
        raise InputError(
            f"{shown!r} is no label of the reference",
            where,
            (f"did you mean {near[0]!r}? " if near else "") + "new labels need training: scvec ingest cells",
        )
    return given.map(number).to_numpy(dtype=np.int64)
