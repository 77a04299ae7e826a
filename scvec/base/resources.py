"""Resources of this machine that a command may use: memory, cores, device, cache folder."""

from __future__ import annotations

import glob
import os
import queue
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Self, TypeVar

from scvec.base.errors import InputError, check_choice
from scvec.base.types import Progress

__all__ = [
    "Closes",
    "JointProgress",
    "available_memory",
    "cache_folder",
    "check_device",
    "expanded",
    "n_cores",
    "parse_memory",
    "read_ahead",
    "resolved_device",
    "side_by_side",
]

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_memory(text: str | int | None) -> int:
    """Convert ``"4G"``, ``"512M"``, ``"1.5GiB"`` or a number of bytes to bytes.

    Parameters
    ----------
    text
        Amount of memory. None means half of the free memory, but at least 256 MiB.

    Raises
    ------
    InputError
        If the text is not a positive amount.
    """
    if text is None:
        return max(available_memory() // 2, 2**28)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", str(text), re.I)
    amount = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if amount <= 0:
        raise InputError(
            f"cannot read {text!r} as an amount of memory",
            "--memory",
            "write it like 4G or 512M",
            code="option-out-of-range",
        )
    return amount


def available_memory() -> int:
    """Return the free memory in bytes, or 4 GiB if the system does not report it."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 4 * 2**30


def check_device(device: str) -> str:
    """Check a device option and return it unchanged.

    Raises
    ------
    InputError
        If ``device`` is not ``auto``, ``cpu`` or ``cuda``, or is ``cuda`` and torch finds no GPU.
    """
    check_choice("--device", device, ("auto", "cpu", "cuda"))
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise InputError(
                "torch finds no CUDA device on this machine",
                f"torch {torch.__version__}",
                "leave out --device, or install a CUDA build of torch on a machine with a GPU",
                code="no-gpu",
            )
    return device


def resolved_device(device: str) -> str:
    """Return ``cpu`` or ``cuda`` for a device option.

    Raises
    ------
    InputError
        As :func:`check_device`.
    """
    if check_device(device) == "auto":
        if "torch" not in sys.modules and not _may_have_gpu():
            return "cpu"  # loading torch takes longer than annotating a thousand cells
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _may_have_gpu() -> bool:
    """Return False if there is certainly no GPU. On Linux, the driver of every GPU has a device file."""
    if sys.platform != "linux":
        return True
    # NVIDIA; AMD, which torch calls CUDA too; Windows Subsystem for Linux
    return any(glob.glob(pattern) for pattern in ("/dev/nvidia*", "/dev/kfd", "/dev/dxg"))


_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path with ``~``, ``~user`` and ``$NAME`` replaced, as a shell does.

    An existing path stays unchanged, because names may contain these characters.

    Raises
    ------
    InputError
        If the user or the variable does not exist; else a folder with that name would be made.
    """
    given = os.fspath(path)
    if os.path.lexists(given):
        return Path(given)
    found = os.path.expanduser(os.path.expandvars(given))
    if found.startswith("~"):
        what = f"there is no user {found.split(os.sep, 1)[0][1:]!r}"
        raise InputError(what, given, f"write ./{given} for a name that begins with ~", code="file-not-found")
    if missing := _VARIABLE.search(found):
        what = f"the variable {missing[0]} is not set"
        raise InputError(what, given, "set it, or write the path out", code="file-not-found")
    return Path(found)


def cache_folder() -> Path:
    """Return the folder for reproducible files: ``$SCVEC_CACHE``, else the user's cache folder."""
    if found := os.environ.get("SCVEC_CACHE"):
        return Path(found).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("scvec", appauthor=False)


T = TypeVar("T")


#: Number of finished chunks that may wait: the next one, and one more because reading times vary. With the
#: chunk being read and the chunk in use, ``READY + 2`` chunks are in memory.
READY = 2


def read_ahead(items: Callable[[], Iterator[T]]) -> Iterator[T]:
    """Yield the items of ``items()``; a thread makes them up to :data:`READY` items ahead.

    The items and their order do not change. An error of ``items`` is raised in the place of the item that
    failed. Closing the iterator ends the thread and waits for it, so the caller can then close the file that
    ``items`` reads.

    Parameters
    ----------
    items
        Function that returns the iterator; the thread calls it and consumes the iterator.
    """
    found: queue.Queue[tuple[str, T | None, BaseException | None]] = queue.Queue(maxsize=READY)
    stopped = threading.Event()

    def put(kind: str, item: T | None = None, error: BaseException | None = None) -> bool:
        while not stopped.is_set():
            try:
                found.put((kind, item, error), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items():
                if not put("item", item):
                    return
        except BaseException as error:  # the caller raises it
            put("error", error=error)
        else:
            put("end")

    thread = threading.Thread(target=work, name="scvec-read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, item, error = found.get()
            if error is not None:
                raise error
            if kind == "end":
                return
            yield item  # type: ignore[misc]  # None only if the items are None
            item = None  # the caller may have freed the chunk: do not keep it in memory
    finally:
        stopped.set()
        thread.join()


class _StoppedError(Exception):
    """Ends this job because another job failed or the user interrupted."""


def n_cores() -> int:
    """Return the number of cores that this process may use; ``OMP_NUM_THREADS`` can lower it."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(available, int(limit)) if limit.isdigit() and int(limit) > 0 else available


def side_by_side(
    jobs: Iterable[Callable[[], T]], n_workers: int, stop: Callable[[], None] = lambda: None
) -> Generator[T, None, None]:
    """Run jobs in parallel threads and yield their results in the order of the jobs.

    Numerical libraries release the interpreter lock, but use several cores badly on small arrays. So the jobs
    run at once, and each job may use its fraction of the cores for the threads of those libraries. Close the
    iterator if you leave early (`contextlib.closing`): closing waits for the running jobs.

    Parameters
    ----------
    jobs
        Functions that must not change shared data. At most one job more than ``n_workers`` is started early.
    n_workers
        Number of jobs that run at once. With 1, each job runs in the caller's thread when its result is
        asked.
    stop
        Function that is called before waiting for running jobs, so that it can end them early.

    Raises
    ------
    Exception
        The error of the first job that failed.
    """
    if n_workers <= 1:
        for job in jobs:
            yield job()
        return
    from threadpoolctl import threadpool_limits

    torch = sys.modules.get("torch")
    before = None if torch is None else torch.get_num_threads()
    each = max(1, n_cores() // n_workers)
    waiting: deque[Future[T]] = deque()
    with (
        threadpool_limits(each, user_api="blas"),
        ThreadPoolExecutor(n_workers, "scvec", initializer=_limit, initargs=(each,)) as pool,
    ):
        try:
            for job in jobs:
                waiting.append(pool.submit(job))
                del job  # the worker holds the job and its data; this loop must not keep them alive
                if len(waiting) > n_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            stop()
            for future in waiting:
                future.cancel()
            if torch is not None:
                torch.set_num_threads(before)


def _limit(n_threads: int) -> None:
    """Limit the threads that loaded numerical libraries use for calls from this thread."""
    from threadpoolctl import threadpool_limits

    # OpenMP limits hold for the calling thread. NumPy's BLAS has one limit per process: side_by_side sets it.
    threadpool_limits(n_threads, user_api="openmp")
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(n_threads)


class JointProgress:
    """Reports the progress of several jobs as the progress of one.

    Parameters
    ----------
    progress
        Function that receives the joint progress of each stage. The threads of the jobs call it.
    n_jobs
        Number of jobs. A job that has not begun a stage is assumed to be as long as the reporting job.
    """

    def __init__(self, progress: Progress, n_jobs: int) -> None:
        self._progress, self._n_jobs = progress, n_jobs
        self._lock, self._stopped = Lock(), False
        self._far: dict[str, dict[int, tuple[int, int | None]]] = {}

    def of(self, number: int) -> Progress:
        """Return the progress function of job ``number``."""

        def report(stage: str, done: int, total: int | None, detail: str = "") -> None:
            if self._stopped:
                raise _StoppedError
            with self._lock:
                far = self._far.setdefault(stage, {})
                far[number] = (done, total)
                if total is not None:
                    total *= self._n_jobs - len(far)
                    total += sum(of or 0 for _, of in far.values())
                self._progress(stage, sum(n for n, _ in far.values()), total, detail)

        return report

    def stop(self) -> None:
        """End jobs at their next report."""
        self._stopped = True


class Closes:
    """Base class of objects that a ``with`` block closes."""

    def close(self) -> None:
        """Close the object."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
