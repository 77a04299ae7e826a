"""Choice of the index of a reference, its segments, and notes about its recall."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import check_choice, check_fraction
from scvec.base.types import Float32, Int64
from scvec.stores.index import index_class, index_kinds
from scvec.stores.index.ivf import FLAT_BELOW
from scvec.stores.store.reference_reader import SAME_AS

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from scvec.stores.store.reference_reader import StoredReference
    from scvec.stores.store.store import Store
    from scvec.stores.store.transaction import Transaction

__all__ = [
    "changed_meta",
    "check_index",
    "counts_of",
    "grows_apart",
    "index_facts",
    "index_kind",
    "merge_segments",
    "put_cells",
    "put_whole",
    "shrinks_in_place",
]

#: Largest number of segments of a reference. Every query searches each segment.
MOST_SEGMENTS = 9
#: Largest fraction of deleted rows. Deleted rows stay in the index, and searches skip them.
MOST_DELETED = 0.25


def grows_apart(stored: StoredReference, n_new: int) -> bool:
    """Return whether appended cells get their own segment; if not, all segments are merged.

    Appended segments are searched exactly. Together they may hold as many cells as the first segment, and at
    most as many as a flat index may have.
    """
    first = stored.n + stored.n_deleted - stored.n_appended
    later = stored.n_appended + n_new
    flat_too_large = stored.index_kind != "ivf" and first < FLAT_BELOW <= first + later
    return stored.n_segments < MOST_SEGMENTS and later <= min(first, FLAT_BELOW) and not flat_too_large


def shrinks_in_place(stored: StoredReference, n_leaving: int) -> bool:
    """Return whether deleted rows stay in the index and are skipped; if not, all segments are merged."""
    return stored.n_deleted + n_leaving <= MOST_DELETED * (stored.n + stored.n_deleted)


def merge_segments(opened: Store, name: str) -> bool:
    """Merge the segments of a reference into one file and one index; return False if there is only one."""
    if opened.reference(name).is_whole:
        return False
    with opened.begin("compact", {"reference": name}) as txn:
        stored = opened.reference(name)
        # File names change but not the cells, so earlier annotations and exports stay valid.
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
    """Store a reference again with other cells. The new index has the settings of the first one.

    Returns notes for the user about the index.
    """

    settings = stored.meta.get("index") or {}
    kind = stored.index_kind if stored.index_kind == "ivf" or stored.n >= FLAT_BELOW else "auto"
    how = (kind, float(settings.get("target", 0.95)), memory)
    meta = {**meta, "counts": counts_of(stored, obs)}
    return put_cells(txn, stored.name, vectors, meta, tensors or stored.tensors, obs, how)


def changed_meta(stored: StoredReference, **changes: Any) -> dict[str, Any]:
    """Return the JSON values of a reference with changed cells or labels."""
    return {**{name: value for name, value in stored.meta.items() if name != SAME_AS}, **changes}


def counts_of(stored: StoredReference, obs: pd.DataFrame) -> dict[str, int]:
    """Return the number of cells of each label of a reference, the most frequent first."""
    from scvec.model.storage import CODE_COLUMN

    codes, classes = obs[CODE_COLUMN].to_numpy(dtype=np.int64), stored.meta["classes"]
    numbers = np.bincount(codes[codes >= 0], minlength=len(classes))
    return {classes[i]: int(numbers[i]) for i in np.argsort(-numbers, kind="stable")}


def check_index(index: str, recall: float) -> None:
    """Raise InputError if there is no such index, or the recall is not a fraction between 0 and 1."""
    check_choice("--index", index, ("auto", *index_kinds()))
    check_fraction("--recall", recall)


def index_kind(index: str, vectors: Float32, memory: str | int | None) -> str:
    """Return the kind of index for vectors (n, dim): the given kind, or for ``auto`` one by their size.

    An approximate index cannot be trained on few or short vectors; they get an exact one.
    """
    from scvec.ingest.cells.source import parse_memory
    from scvec.stores.index.ivf import can_approximate, kind_for

    n, dim = vectors.shape
    if index == "auto":
        return kind_for(n, dim, None if memory is None else parse_memory(memory))
    return index if index_class(index).is_exact or can_approximate(n, dim) else "flat"


def put_cells(
    txn: Transaction,
    name: str,
    vectors: Float32,
    meta: Mapping[str, Any],
    tensors: Mapping[str, npt.NDArray[Any]],
    obs: pd.DataFrame,
    how: tuple[str, float, str | int | None],
) -> list[str]:
    """Store a reference with a suitable index; return notes for the user about the index.

    Parameters
    ----------
    meta, tensors, obs
        As in `Transaction.put_reference`.
    how
        Requested index and recall, and the memory limit.
    """
    from scvec.stores.index import build_index
    from scvec.stores.index.ivf import FEWEST_EVER

    index, recall, memory = how
    kind = index_kind(index, vectors, memory)
    batches = _batches(meta, obs) if kind == "ivf" else None
    made = build_index(vectors, kind, recall=recall, batches=batches)
    txn.put_reference(name, meta=meta, tensors=tensors, obs=obs, vectors=vectors, index=made)
    stored = txn.reference(name)
    if index == "ivf" and kind == "flat":
        few = "cells" if len(vectors) < FEWEST_EVER else f"numbers in a cell vector ({vectors.shape[1]})"
        return [f"there are too few {few} for an approximate index, so neighbours are searched exactly"]
    if stored is None or kind != "ivf":
        return []
    settings = stored.meta["index"]
    lowest = min(settings["recall"].values())
    found = settings["recall"]
    if "unseen_15" in found:
        far = f"{found['unseen_15']:.1%} for cells of unseen batches"
    else:
        far = f"{found['shifted_15']:.1%} for cells with a simulated shift between samples"
    notes = [
        f"the index is approximate: it finds {found['at_15']:.1%} of the 15 nearest cells ({far}); "
        "query --exact compares all cells"
    ]
    if lowest < settings["target"] - 0.01:
        notes.append(
            f"warning: the index does not reach the requested recall of {settings['target']:g}; "
            "--index flat and query --exact do"
        )
    return notes


def index_facts(stored: StoredReference) -> dict[str, Any]:
    """Return the kind of the index of a reference and, if it is approximate, its recall."""
    settings = stored.meta.get("index")
    parts = {"appended": stored.n_appended, "deleted": stored.n_deleted, "segments": stored.n_segments}
    later = {} if stored.is_whole else parts
    if stored.index_kind != "ivf" or not isinstance(settings, dict):
        return {"kind": stored.index_kind, "search": "exact", **later}
    shown = ("n_lists", "nprobe", "reach", "factor", "target", "recall", "n_queries", "n_batches")
    return {
        "kind": "ivf",
        "search": "approximate",
        **{k: settings[k] for k in shown if k in settings},
        **later,
    }


def _batches(meta: Mapping[str, Any], obs: pd.DataFrame) -> Int64 | None:
    """Return (n,) batch numbers of the cells, from the batch key or else the files; None if unknown."""
    import numpy as np

    key = meta.get("options", {}).get("batch_key")
    if key is not None and key in obs.columns:
        return np.unique(obs[key].astype(str).to_numpy(dtype=str), return_inverse=True)[1].astype(np.int64)
    sizes = [int(source["n_cells"]) for source in meta.get("sources", ())]
    return np.repeat(np.arange(len(sizes)), sizes) if sum(sizes) == len(obs) else None
