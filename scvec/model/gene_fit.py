"""Cell spaces fitted to the genes that a query measured, and gene-based members beside stored vectors."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from scvec.base.errors import StoreError
from scvec.base.resources import n_cores
from scvec.base.types import Float32, Int64, Progress, no_progress
from scvec.encoders import Material, make_encoder, refits
from scvec.model.calibration import COVERAGE, LabelSets, calibration_record
from scvec.model.classifiers import log_softmax
from scvec.model.reference import Prediction, ReferenceModel
from scvec.model.storage import FACTOR, class_statistics, model_of, model_state, sample_of
from scvec.model.training import TrainingSample, class_tensors, read_sample, training_workers

if TYPE_CHECKING:
    from scvec.base.types import RefittedEncoder
    from scvec.model.matching import MatchedSource, ReferenceGenes
    from scvec.model.storage import Tensors
    from scvec.model.training import Labelled
    from scvec.stores.store.reference_reader import StoredReference

__all__ = [
    "FITS",
    "PREFIX",
    "GeneSide",
    "Joint",
    "bare",
    "fit_beside",
    "fit_of",
    "fit_state",
    "fitted_to",
    "gene_side",
    "keep_tensors",
    "kept_tensors",
    "rotation",
    "without_rows",
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


#: Prefix of the arrays of a reference that belong to its gene-based members.
PREFIX = "beside."
#: Smallest probability; smaller ones are replaced before the logarithm.
TINY = 1e-9


@dataclass(frozen=True)
class Joint:
    """Combination of the probabilities of two models.

    As for members of one model, it is the mean of the log probabilities with equal weights, times a factor.

    Attributes
    ----------
    sharpness
        The factor with the lowest log loss on held-out cells.
    sets
        Label sets of the joint probabilities.
    record
        Accuracy, macro-F1, calibration error, reliability and recalls of held-out cells.
    """

    sharpness: float
    sets: LabelSets
    record: Mapping[str, Any]

    @classmethod
    def fit(cls, one: Float32, other: Float32, labels: Int64) -> Joint:
        """Fit on the probabilities (n, n_classes) of held-out cells and their classes (n,)."""
        from scipy.optimize import minimize_scalar

        z, rows = _mean_log(one, other), np.arange(len(labels))

        def loss(factor: float) -> float:
            return float(-log_softmax(np.exp(factor) * z)[rows, labels].mean())

        sharpness = float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))
        proba = cls(sharpness, LabelSets.fit(one, labels), {}).proba(one, other)
        members = {"vectors": one, "genes": other}
        return cls(sharpness, LabelSets.fit(proba, labels), calibration_record(proba, labels, members))

    def proba(self, one: Float32, other: Float32) -> Float32:
        """Return (n, n_classes) float32 joint probabilities; classes that ``one`` excludes stay at zero."""
        found = np.where(one > 0, np.exp(log_softmax(self.sharpness * _mean_log(one, other))), 0.0)
        return np.asarray(found / found.sum(axis=1, keepdims=True), dtype=np.float32)

    def join(self, one: Prediction, other: Prediction, coverage: float | None) -> Prediction:
        """Return the predictions from vectors, combined with those from genes.

        Distances for novelty come from the vectors. They come from the genes if only the genes predict the
        joint label.
        """
        from scvec.base.arrays import blocks

        proba, signals = np.empty_like(one.proba), np.array(one.signals)
        n_labels = np.empty_like(one.n_labels)
        sets = None if coverage is None else np.empty(proba.shape, dtype=bool)
        for rows in blocks(len(one)):
            part = proba[rows] = self.proba(one.proba[rows], other.proba[rows])
            best = part.argmax(axis=1)
            by_genes = (best != one.given[rows]) & (best == other.given[rows])
            signals[rows][by_genes] = other.signals[rows][by_genes]
            n_labels[rows] = self.sets.sizes(part, COVERAGE)
            if sets is not None and coverage is not None:
                sets[rows] = self.sets.sets(part, coverage) & (one.proba[rows] > 0)
        given = proba.argmax(axis=1).astype(np.int32)
        sure = proba[np.arange(len(given)), given]
        return replace(
            one, proba=proba, signals=signals, given=given, sure=sure, n_labels=n_labels, sets=sets
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"sharpness": self.sharpness, "sets": self.sets.to_dict(), "record": dict(self.record)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Joint:
        """Rebuild from :meth:`to_dict`."""
        return cls(float(data["sharpness"]), LabelSets.from_dict(data["sets"]), data["record"])


def _mean_log(one: Float32, other: Float32) -> Any:
    return (np.log(np.maximum(one, TINY)) + np.log(np.maximum(other, TINY))).astype(np.float64) / 2


class GeneSide:
    """The classifiers on genes of a stored reference, with the attributes of a reference.

    Attributes
    ----------
    name, meta, tensors
        Those of a :class:`StoredReference` with a cell space of genes.
    joint
        Their combination with the classifiers on vectors.
    """

    def __init__(self, stored: StoredReference) -> None:
        self.name, self.dim = stored.name, stored.dim
        own: Mapping[str, Any] = stored.meta["beside"]
        by_genes = {"encoder": {"name": "discriminant"}}
        self.meta: dict[str, Any] = {**stored.meta, "model": by_genes, **own["meta"]}
        self.tensors: Tensors = {
            k.removeprefix(PREFIX): v for k, v in stored.tensors.items() if k.startswith(PREFIX)
        }
        self.joint = Joint.from_dict(own["calibration"])

    @cached_property
    def model(self) -> ReferenceModel:
        """The model over all genes of the reference.

        Raises
        ------
        StoreError
            If its parts do not fit together.
        """
        try:
            model = fit_of(self.tensors)
            if model.members.n_classes != len(self.meta["classes"]):
                raise ValueError("numbers of classes differ")
        except (KeyError, ValueError, TypeError) as error:
            raise StoreError(
                f"the gene-based members of reference {self.name!r} do not fit together ({error})",
                fix="ingest it again: scvec ingest cells",
            ) from error
        if self.meta.get("without_cells"):
            model.calibration = model.calibration.without_neighbors()
        return model


def gene_side(stored: StoredReference) -> GeneSide | None:
    """Return the gene-based members of a reference of vectors; None without them."""
    return GeneSide(stored) if "beside" in stored.meta else None


def fit_beside(
    labelled: Labelled,
    matched: list[MatchedSource],
    genes: ReferenceGenes,
    vectors: tuple[ReferenceModel, TrainingSample],
    *,
    memory: str | int | None,
    seed: int,
    progress: Progress,
) -> tuple[Tensors, dict[str, Any], list[str]]:
    """Train gene-based members on the cells that a model of vectors was trained on.

    Returns
    -------
    tensors, meta
        Their tensors and meta data in the reference.
    notes
        How well both do on held-out cells.
    """
    model, whole = vectors
    rows, _ = labelled.sample(memory, len(genes.chosen), seed, capped=True)
    rows = rows[np.isin(labelled.numbers[rows], whole.rows)]
    sample, _ = read_sample(labelled, rows, matched, genes.axis.maps, None, seed)
    at = np.searchsorted(whole.rows, sample.rows)
    # The folds of the vectors, so that the same cells are held out from both.
    sample = replace(sample, folds=whole.folds[at], held_out=whole.held_out, n_batches=whole.n_batches)
    made = ReferenceModel.fit(
        lambda cells, labels: make_encoder(
            "discriminant", Material(cells, labels, variability=genes.variability)
        ),
        sample,
        n_neighbors=min(15, max(1, len(sample.labels) // 2)),
        progress=progress,
        n_workers=training_workers(memory),
    )
    if model.held is None or made.held is None:
        return {}, {}, ["no cell could be held out: genes are not used beside the vectors"]
    of_vectors, of_genes = whole.rows[model.held.cells], sample.rows[made.held.cells]
    _, i, j = np.intersect1d(of_vectors, of_genes, return_indices=True)
    one, other = (
        m.calibration.ensemble.combine([s[k] for s in m.held.scores])  # type: ignore[union-attr]
        for m, k in ((model, i), (made, j))
    )
    joint = Joint.fit(one, other, model.held.labels[i])
    kept, of_sample = sample.state()
    tensors = fit_state(made) | class_tensors(sample) | {f"sample.{k}": v for k, v in kept.items()}
    tensors |= {f"{FACTOR}{species}": v for species, v in genes.axis.factors.items()}
    meta = {
        "species": genes.axis.species,
        "species_cells": dict(genes.axis.n_cells),
        "all_genes": genes.axis.gene_ids,
        "sample": of_sample,
    }
    scores = ", ".join(f"{k} {v:.3f}" for k, v in joint.record["members"].items())
    note = (
        f"genes are used beside the vectors ({len(genes.axis.gene_ids):,} genes): accuracy on held-out cells "
        f"{joint.record['accuracy']:.3f} ({scores})"
    )
    beside = {"meta": meta, "calibration": joint.to_dict()}
    return {PREFIX + k: v for k, v in tensors.items()}, beside, [note]


def without_rows(stored: StoredReference, deleted: Int64) -> Tensors:
    """Return the arrays of the gene-based members that change where rows of the reference are deleted."""
    side = gene_side(stored)
    if side is None:
        return {}
    sample = TrainingSample.from_state(
        {k.removeprefix("sample."): v for k, v in side.tensors.items() if k.startswith("sample.")},
        side.meta["sample"],
    )
    kept = ~np.isin(side.tensors["index.rows"], deleted)
    still = sample.without(deleted)
    found = {f"sample.{k}": v for k, v in still.state()[0].items()} | {
        "index.vectors": side.tensors["index.vectors"][kept],
        "index.labels": side.tensors["index.labels"][kept],
        "index.rows": still.rows,
    }
    return {PREFIX + k: np.ascontiguousarray(v) for k, v in found.items()}


def bare(tensors: Tensors, of_cells: Sequence[str]) -> Tensors:
    """Return the arrays of gene-based members without those of cells: the mean vectors of labels instead."""
    own = {k.removeprefix(PREFIX): v for k, v in tensors.items() if k.startswith(PREFIX)}
    if not own:
        return {}
    centers = np.ascontiguousarray(own["members.centers"], dtype=np.float32)
    numbers = np.arange(len(centers), dtype=np.int64)
    found = {k: v for k, v in own.items() if not k.startswith(tuple(of_cells))}
    found |= {"index.vectors": centers, "index.labels": numbers, "index.rows": numbers}
    return {PREFIX + k: v for k, v in found.items()}
