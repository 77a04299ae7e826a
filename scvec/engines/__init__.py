"""Engines: encode and annotate cells in this process or on a Ray cluster. Other packages import only this."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from scvec.base import arrays
from scvec.base.errors import InputError, check_choice, need_extra
from scvec.base.resources import n_cores, side_by_side

if TYPE_CHECKING:
    from scvec.base.types import CellEncoder, Float32, Int64, Progress
    from scvec.model.matching import MatchedSource
    from scvec.model.query_options import QueryOptions
    from scvec.model.reference import Prediction, ReferenceModel
    from scvec.model.resolvers import GeneMap
    from scvec.stores.store.reference_reader import StoredReference
    from scvec.stores.store.store import Store

__all__ = ["ENGINES", "Engine", "check_engine", "encode_cells", "predict_cells"]

#: Engine other than ``local`` -> module with ``encode_cells`` and ``predict_cells``, imported on first use.
MODULES = {"ray": "scvec.engines.ray_engine"}
ENGINES = ("local", *MODULES)
#: Largest number of chunks that this process works on at once; each chunk needs memory.
AT_ONCE = 4
#: Number of chunks after which freed memory is returned to the system. Several threads fragment several
#: heaps, and fragments grow with the number of chunks.
TRIM_EVERY = 16


def check_engine(engine: str, ray_address: str | None = None) -> None:
    """Check engine and address before any file is read.

    Parameters
    ----------
    engine
        One of :data:`ENGINES`.
    ray_address
        ``HOST:PORT`` of a cluster's head, ``auto`` for the cluster of this node, or None.

    Raises
    ------
    InputError
        The engine does not exist, an address is given without ``ray``, the address is not valid, or Ray is
        not installed.
    NetworkError
        No cluster answers at the address.
    """
    check_choice("--engine", engine, ENGINES)
    if engine == "local":
        if ray_address is not None:
            what = "--ray-address needs --engine ray"
            raise InputError(what, f"--ray-address {ray_address}", "add --engine ray")
        return
    need_extra("ray", ["ray"], "--engine ray", "--engine ray")
    if ray_address is None or ray_address == "auto":
        return
    if ray_address.startswith("ray://"):
        what = "scvec does not support the protocol of Ray clients (ray://)"
        fix = "run it on a node of the cluster with --ray-address auto (docs/cluster.md)"
        raise InputError(what, f"--ray-address {ray_address}", fix, code="bad-address")
    from scvec.engines.ray_cluster import check_answers

    check_answers(ray_address, f"--ray-address {ray_address}")


@dataclass(frozen=True, slots=True)
class Engine:
    """Engine for encoding cells, with its settings.

    Attributes
    ----------
    name
        One of :data:`ENGINES`.
    ray_address
        Address of a cluster; None starts Ray on this machine.
    memory
        Memory of all workers together, in bytes or as text.
    device, llm, backbone
        Settings with which workers of a cluster rebuild an encoder that uses a model.
    exact, recall
        Search settings of an approximate index (`StoredReference.searcher`).
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
    """Return the (n, embed_dim) float32 vectors of all cells, in the order of the sources and their cells."""
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
    """Return the predictions for the cells of a query, in the order of the cells.

    Parameters
    ----------
    model
        Model of the reference.
    matched, genes
        The query, and the match of its genes.
    options
        Options of the query.
    reference
        The store and the reference that workers of a cluster open.
    fitted
        True if the model was fitted to the genes of the query.
    subset
        Rows of the reference that may be neighbours; None means all.
    progress
        Function that receives the progress.
    """
    from scvec.model.reference import Prediction

    parts: Iterator[Prediction]
    if options.engine in MODULES:
        of_query = import_module(MODULES[options.engine]).predict_cells
        whole = model if fitted else None
        parts = of_query(*reference, matched, genes, options, subset=subset, fitted=whole, progress=progress)
    else:
        parts = _predict_here(model, matched, genes, options, subset, progress)
    return Prediction.gather(parts, matched.n_obs)


def _predict_here(
    model: ReferenceModel,
    matched: MatchedSource,
    genes: GeneMap,
    options: QueryOptions,
    subset: Int64 | None,
    progress: Progress,
) -> Iterator[Prediction]:
    """Yield the predictions that this process computes, chunk by chunk in the order of the cells."""
    predict = partial(
        model.predict,
        method=options.method,
        n_neighbors=options.n_neighbors,
        subset=subset,
        coverage=options.coverage,
    )
    done, total = 0, matched.n_obs
    jobs = (partial(predict, chunk) for chunk in matched.chunks(genes))
    n_workers = 1 if model.takes_turns else min(n_cores(), AT_ONCE)
    with closing(side_by_side(jobs, n_workers)) as predictions:
        for number, prediction in enumerate(predictions, 1):
            done += len(prediction)
            yield prediction
            if number % TRIM_EVERY == 0:
                arrays.trim()
            progress("annotating cells", done, total)
