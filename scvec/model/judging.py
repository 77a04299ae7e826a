"""From what the members predict to the answer that people get."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.arrays import blocks, code_type, coded, release
from scvec.base.types import Float32
from scvec.model.annotation import Annotation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scvec.base.results import Stages
    from scvec.ingest.cells.expression import ExpressionState
    from scvec.ingest.cells.source import CellSource
    from scvec.model.matching import MatchedSource
    from scvec.model.novelty import Shift
    from scvec.model.reference import Prediction, ReferenceModel
    from scvec.stores.store.reference_reader import StoredReference

__all__ = ["judged", "novel_notes", "provenance"]

#: Fraction of novel cells from which on the cause is hardly the cells.
MOSTLY_NOVEL = 0.8


def provenance(generation: int, stored: StoredReference, matched: MatchedSource) -> dict[str, Any]:
    """Return what an answer was made by: version, store generation, reference, space, genes."""
    from scvec import __version__
    from scvec.model.storage import species_of

    meta = stored.meta
    return {
        "scvec": __version__,
        "reference": stored.name,
        "reference_fingerprint": stored.fingerprint,
        "reference_species": " and ".join(species_of(meta)),
        "generation": generation,
        "space": meta["space"]["fingerprint"] if meta["space"] else "none",
        "backbone": meta["space"]["backbone"] if meta["space"] else "none",
        "encoder": meta["model"]["encoder"]["name"],
        "calibrated_on": meta["model"]["calibration"]["held_out"],
        "genes": matched.summary,
        "species": matched.match.species,
        "expression": matched.source.state.message,
    }


def judged(
    source: CellSource,
    stored: StoredReference,
    model: ReferenceModel,
    found: Prediction,
    share: float,
    parameters: dict[str, Any],
    stages: Stages,
) -> Annotation:
    """Return the answer for people: labels, status, and terms as broad as the answer is sure."""
    from scvec.celltypes.ontology import ClassOntology
    from scvec.model.status import STATUSES, status_codes

    classes = tuple(str(c) for c in stored.meta["classes"])
    best, confidence = _best(found.proba)
    low = found.n_detected < model.floor * share
    shift = _shift(model, found, ~low, parameters["novelty"])
    novelty = _novelty(model, found, shift, parameters["false_novel_rate"])
    parameters = {**parameters, "shift": shift.to_dict()}
    if shift.message:
        source.notes.append(shift.message)
    source.notes += novel_notes(float(np.mean(novelty > 0.5)), source.state, parameters)
    status = status_codes(confidence=confidence, novelty=novelty, n_labels=found.n_labels, low_quality=low)
    broad, ids = ClassOntology.from_dict(stored.meta["ontology"]).coded_broad(found.proba)
    # As categories and bytes, which the annotation takes for arrays of objects.
    texts: dict[str, Any] = {
        "cells": source.names,
        "label": coded(best, classes),
        "label_knn": coded(found.winners["knn"], classes),
        "label_head": coded(found.winners["head"], classes),
        "label_broad": broad,
        "cl_id": ids,
        "status": coded(status, STATUSES),
    }
    found.release()
    return Annotation(
        **texts,
        classes=classes,
        confidence=confidence,
        novelty=novelty,
        proba=found.proba,
        sets=found.sets,
        vectors=found.vectors,
        neighbors=found.neighbors,
        parameters=parameters,
        notes=list(dict.fromkeys(source.notes)),
        seconds=stages.seconds,
    )


def _shift(model: ReferenceModel, found: Prediction, usable: npt.NDArray[np.bool_], how: str) -> Shift:
    """Return what the cells of the query that are good enough have in common against the reference."""
    from scvec.model.novelty import Shift

    n_classes = model.members.n_classes
    if how == "absolute" or model.calibration.novelty is None:
        return Shift.none(n_classes)
    return Shift.estimate(found.signals[usable], found.given[usable], found.sure[usable], n_classes)


def _novelty(model: ReferenceModel, found: Prediction, shift: Shift, rate: float) -> Float32:
    """Return (n,) novelty, 0 to 1."""
    novelty = np.zeros(len(found), dtype=np.float32)
    judge = model.calibration.novelty
    if judge is not None:
        for rows in blocks(len(found)):
            relative = shift.relative(found.signals[rows], found.given[rows])
            novelty[rows] = judge.score(relative, rate=rate)
    return novelty


def novel_notes(share: float, state: ExpressionState, parameters: Mapping[str, Any]) -> list[str]:
    """Return a warning that names likely causes, the likeliest first, where nearly all cells are novel.

    Parameters
    ----------
    share
        Fraction (0-1) of the cells that are novel.
    state
        What the values were taken for.
    parameters
        Of the answer, with ``genes``, ``species``, ``reference_species``, ``values``.
    """
    from scvec.ingest.cells.values import in_words

    if share <= MOSTLY_NOVEL:
        return []
    taken = " and ".join(in_words(scale) for scale in state.scales)
    values = (
        f"values (taken as {taken}): --values"
        if parameters.get("values", "auto") == "auto"
        else f"--values {parameters['values']}"
    )
    species = (
        f"species (taken as {parameters['species']}, reference {parameters['reference_species']}): --species"
    )
    causes = [values, species, "cells of another tissue than the reference", "another platform"]
    if state.kind == "counts":
        causes = [*causes[1:], values]
    told = "; ".join(f"{n}) {cause}" for n, cause in enumerate(causes, 1))
    return [f"warning: {share:.0%} of the cells are novel. Likely causes, in order: {told}"]


def _best(proba: Float32) -> tuple[npt.NDArray[Any], Float32]:
    """Return the number of each cell's likeliest class, and its probability."""
    best = np.empty(len(proba), dtype=code_type(proba.shape[1]))
    confidence = np.empty(len(proba), dtype=np.float32)
    for rows in blocks(len(proba)):
        part = proba[rows]
        best[rows] = part.argmax(axis=1)
        confidence[rows] = part.max(axis=1)
        release(proba)
    return best, confidence
