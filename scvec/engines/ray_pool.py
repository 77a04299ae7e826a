"""Workers that take tasks, give answers in order, and may die."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from scvec.base.errors import NetworkError, ResourceError, ScvecError
from scvec.engines.ray_workers import GRACE, PATIENCE, Task

__all__ = ["Pool", "cause_of"]

#: Tasks that a worker has at once: the next one is there when it has done one.
AHEAD = 2
#: Times that cells are given to a worker before they are blamed for its death.
TRIES = 3


class Pool:
    """Hands tasks to workers.

    A worker that dies is started anew by Ray; until it answers, others do its tasks. An answer counts once,
    by the number of its task, so nothing is lost or doubled. What is under way is bounded, so that neither
    chunks nor answers pile up.

    Parameters
    ----------
    workers
        Handles of actors with the methods ``work`` and ``alive``.
    job
        First argument of ``work``, with every task.
    """

    def __init__(self, workers: Sequence[Any], job: Any) -> None:
        self._workers, self._job = list(workers), job
        #: Number of a worker -> tasks it has; those that are starting anew are not in it.
        self._load = dict.fromkeys(range(len(self._workers)), 0)
        self._running: dict[Any, tuple[int, Task]] = {}
        self._mending: dict[Any, tuple[int, float]] = {}
        self._tries: dict[int, int] = {}

    def map(
        self,
        tasks: Iterator[Task],
        send: Callable[[Task], Any | None],
        told: Callable[[Task, int], None],
    ) -> Iterator[tuple[Task, Any]]:
        """Yield each task and its answer, in the order of the tasks.

        Parameters
        ----------
        send
            Gives the cells of a task where workers cannot read them, else None.
        told
            Is told of each task that was done, in the order of doing, and how many workers there are.

        Raises
        ------
        NetworkError
            If cells kill every worker that takes them, or no worker is left.
        ResourceError
            If they do so by filling the memory.
        ScvecError
            What a worker raised.
        """
        again: deque[tuple[Task, Any]] = deque()
        done: dict[int, tuple[Task, Any]] = {}
        sent: dict[int, Any] = {}
        wanted, exhausted = 0, False
        while True:
            while (worker := self._free()) is not None:
                if again:
                    task, cells = again.popleft()
                elif exhausted or len(self._running) + len(done) >= 2 * AHEAD * max(1, len(self._load)):
                    break
                elif (task := next(tasks, None)) is None:  # type: ignore[assignment]
                    exhausted = True
                    break
                else:
                    cells = send(task)
                    sent[task.number] = cells
                self._running[self._workers[worker].work.remote(self._job, task, cells)] = (worker, task)
                self._load[worker] += 1
            while wanted in done:
                yield done.pop(wanted)
                wanted += 1
            if exhausted and not again and not self._running and not done:
                return
            for ref in self._finished():
                worker, task = self._running.pop(ref)
                if worker in self._load:
                    self._load[worker] -= 1
                try:
                    answer = ray.get(ref)
                except ray.exceptions.RayTaskError as error:
                    raise cause_of(error) from None
                except ray.exceptions.RayError as error:
                    self._blame(task, error)
                    again.append((task, sent[task.number]))
                    self._mend(worker)
                    continue
                sent.pop(task.number, None)
                done[task.number] = (task, answer)
                told(task, len(self._load))

    def _free(self) -> int | None:
        ready = [(load, worker) for worker, load in self._load.items() if load < AHEAD]
        return min(ready)[1] if ready else None

    def _finished(self) -> list[Any]:
        """Wait for tasks, and for workers that are starting anew."""
        if not self._load and not self._mending:
            raise NetworkError(
                "every worker of the cluster died", "--engine ray", "run the same command again"
            )
        refs = [*self._running, *self._mending]
        ready, _ = ray.wait(refs, num_returns=1, timeout=PATIENCE)
        if ready:
            # All that are there by now, or those first in the list would always be seen first.
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        finished = []
        for ref in ready:
            if ref in self._mending:
                worker, _ = self._mending.pop(ref)
                try:
                    ray.get(ref)
                    self._load[worker] = sum(w == worker for w, _ in self._running.values())
                except ray.exceptions.RayError:
                    pass  # it is gone for good; the others do its work
            else:
                finished.append(ref)
        now = time.monotonic()
        if not self._load and self._mending and all(now - t > GRACE for _, t in self._mending.values()):
            raise NetworkError(
                "no worker of the cluster comes back", "--engine ray", "look at its nodes: ray status"
            )
        return finished

    def _blame(self, task: Task, error: Exception) -> None:
        tries = self._tries[task.number] = self._tries.get(task.number, 0) + 1
        if tries < TRIES:
            return
        where = f"cells {task.first + 1:,} to {task.last:,} of {task.name}"
        if "memory" in str(error).lower():
            raise ResourceError("workers run out of memory", where, "give them more, or fewer: --memory")
        what = f"{tries} workers died one after the other of the same cells"
        raise NetworkError(what, where, "run it without --engine ray to see why")

    def _mend(self, worker: int) -> None:
        if worker in self._load:
            del self._load[worker]
            self._mending[self._workers[worker].alive.remote()] = (worker, time.monotonic())


def cause_of(error: Exception) -> Exception:
    """Return what a worker raised, without the wrapping of Ray; ours as it was."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, ScvecError):
        return cause
    return cause if isinstance(cause, MemoryError | OSError) else error
