"""Time and memory of ``scvec ingest cells`` and ``scvec query`` from ten thousand to a million cells.

    python benchmarks/scale.py --make 100000 cells.h5ad            # only make cells (benchmarks/resampled.py)
    python benchmarks/scale.py --folder /scratch [--cells 10000 100000 1000000] [--steps query ingest]
    python benchmarks/scale.py --folder /scratch --engine ray --workers 1 2 --steps query   # needs psutil
    python benchmarks/scale.py --folder /scratch --parts           # the encoder beside scipy's product
    python benchmarks/scale.py --folder /scratch --celltypist      # beside CellTypist, where `make peers` ran
    python benchmarks/scale.py --publish                           # tables and plot from the rows kept

Each row is a process of its own, started with ``--memory 4G``; its peak memory is that of the process, with
Python, torch and all libraries. Of a Ray it is that of all processes at one moment, what they share counted
once, looked at twice a second; seconds of their CPUs are not known. Queries are asked of a reference of
20,000 cells. Gene texts are encoded once, before, and not counted. Rows are kept in
benchmarks/cache/scale.jsonl, the latest of each kind counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any

import numpy as np
from pairs import find_file
from resampled import SOURCE, make
from tables import markdown, publish

HERE = Path(__file__).resolve().parent
KEPT = HERE / "cache" / "scale.jsonl"
COLUMNS = tuple(
    "step engine workers cells seconds cpu_s cells_per_s read work write rest share peak_gb".split()
)
SCALE_KEY = ("step", "engine", "workers", "cells")
PART_COLUMNS = ("what", "cells_per_s", "ratio")
PEER_COLUMNS = ("tool", "cells", "genes", "fit_s", "query_s", "peak_gb")
N_REFERENCE = 20_000
MEMORY = "4G"
#: Stages that are work on cells: the others are what a command costs whatever it is given.
READ, WORK = ("read", "count genes"), ("encode and search", "encode cells", "train")
WRITE = ("write",)
CHILD = """
import json, resource, sys, time
import scvec
what, store, path, out, memory, options, workers = sys.argv[1:]
if int(workers):
    from scvec.engines import ray_cluster
    # As many cores, and so workers, as are asked for.
    ray_cluster._cores = lambda: int(workers)
start = time.perf_counter()
if what == "ingest":
    known = {"name": out, "label_key": "cell_type", "batch_key": "donor"}
    done = scvec.ingest_cells(store, [path], memory=memory, **known)
else:
    done = scvec.query(store, path, reference="reference", output=out, memory=memory, **json.loads(options))
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "cpu": time.process_time(), "stages": done.seconds, "peak": peak}))
"""


def child(code: str, *arguments: str | Path, python: str | Path = sys.executable) -> dict[str, Any]:
    """Run code in a process of its own; return the JSON of its last line."""
    done = subprocess.run(
        [str(python), "-c", code, *map(str, arguments)],
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def source() -> Path:
    """Return the file that cells are drawn from."""
    found = find_file(SOURCE)
    if found is None:
        raise SystemExit(f"{SOURCE} is not here: see benchmarks/pairs.py")
    return found


def cells(folder: Path, n: int, seed: int, **options: Any) -> Path:
    """Return a file of ``n`` cells, made where it is not there yet."""
    path = folder / f"cells_{n}_{seed}{''.join(f'_{v}' for v in options.values())}.h5ad"
    if not path.exists():
        made = path.with_suffix(".tmp")
        make(made, n, source(), seed=seed, **options)
        made.rename(path)
    return path


def all_of(*arguments: str | Path) -> dict[str, Any]:
    """Run ``CHILD`` as `child` does; the peak is that of it and all that it started, together."""
    import psutil

    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    # One thread each: beside the workers there is a shard that searches.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    peak = 0
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as started:
        process = psutil.Process(started.pid)
        while started.poll() is None:
            now = 0
            for one in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    now += one.memory_full_info().pss
            peak = max(peak, now)
            time.sleep(0.5)
        printed = started.stdout.read() if started.stdout else ""
    if started.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))} ended with {started.returncode}")
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    found.pop("cpu")
    return {**found, "peak": peak}


def measure(step: str, folder: Path, n: int, suffix: str, engine: str, workers: int) -> dict[str, Any]:
    """Return a row: one command on ``n`` cells."""
    store = prepared(folder)
    path = cells(folder, n, 1)
    if step == "ingest":
        found = child(CHILD, "ingest", store, path, "measured", MEMORY, "{}", "0")
    else:
        out = folder / f"out{suffix}"
        asked = ("query", store, path, out, MEMORY, json.dumps({"engine": engine}))
        found = all_of(*asked, str(workers)) if workers else child(CHILD, *asked, "0")
        out.unlink()
    row = row_of(step, engine, n, found, workers)
    keep({"table": "scale", **row, "stages": found["stages"]})
    return row


def row_of(step: str, engine: str, n: int, found: dict[str, Any], workers: int = 0) -> dict[str, Any]:
    """Return the row of a table from what a process said."""
    stages = {k: v for k, v in found["stages"].items() if k != "encode genes"}
    total = found["seconds"] - found["stages"].get("encode genes", 0.0)
    read, work, write = (sum(stages.get(name, 0.0) for name in names) for names in (READ, WORK, WRITE))
    return {
        "step": step,
        "engine": engine,
        "workers": workers or "-",
        "cells": n,
        "seconds": round(total, 1),
        "cpu_s": round(found["cpu"], 1) if "cpu" in found else "-",
        "cells_per_s": round(n / total),
        "read": round(read, 1),
        "work": round(work, 1),
        "write": round(write, 1),
        "rest": round(total - read - work - write, 1),
        "share": round((read + work) / total, 2),
        "peak_gb": round(found["peak"] / 1e9, 2),
    }


def prepared(folder: Path) -> Path:
    """Return a store with a reference of ``N_REFERENCE`` cells."""
    store = folder / "scale-store"
    if not (store / "ready").exists():
        child(CHILD, "ingest", store, cells(folder, N_REFERENCE, 2), "reference", MEMORY, "{}", "0")
        (store / "ready").touch()
    return store


def exponents(rows: list[dict[str, Any]]) -> list[str]:
    """Return how seconds and memory grow with cells, from one size to the next."""
    lines = []
    for step, engine, these in kinds(rows):
        for a, b in pairwise(these):
            grown = log(b["cells"] / a["cells"])
            # Seconds of the CPU, where they are known, do not depend on what else the machine does.
            clock = "cpu_s" if "-" not in (a["cpu_s"], b["cpu_s"]) else "seconds"
            seconds, peak = (log(b[c] / a[c]) / grown for c in (clock, "peak_gb"))
            lines.append(
                f"{step}, {engine}, {a['cells']:,} -> {b['cells']:,} cells: "
                f"{clock} grows with the power {seconds:.2f} of the cells, peak memory with {peak:.2f}"
            )
    return lines


def kinds(rows: list[dict[str, Any]]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Return step, engine with its workers, and rows by cells, of each kind of row."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        n = row["workers"]
        engine = row["engine"] if n == "-" else f"{row['engine']}, {n} worker{'s' if n > 1 else ''}"
        found.setdefault((row["step"], engine), []).append(row)
    return [(*key, sorted(these, key=lambda r: r["cells"])) for key, these in found.items()]


def parts(folder: Path) -> list[dict[str, Any]]:
    """Return the cells a second of the default encoder beside scipy's product of the same cells and axes."""
    from scvec.ingest.cells.source import CellSource
    from scvec.model.matching import match_genes, query_genes
    from scvec.model.resolvers import stored_resolver
    from scvec.model.storage import load_model
    from scvec.stores.store.store import Store

    store = Store(prepared(folder))
    stored = store.reference("reference")
    model = load_model(stored)
    with CellSource.open(cells(folder, 10_000, 1)) as opened:
        matched = match_genes(opened, stored_resolver(store))
        genes = query_genes(store, stored, matched, unmatched_genes="drop")
        chunk = next(iter(matched.chunks(genes, 2048)))
    known, encoder = chunk, model.members.encoder
    axes = encoder.axes[0]
    X, G = chunk.X[:, axes.genes], np.ascontiguousarray(axes.weights)
    seconds = {"scipy: sparse x dense alone": [], "discriminant: encode": [], "whole chunk: annotated": []}
    for _ in range(7):  # in turn, so that what else the machine does hits all alike
        for name, work in zip(
            seconds,
            (
                lambda: X @ G,
                lambda: encoder.encode(known),
                lambda: model.predict(chunk),
            ),
            strict=True,
        ):
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    best = {name: min(took) for name, took in seconds.items()}
    first = next(iter(best.values()))
    rows = [
        {"what": name, "cells_per_s": round(len(chunk) / took), "ratio": round(first / took, 2)}
        for name, took in best.items()
    ]
    for row in rows:
        keep({"table": "scale_parts", **row})
    return rows


def beside_celltypist(folder: Path, n: int, n_genes: int) -> list[dict[str, Any]]:
    """Return rows of scvec and CellTypist: 20,000 cells learned from, ``n`` asked."""
    from speed import CELLTYPIST

    peers = Path(os.environ.get("SCVEC_PEERS") or HERE / "peers" / "envs")
    reference, query = cells(folder, N_REFERENCE, 2, n_genes=n_genes), cells(folder, n, 1, n_genes=n_genes)
    store = folder / "peer-store"
    peak = "import resource\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    rows = []
    fit = child(CHILD, "ingest", store, reference, "reference", MEMORY, "{}", "0")
    learned = fit["seconds"] - fit["stages"].get("encode genes", 0.0)
    ask = child(CHILD, "query", store, query, folder / "peer.parquet", MEMORY, "{}", "0")
    rows.append(_peer("scvec", n, n_genes, learned, ask["seconds"], max(fit["peak"], ask["peak"])))
    if (python := peers / "celltypist" / "bin" / "python").exists():
        done = subprocess.run(
            [str(python), "-c", f"{CELLTYPIST}\n{peak}", str(reference), str(query), ""],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        took, most = (json.loads(line) for line in done.stdout.splitlines()[-2:])
        rows.append(_peer("CellTypist", n, n_genes, took["fit"][0], took["predict"][0], most))
    else:
        print("CellTypist is not set up (make peers): its row is left out")
    for row in rows:
        keep({"table": "scale_peers", **row})
    return rows


def _peer(tool: str, n: int, genes: int, fit: float, ask: float, peak: float) -> dict[str, Any]:
    numbers = {"fit_s": round(fit, 1), "query_s": round(ask, 1), "peak_gb": round(peak / 1e9, 2)}
    return {"tool": tool, "cells": n, "genes": genes, **numbers}


def keep(row: dict[str, Any]) -> None:
    """Add a row to those kept."""
    KEPT.parent.mkdir(exist_ok=True)
    with KEPT.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(row) + "\n")


def kept(table: str, *key: str) -> list[dict[str, Any]]:
    """Return the rows of a table, of each kind the latest, in order of its key."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in KEPT.read_text(encoding="utf-8").splitlines() if KEPT.exists() else ():
        row = json.loads(line)
        if row.pop("table") == table:
            if table == "scale":
                row.setdefault("workers", "-")
            found[tuple(row[k] for k in key)] = row
    by_name = (
        found[k] for k in sorted(found, key=lambda k: [str(v) if i < 3 else v for i, v in enumerate(k)])
    )
    return list(by_name) if table == "scale" else list(found.values())


def publish_kept() -> None:
    """Write tables, JSON and plot of all rows kept."""
    rows = kept("scale", *SCALE_KEY)
    command = "python benchmarks/scale.py --publish"
    stages = {" ".join(str(r[k]) for k in SCALE_KEY): r.pop("stages") for r in rows}
    publish("scale", command, COLUMNS, rows, stages=stages, exponents=exponents(rows), memory=MEMORY)
    publish("scale_parts", command, PART_COLUMNS, kept("scale_parts", "what"))
    if peers := kept("scale_peers", "tool", "cells"):
        publish("scale_peers", command, PEER_COLUMNS, peers)
    draw(rows)


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw seconds and memory over cells, both on logarithmic axes."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "scvec", "svg.fonttype": "none"})
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(8, 3.2))
    for axes, column, label in zip(
        panels, ("seconds", "peak_gb"), ("seconds", "peak memory, GB"), strict=True
    ):
        for step, engine, these in kinds(rows):
            points = [(r["cells"], r[column]) for r in these]
            axes.plot(*zip(*points, strict=True), marker="o", label=f"{step}, {engine}")
        axes.set_xscale("log")
        axes.set_yscale("log" if column == "seconds" else "linear")
        axes.set_xlabel("cells")
        axes.set_ylabel(label)
    panels[1].set_ylim(0, 5)
    panels[1].axhline(4.29, color="0.6", lw=0.8)
    panels[1].text(rows[0]["cells"], 4.35, "--memory 4G", fontsize=7, color="0.4")
    panels[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(HERE.parent / "docs" / "benchmarks" / "scale.svg", metadata={"Date": None})


def main() -> None:
    """Make, measure or publish, as asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--make", nargs=2, metavar=("N", "FILE"), help="only write N cells to FILE")
    parser.add_argument("--folder", type=Path, help="where cells and stores are kept between runs")
    parser.add_argument("--cells", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--steps", nargs="+", choices=["query", "ingest"], default=["query", "ingest"])
    parser.add_argument("--output", default=".h5ad", help="what a query writes: .h5ad, .csv or .parquet")
    parser.add_argument(
        "--engine", choices=["local", "ray"], default="local", help="that queries are asked of"
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="of a Ray")
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--celltypist", action="store_true")
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    if options.make:
        make(Path(options.make[1]), int(options.make[0]), source())
        return
    if options.publish:
        publish_kept()
        print("\n".join(exponents(kept("scale", *SCALE_KEY))))
        return
    if options.folder is None:
        parser.error("--folder is needed")
    if options.engine == "ray" and options.steps != ["query"]:
        parser.error("--engine ray is measured with --steps query: training stays in one process")
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.parts:
        print(markdown(PART_COLUMNS, parts(options.folder)))
    elif options.celltypist:
        print(markdown(PEER_COLUMNS, beside_celltypist(options.folder, options.cells[-1], 13_000)))
    else:
        rows = [
            measure(step, options.folder, n, options.output, options.engine, workers)
            for step in options.steps
            for workers in (options.workers if options.engine == "ray" else [0])
            for n in options.cells
        ]
        print(markdown(COLUMNS, rows))
        print("\n".join(exponents(rows)))


if __name__ == "__main__":
    main()
