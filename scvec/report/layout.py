"""Where cells lie on a plane: a UMAP of the reference, with the query brought into it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.types import Progress, no_progress

if TYPE_CHECKING:
    from scvec.base.types import Float32, Int64

__all__ = ["lay_out", "need_umap"]

#: Reference cells that the map is made of; more take minutes and show no more.
MAX_REFERENCE = 8_000
#: Query cells that are brought into the map by UMAP itself. The others take the mean place of their nearest
#: neighbours among the cells of the map, which looks the same and takes a hundredth of the time.
MAX_TRANSFORMED = 20_000
NEIGHBORS = 15
BLOCK = 5_000


def need_umap() -> None:
    """Raise where umap-learn is not installed.

    Raises
    ------
    InputError
        It is not; the message names the extra.
    """
    from importlib.util import find_spec

    missing = [
        name for name, module in (("umap-learn", "umap"), ("jinja2", "jinja2")) if not find_spec(module)
    ]
    if missing:
        raise InputError(
            f"a report needs {' and '.join(missing)}, which is not installed",
            "--report",
            "pip install 'scvec[report]', or leave --report out",
            code="extra-not-installed",
        )


def lay_out(
    reference: Float32, query: Float32, *, seed: int = 0, progress: Progress = no_progress
) -> tuple[Int64, Float32, Float32]:
    """Return the places of reference and query cells.

    UMAP (McInnes et al. 2018, arXiv:1802.03426) of the reference's vectors, or of a sample of them; the cells
    of the query are then brought into it, so that they change nothing in the map. A seed gives the same map
    on one machine with one version of the library.

    Parameters
    ----------
    reference, query
        (n, dim) and (m, dim) float32 vectors.

    Returns
    -------
    rows
        (k,) rows of ``reference`` that the map holds, ascending.
    places, query_places
        (k, 2) and (m, 2) float32.
    """
    rng = np.random.default_rng(seed)
    n = len(reference)
    rows = np.arange(n) if n <= MAX_REFERENCE else np.sort(rng.choice(n, MAX_REFERENCE, replace=False))
    known = np.ascontiguousarray(reference[rows], dtype=np.float32)
    progress("drawing the map", 0, None)
    if len(known) < 10:
        # Too few for a graph of neighbours: the two axes along which they differ most.
        centre = known.mean(axis=0)
        axes = np.linalg.svd(known - centre, full_matrices=False)[2][:2].T
        flat = [np.pad((v - centre) @ axes, ((0, 0), (0, 2 - axes.shape[1]))) for v in (known, query)]
        return rows, flat[0].astype(np.float32), flat[1].astype(np.float32)
    chosen = np.arange(len(query))
    if len(query) > MAX_TRANSFORMED:
        chosen = np.sort(rng.choice(len(query), MAX_TRANSFORMED, replace=False))
    model, places = _fit(known, seed)
    found = np.zeros((len(query), 2), dtype=np.float32)
    for start in range(0, len(chosen), BLOCK):
        part = chosen[start : start + BLOCK]
        found[part] = _transform(model, query[part])
        progress("drawing the map", start + len(part), len(query))
    if len(chosen) < len(query):
        rest = np.setdiff1d(np.arange(len(query)), chosen)
        found[rest] = _between(
            query[rest], np.concatenate([known, query[chosen]]), np.concatenate([places, found[chosen]]), rng
        )
    return rows, places, found


def _fit(vectors: Float32, seed: int) -> tuple[Any, Float32]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on one job where there is a seed, and on graphs in several pieces
        from umap import UMAP

        model = UMAP(
            n_neighbors=min(NEIGHBORS, len(vectors) - 1),
            min_dist=0.3,
            random_state=seed,
            n_jobs=1,
            init="pca",
            low_memory=False,
        ).fit(vectors)
    return model, np.asarray(model.embedding_, dtype=np.float32)


def _transform(model: Any, vectors: Float32) -> npt.NDArray[np.float32]:
    if len(vectors) == 0:
        return np.zeros((0, 2), dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(model.transform(np.ascontiguousarray(vectors)), dtype=np.float32)


def _between(
    vectors: Float32, known: Float32, places: Float32, rng: np.random.Generator, n_neighbors: int = 5
) -> Float32:
    """Return (n, 2) the mean place of each vector's neighbours, nearer ones more, a little shaken."""
    from scvec.stores.index import build_index

    near = build_index(np.ascontiguousarray(known, dtype=np.float32)).search(
        np.ascontiguousarray(vectors, dtype=np.float32), n_neighbors
    )
    weights = 1.0 / (np.sqrt(near.distances) + 1e-3)
    # Neighbours on both sides of a gap would put a cell into it: those far from the nearest do not count.
    at = places[near.indices]
    gap = np.linalg.norm(at - at[:, :1], axis=2)
    weights = np.where(gap < 1.0, weights, 0.0)
    mean = (at * weights[:, :, None]).sum(axis=1) / weights.sum(axis=1)[:, None]
    return np.asarray(mean + rng.normal(0.0, 0.05, mean.shape), dtype=np.float32)
