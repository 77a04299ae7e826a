"""Where cells are encoded and annotated: in this process, or on a Ray cluster. The door of this room."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from scvec.base import arrays
from scvec.base.errors import InputError
from scvec.base.parallel import n_cores, side_by_side

if TYPE_CHECKING:
    from scvec.base.types import CellEncoder, Float32, Int64, Progress
    from scvec.model.matching import MatchedSource
    from scvec.model.query_options import QueryOptions
    from scvec.model.reference import Prediction, ReferenceModel
    from scvec.model.resolvers import GeneMap
    from scvec.stores.store.reference_reader import StoredReference
    from scvec.stores.store.store import Store

__all__ = ["ENGINES", "Engine", "check_engine", "encode_cells", "predict_cells"]

#: Engine beside this process -> module with ``encode_cells`` and ``predict_cells``, imported on first use.
MODULES = {"ray": "scvec.engines.ray_engine"}
ENGINES = ("local", *MODULES)
#: Chunks that this process works on at once, at most: each takes the memory of one.
AT_ONCE = 4
#: Chunks after which freed memory goes back to the system: several threads leave holes in several heaps, and
#: more of them the more chunks there are.
TRIM_EVERY = 16


def check_engine(engine: str, ray_address: str | None = None) -> None:
    """Refuse at once what cannot work, before files are read.

    Parameters
    ----------
    ray_address
        ``HOST:PORT`` of a cluster's head, ``auto`` for the cluster of this node, or None.

    Raises
    ------
    InputError
        No such engine, an address without it, an address that is none, or Ray is not installed.
    NetworkError
        Nothing listens at the address.
    """
    if engine not in ENGINES:
        raise InputError(f"there is no engine {engine!r}", "--engine", f"engines: {', '.join(ENGINES)}")
    if engine == "local":
        if ray_address is not None:
            what = "an address of a Ray cluster is of use with the engine ray only"
            raise InputError(what, f"--ray-address {ray_address}", "add --engine ray")
        return
    if importlib.util.find_spec("ray") is None:
        raise InputError(
            "Ray is not installed",
            "--engine ray",
            'run: pip install "scvec[ray]"',
            code="extra-not-installed",
        )
    if ray_address is None or ray_address == "auto":
        return
    if ray_address.startswith("ray://"):
        what = "scvec does not speak the protocol of Ray clients (ray://)"
        fix = "run it on a node of the cluster with --ray-address auto (docs/cluster.md)"
        raise InputError(what, f"--ray-address {ray_address}", fix, code="bad-address")
    from scvec.engines.ray_cluster import check_answers

    check_answers(ray_address, f"--ray-address {ray_address}")


@dataclass(frozen=True, slots=True)
class Engine:
    """Who works, and with what.

    Attributes
    ----------
    name
        One of :data:`ENGINES`.
    ray_address
        Of a cluster; None for a Ray of this machine's own.
    memory
        Bytes of all workers together.
    device, llm, backbone
        What workers of a cluster rebuild the encoder with, if it reads with a model.
    exact, recall
        How an approximate index searches (`StoredReference.searcher`).
    """

    name: str = "local"
    ray_address: str | None = None
    memory: str | int | None = None
    device: str = "auto"
    llm: str | None = None
    backbone: str = ""
    exact: bool = False
    recall: float | None = None


def encode_cells(
    encoder: CellEncoder,
    matched: Sequence[MatchedSource],
    maps: Sequence[GeneMap],
    engine: Engine,
    progress: Progress,
) -> Float32:
    """Return the vectors (n, embed_dim) float32 of all cells, in the order of the sources and their cells."""
    import numpy as np

    if engine.name in MODULES:
        by_others: Float32 = import_module(MODULES[engine.name]).encode_cells(
            encoder, matched, maps, engine, progress
        )
        return by_others
    total = sum(m.source.n_obs for m in matched)
    vectors = np.empty((total, encoder.embed_dim), dtype=np.float32)
    n_workers = 1 if getattr(encoder, "takes_turns", False) else min(n_cores(), AT_ONCE)
    done = 0
    for source, genes in zip(matched, maps, strict=True):
        jobs = (partial(encoder.encode, chunk) for chunk in source.chunks(genes))
        with closing(side_by_side(jobs, n_workers)) as encoded:
            for block in encoded:
                vectors[done : done + len(block)] = block
                done += len(block)
                progress("encoding cells", done, total)
    return vectors


def predict_cells(
    model: ReferenceModel,
    matched: MatchedSource,
    genes: GeneMap,
    options: QueryOptions,
    *,
    reference: tuple[Store, StoredReference],
    fitted: bool,
    subset: Int64 | None,
    progress: Progress,
) -> Prediction:
    """Return the predictions for the cells of a query, in their order.

    Parameters
    ----------
    reference
        The store and the reference that workers of a cluster open.
    fitted
        Whether the model was fitted to the genes of the query.
    subset
        Rows of the reference that may be neighbours; all when None.
    """
    from scvec.model.reference import Prediction

    parts: Iterator[Prediction]
    if options.engine in MODULES:
        of_query = import_module(MODULES[options.engine]).predict_cells
        whole = model if fitted else None
        parts = of_query(*reference, matched, genes, options, subset=subset, fitted=whole, progress=progress)
    else:
        parts = _predict_here(model, matched, genes, options, subset, progress)
    return Prediction.gather(parts, matched.source.n_obs)


def _predict_here(
    model: ReferenceModel,
    matched: MatchedSource,
    genes: GeneMap,
    options: QueryOptions,
    subset: Int64 | None,
    progress: Progress,
) -> Iterator[Prediction]:
    """Yield the predictions of this process, chunk by chunk in the order of the cells."""
    predict = partial(
        model.predict,
        method=options.method,
        n_neighbors=options.n_neighbors,
        subset=subset,
        coverage=options.coverage,
    )
    done, total = 0, matched.source.n_obs
    jobs = (partial(predict, chunk) for chunk in matched.chunks(genes))
    n_workers = 1 if model.takes_turns else min(n_cores(), AT_ONCE)
    with closing(side_by_side(jobs, n_workers)) as predictions:
        for number, prediction in enumerate(predictions, 1):
            done += len(prediction)
            yield prediction
            if number % TRIM_EVERY == 0:
                arrays.trim()
            progress("annotating cells", done, total)
