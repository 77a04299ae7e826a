"""``--engine ray``: annotate a query, or encode the cells of a reference, on a Ray cluster."""

from __future__ import annotations

import contextlib
import os
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

_FIX = "run the same command again; docs/cluster.md describes lost nodes"


@dataclass(frozen=True)
class ReferencePlace:
    """Location and identity of a reference.

    Attributes
    ----------
    store
        Folder of the store; the same path on all nodes.
    generation
        Number of the store's generation.
    name
        Name of the reference.
    fingerprint
        Fingerprint of the reference. A copy of the store with another fingerprint is refused.
    """

    store: str
    generation: int
    name: str
    fingerprint: str

    def open(self) -> StoredReference:
        """Open the reference on this node.

        Raises
        ------
        StoreError
            The store is missing on this node, is damaged, or holds another reference.
        """
        from scvec.stores.store.store import Store

        try:
            stored = Store(self.store).at(self.generation).reference(self.name)
        except InputError as error:
            raise StoreError(
                f"the node {_node()} does not see the store: {error.what}",
                self.store,
                "put the store, or a copy of it, under the same path on all nodes; docs/cluster.md",
                code="store-not-shared",
            ) from error
        if stored.fingerprint != self.fingerprint:
            raise StoreError(
                f"the reference {self.name!r} on the node {_node()} differs from the one on this node",
                self.store,
                "copy the store to that node again",
                code="store-not-shared",
            )
        return stored


@dataclass(frozen=True)
class ShardHandle:
    """Handle of a shard for other processes.

    Attributes
    ----------
    name
        Name of the shard in messages.
    first, last
        First row of the shard in the reference, and the row after its last.
    actor
        Ray's handle of the process.
    """

    name: str
    first: int
    last: int
    actor: Any

    def lost(self, why: str) -> NetworkError:
        """Return the error to raise if this shard does not answer."""
        where = f"cells {self.first + 1:,} to {self.last:,} of the reference"
        return NetworkError(f"{self.name} is lost: {why}", where, _FIX)


class Shard:
    """A process with some rows of a reference in memory."""

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

    def load(self) -> None:
        """Read the rows from the store; this checks the SHA-256 of the file."""
        _ = self._index_and_rows

    def search(self, queries: Float32, k: int, subset: Int64 | None) -> Found:
        """Return the nearest rows of this shard; ``subset`` holds row numbers within the shard."""
        index, rows = self._index_and_rows
        if rows is None:
            near = index.search(queries, k, subset=subset)
            return Found(near.indices, near.distances.astype("float64"))
        return search_rows(index, rows, self._first, queries, k, subset)

    @cached_property
    def _index_and_rows(self) -> tuple[Any, Float32 | None]:
        import faiss

        from scvec.stores.index import build_index

        # Ray limits an actor to one thread, but all workers of a node wait for a few shards. Results do not
        # depend on the number of threads.
        faiss.omp_set_num_threads(self._threads)
        stored = self._place.open()
        if self._whole:
            return stored.searcher(recall=self._recall), None
        index = build_index(stored.vectors[self._first : self._last])
        return index, index.vectors()


def ask_shards(
    handles: Sequence[ShardHandle], queries: Float32, k: int, subsets: Sequence[Int64 | None]
) -> list[Found]:
    """Search all shards in parallel, except shards with an empty subset.

    Parameters
    ----------
    handles
        The shards.
    queries
        (n, dim) float32.
    k
        Number of neighbours.
    subsets
        For each shard its rows to search, numbered within the shard; None means all.

    Raises
    ------
    NetworkError
        A shard does not answer; the message names it. There is no partial result.
    """
    shared = ray.put(queries)
    asked = [
        (handle, handle.actor.search.remote(shared, k, subset))
        for handle, subset in zip(handles, subsets, strict=True)
        if subset is None or len(subset)
    ]
    if not asked:  # the subset is empty: one shard returns the padded result
        asked = [(handles[0], handles[0].actor.search.remote(shared, k, subsets[0]))]
    return [_answer(handle, ref) for handle, ref in asked]


def _answer(handle: ShardHandle, ref: Any) -> Any:
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
    """Sources of cells.

    Attributes
    ----------
    recipes
        For each source a recipe for reading it; None if the main process sends its cells.
    maps
        For each source the map of its columns to genes.
    memory
        Memory for reading, in bytes.
    """

    recipes: Sequence[RowsRecipe | None]
    maps: Sequence[GeneMap]
    memory: int


@dataclass(frozen=True)
class Task:
    """A block of consecutive cells of a source.

    Attributes
    ----------
    number
        Number of the task; answers are returned in this order.
    source
        Number of the source.
    first, last
        First cell, and the cell after the last.
    name
        Name of the source in messages.
    """

    number: int
    source: int
    first: int
    last: int
    name: str

    def __len__(self) -> int:
        return self.last - self.first


class _Worker:
    """Base class of workers. Each task brings the job as a list with one Ray reference, resolved once."""

    def __init__(self) -> None:
        self._open: dict[int, FileRows] = {}
        self._job: Any = None

    def sees(self, job: list[Any]) -> tuple[str, list[bool]]:
        """Load the job; return the version of scvec, and for each source whether this node has its file."""
        import scvec

        self._take(job)
        return scvec.__version__, [r is not None and r.is_here() for r in self._job.reads.recipes]

    def work(self, job: list[Any], task: Task, sent: CellChunk | None = None) -> Any:
        """Return the answer for the cells of a task; the worker reads them unless they are sent."""
        self._take(job)
        return self._answer(self._cells(task, sent))

    def _take(self, job: list[Any]) -> None:
        if self._job is None:
            loaded = ray.get(job[0])
            self._load(loaded)
            self._job = loaded

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
                f"the file was changed or moved during reading (node {_node()})",
                task.name,
                "run the same command again",
            )
        if task.source not in self._open:
            self._open[task.source] = FileRows(recipe, self._job.reads.memory)
        X = self._open[task.source].rows(task.first, task.last)
        return CellChunk(over_targets(X, genes.weights), genes.measured)


@dataclass(frozen=True)
class AnnotateJob:
    """Settings for annotating a query; ``subset`` holds the rows of the reference that may be neighbours."""

    reads: Reads
    place: ReferencePlace
    shards: Sequence[ShardHandle]
    options: QueryOptions
    subset: Int64 | None
    fit: Mapping[str, npt.NDArray[Any]] | None = None


class Annotator(_Worker):
    """Worker that reads, encodes and annotates cells, and asks the shards for neighbours."""

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
    """A newly trained encoder, in the form in which the store would keep it."""

    reads: Reads
    meta: dict[str, Any]
    tensors: Mapping[str, npt.NDArray[Any]]
    device: str
    llm: str | None


class Encoder(_Worker):
    """Worker that encodes cells."""

    def _load(self, job: EncodeJob) -> None:
        from scvec.encoders import load_encoder
        from scvec.model.storage import stored_models

        models = stored_models(job.meta, device=job.device, llm=job.llm)
        state = job.meta["model"]["encoder"]
        self._encoder = load_encoder(state["name"], dict(job.tensors), state, models)

    def _answer(self, cells: CellChunk) -> Float32:
        return self._encoder.encode(cells)


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id()[:8])


#: Number of tasks that a worker has at once: one in work and one waiting.
AHEAD = 2
#: Number of workers that may die on the same cells before the command fails.
TRIES = 3


class Pool:
    """Distributes tasks to workers.

    Other workers do the tasks of a worker that dies. Each task has exactly one answer, identified by its
    number. The number of running tasks and waiting answers is limited, which limits the memory.

    Parameters
    ----------
    workers
        Handles of actors with the method ``work``.
    job
        First argument of ``work`` for every task.
    """

    def __init__(self, workers: Sequence[Any], job: Any) -> None:
        self._workers, self._job = list(workers), job
        #: Number of each living worker -> number of its tasks.
        self._load = dict.fromkeys(range(len(self._workers)), 0)
        self._running: dict[Any, tuple[int, Task]] = {}
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
        tasks
            The tasks.
        send
            Function that returns the cells of a task, or None if workers read them.
        on_done
            Function of each finished task and the number of workers.

        Raises
        ------
        NetworkError
            Several workers died on the same cells, or all workers died.
        ResourceError
            Several workers ran out of memory on the same cells.
        ScvecError
            A worker raised this error.
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
                    self._load.pop(worker, None)
                    self._blame(task, error)
                    again.append((task, sent[task.number]))
                    continue
                sent.pop(task.number, None)
                done[task.number] = (task, answer)
                on_done(task, len(self._load))

    def _free(self) -> int | None:
        ready = [(load, worker) for worker, load in self._load.items() if load < AHEAD]
        return min(ready)[1] if ready else None

    def _finished(self) -> list[Any]:
        """Wait for finished tasks."""
        refs = list(self._running)
        ray.wait(refs, num_returns=1)
        # Take all finished tasks, because ray.wait would otherwise prefer those first in the list.
        return ray.wait(refs, num_returns=len(refs), timeout=0)[0]

    def _blame(self, task: Task, error: Exception) -> None:
        tries = self._tries[task.number] = self._tries.get(task.number, 0) + 1
        if tries < TRIES and self._load:
            return
        where = f"cells {task.first + 1:,} to {task.last:,} of {task.name}"
        if "memory" in str(error).lower():
            raise ResourceError("workers ran out of memory", where, "change the memory: --memory")
        what = f"{tries} workers died one after another on the same cells"
        if not self._load:
            what = "every worker of the cluster died"
        raise NetworkError(what, where, "run the command without --engine ray to see the reason")


def cause_of(error: Exception) -> Exception:
    """Return the error that a worker raised, without Ray's wrapper."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, ScvecError):
        return cause
    return cause if isinstance(cause, MemoryError | OSError) else error


#: Seconds for a worker or a shard to start and load.
START = 180.0


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
    opened, stored
        The store and the reference.
    matched, genes
        The query, and the match of its genes.
    options
        Options of the query. ``memory`` is that of all workers together.
    subset
        Rows of the reference that may be neighbours; None means all.
    fitted
        The model fitted to the genes of the query, if a fit was needed. Each worker then holds the complete
        model, and there are no shards.
    progress
        Function that receives the progress.

    Yields
    ------
    Prediction
        The predictions of each chunk, in order. They are identical to those without Ray.

    Raises
    ------
    NetworkError
        The cluster cannot be reached, or a shard or all workers are lost.
    """
    from scvec.model.gene_fit import fit_state

    # An exact index may be divided at any row, because the merged results of its parts are identical.
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
            # Workers read whole files: some of the cells of one are sent to them.
            recipe = recipe_of(matched.source) if matched.rows is None else None
            reads = Reads([recipe], [genes], room.reading)
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
    """Encode the cells of a reference on a cluster with a newly trained encoder.

    Returns
    -------
    ndarray
        (n, embed_dim) float32, rows in the order of the sources and their cells.

    Raises
    ------
    NetworkError
        The cluster cannot be reached, or all workers are lost.
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
    """Yield a list for actors; the actors in it are stopped at the end of the block."""
    import ray

    actors: list[Any] = []
    try:
        yield actors
    finally:
        for actor in actors:
            with contextlib.suppress(Exception):  # the cluster itself may have failed
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
    """Start the shards on different nodes and wait until all are loaded."""
    made = ray.remote(Shard)
    shards = []
    held = spans(n, room.n_shards)
    for i, (first, last) in enumerate(held):
        actor = made.options(
            num_cpus=room.cpus,
            memory=room.shard_memory,
            scheduling_strategy="SPREAD",
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
    """Started workers, their job, and for each source whether all workers can read it."""

    def __init__(self, workers: list[Any], job: Any, reads: list[bool]) -> None:
        self.workers, self.job, self.reads = workers, job, reads


def _crew(ray: Any, kind: type, job: Any, room: Plan, actors: list[Any]) -> _Crew:
    """Start the workers and wait until they are loaded. Workers without free resources are left out."""
    from scvec import __version__

    made = ray.remote(kind)
    options: dict[str, Any] = {
        "num_cpus": room.cpus,
        "num_gpus": room.worker_gpus,
        "memory": room.worker_memory,
        "scheduling_strategy": "SPREAD",
    }
    started = [made.options(**options).remote() for _ in range(room.n_workers)]
    actors += started
    # Put the job into the cluster's memory once. All workers read it from there.
    put = [ray.put(job)]
    asked = {worker.sees.remote(put): worker for worker in started}
    # Workers that are not ready in START seconds have no room on the cluster.
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=START)
    workers, seen = [], []
    for ref in ready:
        try:
            version, sees = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            raise cause_of(error) from None
        except ray.exceptions.RayError:
            continue  # the other workers do its tasks
        if version != __version__:
            raise InputError(
                f"a node of the cluster has scvec {version}; this node has {__version__}",
                "--engine ray",
                "install the same version on all nodes",
            )
        workers.append(asked[ref])
        seen.append(sees)
    if not workers:
        raise NetworkError(
            "no worker could be started on the Ray cluster", "--engine ray", "check the nodes: ray status"
        )
    for ref in late:
        actors.remove(asked[ref])
        ray.kill(asked[ref], no_restart=True)
    return _Crew(workers, put, [all(column) for column in zip(*seen, strict=True)])


class _Work:
    """Makes tasks from the cells of sources and runs them on the workers."""

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
        self._n_done, self._total = 0, sum(m.n_obs for m in matched)

    def done(self) -> Iterator[tuple[Task, Any]]:
        """Yield tasks and answers in the order of the cells."""
        return Pool(self._crew.workers, self._crew.job).map(self._tasks(), self._send, self._count)

    def _tasks(self) -> Iterator[Task]:
        number = 0
        for i, matched in enumerate(self._matched):
            # Use the chunks of the local engine, because matrix products differ in the last bits for others.
            n, size = matched.n_obs, matched.source.chunk_size
            # The pool takes tasks in order, so _send reads the chunks in the same order.
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
