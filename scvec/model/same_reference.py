"""The store and the reference that cells were annotated by, found again from what the annotation says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.errors import InputError, StoreError

if TYPE_CHECKING:
    from scvec.stores.store.reference_reader import StoredReference
    from scvec.stores.store.store import Store

__all__ = ["generation_of", "same_reference"]


def generation_of(store: Path | str, parameters: Mapping[str, Any]) -> Store:
    """Return the store as it was when the cells were annotated; as it is now where that is gone."""
    from scvec.stores.store.store import Store

    opened = Store(store)
    number = int(parameters["generation"])
    if number == opened.generation.number:
        return opened
    try:
        return opened.at(number)
    except InputError:
        return opened


def same_reference(store: Store, parameters: Mapping[str, Any]) -> StoredReference:
    """Return the reference that cells were annotated by.

    Raises
    ------
    StoreError
        If the store has none of that name, or another one.
    """
    name, number = str(parameters["reference"]), int(parameters["generation"])
    fix = "give the --store that annotated the file, or annotate the cells again: scvec query"
    if name not in store.generation.manifest.references:
        what = f"the cells were annotated by reference {name!r}, which this store does not have"
        raise StoreError(what, str(store.path), fix)
    stored = store.reference(name)
    if not stored.is_the_one(str(parameters["reference_fingerprint"])):
        what = (
            f"the cells were annotated by reference {name!r} of store generation {number}; the one here, of "
            f"generation {store.generation.number}, is another"
        )
        raise StoreError(what, str(store.path), fix)
    return stored
