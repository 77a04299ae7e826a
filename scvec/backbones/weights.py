"""Fingerprints of model weights on disk."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from scvec.base.errors import InputError

__all__ = ["file_sha256", "weights_sha256"]


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
