"""``scvec serve``: bind a port, print the address, and serve until stopped."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.errors import InputError, need_extra
from scvec.web.process import Limits

if TYPE_CHECKING:
    import uvicorn

    from scvec.web.guard import Guard
    from scvec.web.jobs import Jobs, Searches

__all__ = ["guarded_app", "http_server", "serve"]

PREFIX = "scvec-serve-"
#: Largest head of a request, in bytes.
HEAD = 16 * 2**10

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    store: Path | str,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    token: bool = True,
    max_upload: int | str = "2G",
    memory: int | str | None = None,
    timeout: float = 1800.0,
    announce: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve a page and a REST interface for a store until interrupted.

    Parameters
    ----------
    store
        Folder of the store.
    host
        Address to listen on. Everyone who reaches it and has the token may search the store and run jobs.
    port
        Port to listen on; 0 for any free port.
    token
        Require a random token. The announced address contains it.
    max_upload
        Largest size of an uploaded file, in bytes or as text such as ``"2G"``.
    memory
        Memory of a job, and of the process of searches, in bytes or as text; half of the free memory if None.
    timeout
        Time limit of a job or a search, in seconds.
    announce
        Called with the address when the port is bound.

    Raises
    ------
    InputError
        If the extra ``serve`` is not installed, the store does not exist, or the port is not free.
    """
    from scvec.base.resources import parse_memory
    from scvec.stores.store.store import Store

    need_serve()
    folder = Store(store).path.absolute()
    if not token and host not in LOOPBACK:
        raise InputError(
            "a server without a token must listen on this machine only",
            f"--host {host}",
            "leave out --no-token",
            code="token-needed",
        )
    limits = Limits(upload=parse_memory(max_upload), memory=parse_memory(memory), seconds=timeout)
    listening = _bind(host, port)
    number = int(listening.getsockname()[1])
    key = secrets.token_urlsafe(24) if token else None
    from scvec.web.jobs import Jobs, Searches

    with _clean_exit_on_sigterm(), _work_folder() as work, listening:
        jobs = Jobs(folder, work, limits)
        searches = Searches(folder, work, limits)
        try:
            app = guarded_app(folder, jobs, searches, limits, host=host, port=number, token=key)
            shown = f"[{host}]" if ":" in host else host
            announce(f"http://{shown}:{number}/" + (f"?token={key}" if key else ""))
            http_server(app, limits).run(sockets=[listening])
        finally:
            searches.close()
            jobs.close()


def http_server(app: Any, limits: Limits) -> uvicorn.Server:
    """Return an HTTP server that applies ``limits`` to its connections."""
    import uvicorn

    from scvec.web.guard import Connection

    config = uvicorn.Config(
        app,
        http=type("Connection", (Connection,), {"limits": limits}),
        h11_max_incomplete_event_size=HEAD,
        log_level="error",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
    )
    return uvicorn.Server(config)


@contextmanager
def _work_folder() -> Iterator[Path]:
    """Yield a new folder for uploads and results. First delete the folders of servers that were killed.

    A running server holds a lock on its folder. Without ``flock`` old folders are not deleted.
    """
    try:
        import fcntl
    except ImportError:
        with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
            yield Path(name)
        return

    def locked(path: Path | str, wait: int) -> int | None:
        """Lock a folder and return its descriptor; None if another user owns it, it is in use, or missing."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            if os.fstat(fd).st_uid == os.getuid():
                fcntl.flock(fd, fcntl.LOCK_EX | wait)
                if os.path.exists(path):
                    return fd
        except OSError:
            pass
        os.close(fd)
        return None

    for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if (fd := locked(old, fcntl.LOCK_NB)) is not None:
            shutil.rmtree(old, ignore_errors=True)
            os.close(fd)
    # Another starting server may delete the new folder before it is locked.
    while (fd := locked(name := tempfile.mkdtemp(prefix=PREFIX), 0)) is None:
        pass
    try:
        yield Path(name)
    finally:
        shutil.rmtree(name, ignore_errors=True)
        os.close(fd)


@contextmanager
def _clean_exit_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM, which stops services, into SystemExit, so that uploads are deleted."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set signal handlers
        return

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def guarded_app(
    store: Path,
    jobs: Jobs,
    searches: Searches,
    limits: Limits,
    *,
    host: str,
    port: int,
    token: str | None,
) -> Guard:
    """Return the application wrapped in its guard."""
    from scvec.web.app import make_app
    from scvec.web.guard import Guard

    names = {host, *LOOPBACK} if host in LOOPBACK else {host}
    hosts = {f"[{n}]:{port}" if ":" in n else f"{n}:{port}" for n in names}
    app: Any = make_app(store, jobs, searches, limits)
    return Guard(
        app,
        hosts=frozenset(hosts),
        token=token,
        cookie=f"scvec-{port}",
        limits=limits,
    )


def need_serve() -> None:
    """Raise InputError if a package of the extra ``serve`` is not installed."""
    need_extra("serve", ["fastapi", "uvicorn", "python_multipart"], "serving", "scvec serve")


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise InputError(
            f"cannot listen on this address ({error.strerror or error})",
            f"{host}:{port}",
            "choose another --port, or 0 for any free port",
            code="bad-address",
        ) from error
    return listening
