"""Models on disk: their folders, settings, weights, and the fingerprints of these."""

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
    """Return rows of length 1 in float32: bf16 misses it by a few thousandths."""
    v = np.asarray(vectors, dtype=np.float32)
    return np.asarray(v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12), dtype=np.float32)


def read_json(path: Path) -> Any:
    """Return what a settings file of a model holds."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError("a settings file of the model cannot be read", str(path)) from error


def out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out; torch has no error class of its own for a CPU without memory."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error))


@contextmanager
def offline() -> Iterator[None]:
    """Keep the libraries from asking the network about a model that lies on the disk, and from chattering."""
    wanted = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    from transformers.utils import logging as hf_logging

    bars, level = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    hf_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def weights_sha256(folder: Path) -> str:
    """Return the SHA-256 of the model's weights; of several files, the hash of their names and hashes.

    Raises
    ------
    InputError
        If the folder, or one of its modules, has pickled weights (``.bin``) alone: they are never loaded.
    """
    files = sorted(folder.rglob("*.safetensors"))
    # A module without safetensors would be read from its pickle, and the hash would not know.
    pickles = sorted(folder.rglob("pytorch_model*.bin"))
    alone = [path.parent for path in pickles if not any(path.parent.glob("*.safetensors"))]
    if alone or not files:
        raise InputError(
            "the model folder holds no .safetensors weights (pickled weights are not loaded)",
            str(alone[0] if alone else folder),
            "convert the model with transformers: model.save_pretrained(FOLDER, safe_serialization=True)",
        )
    hashes = [file_sha256(path) for path in files]
    if len(files) == 1:
        return hashes[0]
    lines = (f"{path.relative_to(folder)} {h}\n" for path, h in zip(files, hashes, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file; read once as long as it does not change."""
    return _sha256(path, path.stat().st_mtime_ns, path.stat().st_size)


@lru_cache(maxsize=32)
def _sha256(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


#: Names of the files of which a folder with a tokenizer has one. Without any, transformers makes one that
#: knows no words, and says nothing.
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.tiktoken", "tekken.json")


def check_folder(folder: Path) -> None:
    """Raise InputError where a folder holds no model, or none with a tokenizer."""
    if not (folder / "config.json").is_file():
        what = "this is not the folder of a transformers model (no config.json)"
        raise InputError(
            what,
            str(folder),
            "give the folder that holds config.json and model.safetensors",
            code="model-not-found",
        )
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


def model_folder(spec: BackboneSpec, library: str) -> tuple[Path, str]:
    """Return the model's folder, fetched if need be, and its name in the space.

    That name is the folder's own: where a model lies on one machine makes no other vectors.
    """
    given = Path(spec.argument).expanduser()
    name = f"{spec.base}:{Path(os.path.abspath(given)).name}"
    return (given if given.is_dir() else _fetch(spec.argument, spec.base, library)), name


def _fetch(hub_id: str, base: str, library: str) -> Path:
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.txt", "*.safetensors", "*.model"]))
    except Exception as error:  # a wrong id, no network, no access: the model is not to be had
        raise InputError(
            f"{hub_id!r} is not a folder, and the model hub did not give it ({type(error).__name__})",
            "--backbone",
            f"give the folder of a {library} model: --backbone {base}:FOLDER",
            code="model-not-found",
        ) from error
