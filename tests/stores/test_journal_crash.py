"""Ingests that are killed at any moment and continued: no answer is lost or repeated, same knowledge base.

``SCVEC_KILLS=50 pytest tests/stores/test_journal_crash.py`` kills more often.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.kill, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]

KILLS = int(os.environ.get("SCVEC_KILLS", "6"))

# Runs in a separate process that imports once and forks for every attempt. It opens no database itself, so a
# fork never copies a running thread.
PROGRAM = '''
import json, os, random, signal, sys, time, traceback
from pathlib import Path

import duckdb, filelock, numpy, pandas, pyarrow
from scvec.stores.store.store import Store
from scvec.stores.knowledge import knowledge
from scvec.stores.store import journal
from scvec.base.types import Answer
from some_answers import answer, done_jobs, failure, genes, written

N = 240


def wanted():
    """Return all jobs and their answers: most genes have two answers, some have none."""
    found = {}
    for n in range(N):
        other = answer(n, "mygene") if n % 7 else failure(n, "mygene", final=True)
        for item in (answer(n), other, written(n)):
            found[item.job] = item
    for n in range(N, N + 20):  # names of unknown genes
        found[answer(n, ask=True).job] = answer(n, ask=True)
    return found


def ingest(folder, pace, acknowledged=None):
    """Run like a command: absorb the journal, ask missing jobs, commit; return the number of answers."""
    store = Store.open(folder, create=True)
    with store.begin("ingest genes", {"source": "ncbi"}) as txn:
        kb = txn.open_knowledge()
        if not kb.counts()["genes"]:
            kb.upsert_genes(genes(N))
        kb.absorb(txn.journal())
        items = wanted()
        done, final = kb.jobs_done(items), {f.job for f in kb.failures() if f.final}
        todo = [job for job in items if job not in done and job not in final]
        random.Random(os.getpid()).shuffle(todo)
        for i in range(0, len(todo), 20):
            part = [items[job] for job in todo[i : i + 20]]
            txn.journal().write(
                [p for p in part if isinstance(p, Answer)], [p for p in part if not isinstance(p, Answer)]
            )
            if acknowledged is not None:
                numbers = {job: n for n, job in enumerate(items)}
                os.write(acknowledged, "".join(f"{numbers[job]} " for job in todo[i : i + 20]).encode())
            time.sleep(pace)
        kb.absorb(txn.journal())
        txn.commit()
        return len(todo)


def content(folder):
    """Return the content of the store: digest with jobs, and duplicate rows."""
    store = Store(folder)
    assert store.verify().ok, store.verify().problems
    with store.knowledge() as kb:
        twice = [
            kb._one(f"SELECT count(*) - count(DISTINCT ({key})) FROM {table}")[0]
            for table, key in (
                ("descriptions", "gene_id, source, model, prompt"), ("notes", "gene_id, source"),
                ("genes", "gene_id"), ("aliases", "gene_id, kind, name"),
                ("jobs", "gene_id, source, model, prompt, input_sha256"),
            )
        ]
        counts = kb.counts()
        return [kb.digest(), kb.digest(jobs=True), twice,
                {k: counts[k] for k in ("genes", "descriptions", "notes", "jobs")}]


def kept(folder):
    """Return the numbers of answered or failed jobs, in the journal or in the current generation."""
    store = Store.open(folder, create=True)
    items = wanted()
    with store.journal() as found:
        settled = done_jobs(found) | found.failed_jobs()
        assert found.notes == []
    if store.generation.manifest.knowledge is not None:
        with store.knowledge() as kb:
            settled |= kb.jobs_done(items) | {f.job for f in kb.failures() if f.final}
    return [n for n, job in enumerate(items) if job in settled]


def forked(work, *args):
    """Run in a child process and return its result; raise if the child fails."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, json.dumps(work(*args)).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(write)
    with open(read) as handle:
        out = handle.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, (work.__name__, args, status)
    return json.loads(out)


def killed(folder, kills, seed):
    start = time.monotonic()
    forked(ingest, folder + ".whole", 0.005)
    took = time.monotonic() - start
    rng = random.Random(seed)
    seen, running, finished = [], 0, 0
    log = os.open(folder + ".log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    pace, attempt = 0.005, 0
    while running < kills and attempt < 4 * kills:
        attempt += 1
        one = f"{folder}.{finished}"  # a new store after each complete one
        pid = os.fork()
        if pid == 0:
            try:
                ingest(one, pace, log)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        time.sleep(rng.uniform(0, 0.8 * took))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        acknowledged = {int(n) for n in os.pread(log, 1 << 20, 0).split()}
        there = set(forked(kept, one))
        assert acknowledged <= there, sorted(acknowledged - there)[:5]
        if os.WIFSIGNALED(status):
            running += 1
            seen.append(len(there))
        else:
            assert status == 0, status
        if len(there) == len(wanted()):
            forked(ingest, one, 0)
            assert forked(content, one) == forked(content, folder + ".whole")
            finished += 1
            os.ftruncate(log, 0)
    forked(ingest, f"{folder}.{finished}", 0)
    last = forked(content, f"{folder}.{finished}")
    # One more run asks nothing, changes nothing and leaves nothing.
    asked = forked(ingest, f"{folder}.{finished}", 0)
    left = sorted(p.name for p in Path(f"{folder}.{finished}", "work").iterdir())
    return {"kills": running, "seen": seen, "finished": finished, "left": left, "last": last, "asked": asked,
            "again": forked(content, f"{folder}.{finished}"), "whole": forked(content, folder + ".whole")}


task, *args = sys.argv[1:]
print(json.dumps(globals()[task](*[int(a) if a.isdigit() else a for a in args])))
'''


def test_killed_at_random_moments(tmp_path: Path) -> None:
    environ = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "killed", str(tmp_path / "store"), str(KILLS), "1"],
        capture_output=True,
        text=True,
        env=environ,
        timeout=500 + 20 * KILLS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["last"] == result["again"] == result["whole"]
    digest, _, twice, counts = result["whole"]
    assert len(digest) == 64 and set(twice) == {0}
    # 240 genes have two texts and the model's text, 35 lack MyGene's text, and 20 names have one.
    assert counts["genes"] == 260 and counts["descriptions"] == 3 * 240 - 35 + 20, counts
    assert counts["notes"] == 2 * 240 - 35 + 20, counts
    assert result["left"] == [] and result["asked"] == 0
    assert result["kills"] == KILLS and sum(n > 0 for n in result["seen"]) >= KILLS // 3, result["seen"]
