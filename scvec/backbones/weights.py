"""Models on the disk: folders, settings, weights, and fingerprints of weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from scvec.backbones import BackboneSpec
from scvec.base.errors import InputError, ResourceError
from scvec.base.types import Float32

__all__ = [
    "check_folder",
    "file_sha256",
    "is_decoder",
    "load_config",
    "load_tokenizer",
    "load_weights",
    "model_folder",
    "offline",
    "out_of_memory",
    "read_json",
    "unit",
    "weights_sha256",
    "width_of",
]


def unit(vectors: Any) -> Float32:
    """Normalize rows to length 1 in float32. Rows of bf16 models have lengths that are off by some 0.001."""
    v = np.asarray(vectors, dtype=np.float32)
    return np.asarray(v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12), dtype=np.float32)


def read_json(path: Path) -> Any:
    """Return the content of a settings file of a model; raise InputError if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError("a settings file of the model cannot be read", str(path)) from error


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means out of memory. torch has no error class for this on a CPU."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error))


@contextmanager
def offline() -> Iterator[None]:
    """Keep the libraries from using the network for a model on the disk, and from printing progress."""
    wanted = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    from transformers.utils import logging as hf_logging

    bars, level = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def weights_sha256(folder: Path) -> str:
    """Return the SHA-256 of the model's weights. For several files it covers their names and hashes.

    Raises
    ------
    InputError
        The folder, or one of its modules, has only pickled weights (``.bin``), which scvec never loads.
    """
    files = sorted(folder.rglob("*.safetensors"))
    # The library would read a module without safetensors from its pickle, which the hash does not cover.
    pickles = sorted(folder.rglob("pytorch_model*.bin"))
    alone = [path.parent for path in pickles if not any(path.parent.glob("*.safetensors"))]
    if alone or not files:
        raise InputError(
            "the model folder has no .safetensors weights (pickled weights are not loaded)",
            str(alone[0] if alone else folder),
            "convert the model with transformers: model.save_pretrained(FOLDER, safe_serialization=True)",
        )
    hashes = [file_sha256(path) for path in files]
    if len(files) == 1:
        return hashes[0]
    lines = (f"{path.relative_to(folder)} {h}\n" for path, h in zip(files, hashes, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file; the result is cached until the file changes."""
    return _sha256(path, path.stat().st_mtime_ns, path.stat().st_size)


@lru_cache(maxsize=32)
def _sha256(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


#: A folder with a tokenizer has at least one of these files. Without one, transformers silently makes a
#: tokenizer without words.
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.tiktoken", "tekken.json")


def check_folder(folder: Path) -> None:
    """Raise InputError if a folder has no model or no tokenizer."""
    if not (folder / "config.json").is_file():
        what = "the folder is not a transformers model (no config.json)"
        raise InputError(
            what,
            str(folder),
            "give the folder that holds config.json and model.safetensors",
            code="model-not-found",
        )
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
        what = "the model folder has no tokenizer (no tokenizer.json)"
        raise InputError(what, str(folder), "save the tokenizer there: tokenizer.save_pretrained(FOLDER)")


def load_config(folder: Path) -> Any:
    """Return the model's config, without running code of the model."""
    with offline():
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # a foreign config may cause any error in the library
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
    """Load a model without its head, on the CPU, from safetensors.

    Parameters
    ----------
    folder
        Folder of the model.
    name
        Name of the model in messages.
    dtype
        torch dtype of the weights.

    Raises
    ------
    InputError
        The weights are pickled, do not match the config, or cannot be read.
    ResourceError
        Out of memory.
    """
    weights_sha256(folder)  # raises a helpful error for pickled weights
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
    # The library fills missing tensors with random numbers and only warns. scvec does not use poolers.
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if missing:
        raise InputError(
            f"the weights lack {len(missing)} tensors of the model ({missing[0]})",
            str(folder),
            "give a folder whose weights match its config.json",
        )
    return model


def width_of(config: Any, folder: Path) -> int:
    """Return the number of dimensions of the model's last hidden states."""
    text = config.get_text_config()
    # OPT projects its last hidden states to the width of its word embeddings.
    found = getattr(text, "word_embed_proj_dim", None) or getattr(text, "hidden_size", None)
    if not isinstance(found, int) or found < 1:
        raise InputError("the model's config has no hidden_size", str(folder), "give a text model")
    return found


def is_decoder(config: Any) -> bool:
    """Return whether a model is a causal decoder: it reads from left to right and predicts the next token."""
    from transformers.models.auto import modeling_auto

    if getattr(config, "is_encoder_decoder", False):
        return False
    text = config.get_text_config()
    if getattr(text, "use_bidirectional_attention", False):
        return False
    if getattr(text, "is_decoder", False):
        return True
    kind = text.model_type
    # BERT-like models are in both tables: they can be used as decoders, but are encoders by default.
    masked = kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not masked


def _unusable(what: str, folder: Path, error: Exception) -> InputError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(f"{what}: {reason}", str(folder), "check the folder's files")


def model_folder(spec: BackboneSpec, library: str) -> tuple[Path, str]:
    """Return the model's folder, downloaded if needed, and its name in the space.

    The name is the last part of the path, because the location of a model does not change its vectors.
    """
    given = Path(spec.argument).expanduser()
    name = f"{spec.base}:{Path(os.path.abspath(given)).name}"
    return (given if given.is_dir() else _fetch(spec.argument, spec.base, library)), name


def _fetch(hub_id: str, base: str, library: str) -> Path:
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.txt", "*.safetensors", "*.model"]))
    except Exception as error:  # a wrong id, no network, no access: the model is not available
        reason = type(error).__name__
        raise InputError(
            f"{hub_id!r} is not a folder, and its download from the model hub failed ({reason})",
            "--backbone",
            f"give the folder of a {library} model: --backbone {base}:FOLDER",
            code="model-not-found",
        ) from error
