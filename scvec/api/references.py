"""A trained model as it is stored, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.annotate.calibration import Calibration
from scvec.annotate.head import Head
from scvec.annotate.linear import Linear
from scvec.annotate.model import ReferenceModel
from scvec.annotate.ontology import ClassOntology
from scvec.annotate.prototypes import Prototypes
from scvec.annotate.spread import Spread
from scvec.annotate.voices import Voices
from scvec.api.device import resolved_device
from scvec.api.encoder_parts import stored_parts
from scvec.encoders.registry import load_encoder
from scvec.errors import StoreError
from scvec.profiles import Profile
from scvec.stores.device_index import on_device

if TYPE_CHECKING:
    from scvec.stores.knowledge import KnowledgeBase
    from scvec.stores.stored import StoredReference

__all__ = ["CODE_COLUMN", "class_ontology", "load_model", "model_state"]

#: Column of a reference's obs table that holds the class number of each cell.
CODE_COLUMN = "_scvec_class"

Tensors = dict[str, npt.NDArray[Any]]


def model_state(model: ReferenceModel) -> tuple[Tensors, dict[str, Any]]:
    """Return arrays and JSON values of a model, without its index and labels."""
    encoder, head = model.voices.encoder, model.voices.head
    encoder_tensors, encoder_meta = encoder.state()
    head_tensors, head_meta = head.state()
    tensors = {
        **_prefixed("encoder.", encoder_tensors),
        **_prefixed("head.", head_tensors),
        "prototypes.centroids": model.voices.prototypes.centroids,
        **_prefixed("spread.", model.voices.spread.state()),
        "linear.W": model.voices.linear.W,
        "linear.b": model.voices.linear.b,
        **_prefixed("voices.", model.voices.linear.profile.state()),
    }
    meta = {
        "encoder": {"name": encoder.name, **encoder_meta},
        "head": head_meta,
        "calibration": model.calibration.to_dict(),
        "floor": model.floor,
    }
    return tensors, meta


def load_model(stored: StoredReference, *, device: str = "auto", llm: str | None = None) -> ReferenceModel:
    """Rebuild the model of a stored reference.

    Parameters
    ----------
    device
        Where its encoder computes, if that uses torch to encode.
    llm
        Where its language model lies now, if it has one and that was moved.

    Raises
    ------
    StoreError
        If its parts do not fit together, or a model that its encoder reads with is not there.
    """
    meta, tensors = stored.meta, stored.tensors
    try:
        model = meta["model"]
        parts = stored_parts(meta, device=device, llm=llm)
        name = model["encoder"]["name"]
        encoder = load_encoder(name, _under("encoder.", tensors), model["encoder"], parts=parts)
        head_tensors = _under("head.", tensors)
        profile = Profile.from_state(_under("voices.", tensors))
        voices = Voices(
            encoder,
            Head(head_tensors["W"], head_tensors["b"], model["head"]["activation"]),
            Prototypes(tensors["prototypes.centroids"], profile),
            Spread(**_under("spread.", tensors)),
            Linear(tensors["linear.W"], tensors["linear.b"], profile),
            on_device(stored.index, resolved_device(device)),
            stored.obs[CODE_COLUMN].to_numpy(dtype=np.int64),
        )
        if voices.n_classes != len(meta["classes"]) or encoder.embed_dim != stored.dim:
            raise ValueError("numbers of classes or dimensions differ")
        return ReferenceModel(voices, Calibration.from_dict(model["calibration"]), float(model["floor"]))
    except (KeyError, ValueError, TypeError) as error:
        raise StoreError(
            f"the parts of reference {stored.name!r} do not fit together ({error})",
            fix="ingest it again: scvec ingest cells",
        ) from error


def class_ontology(kb: KnowledgeBase, classes: list[str], known: Mapping[str, str]) -> ClassOntology:
    """Find the Cell Ontology term of each class by its label, a synonym, or what the data set says.

    Parameters
    ----------
    known
        Class -> term id, where the reference has a column of ids.
    """
    terms, names, lineage, depth = [], {}, {}, {}
    for label in classes:
        found = kb.cl_term(label) or kb.cl_term(f"{label} cell")
        term = known.get(label) or (found[0] if found else "")
        terms.append(term)
        if not term:
            continue
        lineage[term] = (term, *kb.cl_ancestors(term))
        for above in lineage[term]:
            if above not in depth:
                depth[above] = len(kb.cl_ancestors(above))
                names[above] = kb.cl_label(above)
    return ClassOntology(tuple(terms), names, lineage, depth)


def _prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: value for name, value in tensors.items()}


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
