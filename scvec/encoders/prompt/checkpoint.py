"""How far a training has come, on the disk: arrays as safetensors, everything else as JSON inside."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from scvec.base.errors import ResourceError, StoreError

__all__ = ["load_checkpoint", "save_checkpoint"]

#: Of the file; another one is not read.
FORMAT = "scvec prompt training 1"


def save_checkpoint(path: Path, tensors: dict[str, Any], record: dict[str, Any], *, made_of: str) -> None:
    """Replace a checkpoint: whoever is killed meanwhile leaves the old one.

    Parameters
    ----------
    tensors
        Name -> torch tensor.
    record
        JSON values.
    made_of
        Fingerprint of all that the training depends on.
    """
    from safetensors.torch import save_file

    header = {"format": FORMAT, "made_of": made_of, "record": json.dumps(record)}
    part = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ready = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(ready, part, metadata=header)
        with part.open("rb") as handle:
            os.fsync(handle.fileno())
        part.replace(path)
    except OSError as error:
        what = f"the checkpoint cannot be written ({error.strerror})"
        raise ResourceError(what, str(path), "free space, or give another folder") from error


def load_checkpoint(path: Path, *, made_of: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return (tensors, record), or None where there is no file.

    Raises
    ------
    StoreError
        If it cannot be read, or is of a training on other cells, genes, vectors, options or another model.
    """
    from safetensors import SafetensorError, safe_open

    fix = "give another --checkpoint, or delete this one to train from the start"
    try:
        with safe_open(path, framework="pt") as handle:
            header = handle.metadata() or {}
            if header.get("format") != FORMAT:
                raise StoreError("this is no checkpoint of the prompt encoder", str(path), fix)
            if header.get("made_of") != made_of:
                what = "the checkpoint is of another training: other cells, genes, vectors, options or model"
                raise StoreError(what, str(path), fix)
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            return tensors, json.loads(header["record"])
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        what = f"the checkpoint cannot be read ({type(error).__name__})"
        raise StoreError(what, str(path), fix) from error
