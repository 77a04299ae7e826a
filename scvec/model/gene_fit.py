"""Cell spaces fitted to the genes that a query measured, and their cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from scvec.base.errors import StoreError
from scvec.base.resources import n_cores
from scvec.base.types import Float32, Progress, no_progress
from scvec.encoders import Material, make_encoder, refits
from scvec.model.reference import ReferenceModel
from scvec.model.storage import class_statistics, model_of, model_state, sample_of

if TYPE_CHECKING:
    from scvec.base.types import RefittedEncoder
    from scvec.model.gene_members import GeneSide
    from scvec.model.storage import Tensors
    from scvec.stores.store.reference_reader import StoredReference

__all__ = [
    "FITS",
    "fit_of",
    "fit_state",
    "fitted_to",
    "keep_tensors",
    "kept_tensors",
    "rotation",
]

T = TypeVar("T")

#: Folder of a store with the cached fits, and the maps of reports. `scvec compact` empties it.
FITS = "fits"
#: Largest size of all cached fits, in bytes. The least recently used are deleted first.
MAX_BYTES = 1 << 30
#: If the measured genes have at least this fraction of the expression, the fit of the ingest is used.
ENOUGH = 0.95
#: Version of the method. It changes when the same cells and genes would give another fit.
RECIPE = "discriminant 1"
#: Name of the array with the JSON values of a fit.
STATE = "state.json"


def fitted_to(
    folder: Path,
    stored: StoredReference | GeneSide,
    model: ReferenceModel,
    measured: npt.NDArray[np.bool_],
    *,
    progress: Progress = no_progress,
) -> tuple[ReferenceModel, str]:
    """Return the model fitted to the genes that a query measured, and notes.

    The model of the ingest is returned if its encoder does not refit, or if the query measured every gene of
    the cell space and nearly all of the expression. Otherwise the training cells in the store are used to fit
    cell space, classifiers, calibration and novelty again.

    Parameters
    ----------
    folder
        Folder of the store.
    measured
        (n_genes,) bool over all genes of the reference.
    """
    encoder = model.members.encoder
    if not refits(encoder) or _serves(encoder, stored.tensors, measured):
        return model, ""
    if stored.meta.get("without_cells"):
        return model, (
            "the reference holds no cells, so its cell space cannot be fitted to the measured genes; "
            "missing genes get the values of an average cell"
        )
    place = folder / FITS
    name = fit_name(stored, measured)
    fitted = kept_tensors(place, name, fit_of)
    sample = sample_of(stored)
    if fitted is None:
        progress("fitting the cell space to the measured genes", 0, None)
        made = ReferenceModel.fit(
            lambda cells, labels: make_encoder(
                encoder.name, Material(cells, labels, variability=encoder.variability)
            ),
            sample,
            measured,
            n_neighbors=min(15, max(1, len(sample.labels) // 2)),
            progress=progress,
            n_workers=n_cores(),
        )
        kept = fit_state(made)
        keep_tensors(place, name, kept)
        fitted = fit_of(kept)
    return fitted, (
        f"the cell space was fitted to the {int(measured.sum()):,} measured genes, from "
        f"{len(sample.labels):,} cells of the reference ({len(fitted.members.vector_genes):,} genes used)"
    )


def rotation(
    stored: StoredReference | GeneSide, model: ReferenceModel, base: ReferenceModel
) -> Float32 | None:
    """Return the (dim, base dim) rotation from the cell space of one fit to that of another; None if equal.

    It minimizes the distances between the training cells in both spaces (orthogonal Procrustes).
    """
    if model is base:
        return None

    def of(one: ReferenceModel) -> npt.NDArray[np.float64]:
        index: Any = one.members.index
        rows = np.asarray(stored.tensors["sample.rows"])
        # Of gene-based members, only training cells are indexed.
        whole: Any = getattr(stored, "vectors", None)
        found = whole[rows] if one.members.rows is None else index.vectors()
        return np.asarray(found, dtype=np.float64)

    left, _, right = np.linalg.svd(of(model).T @ of(base), full_matrices=False)
    return np.asarray(left @ right, dtype=np.float32)


def _serves(encoder: RefittedEncoder, tensors: Tensors, measured: npt.NDArray[np.bool_]) -> bool:
    expression = class_statistics(tensors)[0].mean(axis=0)
    enough = float(expression[measured].sum()) >= ENOUGH * float(expression.sum())
    return enough and bool(measured[encoder.genes].all())


def fit_name(stored: StoredReference | GeneSide, measured: npt.NDArray[np.bool_]) -> str:
    """Return the file name of a fit: a digest of the training cells and of the genes."""
    digest = hashlib.sha256(RECIPE.encode())
    for name in ("data", "indices", "indptr", "labels", "rows", "folds"):
        digest.update(np.ascontiguousarray(stored.tensors[f"sample.{name}"]).tobytes())
    digest.update(json.dumps(stored.meta["sample"], sort_keys=True).encode())
    digest.update(np.packbits(measured).tobytes())
    return digest.hexdigest()[:32]


def fit_state(model: ReferenceModel) -> Tensors:
    """Return a fit as arrays, including its index and labels."""
    members = model.members
    tensors, state = model_state(model)
    rows = np.arange(len(members.labels)) if members.rows is None else members.rows
    text = json.dumps(state, sort_keys=True).encode()
    return {
        **tensors,
        # A copy, because a view of the memory of an index becomes invalid with the index.
        "index.vectors": np.array(members.index.vectors()),
        "index.labels": members.labels,
        "index.rows": rows,
        STATE: np.frombuffer(text, dtype=np.uint8),
    }


def fit_of(tensors: Tensors) -> ReferenceModel:
    """Rebuild a fit from :func:`fit_state`."""
    from scvec.stores.index import build_index

    state: dict[str, Any] = json.loads(tensors[STATE].tobytes().decode())
    index = build_index(tensors["index.vectors"])
    return model_of(
        tensors,
        state,
        index,
        tensors["index.labels"].astype(np.int64),
        rows=tensors["index.rows"].astype(np.int64),
    )


def kept_tensors(place: Path, name: str, read: Callable[[Tensors], T]) -> T | None:
    """Return the object that ``read`` makes of the arrays cached under a name.

    Returns None if they are missing or damaged, since they can be computed again.
    """
    from scvec.stores.store.files import read_tensors

    for path in sorted(place.glob(f"{name}-*.safetensors")):
        try:
            if place.is_symlink() or path.is_symlink():
                continue
            found = path.read_bytes()
            if hashlib.sha256(found).hexdigest()[:32] != path.stem.removeprefix(f"{name}-"):
                continue
            found_again = read(read_tensors(path))
            with contextlib.suppress(OSError):
                os.utime(path)
            return found_again
        except (OSError, StoreError, KeyError, ValueError, TypeError):
            continue
    return None


def keep_tensors(place: Path, name: str, tensors: Tensors) -> None:
    """Cache arrays under a name of 32 hex digits, with the digest of their bytes.

    Does nothing if the store is read-only.
    """
    from scvec.stores.store.files import write_tensors

    try:
        place.mkdir(exist_ok=True)
        if place.is_symlink():
            return
        # A unique name per process. The file gets the default permissions of new files.
        path = place / f"{uuid.uuid4().hex}.tmp"
        try:
            write_tensors(path, tensors)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
            # Atomic: readers see the whole file or none, even if a process is killed.
            os.replace(path, place / f"{name}-{digest}.safetensors")
        finally:
            path.unlink(missing_ok=True)
        _bound(place)
    except OSError:
        return


def _bound(place: Path) -> None:
    """Delete the least recently used fits until the rest has at most ``MAX_BYTES``."""
    files = sorted(((p.stat().st_mtime, p.stat().st_size, p) for p in place.iterdir()), reverse=True)
    total = 0
    for _, size, path in files:
        total += size
        if total > MAX_BYTES:
            path.unlink(missing_ok=True)
