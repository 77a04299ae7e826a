"""The reference cells that voted for a label, and where they come from."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.model.explanation import Voter
from scvec.model.storage import SOURCE_COLUMN

if TYPE_CHECKING:
    from scvec.base.types import Neighbors
    from scvec.stores.store.reference_reader import StoredReference

__all__ = ["files_of", "origins", "voters"]

Strings = npt.NDArray[Any]

#: Columns of obs that name the study and the donor of a cell, the likeliest first.
DATASET_COLUMNS = ("dataset", "dataset_id", "dataset_title", "study", "study_id")
DONOR_COLUMNS = ("donor", "donor_id", "individual", "patient", "subject", "sample", "sample_id", "batch")


def origins(stored: StoredReference) -> tuple[Strings, Strings]:
    """Return (n,) data set and (n,) donor of every reference cell; empty where nothing tells.

    A column of obs tells the data set, else the file; the batch key tells the donor, else a column of obs.
    """
    obs, meta = stored.obs, stored.meta
    batch = meta["options"].get("batch_key")

    def column(names: tuple[str, ...]) -> Strings | None:
        for name in names:
            if name in obs.columns:
                values = obs[name]
                return np.where(values.isna(), "", values.astype(str)).astype(object)
        return None

    dataset = column(DATASET_COLUMNS)
    donor = column((str(batch), *DONOR_COLUMNS) if batch else DONOR_COLUMNS)
    nothing = np.full(stored.n, "", dtype=object)
    return files_of(stored) if dataset is None else dataset, nothing if donor is None else donor


def files_of(stored: StoredReference) -> Strings:
    """Return (n,) the file that every reference cell came from; empty where nothing tells."""
    if SOURCE_COLUMN in stored.obs.columns:
        return stored.obs[SOURCE_COLUMN].astype(str).to_numpy(dtype=object)
    sources = stored.meta["sources"]
    sizes = [int(source["n_cells"]) for source in sources]
    if sum(sizes) != stored.n:  # cells joined or left before the files were noted
        return np.full(stored.n, "", dtype=object)
    names = [PurePath(str(source["name"])).name for source in sources]
    return np.repeat(np.array(names, dtype=object), sizes)


def voters(
    neighbors: Neighbors,
    codes: npt.NDArray[np.int64],
    classes: list[str],
    names: Strings,
    dataset: Strings,
    donor: Strings,
    *,
    single: bool,
) -> list[Voter]:
    """Return who voted: each neighbour of a single cell, nearest first; else the most votes first.

    Parameters
    ----------
    codes
        (n_reference,) int64 class numbers, -1 for none.
    names
        (n_reference,) names of the reference cells.
    """
    there = neighbors.indices >= 0
    rows, distances = neighbors.indices[there], np.sqrt(np.maximum(neighbors.distances[there], 0.0))
    label = np.array([*classes, ""], dtype=object)[codes[rows]]  # -1 takes the empty one at the end
    if single:
        return [
            Voter(
                cell=str(names[r]),
                label=str(of),
                dataset=str(dataset[r]),
                donor=str(donor[r]),
                n=1,
                distance=float(d),
            )
            for r, of, d in zip(rows, label, distances, strict=True)
        ]
    groups: dict[tuple[str, str, str], list[float]] = {}
    for r, of, d in zip(rows, label, distances, strict=True):
        groups.setdefault((str(of), str(dataset[r]), str(donor[r])), []).append(float(d))
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        Voter(cell="", label=of, dataset=data, donor=who, n=len(each), distance=float(np.mean(each)))
        for (of, data, who), each in ordered
    ]
