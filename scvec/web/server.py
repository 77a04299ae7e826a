"""``scvec serve``: binds a port, says the address, and answers until it is stopped."""

from __future__ import annotations

import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.errors import InputError
from scvec.web.jobs import Limits

if TYPE_CHECKING:
    from scvec.web.guard import Guard
    from scvec.web.jobs import Jobs

__all__ = ["guarded_app", "serve"]

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
    """Answer a page and REST requests over a store until interrupted.

    Parameters
    ----------
    host
        Address to listen on. Whoever reaches it and has the token may search the store and run jobs.
    port
        0 for a free one.
    token
        Ask for a random token, which is in the address that is announced.
    max_upload
        Bytes of a file, as a number or like ``"2G"``.
    memory
        Bytes that a job may use; half of what is free where not given.
    timeout
        Seconds that a job may take.
    announce
        Is told the address when the port is bound.

    Raises
    ------
    InputError
        The extra ``serve`` is not installed, the store is none, or the port is taken.
    """
    from scvec.base.resources import parse_memory
    from scvec.stores.store.store import Store

    need_serve()
    folder = Store(store).path.absolute()
    if not token and host not in LOOPBACK:
        raise InputError(
            "without a token only this machine may ask",
            f"--host {host}",
            "leave --no-token out",
            code="token-needed",
        )
    limits = Limits(upload=parse_memory(max_upload), memory=parse_memory(memory), seconds=timeout)
    listening = _bind(host, port)
    number = int(listening.getsockname()[1])
    key = secrets.token_urlsafe(24) if token else None
    import uvicorn

    from scvec.web.jobs import Jobs

    with _ended_in_order(), tempfile.TemporaryDirectory(prefix="scvec-serve-") as name, listening:
        jobs = Jobs(folder, Path(name), limits)
        try:
            app = guarded_app(folder, jobs, Path(name), limits, host=host, port=number, token=key)
            config = uvicorn.Config(
                app, log_level="error", access_log=False, server_header=False, lifespan="off", ws="none"
            )
            shown = f"[{host}]" if ":" in host else host
            announce(f"http://{shown}:{number}/" + (f"?token={key}" if key else ""))
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            jobs.close()


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Let SIGTERM, by which services are stopped, unwind this process: uploads are not left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def guarded_app(
    store: Path, jobs: Jobs, folder: Path, limits: Limits, *, host: str, port: int, token: str | None
) -> Guard:
    """Return the application behind its guard."""
    from scvec.web.app import make_app
    from scvec.web.guard import Guard

    names = {host, *LOOPBACK} if host in LOOPBACK else {host}
    hosts = {f"[{n}]:{port}" if ":" in n else f"{n}:{port}" for n in names}
    app: Any = make_app(store, jobs, folder, limits)
    return Guard(
        app,
        hosts=frozenset(hosts),
        token=token,
        cookie=f"scvec-{port}",
        max_upload=limits.upload,
    )


def need_serve() -> None:
    """Raise InputError where a package of the extra ``serve`` is not installed."""
    modules = {
        "fastapi": "fastapi",
        "uvicorn": "uvicorn",
        "python-multipart": "python_multipart",
        "umap-learn": "umap",
        "jinja2": "jinja2",
    }
    missing = [name for name, module in modules.items() if not find_spec(module)]
    if missing:
        raise InputError(
            f"serving needs packages that are not installed: {', '.join(missing)}",
            "scvec serve",
            "pip install 'scvec[serve]'",
            code="extra-not-installed",
        )


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
            f"cannot listen there ({error.strerror or error})",
            f"{host}:{port}",
            "choose another --port, or 0 for any that is free",
            code="bad-address",
        ) from error
    return listening
