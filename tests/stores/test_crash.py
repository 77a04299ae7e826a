"""Writers that are killed at any moment leave a store that opens, verifies, and takes the same work again.

``SCVEC_KILLS=50 pytest tests/stores/test_crash.py`` kills at more random moments.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

#: Number of kills at random moments. Kills at every step of a commit always cover all steps.
KILLS = int(os.environ.get("SCVEC_KILLS", "12"))

pytestmark = [pytest.mark.kill, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]

# Runs in a separate process that imports once and forks for every attempt. It opens no database itself, so a
# fork never copies a running thread.
PROGRAM = '''
import json, os, random, shutil, signal, sys, time, traceback
from pathlib import Path

import duckdb, faiss, numpy as np, pandas as pd, pyarrow.parquet, safetensors.numpy, filelock
from scvec.stores.knowledge.knowledge import KnowledgeBase
from scvec.stores.store.store import Store
from scvec.stores.index import flat as faiss_index
from scvec.base.types import Gene, Space

SPACE = Space("minilm", "r1", "ab" * 32, "{text}", "mean", 6, True)
HOOKS = [(os, "fsync"), (os, "replace"), (os, "unlink"), (shutil, "copyfile"), (shutil, "rmtree")]


def ingest(folder, seed, with_cache=True):
    """Make a commit; every part of it depends on ``seed``."""
    store = Store.open(folder, create=True)
    with store.begin("ingest cells", {"seed": seed}) as txn:
        txn.open_knowledge().upsert_genes([Gene(f"HGNC:{i}", "human", f"G{i}") for i in range(seed + 1)])
        genes = pd.DataFrame({"gene_id": "g", "species": "human", "symbol": "s", "text_sha256": [str(seed)]})
        vectors = np.full((1, 6), seed, np.float32)
        if with_cache:
            txn.vectors().put_many(SPACE, [str(seed)], vectors)
        txn.put_space(SPACE, genes, vectors)
        txn.put_reference(
            "a", meta={"seed": seed}, tensors={"seed": np.array(seed)},
            obs=pd.DataFrame({"seed": [seed] * 3}), vectors=np.full((3, 4), seed, np.float32),
        )
        txn.commit()


def seed_of(folder, alone=False):
    """Check the current generation and return its seed; -1 if nothing was committed.

    With ``alone`` no file may be there that it does not name.
    """
    store = Store.open(folder, create=True)
    report = store.verify()
    assert report.ok, report.problems
    assert not (alone and report.unreferenced), report.unreferenced
    if not store.generation.number:
        return -1
    reference, space = store.reference("a"), store.space(SPACE.fingerprint)
    with store.knowledge() as kb:
        n_genes = len(kb.genes())
    seeds = {
        reference.meta["seed"], int(reference.tensors["seed"]), int(reference.obs["seed"].iloc[0]),
        int(reference.vectors[0, 0]), int(space.vectors[0, 0]), n_genes - 1, store.generation.number - 1,
    }
    assert len(seeds) == 1, seeds
    return seeds.pop()


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


def keep_ingesting(folder):
    seed = seed_of(folder)
    while True:
        seed += 1
        ingest(folder, seed)


def timed(folder):
    ingest(folder, 0)
    start = time.monotonic()
    ingest(folder, 1)
    return time.monotonic() - start


def random_kills(folder, n):
    rng = random.Random(1)
    seeds, killed_in_commit, took = [], 0, forked(timed, folder + ".timed")
    for _ in range(n):
        pid = os.fork()
        if pid == 0:
            try:
                keep_ingesting(folder)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        time.sleep(rng.uniform(0.02, 2.5 * took))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), status
        killed_in_commit += os.path.exists(os.path.join(folder, "work", "stage"))
        seeds.append(forked(seed_of, folder))
        if seeds[-2:] == [seeds[-1]] * 2:
            took *= 1.3  # nothing was committed, because the machine is busier than before
    assert seeds == sorted(seeds), seeds
    forked(ingest, folder, seeds[-1] + 1)
    assert forked(seed_of, folder) == seeds[-1] + 1
    forked(lambda: (Store(folder).compact(), None)[1])
    left = forked(lambda: Store(folder).verify().unreferenced)
    return {"kills": n, "commits": seeds[-1] + 1, "inside": killed_in_commit, "left": left}


def dying(work, step):
    """Wrap ``work`` so that the process is killed before its ``step``-th call to the file system."""
    count = 0

    def hook(module, name):
        real = getattr(module, name)

        def wrapped(*args, **kwargs):
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(module, name, wrapped)

    def run(*args):
        for module, name in HOOKS:
            hook(module, name)
        work(*args)

    return run


def survives(work, *args):
    """Run in a child process; return False if it was killed."""
    pid = os.fork()
    if pid == 0:
        try:
            work(*args)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert status == 0 or os.WIFSIGNALED(status), status
    return status == 0


def after_kill(folder):
    seed = seed_of(folder)
    ingest(folder, 1, False)
    assert Store(folder).compact().kept == []
    assert seed_of(folder, alone=True) == 1 and list(Path(folder).rglob("*.tmp")) == []
    return seed


def kill_at_every_step(folder):
    template = folder + ".template"
    forked(ingest, template, 0, False)
    seen = []
    for step in range(1, 500):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, folder)
        if survives(dying(ingest, step), folder, 1, False):
            break
        seen.append(forked(after_kill, folder))
    assert seen == sorted(seen), seen  # the old generation before one step, the new one after it
    return {"old": seen.count(0), "new": seen.count(1)}


def create(folder):
    Store.open(folder, create=True)


def kill_at_creation(folder):
    for step in range(1, 100):
        shutil.rmtree(folder, ignore_errors=True)
        if survives(dying(create, step), folder):
            break
        assert forked(seed_of, folder) == -1
    return {"steps": step - 1}


task, *args = sys.argv[1:]
print(json.dumps(globals()[task](*[int(a) if a.isdigit() else a for a in args])))
'''


def run(task: str, *args: object) -> dict[str, object]:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, task, *map(str, args)],
        capture_output=True,
        text=True,
        env=environ,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_killed_at_random_moments(tmp_path: Path) -> None:
    result = run("random_kills", tmp_path / "store", KILLS)
    assert result["commits"] >= KILLS // 6, result  # there were commits between the kills
    assert result["inside"] >= KILLS // 4, result  # and kills hit commits
    assert result["left"] == []


def test_killed_at_every_step_of_a_commit(tmp_path: Path) -> None:
    result = run("kill_at_every_step", tmp_path / "store")
    assert result["old"] >= 15 and result["new"] >= 1, result


def test_killed_at_creation(tmp_path: Path) -> None:
    """A killed creation leaves no store or an empty store."""
    assert run("kill_at_creation", tmp_path / "store")["steps"] >= 5
