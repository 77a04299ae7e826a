"""Runs of the annotation benchmark: started, written down as they end, found again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scores
from methods import HERE, Method
from pairs import PROJECT, Pair
from prepare import Files, write

__all__ = ["Results", "Run"]

#: As in peers/protocol.py.
MARK = "@@row "
#: One thread each, so that seconds can be compared; threads that wait do not spin.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Run:
    """One method on one pair with one seed."""

    method: Method
    pair: Pair
    files: Files
    seed: int

    @property
    def key(self) -> str:
        """Return the name of the run: anything that could change the answer gives another one."""
        parts = (self.method.fingerprint, self.files.digest, str(self.seed))
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:20]


class Results:
    """The rows of a results file, and the answers beside it.

    Parameters
    ----------
    folder
        Holds ``rows.jsonl`` (a line per run, added as it ends), ``answers`` and ``pairs``.
    store
        The store that scvec's references go to and that keeps the vectors of gene texts.
    """

    def __init__(self, folder: Path, store: Path | None = None) -> None:
        self.folder = folder.resolve()
        self.store = (store or folder / "store").resolve()
        (self.folder / "answers").mkdir(parents=True, exist_ok=True)
        self.file = self.folder / "rows.jsonl"
        self.rows: dict[str, dict[str, Any]] = {}
        if self.file.exists():
            for line in self.file.read_text(encoding="utf-8").splitlines():
                if line.endswith("}"):  # a run that was killed may leave half a line
                    row = json.loads(line)
                    self.rows[row["key"]] = row

    def plan(
        self, methods: Iterable[Method], pairs: Iterable[Pair], seeds: int, *, every_method: bool = False
    ) -> tuple[list[Run], list[str]]:
        """Return the runs, and the pairs whose files are absent.

        Parameters
        ----------
        every_method
            Run all methods where a type is left out and on the learning curves, not only those that are
            compared there.
        """
        runs, absent = [], []
        methods = list(methods)
        for pair in pairs:
            # Every seed draws other cells of the reference, for methods too that draw nothing themselves.
            draws = [replace(pair, draw=i) for i in range(seeds)] if pair.per_type is not None else [pair]
            files = [found for draw in draws if (found := write(draw, self.folder)) is not None]
            if not files:
                absent.append(pair.name)
                continue
            for method in methods:
                if method.needs_counts and not files[0].has_counts:
                    continue
                if pair.leave_out is not None and not (method.rejects or every_method):
                    continue
                if pair.per_type is not None and not (method.learns or every_method):
                    continue
                n = seeds if method.seeded or len(files) > 1 else 1
                runs += [Run(method, pair, files[min(i, len(files) - 1)], i) for i in range(n)]
        return runs, absent

    def missing(self, runs: Iterable[Run], *, retry: bool = False, again: bool = False) -> list[Run]:
        """Return the runs that have not been done; with ``retry`` those that failed as well, ``again`` all.

        Of runs with the same key one: 20 cells a type are all cells of a small reference.
        """
        rows = {} if again else self.rows
        todo = [r for r in runs if r.key not in rows or (retry and "error" in rows[r.key])]
        return list({r.key: r for r in todo}.values())

    def execute(self, runs: list[Run], *, threads: int = 1, limit: float | None = None) -> None:
        """Do runs, one process for each runner, and write each down as it ends.

        Parameters
        ----------
        limit
            Seconds after which no other process is started, and the one that runs is ended.
        """
        ends = None if limit is None else time.monotonic() + limit
        for runner in dict.fromkeys(r.method.runner for r in runs):
            some = [r for r in runs if r.method.runner == runner]
            if not some[0].method.python.exists():
                print(f"  {runner}: no environment ({some[0].method.python}); make peers", flush=True)
                continue
            self._execute(some, threads, ends)

    def _execute(self, runs: list[Run], threads: int, ends: float | None) -> None:
        by_key = {run.key: run for run in runs}
        runner = runs[0].method.runner
        with tempfile.TemporaryDirectory() as folder:
            tasks = Path(folder) / "tasks.json"
            tasks.write_text(json.dumps(self._tasks(runs)), encoding="utf-8")
            log = self.folder / f"{runner}.log"
            with log.open("a", encoding="utf-8") as errors:
                process = subprocess.Popen(
                    [str(runs[0].method.python), str(HERE / "peers" / f"run_{runner}.py"), str(tasks)],
                    env=_environment(threads),
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
                assert process.stdout is not None
                try:
                    for line in process.stdout:
                        if line.startswith(MARK):
                            row = json.loads(line.removeprefix(MARK))
                            self._add(by_key.pop(row["key"]), row)
                        if ends is not None and time.monotonic() > ends:
                            print(f"  {runner}: out of time, {len(by_key)} runs left", flush=True)
                            break
                finally:
                    process.kill()
                    process.wait()
            if by_key and (ends is None or time.monotonic() < ends):
                print(f"  {runner}: ended with {len(by_key)} runs left; see {log}", flush=True)

    def _tasks(self, runs: list[Run]) -> list[dict[str, Any]]:
        """Return a task per pair and seed; those that share a reference, and so a fit, follow one another."""
        tasks: dict[tuple[str, int], dict[str, Any]] = {}
        for run in runs:
            files = run.files
            task = tasks.setdefault(
                (files.digest, run.seed),
                {
                    "reference": str(files.reference),
                    "query": str(files.query),
                    "plain_reference": str(files.plain_reference),
                    "plain_query": str(files.plain_query),
                    "mapped": str(files.mapped),
                    "has_counts": files.has_counts,
                    "has_batches": run.pair.batch_key is not None,
                    "seed": run.seed,
                    "out": str(self.folder / "answers"),
                    "store": str(self.store),
                    "methods": [],
                },
            )
            task["methods"].append({"key": run.key, "options": dict(run.method.options)})
        return sorted(tasks.values(), key=lambda t: (t["reference"], t["seed"]))

    def _add(self, run: Run, measured: dict[str, Any]) -> None:
        row = {
            "pair": run.pair.name,
            "method": run.method.name,
            "family": run.method.family,
            "shift": list(run.pair.shift),
            "seed": run.seed,
            "at": time.strftime("%Y-%m-%dT%H:%M:%S"),
            **measured,
        }
        self.rows[run.key] = row
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
        shown = self.scored(run)
        assert shown is not None
        what = shown.get("error") or f"{shown['accuracy']:.3f} accuracy  {shown['macro_f1']:.3f} macro-F1"
        new = f"  {shown['novelty_auroc']:.3f} novelty" if "novelty_auroc" in shown else ""
        seconds = f"{row.get('fit_seconds', 0):.1f} + {row.get('predict_seconds', 0):.1f} s"
        print(f"  {run.pair.name:<34} {run.method.name:<46} {what}{new}  {seconds}", flush=True)

    def scored(self, run: Run) -> dict[str, Any] | None:
        """Return the row of a run with its scores, which are worked out from the answers anew."""
        row = self.rows.get(run.key)
        if row is None or "error" in row:
            return row
        answers = np.load(self.folder / "answers" / f"{run.key}.npz")
        pair = run.pair
        found = scores.score(
            pair.scored(run.files.truth),
            pair.scored(answers["label"]),
            answers["confidence"],
            answers["novelty"],
            status=answers.get("status"),
            known=set(pair.scored(run.files.known).tolist()),
            terms=pair.terms,
            is_probability=run.method.confidence == "probability",
        )
        # The name of a method or pair may have changed since.
        return {**row, "pair": run.pair.name, "method": run.method.name, "family": run.method.family, **found}

    def before(self, run: Run) -> dict[str, Any] | None:
        """Return the last row of the same method, pair and seed that other code made."""
        same = [
            r
            for r in self.rows.values()
            if (r["pair"], r["method"], r["seed"]) == (run.pair.name, run.method.name, run.seed)
            and r["key"] != run.key
            and "error" not in r
        ]
        if not same:
            return None
        past = Past(run, max(same, key=lambda r: r["at"])["key"])
        return self.scored(past)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Past:
    """A run of earlier code: scored like a run of today's."""

    run: Run
    key: str

    @property
    def pair(self) -> Pair:
        return self.run.pair

    @property
    def method(self) -> Method:
        return self.run.method

    @property
    def files(self) -> Files:
        return self.run.files


def _environment(threads: int) -> dict[str, str]:
    given = {**os.environ, **{name: str(threads) for name in THREADS}}
    given["PYTHONPATH"] = str(PROJECT)
    given["OMP_WAIT_POLICY"] = "PASSIVE"
    given["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads={threads}"
    given["PYTHONWARNINGS"] = "ignore"
    return given
