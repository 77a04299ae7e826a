"""Two Ray nodes on one machine give the results of one process, also if a part is lost."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

import scvec
from scvec.base.errors import InputError, NetworkError
from scvec.ingest.cells.source import CellSource

ray = pytest.importorskip("ray")

from scvec.cli.main import cli  # noqa: E402
from scvec.engines import ray_cluster, ray_engine  # noqa: E402
from scvec.engines.ray_engine import Pool  # noqa: E402

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster():
    """Address of two nodes with one core each; this process has joined them."""
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="scvec-nodes-")
    node = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    # By default Ray runs with low priority, and other tests would leave it almost no CPU time.
    auth = {
        "RAY_worker_niceness": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_TMPDIR": folder,
    }
    with ray_cluster._environment({**ray_cluster._QUIET, **auth}), ray_cluster._loopback():
        ray_cluster._read_auth()
        nodes = Cluster(initialize_head=True, head_node_args={**node, "temp_dir": f"{folder}/ray"})
        try:
            nodes.add_node(**node)
            ray.init(address=nodes.address, log_to_driver=False, configure_logging=False)
            yield nodes.address
        finally:
            ray.shutdown()
            nodes.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
    ray_cluster._read_auth()


@pytest.fixture(scope="module")
def store(tmp_path_factory, new_store, tiny_adata):
    """A store with a reference, made by this process without Ray."""
    folder = tmp_path_factory.mktemp("ray")
    path = new_store(folder / "store")
    reference = tiny_adata(90)
    reference.write_h5ad(folder / "ref.h5ad")
    tiny_adata(60, seed=1).write_h5ad(folder / "new.h5ad")
    scvec.ingest_cells(path, [folder / "ref.h5ad"], name="r", label_key="cell_type", encoder="residual")
    return path


@pytest.fixture
def few(monkeypatch):
    """Chunks of four cells, so that there are many tasks."""
    monkeypatch.setattr(CellSource, "chunk_size", 4)


class Parts:
    """The shards and workers of a query, and an action after the first annotated cells."""

    def __init__(self):
        self.shards, self.workers, self.strike, self.struck = [], [], None, False

    def __call__(self, stage, done, total, detail=""):
        if stage == "annotating cells" and self.strike is not None and not self.struck:
            self.struck = True
            self.strike()


@pytest.fixture
def parts(monkeypatch):
    found = Parts()
    shards, crew = ray_engine._shards, ray_engine._crew

    def seen_shards(*args, **options):
        found.shards = shards(*args, **options)
        return found.shards

    def seen_crew(*args, **options):
        made = crew(*args, **options)
        found.workers = made.workers
        return made

    monkeypatch.setattr(ray_engine, "_shards", seen_shards)
    monkeypatch.setattr(ray_engine, "_crew", seen_crew)
    return found


def asked(store):
    return [str(store.parent / "new.h5ad"), "--store", str(store), "--reference", "r"]


def process_of(actor):
    return ray.get(actor.__ray_call__.remote(lambda self: os.getpid()), timeout=500)


def same(found, expected):
    assert found.to_table().equals(expected.to_table())
    for name in ("vectors", "proba", "novelty"):
        assert getattr(found, name).tobytes() == getattr(expected, name).tobytes()
    assert np.array_equal(found.neighbors.indices, expected.neighbors.indices)
    assert found.neighbors.distances.tobytes() == expected.neighbors.distances.tobytes()


def test_two_nodes_give_the_results_of_one_process(cluster, store, few, parts):
    new, nodes = store.parent / "new.h5ad", set()

    def node(self):
        return ray.get_runtime_context().get_node_id()

    parts.strike = lambda: nodes.update(ray.get([s.actor.__ray_call__.remote(node) for s in parts.shards]))
    options = {"where": "donor = 'donor1'", "n_neighbors": 40, "reference": "r"}
    found = scvec.query(store, new, engine="ray", ray_address=cluster, progress=parts, **options)
    same(found, scvec.query(store, new, **options))
    assert [(s.first, s.last) for s in parts.shards] == [(0, 45), (45, 90)]
    assert len(nodes) == 2


def test_cells_that_workers_cannot_read_are_sent(cluster, store, few, tiny_adata):
    adata = tiny_adata(30, seed=2)
    same(scvec.query(store, adata, reference="r", engine="ray"), scvec.query(store, adata, reference="r"))


def test_killed_workers_lose_and_repeat_nothing(cluster, store, few, parts, monkeypatch):
    retried, killed = [], []
    blame = Pool._blame
    monkeypatch.setattr(Pool, "_blame", lambda self, task, e: (retried.append(task), blame(self, task, e)))

    def strike():
        killed.append(process_of(parts.workers[1]))
        os.kill(killed[0], signal.SIGKILL)

    parts.strike = strike
    new = store.parent / "new.h5ad"
    same(
        scvec.query(store, new, reference="r", engine="ray", progress=parts),
        scvec.query(store, new, reference="r"),
    )
    assert killed and retried


def test_all_workers_that_die_end_the_query(cluster, store, few, parts):
    parts.strike = lambda: [ray.kill(worker) for worker in parts.workers]
    with pytest.raises(NetworkError, match="every worker of the cluster died"):
        scvec.query(store, store.parent / "new.h5ad", reference="r", engine="ray", progress=parts)


def test_a_lost_shard_ends_the_query_with_its_name(cluster, store, few, parts, monkeypatch, capsys, tmp_path):
    told = ray_engine._Work._count

    def strike(self, task, n_workers):
        if not parts.struck:
            parts.struck = True
            os.kill(process_of(parts.shards[1].actor), signal.SIGKILL)
        told(self, task, n_workers)

    monkeypatch.setattr(ray_engine._Work, "_count", strike)
    out = tmp_path / "out.csv"
    command = [
        "query",
        str(store.parent / "new.h5ad"),
        "--store",
        str(store),
        "-o",
        str(out),
        "--reference=r",
    ]
    with pytest.raises(SystemExit) as ended:
        cli([*command, "--engine", "ray", "--ray-address", cluster])
    assert ended.value.code == 4
    said = capsys.readouterr().err
    assert "shard 2 of 2 of the reference 'r' is lost" in said
    assert "cells 46 to 90 of the reference" in said
    assert "Traceback" not in said
    assert not out.exists()


def test_a_reference_encoded_by_workers_is_the_same(cluster, store, tiny_adata):
    paths = [store.parent / "ref.h5ad", store.parent / "new.h5ad"]
    options = {"label_key": "cell_type", "encoder": "residual"}
    alone = scvec.ingest_cells(store, paths, name="alone", **options)
    by_ray = scvec.ingest_cells(store, paths, name="by-ray", engine="ray", **options)
    assert by_ray.n_cells == alone.n_cells == 150
    from scvec.stores.store.store import Store

    opened = Store(store)
    one, other = opened.reference("alone"), opened.reference("by-ray")
    assert one.vectors.tobytes() == other.vectors.tobytes()
    assert one.tensors.keys() == other.tensors.keys()
    assert all(one.tensors[name].tobytes() == other.tensors[name].tobytes() for name in one.tensors)


def test_errors_of_a_worker_are_raised_unchanged(cluster, store):
    with pytest.raises(InputError, match="guess"):
        scvec.query(store, store.parent / "new.h5ad", engine="ray", reference="r", method="guess")


# A busy machine sometimes needs more than the 60 seconds that Ray allows for its start.
@pytest.mark.flaky(reruns=2, reruns_delay=10)
def test_an_interrupt_stops_the_ray_that_was_started(store):
    command = [
        sys.executable,
        "-m",
        "scvec",
        "query",
        str(store.parent / "new.h5ad"),
        "--store",
        str(store),
        "--reference=r",
    ]
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"RAY_worker_niceness": "0"}
    with tempfile.TemporaryDirectory(prefix="own-") as folder:
        env["TMPDIR"] = folder
        run = subprocess.Popen(
            [*command, "--engine", "ray"], env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        # Interrupt when the processes exist, before they answer.
        while not list(Path(folder).glob("scvec-ray-*/session_latest/sockets/raylet*")):
            assert run.poll() is None, run.stderr.read()
            time.sleep(0.1)
        os.killpg(run.pid, signal.SIGINT)
        said = run.communicate(timeout=500)[1]
        assert run.returncode == 130, said
        assert "interrupted" in said
        assert "Traceback" not in said
        assert list(Path(folder).glob("scvec-ray-*")) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)
