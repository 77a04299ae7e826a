"""Backbones of the sentence-transformers library."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from scvec.backbones.weights import weights_sha256
from scvec.errors import InputError, ResourceError
from scvec.types import Float32, Space

__all__ = ["SentenceBackbone"]

#: A text that both precisions encode when bf16 is tried: long enough to meet every layer's rounding.
PROBES = (
    "INS (insulin), a protein-coding human gene. It takes part in glucose homeostasis.",
    "CD3E (CD3 epsilon subunit of T-cell receptor complex), a protein-coding human gene.",
    "MALAT1, a long non-coding human gene.",
    "COL1A1 (collagen type I alpha 1 chain) takes part in extracellular matrix organization.",
)
MIN_COSINE = 0.999


class SentenceBackbone:
    """A sentence-transformers model in a folder.

    Weights are loaded on first use; the space is known before (from the folder's config files).

    Parameters
    ----------
    folder
        Where the model lies.
    name
        What the user called it; part of the space.
    template
        Name of the text template; part of the space.
    device
        ``auto``, ``cpu`` or ``cuda``.
    """

    def __init__(
        self, folder: Path, name: str, template: str, *, device: str = "auto", batch_size: int = 64
    ) -> None:
        if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
            raise InputError(
                "this is not the folder of a sentence-transformers model (no config.json)",
                str(folder),
                "give the folder that holds config.json and model.safetensors",
            )
        self.folder, self.name, self.template = folder, name, template
        self.device, self.batch_size = device, batch_size

    @cached_property
    def space(self) -> Space:
        """The space of the model, its weights and the template."""
        weights = weights_sha256(self.folder)
        return Space(
            backbone=self.name,
            revision=weights[:16],
            weights_sha256=weights,
            template=self.template,
            pooling="sentence-transformers",
            dim=self._dim(),
            normalized=True,
        )

    def encode(self, texts: Sequence[str]) -> Float32:
        """Return (n, dim) float32 vectors of length 1, in the order of the texts."""
        if not texts:
            return np.zeros((0, self.space.dim), dtype=np.float32)
        try:
            vectors = self._model.encode(
                list(texts),
                batch_size=self.batch_size,
                normalize_embeddings=True,
                show_progress_bar=False,
                convert_to_numpy=True,
            )
        except MemoryError as error:
            raise ResourceError("out of memory while encoding texts", self.name, "free memory") from error
        vectors = np.asarray(vectors, dtype=np.float32)
        if vectors.shape != (len(texts), self.space.dim) or not np.isfinite(vectors).all():
            raise InputError("the model gave vectors of a wrong shape or not finite", self.name)
        return vectors

    @cached_property
    def _model(self) -> Any:
        import torch

        model = self._load(torch.float32)
        if not _has_amx():
            return model
        # bf16 is several times faster where the CPU has tiles for it, and taken only when it says the same.
        fast = self._load(torch.bfloat16)
        a, b = (m.encode(list(PROBES), normalize_embeddings=True) for m in (model, fast))
        same = float((np.asarray(a, np.float32) * np.asarray(b, np.float32)).sum(axis=1).min())
        return fast if same >= MIN_COSINE else model

    def _load(self, dtype: Any) -> Any:
        with _offline():
            from sentence_transformers import SentenceTransformer

            device = None if self.device == "auto" else self.device
            try:
                return SentenceTransformer(
                    str(self.folder),
                    device=device,
                    local_files_only=True,
                    trust_remote_code=False,
                    model_kwargs={"dtype": dtype, "use_safetensors": True},
                )
            except Exception as error:  # whatever a foreign model folder makes the library raise
                raise InputError(
                    f"the model cannot be loaded: {error}", str(self.folder), "check the folder's files"
                ) from error

    def _dim(self) -> int:
        import json

        pooling = sorted(self.folder.glob("*_Pooling/config.json"))
        dense = sorted(self.folder.glob("*_Dense/config.json"))
        try:
            if dense:
                return int(json.loads(dense[-1].read_text())["out_features"])
            if pooling:
                config = json.loads(pooling[0].read_text())
                return int(config.get("word_embedding_dimension") or config["embedding_dimension"])
            return int(json.loads((self.folder / "config.json").read_text())["hidden_size"])
        except (KeyError, ValueError, OSError):
            return int(self._model.get_sentence_embedding_dimension())


def _has_amx() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "amx_bf16" in flags


@contextmanager
def _offline() -> Iterator[None]:
    """Keep the libraries from asking the network about a model that lies on the disk, and from chattering."""
    wanted = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    from transformers.utils import logging as hf_logging

    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            hf_logging.enable_progress_bar()
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
