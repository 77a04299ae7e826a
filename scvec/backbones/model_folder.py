"""A folder with a model of the transformers library: config, tokenizer and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scvec.backbones.local import offline, out_of_memory
from scvec.backbones.weights import weights_sha256
from scvec.base.errors import InputError, ResourceError

__all__ = [
    "check_folder",
    "is_decoder",
    "load_config",
    "load_tokenizer",
    "load_weights",
    "width_of",
]

#: Names of the files of which a folder with a tokenizer has one. Without any, transformers makes one that
#: knows no words, and says nothing.
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.tiktoken", "tekken.json")


def check_folder(folder: Path) -> None:
    """Raise InputError where a folder holds no model, or none with a tokenizer."""
    if not (folder / "config.json").is_file():
        what = "this is not the folder of a transformers model (no config.json)"
        raise InputError(what, str(folder), "give the folder that holds config.json and model.safetensors")
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
        what = "the model folder holds no tokenizer (no tokenizer.json)"
        raise InputError(what, str(folder), "save it there: tokenizer.save_pretrained(FOLDER)")


def load_config(folder: Path) -> Any:
    """Return the model's config; no code that comes with a model is run."""
    with offline():
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # whatever a foreign config makes the library raise
            raise _unusable("the model's config cannot be used", folder, error) from error


def load_tokenizer(folder: Path) -> Any:
    """Return the model's tokenizer."""
    with offline():
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # as above
            raise _unusable("the tokenizer cannot be loaded", folder, error) from error


def load_weights(folder: Path, name: str, dtype: Any) -> Any:
    """Return the model without its head, on the CPU, in ``dtype``; only safetensors are read.

    Raises
    ------
    InputError
        If the weights are pickled, are not those of the config, or cannot be read.
    ResourceError
        If memory runs out.
    """
    weights_sha256(folder)  # refuses pickled weights, with the remedy
    with offline():
        from transformers import AutoModel

        try:
            model, info = AutoModel.from_pretrained(
                str(folder),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=dtype,
                output_loading_info=True,
            )
        except Exception as error:  # as above
            if out_of_memory(error):
                raise ResourceError("out of memory while loading a model", name, "free memory") from error
            raise _unusable("the model cannot be loaded", folder, error) from error
    # What the file lacks is filled with random numbers, of which the library only warns. A pooler is not
    # used here.
    lacking = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if lacking:
        raise InputError(
            f"the weights lack {len(lacking)} tensors of the model ({lacking[0]})",
            str(folder),
            "give the folder with the weights that belong to its config.json",
        )
    return model


def width_of(config: Any, folder: Path) -> int:
    """Return the number of dimensions of the model's last states."""
    text = config.get_text_config()
    # OPT projects its last states to the width of its words.
    found = getattr(text, "word_embed_proj_dim", None) or getattr(text, "hidden_size", None)
    if not isinstance(found, int) or found < 1:
        raise InputError("the model's config says no hidden_size", str(folder), "give a text model")
    return found


def is_decoder(config: Any) -> bool:
    """Return whether a model reads from left to right only, and tells the next word."""
    from transformers.models.auto import modeling_auto

    if getattr(config, "is_encoder_decoder", False):
        return False
    text = config.get_text_config()
    if getattr(text, "use_bidirectional_attention", False):
        return False
    if getattr(text, "is_decoder", False):
        return True
    kind = text.model_type
    # BERT and its kin are in both tables: they can be made to write, and are not by default.
    masked = kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not masked


def _unusable(what: str, folder: Path, error: Exception) -> InputError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(f"{what}: {reason}", str(folder), "check the folder's files")
