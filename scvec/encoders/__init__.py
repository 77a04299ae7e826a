"""Encoders by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError
from scvec.base.types import Backbone, CellChunk, CellEncoder, Float32, LanguageModel
from scvec.encoders.adapted import AdaptedEncoder
from scvec.encoders.discriminant import DiscriminantEncoder
from scvec.encoders.pca import PCAEncoder, Scaling
from scvec.encoders.prompt.prompt_encoder import PromptEncoder
from scvec.encoders.prompt.prompt_options import PromptOptions
from scvec.encoders.sentence import SentenceEncoder
from scvec.encoders.statistics import Profile, StatisticsAccumulator, variability
from scvec.encoders.weighted import WeightedEncoder

__all__ = ["ENCODERS", "EncoderParts", "load_encoder", "make_encoder", "needs_text"]

ENCODERS = ("discriminant", "adapted", "weighted", "prompt", "sentence", "pca", "residual")


@dataclass(frozen=True)
class EncoderParts:
    """What some encoders need besides gene vectors.

    Attributes
    ----------
    options, language_model, checkpoint
        Of ``prompt``; no language model where its order is ``none``.
    backbone, symbols, n_genes
        Of ``sentence``; symbols of the genes, in order.
    device
        ``cpu`` or ``cuda``.
    """

    options: PromptOptions | None = None
    language_model: LanguageModel | None = None
    checkpoint: Path | None = None
    backbone: Backbone | None = None
    symbols: Sequence[str] = ()
    n_genes: int | None = None
    device: str = "cpu"

    def kept_in(self, folder: Path) -> EncoderParts:
        """Return the same with a folder for checkpoints, where none is given."""
        return replace(self, checkpoint=self.checkpoint or folder)


def needs_text(name: str) -> bool:
    """Return whether an encoder uses gene vectors.

    Raises
    ------
    InputError
        If there is no encoder of that name.
    """
    if name not in ENCODERS:
        close = difflib.get_close_matches(name, ENCODERS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise InputError(f"there is no encoder {name!r}", fix=f"{hint}encoders: {', '.join(ENCODERS)}")
    return name in ("adapted", "weighted", "prompt")


def make_encoder(
    name: str,
    gene_vectors: Float32 | None,
    cells: CellChunk,
    labels: npt.NDArray[np.int64],
    *,
    parts: EncoderParts | None = None,
) -> CellEncoder:
    """Return an untrained encoder that standardises cells by those given.

    Parameters
    ----------
    name
        ``discriminant``, ``weighted``, ``prompt``, ``sentence``, or the controls ``adapted``, ``pca`` and
        ``residual`` (adapted without text).
    gene_vectors
        (n_genes, text_dim) float32, for the encoders that use text.
    labels
        (n,) int64 class numbers of the cells, -1 for none.
    parts
        What ``prompt`` and ``sentence`` need.
    """
    if not needs_text(name):
        if name == "sentence":
            if parts is None or parts.backbone is None:
                raise ValueError("the encoder 'sentence' needs a backbone")
            return SentenceEncoder(parts.backbone, parts.symbols, n_genes=parts.n_genes)
        if name == "pca":
            counted = StatisticsAccumulator(cells.X.shape[1])
            counted.add(cells.X)
            return PCAEncoder(Scaling.from_statistics(counted.result()))
        if name == "discriminant":
            counted = StatisticsAccumulator(cells.X.shape[1])
            counted.add(cells.X)
            return DiscriminantEncoder(variability(counted.result()))
        return _named(AdaptedEncoder(None, Profile.from_cells(cells.X, labels)), name)
    if gene_vectors is None:
        raise ValueError(f"the encoder {name!r} needs gene vectors")
    if name == "weighted":
        return WeightedEncoder(gene_vectors)
    if name == "prompt":
        if parts is None or parts.options is None:
            raise ValueError("the encoder 'prompt' needs options")
        return PromptEncoder(
            gene_vectors,
            parts.options,
            parts.language_model,
            checkpoint=parts.checkpoint,
            device=parts.device,
        )
    return AdaptedEncoder(gene_vectors, Profile.from_cells(cells.X, labels))


def load_encoder(
    name: str,
    tensors: dict[str, npt.NDArray[Any]],
    meta: dict[str, Any],
    *,
    parts: EncoderParts | None = None,
) -> CellEncoder:
    """Rebuild a trained encoder from its saved state."""
    needs_text(name)  # refuses names that are none
    parts = EncoderParts() if parts is None else parts
    if name == "discriminant":
        return DiscriminantEncoder.from_state(tensors, meta)
    if name == "weighted":
        return WeightedEncoder.from_state(tensors, meta)
    if name == "pca":
        return PCAEncoder.from_state(tensors, meta)
    if name == "prompt":
        return PromptEncoder.from_state(tensors, meta, parts.language_model, device=parts.device)
    if name == "sentence":
        if parts.backbone is None:
            raise ValueError("the encoder 'sentence' needs a backbone")
        return SentenceEncoder.from_state(meta, parts.backbone)
    return _named(AdaptedEncoder.from_state(tensors, meta), name)


def _named(encoder: AdaptedEncoder, name: str) -> AdaptedEncoder:
    # One class serves two names: what is stored and shown must say which of them it was.
    encoder.name = name
    return encoder
