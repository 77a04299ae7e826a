"""Conversion between a trained model and its stored form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.backbones import load_backbone, parse_spec
from scvec.base.errors import InputError, StoreError
from scvec.base.resources import resolved_device
from scvec.base.types import CellChunk
from scvec.encoders import EncoderKind, Models, encoder_kind, load_encoder
from scvec.model.calibration import Calibration
from scvec.model.classifiers import Head, Members
from scvec.model.novelty import Spread
from scvec.model.reference import ReferenceModel
from scvec.model.training import CODE_COLUMN, SPECIES_COLUMN, TrainingSample
from scvec.stores.index.flat import on_device

if TYPE_CHECKING:
    from scvec.backbones import BackboneSpec
    from scvec.base.types import Backbone, CellEncoder, Float32, LanguageModel
    from scvec.model.gene_members import GeneSide
    from scvec.stores.index.distances import Index
    from scvec.stores.store.reference_reader import StoredReference

__all__ = [
    "CODE_COLUMN",
    "FACTOR",
    "N_PROBES",
    "SOURCE_COLUMN",
    "SPECIES_COLUMN",
    "class_statistics",
    "encoder_of",
    "genes_of",
    "load_model",
    "model_of",
    "model_state",
    "prepared",
    "probe_cells",
    "probe_tensors",
    "sample_of",
    "species_of",
    "stored_models",
]

N_PROBES = 16


def probe_tensors(chunk: CellChunk, rows: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    """Return arrays with cells (n, n_genes) and their row numbers in the reference, to verify the encoder."""
    X = chunk.X
    return {
        "probe.rows": rows,
        "probe.data": X.data,
        "probe.indices": X.indices.astype(np.int32),
        "probe.indptr": X.indptr.astype(np.int64),
    }


def probe_cells(
    tensors: dict[str, npt.NDArray[Any]], n_genes: int
) -> tuple[CellChunk, npt.NDArray[np.int64]]:
    """Return the cells of :func:`probe_tensors` and their row numbers."""
    import scipy.sparse as sp

    rows = tensors["probe.rows"]
    X = sp.csr_matrix(
        (tensors["probe.data"], tensors["probe.indices"], tensors["probe.indptr"]), shape=(len(rows), n_genes)
    )
    return CellChunk(X, np.ones(n_genes, dtype=bool)), rows


#: Column with the source file of each cell, added when cells are appended or deleted.
SOURCE_COLUMN = "scvec_source"
#: Prefix of the tensors with the factors on the genes of another species.
FACTOR = "axis.factor."

Tensors = dict[str, npt.NDArray[Any]]


def model_state(model: ReferenceModel) -> tuple[Tensors, dict[str, Any]]:
    """Return the arrays and JSON values of a model, without its index and labels."""
    members = model.members
    encoder_tensors, encoder_meta = members.encoder.state()
    head_tensors, head_meta = members.head.state()
    tensors = {
        **_prefixed("encoder.", encoder_tensors),
        **_prefixed("head.", head_tensors),
        **_prefixed("spread.", members.spread.state()),
        "members.centers": members.centers,
        "members.genes": members.genes,
    }
    meta = {
        "encoder": {"name": members.encoder.name, **encoder_meta},
        "head": head_meta,
        "calibration": model.calibration.to_dict(),
        "floor": model.floor,
    }
    return tensors, meta


def model_of(
    tensors: Tensors,
    state: Mapping[str, Any],
    index: Index,
    labels: npt.NDArray[np.int64],
    *,
    rows: npt.NDArray[np.int64] | None = None,
    models: Models | None = None,
) -> ReferenceModel:
    """Rebuild a model from :func:`model_state`.

    Raises
    ------
    ValueError, KeyError, TypeError
        If parts are missing or do not fit together.
    """
    encoder = load_encoder(
        state["encoder"]["name"], _under("encoder.", tensors), dict(state["encoder"]), models
    )
    members = Members(
        encoder,
        Head(tensors["head.W"], tensors["head.b"], state["head"]["activation"]),
        tensors["members.centers"],
        Spread(**_under("spread.", tensors)),
        index,
        labels,
        tensors["members.genes"].astype(np.int64),
        rows,
    )
    return ReferenceModel(members, Calibration.from_dict(state["calibration"]), float(state["floor"]))


def class_statistics(tensors: Tensors) -> tuple[Float32, Float32]:
    """Return class means (n_classes, n_genes), zeros for a class without cells, and spreads (n_genes,)."""
    return tensors["classes.means"], tensors["classes.spread"]


def encoder_of(stored: StoredReference | GeneSide) -> CellEncoder:
    """Return the encoder of a reference whose encoder uses no model.

    Raises
    ------
    StoreError
        If its parts do not fit together.
    """
    try:
        state = stored.meta["model"]["encoder"]
        return load_encoder(state["name"], _under("encoder.", stored.tensors), dict(state))
    except (KeyError, ValueError, TypeError) as error:
        raise _misfit(stored, error) from error


def sample_of(stored: StoredReference | GeneSide) -> TrainingSample:
    """Return the training cells of a reference.

    Raises
    ------
    StoreError
        If they are missing or do not fit together.
    """
    try:
        return TrainingSample.from_state(_under("sample.", stored.tensors), stored.meta["sample"])
    except (KeyError, ValueError, TypeError) as error:
        raise _misfit(stored, error) from error


def genes_of(stored: StoredReference | GeneSide) -> list[str]:
    """Return the ids of all genes of a reference."""
    genes: list[str] = stored.meta["all_genes"]
    return genes


def load_model(
    stored: StoredReference,
    *,
    device: str = "auto",
    llm: str | None = None,
    index: Index | None = None,
    exact: bool = False,
    recall: float | None = None,
) -> ReferenceModel:
    """Rebuild the model of a stored reference.

    Parameters
    ----------
    device
        Device of the encoder, if it uses torch.
    llm
        Path of its language model, if it has one that moved since the ingest.
    index
        Index to search instead of the stored one, which is then not read.
    exact, recall
        Search settings of an approximate index (`StoredReference.searcher`).

    Raises
    ------
    StoreError
        If its parts do not fit together, or a model of its encoder is missing.
    """
    meta, tensors = stored.meta, stored.tensors
    try:
        state = meta["model"]
        if index is None:
            index = on_device(stored.searcher(exact=exact, recall=recall), resolved_device(device))
        labels = stored.obs[CODE_COLUMN].to_numpy(dtype=np.int64)
        models = stored_models(meta, device=device, llm=llm)
        model = model_of(tensors, state, index, labels, models=models)
        if meta.get("without_cells"):
            model.calibration = model.calibration.without_neighbors()
        members = model.members
        if [meta["all_genes"][i] for i in members.genes] != meta["genes"]:
            raise ValueError("the genes of the encoder differ")
        if members.n_classes != len(meta["classes"]) or members.encoder.embed_dim != stored.dim:
            raise ValueError("numbers of classes or dimensions differ")
        return model
    except (KeyError, ValueError, TypeError) as error:
        raise _misfit(stored, error) from error


def _misfit(stored: StoredReference | GeneSide, error: Exception) -> StoreError:
    return StoreError(
        f"the parts of reference {stored.name!r} do not fit together ({error})",
        fix="ingest it again: scvec ingest cells",
    )


def species_of(meta: Mapping[str, Any]) -> dict[str, int]:
    """Return species -> number of cells of a reference. The species of its gene ids comes first."""
    return {meta["species"]: 0, **meta.get("species_cells", {})}


def _prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: value for name, value in tensors.items()}


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def prepared(
    kind: EncoderKind,
    options: Mapping[str, Any],
    spec: BackboneSpec,
    *,
    device: str,
    max_cost: float | None = None,
) -> Any:
    """Load the models of an encoder and check its options. Returns None if it needs nothing but cells.

    Parameters
    ----------
    options
        Options of the ingest that only some encoders have; None for an option that was not given.

    Raises
    ------
    InputError
        If an option does not fit the encoder, or a model is missing.
    """

    def backbone() -> Backbone:
        if not spec.needs_text:
            what = f"the encoder {kind.name!r} needs a backbone that reads text, not {spec.base}"
            raise InputError(what, "--backbone", "give minilm, st:FOLDER or hf:FOLDER")
        if spec.is_remote:
            raise InputError(
                f"the encoder {kind.name!r} would send every cell to a server, thousands of texts an ingest",
                f"--backbone {spec.base}",
                "give a model on this machine: minilm, st:FOLDER or hf:FOLDER",
            )
        return load_backbone(spec, device=device, max_cost=max_cost)

    def language_model(name: str, precision: str | None) -> LanguageModel:
        from scvec.backbones.hf import load_language_model, resolved

        return load_language_model(resolved(name), device=resolved_device(device), precision=precision)

    # Looking for a GPU may load torch, which most encoders do not need.
    here = resolved_device(device) if kind.uses_gpu else "cpu"
    return kind.prepare(Models(backbone, language_model, here), options)


def stored_models(meta: Mapping[str, Any], *, device: str = "auto", llm: str | None = None) -> Models | None:
    """Return loaders for the models of a stored reference; None if its encoder uses no model.

    Parameters
    ----------
    meta
        JSON values of the reference.
    llm
        Path or name of the language model now; None if it did not move since the ingest.

    Raises
    ------
    InputError
        If ``llm`` is given and the reference has no language model.
    StoreError
        Raised by the loaders if the model of the reference is missing.
    """
    state = meta["model"]["encoder"]
    if llm is not None and not state.get("llm"):
        raise InputError("the reference was made without a language model", f"--llm {llm}", "leave it out")
    kind = encoder_kind(state["name"])
    if not kind.reads_models:
        return None

    def backbone() -> Backbone:
        try:
            return load_backbone(parse_spec(meta["options"]["backbone"]), device=device)
        except InputError as error:
            what = f"the text model of the reference cannot be loaded: {error.what}"
            raise StoreError(
                what, error.where, "put it back, or ingest the cells again", code="model-not-found"
            ) from error

    def language_model(name: str, precision: str | None) -> LanguageModel:
        from scvec.backbones.hf import load_language_model, resolved

        try:
            return load_language_model(resolved(llm or name), device=here, precision=precision)
        except InputError as error:
            if llm is not None:
                raise
            what = f"the language model of the reference cannot be loaded: {error.what}"
            raise StoreError(
                what, name, f"give its path with --llm PATH; {error.fix}", code="model-not-found"
            ) from error

    here = resolved_device(device) if kind.uses_gpu else "cpu"
    return Models(backbone, language_model, here)
