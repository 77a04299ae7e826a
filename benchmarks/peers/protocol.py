"""What every runner does: read tasks, time a method on each, write its answers.

Runs in the environment of each method, so it needs numpy and anndata only. A task names two h5ad files; for
each of its methods an ``.npz`` with ``label``, ``confidence``, ``novelty`` and, where the method gives one,
``status`` of the query's cells is written, and one line of JSON is printed.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Answer", "Cells", "Clock", "load", "serve"]

#: A line that the caller reads begins with this; all else that a library prints is for people.
MARK = "@@row "


class Clock:
    """Wall and CPU seconds of the stages ``fit`` and ``predict``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - wall, time.process_time() - cpu)

    def add(self, stage: str, wall: float, cpu: float) -> None:
        """Add seconds to a stage."""
        for name, value in ((f"{stage}_seconds", wall), (f"{stage}_cpu_seconds", cpu)):
            self.seconds[name] = self.seconds.get(name, 0.0) + value


@dataclass
class Answer:
    """Labels of the query's cells, (n,) each; no confidence, novelty or status where the method has none."""

    label: Any
    confidence: Any = None
    novelty: Any = None
    status: Any = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Cells:
    """What a method may look at.

    Attributes
    ----------
    reference, query
        AnnData; X is log1p of 10,000 counts a cell; ``layers["counts"]`` where there are counts.
    """

    reference: Any
    query: Any
    has_counts: bool
    has_batches: bool
    seed: int


def load(path: str | Path) -> Any:
    """Return cells with X as log1p CP10k; counts are kept in a layer."""
    import anndata
    import scipy.sparse as sp

    cells = anndata.read_h5ad(path)
    cells.var_names_make_unique()
    X = sp.csr_matrix(cells.X, dtype=np.float32)
    if (X.data == np.round(X.data)).all():
        cells.layers["counts"] = X.copy()
        totals = np.asarray(X.sum(axis=1)).ravel()
        factor = 1e4 / np.maximum(totals, 1e-9)
        X.data = np.log1p(X.data * np.repeat(factor, np.diff(X.indptr))).astype(np.float32)
    cells.X = X
    return cells


def serve(answer: Callable[[dict[str, Any], dict[str, Any], Clock], Answer], *packages: str) -> None:
    """Run all methods of all tasks of the file named on the command line.

    Parameters
    ----------
    answer
        Called with a task, the options of a method and a clock.
    packages
        Whose versions are written down.
    """
    tasks = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for task in tasks:
        for method in task["methods"]:
            _reset_peak()
            clock = Clock()
            row: dict[str, Any] = {"key": method["key"]}
            try:
                found = answer(task, method["options"], clock)
                _save(Path(task["out"]) / f"{method['key']}.npz", found)
                row |= found.facts
            except Exception as error:  # one method's failure is a row of the table, not the end of it
                traceback.print_exc()
                row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            row |= {k: round(v, 3) for k, v in clock.seconds.items()}
            row["peak_mb"] = _peak_mb()
            row["versions"] = {p: version(p) for p in packages}
            print(MARK + json.dumps(row), flush=True)


def cells_of(task: dict[str, Any]) -> Cells:
    """Return reference and query of a task as other tools want them."""
    reference, query = load(task["plain_reference"]), load(task["mapped"])
    return Cells(
        reference, query, task["has_counts"], "batch" in reference.obs.columns, int(task.get("seed", 0))
    )


def _save(path: Path, found: Answer) -> None:
    n = len(found.label)
    empty = np.full(n, np.nan)
    status = {} if found.status is None else {"status": np.asarray(found.status).astype(str)}
    np.savez_compressed(
        path,
        **status,
        label=np.asarray(found.label).astype(str),
        confidence=empty if found.confidence is None else np.asarray(found.confidence, dtype=np.float64),
        novelty=empty if found.novelty is None else np.asarray(found.novelty, dtype=np.float64),
    )


def _reset_peak() -> None:
    with suppress(OSError):  # no Linux: the peak is that of the process so far
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_mb() -> float:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return round(next(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) / 1024, 1)
    except (OSError, StopIteration):
        import resource

        scale = 1024**2 if sys.platform == "darwin" else 1024
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale, 1)


def n_threads() -> int:
    """Return how many threads a method may use."""
    return int(os.environ.get("OMP_NUM_THREADS", "1"))
