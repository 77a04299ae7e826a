"""Putting a reference together again whose cells came and went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.stores.index.ivf_settings import FLAT_BELOW
from scvec.stores.store.reference_reader import SAME_AS

if TYPE_CHECKING:
    import pandas as pd

    from scvec.base.types import Float32
    from scvec.stores.store.reference_reader import StoredReference
    from scvec.stores.store.store import Store
    from scvec.stores.store.transaction import Transaction

__all__ = ["changed_meta", "counts_of", "grows_apart", "merge_layers", "put_whole", "shrinks_in_place"]

#: Layers that a reference may have: each is searched for every query.
MOST_LAYERS = 8
#: Share of the rows that may be gone: they are held and passed over in every search.
MOST_GONE = 0.25


def grows_apart(stored: StoredReference, n_new: int) -> bool:
    """True if cells that join are kept in a layer of their own, False if all is put together again.

    Layers are searched exactly. They may hold as many cells as those that the reference was made of, and no
    more than a flat index is made of.
    """
    first = stored.n + stored.n_gone - stored.n_later
    later = stored.n_later + n_new
    flat_too_large = stored.index_kind != "ivf" and first < FLAT_BELOW <= first + later
    return stored.n_layers < MOST_LAYERS and later <= min(first, FLAT_BELOW) and not flat_too_large


def shrinks_in_place(stored: StoredReference, n_leaving: int) -> bool:
    """True if rows that leave are passed over from now on, False if all is put together again."""
    return stored.n_gone + n_leaving <= MOST_GONE * (stored.n + stored.n_gone)


def merge_layers(opened: Store, name: str) -> bool:
    """Put the vectors of a reference together into one file and one index; False if they are."""
    if opened.reference(name).is_whole:
        return False
    with opened.begin("compact", {"reference": name}) as txn:
        stored = opened.reference(name)
        # Its files get other names: what was annotated or exported before is of the same cells all the same.
        meta = {**stored.meta, SAME_AS: [*stored.same_as, stored.fingerprint, stored.cells_fingerprint]}
        put_whole(txn, stored, meta, stored.obs, np.ascontiguousarray(stored.vectors), None)
        txn.commit()
    return True


def put_whole(
    txn: Transaction,
    stored: StoredReference,
    meta: Mapping[str, Any],
    obs: pd.DataFrame,
    vectors: Float32,
    memory: str | int | None,
    *,
    tensors: Mapping[str, npt.NDArray[Any]] | None = None,
) -> list[str]:
    """Store a reference anew with other cells, its index made as its first one was asked for.

    Returns what a user should know of the index.
    """
    from scvec.model.cell_index import put_cells

    settings = stored.meta.get("index") or {}
    kind = stored.index_kind if stored.index_kind == "ivf" or stored.n >= FLAT_BELOW else "auto"
    how = (kind, float(settings.get("target", 0.95)), memory)
    meta = {**meta, "counts": counts_of(stored, obs)}
    return put_cells(txn, stored.name, vectors, meta, tensors or stored.tensors, obs, how)


def changed_meta(stored: StoredReference, **changes: Any) -> dict[str, Any]:
    """Return the JSON values of a reference whose cells or labels become others."""
    return {**{name: value for name, value in stored.meta.items() if name != SAME_AS}, **changes}


def counts_of(stored: StoredReference, obs: pd.DataFrame) -> dict[str, int]:
    """Return the number of cells of each label of a reference, the most frequent first."""
    from scvec.model.storage import CODE_COLUMN

    codes, classes = obs[CODE_COLUMN].to_numpy(dtype=np.int64), stored.meta["classes"]
    numbers = np.bincount(codes[codes >= 0], minlength=len(classes))
    return {classes[i]: int(numbers[i]) for i in np.argsort(-numbers, kind="stable")}
