"""Independent trainings run side by side, each on its share of the cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

from scvec.protocols import Progress

__all__ = ["n_cores", "side_by_side"]

T = TypeVar("T")


class _StoppedError(Exception):
    """Another of the jobs failed, or the user interrupted: this one has nothing to work for."""


def n_cores() -> int:
    """Return the cores that this process may use; fewer where ``OMP_NUM_THREADS`` says so."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return min(there, int(asked)) if asked.isdigit() and int(asked) > 0 else there


def side_by_side(
    jobs: Sequence[Callable[[Progress], T]], progress: Progress, n_workers: int | None = None
) -> Generator[T, None, None]:
    """Run jobs in threads and yield what they return, in their order.

    Most of a training is spent in libraries that let other threads run, but use more than one core badly: its
    matrices are small. Each job gets as many threads of those libraries as there are cores for it.

    Parameters
    ----------
    jobs
        Called with the progress to report to, from time to time: there a job ends whose result nobody waits
        for any more. They must not share what they change.
    progress
        Told what all jobs together have done of each stage, by their threads.
    n_workers
        Jobs at once; as many as cores when None. With one a job starts when it is asked for, in the thread of
        who asks.

    Raises
    ------
    Exception
        What a job raised. Closing the iterator ends those that run.
    """
    n = min(len(jobs), n_cores() if n_workers is None else n_workers)
    together = _Together(progress, len(jobs))
    if n <= 1:
        for number, job in enumerate(jobs):
            yield job(together.of(number))
        return
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    each = max(1, n_cores() // n)
    with (
        threadpool_limits(each, user_api="blas"),
        ThreadPoolExecutor(n, initializer=_limit, initargs=(each,)) as pool,
    ):
        futures = [pool.submit(job, together.of(number)) for number, job in enumerate(jobs)]
        try:
            while futures:
                # Forgotten here once it is given away.
                yield futures.pop(0).result()
        finally:
            together.stop()
            for future in futures:
                future.cancel()
            # What threads to come are given, too.
            torch.set_num_threads(before)


def _limit(n_threads: int) -> None:
    """Let the libraries use so many threads for what this thread asks of them."""
    import torch
    from threadpoolctl import threadpool_limits

    # OpenMP counts for each thread that asks; the BLAS of NumPy for the whole process, elsewhere.
    torch.set_num_threads(n_threads)
    threadpool_limits(n_threads, user_api="openmp")


class _Together:
    """Progress of several jobs as one."""

    def __init__(self, progress: Progress, n_jobs: int) -> None:
        self._progress, self._n_jobs = progress, n_jobs
        self._lock, self._stopped = Lock(), False
        self._far: dict[str, dict[int, tuple[int, int | None]]] = {}

    def of(self, number: int) -> Progress:
        """Return what job ``number`` reports to."""

        def report(stage: str, done: int, total: int | None, detail: str = "") -> None:
            if self._stopped:
                raise _StoppedError
            with self._lock:
                far = self._far.setdefault(stage, {})
                far[number] = (done, total)
                if total is not None:
                    # Jobs that have not begun are taken to be as long as this one.
                    total *= self._n_jobs - len(far)
                    total += sum(of or 0 for _, of in far.values())
                self._progress(stage, sum(n for n, _ in far.values()), total, detail)

        return report

    def stop(self) -> None:
        """End jobs at their next report."""
        self._stopped = True
