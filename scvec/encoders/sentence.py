"""GenePT-s: a text model encodes a sentence of gene symbols, sorted by expression, for each cell.

:class:`Slots` are the genes that a language model reads for each cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import StoreError, check_range
from scvec.base.types import Backbone, CellChunk, Float32, Int64, Progress, Space, State, no_progress
from scvec.encoders import Material, Models, encoder

__all__ = ["SentenceEncoder", "Slots", "packed", "ranked", "sentences", "split"]


@dataclass(frozen=True, slots=True)
class Slots:
    """The genes of n cells, highest expression first. Cells with fewer genes are padded.

    Attributes
    ----------
    genes
        (n, length) int64 column numbers of the genes; 0 where padded.
    values
        (n, length) float32 log1p CP10k; 0 where padded.
    counts
        (n,) int64 number of genes of each cell.
    """

    genes: Int64
    values: Float32
    counts: Int64

    def __post_init__(self) -> None:
        if self.genes.shape != self.values.shape or len(self.counts) != len(self.genes):
            raise ValueError(
                f"{self.genes.shape} genes, {self.values.shape} values, {len(self.counts)} cells"
            )

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """(n, length) bool, False where padded."""
        return np.arange(self.genes.shape[1]) < self.counts[:, None]

    def take(self, rows: Int64, length: int | None = None) -> Slots:
        """Return some cells, with padding cut or added to give ``length`` places.

        Raises
        ------
        ValueError
            If a cell has more than ``length`` genes.
        """
        length = self.genes.shape[1] if length is None else length
        counts = self.counts[rows]
        if len(counts) and length < counts.max():
            raise ValueError(f"{counts.max()} genes do not fit into {length} places")
        pad = ((0, 0), (0, max(0, length - self.genes.shape[1])))
        genes, values = self.genes[rows][:, :length], self.values[rows][:, :length]
        return Slots(np.pad(genes, pad), np.pad(values, pad), counts)


def ranked(X: Any, n_genes: int, *, drop: float = 0.0, rng: np.random.Generator | None = None) -> Slots:
    """Return the ``n_genes`` highest expressed genes of each cell. Zeros are dropped; ties keep column order.

    Parameters
    ----------
    X
        (n, all genes) CSR float32, log1p CP10k.
    drop
        Fraction of the genes of a cell that ``rng`` drops before ranking, for training.
    """
    n = X.shape[0]
    counts = np.zeros(n, dtype=np.int64)
    chosen: list[tuple[Int64, Float32]] = []
    for i in range(n):
        here = slice(X.indptr[i], X.indptr[i + 1])
        columns, values = X.indices[here].astype(np.int64), X.data[here].astype(np.float32)
        kept = values > 0
        if drop > 0 and rng is not None:
            kept &= rng.random(len(values)) >= drop
        columns, values = columns[kept], values[kept]
        order = np.lexsort((columns, -values))[:n_genes]
        chosen.append((columns[order], values[order]))
        counts[i] = len(order)
    length = int(counts.max()) if n else 0
    genes, expressed = np.zeros((n, length), dtype=np.int64), np.zeros((n, length), dtype=np.float32)
    for i, (columns, values) in enumerate(chosen):
        genes[i, : len(columns)], expressed[i, : len(columns)] = columns, values
    return Slots(genes, expressed, counts)


def packed(counts: Int64, n_genes: int, batch_size: int) -> Iterator[tuple[Int64, int]]:
    """Yield (rows, places) of batches of cells with similar numbers of genes.

    The number of places is a multiple of an eighth of ``n_genes``, and depends on the cell alone. Padding is
    thus at most an eighth of ``n_genes``.
    """
    step = max(1, -(-n_genes // 8))
    places = np.maximum(-(-counts // step), 1) * step
    for size in np.unique(places)[::-1]:
        rows = np.flatnonzero(places == size)
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size], int(size)


def split(batches: list[tuple[Int64, int]], batch_size: int) -> list[tuple[Int64, int]]:
    """Return batches of at most ``batch_size`` cells, in the same order."""
    return [
        (rows[start : start + batch_size], places)
        for rows, places in batches
        for start in range(0, len(rows), batch_size)
    ]


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
        if n_genes is not None:
            check_range("--n-genes", n_genes, 1)
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
