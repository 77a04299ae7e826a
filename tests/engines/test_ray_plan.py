"""Division of a cluster: everything fits, and no resource is assigned twice."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scvec.base.errors import InputError, ResourceError
from scvec.engines.ray_cluster import LEAST_BYTES, PROCESS_BYTES, Node, plan

GB = 1 << 30


@example([Node(7, 4 * GB)], 655_355, None)
@given(
    st.lists(st.builds(Node, st.integers(1, 64), st.integers(4 * GB, 512 * GB)), min_size=1, max_size=6),
    st.integers(1, 20_000_000),
    st.none() | st.integers(1, 64 * GB),
)
def test_the_plan_fits_the_nodes(nodes, n_rows, memory):
    try:
        room = plan(nodes, n_rows=n_rows, dim=128, memory=memory)
    except ResourceError:
        return
    assert 1 <= room.n_shards <= n_rows
    assert room.n_workers >= 1
    assert (room.n_workers + room.n_shards) * room.cpus <= sum(node.cpus for node in nodes)
    assert room.n_shards * room.shard_memory + room.worker_memory <= sum(n.memory for n in nodes)
    assert sum(n.memory // room.shard_memory for n in nodes) >= room.n_shards
    assert room.worker_memory <= max(node.memory for node in nodes)
    if memory is not None and memory >= LEAST_BYTES:
        assert room.n_workers * room.reading <= memory + room.n_workers


def test_small_references_have_one_shard_a_node_and_large_ones_more():
    nodes = [Node(8, 64 * GB), Node(8, 64 * GB)]
    assert plan(nodes, n_rows=1, dim=8).n_shards == 1
    assert plan(nodes, n_rows=2_000, dim=8).n_shards == 2
    assert plan(nodes, n_rows=500_000, dim=8).n_shards == 6
    assert plan(nodes, n_rows=50_000_000, dim=8).n_shards == 16
    assert plan(nodes, n_rows=50_000_000, dim=8, splits=False).n_shards == 1
    assert plan(nodes, n_rows=0, dim=8).n_shards == 0
    assert plan(nodes, n_rows=2_000, dim=8).shard_threads == 8
    assert plan(nodes, n_rows=50_000_000, dim=8).shard_threads == 1


def test_memory_is_divided_and_too_little_means_fewer_workers():
    nodes = [Node(8, 64 * GB)]
    assert plan(nodes, n_rows=10, dim=8, memory=8 * GB).reading == GB
    few = plan(nodes, n_rows=10, dim=8, memory=2 * LEAST_BYTES)
    assert (few.n_workers, few.reading) == (2, LEAST_BYTES)
    assert plan(nodes, n_rows=10, dim=8, memory=1 << 20).n_workers == 1
    assert plan([Node(64, 4 * GB)], n_rows=10, dim=8).n_workers < 64


def test_gpus_are_shared_by_the_workers_that_use_them():
    nodes = [Node(8, 64 * GB, 2), Node(4, 64 * GB)]
    assert plan(nodes, n_rows=10, dim=8).worker_gpus == 0
    room = plan(nodes, n_rows=10, dim=8, uses_gpu=True)
    assert (room.n_workers, room.worker_gpus) == (8, 0.25)
    assert plan(nodes, n_rows=10, dim=8, uses_gpu=True, device="cpu").worker_gpus == 0
    assert plan([Node(3, 64 * GB, 1)], n_rows=10, dim=8, uses_gpu=True).worker_gpus * 3 <= 1


def test_clusters_that_are_too_small_are_refused():
    with pytest.raises(InputError, match="no node"):
        plan([Node(0, 64 * GB)], n_rows=10, dim=8)
    with pytest.raises(InputError, match="GPU", check=lambda e: e.code == "no-gpu"):
        plan([Node(8, 64 * GB)], n_rows=10, dim=8, device="cuda")
    with pytest.raises(ResourceError, match="add nodes"):
        plan([Node(2, 2 * GB)], n_rows=100_000_000, dim=128)
    assert math.isclose(plan([Node(1, 2 * GB)], n_rows=10, dim=8).cpus * 2, 1)
    assert PROCESS_BYTES > 0
