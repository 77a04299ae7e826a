"""``--engine ray``: the work of a query, or of encoding a reference, spread over a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from scvec.base.errors import InputError, NetworkError, ResourceError, ScvecError
from scvec.base.resources import parse_memory
from scvec.base.types import CellChunk, CellEncoder, Float32, Int64, Progress, no_progress
from scvec.encoders import encoder_kind
from scvec.engines.ray_cluster import Plan, joined, nodes, plan
from scvec.engines.ray_workers import (
    GRACE,
    PATIENCE,
    AnnotateJob,
    Annotator,
    EncodeJob,
    Encoder,
    Reads,
    ReferencePlace,
    Shard,
    ShardHandle,
    Task,
)
from scvec.ingest.cells.source import recipe_of
from scvec.stores.index import index_class
from scvec.stores.index.shards import spans

if TYPE_CHECKING:
    from scvec.engines import Engine
    from scvec.ingest.genes.names import GeneMap
    from scvec.model.matching import MatchedSource
    from scvec.model.query_options import QueryOptions
    from scvec.model.reference import Prediction, ReferenceModel
    from scvec.stores.store.reference_reader import StoredReference
    from scvec.stores.store.store import Store

__all__ = ["Pool", "cause_of", "encode_by_ray", "predict_by_ray"]

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
        self._restarting: dict[Any, tuple[int, float]] = {}
        self._tries: dict[int, int] = {}

    def map(
        self,
        tasks: Iterator[Task],
        send: Callable[[Task], Any | None],
        on_done: Callable[[Task, int], None],
    ) -> Iterator[tuple[Task, Any]]:
        """Yield each task and its answer, in the order of the tasks.

        Parameters
        ----------
        send
            Gives the cells of a task where workers cannot read them, else None.
        on_done
            Takes each task once it is done, and the number of workers.

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
                    self._restart(worker)
                    continue
                sent.pop(task.number, None)
                done[task.number] = (task, answer)
                on_done(task, len(self._load))

    def _free(self) -> int | None:
        ready = [(load, worker) for worker, load in self._load.items() if load < AHEAD]
        return min(ready)[1] if ready else None

    def _finished(self) -> list[Any]:
        """Wait for tasks, and for workers that are starting anew."""
        if not self._load and not self._restarting:
            raise NetworkError(
                "every worker of the cluster died", "--engine ray", "run the same command again"
            )
        refs = [*self._running, *self._restarting]
        ready, _ = ray.wait(refs, num_returns=1, timeout=PATIENCE)
        if ready:
            # All that are there by now, or those first in the list would always be seen first.
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        finished = []
        for ref in ready:
            if ref in self._restarting:
                worker, _ = self._restarting.pop(ref)
                try:
                    ray.get(ref)
                    self._load[worker] = sum(w == worker for w, _ in self._running.values())
                except ray.exceptions.RayError:
                    pass  # it does not come back; the others do its work
            else:
                finished.append(ref)
        now = time.monotonic()
        if not self._load and self._restarting and all(now - t > GRACE for _, t in self._restarting.values()):
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

    def _restart(self, worker: int) -> None:
        if worker in self._load:
            del self._load[worker]
            self._restarting[self._workers[worker].alive.remote()] = (worker, time.monotonic())


def cause_of(error: Exception) -> Exception:
    """Return what a worker raised, without the wrapping of Ray; ours as it was."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, ScvecError):
        return cause
    return cause if isinstance(cause, MemoryError | OSError) else error


#: Seconds that a worker or a shard has to be there and loaded.
START = 180.0
#: Times that Ray starts a worker, and a shard, anew.
WORKER_RESTARTS, SHARD_RESTARTS = 4, 1


def predict_by_ray(
    opened: Store,
    stored: StoredReference,
    matched: MatchedSource,
    genes: GeneMap,
    options: QueryOptions,
    *,
    subset: Int64 | None = None,
    fitted: ReferenceModel | None = None,
    progress: Progress = no_progress,
) -> Iterator[Prediction]:
    """Annotate the cells of a query on a cluster.

    Parameters
    ----------
    options
        Of the query. ``memory`` is that of all workers together.
    subset
        Rows of the reference that may be neighbours; all when None.
    fitted
        The model that was fitted to the genes of the query, if that was needed: workers hold all of it, and
        there are no shards.

    Yields
    ------
    The predictions chunk by chunk, in order: those of the same model without Ray, of the same chunks.

    Raises
    ------
    NetworkError
        If the cluster cannot be reached, or a shard or all workers are lost.
    """
    from scvec.model.gene_fit import fit_state

    # Rows of an exact index may be divided anywhere: searching the parts gives what searching the whole does.
    splits = options.exact or index_class(stored.index_kind).is_exact
    with joined(options.ray_address, progress=progress) as ray:
        room = plan(
            nodes(ray),
            n_rows=stored.n,
            dim=stored.dim,
            memory=None if options.memory is None else parse_memory(options.memory),
            device=options.device,
            uses_gpu=encoder_kind(stored.meta["model"]["encoder"]["name"]).uses_gpu,
            splits=splits,
        )
        place = ReferencePlace(
            os.path.abspath(opened.path), opened.generation.number, stored.name, stored.fingerprint
        )
        with _actors() as actors:
            shards = []
            if fitted is None:
                shards = _shards(ray, place, stored.n, room, actors, whole=not splits, recall=options.recall)
            reads = Reads([recipe_of(matched.source)], [genes], room.reading)
            fit = None if fitted is None else fit_state(fitted)
            job = AnnotateJob(reads, place, shards, options, subset, fit)
            crew = _crew(ray, Annotator, job, room, actors)
            for _, answer in _Work(ray, crew, [matched], [genes], "annotating cells", progress).done():
                yield answer


def encode_by_ray(
    encoder: CellEncoder,
    matched: Sequence[MatchedSource],
    maps: Sequence[GeneMap],
    engine: Engine,
    progress: Progress,
) -> Float32:
    """Encode the cells of a reference on a cluster, by an encoder that was just trained.

    Returns
    -------
    (n, embed_dim) float32, rows in the order of the sources and their cells.

    Raises
    ------
    NetworkError
        If the cluster cannot be reached, or all workers are lost.
    """
    tensors, state = encoder.state()
    meta = {"model": {"encoder": {"name": encoder.name, **state}}, "options": {"backbone": engine.backbone}}
    vectors = np.empty((sum(m.source.n_obs for m in matched), encoder.embed_dim), dtype=np.float32)
    starts = np.cumsum([0, *(m.source.n_obs for m in matched)])
    with joined(engine.ray_address, progress=progress) as ray:
        room = plan(
            nodes(ray),
            n_rows=0,
            dim=encoder.embed_dim,
            memory=None if engine.memory is None else parse_memory(engine.memory),
            device=engine.device,
            uses_gpu=encoder_kind(encoder.name).uses_gpu,
        )
        with _actors() as actors:
            reads = Reads([recipe_of(m.source) for m in matched], maps, room.reading)
            crew = _crew(
                ray, Encoder, EncodeJob(reads, meta, tensors, engine.device, engine.llm), room, actors
            )
            for task, found in _Work(ray, crew, matched, maps, "encoding cells", progress).done():
                start = starts[task.source]
                vectors[start + task.first : start + task.last] = found
    return vectors


@contextlib.contextmanager
def _actors() -> Iterator[list[Any]]:
    """Yield a list; the actors that are put into it end with the block, on a cluster that goes on too."""
    import ray

    actors: list[Any] = []
    try:
        yield actors
    finally:
        for actor in actors:
            with contextlib.suppress(Exception):  # the cluster may be what failed
                ray.kill(actor, no_restart=True)


def _shards(
    ray: Any,
    place: ReferencePlace,
    n: int,
    room: Plan,
    actors: list[Any],
    *,
    whole: bool,
    recall: float | None,
) -> list[ShardHandle]:
    """Start the shards, spread over the nodes, and wait until all are loaded."""
    made = ray.remote(concurrency_groups={"health": 1})(Shard)
    shards = []
    held = spans(n, room.n_shards)
    for i, (first, last) in enumerate(held):
        actor = made.options(
            num_cpus=room.cpus,
            memory=room.shard_memory,
            scheduling_strategy="SPREAD",
            max_restarts=SHARD_RESTARTS,
            max_task_retries=-1,
        ).remote(place, first, last, whole=whole, recall=recall, threads=room.shard_threads)
        actors.append(actor)
        name = f"shard {i + 1} of {len(held)} of the reference {place.name!r}"
        shards.append(ShardHandle(name, first, last, actor))
    loading = {shard.actor.load.remote(): shard for shard in shards}
    ready, late = ray.wait(list(loading), num_returns=len(loading), timeout=START)
    for ref in ready:
        try:
            ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            raise cause_of(error) from None
        except ray.exceptions.RayError as error:
            raise loading[ref].lost("its process died while it was loaded") from error
    if late:
        raise loading[late[0]].lost("no node of the cluster has room for it")
    return shards


class _Crew:
    """Workers that are there, what they do, and which sources all of them can read."""

    def __init__(self, workers: list[Any], job: Any, reads: list[bool]) -> None:
        self.workers, self.job, self.reads = workers, job, reads


def _crew(ray: Any, kind: type, job: Any, room: Plan, actors: list[Any]) -> _Crew:
    """Start the workers and wait until they are loaded. Workers that find no room are left out."""
    from scvec import __version__

    made = ray.remote(concurrency_groups={"health": 1})(kind)
    options: dict[str, Any] = {
        "num_cpus": room.cpus,
        "num_gpus": room.worker_gpus,
        "memory": room.worker_memory,
        "scheduling_strategy": "SPREAD",
        "max_restarts": WORKER_RESTARTS,
        "max_task_retries": 0,
    }
    started = [made.options(**options).remote() for _ in range(room.n_workers)]
    actors += started
    # Put once: every worker, and one that is started anew, takes it from the cluster's memory.
    put = [ray.put(job)]
    asked = {worker.sees.remote(put): worker for worker in started}
    # The first decides how long the cluster takes; whoever is not there soon after it has no room.
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=START)
    workers, seen = [], []
    for ref in ready:
        try:
            version, sees = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            raise cause_of(error) from None
        except ray.exceptions.RayError:
            continue  # the others do its work
        if version != __version__:
            raise InputError(
                f"a node of the cluster has scvec {version}, this one {__version__}",
                "--engine ray",
                "install one version on all nodes",
            )
        workers.append(asked[ref])
        seen.append(sees)
    if not workers:
        raise NetworkError(
            "no worker could be started on the Ray cluster", "--engine ray", "look at its nodes: ray status"
        )
    for ref in late:
        actors.remove(asked[ref])
        ray.kill(asked[ref], no_restart=True)
    return _Crew(workers, put, [all(column) for column in zip(*seen, strict=True)])


class _Work:
    """The cells of some sources as tasks of a crew."""

    def __init__(
        self,
        ray: Any,
        crew: _Crew,
        matched: Sequence[MatchedSource],
        maps: Sequence[GeneMap],
        stage: str,
        progress: Progress,
    ) -> None:
        self._ray, self._crew, self._matched, self._maps = ray, crew, matched, maps
        self._stage, self._progress = stage, progress
        self._chunks: Iterator[CellChunk] | None = None
        self._n_done, self._total = 0, sum(m.source.n_obs for m in matched)

    def done(self) -> Iterator[tuple[Task, Any]]:
        """Yield tasks and answers, in order."""

        return Pool(self._crew.workers, self._crew.job).map(self._tasks(), self._send, self._count)

    def _tasks(self) -> Iterator[Task]:
        number = 0
        for i, matched in enumerate(self._matched):
            # As without Ray: in other chunks products of matrices would differ in the last bits.
            n, size = matched.source.n_obs, matched.source.chunk_size
            # Tasks are asked for in order, and cells that are sent are read in that order.
            self._chunks = None if self._crew.reads[i] else matched.chunks(self._maps[i], size)
            for first in range(0, n, size):
                yield Task(number, i, first, min(first + size, n), matched.source.name)
                number += 1

    def _send(self, task: Task) -> Any | None:
        return None if self._chunks is None else self._ray.put(next(self._chunks))

    def _count(self, task: Task, n_workers: int) -> None:
        self._n_done += len(task)
        workers = "1 worker" if n_workers == 1 else f"{n_workers} workers"
        self._progress(self._stage, self._n_done, self._total, workers)
