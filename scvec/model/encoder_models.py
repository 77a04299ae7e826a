"""Text and language models of encoders, for an ingest and for a stored reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scvec.backbones import load_backbone, parse_spec
from scvec.base.errors import InputError, StoreError
from scvec.base.resources import resolved_device
from scvec.encoders import EncoderKind, Models, encoder_kind

if TYPE_CHECKING:
    from scvec.backbones import BackboneSpec
    from scvec.base.types import Backbone, LanguageModel

__all__ = ["prepared", "stored_models"]


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
