"""What a method is given of a pair: a labelled reference, and a query without labels.

from pairs import chosen
from prepare import prepare

reference, query, labels, truth, novel = prepare(chosen("pbmc3k->kang")[0])
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from pairs import PROJECT, VALUES, Pair, find_file

__all__ = ["Files", "Prepared", "prepare", "write"]

ORTHOLOGS = PROJECT / "scvec" / "data" / "snapshot" / "orthologs.parquet"


class Prepared(NamedTuple):
    """Cells of a pair.

    Attributes
    ----------
    reference
        AnnData with ``obs["label"]`` and, where it has batches, ``obs["batch"]``; X (CSR float32) as in the
        file.
    query
        AnnData without labels, X likewise.
    labels
        (n,) labels of the reference, as in ``obs``. Answers are scored under ``pair.scored(answers)``.
    truth
        (m,) labels of the query's cells, under the names that are scored.
    novel
        (m,) bool: cells whose type the reference lacks.
    """

    reference: anndata.AnnData
    query: anndata.AnnData
    labels: np.ndarray
    truth: np.ndarray
    novel: np.ndarray


def prepare(pair: Pair) -> Prepared | None:
    """Return the cells of a pair; None where a source file is absent."""
    if find_file(pair.reference) is None or find_file(pair.query) is None:
        return None
    reference, query, told = _sides(pair)
    labels, truth = reference.obs["label"].to_numpy().astype(str), pair.scored(told)
    return Prepared(reference, query, labels, truth, ~np.isin(truth, pair.scored(labels)))


def _sides(pair: Pair) -> tuple[anndata.AnnData, anndata.AnnData, list[str]]:
    """Return reference, query and labels of the query."""
    reference = _cells(pair.reference, pair.reference_rows, pair.reference_key, pair.reference_labels)
    if pair.leave_out is not None:
        reference = reference[reference.obs["label"] != pair.leave_out].copy()
    if pair.per_type is not None:
        reference = reference[drawn(reference.obs["label"], pair.per_type, pair.draw)].copy()
    columns = {"label": reference.obs["label"].to_numpy()}
    if pair.batch_key is not None:
        columns["batch"] = reference.obs[pair.batch_key].to_numpy().astype(str)
    query = _thin(_cells(pair.query, pair.query_rows, pair.query_key, pair.query_labels), pair)
    truth = query.obs["label"].tolist()
    reference.obs = pd.DataFrame(columns, index=reference.obs_names)
    query.obs = pd.DataFrame(index=query.obs_names)  # no label travels with the query
    return reference, query, truth


def drawn(labels: Any, per_type: int, seed: int) -> np.ndarray:
    """Return the rows, ascending, of at most ``per_type`` cells of each label."""
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = pd.Series(np.asarray(labels)[order]).groupby(np.asarray(labels)[order]).cumcount().to_numpy()
    return np.sort(order[rank < per_type])


@dataclass(frozen=True)
class Files:
    """Files of a pair.

    Attributes
    ----------
    reference, query
        h5ad of the cells as :func:`prepare` returns them.
    plain_reference, plain_query
        The same with counts or log1p CP10k as X: what methods other than scvec ask for.
    mapped
        ``plain_query`` with its genes renamed to the reference's by one-to-one orthologs, for methods that
        know one species only; the same file within a species.
    truth
        (n,) labels of the query's cells, before ``pair.labels``.
    known
        Labels of the reference, likewise.
    digest
        Of everything a method is given.
    """

    pair: Pair
    reference: Path
    query: Path
    plain_reference: Path
    plain_query: Path
    mapped: Path
    truth: np.ndarray
    known: tuple[str, ...]
    has_counts: bool
    digest: str


def write(pair: Pair, cache_dir: Path) -> Files | None:
    """Write the files of a pair, or find them as written before; None where a source file is absent."""
    sources = [find_file(name) for name in (pair.reference, pair.query)]
    if None in sources:
        return None
    done = cache_dir / "pairs" / f"{_key(pair, [s for s in sources if s is not None])}.json"
    if not done.exists():
        done.parent.mkdir(parents=True, exist_ok=True)
        (cache_dir / "cells").mkdir(exist_ok=True)
        _write(pair, cache_dir / "cells", done)
    facts = json.loads(done.read_text(encoding="utf-8"))
    return Files(
        pair=pair,
        **{part: cache_dir / "cells" / name for part, name in facts["files"].items()},
        truth=np.array(facts["truth"]),
        known=tuple(facts["known"]),
        has_counts=facts["has_counts"],
        digest=facts["digest"],
    )


#: Fields of a pair that change nothing of what methods are given.
_SCORING = ("name", "labels", "terms", "shift", "tissue")


def _key(pair: Pair, sources: list[Path]) -> str:
    """Return a digest of what the files are made from; names used in scoring only do not count."""
    facts = {k: v for k, v in asdict(pair).items() if k not in _SCORING}
    facts["values"] = [VALUES.get(name) for name in (pair.reference, pair.query)]
    parts = [json.dumps(facts, sort_keys=True), Path(__file__).read_text(encoding="utf-8")]
    parts += [_file_digest(source) for source in sources]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@cache
def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


#: Key -> query files and facts of the pair written last: draws of its reference share them.
_last: dict[str, tuple[dict[str, str], list[str], bool]] = {}


def _write(pair: Pair, folder: Path, done: Path) -> None:
    reference, query, truth = _sides(pair)
    key = repr(replace(pair, per_type=None, draw=0))
    if key not in _last:
        plain = _plain(query, VALUES.get(pair.query))
        renamed = _by_orthologs(plain, reference)
        parts = {"query": query, "plain_query": plain, "mapped": plain if renamed is None else renamed}
        _last.clear()
        _last[key] = ({k: _save(v, folder) for k, v in parts.items()}, truth, _is_counts(query.X))
    files, truth, counts = _last[key]
    plain = _plain(reference, VALUES.get(pair.reference))
    files = {"reference": _save(reference, folder), "plain_reference": _save(plain, folder), **files}
    facts = {
        "files": files,
        "truth": truth,
        "known": sorted(set(reference.obs["label"])),
        "has_counts": counts and _is_counts(reference.X),
        "digest": hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()[:16],
    }
    temporary = done.with_suffix(".tmp")
    temporary.write_text(json.dumps(facts), encoding="utf-8")
    temporary.rename(done)


def _save(cells: anndata.AnnData, folder: Path) -> str:
    """Write cells under a name that says what they are, so that pairs share files; return it."""
    name = f"{_digest(cells)}.h5ad"
    if not (folder / name).exists():
        cells.write_h5ad(folder / f"{name}.tmp", compression="lzf")
        (folder / f"{name}.tmp").rename(folder / name)
    return name


def _digest(cells: anndata.AnnData) -> str:
    found = hashlib.sha256()
    for array in (cells.X.data, cells.X.indices.astype(np.int64), cells.X.indptr.astype(np.int64)):
        found.update(array.tobytes())
    found.update("\n".join([*cells.var_names, *cells.obs_names]).encode())
    found.update(cells.obs.to_csv().encode())
    return found.hexdigest()[:16]


def _cells(
    name: str, rows: tuple[str, tuple[str, ...]] | None, label_key: str, labels: Any
) -> anndata.AnnData:
    path = find_file(name)
    assert path is not None
    cells = anndata.read_h5ad(path)
    cells.uns = {}
    given = cells.obs[label_key].astype(str).astype(object)
    cells.obs["label"] = [labels.get(x, x) for x in given]
    kept = cells.obs["label"].notna().to_numpy()
    if rows is not None:
        column, values = rows
        number = cells.obs.groupby("label", observed=True).cumcount() % 2
        of = number.astype(str) if column == "half" else cells.obs[column].astype(str)
        kept &= of.isin(values).to_numpy()
    cells = cells[kept].copy()
    cells.X = sp.csr_matrix(cells.X, dtype=np.float32)
    return cells


def _plain(cells: anndata.AnnData, values: str | None) -> anndata.AnnData:
    """Return cells with log1p CP10k as X where the file has neither that nor counts."""
    if values is None:
        return cells
    X = cells.X.copy()
    data = X.data.astype(np.float64)
    X.data = {"linear": lambda x: x, "log2(TPM/10+1)": lambda x: np.exp2(x) - 1}[values](data)
    totals = np.maximum(np.asarray(X.sum(axis=1)).ravel(), 1e-9)
    X.data = np.log1p(X.data * np.repeat(1e4 / totals, np.diff(X.indptr))).astype(np.float32)
    plain = cells.copy()
    plain.X = X.astype(np.float32)
    return plain


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
    from scvec.model.resolvers import snapshot_resolver

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
