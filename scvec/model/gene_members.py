"""Gene-based members of a reference, beside the vectors of ``obsm`` that it stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from scvec.base.errors import StoreError
from scvec.base.types import Float32, Int64, Progress
from scvec.encoders import Material, make_encoder
from scvec.model.calibration import COVERAGE, LabelSets, calibration_record
from scvec.model.classifiers import log_softmax
from scvec.model.gene_fit import fit_of, fit_state
from scvec.model.reference import Prediction, ReferenceModel
from scvec.model.storage import FACTOR
from scvec.model.training import TrainingSample, class_tensors, read_sample, training_workers

if TYPE_CHECKING:
    from scvec.model.matching import MatchedSource, ReferenceGenes
    from scvec.model.storage import Tensors
    from scvec.model.training import Labelled
    from scvec.stores.store.reference_reader import StoredReference

__all__ = ["PREFIX", "GeneSide", "Joint", "bare", "fit_beside", "gene_side", "without_rows"]

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
