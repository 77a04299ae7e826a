"""Encoders by name."""

from __future__ import annotations

import difflib
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.encoders.adapted import AdaptedEncoder
from scvec.encoders.pca import PCAEncoder
from scvec.encoders.scaling import Scaling
from scvec.encoders.statistics import StatisticsAccumulator
from scvec.encoders.weighted import WeightedEncoder
from scvec.errors import InputError
from scvec.profiles import Profile
from scvec.protocols import CellEncoder
from scvec.types import CellChunk, Float32

__all__ = ["ENCODERS", "load_encoder", "make_encoder", "needs_text"]

ENCODERS = ("adapted", "weighted", "pca", "residual")


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
    return name in ("adapted", "weighted")


def make_encoder(
    name: str, gene_vectors: Float32 | None, cells: CellChunk, labels: npt.NDArray[np.int64]
) -> CellEncoder:
    """Return an untrained encoder that standardises cells by those given.

    Parameters
    ----------
    name
        ``adapted``, ``weighted``, or the controls ``pca`` and ``residual`` (adapted without text).
    gene_vectors
        (n_genes, text_dim) float32, for the encoders that use text.
    labels
        (n,) int64 class numbers of the cells, -1 for none.
    """
    if not needs_text(name):
        if name == "pca":
            counted = StatisticsAccumulator(cells.X.shape[1])
            counted.add(cells.X)
            return PCAEncoder(Scaling.from_statistics(counted.result()))
        return _named(AdaptedEncoder(None, Profile.from_cells(cells.X, labels)), name)
    if gene_vectors is None:
        raise ValueError(f"the encoder {name!r} needs gene vectors")
    if name == "weighted":
        return WeightedEncoder(gene_vectors)
    return AdaptedEncoder(gene_vectors, Profile.from_cells(cells.X, labels))


def load_encoder(name: str, tensors: dict[str, npt.NDArray[Any]], meta: dict[str, Any]) -> CellEncoder:
    """Rebuild a trained encoder from its saved state."""
    needs_text(name)  # refuses names that are none
    if name == "weighted":
        return WeightedEncoder.from_state(tensors, meta)
    if name == "pca":
        return PCAEncoder.from_state(tensors, meta)
    return _named(AdaptedEncoder.from_state(tensors, meta), name)


def _named(encoder: AdaptedEncoder, name: str) -> AdaptedEncoder:
    # One class serves two names: what is stored and shown must say which of them it was.
    encoder.name = name
    return encoder
