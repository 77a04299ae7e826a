"""Seconds that making a reference and asking it take, beside CellTypist in the same run.

    python benchmarks/speed.py [--repeats 3] [--publish]

The reference is PBMC 3k (2,638 cells, 20,000 genes) and the query 3,800 of its cells, some of them twice:
what cells cost does not depend on whether they were seen. Files are read in the time that is taken, vectors
of gene texts are in the store already. Each tool runs in a process and an environment of its own, in
turn, and the medians are given. Seconds depend on the machine and on what else it does; the ratio less so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import anndata
import numpy as np
from methods import HERE
from pairs import BLOOD, find_file
from tables import markdown, publish

COLUMNS = ("tool", "step", "seconds", "cpu_seconds", "ratio")
N_QUERY = 3800
CLOCK = """
import json, sys, time
def clock(f):
    wall, cpu = time.perf_counter(), time.process_time()
    f()
    return [time.perf_counter() - wall, time.process_time() - cpu]
reference, query, store = sys.argv[1:]
"""
SCVEC = (
    CLOCK
    + """
import scvec
fit = clock(lambda: scvec.ingest_cells(store, [reference], name="r", label_key="cell_type"))
ask = clock(lambda: scvec.query(store, query, reference="r"))
print(json.dumps({"fit": fit, "predict": ask}))
"""
)
CELLTYPIST = (
    CLOCK
    + """
import anndata, celltypist, numpy as np
def cells(path):
    a = anndata.read_h5ad(path)
    X = a.X.tocsr().astype("float64")
    X.data *= np.repeat(1e4 / np.asarray(X.sum(axis=1)).ravel(), np.diff(X.indptr))
    a.X = X.log1p()
    return a
made = []
fit = clock(lambda: made.append(celltypist.train(cells(reference), labels="cell_type")))
ask = clock(lambda: celltypist.annotate(cells(query), model=made[0]))
print(json.dumps({"fit": fit, "predict": ask}))
"""
)


def child(python: str | Path, code: str, *arguments: str | Path) -> dict[str, list[float]]:
    """Run code in an environment of its own; return seconds of each step, by the clock and of the CPU."""
    done = subprocess.run(
        [str(python), "-c", code, *map(str, arguments)],
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(repeats: int, kept: Path | None = None) -> list[dict[str, Any]]:
    """Return the rows of the table; those of CellTypist are left out where it is not set up."""
    reference = find_file(BLOOD.reference)
    if reference is None:
        raise SystemExit(f"{BLOOD.reference} is not here: see benchmarks/pairs.py")
    peers = Path(os.environ.get("SCVEC_PEERS") or HERE / "peers" / "envs")
    tools: dict[str, tuple[str | Path, str]] = {"scvec": (sys.executable, SCVEC)}
    if (python := peers / "celltypist" / "bin" / "python").exists():
        tools["CellTypist"] = (python, CELLTYPIST)
    else:
        print("CellTypist is not set up (make peers): its rows are left out")
    seconds: dict[tuple[str, str], list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        query, store = Path(folder) / "query.h5ad", kept or Path(folder) / "store"
        cells = anndata.read_h5ad(reference)
        asked = anndata.AnnData(cells.X[np.arange(N_QUERY) % cells.n_obs], var=cells.var)
        asked.write_h5ad(query)
        child(sys.executable, SCVEC, reference, query, store)  # encodes the texts of the genes
        for _ in range(repeats):
            for tool, (interpreter, code) in tools.items():
                for step, took in child(interpreter, code, reference, query, store).items():
                    seconds.setdefault((tool, step), []).append(took)
    middle = {key: [median(t) for t in zip(*took, strict=True)] for key, took in seconds.items()}
    yardstick = middle.get(("CellTypist", "fit"), middle[("scvec", "fit")])[0]
    return [
        {"tool": tool, "step": step, "seconds": wall, "cpu_seconds": cpu, "ratio": wall / yardstick}
        for (tool, step), (wall, cpu) in middle.items()
    ]


def main() -> None:
    """Run and print; with --publish, write docs/benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--store", type=Path, help="a store to keep gene vectors in; thrown away else")
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    rows = run(options.repeats, options.store)
    print(markdown(COLUMNS, rows))
    if options.publish:
        command = f"python benchmarks/speed.py --repeats {options.repeats} --publish"
        publish("speed", command, COLUMNS, rows)


if __name__ == "__main__":
    main()
