"""How far an approximate index must look for a recall, found out on vectors of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from scvec.base.errors import InputError
from scvec.base.types import Bool, Float32, Int64
from scvec.stores.index.flat import _faiss

if TYPE_CHECKING:
    from scvec.stores.index.ivf import IvfIndex

__all__ = [
    "FLAT_BELOW",
    "Effort",
    "IvfSettings",
    "can_approximate",
    "held_out",
    "kind_for",
    "places",
    "tuned",
]

#: Below so many vectors all are looked at: a matrix product over them takes no longer than the shortcuts.
FLAT_BELOW = 200_000
#: A flat index that would fill more of the memory than this share is approximated if it has this many rows.
MEMORY_SHARE, FEWEST = 0.5, 20_000
#: With fewer vectors, or shorter ones, there is nothing to train lists and codes on.
FEWEST_EVER, SHORTEST = 1_000, 8


def kind_for(n: int, dim: int, memory: int | None = None) -> str:
    """Return the kind of index for (n, dim) float32 vectors: ``flat``, or ``ivf`` for many.

    Parameters
    ----------
    memory
        Bytes that may be used; any number when None. A flat index is held in memory whole.
    """
    if not can_approximate(n, dim):
        return "flat"
    tight = memory is not None and 4 * n * dim > MEMORY_SHARE * memory
    return "ivf" if n >= FLAT_BELOW or (tight and n >= FEWEST) else "flat"


def can_approximate(n: int, dim: int) -> bool:
    """True if (n, dim) vectors are enough for an approximate index."""
    return n >= FEWEST_EVER and dim >= SHORTEST


class Effort(NamedTuple):
    """How far a search looks: lists opened at most, and candidates for each neighbour.

    A list stays closed if the squared distance to its centroid exceeds that to the nearest by more than
    ``reach``; None opens all ``nprobe``.
    """

    nprobe: int
    factor: int
    reach: float | None = None


@dataclass(frozen=True, kw_only=True)
class IvfSettings:
    """Settings of an `scvec.stores.index.ivf.IvfIndex`, and what was measured with them.

    Attributes
    ----------
    n_lists
        Lists there are.
    nprobe, factor, reach
        See `Effort`.
    target
        Recall (0-1) that was asked for.
    recall
        Recall measured on queries not used for tuning, against exact search: ``at_15`` and ``at_50`` for
        vectors of the index itself, each left out of its own search; ``unseen_15`` and ``unseen_50`` for
        vectors of batches that are left out of the search whole; without batches ``shifted_15`` and
        ``shifted_50`` for vectors moved, as far off as those of another sample may be.
    n_queries
        Queries of each kind that it was measured on.
    n_batches
        Batches that were left out, one after the other.
    curve
        ``(recall, nprobe, factor, reach)`` by cost: the lowest of the four recalls of the tuning queries.
    """

    n_lists: int
    nprobe: int
    factor: int
    target: float
    recall: Mapping[str, float] = field(default_factory=dict)
    n_queries: int = 0
    n_batches: int = 0
    curve: tuple[tuple[float, int, int, float | None], ...] = ()
    reach: float | None = None

    def __post_init__(self) -> None:
        all_efforts = [(self.nprobe, self.factor, self.reach), *(point[1:] for point in self.curve)]
        for nprobe, factor, reach in all_efforts:
            whole = all(isinstance(v, int) and not isinstance(v, bool) for v in (nprobe, factor))
            if not whole or not 1 <= nprobe <= self.n_lists or not 1 <= factor <= 1024:
                raise ValueError(f"not settings of an index: nprobe {nprobe!r}, factor {factor!r}")
            if reach is not None and not (isinstance(reach, float) and 0.0 <= reach < inf):
                raise ValueError(f"not settings of an index: reach {reach!r}")

    @staticmethod
    def lists_for(n: int) -> int:
        """Return how many lists ``n`` vectors are divided into: a power of two over the root of 2 ``n``."""
        lists = 1
        while lists * lists <= 2 * n:
            lists *= 2
        return lists

    def effort(self, recall: float) -> Effort:
        """Return the least effort that reached a recall when tuning; the most if none did.

        Raises
        ------
        InputError
            It is no share.
        """
        if not 0.0 < recall <= 1.0:
            raise InputError(
                f"recall is a share between 0 and 1, not {recall:g}",
                fix="give one such as 0.95",
                code="option-out-of-range",
            )
        for point in self.curve:
            if point[0] >= recall:
                return Effort(*point[1:])
        return Effort(*self.curve[-1][1:]) if self.curve else Effort(self.nprobe, self.factor, self.reach)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "recall": dict(self.recall), "curve": [list(point) for point in self.curve]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> IvfSettings:
        """Return the settings of :meth:`to_dict`; KeyError, TypeError or ValueError if they are none."""
        return cls(
            n_lists=int(values["n_lists"]),
            nprobe=values["nprobe"],
            factor=values["factor"],
            target=float(values["target"]),
            recall={str(k): float(v) for k, v in values["recall"].items()},
            n_queries=int(values["n_queries"]),
            n_batches=int(values["n_batches"]),
            curve=tuple((float(r), p, f, reach) for r, p, f, reach in values["curve"]),
            reach=values["reach"],
        )


#: Queries of each kind to tune on, and as many others to measure on.
N_QUERIES = 500
#: Numbers of neighbours at which recall is looked at.
AT = (15, 50)
FACTORS = (2, 3, 4, 6, 8, 12, 16, 24)
#: Batches that are left out, one after the other, at most; rows that one needs.
N_BATCHES, FEWEST = 8, 50
#: Share of the other rows that may lie in lists which stay closed, being those of the batch left out.
HARDLY = 0.001
#: Without batches queries of the second kind are moved by so much of the distance to the nearest of so many
#: vectors. Other donors' cells are about as hard at 50,000 (Baron et al. 2016), and harder at a million.
SHIFT, SPARSE = 1.5, 2000
#: Nanoseconds, by which settings are compared; only their proportions matter. Measured at 128 dimensions,
#: one core: opening a list, looking at one code, and one candidate (kept in order, fetched and compared).
LIST, CODE, CANDIDATE = 300.0, 1.1, 200.0
#: Shares of queries of the second kind for which all lists are near enough to be opened.
REACHES = (0.3, 0.6)
#: Where to stop: more would be exact search, or three steps (twice the lists) found hardly more.
ENOUGH, STEPS, HARDLY_MORE = 0.998, 3, 0.002


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


def tuned(index: IvfIndex, target: float, *, seed: int = 0, batches: Int64 | None = None) -> IvfSettings:
    """Return settings that reach ``target`` at the least cost, and the recall they have on other queries.

    There are queries of two kinds: vectors of the index, each left out of its own neighbours, and vectors as
    far off as those of another sample are. These are vectors of batches that are left out whole (`_LeftOut`)
    where ``batches`` (n,) numbers tell them, else vectors that are moved (`SHIFT`). The recall that counts is
    the lowest of both kinds at 15 and at 50 neighbours.
    """
    rng = np.random.default_rng(seed)
    n_each = min(N_QUERIES, index.n // 2)
    rows = rng.choice(index.n, 2 * n_each, replace=False)
    for_tuning, for_measuring = np.sort(rows[:n_each]), np.sort(rows[n_each:])
    left_out = [] if batches is None else _left_out(index, batches, seed=seed + 3)
    name = "unseen" if left_out else "shifted"
    far: list[_Queries]
    if left_out:
        far = [_Together([part.half(i) for part in left_out]) for i in (0, 1)]
    else:
        far = [_moved(index, for_tuning, seed=seed + 1), _moved(index, for_measuring, seed=seed + 2)]
    settings = index.settings
    curve = _curve(index, (_own(index, for_tuning), far[0]))
    settings = replace(settings, curve=tuple(_frontier(index, curve)))
    effort = settings.effort(target)
    measured = {
        f"{kind}_{k}": round(value, 4)
        for kind, queries in (("at", _own(index, for_measuring)), (name, far[1]))
        for k, value in zip(
            AT, _recalls(queries, effort.nprobe, effort.reach, [effort.factor])[0], strict=True
        )
    }
    return replace(
        settings,
        **effort._asdict(),
        n_queries=n_each,
        n_batches=len(left_out),
        recall=measured,
    )


class _Queries(Protocol):
    """Queries whose true neighbours are known."""

    def places(self, nprobe: int, reach: float | None, n_candidates: int) -> Int64:
        """Return (n, 50) where among the candidates each true neighbour is; n_candidates where it is not."""
        ...

    def further(self, nprobe: int) -> Float32:
        """Return (n, nprobe or fewer) by how much lists are further off than the nearest, ascending."""
        ...


class _Rows:
    """Queries made of rows of the index, which are no neighbours of themselves."""

    def __init__(self, index: IvfIndex, rows: Int64, queries: Float32) -> None:
        self._index, self._rows, self._queries = index, rows, queries
        near = index.exact().search(queries, min(AT[-1] + 1, index.n))
        self._truth = self._without_self(near.indices)

    def _without_self(self, found: Int64) -> Int64:
        """Return neighbours (n, m - 1) other than the row that the query was made of."""
        mine = found == self._rows[:, None]
        # Where it is not among them, the last goes instead.
        mine[~mine.any(axis=1), -1] = True
        others: Int64 = found[~mine].reshape(len(found), -1)
        return others

    def places(self, nprobe: int, reach: float | None, n_candidates: int) -> Int64:
        n = min(n_candidates + 1, self._index.n)
        found = self._index.candidates(self._queries, nprobe, n, reach=reach)
        return places(self._without_self(found), self._truth)

    def further(self, nprobe: int) -> Float32:
        _, distances = self._index.lists(self._index.codes.prepared(self._queries), nprobe)
        return np.asarray(distances - distances[:, :1], dtype=np.float32)


def _own(index: IvfIndex, rows: Int64) -> _Rows:
    """Return queries that are rows of the index."""
    return _Rows(index, rows, held_out(index.vectors(), rows, shift=0.0, seed=0))


def _moved(index: IvfIndex, rows: Int64, *, seed: int) -> _Rows:
    """Return queries that are rows of the index, moved."""
    own = held_out(index.vectors(), rows, shift=0.0, seed=seed)
    few = np.random.default_rng(seed).choice(index.n, min(SPARSE, index.n // 2), replace=False)
    sparse = index.exact().search(own, 2, subset=few)
    off = np.where(sparse.indices[:, 0] == rows, sparse.distances[:, 1], sparse.distances[:, 0])
    shift = SHIFT * float(np.sqrt(np.median(off.astype(np.float64))))
    return _Rows(index, rows, held_out(index.vectors(), rows, shift=shift, seed=seed))


class _LeftOut:
    """Queries of one batch, whose neighbours are those in the other batches.

    An index without the batch would have no lists for it alone. So lists that hold hardly any other row stay
    closed here, and of the others so many are opened as make the same share of all lists: neighbours of a new
    batch lie in lists of every batch, one more than here.
    """

    def __init__(self, index: IvfIndex, rows: Int64, mine: Bool, list_of: Int64) -> None:
        n_lists = index.settings.n_lists
        own = np.bincount(list_of[mine], minlength=n_lists)
        others = np.bincount(list_of[~mine], minlength=n_lists)
        order = np.argsort(-own / np.maximum(own + others, 1), kind="stable")
        lost = np.cumsum(others[order])
        alone = (lost <= HARDLY * lost[-1]) & (own[order] > others[order])
        closed = np.zeros(n_lists, dtype=bool)
        closed[order[alone]] = True
        self._index = index
        self._share = 1.0 - closed.mean()
        # FAISS does not keep the bits that the selector points to.
        self._bits = np.packbits(~mine, bitorder="little")
        self._queries = held_out(index.vectors(), rows, shift=0.0, seed=0)
        self._truth = index.exact().search(self._queries, AT[-1], subset=np.flatnonzero(~mine)).indices
        self._prepared = index.codes.prepared(self._queries)
        lists, distances = index.lists(self._prepared, n_lists)
        kept = ~closed[lists]
        self._lists = lists[kept].reshape(len(rows), -1)
        self._distances = distances[kept].reshape(len(rows), -1)

    def half(self, which: int) -> _LeftOut:
        """Return every other query, from the first or from the second."""
        part = copy(self)
        for name in ("_queries", "_prepared", "_truth", "_lists", "_distances"):
            setattr(part, name, np.ascontiguousarray(getattr(self, name)[which::2]))
        return part

    def _opened(self, nprobe: int) -> int:
        return max(1, round(nprobe * float(self._share)))

    def further(self, nprobe: int) -> Float32:
        distances = self._distances[:, : self._opened(nprobe)]
        return np.asarray(distances - distances[:, :1], dtype=np.float32)

    def places(self, nprobe: int, reach: float | None, n_candidates: int) -> Int64:
        opened = self._opened(nprobe)
        distances: Float32 = np.ascontiguousarray(self._distances[:, :opened])
        lists: Int64 = np.ascontiguousarray(
            self._index.codes.within(self._lists[:, :opened], distances, reach, 0)
        )
        selector = _faiss().IDSelectorBitmap(self._bits)
        n = min(n_candidates, self._index.n)
        return places(self._index.scan(self._prepared, lists, distances, n, selector), self._truth)


class _Together:
    """Queries of several batches."""

    def __init__(self, parts: Sequence[_LeftOut]) -> None:
        self._parts = parts

    def places(self, nprobe: int, reach: float | None, n_candidates: int) -> Int64:
        return np.concatenate([part.places(nprobe, reach, n_candidates) for part in self._parts])

    def further(self, nprobe: int) -> Float32:
        rows = [part.further(nprobe) for part in self._parts]
        most = max(row.shape[1] for row in rows)
        # A batch has fewer lists: that is as if the others were too far off.
        padded = [np.pad(r, ((0, 0), (0, most - r.shape[1])), constant_values=np.inf) for r in rows]
        return np.concatenate(padded)


def _left_out(index: IvfIndex, batches: Int64, *, seed: int) -> list[_LeftOut]:
    """Return queries of some batches, as many of each; none where no batch has enough cells beside it."""
    rng = np.random.default_rng(seed)
    sizes = np.bincount(batches)
    others = index.n - sizes
    fit = np.flatnonzero((sizes >= FEWEST) & (others >= max(4 * AT[-1], index.n // 4)))
    chosen = np.sort(rng.permutation(fit)[:N_BATCHES])
    list_of = index.codes.list_of()
    parts = []
    for number in chosen:
        mine = batches == number
        n = min(2 * -(-N_QUERIES // len(chosen)), int(sizes[number]))
        parts.append(_LeftOut(index, rng.choice(np.flatnonzero(mine), n, replace=False), mine, list_of))
    return parts


def _recalls(
    queries: _Queries, nprobe: int, reach: float | None, factors: Sequence[int]
) -> list[list[float]]:
    """Return per factor the recall at each of ``AT``."""
    where = queries.places(nprobe, reach, max(factors) * AT[-1])
    return [[float((where[:, :k] < factor * k).mean()) for k in AT] for factor in factors]


#: Lowest recall, lists opened on average, and the effort.
_Point = tuple[float, float, Effort]


def _curve(index: IvfIndex, kinds: Sequence[_Queries]) -> list[_Point]:
    """Return points of a grid.

    Queries that lie among the vectors need few lists; those of another sample need many, which are hardly
    further off than their nearest one. So lists further off than that stay closed, where as many queries of
    the second kind as `REACHES` says open all ``nprobe`` nevertheless.
    """
    points = []
    nprobe, bests = 1, [0.0] * STEPS
    while True:
        best = 0.0
        further = [queries.further(nprobe) for queries in kinds]
        last = further[-1][:, -1]
        last = last[np.isfinite(last)]
        reaches = np.quantile(last, REACHES).tolist() if nprobe > 1 and len(last) else []
        for reach in (None, *reaches):
            opened = float(
                np.mean([(f <= (np.inf if reach is None else reach)).sum(1).mean() for f in further])
            )
            of_kinds = [_recalls(queries, nprobe, reach, FACTORS) for queries in kinds]
            for i, factor in enumerate(FACTORS):
                lowest = min(min(recalls[i]) for recalls in of_kinds)
                points.append((round(lowest, 4), opened, Effort(nprobe, factor, reach)))
                best = max(best, lowest)
        if best >= ENOUGH or best < bests[-STEPS] + HARDLY_MORE or nprobe >= index.settings.n_lists:
            return points
        bests.append(best)
        nprobe = min(max(nprobe + 1, nprobe * 4 // 3), index.settings.n_lists)


def _frontier(index: IvfIndex, points: list[_Point]) -> list[tuple[float, int, int, float | None]]:
    """Return recall and effort of the points that no cheaper one equals, cheapest first."""

    def cost(point: _Point) -> float:
        _, opened, effort = point
        scanned = opened * (LIST + CODE * index.n / index.settings.n_lists)
        return scanned + CANDIDATE * effort.factor * AT[0]

    kept: list[tuple[float, int, int, float | None]] = []
    for point in sorted(points, key=lambda p: (cost(p), -p[0])):
        if not kept or point[0] > kept[-1][0]:
            kept.append((point[0], *point[2]))
    return kept
