"""``scvec export`` and ``scvec import``: vectors to files of other systems, and back."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scvec.base.errors import InputError
from scvec.workflows.reports import ExportReport, ImportReport

if TYPE_CHECKING:
    from scvec.ingest.cells.vector_files import VectorFile
    from scvec.stores.store.reference_reader import StoredReference, StoredSpace
    from scvec.stores.store.store import Store

__all__ = ["export", "import_vectors"]

CLASS = "scvec_class"
#: Largest difference between two vectors that are the same one.
SAME = 1e-6
AGAIN = "export it again"


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
        ``parquet`` (vectors as fixed-size lists of float32), or ``h5ad`` (vectors in ``obsm['X_scvec']``, no
        expression).
    space
        Instead of a reference: fingerprint or backbone of a space, for its genes: ``gene_id``, ``species``,
        ``symbol``, ``text_sha256`` and ``vector``.

    Raises
    ------
    InputError
        If there is no such reference, space or format, or the output cannot be written.
    """
    from scvec import __version__
    from scvec.ingest.cells.vector_files import check_target, write_vectors
    from scvec.stores.store.store import Store

    if (reference is None) == (space is None):
        raise InputError("name a reference or a space, and one only", "scvec export", "see: scvec info")
    target, opened = check_target(to, output), Store(store)
    stored: Any = opened.reference(str(reference)) if space is None else _space(opened, space)
    if space is None:
        name, rows, kind, dim = stored.name, _cells(stored), "cells", stored.dim
        tags = {"reference": name, "cells": stored.cells_fingerprint, "space": _space_of(stored)}
    else:
        name, rows, kind, dim = stored.space.fingerprint, stored.genes, "genes", stored.space.dim
        tags = {"space": name, "space_record": stored.space.to_dict()}
    tags |= {"kind": kind, "format": 1, "scvec": __version__, "n": stored.n, "dim": dim}
    write_vectors(target, to, rows, stored.vectors, tags)
    size = target.stat().st_size
    return ExportReport(reference=name, kind=kind, to=to, files=[target], n_cells=len(rows), size_bytes=size)


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
    the reference, since no others could be compared with what its encoder makes of a query. Classifiers that
    were trained keep the labels that they learned until the reference is ingested again; neighbours vote with
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
    from scvec.ingest.cells.vector_files import read_vectors
    from scvec.stores.store.store import Store

    found = read_vectors(file, memory=memory)
    if found.tags["kind"] == "cells":
        return _import_cells(Store(store), found, reference, dry_run)
    _need(reference is None, found, "the file holds genes, not cells", "leave out --reference")
    return _import_genes(Store.open(store, create=True), found, dry_run)


def _need(fine: Any, found: VectorFile, what: str, fix: str = AGAIN) -> None:
    if not fine:
        raise InputError(what, str(found.path), fix)


def _first(values: Any) -> str:
    return str(next(iter(values), ""))


def _space_of(stored: StoredReference) -> str:
    space = stored.meta["space"]
    return str(space["fingerprint"]) if space else "none"


def _space(opened: Store, name: str) -> StoredSpace:
    spaces = opened.spaces()
    matching = [f for f, s in spaces.items() if name in (f, s.space.backbone)]
    if len(matching) == 1:
        return spaces[matching[0]]
    there = ", ".join(f"{f} ({s.space.backbone})" for f, s in list(spaces.items())[:6])
    what = (
        f"{len(matching)} spaces have the backbone {name!r}"
        if matching
        else f"the store has no space {name!r}"
    )
    raise InputError(
        what,
        str(opened.path),
        f"it has: {there or 'none: scvec ingest embeddings'}",
        code="space-not-named" if matching else "unknown-space",
    )


def _cells(stored: StoredReference) -> Any:
    from scvec.ingest.cells.vector_files import ROW
    from scvec.model.storage import CODE_COLUMN

    classes = np.array([*stored.meta["classes"], ""], dtype=object)
    # What an earlier import or another tool called so would else be there twice.
    obs = stored.obs.drop(columns=[ROW, CLASS, "cell"], errors="ignore")
    labels = classes[obs.pop(CODE_COLUMN).to_numpy()]  # -1 takes the empty one at the end
    obs.insert(0, ROW, np.arange(len(obs), dtype=np.int64))
    obs.insert(1, "cell", obs.index.astype(str))
    return obs.assign(**{CLASS: labels}).reset_index(drop=True)


def _checked(found: VectorFile, dim: int, *ids: str) -> Any:
    """Return the vectors, after what any import asks of them."""
    from scvec.stores.index.distances import checked_vectors

    missing = [c for c in ids if c not in found.rows.columns]
    _need(not missing, found, f"the file lacks the columns {', '.join(missing)}")
    n = found.vectors.shape[1]
    _need(n == dim, found, f"the vectors have {n} numbers and not {dim}")
    try:
        return checked_vectors(found.vectors, dim, "the vectors of the file")
    except InputError as error:
        raise InputError(error.what, str(found.path), AGAIN, code=error.code) from error


def _import_genes(opened: Store, found: VectorFile, dry_run: bool) -> ImportReport:
    from scvec.base.types import SPECIES, Space

    record = found.tags.get("space_record")
    try:
        space = Space.from_dict(record if isinstance(record, dict) else {})
    except (TypeError, ValueError) as error:
        what = "the file does not say of which space its vectors are"
        raise InputError(what, str(found.path), AGAIN, code="wrong-format") from error
    named = {found.tags.get("space"), found.tags["space_record"].get("fingerprint")}
    _need(named == {space.fingerprint}, found, "the fingerprint does not fit what the file says of its space")
    columns = ["gene_id", "species", "symbol", "text_sha256"]
    vectors = _checked(found, space.dim, *columns)
    table = found.rows.loc[:, columns].astype(str)
    genes = table["gene_id"]
    twice = genes[genes.duplicated()]
    _need(twice.empty, found, f"gene {_first(twice)} is there twice")
    odd = genes[~(table["species"].isin(SPECIES) & table["text_sha256"].str.fullmatch("[0-9a-f]{64}|"))]
    _need(odd.empty, found, f"gene {_first(odd)} has no species or text known")
    off = np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) - 1).max(initial=0.0)
    _need(
        not space.normalized or off <= 1e-2,
        found,
        "the vectors are not of length one, as those of their space",
    )
    there = opened.spaces().get(space.fingerprint)
    rows = {} if there is None else {g: i for i, g in enumerate(there.genes["gene_id"])}
    at = np.array([rows.get(g, -1) for g in genes], dtype=np.int64)
    if there is not None:
        known = np.flatnonzero(at >= 0)
        known = known[
            there.genes["text_sha256"].to_numpy()[at[known]] == table["text_sha256"].to_numpy()[known]
        ]
        off = np.abs(np.asarray(there.vectors[at[known]]) - vectors[known]).max(axis=1, initial=0.0)
        what = f"{(off > SAME).sum():,} genes have another vector for the same text than the store has"
        _need((off <= SAME).all(), found, what, "export again from where they are right")
    generation = ""
    with opened.begin("import", {"file": found.path.name, "space": space.fingerprint}) as txn:
        txn.put_space(space, table, vectors, merge=True)
        if not dry_run:
            generation = str(txn.commit().number)
    return ImportReport(
        kind="genes",
        name=space.fingerprint,
        n_rows=len(table),
        n_new=int((at < 0).sum()),
        columns=[],
        generation=generation,
        dry_run=dry_run,
        notes=found.notes,
    )


def _import_cells(opened: Store, found: VectorFile, reference: str | None, dry_run: bool) -> ImportReport:
    from scvec.ingest.cells.vector_files import ROW
    from scvec.model.cell_index import changed_meta
    from scvec.model.storage import CODE_COLUMN

    stored = opened.reference(reference if reference is not None else str(found.tags.get("reference")))
    what = f"the cells are not those of reference {stored.name!r}, or it was ingested again"
    same = stored.is_the_one(str(found.tags.get("cells")))
    _need(same, found, what, "export it again; cells of other files: scvec ingest cells")
    _need(
        found.tags.get("space") == _space_of(stored),
        found,
        "the vectors are of another space than the reference",
    )
    vectors = _checked(found, stored.dim, ROW, "cell", CLASS)
    numbers = found.rows[ROW]
    _need(numbers.dtype.kind in "iu", found, f"the column {ROW} holds no row numbers", "leave it as it is")
    twice, outside = numbers[numbers.duplicated()], numbers[~numbers.between(0, stored.n - 1)]
    _need(twice.empty, found, f"row {_first(twice)} is there twice", "remove one")
    _need(outside.empty, found, f"the reference has no row {_first(outside)}", "remove it")
    missing = f"{stored.n - len(numbers):,} of the {stored.n:,} cells are missing"
    _need(len(numbers) == stored.n, found, missing, "import all of them")
    order = np.argsort(numbers.to_numpy(), kind="stable")
    rows = found.rows.iloc[order].reset_index(drop=True)
    same = list(rows["cell"].astype(str)) == list(stored.obs.index.astype(str))
    _need(same, found, "cells have other names than in the reference", "leave the column cell as it is")
    differ = 0
    for start in range(0, stored.n, 65_536):
        part = np.asarray(stored.vectors[start : start + 65_536])
        differ += int((np.abs(vectors[order[start : start + 65_536]] - part).max(axis=1) > SAME).sum())
    what = f"the vectors of {differ:,} cells are not those of the reference"
    _need(not differ, found, what, "leave the column vector as it is: no other can be compared with a query")
    classes = [str(c) for c in stored.meta["classes"]]
    given = rows[CLASS].astype(object).where(rows[CLASS].notna(), "").astype(str)
    odd = sorted({*given} - {*classes, ""})
    near = difflib.get_close_matches(_first(odd), classes, n=1)
    fix = (f"did you mean {near[0]!r}? " if near else "") + "new labels need training: scvec ingest cells"
    _need(not odd, found, f"{_first(odd)[:60]!r} is no label of the reference", fix)
    codes = given.map({**{c: i for i, c in enumerate(classes)}, "": -1}).to_numpy(dtype=np.int64)
    obs = rows.drop(columns=[ROW, "cell", CLASS]).set_index(stored.obs.index)
    for column in [c for c in stored.obs.columns if c not in obs.columns and c != CODE_COLUMN]:
        obs[column] = stored.obs[column]
    obs[CODE_COLUMN] = codes
    counts = np.bincount(codes[codes >= 0], minlength=len(classes))
    ranked = {stored.meta["classes"][i]: int(counts[i]) for i in np.argsort(-counts, kind="stable")}
    generation = ""
    with opened.begin("import", {"file": found.path.name, "reference": stored.name}) as txn:
        txn.put_meta(stored.name, changed_meta(stored, counts=ranked), obs=obs)
        if not dry_run:
            generation = str(txn.commit().number)
    moved = int((stored.obs[CODE_COLUMN].to_numpy() != codes).sum())
    note = f"{moved:,} cells have other labels now: neighbours vote with them, trained classifiers "
    return ImportReport(
        kind="cells",
        name=stored.name,
        n_rows=stored.n,
        n_new=moved,
        columns=[str(c) for c in obs.columns if c not in stored.obs.columns],
        generation=generation,
        dry_run=dry_run,
        notes=[*found.notes, *([f"{note}know them once the reference is ingested again"] if moved else [])],
    )
