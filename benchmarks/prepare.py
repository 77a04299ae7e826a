"""What a method is given of a pair, as files: a labelled reference, and a query without labels."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from pairs import PROJECT, Pair, find_file

__all__ = ["Prepared", "prepare"]

ORTHOLOGS = PROJECT / "scvec" / "data" / "snapshot" / "orthologs.parquet"


@dataclass(frozen=True)
class Prepared:
    """Files of a pair.

    Attributes
    ----------
    reference, query
        h5ad; the reference has ``obs['label']`` and, where it has batches, ``obs['batch']``. X holds counts,
        or log1p values where there are no counts.
    mapped
        The query with its genes renamed to the reference's by one-to-one orthologs, for methods that know
        one species only; the same file as ``query`` within a species.
    truth
        (n,) labels of the query's cells, under the names of the file.
    known
        Labels of the reference, likewise.
    digest
        Of everything a method is given.
    """

    pair: Pair
    reference: Path
    query: Path
    mapped: Path
    truth: np.ndarray
    known: tuple[str, ...]
    has_counts: bool
    digest: str


def prepare(pair: Pair, cache_dir: Path) -> Prepared | None:
    """Write the files of a pair, or find them as written before; None where a source file is absent."""
    sources = [find_file(name) for name in (pair.reference, pair.query)]
    if None in sources:
        return None
    key = _key(pair, [s for s in sources if s is not None])
    folder = cache_dir / "pairs" / key
    if not (folder / "done.json").exists():
        _write(pair, folder)
    facts = json.loads((folder / "done.json").read_text(encoding="utf-8"))
    mapped = folder / "mapped.h5ad"
    return Prepared(
        pair=pair,
        reference=cache_dir / "references" / f"{facts['reference']}.h5ad",
        query=folder / "query.h5ad",
        mapped=mapped if mapped.exists() else folder / "query.h5ad",
        truth=np.array(facts["truth"]),
        known=tuple(facts["known"]),
        has_counts=facts["has_counts"],
        digest=facts["digest"],
    )


def _key(pair: Pair, sources: list[Path]) -> str:
    """Return a digest of what the files are made from; names used in scoring only do not count."""
    facts = {k: v for k, v in asdict(pair).items() if k not in ("name", "labels", "terms", "shift")}
    parts = [json.dumps(facts, sort_keys=True), Path(__file__).read_text(encoding="utf-8")]
    parts += [_file_digest(source) for source in sources]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@cache
def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(pair: Pair, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    reference = _cells(pair.reference, pair.reference_rows, pair.reference_key)
    query = _cells(pair.query, pair.query_rows, pair.query_key)
    if pair.leave_out is not None:
        reference = reference[reference.obs["label"] != pair.leave_out].copy()
    query = _thin(query, pair)
    truth = query.obs["label"].tolist()
    known = sorted(set(reference.obs["label"]))
    counts = all(_is_counts(a.X) for a in (reference, query))
    columns = {"label": reference.obs["label"].to_numpy()}
    if pair.batch_key is not None:
        columns["batch"] = reference.obs[pair.batch_key].to_numpy().astype(str)
    reference.obs = pd.DataFrame(columns, index=reference.obs_names)
    query.obs = pd.DataFrame(index=query.obs_names)  # no label travels with the query
    renamed = _by_orthologs(query, reference)
    # Pairs with the same reference share its file: a runner that has just learned it need not do so again.
    shared = folder.parents[1] / "references" / f"{_digest([reference])}.h5ad"
    shared.parent.mkdir(exist_ok=True)
    for path, cells in (
        (shared, reference),
        (folder / "query.h5ad", query),
        (folder / "mapped.h5ad", renamed),
    ):
        if cells is not None:
            cells.write_h5ad(path, compression="lzf")
    digest = _digest([reference, query, *([renamed] if renamed is not None else [])])
    facts = {
        "reference": shared.stem,
        "truth": truth,
        "known": known,
        "has_counts": counts,
        "digest": digest,
    }
    (folder / "done.json").write_text(json.dumps(facts), encoding="utf-8")


def _digest(parts: list[anndata.AnnData]) -> str:
    found = hashlib.sha256()
    for cells in parts:
        for array in (cells.X.data, cells.X.indices.astype(np.int64), cells.X.indptr.astype(np.int64)):
            found.update(array.tobytes())
        found.update("\n".join([*cells.var_names, *cells.obs_names]).encode())
        found.update(cells.obs.to_csv().encode())
    return found.hexdigest()[:16]


def _cells(name: str, rows: tuple[str, tuple[str, ...]] | None, label_key: str) -> anndata.AnnData:
    path = find_file(name)
    assert path is not None
    cells = anndata.read_h5ad(path)
    cells.uns = {}
    cells.obs["label"] = cells.obs[label_key].astype(str).astype(object)
    if rows is not None:
        column, values = rows
        number = cells.obs.groupby("label", observed=True).cumcount() % 2
        of = number.astype(str) if column == "half" else cells.obs[column].astype(str)
        cells = cells[of.isin(values).to_numpy()].copy()
    cells.X = sp.csr_matrix(cells.X, dtype=np.float32)
    return cells


def _thin(cells: anndata.AnnData, pair: Pair) -> anndata.AnnData:
    """Keep a share of the genes and of the counts, always the same ones."""
    rng = np.random.default_rng(0)
    if pair.genes < 1:
        kept = np.sort(rng.choice(cells.n_vars, round(pair.genes * cells.n_vars), replace=False))
        cells = cells[:, kept].copy()
    if pair.counts < 1:
        X = cells.X.copy()
        X.data = rng.binomial(X.data.astype(np.int64), pair.counts).astype(np.float32)
        X.eliminate_zeros()
        cells.X = X
    return cells


def _is_counts(X: Any) -> bool:
    return bool((X.data == np.round(X.data)).all())


@cache
def _resolver() -> Any:
    from scvec.api.resolvers import snapshot_resolver

    return snapshot_resolver()


def _by_orthologs(query: anndata.AnnData, reference: anndata.AnnData) -> anndata.AnnData | None:
    """Return the query with the reference's gene names, one-to-one orthologs only; None within a species."""
    theirs, ours = (_resolver().resolve(list(a.var_names)) for a in (query, reference))
    if theirs.species == ours.species:
        return None
    table = pd.read_parquet(ORTHOLOGS)
    table = table[table["kind"] == "one2one"]
    partner = dict(zip(table[f"{theirs.species}_gene_id"], table[f"{ours.species}_gene_id"], strict=True))
    name_of = {g: n for n, g in zip(ours.names, ours.gene_ids, strict=True) if g is not None}
    names = [name_of.get(partner.get(g, "")) if g is not None else None for g in theirs.gene_ids]
    column = {n: i for i, n in reversed(list(enumerate(names))) if n is not None}
    renamed = query[:, list(column.values())].copy()
    renamed.var = pd.DataFrame(index=list(column))
    return renamed
