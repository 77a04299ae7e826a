"""Connections to Ray: join a running cluster, or start and stop Ray on this machine."""

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

#: Number of cores of one worker or one shard; so each core has room for one of each.
CPUS = 0.5
#: Number of rows per shard of a node.
SHARD_ROWS = 100_000
#: Bytes of a Python process with scvec's libraries, before it loads cells.
PROCESS_BYTES = 400 << 20
#: Smallest memory of a worker in bytes. Workers with less are not started, except the only one.
LEAST_BYTES = 256 << 20
#: Fraction of a node's memory that workers and shards may use.
MEMORY_FRACTION = 0.9


#: Seconds to wait for a connection to a cluster.
CONNECT_TIMEOUT = 10.0


def check_answers(address: str, where: str) -> None:
    """Check that a server answers at an address. Ray itself would retry for minutes.

    Parameters
    ----------
    address
        ``HOST:PORT``.
    where
        Name of the address in messages.

    Raises
    ------
    InputError
        The address is not valid.
    NetworkError
        No server answers.
    """
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:]+)\]|([^\s:/\[\]]+)):(\d{1,5})", address)
    if match is None or not 0 < int(match[3]) < 65536:
        raise InputError(
            "the address of the Ray cluster is not valid",
            where,
            "give HOST:PORT of the cluster's head, or auto on a node of the cluster",
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
    """Resources of a node of the cluster.

    Attributes
    ----------
    cpus, gpus
        Number of cores and of GPUs.
    memory
        Memory that Ray may assign, in bytes.
    """

    cpus: float
    memory: float
    gpus: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Numbers and resources of workers and shards.

    Attributes
    ----------
    n_workers, n_shards
        Number of worker processes and of shard processes.
    worker_memory, shard_memory
        Memory of one worker and of one shard in bytes, libraries included.
    reading
        Memory of a worker for reading cells, in bytes.
    cpus
        Number of cores of one worker or shard.
    worker_gpus
        Fraction of a GPU for each worker; 0 without a GPU.
    shard_threads
        Number of threads that search a shard.
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
    """Divide a cluster among workers and shards: one worker per core, at least one shard per node.

    Parameters
    ----------
    nodes
        Nodes of the cluster.
    n_rows, dim
        Number and length of the vectors in shards; with 0 rows there are no shards.
    memory
        Memory of all workers together in bytes, without libraries and shards; None uses the memory of the
        nodes.
    device
        ``auto``, ``cpu`` or ``cuda``.
    uses_gpu
        True if the encoder uses torch, which can use a GPU.
    splits
        True if the index may be divided at any row.

    Raises
    ------
    InputError
        No node has a core, or ``device`` is ``cuda`` and no node has a GPU.
    ResourceError
        No node has enough memory for a shard.
    """
    useful = [node for node in nodes if node.cpus >= CPUS]
    if not useful:
        raise InputError("no node of the Ray cluster has a free core", "--engine ray")
    if device == "cuda" and not any(node.gpus for node in useful):
        raise InputError(
            "no node of the Ray cluster has a GPU", "--device cuda", "leave out --device", code="no-gpu"
        )
    cores = [max(1, int(node.cpus)) for node in useful]
    n_shards = 0
    if n_rows:
        wanted = max(1, math.ceil(n_rows / len(useful) / SHARD_ROWS))
        n_shards = min(n_rows, sum(min(wanted, c) for c in cores)) if splits else 1
        # Each shard is a process with its own libraries. Use fewer if memory is short, down to one per node.
        while n_shards > len(useful) and not _fits(useful, n_shards, _shard_bytes(n_rows, n_shards, dim)):
            n_shards -= 1
    shard_memory = _shard_bytes(n_rows, n_shards, dim)
    room = max(node.memory for node in useful)
    if shard_memory > room or (n_shards and not _fits(useful, n_shards, shard_memory)):
        raise ResourceError(
            f"{n_shards} shards need {shard_memory / 1e9:.1f} GB each; the largest node has "
            f"{room / 1e9:.1f} GB",
            "--engine ray",
            "add nodes, so that each holds a smaller part of the reference",
        )
    on_gpu = uses_gpu and device != "cpu" and any(node.gpus >= 1 for node in useful)
    hosts = [(n, c) for n, c in zip(useful, cores, strict=True) if not on_gpu or n.gpus >= 1]
    n_workers = sum(c for _, c in hosts)
    per_node = math.ceil(n_shards / len(useful))
    # All workers get the same memory: that of the node with the least memory per worker.
    free = min((n.memory * MEMORY_FRACTION - per_node * shard_memory) / c for n, c in hosts)
    share = max(free, PROCESS_BYTES + LEAST_BYTES)
    if memory is not None:
        n_workers = max(1, min(n_workers, memory // LEAST_BYTES))
        share = min(share, PROCESS_BYTES + memory / n_workers)
    if free < PROCESS_BYTES + LEAST_BYTES:
        # Memory is short: start fewer workers, but at least one.
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
    """Return the fraction of a GPU for each worker, with one worker per core."""
    per_gpu = math.ceil(max(cores / int(node.gpus) for node, cores in hosts))
    return math.floor(10_000 / max(1, per_gpu)) / 10_000


def _shard_bytes(n_rows: int, n_shards: int, dim: int) -> int:
    """Return the memory of a shard process in bytes: libraries, vectors, and their copy in the index."""
    return PROCESS_BYTES + math.ceil(n_rows / n_shards) * dim * 4 * 2 if n_shards else 0


def _fits(nodes: Sequence[Node], n_shards: int, shard_memory: int) -> bool:
    """Return whether the nodes have memory for all shards, and the largest node also for a worker."""
    rooms = sorted(node.memory for node in nodes)
    rooms[-1] -= PROCESS_BYTES + LEAST_BYTES
    return sum(int(max(0.0, room) // shard_memory) for room in rooms) >= n_shards


#: Bytes of Ray's shared memory. It holds chunks and answers, never a complete data set.
OBJECT_STORE = 256 << 20
#: Environment variables that turn off Ray's usage reports and its advice on the console.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
#: Largest length of a folder for Ray's sockets; the system limits the complete names to 107 characters.
LONGEST_FOLDER = 40


@contextlib.contextmanager
def joined(address: str | None, *, progress: Progress = no_progress) -> Iterator[Any]:
    """Yield the module ``ray``, connected to a cluster.

    An existing cluster keeps running afterwards, and so does a Ray that this process started before.
    Otherwise this starts Ray: it listens only on the loopback interface, requires a token, and sends no usage
    reports. At the end of the block, also after an error, Ray is stopped and its folder deleted.

    Parameters
    ----------
    address
        ``HOST:PORT`` or ``auto``; None starts Ray on this machine.
    progress
        Function that receives the progress.

    Raises
    ------
    NetworkError
        The cluster cannot be reached, or Ray cannot be started.
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
    """Return the living nodes of the cluster."""
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
            "run scvec on a node of the cluster, with the cluster's Python, Ray and token; docs/cluster.md",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_found() -> None:
    """Check the cluster that Ray finds on this machine: it may belong to another user and not answer."""
    try:
        from ray._private.services import canonicalize_bootstrap_address as found
    except ImportError:
        return
    address = found("auto")
    if address is not None:
        check_answers(address, f"--ray-address auto, which is {address}")


@contextlib.contextmanager
def _messages_to_log() -> Iterator[None]:
    """Redirect messages of Ray from stdout to the log, because ``--json`` writes JSON to stdout.

    Ray has no option for this.
    """
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
    # Ray's processes may outlive this block but end with Python. Then the folder is deleted at exit.
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
            f"Ray cannot be started: {_first_line(error)}", str(folder), "leave out --engine ray"
        ) from error


@contextlib.contextmanager
def _same_sigterm() -> Iterator[None]:
    """Restore the handler of SIGTERM, which ``ray.init`` replaces."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _interrupt_later() -> Iterator[None]:
    """Delay the first Ctrl-C to the end of the block: Ray can stop its processes only after startup."""
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
    """Protect the Ray that is started here with a random token.

    By default Ray writes one token for all clusters into the user's home folder.
    """
    if os.environ.get("RAY_AUTH_MODE"):  # the user has chosen a mode
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
    """Make Ray read the environment variables again; it read them at import."""
    try:
        from ray import _raylet as core

        loader, config = core.AuthenticationTokenLoader, core.Config  # type: ignore[attr-defined]
    except (ImportError, AttributeError):  # older versions of Ray have no tokens
        return
    config.initialize("")
    loader.instance().reset_cache()


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Make Ray listen only on 127.0.0.1, as it does by default on macOS and Windows.

    On Linux, Ray replaces 127.0.0.1 with another address of the machine and listens on all interfaces. Ray's
    processes read the environment variable. The imported module has already read it, so its constant is set
    too.
    """
    from ray._private import ray_constants as constants

    logging.getLogger(__name__).debug("starting Ray on 127.0.0.1")
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
    """Set environment variables, which Ray's processes inherit, and restore them afterwards."""
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
