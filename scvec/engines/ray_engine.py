"""``--engine ray``: the work of a query, or of encoding a reference, spread over a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from scvec.base.errors import InputError, NetworkError, ResourceError, ScvecError, StoreError
from scvec.base.resources import parse_memory
from scvec.base.types import CellChunk, CellEncoder, Float32, Int64, Progress, no_progress
from scvec.encoders import encoder_kind
from scvec.engines.ray_cluster import Plan, joined, nodes, plan
from scvec.ingest.cells.source import FileRows, RowsRecipe, recipe_of
from scvec.stores.index import index_class
from scvec.stores.index.shards import Found, ShardedIndex, search_rows, spans

if TYPE_CHECKING:
    import numpy.typing as npt

    from scvec.engines import Engine
    from scvec.model.matching import MatchedSource
    from scvec.model.query_options import QueryOptions
    from scvec.model.reference import Prediction, ReferenceModel
    from scvec.model.resolvers import GeneMap
    from scvec.stores.store.reference_reader import StoredReference
    from scvec.stores.store.store import Store

__all__ = ["Pool"]

#: Seconds without an answer after which a process is asked whether it lives, and that it has to say so.
PATIENCE, GRACE = 30.0, 120.0
_FIX = "run the same command again; docs/cluster.md tells of lost nodes"


@dataclass(frozen=True)
class ReferencePlace:
    """Where a reference lies, and which one is meant.

    Attributes
    ----------
    store
        Folder, as this process and all workers see it.
    fingerprint
        Of the reference; a copy of the store that holds another one is refused.
    """

    store: str
    generation: int
    name: str
    fingerprint: str

    def open(self) -> StoredReference:
        """Return the reference.

        Raises
        ------
        StoreError
            If the node does not see the store, or one that is damaged or another.
        """
        from scvec.stores.store.store import Store

        try:
            stored = Store(self.store).at(self.generation).reference(self.name)
        except InputError as error:
            raise StoreError(
                f"the node {_node()} does not see the store: {error.what}",
                self.store,
                "put the store where all nodes see it under one name, or a copy on each; docs/cluster.md",
                code="store-not-shared",
            ) from error
        if stored.fingerprint != self.fingerprint:
            raise StoreError(
                f"the node {_node()} sees another store: its reference {self.name!r} is a different one",
                self.store,
                "copy the store anew to that node",
                code="store-not-shared",
            )
        return stored


@dataclass(frozen=True)
class ShardHandle:
    """A shard as others know it.

    Attributes
    ----------
    name
        For people: what is lost if it is.
    first, last
        Its rows of the reference.
    actor
        Ray's handle.
    """

    name: str
    first: int
    last: int
    actor: Any

    def lost(self, why: str) -> NetworkError:
        """Return the error of a query that cannot have this shard's answer."""
        where = f"cells {self.first + 1:,} to {self.last:,} of the reference"
        return NetworkError(f"{self.name} is lost and could not be restored: {why}", where, _FIX)


class Shard:
    """Some rows of a reference, in memory. Ray starts it anew once if it is lost: it loads itself again."""

    def __init__(
        self,
        place: ReferencePlace,
        first: int,
        last: int,
        *,
        whole: bool,
        recall: float | None = None,
        threads: int = 1,
    ) -> None:
        self._place, self._first, self._last, self._whole = place, first, last, whole
        self._recall, self._threads = recall, threads

    @ray.method(concurrency_group="health", max_task_retries=-1)
    def alive(self) -> tuple[str, int]:
        """Return the node and the process; answered while a search runs."""
        return _node(), os.getpid()

    def load(self) -> None:
        """Read the rows from the store, whose file is checked against its SHA-256."""
        _ = self._held

    def search(self, queries: Float32, k: int, subset: Int64 | None) -> Found:
        """Return the nearest rows of this shard; ``subset`` counts from its first one."""
        index, rows = self._held
        if rows is None:
            near = index.search(queries, k, subset=subset)
            return Found(near.indices, near.distances.astype("float64"))
        return search_rows(index, rows, self._first, queries, k, subset)

    @cached_property
    def _held(self) -> tuple[Any, Float32 | None]:
        import faiss

        from scvec.stores.index import build_index

        # Ray lets an actor have one. All workers of a node wait for few shards; no answer depends on it.
        faiss.omp_set_num_threads(self._threads)
        stored = self._place.open()
        if self._whole:
            return stored.searcher(recall=self._recall), None
        index = build_index(stored.vectors[self._first : self._last])
        return index, index.vectors()


def ask_shards(
    handles: Sequence[ShardHandle], queries: Float32, k: int, subsets: Sequence[Int64 | None]
) -> list[Found]:
    """Search all shards at once; those with nothing to search among are left alone.

    Raises
    ------
    NetworkError
        If one gives no answer, with its name. There is no answer without it.
    """
    shared = ray.put(queries)
    asked = [
        (handle, handle.actor.search.remote(shared, k, subset))
        for handle, subset in zip(handles, subsets, strict=True)
        if subset is None or len(subset)
    ]
    if not asked:  # a subset without rows: any shard pads as the local index does
        asked = [(handles[0], handles[0].actor.search.remote(shared, k, subsets[0]))]
    return [_answer(handle, ref) for handle, ref in asked]


def _answer(handle: ShardHandle, ref: Any) -> Any:
    silent_since: float | None = None
    ping = None
    while not ray.wait([ref], timeout=PATIENCE)[0]:
        if ping is not None and ray.wait([ping], timeout=0)[0]:
            ping = None
        if ping is None:
            ping, silent_since = handle.actor.alive.remote(), time.monotonic()
        elif silent_since is not None and time.monotonic() - silent_since > GRACE:
            raise handle.lost("it is silent, and no node has room for it")
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, StoreError):
            raise handle.lost(cause.what) from error
        raise cause if isinstance(cause, ScvecError) else error from None
    except ray.exceptions.RayError as error:
        raise handle.lost(_reason(error)) from error


def _reason(error: Exception) -> str:
    text = str(error)
    if "memory" in text and "running low" in text:
        return "its node ran out of memory"
    if "node" in text and "died" in text and "node_id" in text:
        return "its node died"
    return "its process died"


@dataclass(frozen=True)
class Reads:
    """Where cells come from.

    Attributes
    ----------
    recipes
        Per source, how to read it; None where its cells are sent.
    maps
        Per source, which genes its columns are.
    memory
        Bytes that reading may use.
    """

    recipes: Sequence[RowsRecipe | None]
    maps: Sequence[GeneMap]
    memory: int


@dataclass(frozen=True)
class Task:
    """Some consecutive cells of a source.

    Attributes
    ----------
    number
        Counts all tasks; answers are put in its order.
    name
        Of the source, for messages.
    """

    number: int
    source: int
    first: int
    last: int
    name: str

    def __len__(self) -> int:
        return self.last - self.first


class _Worker:
    """Has no arguments: what it needs comes with every task, so that it can be started anew at any time.

    It comes as a list of one reference, which a worker looks up once.
    """

    def __init__(self) -> None:
        self._open: dict[int, FileRows] = {}
        self._job: Any = None

    @ray.method(concurrency_group="health", max_task_retries=-1)
    def alive(self) -> tuple[str, int]:
        """Return the node and the process; answered while cells are encoded."""
        return _node(), os.getpid()

    def sees(self, job: list[Any]) -> tuple[str, list[bool]]:
        """Load all there is; return the version of scvec, and of each source whether its file is here."""
        import scvec

        self._take(job)
        return scvec.__version__, [r is not None and r.is_here() for r in self._job.reads.recipes]

    def work(self, job: list[Any], task: Task, sent: CellChunk | None = None) -> Any:
        """Return the answer for the cells of a task, which are read here if they are not sent."""
        self._take(job)
        return self._answer(self._cells(task, sent))

    def _take(self, job: list[Any]) -> None:
        if self._job is None:
            taken = ray.get(job[0])
            self._load(taken)
            self._job = taken

    def _load(self, job: Any) -> None:
        raise NotImplementedError

    def _answer(self, cells: CellChunk) -> Any:
        raise NotImplementedError

    def _cells(self, task: Task, sent: CellChunk | None) -> CellChunk:
        from scvec.model.matching import over_targets

        if sent is not None:
            return sent
        recipe, genes = self._job.reads.recipes[task.source], self._job.reads.maps[task.source]
        if recipe is None or not recipe.is_here():
            raise InputError(
                f"the file was changed or moved while it was read (node {_node()})",
                task.name,
                "run the same command again",
            )
        if task.source not in self._open:
            self._open[task.source] = FileRows(recipe, self._job.reads.memory)
        X = self._open[task.source].rows(task.first, task.last)
        return CellChunk(over_targets(X, genes.weights), genes.measured)


@dataclass(frozen=True)
class AnnotateJob:
    """How to annotate the cells of a query; ``subset`` holds the rows of the reference to search."""

    reads: Reads
    place: ReferencePlace
    shards: Sequence[ShardHandle]
    options: QueryOptions
    subset: Int64 | None
    fit: Mapping[str, npt.NDArray[Any]] | None = None


class Annotator(_Worker):
    """Annotates cells: reads them, encodes them, and asks the shards for neighbours."""

    def _load(self, job: AnnotateJob) -> None:
        from scvec.model.gene_fit import fit_of
        from scvec.model.storage import load_model

        if job.fit is not None:
            self._model = fit_of(dict(job.fit))
            return
        stored = job.place.open()
        held = [(shard.first, shard.last) for shard in job.shards]
        index = ShardedIndex(stored.dim, held, lambda q, k, subsets: ask_shards(job.shards, q, k, subsets))
        options = job.options
        self._model = load_model(stored, device=options.device, llm=options.llm, index=index)

    def _answer(self, cells: CellChunk) -> Prediction:
        options = self._job.options
        return self._model.predict(
            cells,
            method=options.method,
            n_neighbors=options.n_neighbors,
            subset=self._job.subset,
            coverage=options.coverage,
        )


@dataclass(frozen=True)
class EncodeJob:
    """An encoder that was just trained: what it would be stored as."""

    reads: Reads
    meta: dict[str, Any]
    tensors: Mapping[str, npt.NDArray[Any]]
    device: str
    llm: str | None


class Encoder(_Worker):
    """Encodes cells."""

    def _load(self, job: EncodeJob) -> None:
        from scvec.encoders import load_encoder
        from scvec.model.encoder_models import stored_models

        models = stored_models(job.meta, device=job.device, llm=job.llm)
        state = job.meta["model"]["encoder"]
        self._encoder = load_encoder(state["name"], dict(job.tensors), state, models)

    def _answer(self, cells: CellChunk) -> Float32:
        return self._encoder.encode(cells)


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id()[:8])


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


def predict_cells(
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


def encode_cells(
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
