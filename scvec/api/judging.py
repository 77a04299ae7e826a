"""From what the voices predict to the answer that people get."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scvec.annotate.annotation import Annotation

if TYPE_CHECKING:
    from scvec.annotate.model import Prediction, ReferenceModel
    from scvec.api.matching import MatchedSource
    from scvec.api.stages import Stages
    from scvec.ingest.cells import CellSource
    from scvec.stores.stored import StoredReference

__all__ = ["judged", "provenance"]


def provenance(generation: int, stored: StoredReference, matched: MatchedSource) -> dict[str, Any]:
    """Return what an answer was made by: version, store generation, reference, space, genes."""
    from scvec import __version__
    from scvec.api.references import species_of

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
    from scvec.annotate.ontology import ClassOntology
    from scvec.annotate.status import statuses

    # Objects, not fixed widths: a million cells share a few labels.
    classes = np.array(stored.meta["classes"], dtype=object)
    best = found.proba.argmax(axis=1)
    knn, head = (found.winners[v] for v in ("knn", "head"))
    confidence = found.proba[np.arange(len(best)), best].astype(np.float32)
    low = found.n_detected < model.floor * share
    status = statuses(confidence=confidence, novelty=found.novelty, n_labels=found.n_labels, low_quality=low)
    found.release()
    broad, ids = ClassOntology.from_dict(stored.meta["ontology"]).broad(found.proba)
    return Annotation(
        cells=np.asarray(source.obs.index, dtype=object),
        classes=tuple(str(c) for c in classes),
        label=classes[best],
        label_knn=classes[knn],
        label_head=classes[head],
        label_broad=broad,
        cl_id=ids,
        status=status,
        confidence=confidence,
        novelty=found.novelty,
        proba=found.proba,
        sets=found.sets,
        vectors=found.vectors,
        neighbors=found.neighbors,
        parameters=parameters,
        notes=list(dict.fromkeys(source.notes)),
        seconds=stages.seconds,
    )
