"""Independent jobs in parallel threads, each on its fraction of the cores."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

from scvec.base.types import Progress

__all__ = ["JointProgress", "n_cores", "read_ahead", "side_by_side"]

T = TypeVar("T")


#: Chunks that may lie ready: one that is worked on next, and one against an uneven pace. With the one being
#: made and the one in use, ``READY + 2`` are in memory.
READY = 2


def read_ahead(items: Callable[[], Iterator[T]]) -> Iterator[T]:
    """Yield the items of ``items()``; a thread makes them up to :data:`READY` items ahead.

    Order and items are the same as without. An error comes at the place where it arose. When the caller
    stops, by an error of its own or by leaving the loop, the thread has ended by the time that the iterator
    is closed, so that a file may then be closed safely.

    Parameters
    ----------
    items
        Makes the iterator; the thread calls and consumes it.
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
        except BaseException as error:  # whatever it is, it belongs to the caller
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
            yield item  # type: ignore[misc]  # None only where the items are
            item = None  # the caller may be done with it: do not hold a chunk more than needed
    finally:
        stopped.set()
        thread.join()


class _StoppedError(Exception):
    """Another job failed, or the user interrupted: this job ends."""


def n_cores() -> int:
    """Return the cores that this process may use; fewer where ``OMP_NUM_THREADS`` says so."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(there, int(asked)) if asked.isdigit() and int(asked) > 0 else there


def side_by_side(
    jobs: Iterable[Callable[[], T]], n_workers: int, stop: Callable[[], None] = lambda: None
) -> Generator[T, None, None]:
    """Yield the results of jobs in their order; some jobs run at once in threads.

    Most time passes in libraries that let other threads run, but use more than one core badly where their
    arrays are small. Each job gets as many threads of those libraries as there are cores for it. Close the
    iterator when leaving early (`contextlib.closing`): it waits for the jobs that run.

    Parameters
    ----------
    jobs
        They must not change shared data. The iterable is advanced when a worker is free, and one job ahead.
    n_workers
        Jobs at once. With one, a job is done when it is asked for, in the thread of who asks.
    stop
        Called before running jobs are waited for, so that they may end early.

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
                del job  # whoever does it holds it, and what it holds
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
    """Let the libraries that are loaded use so many threads for what this thread asks of them."""
    from threadpoolctl import threadpool_limits

    # OpenMP counts for each thread that asks; the BLAS of NumPy for the whole process, elsewhere.
    threadpool_limits(n_threads, user_api="openmp")
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(n_threads)


class JointProgress:
    """Progress of several jobs, reported as that of one.

    Parameters
    ----------
    progress
        Called with the progress of all jobs together in each stage, by the thread of a job.
    n_jobs
        Number of jobs. A job that has not begun a stage is assumed to be as long as one that has.
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
