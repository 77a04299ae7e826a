"""What it costs to add cells to a large reference and to take some out: in place, and by making it anew.

The vectors are mixtures of those of a real reference (benchmarks/mixtures.py), with the index that fits their
number. Each change is made in a transaction of its own, and counted from its begin to its commit.

    python benchmarks/grow.py [--store STORE --reference NAME] [--n N] --publish
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from index import STORE, ingest
from mixtures import group_of, synthetic
from tables import markdown, publish

from scvec.model.cell_index import put_cells, put_whole
from scvec.model.storage import CODE_COLUMN
from scvec.stores.index.flat import FaissFlatIndex
from scvec.stores.store.store import Store
from scvec.stores.store.transaction import Transaction

COLUMNS = ("change", "cells", "how", "cpu_s", "seconds", "mb_written", "of_anew")
SEARCHES = ("index", "segments", "deleted", "recall_15", "queries_per_s", "of_whole")
NAME, K, N_QUERIES = "r", 15, 1000


def changed(store: Store, change: Callable[[Transaction], object]) -> dict[str, Any]:
    """Make a change; return what it cost."""
    held = {p.name for p in (store.path / "files").iterdir()}
    began, cpu = time.perf_counter(), time.process_time()
    with store.begin("benchmark") as txn:
        change(txn)
        txn.commit()
    cost = {"cpu_s": time.process_time() - cpu, "seconds": time.perf_counter() - began}
    new = [p.stat().st_size for p in (store.path / "files").iterdir() if p.name not in held]
    return {**cost, "mb_written": sum(new) / 1e6}


def grown(store: Store, vectors: Any, codes: Any, *, anew: bool) -> Callable[[Transaction], object]:
    """Return the change that adds cells."""
    stored = store.reference(NAME)
    obs = pd.concat([stored.obs, table(codes, stored.n)])
    if anew:
        whole = np.concatenate([stored.vectors, vectors])
        return lambda txn: put_whole(txn, stored, stored.meta, obs, whole, None)
    return lambda txn: txn.add_cells(NAME, meta=stored.meta, obs=obs, vectors=vectors)


def shrunk(store: Store, rows: Any, *, anew: bool) -> Callable[[Transaction], object]:
    """Return the change that takes rows out."""
    stored = store.reference(NAME)
    obs = stored.obs.iloc[np.delete(np.arange(stored.n), rows)]
    if anew:
        whole = np.delete(stored.vectors, rows, axis=0)
        return lambda txn: put_whole(txn, stored, stored.meta, obs, whole, None)
    return lambda txn: txn.drop_cells(NAME, rows, meta=stored.meta, tensors=stored.tensors, obs=obs)


def table(codes: Any, first: int) -> pd.DataFrame:
    """Return obs of cells."""
    return pd.DataFrame({CODE_COLUMN: codes}, index=[f"cell-{first + i}" for i in range(len(codes))])


def searched(label: str, store: Store, queries: Any) -> tuple[dict[str, Any], Callable[[], float]]:
    """Return what an index finds, and a function that measures its queries a second."""
    stored = store.reference(NAME)
    index, truth = (
        stored.searcher(),
        FaissFlatIndex.over(np.asarray(stored.vectors)).search(queries, K).indices,
    )
    found = index.search(queries, K).indices
    recall = float(np.mean([np.isin(t, f).mean() for t, f in zip(truth, found, strict=True)]))

    def rate() -> float:
        began = time.process_time()
        index.search(queries, K)
        return len(queries) / (time.process_time() - began)

    return {
        "index": label,
        "segments": stored.n_segments,
        "deleted": stored.n_deleted,
        "recall_15": recall,
    }, rate


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, default=STORE)
    parser.add_argument("--reference", default="human")
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--part", type=int, default=10_000, help="cells that come, or go")
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()

    if options.store == STORE and not (STORE / "CURRENT").exists():
        ingest(STORE)
    real = Store(options.store).reference(options.reference)
    codes = real.obs[CODE_COLUMN].to_numpy()
    group = group_of(np.asarray(real.vectors), codes, np.zeros(len(codes), dtype=np.int64))
    vectors, _ = synthetic(group, options.n + 4 * options.part, 0)
    queries, _ = synthetic(group, N_QUERIES, 1)
    labels = np.zeros(len(vectors), dtype=np.int64)
    gone = np.sort(np.random.default_rng(2).choice(options.n, options.part, replace=False))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "store", create=True)
        meta = {"classes": ["cell"], "counts": {}, "sources": []}
        with store.begin("benchmark") as txn:
            first = vectors[: options.n]
            tensors, obs = {"w": np.ones(1, dtype=np.float32)}, table(labels[: options.n], 0)
            put_cells(txn, NAME, first, meta, tensors, obs, ("auto", 0.95, None))
            txn.commit()
        found = [searched("as it was made", store, queries)]
        new = vectors[options.n : options.n + options.part]
        for anew in (True, False):
            for change, make, what in (
                ("join", grown, (new, labels[: options.part])),
                ("leave", shrunk, (gone,)),
            ):
                how = "anew" if anew else "in place"
                cost = changed(store, make(store, *what, anew=anew))
                rows.append({"change": change, "cells": options.part, "how": how, **cost})
        found.append(searched("cells joined and left", store, queries))
        for i in (1, 2, 3):
            start = options.n + i * options.part
            changed(
                store, grown(store, vectors[start : start + options.part], labels[: options.part], anew=False)
            )
        found.append(searched("three segments more", store, queries))
        rates = [0.0] * len(found)
        for _ in range(5):  # in turns, so that a busy minute falls on all
            rates = [max(best, rate()) for best, (_, rate) in zip(rates, found, strict=True)]
    for row in rows:
        anew = next(r for r in rows if r["change"] == row["change"] and r["how"] == "anew")
        row["of_anew"] = row["cpu_s"] / anew["cpu_s"]
    searches = [
        {**row, "queries_per_s": rate, "of_whole": rate / rates[0]}
        for (row, _), rate in zip(found, rates, strict=True)
    ]
    print(markdown(COLUMNS, rows), markdown(SEARCHES, searches), sep="\n\n")
    if options.publish:
        command = f"python benchmarks/grow.py --store STORE --reference {options.reference} --n {options.n}"
        command += " --publish"
        publish("grow", command, COLUMNS, rows)
        publish("grow_search", command, SEARCHES, searches)


if __name__ == "__main__":
    main()
