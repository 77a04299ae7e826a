"""Backbones of the sentence-transformers library."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from scvec.backbones import BackboneSpec, LoadOptions, backbone
from scvec.backbones.weights import model_folder, offline, out_of_memory, read_json, unit, weights_sha256
from scvec.base.errors import InputError, ResourceError
from scvec.base.types import Float32, Space

__all__ = ["SentenceBackbone"]

#: Texts for comparing bf16 with fp32. They are long enough to show the rounding of every layer.
PROBES = (
    "INS (insulin), a protein-coding human gene. It takes part in glucose homeostasis.",
    "CD3E (CD3 epsilon subunit of T-cell receptor complex), a protein-coding human gene.",
    "MALAT1, a long non-coding human gene.",
    "COL1A1 (collagen type I alpha 1 chain) takes part in extracellular matrix organization.",
)
MIN_COSINE = 0.999


@backbone("st:FOLDER_OR_ID")
class SentenceBackbone:
    """A sentence-transformers model in a folder.

    Weights are loaded on first use. The space comes from the config files of the folder, without the weights.

    Parameters
    ----------
    folder
        Folder of the model.
    name
        Name that the user gave; part of the space.
    template
        Name of the text template; part of the space.
    device
        ``auto``, ``cpu`` or ``cuda``.
    batch_size
        Number of texts in a batch.

    Raises
    ------
    InputError
        The folder has no model, or the model has its own code.
    """

    def __init__(
        self, folder: Path, name: str, template: str, *, device: str = "auto", batch_size: int = 64
    ) -> None:
        if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
            raise InputError(
                "the folder is not a sentence-transformers model (no config.json)",
                str(folder),
                "give the folder with config.json and model.safetensors",
                code="model-not-found",
            )
        _refuse_foreign_code(folder)
        self.folder, self.name, self.template = folder, name, template
        self.device, self.batch_size = device, batch_size

    @classmethod
    def load(cls, spec: BackboneSpec, options: LoadOptions) -> SentenceBackbone:
        """Return the model from a folder or from the model hub."""
        folder, name = model_folder(spec, "sentence-transformers")
        return cls(folder, name, spec.template, device=options.device)

    @cached_property
    def space(self) -> Space:
        """The space of the model, its weights and the template."""
        weights = weights_sha256(self.folder)
        return Space(
            backbone=self.name,
            revision=weights[:16],
            weights_sha256=weights,
            template=self.template,
            pooling=self._pooling(),
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
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise ResourceError("out of memory while encoding texts", self.name, "free memory") from error
        vectors = unit(vectors)
        if vectors.shape != (len(texts), self.space.dim) or not np.isfinite(vectors).all():
            raise InputError("the model gave vectors with a wrong shape, NaN or infinity", self.name)
        return vectors

    @cached_property
    def _model(self) -> Any:
        import torch

        model = self._load(torch.float32)
        if not _has_amx():
            return model
        # bf16 is several times faster on CPUs with AMX. Use it only if its vectors agree with those of fp32.
        fast = self._load(torch.bfloat16)
        a, b = (unit(m.encode(list(PROBES), normalize_embeddings=True)) for m in (model, fast))
        lowest = float((a * b).sum(axis=1).min())
        return fast if lowest >= MIN_COSINE else model

    def _load(self, dtype: Any) -> Any:
        with offline():
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
            except Exception as error:  # a foreign model folder may cause any error in the library
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise InputError(
                    f"the model cannot be loaded: {reason}", str(self.folder), "check the folder's files"
                ) from error

    def _dim(self) -> int:
        pooling = sorted(self.folder.glob("*_Pooling/config.json"))
        dense = sorted(self.folder.glob("*_Dense/config.json"))
        try:
            if dense:
                return int(read_json(dense[-1])["out_features"])
            if pooling:
                config = read_json(pooling[0])
                return int(config.get("word_embedding_dimension") or config["embedding_dimension"])
            return int(read_json(self.folder / "config.json")["hidden_size"])
        except (KeyError, ValueError, TypeError, InputError):
            return int(self._model.encode(["x"]).shape[1])

    def _pooling(self) -> str:
        """Return pooling mode and number of tokens, which change vectors but not the hash of the weights."""
        parts = []
        for path in sorted(self.folder.glob("*_Pooling/config.json")):
            config = read_json(path)
            # Version 6 writes the name of the mode ("mean"); older versions wrote a flag for each mode.
            on = [key for key, value in config.items() if value is True]
            flags = [re.fullmatch("pooling_mode_(.+?)(_tokens?)?", key) for key in on]
            parts += [f[1] for f in flags if f] or [str(config.get("pooling_mode", ""))]
        settings = self.folder / "sentence_bert_config.json"
        length = read_json(settings).get("max_seq_length") if settings.is_file() else None
        parts += [f"{length} tokens"] if length else []
        return ", ".join(parts) or "sentence-transformers"


def _refuse_foreign_code(folder: Path) -> None:
    """Raise InputError if the folder names its own classes, which sentence-transformers before 6 runs."""
    path = folder / "modules.json"
    modules = read_json(path) if path.is_file() else []
    kinds = [str(m["type"]) for m in modules if isinstance(m, dict) and "type" in m]
    if len(kinds) < len(modules):
        raise InputError("a settings file of the model cannot be read", str(path))
    foreign = [kind for kind in kinds if not kind.startswith("sentence_transformers.")]
    if foreign:
        raise InputError(f"the model has its own code ({foreign[0]}), which scvec does not run", str(path))


def _has_amx() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "amx_bf16" in flags
