"""What all models in folders have in common."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from scvec.base.errors import InputError
from scvec.base.types import Float32

__all__ = ["offline", "out_of_memory", "read_json", "unit"]


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
