"""Texts of many cells in little memory: labels as numbers into a few texts, names as one run of bytes.

An array of objects takes eight bytes a cell for each label, and 70 for a name. What is here takes one or two,
and 8 beside the name itself; the array is made when somebody wants it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Coded", "Given", "Packed", "TextAttribute", "blocks", "code_type", "holds_texts", "texts_of"]

T = TypeVar("T")
Strings = npt.NDArray[np.object_]

#: Cells whose names are objects at a time while they are written.
BLOCK_ROWS = 2**16


def blocks(n: int, size: int = BLOCK_ROWS) -> Iterator[slice]:
    """Yield slices of at most ``size`` that cover ``n`` rows."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def code_type(n_texts: int) -> np.dtype[Any]:
    """Return the smallest signed type of numbers below ``n_texts``."""
    return np.dtype(next(t for t in (np.int8, np.int16, np.int32) if n_texts <= np.iinfo(t).max + 1))


class Given:
    """Texts as they were given: an array."""

    def __init__(self, values: Strings) -> None:
        self.values = values

    def counts(self) -> dict[str, int]:
        """Return how many cells have each text, most first, then by the alphabet."""
        return _most_first(Counter(self.values.tolist()))

    def equal(self, text: str) -> npt.NDArray[np.bool_]:
        """Return (n,) which cells have a text."""
        return np.asarray(self.values == text, dtype=bool)

    def category(self) -> pd.Categorical[Any]:
        """Return the texts as pandas makes categories of them: those that occur, by the alphabet."""
        import pandas as pd

        return pd.Categorical(self.values)


class Coded:
    """Texts of n cells, each one of a few.

    Parameters
    ----------
    codes
        (n,) numbers into ``texts``, whole and not negative.
    texts
        What the numbers stand for; several may be the same.
    """

    def __init__(self, codes: npt.NDArray[Any], texts: Any) -> None:
        self.texts = np.array([str(t) for t in texts], dtype=object)
        self.codes = np.asarray(codes).astype(code_type(len(self.texts)), copy=False)

    def __len__(self) -> int:
        return len(self.codes)

    def to_array(self) -> Strings:
        """Return (n,) strings, as objects: cells share those that are the same."""
        return np.asarray(self.texts[self.codes])

    def counts(self) -> dict[str, int]:
        """Return how many cells have each text, as :meth:`Given.counts`."""
        found: Counter[str] = Counter()
        for text, n in zip(self.texts, np.bincount(self.codes, minlength=len(self.texts)), strict=True):
            if n:
                found[text] += int(n)
        return _most_first(found)

    def equal(self, text: str) -> npt.NDArray[np.bool_]:
        """Return (n,) which cells have a text."""
        alike = np.array([t == text for t in self.texts], dtype=bool)
        return np.asarray(alike[self.codes])

    def category(self) -> pd.Categorical[Any]:
        """Return what pandas makes of :meth:`to_array`, with no array made for it."""
        import pandas as pd

        there = np.flatnonzero(np.bincount(self.codes, minlength=len(self.texts)))
        few = pd.Categorical(self.texts[there])
        number = np.zeros(len(self.texts), dtype=few.codes.dtype)
        number[there] = few.codes
        return pd.Categorical.from_codes(number[self.codes], dtype=few.dtype)


class Packed:
    """Names of n cells, in UTF-8 one behind the other.

    Parameters
    ----------
    values
        (n,) strings.
    """

    def __init__(self, values: Any) -> None:
        import pyarrow as pa

        given = np.asarray(values, dtype=object)
        if given.ndim != 1:
            raise ValueError(f"names of shape {given.shape}")
        self._values: Any = given
        try:
            # Not of Arrow's own pool, which gives nothing back.
            self._values = pa.array(given, pa.large_string(), memory_pool=pa.system_memory_pool())
        except (UnicodeError, pa.ArrowException):
            return  # half a surrogate pair has no UTF-8: such names stay objects

    @classmethod
    def gather(cls, parts: Iterable[Any]) -> Packed:
        """Return the names of parts as one; each is let go once it is packed."""
        import pyarrow as pa

        found = [cls(part)._values for part in parts]
        packed = cls([])
        if any(isinstance(values, np.ndarray) for values in found):
            packed._values = np.concatenate([np.asarray(values, dtype=object) for values in found])
        elif found:
            packed._values = pa.concat_arrays(found, memory_pool=pa.system_memory_pool())
        return packed

    def __len__(self) -> int:
        return len(self._values)

    def all_differ(self) -> bool:
        """Return whether no two names are the same."""
        import pandas as pd

        if isinstance(self._values, np.ndarray):
            return len(set(self._values)) == len(self)
        # Names that are the same have the same hash; a table of all names would take ten times as much.
        hashes = np.empty(len(self), dtype=np.uint64)
        for rows in blocks(len(self)):
            hashes[rows] = pd.util.hash_array(self.part(rows), categorize=False)
        hashes.sort()
        return not (hashes[1:] == hashes[:-1]).any() or len(set(self.to_array())) == len(self)

    def __getitem__(self, row: int) -> str:
        value = self._values[int(row)]
        return str(value.as_py() if hasattr(value, "as_py") else value)

    def part(self, rows: slice) -> Strings:
        """Return the names of some rows as objects."""
        values = self._values[rows]
        if isinstance(values, np.ndarray):
            return values
        return np.asarray(values.to_numpy(zero_copy_only=False), dtype=object)

    def to_array(self) -> Strings:
        """Return (n,) strings, as objects."""
        return np.array(self.part(slice(None)))


class TextAttribute:
    """An attribute that is an array of objects to whoever looks at it, and compact until somebody does.

    What is put into it stays in ``vars(instance)`` under its name; the array that is made of it takes its
    place, so that it is made once and what is changed in it is kept.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        held = vars(instance)[self._name]
        if isinstance(held, (Coded, Packed)):
            held = vars(instance)[self._name] = held.to_array()
        return held

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[self._name] = value


def holds_texts(*names: str) -> Callable[[type[T]], type[T]]:
    """Make attributes of a dataclass :class:`TextAttribute`; above ``@dataclass``.

    Not as values of its fields: those would be taken for defaults.
    """

    def changed(owner: type[T]) -> type[T]:
        for name in names:
            setattr(owner, name, TextAttribute(name))
        return owner

    return changed


def texts_of(instance: Any, name: str) -> Given | Coded:
    """Return what a :class:`TextAttribute` of labels holds, and make no array."""
    held = vars(instance)[name]
    return held if isinstance(held, Coded) else Given(np.asarray(held))


def _most_first(found: Counter[str]) -> dict[str, int]:
    return dict(sorted(found.items(), key=lambda one: (-one[1], one[0])))
