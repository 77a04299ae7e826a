"""A Ray cluster: one that is there and is joined, or one of this machine's own, started and stopped."""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scvec.base.errors import NetworkError, ResourceError, ScvecError
from scvec.base.protocols import Progress, no_progress
from scvec.engines.engine import check_answers
from scvec.engines.ray_plan import Node

__all__ = ["joined", "nodes"]

#: Bytes of shared memory for what workers hand to each other: chunks and answers, never a whole data set.
OBJECT_STORE = 256 << 20
#: Reports nothing to anybody, and gives no advice on the console of whoever runs scvec.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
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
    """Send what Ray would print on stdout, whatever it is told, to the log: ``--json`` writes JSON there."""
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
                with _interrupt_later():
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
