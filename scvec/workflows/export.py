"""``scvec export`` and ``scvec import``: write vectors to files for other systems, and read them back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from scvec import __version__
from scvec.base.errors import InputError, ResourceError, check_choice, did_you_mean
from scvec.base.resources import parse_memory
from scvec.base.results import WITHOUT_DRY_RUN, NextStep, Report, human_bytes
from scvec.base.types import Float32, Space
from scvec.ingest.cells.readers.anndata import read_table
from scvec.ingest.cells.readers.checks import open_h5ad
from scvec.ingest.cells.write import check_output, replacing
from scvec.model.cell_index import changed_meta
from scvec.model.copies import HASH_COLUMN
from scvec.model.storage import CODE_COLUMN
from scvec.stores.index.distances import checked_vectors
from scvec.stores.store.reference_reader import StoredReference, StoredSpace
from scvec.stores.store.store import Store

__all__ = [
    "ROW",
    "VECTOR",
    "ExportReport",
    "ImportReport",
    "VectorFile",
    "check_target",
    "export",
    "import_vectors",
    "read_vectors",
    "write_vectors",
]

#: Columns that scvec adds: row number and vector.
ROW, VECTOR = "scvec_row", "vector"
#: Key of the JSON tags in a file, and number of rows written at once.
TAGS, BLOCK = "scvec", 65_536


@dataclass(frozen=True)
class VectorFile:
    """Contents of a file: a table of n rows, (n, dim) float32 vectors (unchecked), and tags."""

    path: Path
    rows: pd.DataFrame
    vectors: Float32
    tags: dict[str, Any]
    notes: list[str]


def check_target(to: str, output: str | os.PathLike[str]) -> Path:
    """Return the path of the output. InputError if the format is unknown or does not fit the path."""
    path = check_output(output)
    check_choice("--to", to, ("parquet", "h5ad"))
    if path.suffix in (".parquet", ".h5ad") and path.suffix != f".{to}":
        what = f"the output ends in {path.suffix}, but the format is {to}"
        raise InputError(what, str(path), f"give -o NAME.{to}, or another --to", code="output-format")
    return path


def write_vectors(path: Path, to: str, rows: pd.DataFrame, vectors: Float32, tags: Mapping[str, Any]) -> None:
    """Write rows and their vectors (n, dim) float32 atomically.

    ``tags`` are JSON values. An existing column with the name of the vector column is renamed. The tag
    ``columns`` records the new name.
    """
    other = next(f"{VECTOR}{'_' * n}" for n in range(1, 99) if f"{VECTOR}{'_' * n}" not in rows.columns)
    table = rows.rename(columns={VECTOR: other})
    said = {**tags, "columns": {other: VECTOR} if VECTOR in rows.columns else {}}
    with replacing(path) as part:
        if to == "h5ad":
            _write_h5ad(part, table, vectors, said)
        else:
            _write_parquet(part, table, vectors, said)


def _write_h5ad(part: Path, table: pd.DataFrame, vectors: Float32, tags: Mapping[str, Any]) -> None:
    import anndata

    obs = table.set_index(_key(tags))
    obs.index = obs.index.astype(str)
    said = {k: str(tags[k]) for k in ("reference", "space") if k in tags} | {"export": json.dumps(tags)}
    anndata.AnnData(obs=obs, obsm={"X_scvec": np.asarray(vectors)}, uns={TAGS: said}).write_h5ad(part)


def _write_parquet(part: Path, table: pd.DataFrame, vectors: Float32, tags: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain, dim = pa.Schema.from_pandas(table, preserve_index=False), vectors.shape[1]
    said = {TAGS: json.dumps(tags)} | {
        f"scvec.{k}": str(tags[k]) for k in ("reference", "space") if k in tags
    }
    schema = pa.schema([*plain, pa.field(VECTOR, pa.list_(pa.float32(), dim))], metadata=said)
    with pq.ParquetWriter(part, schema, compression="zstd") as writer:
        for start in range(0, len(table), BLOCK):
            block, rows = vectors[start : start + BLOCK], table.iloc[start : start + BLOCK]
            lists = pa.array(np.ascontiguousarray(block, dtype=np.float32).ravel())
            columns = pa.RecordBatch.from_pandas(rows, schema=plain, preserve_index=False).columns
            columns.append(pa.FixedSizeListArray.from_arrays(lists, dim))
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def read_vectors(path: str | os.PathLike[str], *, memory: str | int | None = None) -> VectorFile:
    """Read a file of :func:`write_vectors`, or of another program that kept its tags. It is not trusted.

    Raises
    ------
    InputError
        If the file cannot be read.
    ResourceError
        If it needs more than ``memory``.
    """
    where = Path(path)
    if not where.is_file():
        raise InputError("there is no such file", str(where), "check the name", code="file-not-found")
    read = _read_h5ad if where.suffix == ".h5ad" else _read_parquet
    try:
        rows, vectors, tags, notes = read(where, parse_memory(memory))
    except (InputError, ResourceError):
        raise
    except MemoryError as error:
        raise ResourceError("the file needs more memory than is available", str(where)) from error
    except Exception as error:  # readers raise errors of all kinds on manipulated files
        reason = (str(error).split("\n")[0] or type(error).__name__)[:160]
        raise InputError(
            f"the file cannot be read: {reason}", str(where), "export it again", code="damaged-file"
        ) from error
    names = tags.get("columns")
    renamed = {str(k): str(v) for k, v in names.items()} if isinstance(names, dict) else {}
    return VectorFile(where, rows.rename(columns=renamed), vectors, tags, notes)


_Read: TypeAlias = tuple[pd.DataFrame, Float32, dict[str, Any], list[str]]


def _read_h5ad(path: Path, budget: int) -> _Read:
    with open_h5ad(path, memory=budget) as file:
        tags = _tags(file["uns/scvec/export"][()] if "uns/scvec/export" in file else None, path)
        vectors = file.get("obsm/X_scvec")
        if getattr(vectors, "ndim", 0) != 2 or vectors.dtype.kind != "f":
            raise InputError(
                "obsm['X_scvec'] holds no vectors", str(path), "export it again", code="wrong-format"
            )
        _check_size(vectors.size * 4, budget, path)
        matrix = np.asarray(vectors[:], dtype=np.float32)
        obs, notes = read_table(file["obs"], str(path), budget)
    key = _key(tags)
    return obs.drop(columns=[key], errors="ignore").reset_index(names=key), matrix, tags, list(notes)


def _read_parquet(path: Path, budget: int) -> _Read:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    groups = range(file.metadata.num_row_groups)
    _check_size(sum(file.metadata.row_group(i).total_byte_size for i in groups), budget, path)
    tags = _tags((file.schema_arrow.metadata or {}).get(TAGS.encode()), path)
    table = file.read()
    kind = table.schema.field(VECTOR).type if VECTOR in table.column_names else None
    if kind is None or not (pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type)):
        raise InputError(
            f"no column {VECTOR!r} holds vectors of one length",
            str(path),
            "export it again",
            code="wrong-format",
        )
    column = table.column(VECTOR)
    if column.null_count:
        raise InputError(
            f"{column.null_count:,} rows have no vector", str(path), "export it again", code="wrong-format"
        )
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    vectors = np.concatenate([np.empty(0, np.float32), *flat], dtype=np.float32)
    rows = table.drop_columns([VECTOR]).to_pandas()
    return rows, vectors.reshape(len(table), kind.list_size), tags, []


def _key(tags: Mapping[str, Any]) -> str:
    return "cell" if tags.get("kind") == "cells" else "gene_id"


def _tags(said: object, path: Path) -> dict[str, Any]:
    try:
        tags = json.loads(said) if isinstance(said, str | bytes) else None
    except (ValueError, RecursionError):
        tags = None
    if not isinstance(tags, dict) or tags.get("kind") not in ("cells", "genes"):
        fix = "give a file of scvec export; import other vectors of genes with scvec import-legacy"
        raise InputError("scvec export did not write this file", str(path), fix, code="wrong-format")
    return tags


def _check_size(claimed: int, budget: int, path: Path) -> None:
    if claimed > budget:
        what = f"the file needs {human_bytes(claimed)} of memory"
        raise ResourceError(what, str(path), "raise the limit with --memory, such as 8G")


CLASS = "scvec_class"
#: Largest difference between two copies of a vector.
SAME = 1e-6
AGAIN = "export it again"


def export(
    store: Path | str, reference: str | None = None, *, to: str, output: Path | str, space: str | None = None
) -> ExportReport:
    """Write the rows, ids, labels and vectors of a reference or a space to a file.

    Parameters
    ----------
    store
        Folder of the store.
    reference
        Reference whose cells are exported, with obs, ``cell``, ``scvec_class``, ``scvec_row`` and ``vector``.
    to
        ``parquet`` (vectors as fixed-size lists of float32), or ``h5ad`` (vectors in ``obsm['X_scvec']``, no
        expression).
    space
        Fingerprint or backbone of a space whose genes are exported instead of cells, with ``gene_id``,
        ``species``, ``symbol``, ``text_sha256`` and ``vector``.

    Raises
    ------
    InputError
        If the reference, space or format does not exist, or the output cannot be written.
    """
    if (reference is None) == (space is None):
        what = "give either a reference or a space"
        raise InputError(what, "scvec export", "scvec info lists both", code="usage")
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
    """Import a file of :func:`export`, which another program may have changed.

    Genes become a space of the store, or are added to it. Cells must belong to a reference of the store:
    their labels and columns of obs are imported. Changed vectors are refused, because they could not be
    compared with those of a query. Neighbours vote with the new labels. Classifiers keep the old labels until
    the reference is ingested again.

    Parameters
    ----------
    store
        Folder of the store.
    file
        What :func:`export` wrote, parquet or h5ad.
    reference
        Name of the reference of the cells, if it changed since the export.
    dry_run
        Check the file without changing the store.

    Raises
    ------
    InputError
        If the file belongs to another space or reference; vectors are missing, changed, not finite or have
        another dimension; ids are missing or repeated; or the reference lacks a label.
    """
    found = read_vectors(file, memory=memory)
    if found.tags["kind"] == "cells":
        return _import_cells(Store(store), found, reference, dry_run)
    _need(reference is None, found, "the file contains genes, not cells", "leave out --reference")
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
    several = f"{len(matching)} spaces have the backbone {name!r}"
    what = several if matching else f"the store has no space {name!r}"
    raise InputError(
        what,
        str(opened.path),
        f"it has: {there or 'none: scvec ingest embeddings'}",
        code="space-not-named" if matching else "unknown-space",
    )


def _cells(stored: StoredReference) -> Any:
    classes = np.array([*stored.meta["classes"], ""], dtype=object)
    # An earlier import or another tool may have added columns with these names.
    obs = stored.obs.drop(columns=[ROW, CLASS, "cell", HASH_COLUMN], errors="ignore")
    labels = classes[obs.pop(CODE_COLUMN).to_numpy()]  # -1 selects the empty label at the end
    obs.insert(0, ROW, np.arange(len(obs), dtype=np.int64))
    obs.insert(1, "cell", obs.index.astype(str))
    return obs.assign(**{CLASS: labels}).reset_index(drop=True)


def _checked(found: VectorFile, dim: int, *ids: str) -> Any:
    """Return the vectors of a file. InputError unless they are (n, dim), finite, and have columns ``ids``."""
    missing = [c for c in ids if c not in found.rows.columns]
    _need(not missing, found, f"the file lacks the columns {', '.join(missing)}")
    n = found.vectors.shape[1]
    _need(n == dim, found, f"the vectors have {n} dimensions instead of {dim}")
    try:
        return checked_vectors(found.vectors, dim, "the vectors of the file")
    except InputError as error:
        raise InputError(error.what, str(found.path), AGAIN, code=error.code) from error


def _import_genes(opened: Store, found: VectorFile, dry_run: bool) -> ImportReport:
    record = found.tags.get("space_record")
    try:
        space = Space.from_dict(record if isinstance(record, dict) else {})
    except (TypeError, ValueError) as error:
        what = "the file does not name the space of its vectors"
        raise InputError(what, str(found.path), AGAIN, code="wrong-format") from error
    named = {found.tags.get("space"), found.tags["space_record"].get("fingerprint")}
    _need(named == {space.fingerprint}, found, "the fingerprint does not fit the space in the file")
    columns = ["gene_id", "species", "symbol", "text_sha256"]
    vectors = _checked(found, space.dim, *columns)
    table = found.rows.loc[:, columns].astype(str)
    genes = table["gene_id"]
    twice = genes[genes.duplicated()]
    _need(twice.empty, found, f"gene {_first(twice)} is repeated")
    odd = genes[
        ~(
            table["species"].str.fullmatch(r"[a-z][a-z0-9 ._'-]{0,59}")
            & table["text_sha256"].str.fullmatch("[0-9a-f]{64}|")
        )
    ]
    _need(odd.empty, found, f"gene {_first(odd)} has no known species or text")
    off = np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) - 1).max(initial=0.0)
    unit = not space.normalized or off <= 1e-2
    _need(unit, found, "the vectors do not have length 1, unlike those of their space")
    there = opened.spaces().get(space.fingerprint)
    rows = {} if there is None else {g: i for i, g in enumerate(there.genes["gene_id"])}
    at = np.array([rows.get(g, -1) for g in genes], dtype=np.int64)
    if there is not None:
        texts = there.genes["text_sha256"].to_numpy()
        known = np.flatnonzero((at >= 0) & (texts[at] == table["text_sha256"].to_numpy()))
        off = np.abs(np.asarray(there.vectors[at[known]]) - vectors[known]).max(axis=1, initial=0.0)
        what = f"{(off > SAME).sum():,} genes have other vectors than the store has for the same texts"
        _need((off <= SAME).all(), found, what, "export them again from the right store")
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
    stored = opened.reference(reference if reference is not None else str(found.tags.get("reference")))
    what = f"the cells do not belong to reference {stored.name!r}, or it was ingested again"
    same = stored.has_fingerprint(str(found.tags.get("cells")))
    _need(same, found, what, "export it again; ingest other cells with scvec ingest cells")
    same = found.tags.get("space") == _space_of(stored)
    _need(same, found, "the vectors belong to another space than the reference")
    vectors = _checked(found, stored.dim, ROW, "cell", CLASS)
    numbers = found.rows[ROW]
    _need(numbers.dtype.kind in "iu", found, f"the column {ROW} has no row numbers", "do not change it")
    twice, outside = numbers[numbers.duplicated()], numbers[~numbers.between(0, stored.n - 1)]
    _need(twice.empty, found, f"row {_first(twice)} is repeated", "remove one")
    _need(outside.empty, found, f"the reference has no row {_first(outside)}", "remove it")
    missing = f"{stored.n - len(numbers):,} of the {stored.n:,} cells are missing"
    _need(len(numbers) == stored.n, found, missing, "import all of them")
    order = np.argsort(numbers.to_numpy(), kind="stable")
    rows = found.rows.iloc[order].reset_index(drop=True)
    same = list(rows["cell"].astype(str)) == list(stored.obs.index.astype(str))
    _need(same, found, "cells have other names than in the reference", "do not change the column cell")
    differ = 0
    for start in range(0, stored.n, 65_536):
        part = np.asarray(stored.vectors[start : start + 65_536])
        differ += int((np.abs(vectors[order[start : start + 65_536]] - part).max(axis=1) > SAME).sum())
    what = f"the vectors of {differ:,} cells differ from those of the reference"
    fix = "do not change the column vector, because changed vectors cannot be compared with a query"
    _need(not differ, found, what, fix)
    classes = [str(c) for c in stored.meta["classes"]]
    given = rows[CLASS].astype(object).where(rows[CLASS].notna(), "").astype(str)
    odd = sorted({*given} - {*classes, ""})
    fix = did_you_mean(_first(odd), classes) + "new labels need training: scvec ingest cells"
    _need(not odd, found, f"{_first(odd)[:60]!r} is not a label of the reference", fix)
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
    note = f"{moved:,} cells have new labels; neighbours vote with these labels, trained classifiers "
    return ImportReport(
        kind="cells",
        name=stored.name,
        n_rows=stored.n,
        n_new=moved,
        columns=[str(c) for c in obs.columns if c not in stored.obs.columns],
        generation=generation,
        dry_run=dry_run,
        notes=[*found.notes, *([f"{note}only after the reference is ingested again"] if moved else [])],
    )


@dataclass(frozen=True, kw_only=True)
class ExportReport(Report):
    """Result of ``export``."""

    reference: str
    to: str
    files: list[Path]
    n_cells: int
    size_bytes: int
    kind: str = "cells"

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        of = f"'{self.reference}'" if self.kind == "cells" else f"space {self.reference}"
        what = f"{self.n_cells:,} {self.kind} of {of} as {self.to}, {human_bytes(self.size_bytes)}"
        return [f"wrote {what}", *(f"  {path}" for path in self.files)]


@dataclass(frozen=True, kw_only=True)
class ImportReport(Report):
    """Result of ``import``.

    Attributes
    ----------
    kind
        ``cells`` or ``genes``.
    name
        Name of the reference, or fingerprint of the space.
    n_rows, n_new
        Number of rows in the file, and number of new genes in the space or of cells with a new label.
    columns
        New columns of obs.
    """

    kind: str
    name: str
    n_rows: int
    n_new: int
    columns: list[str]
    generation: str = ""
    dry_run: bool = False

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        if self.kind == "genes":
            lines = [f"space {self.name}: {self.n_rows:,} genes, {self.n_new:,} of them new to the space"]
        else:
            lines = [f"reference '{self.name}': {self.n_rows:,} cells, {self.n_new:,} with a new label"]
            if self.columns:
                lines.append(f"new columns: {', '.join(self.columns)}")
        return [*lines, "nothing was changed (--dry-run)"] if self.dry_run else lines

    @property
    def next_step(self) -> NextStep | None:
        """The import after a dry run."""
        return WITHOUT_DRY_RUN if self.dry_run else None
