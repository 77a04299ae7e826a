"""How many workers and shards a cluster gets, and what each may use. Knows nothing of Ray."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scvec.base.errors import InputError, ResourceError

__all__ = ["Node", "Plan", "plan"]

#: Cores that one worker, and one shard, asks for: with one of each to a core, all of them find room.
CPUS = 0.5
#: A node gets another shard for so many rows.
SHARD_ROWS = 100_000
#: Bytes of a Python process with scvec's libraries, before it holds any cell.
PROCESS_BYTES = 400 << 20
#: A worker that cannot have this much is not started, if there is another one.
LEAST_BYTES = 256 << 20
#: Share of a node's memory that is given out.
MEMORY_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Node:
    """What Ray knows of a node.

    Attributes
    ----------
    cpus, gpus
        Numbers of them.
    memory
        Bytes that Ray may give out.
    """

    cpus: float
    memory: float
    gpus: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Who works, and with what.

    Attributes
    ----------
    n_workers, n_shards
        Numbers of processes.
    worker_memory, shard_memory
        Bytes that each may use, its libraries included.
    reading
        Bytes of a worker that reading may use.
    cpus
        Cores that each asks for.
    worker_gpus
        Share of a GPU of each worker; 0 without.
    shard_threads
        Threads that search a shard.
    """

    n_workers: int
    n_shards: int
    worker_memory: int
    shard_memory: int
    reading: int
    cpus: float = CPUS
    worker_gpus: float = 0.0
    shard_threads: int = 1


def plan(
    nodes: Sequence[Node],
    *,
    n_rows: int,
    dim: int,
    memory: int | None = None,
    device: str = "auto",
    uses_gpu: bool = False,
    splits: bool = True,
) -> Plan:
    """Divide a cluster: a worker to each core, a shard to each node or more, memory among them.

    Parameters
    ----------
    n_rows, dim
        Of the vectors that shards hold; no rows, no shards.
    memory
        Bytes that all workers together may use, shards and their libraries aside; what nodes have by default.
    uses_gpu
        Whether the encoder computes with torch, and so on a GPU where there is one.
    splits
        Whether the index may be divided at any row.

    Raises
    ------
    InputError
        If no node has a core, or ``cuda`` is asked for and no node has a GPU.
    ResourceError
        If a shard is larger than any node.
    """
    useful = [node for node in nodes if node.cpus >= CPUS]
    if not useful:
        raise InputError("no node of the Ray cluster has a core to compute with", "--engine ray")
    if device == "cuda" and not any(node.gpus for node in useful):
        raise InputError("no node of the Ray cluster has a GPU", "--device cuda", "leave out --device")
    cores = [max(1, int(node.cpus)) for node in useful]
    n_shards = 0
    if n_rows:
        wanted = max(1, math.ceil(n_rows / len(useful) / SHARD_ROWS))
        n_shards = min(n_rows, sum(min(wanted, c) for c in cores)) if splits else 1
        # A process each costs memory too: fewer where that is short, down to one a node.
        while n_shards > len(useful) and not _fits(useful, n_shards, _shard_bytes(n_rows, n_shards, dim)):
            n_shards -= 1
    shard_memory = _shard_bytes(n_rows, n_shards, dim)
    room = max(node.memory for node in useful)
    if shard_memory > room or (n_shards and not _fits(useful, n_shards, shard_memory)):
        raise ResourceError(
            f"{n_shards} shards need {shard_memory / 1e9:.1f} GB each, the largest node has "
            f"{room / 1e9:.1f} GB",
            "--engine ray",
            "add nodes: each holds a part of the reference",
        )
    on_gpu = uses_gpu and device != "cpu" and any(node.gpus >= 1 for node in useful)
    hosts = [(n, c) for n, c in zip(useful, cores, strict=True) if not on_gpu or n.gpus >= 1]
    n_workers = sum(c for _, c in hosts)
    per_node = math.ceil(n_shards / len(useful))
    # The node that has the least for a worker says what each gets.
    free = min((n.memory * MEMORY_SHARE - per_node * shard_memory) / c for n, c in hosts)
    share = max(free, PROCESS_BYTES + LEAST_BYTES)
    if memory is not None:
        n_workers = max(1, min(n_workers, memory // LEAST_BYTES))
        share = min(share, PROCESS_BYTES + memory / n_workers)
    if free < PROCESS_BYTES + LEAST_BYTES:
        # Fewer of them, each with enough; one in any case.
        left = [max(0.0, n.memory * MEMORY_SHARE - per_node * shard_memory) for n, _ in hosts]
        n_workers = max(1, min(n_workers, int(sum(bytes_ // share for bytes_ in left))))
    share = min(share, max(n.memory for n, _ in hosts))
    gpus = 0.0
    if on_gpu:
        per_gpu = math.ceil(max(c / int(n.gpus) for n, c in hosts))
        gpus = math.floor(10_000 / max(1, per_gpu)) / 10_000
    reading = max(1 << 20, int(share - PROCESS_BYTES))
    threads = max(1, min(cores) // max(1, per_node))
    return Plan(
        n_workers,
        n_shards,
        int(share),
        shard_memory,
        reading,
        worker_gpus=gpus,
        shard_threads=threads,
    )


def _shard_bytes(n_rows: int, n_shards: int, dim: int) -> int:
    """Return the bytes of a process with a shard: its vectors, and a copy of them in the index."""
    return PROCESS_BYTES + math.ceil(n_rows / n_shards) * dim * 4 * 2 if n_shards else 0


def _fits(nodes: Sequence[Node], n_shards: int, shard_memory: int) -> bool:
    """Return whether the nodes have room for so many shards, and the largest one for a worker beside them."""
    rooms = sorted(node.memory for node in nodes)
    rooms[-1] -= PROCESS_BYTES + LEAST_BYTES
    return sum(int(max(0.0, room) // shard_memory) for room in rooms) >= n_shards
