"""A trained model as it is stored, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.annotate.calibration import Calibration
from scvec.annotate.head import Head
from scvec.annotate.linear import Linear
from scvec.annotate.model import ReferenceModel
from scvec.annotate.prototypes import Prototypes
from scvec.annotate.spread import Spread
from scvec.annotate.voices import Voices
from scvec.encoders.registry import load_encoder
from scvec.errors import StoreError
from scvec.profiles import Profile

if TYPE_CHECKING:
    from scvec.stores.stored import StoredReference

__all__ = ["CODE_COLUMN", "load_model", "model_state"]

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
            Prototypes(tensors["prototypes.centroids"], profile),
            Spread(**_under("spread.", tensors)),
            Linear(tensors["linear.W"], tensors["linear.b"], profile),
            stored.index,
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


def _prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: value for name, value in tensors.items()}


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
