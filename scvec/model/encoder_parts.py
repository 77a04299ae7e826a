"""What the encoders that read with a model need: found for an ingest, and again for what was stored."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvec.base.device import resolved_device
from scvec.base.errors import InputError, StoreError
from scvec.encoders import EncoderParts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvec.backbones import BackboneSpec
    from scvec.base.types import LanguageModel

__all__ = [
    "PromptSettings",
    "calibration_notes",
    "for_training",
    "forget_trainings",
    "parts_for",
    "portable_spec",
    "stored_parts",
    "training_folder",
    "with_symbols",
]

#: Fold encoders, which only calibration sees, train for this share of the epochs.
FOLD_SHARE = 1 / 3
#: Language model where none is named.
DEFAULT_LLM = "smollm2"
#: Folder of a store with the checkpoints of trainings that were killed.
TRAININGS = Path("work") / "prompt"


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """Options of ``scvec ingest cells`` that only some encoders have; None where not given."""

    llm: str | None = None
    n_genes: int | None = None
    prompt_order: str | None = None
    lora: int | None = None
    epochs: int | None = None
    checkpoint: Path | str | None = None

    def check(self, encoder: str) -> None:
        """Raise InputError where an option is given that the encoder does not have."""
        taken = {"prompt": set(self.__slots__), "sentence": {"n_genes"}}.get(encoder, set())
        given = [name for name in self.__slots__ if getattr(self, name) is not None and name not in taken]
        if given:
            option = "--" + given[0].replace("_", "-")
            others = "prompt or sentence" if given[0] == "n_genes" else "prompt"
            raise InputError(
                f"the encoder {encoder!r} has no option {option}",
                option,
                f"leave it out, or give --encoder {others}",
            )
        if self.prompt_order == "none" and self.llm is not None:
            what = "with the order none no language model reads the cells"
            raise InputError(what, f"--llm {self.llm}", "leave out --llm or --prompt-order")


def parts_for(
    encoder: str, settings: PromptSettings, spec: BackboneSpec, *, device: str, max_cost: float | None = None
) -> EncoderParts | None:
    """Return what an encoder needs, models loaded; None where it needs nothing.

    Raises
    ------
    InputError
        If an option does not fit, or a model is not there.
    """
    settings.check(encoder)
    if encoder == "sentence":
        from scvec.backbones import load_backbone

        if spec.is_stored or not spec.needs_text:
            what = f"the encoder 'sentence' needs a backbone that reads text, not {spec.base}"
            raise InputError(what, "--backbone", "give minilm, st:FOLDER or hf:FOLDER")
        if spec.is_remote:
            raise InputError(
                "the encoder 'sentence' would send every cell to a server, thousands of texts an ingest",
                "--backbone openai",
                "give a model on this machine: minilm, st:FOLDER or hf:FOLDER",
            )
        backbone = load_backbone(spec, device=device, max_cost=max_cost)
        return EncoderParts(backbone=backbone, n_genes=settings.n_genes, device=resolved_device(device))
    if encoder != "prompt":
        return None
    from scvec.encoders.prompt.prompt_encoder import check_length
    from scvec.encoders.prompt.prompt_options import PromptOptions

    here = resolved_device(device)
    options = PromptOptions.for_device(
        here,
        n_genes=settings.n_genes,
        order=settings.prompt_order or "paper",
        lora=settings.lora or 0,
        epochs=settings.epochs,
    )
    model: LanguageModel | None = None
    if options.order != "none":
        from scvec.backbones.language_model import load_language_model, resolved

        model = load_language_model(resolved(settings.llm or DEFAULT_LLM), device=here)
        check_length(options, model)
    checkpoint = None if settings.checkpoint is None else Path(settings.checkpoint)
    return EncoderParts(options=options, language_model=model, checkpoint=checkpoint, device=here)


def for_training(parts: EncoderParts, number: int, *, is_fold: bool) -> EncoderParts:
    """Return the parts of one of the trainings of an ingest; a fold's, for calibration alone, is shorter.

    Parameters
    ----------
    number
        Counts the trainings.
    """
    if parts.options is None:
        return parts
    checkpoint = parts.checkpoint
    if checkpoint is not None and not _in_store(checkpoint):
        # In the user's own folder lies what is asked for, or it is an error.
        checkpoint = checkpoint / (f"fold-{number}.safetensors" if is_fold else "reference.safetensors")
    epochs = parts.options.epochs
    if is_fold and epochs:
        epochs = max(1, round(epochs * FOLD_SHARE))
    return replace(parts, options=replace(parts.options, epochs=epochs), checkpoint=checkpoint)


def calibration_notes(parts: EncoderParts | None) -> list[str]:
    """Return what a user should know of the confidence of an encoder that is dear to train."""
    if parts is None or parts.options is None or parts.options.epochs == 0:
        return []
    fold = for_training(parts, 0, is_fold=True).options
    epochs = fold.epochs if fold is not None else 0
    trained = f"encoders trained for {epochs} of {parts.options.epochs} epochs"
    return [f"confidence was calibrated with {trained}, so that it errs on the low side"]


def training_folder(store: Path) -> Path:
    """Return the folder of a store in which trainings keep how far they came, for the next attempt."""
    return store / TRAININGS


def forget_trainings(store: Path) -> None:
    """Delete what trainings kept: what they made is in the store."""
    shutil.rmtree(training_folder(store), ignore_errors=True)


def _in_store(folder: Path) -> bool:
    return folder.parts[-len(TRAININGS.parts) :] == TRAININGS.parts


def with_symbols(parts: EncoderParts, symbols: Sequence[str]) -> EncoderParts:
    """Return the parts with the symbols of the reference's genes."""
    return replace(parts, symbols=tuple(symbols))


def portable_spec(given: str, spec: BackboneSpec) -> str:
    """Return a backbone SPEC that means the same from any folder."""
    path = Path(spec.argument).expanduser()
    return (
        given.replace(spec.argument, os.path.abspath(path), 1) if spec.argument and path.is_dir() else given
    )


def stored_parts(
    meta: dict[str, Any], *, device: str = "auto", llm: str | None = None
) -> EncoderParts | None:
    """Return what the encoder of a stored reference needs; None where it needs nothing.

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
        If the model that the reference was made with is not there.
    """
    encoder = meta["model"]["encoder"]
    made_with = encoder.get("llm") if encoder["name"] == "prompt" else None
    if llm is not None and made_with is None:
        raise InputError("the reference was made without a language model", f"--llm {llm}", "leave it out")
    if encoder["name"] == "sentence":
        from scvec.backbones import load_backbone, parse_spec

        try:
            backbone = load_backbone(parse_spec(meta["options"]["backbone"]), device=device)
        except InputError as error:
            what = f"the text model that the reference was made with is not to be had: {error.what}"
            raise StoreError(
                what, error.where, "put it back, or ingest the cells again", code="model-not-found"
            ) from error
        return EncoderParts(backbone=backbone, device=resolved_device(device))
    if encoder["name"] != "prompt":
        return None
    here = resolved_device(device)
    if made_with is None:
        return EncoderParts(device=here)
    from scvec.backbones.language_model import load_language_model, resolved

    try:
        model = load_language_model(
            resolved(llm or made_with["name"]), device=here, precision=encoder["precision"]
        )
    except InputError as error:
        if llm is not None:
            raise
        what = f"the language model of the reference is not to be had: {error.what}"
        raise StoreError(
            what, str(made_with["name"]), f"say where it is: --llm PATH; {error.fix}", code="model-not-found"
        ) from error
    return EncoderParts(language_model=model, device=here)
