"""The models that encoders read with: for an ingest, and again for a stored reference."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.backbones import load_backbone, parse_spec
from scvec.base.errors import InputError, StoreError
from scvec.base.resources import resolved_device
from scvec.encoders import EncoderKind, Models, encoder_kind

if TYPE_CHECKING:
    from scvec.backbones import BackboneSpec
    from scvec.base.types import Backbone, LanguageModel

__all__ = ["forget_trainings", "prepared", "stored_models", "training_folder"]

#: Folder of a store with the checkpoints of trainings that were killed.
TRAININGS = Path("work") / "prompt"


def prepared(
    kind: EncoderKind,
    options: Mapping[str, Any],
    spec: BackboneSpec,
    *,
    device: str,
    max_cost: float | None = None,
) -> Any:
    """Return what an encoder needs besides cells, its models loaded; None where it needs nothing.

    Parameters
    ----------
    options
        Of the ingest, those that only some encoders have; None where not given.

    Raises
    ------
    InputError
        If an option does not fit, or a model is not there.
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

    # Finding out whether there is a GPU may load torch, which most encoders do without.
    here = resolved_device(device) if kind.uses_gpu else "cpu"
    return kind.prepare(Models(backbone, language_model, here), options)


def stored_models(meta: Mapping[str, Any], *, device: str = "auto", llm: str | None = None) -> Models | None:
    """Return the models of a stored reference's encoder; None where it reads with none.

    Parameters
    ----------
    meta
        Of the reference.
    llm
        Where its language model lies now; as it was called when the reference was made, if None.

    Raises
    ------
    InputError
        If ``llm`` is given and the reference has no language model.
    StoreError
        By the loaders: if the model that the reference was made with is not there.
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
            what = f"the text model that the reference was made with is not to be had: {error.what}"
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
            what = f"the language model of the reference is not to be had: {error.what}"
            raise StoreError(
                what, name, f"say where it is: --llm PATH; {error.fix}", code="model-not-found"
            ) from error

    here = resolved_device(device) if kind.uses_gpu else "cpu"
    return Models(backbone, language_model, here)


def training_folder(store: Path) -> Path:
    """Return the folder of a store in which trainings keep their progress, for the next attempt."""
    return store / TRAININGS


def forget_trainings(store: Path) -> None:
    """Delete what trainings kept: what they made is in the store."""
    shutil.rmtree(training_folder(store), ignore_errors=True)
