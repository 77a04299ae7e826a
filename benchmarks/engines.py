"""Cells a second that a query names: in one process, and by workers of a Ray cluster on this machine.

    python benchmarks/engines.py [--cells 40000] [--repeats 3] [--store DIR] [--publish]

The reference is the human pancreas of Baron et al. that ships with scvec, the query its mouse cells drawn
with replacement: what cells cost does not depend on whether they were seen. Each run is a process of its
own, in turn, one thread each; medians are given. ``start_seconds`` is what passes from the start of the
stage to the first chunk that is done (Ray, its workers and their libraries), ``cells_per_second`` is what
follows. Labels and neighbours must be the same, bit for bit, or the run fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

import anndata
import numpy as np
from tables import markdown, publish

COLUMNS = ("engine", "workers", "start_seconds", "cells_per_second", "ratio", "stage_seconds", "same_answer")
RUNS = (("local", 1), ("ray", 1), ("ray", 2))
CHILD = """
import hashlib, json, sys, time
import scvec
store, query, engine, workers = sys.argv[1:]
seen = []
def progress(stage, done, total, detail=""):
    if stage == "annotating cells":
        seen.append((time.perf_counter(), done))
if engine == "ray":
    from scvec.engines import ray_cluster
    # As many cores, and so workers, as are asked for.
    ray_cluster._cores = lambda: int(workers)
found = scvec.query(store, query, reference="r", engine=engine, progress=progress)
answer = hashlib.sha256(found.to_table().to_csv().encode())
answer.update(found.neighbors.indices.tobytes() + found.neighbors.distances.tobytes())
stage = found.seconds["encode and search"]
rate = (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])
steady = seen[-1][0] - seen[0][0]
print(json.dumps({"start": stage - steady, "rate": rate, "stage": stage, "answer": answer.hexdigest()}))
"""


def make(folder: Path, n_cells: int) -> tuple[Path, Path]:
    """Write the query, and make the reference where there is none; return the store and the query."""
    import scvec

    data = files("scvec") / "data"
    store, query = folder / "store", folder / f"query-{n_cells}.h5ad"
    if not (store / "CURRENT").exists():
        scvec.ingest_cells(
            store,
            [str(data / "baron_human.h5ad")],
            name="r",
            label_key="cell_type",
            batch_key="donor",
            backbone="random:384",
        )
    if not query.exists():
        mouse = anndata.read_h5ad(str(data / "baron_mouse.h5ad"))
        rows = np.random.default_rng(0).integers(0, mouse.n_obs, n_cells)
        drawn = anndata.AnnData(mouse.X[rows], var=mouse.var)
        drawn.obs_names = [f"cell{i}" for i in range(n_cells)]
        drawn.write_h5ad(query)
    return store, query


def ask(store: Path, query: Path, engine: str, workers: int) -> dict[str, Any]:
    """Query in a process of its own; return seconds, rate and a digest of the answer."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(store), str(query), engine, str(workers)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(store: Path, query: Path, repeats: int) -> list[dict[str, Any]]:
    """Return the rows of the table."""
    measured: dict[tuple[str, int], list[dict[str, Any]]] = {key: [] for key in RUNS}
    for _ in range(repeats):
        for key in RUNS:
            measured[key].append(ask(store, query, *key))
    answers = {m["answer"] for runs in measured.values() for m in runs}
    if len(answers) != 1:
        raise SystemExit(f"the engines do not agree: {measured}")
    alone = median(m["rate"] for m in measured["local", 1])
    rows = []
    for (engine, workers), runs in measured.items():
        rate = median(m["rate"] for m in runs)
        rows.append(
            {
                "engine": engine,
                "workers": workers,
                "start_seconds": median(m["start"] for m in runs),
                "cells_per_second": round(rate),
                "ratio": rate / alone,
                "stage_seconds": median(m["stage"] for m in runs),
                "same_answer": "yes",
            }
        )
    return rows


def main() -> None:
    """Run and print; with --publish, write docs/benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=40_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--store", type=Path, help="keep the reference and the query here")
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.store or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = run(*make(folder, options.cells), options.repeats)
    print(markdown(COLUMNS, rows))
    if options.publish:
        facts = {"cells": options.cells, "repeats": options.repeats, "cores": os.cpu_count()}
        publish("engines", "python benchmarks/engines.py --publish", COLUMNS, rows, **facts)


if __name__ == "__main__":
    main()
