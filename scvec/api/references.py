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
from scvec.encoders.registry import load_encoder
from scvec.errors import StoreError
from scvec.profiles import Profile

if TYPE_CHECKING:
    from scvec.stores.knowledge import KnowledgeBase
    from scvec.stores.stored import StoredReference

__all__ = [
    "CODE_COLUMN",
    "FACTOR",
    "SPECIES_COLUMN",
    "class_ontology",
    "genes_of",
    "load_model",
    "model_state",
    "species_of",
]

#: Column of a reference's obs table that holds the class number of each cell.
CODE_COLUMN = "_scvec_class"
#: Column that holds the species of each cell where a reference has two, for ``--where``.
SPECIES_COLUMN = "scvec_species"
#: Prefix of the tensors that hold what the genes of another species are multiplied by.
FACTOR = "axis.factor."

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
        "prototypes.variability": model.voices.prototypes.variability,
        **_prefixed("prototypes.", model.voices.prototypes.profile.state()),
        "voices.genes": model.voices.genes,
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


def genes_of(stored: StoredReference) -> list[str]:
    """Return the ids of all genes of a reference, those that only its prototypes use among them.

    Raises
    ------
    StoreError
        If an earlier version made it.
    """
    genes = stored.meta.get("all_genes")
    if not isinstance(genes, list):
        raise StoreError(
            f"reference {stored.name!r} was made by an earlier version, with fewer genes than are needed now",
            fix="ingest it again: scvec ingest cells",
        )
    return genes


def load_model(stored: StoredReference) -> ReferenceModel:
    """Rebuild the model of a stored reference.

    Raises
    ------
    StoreError
        If its parts do not fit together.
    """
    meta, tensors = stored.meta, stored.tensors
    try:
        model = meta["model"]
        encoder = load_encoder(model["encoder"]["name"], _under("encoder.", tensors), model["encoder"])
        head_tensors = _under("head.", tensors)
        profile = Profile.from_state(_under("voices.", tensors))
        voices = Voices(
            encoder,
            Head(head_tensors["W"], head_tensors["b"], model["head"]["activation"]),
            Prototypes(
                tensors["prototypes.centroids"],
                Profile.from_state(_under("prototypes.", tensors)),
                tensors["prototypes.variability"],
            ),
            Spread(**_under("spread.", tensors)),
            Linear(tensors["linear.W"], tensors["linear.b"], profile),
            stored.index,
            stored.obs[CODE_COLUMN].to_numpy(dtype=np.int64),
            tensors["voices.genes"],
        )
        if [meta["all_genes"][i] for i in voices.genes] != meta["genes"]:
            raise ValueError("the genes of the encoder are others")
        if voices.n_classes != len(meta["classes"]) or encoder.embed_dim != stored.dim:
            raise ValueError("numbers of classes or dimensions differ")
        return ReferenceModel(voices, Calibration.from_dict(model["calibration"]), float(model["floor"]))
    except (KeyError, ValueError, TypeError) as error:
        raise StoreError(
            f"the parts of reference {stored.name!r} do not fit together ({error})",
            fix="ingest it again: scvec ingest cells",
        ) from error


def species_of(meta: Mapping[str, Any]) -> dict[str, int]:
    """Return species -> cells of a reference, that whose ids its genes have first.

    References of earlier versions are of one species and say no number: it is 0 there.
    """
    return {meta["species"]: 0, **meta.get("species_cells", {})}


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
