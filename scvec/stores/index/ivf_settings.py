"""How far an approximate index looks, and what that finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any, NamedTuple

from scvec.base.errors import InputError

__all__ = ["FLAT_BELOW", "Effort", "IvfSettings", "can_approximate", "kind_for"]

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
                f"recall is a share between 0 and 1, not {recall:g}", fix="give one such as 0.95"
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
