"""A trained model as it is stored, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.api.device import resolved_device
from scvec.api.encoder_parts import stored_parts
from scvec.encoders.registry import load_encoder
from scvec.errors import StoreError
from scvec.model.calibration import Calibration
from scvec.model.head import Head
from scvec.model.linear import Linear
from scvec.model.model import ReferenceModel
from scvec.model.prototypes import Prototypes
from scvec.model.spread import Spread
from scvec.model.voices import Voices
from scvec.profiles import Profile
from scvec.stores.device_index import on_device

if TYPE_CHECKING:
    from scvec.protocols import VectorIndex
    from scvec.stores.stored import StoredReference

__all__ = [
    "CODE_COLUMN",
    "FACTOR",
    "SOURCE_COLUMN",
    "SPECIES_COLUMN",
    "genes_of",
    "load_model",
    "model_state",
    "species_of",
]

#: Column of a reference's obs table that holds the class number of each cell.
CODE_COLUMN = "_scvec_class"
#: Column that holds the species of each cell where a reference has two, for ``--where``.
SPECIES_COLUMN = "scvec_species"
#: Column that holds the file that each cell came from, once cells joined or left.
SOURCE_COLUMN = "scvec_source"
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


def load_model(
    stored: StoredReference,
    *,
    device: str = "auto",
    llm: str | None = None,
    index: VectorIndex | None = None,
    exact: bool = False,
    recall: float | None = None,
) -> ReferenceModel:
    """Rebuild the model of a stored reference.

    Parameters
    ----------
    device
        Where its encoder computes, if that uses torch to encode.
    llm
        Where its language model lies now, if it has one and that was moved.
    index
        Searched instead of the stored one, which is then not read.
    exact, recall
        How an approximate index searches (`StoredReference.searcher`).

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
            Prototypes(
                tensors["prototypes.centroids"],
                Profile.from_state(_under("prototypes.", tensors)),
                tensors["prototypes.variability"],
            ),
            Spread(**_under("spread.", tensors)),
            Linear(tensors["linear.W"], tensors["linear.b"], profile),
            on_device(stored.searcher(exact=exact, recall=recall), resolved_device(device))
            if index is None
            else index,
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


def _prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: value for name, value in tensors.items()}


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
