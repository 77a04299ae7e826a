"""A Ray cluster: one that is there and is joined, or one of this machine's own, started and stopped."""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import math
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scvec.base.errors import InputError, NetworkError, ResourceError, ScvecError
from scvec.base.types import Progress, no_progress

__all__ = ["Node", "Plan", "check_answers", "joined", "nodes", "plan"]

#: Cores that one worker, and one shard, asks for: with one of each to a core, all of them find room.
CPUS = 0.5
#: A node gets another shard for so many rows.
SHARD_ROWS = 100_000
#: Bytes of a Python process with scvec's libraries, before it holds any cell.
PROCESS_BYTES = 400 << 20
#: A worker that cannot have this much is not started, if there is another one.
LEAST_BYTES = 256 << 20
#: Fraction of the memory of a node that is given out.
MEMORY_FRACTION = 0.9


#: Seconds that a cluster has to take a connection.
CONNECT_TIMEOUT = 10.0


def check_answers(address: str, where: str) -> None:
    """Refuse an address that nothing listens at, which Ray itself would try for minutes.

    Parameters
    ----------
    address
        ``HOST:PORT``.
    where
        What to call it in messages.

    Raises
    ------
    InputError
        If it is not an address.
    NetworkError
        If nothing answers.
    """
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:]+)\]|([^\s:/\[\]]+)):(\d{1,5})", address)
    if match is None or not 0 < int(match[3]) < 65536:
        raise InputError(
            "this is not an address of a Ray cluster",
            where,
            "give HOST:PORT of its head, or auto on a node of it",
            code="bad-address",
        )
    try:
        socket.create_connection((match[1] or match[2], int(match[3])), CONNECT_TIMEOUT).close()
    except OSError as error:
        raise NetworkError(
            f"no Ray cluster answers ({error.strerror or error})",
            where,
            "start one: ray start --head; docs/cluster.md",
        ) from error


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
        Fraction of a GPU of each worker; 0 without.
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
        raise InputError(
            "no node of the Ray cluster has a GPU", "--device cuda", "leave out --device", code="no-gpu"
        )
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
    free = min((n.memory * MEMORY_FRACTION - per_node * shard_memory) / c for n, c in hosts)
    share = max(free, PROCESS_BYTES + LEAST_BYTES)
    if memory is not None:
        n_workers = max(1, min(n_workers, memory // LEAST_BYTES))
        share = min(share, PROCESS_BYTES + memory / n_workers)
    if free < PROCESS_BYTES + LEAST_BYTES:
        # Fewer of them, each with enough; one in any case.
        left = [max(0.0, n.memory * MEMORY_FRACTION - per_node * shard_memory) for n, _ in hosts]
        n_workers = max(1, min(n_workers, int(sum(bytes_ // share for bytes_ in left))))
    share = min(share, max(n.memory for n, _ in hosts))
    return Plan(
        n_workers,
        n_shards,
        int(share),
        shard_memory,
        reading=max(1 << 20, int(share - PROCESS_BYTES)),
        worker_gpus=_gpu_fraction(hosts) if on_gpu else 0.0,
        shard_threads=max(1, min(cores) // max(1, per_node)),
    )


def _gpu_fraction(hosts: Sequence[tuple[Node, int]]) -> float:
    """Return the fraction of a GPU of each worker, with a worker to each core of the nodes."""
    per_gpu = math.ceil(max(cores / int(node.gpus) for node, cores in hosts))
    return math.floor(10_000 / max(1, per_gpu)) / 10_000


def _shard_bytes(n_rows: int, n_shards: int, dim: int) -> int:
    """Return the bytes of a process with a shard: its vectors, and a copy of them in the index."""
    return PROCESS_BYTES + math.ceil(n_rows / n_shards) * dim * 4 * 2 if n_shards else 0


def _fits(nodes: Sequence[Node], n_shards: int, shard_memory: int) -> bool:
    """Return whether the nodes have room for so many shards, and the largest one for a worker beside them."""
    rooms = sorted(node.memory for node in nodes)
    rooms[-1] -= PROCESS_BYTES + LEAST_BYTES
    return sum(int(max(0.0, room) // shard_memory) for room in rooms) >= n_shards


#: Bytes of shared memory for what workers hand to each other: chunks and answers, never a whole data set.
OBJECT_STORE = 256 << 20
#: Reports nothing to anybody, and gives no advice on the console of whoever runs scvec.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
#: Longest folder in which Ray's sockets still have names that the system takes (107 characters in all).
LONGEST_FOLDER = 40


@contextlib.contextmanager
def joined(address: str | None, *, progress: Progress = no_progress) -> Iterator[Any]:
    """Yield the module ``ray``, connected to a cluster.

    A cluster that was joined is left as it is; so is a Ray that this process had started before. One that is
    started here listens on the loopback interface alone, asks for a token, reports nothing to anybody, and is
    gone at the end, its folder too, whatever happens.

    Parameters
    ----------
    address
        ``HOST:PORT`` or ``auto``; None starts a Ray of this machine's own.

    Raises
    ------
    NetworkError
        If it cannot be reached or started.
    """
    with _environment(_QUIET):
        import ray

        if ray.is_initialized():
            yield ray
            return
        progress("connecting to Ray" if address else "starting Ray", 0, None)
        with _messages_to_log(), _own(ray) if address is None else _joined(ray, address):
            yield ray


def nodes(ray: Any) -> list[Node]:
    """Return the nodes that are alive."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(r.get("CPU", 0.0), r.get("memory", 0.0), r.get("GPU", 0.0)) for r in found]


@contextlib.contextmanager
def _joined(ray: Any, address: str) -> Iterator[None]:
    try:
        if address == "auto":
            _check_found()
        with _same_sigterm():
            ray.init(address=address, log_to_driver=False, configure_logging=False)
    except ScvecError:
        raise
    except Exception as error:  # ConnectionError, RuntimeError (versions differ), AuthenticationError, ...
        raise NetworkError(
            f"the Ray cluster cannot be joined: {_first_line(error)}",
            f"--ray-address {address}",
            "run on a node of it, with its versions of Python and Ray, and its token; docs/cluster.md",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_found() -> None:
    """Refuse what Ray finds on this machine, a Ray that somebody else runs perhaps, and cannot reach."""
    try:
        from ray._private.services import canonicalize_bootstrap_address as found
    except ImportError:
        return
    address = found("auto")
    if address is not None:
        check_answers(address, f"--ray-address auto, which is {address}")


@contextlib.contextmanager
def _messages_to_log() -> Iterator[None]:
    """Send what Ray would print on stdout, whatever its options, to the log: ``--json`` writes JSON there."""
    from ray._private import worker

    name = "print_to_stdstream"
    before = getattr(worker, name, None)

    def log(data: Mapping[str, Any], *args: Any, **options: Any) -> None:
        for line in data.get("lines", ()):
            logging.getLogger(__name__).info("%s: %s", data.get("pid", "ray"), line)

    if before is not None:
        setattr(worker, name, log)
    try:
        yield
    finally:
        if before is not None:
            setattr(worker, name, before)


@contextlib.contextmanager
def _own(ray: Any) -> Iterator[None]:
    folder = Path(tempfile.mkdtemp(prefix="scvec-ray-"))
    if len(str(folder)) > LONGEST_FOLDER and os.path.isdir("/tmp"):
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="scvec-ray-", dir="/tmp"))
    # Should Ray's processes outlive this block, they end when Python does; only then can the folder go.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        with _token(), _loopback():
            try:
                with _interrupt_later(), _same_sigterm():
                    _start(ray, folder)
                yield
            finally:
                ray.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(ray: Any, folder: Path) -> None:
    try:
        ray.init(
            address="local",
            num_cpus=_cores(),
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            object_store_memory=OBJECT_STORE,
            _temp_dir=str(folder),
        )
    except Exception as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        kind = ResourceError if full else NetworkError
        raise kind(
            f"Ray does not start: {_first_line(error)}", str(folder), "leave out --engine ray"
        ) from error


@contextlib.contextmanager
def _same_sigterm() -> Iterator[None]:
    """Give SIGTERM back the handler that ``ray.init`` takes away, where a program has set one."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _interrupt_later() -> Iterator[None]:
    """Keep the first Ctrl-C until the block is done: Ray knows its processes only when it has started all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    pending: list[int] = []

    def note(number: int, frame: object) -> None:
        if pending:
            raise KeyboardInterrupt
        pending.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pending:
        raise KeyboardInterrupt


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _token() -> Iterator[None]:
    """Let only those who know a random token talk to a Ray that is started here.

    Ray's own default writes one into the user's home, for all of them.
    """
    if os.environ.get("RAY_AUTH_MODE"):  # the user's own choice
        yield
        return
    with _environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}):
        _read_auth()
        try:
            yield
        finally:
            for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
                os.environ.pop(name, None)
            _read_auth()


def _read_auth() -> None:
    """Let this process see the variables: Ray looked at them when it was imported."""
    try:
        from ray import _raylet as core

        loader, config = core.AuthenticationTokenLoader, core.Config  # type: ignore[attr-defined]
    except (ImportError, AttributeError):  # an older Ray, which has no tokens
        return
    config.initialize("")
    loader.instance().reset_cache()


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Let Ray take this machine's address for 127.0.0.1, as it does by itself on macOS and Windows.

    On Linux it listens on all interfaces otherwise, and puts any other address in the place of 127.0.0.1.
    Its processes read the variable; the module has read it already.
    """
    from ray._private import ray_constants as constants

    logging.getLogger(__name__).debug("a Ray of this machine's own, on 127.0.0.1")
    before = getattr(constants, "ENABLE_RAY_CLUSTER", None)
    with _environment({"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}):
        if before is not None:
            constants.ENABLE_RAY_CLUSTER = False
        try:
            yield
        finally:
            if before is not None:
                constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables that Ray's processes inherit, and put back what was there."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
