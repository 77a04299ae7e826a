"""What runs in the processes of a Ray cluster: shards that are searched, and workers that read and encode.

Objects travel between these processes as Ray sends them (cloudpickle), inside the trust of the cluster.
Nothing of that is ever written to the store, or read from a file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import ray

from scvec.base.errors import InputError, NetworkError, ScvecError, StoreError
from scvec.base.types import CellChunk, Float32, Int64
from scvec.ingest.cells.source import FileRows, RowsRecipe
from scvec.stores.index.shards import Found, ShardedIndex, search_rows

if TYPE_CHECKING:
    import numpy.typing as npt

    from scvec.ingest.genes.names import GeneMap
    from scvec.model.query_options import QueryOptions
    from scvec.model.reference import Prediction
    from scvec.stores.store.reference_reader import StoredReference

__all__ = [
    "AnnotateJob",
    "Annotator",
    "EncodeJob",
    "Encoder",
    "Reads",
    "ReferencePlace",
    "Shard",
    "ShardHandle",
    "Task",
]

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
