"""How far an approximate index must look for a recall, found out on vectors of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from scvec.stores.ivf_settings import IvfSettings
from scvec.types import Float32, Int64

if TYPE_CHECKING:
    from scvec.stores.ivf_index import IvfIndex

__all__ = ["held_out", "places", "tuned"]

#: Queries of each kind to tune on, and as many others to measure on.
N_QUERIES = 500
#: Numbers of neighbours at which recall is looked at.
AT = (15, 50)
FACTORS = (3, 4, 6, 8, 12, 16)
#: Queries of the second kind are moved by so much of the distance to the nearest of so many vectors. Other
#: donors' cells are about as hard at 50,000 cells (Baron et al. 2016), and harder still at a million.
SHIFT, SPARSE = 1.5, 2000
#: Nanoseconds, by which settings are compared; only their proportions matter. Measured at 128 dimensions,
#: one core: opening a list, looking at one code, and one candidate (kept in order, fetched and compared).
LIST, CODE, CANDIDATE = 5500.0, 0.7, 170.0
#: Where to stop: more would be exact search.
ENOUGH = 0.998


def held_out(vectors: Float32, rows: Int64, *, shift: float, seed: int) -> Float32:
    """Return (n, dim) float32 queries: rows, moved by ``shift`` as from one random vector towards another.

    A cell of another sample lies off the cells of the reference; a cell of the reference lies among them.
    Samples differ in the directions in which cells do, where codes are coarsest: queries moved in any
    direction promised more for other donors than was found.
    """
    queries = np.array(vectors[rows], dtype=np.float32)
    if shift > 0:
        ends = np.random.default_rng(seed).integers(0, len(vectors), (2, len(rows)))
        moved = vectors[ends[0]].astype(np.float64) - vectors[ends[1]]
        moved *= shift / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12)
        queries += moved.astype(np.float32)
    return queries


def places(found: Int64, truth: Int64) -> Int64:
    """Return (n, k) where in ``found`` (n, m) each of ``truth`` (n, k) is; m where it is not."""
    n, m = found.shape
    # One sorted list of all pairs (query, row): a search in it is a search in each query's own.
    width = int(max(found.max(initial=0), truth.max(initial=0))) + 2
    first = np.arange(n, dtype=np.int64)[:, None] * width
    keys, wanted = (found + 1 + first).ravel(), (truth + 1 + first).ravel()
    order = np.argsort(keys, kind="stable")
    at = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
    hit = (keys[order][at] == wanted) & (truth.ravel() >= 0)
    found_at: Int64 = np.where(hit, order[at] % m, m).reshape(truth.shape)
    return found_at


def tuned(index: IvfIndex, target: float, *, seed: int = 0) -> IvfSettings:
    """Return settings that reach ``target`` at the least cost, and the recall they have on other queries.

    A query is a vector of the index that is left out of its own neighbours; half of the queries are moved
    on top (`SHIFT`), as vectors of another sample are further off than those of the same. The recall that
    counts is the lowest of both kinds at 15 and at 50 neighbours.
    """
    rng = np.random.default_rng(seed)
    n_each = min(N_QUERIES, index.n // 2)
    rows = rng.choice(index.n, 2 * n_each, replace=False)
    for_tuning, for_measuring = np.sort(rows[:n_each]), np.sort(rows[n_each:])
    settings = index.settings
    curve = _curve(index, _Queries(index, for_tuning, seed=seed + 1))
    settings = replace(settings, curve=tuple(_frontier(index, curve)))
    nprobe, factor = settings.effort(target)
    settings = replace(settings, nprobe=nprobe, factor=factor, n_queries=n_each)
    other = _Queries(index, for_measuring, seed=seed + 2)
    names = ("at", "shifted")
    measured = {
        f"{name}_{k}": round(value, 4)
        for name, values in zip(names, other.recalls(index, nprobe, [factor])[0], strict=True)
        for k, value in zip(AT, values, strict=True)
    }
    return replace(settings, recall=measured)


class _Queries:
    """Queries of both kinds, and their true neighbours."""

    def __init__(self, index: IvfIndex, rows: Int64, *, seed: int) -> None:
        self.rows = rows
        exact = index.exact()
        own = held_out(index.vectors(), rows, shift=0.0, seed=seed)
        near = exact.search(own, min(AT[-1] + 1, index.n))
        few = np.random.default_rng(seed).choice(index.n, min(SPARSE, index.n // 2), replace=False)
        sparse = exact.search(own, 2, subset=few)
        off = np.where(sparse.indices[:, 0] == rows, sparse.distances[:, 1], sparse.distances[:, 0])
        shift = SHIFT * float(np.sqrt(np.median(off.astype(np.float64))))
        moved = held_out(index.vectors(), rows, shift=shift, seed=seed)
        far = exact.search(moved, min(AT[-1] + 1, index.n))
        self.kinds = ((own, self._without_self(near.indices)), (moved, self._without_self(far.indices)))

    def _without_self(self, found: Int64) -> Int64:
        """Return neighbours (n, m - 1) other than the row that the query was made of."""
        mine = found == self.rows[:, None]
        # Where it is not among them, the last goes instead.
        mine[~mine.any(axis=1), -1] = True
        others: Int64 = found[~mine].reshape(len(found), -1)
        return others

    def recalls(self, index: IvfIndex, nprobe: int, factors: Sequence[int]) -> list[list[list[float]]]:
        """Return per factor and kind the recall at each of ``AT``."""
        n = min(max(factors) * AT[-1] + 1, index.n)
        where = [
            places(self._without_self(index.candidates(queries, nprobe, n)), truth)
            for queries, truth in self.kinds
        ]
        return [[[float((at[:, :k] < factor * k).mean()) for k in AT] for at in where] for factor in factors]


def _curve(index: IvfIndex, queries: _Queries) -> list[tuple[float, int, int]]:
    """Return (lowest recall, nprobe, factor) over a grid."""
    points = []
    nprobe = 1
    while True:
        best = 0.0
        for factor, each in zip(FACTORS, queries.recalls(index, nprobe, FACTORS), strict=True):
            lowest = min(min(kind) for kind in each)
            points.append((round(lowest, 4), nprobe, factor))
            best = max(best, lowest)
        if best >= ENOUGH or nprobe >= index.settings.n_lists:
            return points
        nprobe = min(max(nprobe + 1, nprobe * 4 // 3), index.settings.n_lists)


def _frontier(index: IvfIndex, points: list[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
    """Return the points that no cheaper one equals, cheapest first."""

    def cost(point: tuple[float, int, int]) -> float:
        _, nprobe, factor = point
        opened = nprobe * (LIST + CODE * index.n / index.settings.n_lists)
        return opened + CANDIDATE * factor * AT[0]

    kept: list[tuple[float, int, int]] = []
    for point in sorted(points, key=lambda p: (cost(p), -p[0])):
        if not kept or point[0] > kept[-1][0]:
            kept.append(point)
    return kept
