"""GenePT-s: a text model encodes a sentence of gene symbols, sorted by expression, for each cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError, StoreError
from scvec.base.types import Backbone, CellChunk, Float32, Progress, Space, State, no_progress
from scvec.encoders import Material, Models, encoder
from scvec.encoders.slots import ranked

__all__ = ["SentenceEncoder", "sentences"]

#: Default number of genes in a sentence: about 256 word pieces, the input length of MiniLM.
N_GENES = 64


def sentences(X: Any, symbols: Sequence[str], n_genes: int) -> list[str]:
    """Return one text per cell: the symbols of its highest expressed genes, separated by spaces.

    Parameters
    ----------
    X
        (n, n_symbols) CSR float32, log1p CP10k.
    n_genes
        Largest number of symbols in a text.
    """
    slots = ranked(X, n_genes)
    rows = zip(slots.genes, slots.counts, strict=True)
    return [" ".join(symbols[int(g)] for g in genes[:n]) for genes, n in rows]


@encoder("sentence", texts="cells", uses_gpu=True)
class SentenceEncoder:
    """Text vectors of rank-ordered gene symbols, scaled to length 1.

    This is "GenePT-s" of Chen and Zou 2023 (doi:10.1101/2023.10.16.562533). It has no trained parameters.

    Parameters
    ----------
    backbone
        The text model that encodes the sentences.
    symbols
        Gene symbols, in the order of the columns of the cells.
    n_genes
        Largest number of symbols in a sentence; None for the default.

    Raises
    ------
    InputError
        If ``n_genes`` is below 1.
    """

    name: str
    takes_turns: bool

    def __init__(self, backbone: Backbone, symbols: Sequence[str], *, n_genes: int | None = None) -> None:
        if n_genes is not None and n_genes < 1:
            raise InputError(
                "--n-genes must be 1 or more",
                "--n-genes",
                "leave it out for the default",
                code="option-out-of-range",
            )
        self.backbone, self.symbols = backbone, [str(s) for s in symbols]
        self.n_genes = N_GENES if n_genes is None else n_genes
        self.embed_dim = backbone.space.dim

    #: Largest number of cells that calibration holds out. The model encodes each of them once.
    held_out_cells = 300
    #: Largest cosine distance between equal cells. It is rounding: a GPU encodes in bf16.
    parity = 1e-3

    @classmethod
    def prepare(cls, models: Models, *, n_genes: int | None) -> tuple[Backbone, int | None]:
        """Return the text model and the number of genes in a sentence."""
        return models.backbone(), n_genes

    @classmethod
    def new(cls, material: Material) -> SentenceEncoder:
        """Return the encoder for the text model and gene symbols of ``material``."""
        backbone, n_genes = material.prepared
        return cls(backbone, material.symbols, n_genes=n_genes)

    @classmethod
    def load(
        cls, tensors: dict[str, npt.NDArray[Any]], meta: dict[str, Any], models: Models
    ) -> SentenceEncoder:
        """Rebuild from :meth:`state`, with the text model of the reference."""
        return cls.from_state(meta, models.backbone())

    def fit(
        self,
        chunks: Iterable[CellChunk],
        labels: npt.NDArray[np.int64],
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> None:
        """Do nothing: the encoder has no trained parameters."""

    @property
    def space(self) -> Space:
        """The vector space of the text model."""
        return self.backbone.space

    def encode(self, chunk: CellChunk) -> Float32:
        """Return (n, embed_dim) float32 vectors of length 1."""
        if len(chunk) == 0:
            return np.zeros((0, self.embed_dim), dtype=np.float32)
        texts = sentences(chunk.X, self.symbols, self.n_genes)
        vectors = np.asarray(self.backbone.encode(texts), dtype=np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)

    def state(self) -> State:
        """Return the symbols, the number of genes and the space, and no arrays."""
        space = self.backbone.space
        return {}, {"symbols": self.symbols, "n_genes": self.n_genes, "space": space.to_dict()}

    @classmethod
    def from_state(cls, meta: dict[str, Any], backbone: Backbone) -> SentenceEncoder:
        """Rebuild from :meth:`state`.

        Raises
        ------
        StoreError
            If the model differs in weights, pooling or length.
        """
        encoder = cls(backbone, meta["symbols"], n_genes=int(meta["n_genes"]))
        if backbone.space.fingerprint != meta["space"]["fingerprint"]:
            raise StoreError(
                "the text model is not the one that the reference was made with",
                f"{meta['space']['backbone']}, space {meta['space']['fingerprint']}",
                "put that model back, or ingest the cells again",
                code="model-changed",
            )
        return encoder
