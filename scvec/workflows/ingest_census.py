"""``scvec ingest census``: make a reference from a balanced sample of CELLxGENE Census."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import (
    InputError,
    LockedError,
    NetworkError,
    ResourceError,
    ScvecError,
    check_choice,
    check_range,
    did_you_mean,
    disk_errors,
    need_extra,
)
from scvec.base.options import options_of, takes_options
from scvec.base.resources import parse_memory
from scvec.base.results import WITHOUT_DRY_RUN, NextStep, Report, human_bytes, table
from scvec.base.species import SPECIES
from scvec.base.types import Progress, Species, no_progress

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp

    from scvec.workflows.ingest_cells import CellsReport

__all__ = [
    "Census",
    "CensusOptions",
    "CensusReport",
    "Cost",
    "Drawn",
    "check_where",
    "cost_of",
    "draw",
    "gathered",
    "ingest_census",
    "open_census",
    "recipes",
    "value_filter",
]

EXPERIMENTS: dict[Species, str] = {"human": "homo_sapiens", "mouse": "mus_musculus"}
#: Columns of obs for the sampling, and other columns that a reference keeps.
DRAWN = ("soma_joinid", "cell_type", "cell_type_ontology_term_id", "dataset_id", "donor_id", "nnz")
KEPT = ("assay", "tissue", "tissue_general", "disease", "sex", "development_stage", "suspension_type")
#: Terms that are not a specific cell type: cell, native cell, eukaryotic cell, animal cell.
VAGUE = ("CL:0000000", "CL:0000003", "CL:0000255", "CL:0000548")
#: A gene is kept if it was measured in at least this fraction of the sampled cells. A gene that a dataset did
#: not measure is zero in its cells, which would separate datasets instead of cell types.
MEASURED = 0.9
#: Cells of a part, and bytes per value while a part is read: two int64 and a float32 from TileDB, the same
#: sorted, and in a CSR matrix.
PIECE, BYTES_PER_VALUE = 2048, 64
#: Bytes of a stored value and of a stored row.
VALUE_BYTES, ROW_BYTES = 8, 8
#: Cells that are read to estimate the cost of all cells.
N_SAMPLE = 256
#: Values of a cell if the Census does not give the number.
USUAL_VALUES = 4000
MAX_WHERE = 2000
LICENSE = "CC-BY-4.0"
CITATION = "CZ CELLxGENE Discover (2025), doi:10.1093/nar/gkae1142"
_PIECE_NAME = re.compile(r"(\d+)-(\d+)-([0-9a-f]{16})\.safetensors")
_OPERATORS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn)


def check_where(where: str, columns: Sequence[str] | None = None) -> str:
    """Check a condition on obs and return it in a standard form, the only user text that SOMA gets.

    Allowed are comparisons of columns with texts and numbers, joined with and, or, not and brackets.

    Parameters
    ----------
    columns
        Known columns. None: any name is allowed.

    Raises
    ------
    InputError
        If the condition has another form.
    """
    if not where.strip():
        return ""
    try:
        if len(where) > MAX_WHERE:
            raise ValueError(f"it is longer than {MAX_WHERE:,} characters")
        tree = ast.parse(where.strip(), mode="eval")
        for node in _comparisons(tree.body):
            name = _column_of(node)
            if columns is not None and name not in columns:
                fix = f"{did_you_mean(name, columns)}it has: {', '.join(sorted(columns))}"
                what = f"the Census has no column '{name}' of cells"
                raise InputError(what, "--where", fix, code="unknown-column")
        return ast.unparse(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", None) or str(error) or type(error).__name__
        raise InputError(
            f"the condition is invalid: {reason}",
            "--where",
            "write a condition like: disease == 'normal' and assay in [\"10x 3' v3\", \"10x 5' v2\"]",
            code="bad-where",
        ) from error


def _comparisons(node: ast.expr) -> Iterator[ast.Compare]:
    """Yield the comparisons in a condition; raise ValueError for other expressions."""
    if isinstance(node, ast.BoolOp):
        for part in node.values:
            yield from _comparisons(part)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield from _comparisons(node.operand)
    elif isinstance(node, ast.Compare):
        yield node
    else:
        raise ValueError(f"'{ast.unparse(node)[:60]}' is not a comparison of a column with a value")


def _column_of(node: ast.Compare) -> str:
    """Return the column of ``column OPERATOR constant``; raise ValueError for other expressions."""
    value = node.comparators[0]
    is_list = isinstance(node.ops[0], ast.In | ast.NotIn)
    values = value.elts if is_list and isinstance(value, ast.List) else [value]
    plain = [v.operand if isinstance(v, ast.UnaryOp) and isinstance(v.op, ast.USub) else v for v in values]
    if (
        len(node.ops) != 1
        or not isinstance(node.ops[0], _OPERATORS)
        or not isinstance(node.left, ast.Name)
        or is_list != isinstance(value, ast.List)
        or not values
        or not all(isinstance(v, ast.Constant) and isinstance(v.value, str | int | float) for v in plain)
    ):
        raise ValueError(f"'{ast.unparse(node)[:60]}' is not a comparison of a column with a value")
    return node.left.id


def value_filter(tissues: Sequence[str], where: str, columns: Sequence[str] | None = None) -> str:
    """Return the SOMA condition of a sample.

    Only primary cells are used, because the Census repeats a cell for each dataset with it. A condition on
    ``is_primary_data`` replaces this rule.

    Raises
    ------
    InputError
        See :func:`check_where`.
    """
    where = check_where(where, columns)
    parts = [] if "is_primary_data" in where else ["is_primary_data == True"]
    if tissues:
        parts.append(f"(tissue_general in {list(tissues)!r} or tissue in {list(tissues)!r})")
    if where:
        parts.append(f"({where})")
    return " and ".join(parts)


@dataclass(frozen=True)
class Drawn:
    """A sample of cells.

    Attributes
    ----------
    obs
        (n,) rows by ascending ``soma_joinid``, with :data:`DRAWN` except nnz, :data:`KEPT` and ``batch``.
    var
        (n_genes,) ``feature_id`` as index, ``feature_name`` and ``soma_joinid``.
    n_values
        (n,) number of values above zero of each cell over all genes of the Census.
    n_found
        Number of cells that meet the condition.
    key
        Hash of the sample, so that parts of another sample are not reused.
    """

    obs: pd.DataFrame
    var: pd.DataFrame
    n_values: npt.NDArray[np.int64]
    n_found: int
    key: str
    notes: list[str] = field(default_factory=list)


def draw(
    cells: pd.DataFrame, *, max_per_type: int, min_cells: int, seed: int
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Sample cells evenly: for each type, equally many from each dataset, and from each donor of a dataset.

    If a dataset or donor has fewer cells, all are used, and the others contribute more.

    Parameters
    ----------
    cells
        (n,) rows by ascending ``soma_joinid``, with categorical columns of :data:`DRAWN`.
    max_per_type
        Most cells of a type.
    min_cells
        Types with fewer cells are left out.

    Returns
    -------
    Ascending row numbers, and notes about the cells left out.
    """
    import pandas as pd

    ids = cells["cell_type_ontology_term_id"].astype(str)
    named = (ids.str.fullmatch(r"CL:\d{7}") & ~ids.isin(VAGUE)).to_numpy(bool)
    codes, names = pd.factorize(cells["cell_type"], sort=True)
    counts = np.bincount(codes[named], minlength=len(names))
    enough = named & (counts >= min_cells)[codes]
    notes = []
    if not named.all():
        notes.append(f"left out {int((~named).sum()):,} cells with the label 'unknown' or 'cell'")
    if few := [str(name) for name in names[(counts > 0) & (counts < min_cells)]]:
        listed = ", ".join(few[:6]) + (", ..." if len(few) > 6 else "")
        notes.append(f"left out {len(few):,} types with fewer than {min_cells:,} cells: {listed}")
    rows = np.flatnonzero(enough)
    types = codes[rows]
    datasets = pd.factorize(cells["dataset_id"].iloc[rows], sort=True)[0]
    donors = pd.factorize(cells["donor_id"].iloc[rows], sort=True)[0]
    # Donors alternate within a dataset, and datasets within a type, in random order.
    chance = np.random.default_rng(seed).permutation(len(rows))
    turn = chance
    for groups in ((types, datasets, donors), (types, datasets), (types,)):
        turn = _rank_within(groups, turn, chance)
    return np.sort(rows[turn < max_per_type]), notes


def _rank_within(
    groups: Sequence[npt.NDArray[np.int64]], first: npt.NDArray[np.int64], then: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the rank of each row within its group, ordered by ``first`` and ``then``."""
    order = np.lexsort((then, first, *groups))
    starts = np.ones(len(order), dtype=bool)
    if len(order):
        starts[1:] = np.any([np.diff(g[order]) != 0 for g in groups], axis=0)
    places = np.arange(len(order))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = places - np.maximum.accumulate(np.where(starts, places, 0))
    return rank


class Census:
    """An open Census of one organism, read with bounded memory.

    Attributes
    ----------
    where
        Name for messages.
    about
        Version, schema, build date and experiment.
    """

    def __init__(self, collection: Any, organism: Species, where: str, version: str, memory: int) -> None:
        self.where, self.memory, self._collection = where, memory, collection
        with census_errors(self.where):
            self._experiment = collection["census_data"][EXPERIMENTS[organism]]
            self._rna = self._experiment.ms["RNA"]
            summary = collection["census_info"]["summary"].read().concat().to_pandas()
        facts = dict(zip(summary["label"].astype(str), summary["value"].astype(str), strict=True))
        self.about = {
            "version": version,
            "build_date": facts.get("census_build_date", ""),
            "schema": facts.get("census_schema_version", ""),
            "organism": EXPERIMENTS[organism],
        }

    @property
    def columns(self) -> list[str]:
        """Columns of obs."""
        return [str(name) for name in self._experiment.obs.schema.names]

    def cells(self, condition: str) -> pd.DataFrame:
        """Return :data:`DRAWN` of the cells that meet a condition, by ascending ``soma_joinid``."""
        names = [name for name in DRAWN if name in self.columns]
        with census_errors(self.where):
            obs = _table(self._experiment.obs.read(column_names=names, value_filter=condition or None))
        obs = obs[names].copy()  # TileDB adds the columns of the condition
        if "nnz" not in obs.columns:
            obs["nnz"] = USUAL_VALUES
        return obs.sort_values("soma_joinid", kind="stable", ignore_index=True)

    def tissues(self) -> list[str]:
        """Return the tissues of the organism, those with the most cells first."""
        counts = self._collection["census_info"]["summary_cell_counts"]
        organism = self.about["organism"].replace("_", " ").capitalize()
        with census_errors(self.where):
            table = counts.read(value_filter="category == 'tissue_general'").concat().to_pandas()
        table = table[table["organism"].astype(str) == organism]
        return [str(t) for t in table.sort_values("unique_cell_count", ascending=False)["label"]]

    def drawn(self, cells: pd.DataFrame, rows: npt.NDArray[np.int64], notes: list[str]) -> Drawn:
        """Return the obs of the sampled rows of ``cells``, and the genes to read."""
        import pandas as pd

        chosen = cells.iloc[rows].reset_index(drop=True)
        joinids = chosen["soma_joinid"].to_numpy(np.int64)
        names = ["soma_joinid", *(name for name in KEPT if name in self.columns)]
        with census_errors(self.where):
            more = _table(self._experiment.obs.read(coords=(joinids,), column_names=names))
        obs = chosen.drop(columns="nnz").merge(more, on="soma_joinid", validate="one_to_one")
        obs["batch"] = obs["dataset_id"].astype(str) + ":" + obs["donor_id"].astype(str)
        for name in obs.columns.drop("soma_joinid"):
            obs[name] = pd.Categorical(obs[name].astype(str))
        var, dropped = self._genes(obs["dataset_id"].value_counts())
        if dropped:
            notes = [
                *notes,
                f"left out {dropped:,} genes measured in less than {MEASURED:.0%} of the cells",
            ]
        content = [self.about, joinids.tolist(), var["soma_joinid"].tolist()]
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
        obs.index = pd.Index(obs["soma_joinid"].astype(str), name="cell")
        return Drawn(obs, var, chosen["nnz"].to_numpy(np.int64), len(cells), key, notes)

    def _genes(self, n_cells: pd.Series[int]) -> tuple[pd.DataFrame, int]:
        """Return the genes measured in enough cells (``n_cells`` by dataset), and the number of others."""
        names = ["soma_joinid", "feature_id", "feature_name"]
        with census_errors(self.where):
            var = _table(self._rna.var.read(column_names=names)).sort_values("soma_joinid")
            var = var.astype({"feature_id": str, "feature_name": str}).set_index("feature_id")
            if "feature_dataset_presence_matrix" not in self._rna:
                return var, 0
            datasets = self.datasets()
            weights = np.zeros(int(datasets["soma_joinid"].max()) + 1)
            weights[datasets["soma_joinid"]] = datasets["dataset_id"].map(n_cells).fillna(0)
            sums = np.zeros(int(var["soma_joinid"].max()) + 1)
            wanted = np.flatnonzero(weights)
            for part in self._rna["feature_dataset_presence_matrix"].read((wanted, slice(None))).tables():
                there = part["soma_data"].to_numpy().astype(bool)
                np.add.at(sums, part["soma_dim_1"], weights[part["soma_dim_0"]] * there)
        keep = sums[var["soma_joinid"]] >= MEASURED * float(n_cells.sum())
        return var[keep], int((~keep).sum())

    def datasets(self) -> pd.DataFrame:
        """Return the table of datasets, with ``dataset_id``, title, citation and DOI."""
        with census_errors(self.where):
            return _table(self._collection["census_info"]["datasets"].read())

    def origin(self, drawn: Drawn) -> dict[str, Any]:
        """Return the origin of the cells for the reference: JSON values, with all citations."""
        n_cells = drawn.obs["dataset_id"].value_counts()
        table = self.datasets()
        used = table[table["dataset_id"].isin(n_cells.index)].sort_values("soma_joinid")
        datasets = [
            {
                "dataset_id": _line(row["dataset_id"]),
                "title": _line(row["dataset_title"]),
                "doi": _line(row["collection_doi"]),
                "n_cells": int(n_cells[row["dataset_id"]]),
                # Older versions of the Census have no column for citations.
                "citation": _line(
                    row.get("citation") or f"{row['collection_name']}, doi:{row['collection_doi']}"
                ),
            }
            for row in used.to_dict("records")
        ]
        citations = list(dict.fromkeys([CITATION, *(str(d["citation"]) for d in datasets)]))
        return {"census": self.about, "license": LICENSE, "citations": citations, "datasets": datasets}

    def counts(self, joinids: npt.NDArray[np.int64], genes: npt.NDArray[np.int64]) -> sp.csr_matrix[Any]:
        """Return the counts (n, n_genes), CSR float32, of ascending cells and ascending genes."""
        import scipy.sparse as sp

        parts: list[tuple[npt.NDArray[Any], ...]] = []
        with census_errors(self.where):
            for part in self._rna.X["raw"].read((joinids, slice(None))).tables():
                column = part["soma_dim_1"].to_numpy()
                place = np.minimum(np.searchsorted(genes, column), len(genes) - 1)
                kept = genes[place] == column
                row = np.searchsorted(joinids, part["soma_dim_0"].to_numpy()[kept])
                parts.append(
                    (part["soma_data"].to_numpy()[kept], row.astype(np.int32), place[kept].astype(np.int32))
                )
        values, rows, columns = (np.concatenate(p) for p in zip(*parts, strict=True))
        shape = len(joinids), len(genes)
        return sp.csr_matrix((values.astype(np.float32), (rows, columns)), shape=shape)


@contextmanager
def open_census(organism: Species, *, uri: str | None, version: str, memory: int) -> Iterator[Census]:
    """Open the Census, or a copy of it at ``uri``.

    Parameters
    ----------
    memory
        Bytes that reading may use.

    Raises
    ------
    InputError
        If the packages are not installed, or the Census does not exist.
    NetworkError
        If the Census is unreachable.
    """
    need_extra("census", ["cellxgene_census", "tiledbsoma"], "the Census", "scvec ingest census")
    import cellxgene_census

    # TileDB fills one buffer for each of the three columns of a matrix, and also caches tiles.
    config = {
        "soma.init_buffer_bytes": int(np.clip(memory // 32, 2**20, 2**30)),
        "sm.mem.total_budget": max(memory // 2, 2**28),
    }
    where = uri or f"Census {version}"
    with census_errors(where):
        context = cellxgene_census.get_default_soma_context(tiledb_config=config)
        collection = cellxgene_census.open_soma(uri=uri, census_version=version, context=context)
    with collection:
        yield Census(collection, organism, where, "local copy" if uri else version, memory)


@contextmanager
def census_errors(where: str) -> Iterator[None]:
    """Convert errors of TileDB and the network to errors of scvec; use it only around reading."""
    import tiledbsoma

    local = "://" not in where and not where.startswith("Census ")
    try:
        yield
    except ScvecError:
        raise
    except MemoryError as error:
        raise ResourceError("the Census needs more memory", where, "raise --memory") from error
    except (tiledbsoma.SOMAError, OSError, RuntimeError, KeyError, ValueError) as error:
        reason = str(error).strip("'\"").split("\n")[0][:160] or type(error).__name__
        if local or isinstance(error, KeyError | ValueError) or "does not exist" in reason:
            raise InputError(
                f"the Census cannot be read: {reason}",
                where,
                "check --uri or --census-version (stable, latest, or a date as 2025-11-08)",
                code="census-not-readable",
            ) from error
        fix = "check the network and run the command again, which continues; or use a mirror (--uri)"
        raise NetworkError(f"the Census is unreachable: {reason}", where, fix) from error


def _table(reader: Any) -> pd.DataFrame:
    """Return the table of a SOMA reader, with texts as categories."""
    import pandas as pd
    import pyarrow as pa

    def small(table: pa.Table) -> pa.Table:
        for k, column in enumerate(table.schema):
            if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                table = table.set_column(k, column.name, table.column(k).dictionary_encode())
        return table

    whole = pa.concat_tables([small(table) for table in reader])
    return pd.DataFrame(whole.unify_dictionaries().to_pandas())


def _line(text: Any, most: int = 500) -> str:
    """Return a text of the Census as one line without control characters."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in str(text or "")).split())
    return flat[:most]


@contextmanager
def gathered(
    census: Census, drawn: Drawn, folder: Path, progress: Progress = no_progress
) -> Iterator[tuple[Path, int]]:
    """Read the counts of sampled cells, and yield an h5ad file with them and its size in bytes.

    All files are deleted at the end. Each part is a file whose name has its cell numbers and a checksum.
    After a kill or an error the parts stay, and the next call for the same cells reads only missing parts.

    Parameters
    ----------
    folder
        Folder for the parts; each sample has a subfolder.

    Raises
    ------
    LockedError
        If another process reads the same cells.
    ResourceError
        If the disk is full.
    """
    import filelock

    here = folder / f"census-{drawn.key}"
    with disk_errors(here):
        here.mkdir(parents=True, exist_ok=True)
    try:
        lock = filelock.FileLock(here / "lock", timeout=0)
        lock.acquire()
    except filelock.Timeout as error:
        raise LockedError("another process reads these cells", str(here), "wait until it ends") from error
    with lock:
        pieces = read_pieces(census, drawn, here, progress)
        path = here / f"census-{drawn.key}.h5ad"
        with disk_errors(path):
            _write_h5ad(path, pieces, drawn)
        yield path, sum(piece.stat().st_size for piece in pieces)
        shutil.rmtree(here, ignore_errors=True)


def piece_size(drawn: Drawn, memory: int) -> int:
    """Return the number of cells of a part: a power of two, so that similar memory limits give the same."""
    values = max(float(drawn.n_values.mean()), 1.0)
    most = memory / 4 / (values * BYTES_PER_VALUE)
    return int(np.clip(2 ** int(np.log2(max(most, 1))), 16, PIECE))


def read_pieces(census: Census, drawn: Drawn, folder: Path, progress: Progress = no_progress) -> list[Path]:
    """Read the parts of the counts that are missing in a folder; return all parts in order.

    Each part has the CSR arrays ``data``, ``indices`` and ``indptr`` of its cells.
    """
    from safetensors.numpy import save

    joinids = drawn.obs["soma_joinid"].to_numpy(np.int64)
    genes = drawn.var["soma_joinid"].to_numpy(np.int64)
    step = piece_size(drawn, census.memory)
    there = _sound_pieces(folder)
    pieces, start = [], 0
    while start < len(joinids):
        progress("reading counts", start, len(joinids))
        if start not in there:
            # A run with another memory limit may have left a later part: read up to its start.
            stop = min([start + step, len(joinids), *(s for s in there if s > start)])
            block = census.counts(joinids[start:stop], genes)
            content = save({"data": block.data, "indices": block.indices, "indptr": block.indptr})
            name = f"{start}-{stop}-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
            with disk_errors(folder):
                _write_whole(folder / name, content)
            there[start] = (stop, folder / name)
        stop, path = there[start]
        pieces.append(path)
        start = stop
    progress("reading counts", len(joinids), len(joinids))
    return pieces


def _sound_pieces(folder: Path) -> dict[int, tuple[int, Path]]:
    """Return start -> (stop, path) of the parts with a valid checksum; delete all others."""
    found = {}
    for path in sorted(folder.iterdir()):
        match = _PIECE_NAME.fullmatch(path.name)
        if match and hashlib.sha256(path.read_bytes()).hexdigest()[:16] == match[3]:
            found[int(match[1])] = (int(match[2]), path)
        elif path.name != "lock":
            path.unlink()
    return found


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: after a kill it is complete or absent."""
    part = path.with_suffix(".part")
    with open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _write_h5ad(path: Path, pieces: list[Path], drawn: Drawn) -> None:
    """Write the parts to one h5ad file."""
    import h5py
    import scipy.sparse as sp
    from anndata.io import sparse_dataset, write_elem
    from safetensors.numpy import load_file

    with h5py.File(path, "w") as file:
        write_elem(file, "obs", drawn.obs)
        write_elem(file, "var", drawn.var)
        for piece in pieces:
            part = load_file(piece)
            arrays = part["data"], part["indices"].astype(np.int64), part["indptr"].astype(np.int64)
            block = sp.csr_matrix(arrays, shape=(len(arrays[2]) - 1, len(drawn.var)))
            if "X" in file:
                sparse_dataset(file["X"]).append(block)
            else:
                write_elem(file, "X", block)
        file.attrs["encoding-type"], file.attrs["encoding-version"] = "anndata", "0.1.0"


@dataclass(frozen=True)
class Cost:
    """Estimated cost of reading the sampled cells: bytes on disk, and seconds."""

    n_bytes: int
    seconds: float


def cost_of(census: Census, drawn: Drawn) -> Cost:
    """Estimate the cost of reading: bytes from cells of the whole sample, time from adjacent cells.

    Adjacent cells share tiles, like the cells of a part. The arrays are open when the time is measured.
    """
    rows = np.unique(np.linspace(0, len(drawn.obs) - 1, N_SAMPLE).astype(np.int64))
    joinids, genes = (table["soma_joinid"].to_numpy(np.int64) for table in (drawn.obs, drawn.var))
    block = census.counts(joinids[rows], genes)
    first, start = max((len(joinids) - N_SAMPLE) // 2, 0), time.perf_counter()
    beside = census.counts(joinids[first : first + N_SAMPLE], genes)
    seconds = time.perf_counter() - start
    # The Census gives the number of values of a cell; the cells read here give the fraction in kept genes.
    share = block.nnz / max(int(drawn.n_values[rows].sum()), 1)
    n_values = float(drawn.n_values.sum()) * share
    seconds *= n_values / max(beside.nnz, 1)
    return Cost(int(n_values * VALUE_BYTES + len(drawn.obs) * ROW_BYTES), seconds)


#: Seconds of an ingest, fixed and per cell, on two cores: for the estimate of a dry run.
FIXED_SECONDS, SECONDS_PER_CELL = 15.0, 0.002


@dataclass(frozen=True, kw_only=True)
class CensusOptions:
    """Options of ``ingest census``.

    Attributes
    ----------
    name
        Name of the reference. Default: ``RECIPE-ORGANISM`` or ``TISSUE-ORGANISM``.
    organism
        ``human`` or ``mouse``.
    tissue
        Names of tissues, from ``tissue_general`` or ``tissue`` of the Census.
    where
        Condition on columns of obs, in the syntax of SOMA's value filters. Only primary data is used, unless
        the condition has ``is_primary_data``.
    max_per_type
        Most cells of a type, sampled evenly from its datasets and donors.
    min_cells
        Types with fewer cells are left out.
    census_version
        ``stable``, ``latest`` or the date of a build.
    uri
        A copy of the Census: a folder or the address of a mirror.
    recipe
        Name of a recipe (:func:`recipes`), which sets the defaults of other options.
    seed
        Random seed. Two runs with the same seed sample the same cells.
    memory
        Bytes that may be used, as a number or like ``"4G"``. Default: half of the free memory.
    device
        ``auto``, ``cpu`` or ``cuda``.

    Raises
    ------
    InputError
        If an option cannot be used, or no option selects cells.
    """

    name: str = ""
    organism: Species = SPECIES[0]
    tissue: tuple[str, ...] = ()
    where: str | None = None
    max_per_type: int | None = None
    min_cells: int | None = None
    census_version: str = "stable"
    uri: str | None = None
    recipe: str = ""
    seed: int = 0
    memory: str | int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        check_choice("--organism", self.organism, recipes())
        known = recipes()[self.organism]
        if self.recipe:
            check_choice("--recipe", self.recipe, known)
        given = {"where": "", "max_per_type": 500, "min_cells": 50, **known.get(self.recipe, {})}
        for key, value in given.items():
            if getattr(self, key) in (None, ()):
                object.__setattr__(self, key, tuple(value) if isinstance(value, list) else value)
        if not self.tissue and not self.where:
            what = "no option selects cells of the Census"
            raise InputError(what, "scvec ingest census", "give --recipe, --tissue or --where")
        for key, least in (("max_per_type", 2), ("min_cells", 1), ("seed", 0)):
            check_range(f"--{key.replace('_', '-')}", getattr(self, key), least)
        check_where(str(self.where))
        parse_memory(self.memory)
        what_for = self.recipe or re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(self.tissue)) or "census"
        object.__setattr__(self, "name", self.name or f"{what_for.strip('-')}-{self.organism}")

    def record(self) -> dict[str, Any]:
        """Return the options that the store keeps with a reference."""
        kept = ("tissue", "where", "max_per_type", "min_cells", "recipe", "seed")
        return {key: getattr(self, key) for key in kept}


def recipes() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the recipes that ship: organism -> name -> tissue, where, max_per_type and min_cells."""
    import tomllib
    from importlib.resources import files

    return tomllib.loads((files("scvec") / "data" / "recipes.toml").read_text(encoding="utf-8"))


def recipe_table() -> RecipeTable:
    """Return the recipes that ship, as text and JSON."""
    return RecipeTable(recipes=recipes())


@dataclass(frozen=True, kw_only=True)
class RecipeTable(Report):
    """The recipes that ship, by organism and name."""

    recipes: dict[str, dict[str, dict[str, Any]]]

    def lines(self) -> list[str]:
        """Return one line per recipe."""
        return [
            f"{organism} {name}: {', '.join(r['tissue'])}; {r['where']}; at most {r['max_per_type']:,} cells "
            f"per type, types with at least {r['min_cells']:,} cells"
            for organism, known in self.recipes.items()
            for name, r in known.items()
        ]


@takes_options(CensusOptions)
def ingest_census(
    store: Path | str,
    options: CensusOptions | None = None,
    *,
    dry_run: bool = False,
    progress: Progress = no_progress,
    **keywords: Any,
) -> CensusReport:
    """Make a reference from cells of CELLxGENE Census, with their curated types and citations.

    Labels are ``cell_type`` with Cell Ontology ids; batches are ``dataset_id`` with ``donor_id``. Counts are
    read in parts, which stay in the store until the reference is complete. So a killed run continues.

    Parameters
    ----------
    store
        Folder of the store; created if missing.
    options, **keywords
        :class:`CensusOptions`, or its fields as keywords.
    dry_run
        Only sample the cells and estimate the cost of reading them; the store is not changed.

    Raises
    ------
    InputError
        If an option cannot be used, the packages are missing, or no cells are found.
    NetworkError
        If the Census is unreachable.
    """
    asked = options_of(CensusOptions, options, keywords)
    begun = time.perf_counter()
    making = ingest_options(asked)
    memory = parse_memory(asked.memory)
    with open_census(asked.organism, uri=asked.uri, version=asked.census_version, memory=memory) as census:
        progress("drawing cells", 0, None)
        drawn = draw_cells(census, asked)
        cost = cost_of(census, drawn) if dry_run else None
        if cost is not None:
            seconds = cost.seconds + FIXED_SECONDS + SECONDS_PER_CELL * len(drawn.obs)
            return report_of(asked, census, drawn, cost.n_bytes, seconds)
        from scvec.stores.store.store import Store
        from scvec.workflows.ingest_cells import ingest_cells

        folder = Store.open(store, create=True).path / "work"
        origin = census.origin(drawn) | {"draw": asked.record(), "tissue": ", ".join(asked.tissue)}
        with gathered(census, drawn, folder, progress) as (path, n_bytes):
            made = ingest_cells(store, [path], replace(making, origin=origin), progress=progress)
    return report_of(asked, census, drawn, n_bytes, time.perf_counter() - begun, made)


def ingest_options(asked: CensusOptions) -> Any:
    """Return the options of the ingest, which are checked here, before any reading."""
    from scvec.workflows.ingest_options import IngestOptions

    return IngestOptions(
        name=asked.name,
        label_key="cell_type",
        batch_key="batch",
        species=asked.organism,
        values="counts",
        seed=asked.seed,
        memory=asked.memory,
        device=asked.device,
    )


def draw_cells(census: Census, asked: CensusOptions) -> Drawn:
    """Find the cells, and sample cells of each type.

    Raises
    ------
    InputError
        If fewer than two types have enough cells.
    """
    condition = value_filter(asked.tissue, str(asked.where), census.columns)
    cells = census.cells(condition)
    if not len(cells):
        raise InputError(
            f"no cells of the Census meet the condition: {condition}",
            census.where,
            f"tissues are: {', '.join(census.tissues()[:20])}",
            code="no-cells",
        )
    limits = {"max_per_type": asked.max_per_type, "min_cells": asked.min_cells, "seed": asked.seed}
    rows, notes = draw(cells, **limits)  # type: ignore[arg-type]
    n_types = cells["cell_type"].iloc[rows].nunique()
    if n_types < 2:
        what = f"of {len(cells):,} cells, {n_types} types have {asked.min_cells} or more"
        raise InputError(what, census.where, "give a broader --where or a lower --min-cells", code="no-cells")
    return census.drawn(cells, rows, notes)


def report_of(
    asked: CensusOptions,
    census: Census,
    drawn: Drawn,
    n_bytes: int,
    seconds: float,
    made: CellsReport | None = None,
) -> CensusReport:
    """Return the report of a sample, and of the reference that was ``made`` from it."""
    return CensusReport(
        name=asked.name,
        census=census.about,
        n_found=drawn.n_found,
        n_cells=len(drawn.obs),
        n_genes=len(drawn.var),
        n_datasets=int(drawn.obs["dataset_id"].nunique()),
        n_donors=int(drawn.obs["batch"].nunique()),
        classes={str(k): int(v) for k, v in drawn.obs["cell_type"].value_counts().items()},
        megabytes=n_bytes / 1e6,
        minutes=seconds / 60,
        made=made,
        notes=[*drawn.notes, *(made.notes if made else [])],
    )


@dataclass(frozen=True, kw_only=True)
class CensusReport(Report):
    """A sample of the Census, and the reference that was made from it.

    Attributes
    ----------
    census
        Version, build date and schema.
    n_found, n_cells
        Number of cells that meet the condition, and of sampled cells.
    n_donors
        Number of donors, each counted once per dataset.
    classes
        Sampled cells per type.
    megabytes, minutes
        Size of the counts read, and total time; estimates for a dry run.
    made
        Report of the reference; None for a dry run.
    """

    name: str
    census: dict[str, str]
    n_found: int
    n_cells: int
    n_genes: int
    n_datasets: int
    n_donors: int
    classes: dict[str, int]
    megabytes: float
    minutes: float
    made: CellsReport | None = field(default=None)

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        about = " ".join(x for x in (self.census["version"], self.census["build_date"]) if x)
        lines = [
            f"Census {about}, {self.census['organism']}: {self.n_cells:,} of {self.n_found:,} cells sampled, "
            f"{len(self.classes)} types, {self.n_datasets} datasets, {self.n_donors} donors, "
            f"{self.n_genes:,} genes"
        ]
        if self.made is None:
            size = human_bytes(self.megabytes * 1e6)
            return [
                *lines,
                *table(self.classes),
                f"the ingest would read {size}, in about {self.minutes:.1f} minutes; nothing was changed",
            ]
        size = human_bytes(self.megabytes * 1e6)
        return [*lines, *self.made.lines(), f"read {size}; total time {self.minutes:.1f} minutes"]

    @property
    def next_step(self) -> NextStep:
        """The ingest after a dry run; else the query of new cells."""
        return WITHOUT_DRY_RUN if self.made is None else self.made.next_step
