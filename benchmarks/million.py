"""Naming a million cells: scvec, CellTypist, SingleR, scanpy's ingest and the nearest centroid, in one run.

    python benchmarks/million.py --folder /scratch [--cells 10000 1000000] [--memory 24] [--hours 1]
    python benchmarks/million.py --publish        # table, plot and estimate from the rows kept

Donors 1 and 2 of Baron's human pancreas name cells of donors 3 and 4, drawn again and downsampled to 1,000
genes above zero (benchmarks/resampled.py), so that labels are new to every tool and their accuracy counts.
Each row is a process of its own that learns, names and writes labels. A tool goes on to the next size until
it is stopped: by memory (its own is looked at twice a second), by time, or since its growth says that the
next size would be. Rows are kept in benchmarks/cache/million.jsonl. Seconds of the CPU hardly depend on what
else the machine does; those of the clock do. Peers are those of `make peers`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from resampled import make
from scale import source
from tables import markdown, publish

HERE = Path(__file__).resolve().parent
KEPT = HERE / "cache" / "million.jsonl"
COLUMNS = tuple("tool cells seconds cpu_s cpu_ratio peak_gb accuracy macro_f1 note".split())
SIZES = (10_000, 30_000, 100_000, 1_000_000)
GOAL = 100_000_000

#: Each program gets reference, query, a folder, and where to write the labels, as an array of texts.
LOAD = """
import sys, numpy as np, anndata, scipy.sparse as sp
ref, new, folder, out = sys.argv[1:]
def load(path):
    cells = anndata.read_h5ad(path)
    cells.X = sp.csr_matrix(cells.X, dtype=np.float32)
    totals = np.asarray(cells.X.sum(axis=1)).ravel()
    cells.X.data = np.log1p(cells.X.data * np.repeat(1e4 / np.maximum(totals, 1), np.diff(cells.X.indptr)))
    return cells
"""
PROGRAMS = {
    "scvec": """
import sys, numpy as np, scvec
ref, new, folder, out = sys.argv[1:]
scvec.ingest_cells(folder, [ref], name="baron", label_key="cell_type", batch_key="donor", memory="4G")
found = scvec.query(folder, new, output=folder + "/labels.parquet", memory="4G")
np.save(out, found.label.astype(str))
""",
    "nearest centroid": """
import sys, numpy as np, anndata, scipy.sparse as sp
ref, new, folder, out = sys.argv[1:]
def unit(X):
    X = sp.csr_matrix(X, dtype=np.float32)
    totals = np.asarray(X.sum(axis=1)).ravel()
    X.data = np.log1p(X.data * np.repeat(1e4 / np.maximum(totals, 1), np.diff(X.indptr)))
    return X
known = anndata.read_h5ad(ref)
X, labels = unit(known.X), known.obs["cell_type"].to_numpy().astype(str)
names = np.unique(labels)
means = np.stack([np.asarray(X[labels == n].mean(axis=0)).ravel() for n in names])
means /= np.linalg.norm(means, axis=1, keepdims=True)
cells, found = anndata.read_h5ad(new, backed="r"), []
for start in range(0, cells.n_obs, 20_000):
    # The length of a cell does not change which cosine is largest.
    found.append(names[(unit(cells.X[start : start + 20_000]) @ means.T).argmax(axis=1)])
np.save(out, np.concatenate(found))
""",
    "CellTypist": LOAD
    + """
import celltypist
model = celltypist.train(load(ref), labels="cell_type")
found = celltypist.annotate(load(new), model=model).predicted_labels
np.save(out, found["predicted_labels"].to_numpy().astype(str))
""",
    "SingleR": LOAD
    + """
import singler
reference, query = load(ref), load(new)
genes = reference.var_names.tolist()
A, B = reference.X.T.tocsc(), query.X.T.tocsc()
for matrix in (A, B):
    matrix.sort_indices()
labels = reference.obs["cell_type"].astype(str).tolist()
built = singler.train_single(A, labels, genes, test_features=genes, num_threads=2)
np.save(out, np.array(singler.classify_single(B, built, num_threads=2).column("best")).astype(str))
""",
    "scanpy ingest": LOAD
    + """
import scanpy as sc
reference, query = load(ref), load(new)
sc.pp.highly_variable_genes(reference)
reference = reference[:, reference.var["highly_variable"]].copy()
sc.pp.pca(reference); sc.pp.neighbors(reference); sc.tl.umap(reference)
query = query[:, reference.var_names].copy()
sc.tl.ingest(query, reference, obs="cell_type")
np.save(out, query.obs["cell_type"].to_numpy().astype(str))
""",
}
#: Environment of each tool; the others run in that of scvec.
PEERS = {"CellTypist": "celltypist", "SingleR": "singler", "scanpy ingest": "scanpy"}


def python_of(tool: str) -> Path:
    """Return the interpreter that a tool runs in."""
    if tool not in PEERS:
        return Path(sys.executable)
    return Path(os.environ.get("SCVEC_PEERS") or HERE / "peers" / "envs") / PEERS[tool] / "bin" / "python"


def prepared(folder: Path, n: int) -> tuple[Path, Path]:
    """Return files of the reference and of ``n`` query cells, made where they are not there yet."""
    reference, others, query = folder / "reference.h5ad", folder / "others.h5ad", folder / f"query_{n}.h5ad"
    if not others.exists():
        cells = anndata.read_h5ad(source())
        known = cells.obs["donor"].isin(["human1", "human2"]).to_numpy()
        cells[known].write_h5ad(reference)
        cells[~known].write_h5ad(others)
    if not query.exists():
        part = query.with_suffix(".tmp")
        make(part, n, others, seed=1)
        part.rename(query)
    return reference, query


def memory_of(pid: int) -> int:
    """Return the bytes that a process holds."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024
    return 0


def measure(tool: str, folder: Path, n: int, memory: float, hours: float) -> dict[str, Any]:
    """Return a row: one tool on ``n`` cells, stopped beyond the limits."""
    reference, query = prepared(folder, n)
    out = folder / "labels.npy"
    out.unlink(missing_ok=True)
    work = folder / f"store-{n}"
    command = [str(python_of(tool)), "-c", PROGRAMS[tool], str(reference), str(query), str(work), str(out)]
    note, began = "", time.monotonic()
    with (folder / "log.txt").open("wb") as told:
        process = subprocess.Popen(
            command,
            stdout=told,
            stderr=told,
            start_new_session=True,
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        )
        while True:
            ended, state, used = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            over = memory_of(process.pid) > memory * 1e9
            late = time.monotonic() - began > hours * 3600
            if (over or late) and not note:
                note = f"stopped: {'over ' + format(memory, 'g') + ' GB' if over else 'over time'}"
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.5)
    row = {
        "tool": tool,
        "cells": n,
        "seconds": round(time.monotonic() - began, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_gb": round(used.ru_maxrss * 1024 / 1e9, 2),
    }
    if state and not note:
        note = "failed: " + (folder / "log.txt").read_text(errors="replace").strip().splitlines()[-1][:120]
    if note:
        return {**row, "accuracy": "-", "macro_f1": "-", "note": note}
    from scvec.model.calibration import accuracy, macro_f1

    truth = anndata.read_h5ad(query, backed="r").obs["cell_type"].to_numpy().astype(str)
    said = np.load(out)
    scores = {"accuracy": round(accuracy(truth, said), 3), "macro_f1": round(macro_f1(truth, said), 3)}
    return {**row, **scores, "note": ""}


def growth(rows: list[dict[str, Any]], column: str) -> tuple[float, float]:
    """Return a column at no cells, and what each cell adds: from the smallest and the largest size done.

    After one size, all of it counts as what its cells add.
    """
    done = [r for r in rows if not r["note"]]
    if len(done) < 2:
        return (0.0, done[0][column] / done[0]["cells"]) if done else (0.0, 0.0)
    a, b = done[0], done[-1]
    each = max(0.0, (b[column] - a[column]) / (b["cells"] - a["cells"]))
    return b[column] - each * b["cells"], each


def expected(rows: list[dict[str, Any]], column: str, n: int) -> float:
    """Return what a column would be at ``n`` cells, by its growth."""
    fixed, each = growth(rows, column)
    return fixed + each * n


def run(tool: str, folder: Path, sizes: list[int], memory: float, hours: float) -> None:
    """Measure a tool from size to size until it is stopped."""
    rows: list[dict[str, Any]] = []
    for n in sizes:
        needs, takes = expected(rows, "peak_gb", n), expected(rows, "seconds", n) / 3600
        if rows and (rows[-1]["note"] or needs > memory or takes > hours):
            print(f"{tool}: {n:,} cells would need {needs:.0f} GB and {takes:.1f} hours: not run", flush=True)
            return
        rows.append(measure(tool, folder, n, memory, hours))
        print(rows[-1], os.getloadavg(), flush=True)
        KEPT.parent.mkdir(exist_ok=True)
        with KEPT.open("a", encoding="utf-8") as handle:
            limits = {"memory": memory, "hours": hours, "load": round(os.getloadavg()[1], 1)}
            handle.write(json.dumps({**rows[-1], **limits}) + "\n")


def kept() -> list[dict[str, Any]]:
    """Return the rows, of each tool and size the latest, and what its growth says of a million cells."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for line in KEPT.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found[row["tool"], row["cells"]] = row
    rows: list[dict[str, Any]] = []
    for tool in PROGRAMS:
        own = [found[key] for key in sorted(found) if key[0] == tool]
        rows += own
        # One size does not tell what learning costs, and what a cell.
        sizes = sum(not row["note"] for row in own)
        if sizes > 1 and (own[-1]["note"] or own[-1]["cells"] < 1_000_000):
            columns = ("cpu_s", "peak_gb")
            rows.append(
                {
                    "tool": tool,
                    "cells": 1_000_000,
                    "seconds": "-",
                    **{c: round(expected(own, c, 1_000_000), 1) for c in columns},
                    **({} if growth(own, "peak_gb")[1] > 1e-7 else {"peak_gb": "-"}),
                    "accuracy": "-",
                    "macro_f1": "-",
                    "note": "not run: by its growth",
                }
            )
    base = {r["cells"]: r["cpu_s"] for r in rows if r["tool"] == "scvec"}
    for row in rows:
        row["cpu_ratio"] = round(row["cpu_s"] / base[row["cells"]], 1) if row["cells"] in base else "-"
    return rows


def estimate(rows: list[dict[str, Any]]) -> list[str]:
    """Return sentences: what a cell costs, and what 100 million would."""
    lines = []
    for tool in PROGRAMS:
        own = [r for r in rows if r["tool"] == tool and not r["note"]]
        if len(own) < 2:
            continue
        hours, (_, each) = expected(own, "cpu_s", GOAL) / 3600, growth(own, "cpu_s")
        lines.append(
            f"{tool}: {1000 * each:.2f} ms of CPU a cell; {GOAL:,} cells would take {hours:,.1f} hours of CPU"
        )
    return lines


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw CPU seconds and memory over cells; open marks are by growth."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "scvec", "svg.fonttype": "none"})
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axes, column, label in zip(
        panels, ("cpu_s", "peak_gb"), ("CPU seconds", "peak memory, GB"), strict=True
    ):
        for tool in PROGRAMS:
            own = [r for r in rows if r["tool"] == tool]
            done = [r for r in own if not r["note"]]
            [line] = axes.plot([r["cells"] for r in done], [r[column] for r in done], marker="o", label=tool)
            guessed = [r for r in own if r["note"].startswith("not run") and r[column] != "-"]
            both = [*done[-1:], *guessed]
            axes.plot(
                [r["cells"] for r in both],
                [r[column] for r in both],
                ls=":",
                marker="o",
                mfc="none",
                color=line.get_color(),
            )
        axes.set(xscale="log", yscale="log", xlabel="cells named", ylabel=label)
    panels[0].legend(fontsize=7)
    figure.savefig(HERE.parent / "docs" / "benchmarks" / "million.svg", metadata={"Date": None})


def main() -> None:
    """Measure or publish, as asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where cells and stores go: 12 GB for a million cells")
    parser.add_argument("--cells", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--tools", nargs="+", choices=tuple(PROGRAMS), default=list(PROGRAMS))
    parser.add_argument("--memory", type=float, default=24.0, help="GB a tool may hold")
    parser.add_argument("--hours", type=float, default=1.0, help="hours that one row may take")
    parser.add_argument("--publish", action="store_true", help="write table and plot of all rows kept")
    given = parser.parse_args()
    if given.folder:
        given.folder.mkdir(parents=True, exist_ok=True)
        for tool in given.tools:
            if python_of(tool).exists():
                run(tool, given.folder, sorted(given.cells), given.memory, given.hours)
            else:
                print(f"{tool} is not set up (make peers): its rows are left out")
    rows = kept()
    lines = estimate(rows)
    print(markdown(COLUMNS, rows), *lines, sep="\n")
    if given.publish:
        limits = {k: sorted({r[k] for r in rows if k in r}) for k in ("memory", "hours", "load")}
        told = [{c: r[c] for c in COLUMNS} for r in rows]
        publish(
            "million", "python benchmarks/million.py --publish", COLUMNS, told, limits=limits, estimate=lines
        )
        draw(rows)


if __name__ == "__main__":
    main()
