"""``scvec ingest census``: a balanced draw of CELLxGENE Census into a reference."""

from __future__ import annotations

import ast
import difflib
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

from scvec.base.errors import InputError, LockedError, NetworkError, ResourceError, ScvecError, disk_errors
from scvec.base.options import options_of, takes_options
from scvec.base.resources import parse_memory
from scvec.base.results import Report, human_bytes, table
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
#: Columns of obs that the draw stands on, and those that a reference keeps besides.
DRAWN = ("soma_joinid", "cell_type", "cell_type_ontology_term_id", "dataset_id", "donor_id", "nnz")
KEPT = ("assay", "tissue", "tissue_general", "disease", "sex", "development_stage", "suspension_type")
#: Terms that name no type: cell, native cell, eukaryotic cell, animal cell.
VAGUE = ("CL:0000000", "CL:0000003", "CL:0000255", "CL:0000548")
#: Genes are kept that were measured in so large a fraction of the drawn cells: a gene that a dataset lacks is
#: zero in its cells, which would tell datasets apart and not types.
MEASURED = 0.9
#: Cells of a piece, and bytes that a value needs while a piece is read: two int64 and a float32 from TileDB,
#: the same sorted, and in a CSR matrix.
PIECE, BYTES_PER_VALUE = 2048, 64
#: Bytes of a value and of a row as they are kept.
VALUE_BYTES, ROW_BYTES = 8, 8
#: Cells that are read to estimate what all take.
N_SAMPLE = 256
#: Values of a cell where the Census does not say.
USUAL_VALUES = 4000
MAX_WHERE = 2000
LICENSE = "CC-BY-4.0"
CITATION = "CZ CELLxGENE Discover (2025), doi:10.1093/nar/gkae1142"
_PIECE_NAME = re.compile(r"(\d+)-(\d+)-([0-9a-f]{16})\.safetensors")
_OPERATORS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn)


def check_where(where: str, columns: Sequence[str] | None = None) -> str:
    """Return a condition on obs in one spelling; SOMA gets no other text of a user.

    Columns may be compared with texts and numbers, and comparisons joined with and, or, not and brackets.

    Parameters
    ----------
    columns
        Columns that there are; any name is taken where not given.

    Raises
    ------
    InputError
        If the text is anything else.
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
                near = difflib.get_close_matches(name, columns, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise InputError(
                    f"the cells of the Census have no column '{name}'",
                    "--where",
                    f"{hint}there are: {', '.join(sorted(columns))}",
                    code="unknown-column",
                )
        return ast.unparse(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", None) or str(error) or type(error).__name__
        raise InputError(
            f"the condition cannot be used: {reason}",
            "--where",
            "write it like: disease == 'normal' and assay in [\"10x 3' v3\", \"10x 5' v2\"]",
            code="bad-where",
        ) from error


def _comparisons(node: ast.expr) -> Iterator[ast.Compare]:
    """Yield the comparisons that a condition is made of; raise ValueError at anything else."""
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
    """Return the column of ``column OPERATOR constant``; raise ValueError where it is not that."""
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
    """Return the SOMA condition of a draw.

    Only primary cells are taken: the Census has a cell as often as datasets have it. A condition that names
    ``is_primary_data`` decides for itself.

    Raises
    ------
    InputError
        As :func:`check_where`.
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
    """Cells that were drawn.

    Attributes
    ----------
    obs
        (n,) rows by ascending ``soma_joinid``, with :data:`DRAWN` but nnz, :data:`KEPT` and ``batch``.
    var
        (n_genes,) ``feature_id`` as index, ``feature_name`` and ``soma_joinid``.
    n_values
        (n,) values above zero of each cell over all genes of the Census.
    n_found
        Cells that the condition found.
    key
        Names what is read: pieces of another draw are not taken for it.
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
    """Draw cells evenly: of each type as many of each dataset, and in a dataset as many of each donor.

    A dataset or donor that has fewer gives all it has, and the others give more.

    Parameters
    ----------
    cells
        (n,) rows by ascending ``soma_joinid``, with categorical columns of :data:`DRAWN`.
    max_per_type
        Cells of a type: so many, or all that there are.
    min_cells
        Types of fewer cells are left out.

    Returns
    -------
    Ascending row numbers, and notes on what was left out.
    """
    import pandas as pd

    ids = cells["cell_type_ontology_term_id"].astype(str)
    named = (ids.str.fullmatch(r"CL:\d{7}") & ~ids.isin(VAGUE)).to_numpy(bool)
    codes, names = pd.factorize(cells["cell_type"], sort=True)
    counts = np.bincount(codes[named], minlength=len(names))
    enough = named & (counts >= min_cells)[codes]
    notes = []
    if not named.all():
        notes.append(f"left out {int((~named).sum()):,} cells that are labelled 'unknown' or 'cell'")
    if few := [str(name) for name in names[(counts > 0) & (counts < min_cells)]]:
        listed = ", ".join(few[:6]) + (", ..." if len(few) > 6 else "")
        notes.append(f"left out {len(few):,} types with fewer than {min_cells:,} cells: {listed}")
    rows = np.flatnonzero(enough)
    types = codes[rows]
    datasets = pd.factorize(cells["dataset_id"].iloc[rows], sort=True)[0]
    donors = pd.factorize(cells["donor_id"].iloc[rows], sort=True)[0]
    # Donors take turns within a dataset, then datasets within a type; chance decides who goes first.
    chance = np.random.default_rng(seed).permutation(len(rows))
    turn = chance
    for groups in ((types, datasets, donors), (types, datasets), (types,)):
        turn = _rank_within(groups, turn, chance)
    return np.sort(rows[turn < max_per_type]), notes


def _rank_within(
    groups: Sequence[npt.NDArray[np.int64]], first: npt.NDArray[np.int64], then: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the place of each row among those of its group, ordered by ``first`` and ``then``."""
    order = np.lexsort((then, first, *groups))
    starts = np.ones(len(order), dtype=bool)
    if len(order):
        starts[1:] = np.any([np.diff(g[order]) != 0 for g in groups], axis=0)
    places = np.arange(len(order))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = places - np.maximum.accumulate(np.where(starts, places, 0))
    return rank


class Census:
    """An open Census of one organism, read through a bounded memory.

    Attributes
    ----------
    where
        What to call it in messages.
    about
        Its version, schema and build date, and the experiment.
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
        """Return the tissues of the organism, those with most cells first."""
        counts = self._collection["census_info"]["summary_cell_counts"]
        organism = self.about["organism"].replace("_", " ").capitalize()
        with census_errors(self.where):
            table = counts.read(value_filter="category == 'tissue_general'").concat().to_pandas()
        table = table[table["organism"].astype(str) == organism]
        return [str(t) for t in table.sort_values("unique_cell_count", ascending=False)["label"]]

    def drawn(self, cells: pd.DataFrame, rows: npt.NDArray[np.int64], notes: list[str]) -> Drawn:
        """Return the obs of the drawn rows of ``cells``, and the genes to read."""
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
                f"left out {dropped:,} genes that were measured in less than {MEASURED:.0%} of the cells",
            ]
        told = [self.about, joinids.tolist(), var["soma_joinid"].tolist()]
        key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
        obs.index = pd.Index(obs["soma_joinid"].astype(str), name="cell")
        return Drawn(obs, var, chosen["nnz"].to_numpy(np.int64), len(cells), key, notes)

    def _genes(self, n_cells: pd.Series[int]) -> tuple[pd.DataFrame, int]:
        """Return the genes that enough of the cells were measured for, and how many others there are.

        Parameters
        ----------
        n_cells
            Cells of each dataset.
        """
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
        """Return what a reference keeps of where its cells come from: JSON values, with all citations."""
        n_cells = drawn.obs["dataset_id"].value_counts()
        table = self.datasets()
        used = table[table["dataset_id"].isin(n_cells.index)].sort_values("soma_joinid")
        datasets = [
            {
                "dataset_id": _line(row["dataset_id"]),
                "title": _line(row["dataset_title"]),
                "doi": _line(row["collection_doi"]),
                "n_cells": int(n_cells[row["dataset_id"]]),
                # Older versions of the Census have no column of citations.
                "citation": _line(
                    row.get("citation") or f"{row['collection_name']}, doi:{row['collection_doi']}"
                ),
            }
            for row in used.to_dict("records")
        ]
        citations = list(dict.fromkeys([CITATION, *(str(d["citation"]) for d in datasets)]))
        return {"census": self.about, "license": LICENSE, "citations": citations, "datasets": datasets}

    def counts(self, joinids: npt.NDArray[np.int64], genes: npt.NDArray[np.int64]) -> sp.csr_matrix[Any]:
        """Return counts of cells over genes, (n, n_genes) CSR float32; both ascending."""
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
        If the packages are not installed, or there is no such Census.
    NetworkError
        If it cannot be reached.
    """
    try:
        import cellxgene_census
        import tiledbsoma  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"the Census needs packages that are not installed ({error.name})",
            "scvec ingest census",
            "pip install 'scvec[census]'",
            code="extra-not-installed",
        ) from error
    # TileDB fills one buffer for each of the three columns of a matrix, and keeps tiles beside them.
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
    """Turn what TileDB and the network raise into errors of scvec; only reading belongs inside."""
    import tiledbsoma

    local = "://" not in where and not where.startswith("Census ")
    try:
        yield
    except ScvecError:
        raise
    except MemoryError as error:
        raise ResourceError("the Census needs more memory", where, "give more --memory") from error
    except (tiledbsoma.SOMAError, OSError, RuntimeError, KeyError, ValueError) as error:
        reason = str(error).strip("'\"").split("\n")[0][:160] or type(error).__name__
        if local or isinstance(error, KeyError | ValueError) or "does not exist" in reason:
            raise InputError(
                f"the Census cannot be read: {reason}",
                where,
                "check --uri or --census-version (stable, latest, or a date as 2025-11-08)",
                code="census-not-readable",
            ) from error
        fix = "check the network and run the command again: it goes on from there; or use a mirror (--uri)"
        raise NetworkError(f"the Census cannot be reached: {reason}", where, fix) from error


def _table(reader: Any) -> pd.DataFrame:
    """Return what a reader of SOMA gives, its texts as categories."""
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
    """Read the counts of drawn cells, and yield an h5ad file of them and the bytes that they take.

    All is deleted at the end.

    Each piece that was read is a file whose name has the numbers of its cells and a checksum. After a kill or
    an error the pieces stay, and the next call for the same cells reads the others only.

    Parameters
    ----------
    folder
        Where the pieces are kept, in a folder of the draw.

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
        raise LockedError("another process reads these cells", str(here), "wait for it") from error
    with lock:
        pieces = read_pieces(census, drawn, here, progress)
        path = here / f"census-{drawn.key}.h5ad"
        with disk_errors(path):
            _write_h5ad(path, pieces, drawn)
        yield path, sum(piece.stat().st_size for piece in pieces)
        shutil.rmtree(here, ignore_errors=True)


def piece_size(drawn: Drawn, memory: int) -> int:
    """Return how many cells are read at once: a power of two, the same for the same memory in most cases."""
    values = max(float(drawn.n_values.mean()), 1.0)
    most = memory / 4 / (values * BYTES_PER_VALUE)
    return int(np.clip(2 ** int(np.log2(max(most, 1))), 16, PIECE))


def read_pieces(census: Census, drawn: Drawn, folder: Path, progress: Progress = no_progress) -> list[Path]:
    """Read what a folder lacks of the counts of drawn cells; return its pieces in order.

    Each piece holds the CSR arrays ``data``, ``indices`` and ``indptr`` of its cells.
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
            # Pieces of a run with another memory may begin further on: up to there.
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
    """Return start -> stop and path of the pieces that are what their names say; delete all others."""
    found = {}
    for path in sorted(folder.iterdir()):
        match = _PIECE_NAME.fullmatch(path.name)
        if match and hashlib.sha256(path.read_bytes()).hexdigest()[:16] == match[3]:
            found[int(match[1])] = (int(match[2]), path)
        elif path.name != "lock":
            path.unlink()
    return found


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, whatever is killed."""
    part = path.with_suffix(".part")
    with open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _write_h5ad(path: Path, pieces: list[Path], drawn: Drawn) -> None:
    """Write the pieces as one h5ad file, one after another."""
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
    """What reading drawn cells takes: bytes on the disk, and seconds."""

    n_bytes: int
    seconds: float


def cost_of(census: Census, drawn: Drawn) -> Cost:
    """Estimate what reading takes: bytes from cells of all parts of the draw, time from neighbours in it.

    Neighbours lie in the same tiles, as those of a piece do; and what is opened once was opened before.
    """
    rows = np.unique(np.linspace(0, len(drawn.obs) - 1, N_SAMPLE).astype(np.int64))
    joinids, genes = (table["soma_joinid"].to_numpy(np.int64) for table in (drawn.obs, drawn.var))
    block = census.counts(joinids[rows], genes)
    first, start = max((len(joinids) - N_SAMPLE) // 2, 0), time.perf_counter()
    beside = census.counts(joinids[first : first + N_SAMPLE], genes)
    seconds = time.perf_counter() - start
    # The Census says how many values a cell has; the sample says which fraction is of genes that are kept.
    share = block.nnz / max(int(drawn.n_values[rows].sum()), 1)
    n_values = float(drawn.n_values.sum()) * share
    seconds *= n_values / max(beside.nnz, 1)
    return Cost(int(n_values * VALUE_BYTES + len(drawn.obs) * ROW_BYTES), seconds)


#: Seconds of an ingest whatever the cells, and per cell, on two cores: for the estimate of a dry run.
FIXED_SECONDS, SECONDS_PER_CELL = 15.0, 0.002


@dataclass(frozen=True, kw_only=True)
class CensusOptions:
    """Which cells of the Census become a reference.

    Attributes
    ----------
    name
        What the reference is called; ``RECIPE-ORGANISM`` or ``TISSUE-ORGANISM`` where empty.
    organism
        ``human`` or ``mouse``.
    tissue
        Names of tissues, as ``tissue_general`` or ``tissue`` of the Census have them.
    where
        Condition on columns of obs, in the words of SOMA's value filters. Only primary data is taken unless
        it names ``is_primary_data``.
    max_per_type
        Cells of a type at most, evenly of its datasets and donors.
    min_cells
        Types of fewer cells are left out.
    census_version
        ``stable``, ``latest`` or the date of a build.
    uri
        A copy of the Census: a folder or the address of a mirror.
    recipe
        Name of a recipe (:func:`recipes`): what is not given is as it says.
    seed
        Two draws with one seed have the same cells.
    memory
        Bytes that may be used, as a number or like ``"4G"``; half of what is free where not given.
    device
        ``auto``, ``cpu`` or ``cuda``.

    Raises
    ------
    InputError
        If an option cannot be used, or nothing says which cells.
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
        known = recipes().get(self.organism)
        if known is None:
            what = f"there is no organism {self.organism!r} here"
            raise InputError(what, "--organism", "give human or mouse", code="unknown-choice")
        if self.recipe and self.recipe not in known:
            what = f"there is no recipe {self.recipe!r} for {self.organism}"
            raise InputError(what, "--recipe", f"there are: {', '.join(known)}", code="unknown-choice")
        given = {"where": "", "max_per_type": 500, "min_cells": 50, **known.get(self.recipe, {})}
        for key, value in given.items():
            if getattr(self, key) in (None, ()):
                object.__setattr__(self, key, tuple(value) if isinstance(value, list) else value)
        if not self.tissue and not self.where:
            what = "nothing says which cells of the Census to take"
            raise InputError(what, "scvec ingest census", "give --recipe, --tissue or --where")
        for key, least in (("max_per_type", 2), ("min_cells", 1), ("seed", 0)):
            if getattr(self, key) < least:
                option = "--" + key.replace("_", "-")
                what = f"{option} must be {least} or more"
                raise InputError(what, option, "leave it out for the default", code="option-out-of-range")
        check_where(str(self.where))
        parse_memory(self.memory)
        what_for = self.recipe or re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(self.tissue)) or "census"
        object.__setattr__(self, "name", self.name or f"{what_for.strip('-')}-{self.organism}")

    def record(self) -> dict[str, Any]:
        """Return what a reference keeps of its options."""
        kept = ("tissue", "where", "max_per_type", "min_cells", "recipe", "seed")
        return {key: getattr(self, key) for key in kept}


def recipes() -> dict[str, dict[str, dict[str, Any]]]:
    """Return organism -> name -> tissue, where, max_per_type and min_cells of the recipes that ship."""
    import tomllib
    from importlib.resources import files

    return tomllib.loads((files("scvec") / "data" / "recipes.toml").read_text(encoding="utf-8"))


def recipe_table() -> RecipeTable:
    """Return the recipes that ship, for people and as JSON."""
    return RecipeTable(recipes=recipes())


@dataclass(frozen=True, kw_only=True)
class RecipeTable(Report):
    """The recipes that ship, by organism and name."""

    recipes: dict[str, dict[str, dict[str, Any]]]

    def lines(self) -> list[str]:
        """Return one line per recipe."""
        return [
            f"{organism} {name}: {', '.join(r['tissue'])}; {r['where']}; up to {r['max_per_type']:,} cells "
            f"of a type, types of {r['min_cells']:,} or more"
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
    """Make a reference of cells of CELLxGENE Census, with their curated types and citations.

    Labels are ``cell_type`` with their Cell Ontology ids, batches ``dataset_id`` with ``donor_id``. Counts
    are read in pieces that the store keeps until the reference is made: a run that was killed goes on.

    Parameters
    ----------
    store
        Folder of the store; made where there is none.
    options, **keywords
        :class:`CensusOptions`, or its fields as keywords.
    dry_run
        Only draw the cells, and estimate what reading them takes; the store is not changed.

    Raises
    ------
    InputError
        If an option cannot be used, the packages are missing, or no cells are found.
    NetworkError
        If the Census cannot be reached.
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
    """Return how the drawn cells become a reference; what cannot be used is refused before any reading."""
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
    """Find the cells, and draw some of each type.

    Raises
    ------
    InputError
        If fewer than two types have enough cells.
    """
    condition = value_filter(asked.tissue, str(asked.where), census.columns)
    cells = census.cells(condition)
    if not len(cells):
        raise InputError(
            f"no cells of the Census are: {condition}",
            census.where,
            f"tissues are: {', '.join(census.tissues()[:20])}",
            code="no-cells",
        )
    limits = {"max_per_type": asked.max_per_type, "min_cells": asked.min_cells, "seed": asked.seed}
    rows, notes = draw(cells, **limits)  # type: ignore[arg-type]
    n_types = cells["cell_type"].iloc[rows].nunique()
    if n_types < 2:
        what = f"of {len(cells):,} cells, {n_types} types have {asked.min_cells} or more"
        raise InputError(what, census.where, "give a wider --where or a lower --min-cells", code="no-cells")
    return census.drawn(cells, rows, notes)


def report_of(
    asked: CensusOptions,
    census: Census,
    drawn: Drawn,
    n_bytes: int,
    seconds: float,
    made: CellsReport | None = None,
) -> CensusReport:
    """Return the report of a draw, or of the reference that was ``made`` of it."""
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
    """A draw of the Census, and the reference that was made of it.

    Attributes
    ----------
    census
        Version, build date and schema.
    n_found, n_cells
        Cells that the condition found, and that were drawn.
    n_donors
        Donors, each counted once per dataset.
    classes
        Drawn cells per type.
    megabytes, minutes
        Counts that were read and the time that all took; of a dry run, estimates.
    made
        Report of the reference; None of a dry run.
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
        """Return the report as lines for people."""
        about = " ".join(x for x in (self.census["version"], self.census["build_date"]) if x)
        lines = [
            f"Census {about}, {self.census['organism']}: {self.n_cells:,} of {self.n_found:,} cells drawn, "
            f"{len(self.classes)} types, {self.n_datasets} datasets, {self.n_donors} donors, "
            f"{self.n_genes:,} genes"
        ]
        if self.made is None:
            size = human_bytes(self.megabytes * 1e6)
            return [
                *lines,
                *table(self.classes),
                f"would read {size}, in about {self.minutes:.1f} minutes; nothing was changed",
            ]
        size = human_bytes(self.megabytes * 1e6)
        return [*lines, *self.made.lines(), f"read {size}; {self.minutes:.1f} minutes in all"]
