"""Text vectors as a prior, adapted to the reference; and the same without text, a control."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.types import CellChunk, Float32, Progress, State, no_progress
from scvec.encoders import Material, encoder
from scvec.encoders.gradient_descent import Schedule, class_weights, train
from scvec.encoders.statistics import Profile

if TYPE_CHECKING:
    import torch

__all__ = ["AdaptedEncoder", "AdaptedOptions", "ResidualEncoder"]

#: Largest standard deviation of the log of a gene's factor in training: that between human and mouse
#: orthologs in the Baron data, as far as all types share it.
GENE_FACTOR = 0.9
#: Fractions of the genes, and of the non-zero values of a cell, that training keeps: smallest and largest.
MEASURED, DEPTH = (0.1, 0.95), (0.2, 1.0)
#: Dimensions of the text vectors that are kept: those of most variance. Training time goes with them.
TEXT_RANK = 128


@dataclass(frozen=True, slots=True)
class AdaptedOptions:
    """How :class:`AdaptedEncoder` is trained.

    Attributes
    ----------
    text_scale
        Length of the text vectors. Large ones make A learn faster than the residuals and the encoder worse
        than one with random vectors; at 0.1 both learn at one pace (`benchmarks/text_scale.py`).
    """

    label_smoothing: float = 0.1
    weight_decay: float = 0.01
    epochs: int = 12
    batch_size: int = 256
    lr: float = 3e-3
    text_scale: float = 0.1


@encoder("adapted", texts="genes")
class AdaptedEncoder:
    """Cell vector ``c = LayerNorm(Z G / sqrt(n_genes))`` with gene vectors ``g_i = A e_i + r_i``.

    ``Z`` are the cells as :class:`scvec.encoders.statistics.Profile` shows them.
    ``e_i`` is the centred text vector of gene i, ``A`` a learned map, ``r_i`` a learned residual that starts
    at zero and is decayed; the head ``softmax(W gelu(c) + b)`` is trained with it. Text is the prior: where
    the reference says little about a gene, its vector stays where genes of similar description are.

    Parameters
    ----------
    gene_vectors
        (n_genes, text_dim) float32 text vectors, or None for residuals alone (a control).
    profile
        What cells are turned into first, over the same genes.
    """

    name: str

    def __init__(
        self,
        gene_vectors: Float32 | None,
        profile: Profile,
        *,
        embed_dim: int = 128,
        options: AdaptedOptions | None = None,
    ) -> None:
        n_genes = len(profile.mean)
        if gene_vectors is not None and len(gene_vectors) != n_genes:
            raise ValueError(f"{len(gene_vectors)} gene vectors for {n_genes} genes")
        self.embed_dim = embed_dim
        self.profile = profile
        self.options = AdaptedOptions() if options is None else options
        self.text: Float32 | None = None
        if gene_vectors is not None:
            self.text = leading(centred(gene_vectors)) * np.float32(self.options.text_scale)
        self.G: Float32 = np.zeros((n_genes, embed_dim), dtype=np.float32)
        self.A: Float32 = np.zeros((0, embed_dim), dtype=np.float32)
        self.W: Float32 = np.zeros((0, embed_dim), dtype=np.float32)
        self.b: Float32 = np.zeros(0, dtype=np.float32)

    @classmethod
    def new(cls, material: Material) -> AdaptedEncoder:
        """Return an encoder that standardises cells by those it will be trained on."""
        return cls(material.gene_vectors, Profile.from_cells(material.cells.X, material.labels))

    def fit(
        self,
        chunks: Iterable[CellChunk],
        labels: npt.NDArray[np.int64],
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> None:
        """Train gene vectors and head on labelled cells; ``labels`` (n,) holds class numbers, -1 for none."""
        import scipy.sparse as sp
        import torch
        from torch.nn import functional as F

        if self.text is None and len(self.A):
            raise ValueError("a saved encoder does not hold the text it was trained on: make a new one")
        # Cells stay sparse: all of them dense are the largest thing in memory, and no faster.
        X = sp.vstack([chunk.X for chunk in chunks], format="csr", dtype=np.float32)
        y = torch.from_numpy(np.asarray(labels, dtype=np.int64))
        n_genes, n_classes = X.shape[1], int(labels.max()) + 1
        generator = torch.Generator().manual_seed(seed)

        def normal(rows: int, columns: int, scale: float) -> torch.Tensor:
            return (torch.randn(rows, columns, generator=generator) * scale).requires_grad_()

        if self.text is None:
            # Nothing to start from but noise, of the size that text vectors have.
            text, A = None, None
            R = normal(n_genes, self.embed_dim, self.options.text_scale)
        else:
            text = torch.from_numpy(self.text)
            A = normal(text.shape[1], self.embed_dim, text.shape[1] ** -0.5)
            R = torch.zeros(n_genes, self.embed_dim, requires_grad=True)
        W = normal(n_classes, self.embed_dim, self.embed_dim**-0.5)
        b = torch.zeros(n_classes, requires_grad=True)

        def gene_vectors(genes: torch.Tensor | slice) -> torch.Tensor:
            return R[genes] if text is None or A is None else text[genes] @ A + R[genes]

        inverse = torch.from_numpy(1.0 / self.profile.spread)
        mean = torch.from_numpy(self.profile.mean / self.profile.spread)

        def loss(rows: torch.Tensor) -> torch.Tensor:
            x, factor, genes = distorted(torch.from_numpy(X[rows.numpy()].toarray()), generator)
            # Only the genes that are left: the others add nothing but time.
            z = x[:, genes] * (factor * inverse)[genes]
            direction = F.normalize(mean[genes], dim=0)
            G = gene_vectors(genes)
            # The profile's product, with the projection taken from the gene vectors.
            z = z @ (G - torch.outer(direction, direction @ G))
            c = F.layer_norm(z / n_genes**0.5, (self.embed_dim,))
            return F.cross_entropy(F.gelu(c) @ W.T + b, y[rows], label_smoothing=self.options.label_smoothing)

        shared = [p for p in (A, W, b) if p is not None]
        train(
            [
                {"params": shared, "weight_decay": 1e-3},
                {"params": [R], "weight_decay": self.options.weight_decay},
            ],
            loss,
            class_weights(labels, n_classes),
            Schedule(self.options.epochs, self.options.batch_size, self.options.lr),
            seed=seed,
            stage="training the encoder",
            progress=progress,
        )
        self.G = gene_vectors(slice(None)).detach().numpy().astype(np.float32)
        if A is not None:
            self.A = A.detach().numpy()
        self.W, self.b = W.detach().numpy(), b.detach().numpy()

    def encode(self, chunk: CellChunk) -> Float32:
        """Return (n, embed_dim) float32 cell vectors, each of mean 0 and variance 1."""
        c = self.profile.product(chunk, self.G) / np.float32(np.sqrt(len(self.G)))
        c -= c.mean(axis=1, keepdims=True)
        return np.asarray(c / np.sqrt(c.var(axis=1, keepdims=True) + 1e-5), dtype=np.float32)

    def shares(self, chunk: CellChunk, directions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return (n, n_genes) what each gene adds to cell vector times direction (n, embed_dim).

        The standard deviation that ``LayerNorm`` divides by is taken as the cell's own: given it, a cell
        vector is a sum over genes, and rows sum to the product.
        """
        d = directions - directions.mean(axis=1, keepdims=True)
        Z = self.profile.dense(chunk).astype(np.float64)
        G = self.G.astype(np.float64) / np.sqrt(len(self.G))
        u = self.profile.shared(chunk.measured).astype(np.float64)
        sd = np.sqrt((Z @ G).var(axis=1, keepdims=True) + 1e-5)
        weights = d @ G.T
        # Profiles have no part along the shared direction: what weights have there says nothing of a gene.
        return np.asarray(Z * (weights - np.outer(weights @ u, u)) / sd, dtype=np.float64)

    def state(self) -> State:
        """Return what is needed to encode: gene vectors, text map and head, not the training data."""
        tensors = {"G": self.G, "A": self.A, "W": self.W, "b": self.b, **self.profile.state()}
        return tensors, {"embed_dim": self.embed_dim, "options": asdict(self.options)}

    @classmethod
    def from_state(cls, tensors: dict[str, npt.NDArray[Any]], meta: dict[str, Any]) -> AdaptedEncoder:
        """Rebuild from :meth:`state`."""
        profile = Profile.from_state(tensors)
        encoder = cls(
            None, profile, embed_dim=int(meta["embed_dim"]), options=AdaptedOptions(**meta["options"])
        )
        encoder.G, encoder.A = tensors["G"], tensors["A"]
        encoder.W, encoder.b = tensors["W"], tensors["b"]
        n_genes, d = len(profile.mean), encoder.embed_dim
        shapes = [encoder.G.shape, encoder.A.shape[1:], encoder.W.shape]
        if shapes != [(n_genes, d), (d,), (len(encoder.b), d)]:
            raise ValueError(f"tensors do not fit an encoder of {n_genes} genes and {d} dimensions: {shapes}")
        return encoder


@encoder("residual")
class ResidualEncoder(AdaptedEncoder):
    """Residuals alone: what the encoder ``adapted`` is without text."""


def distorted(x: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a batch as another data set might show it: its cells, gene factors, and the genes it measured.

    Each batch lacks another fraction of the genes, sees each gene by another factor and, every other time,
    each cell at another depth: what the encoder learns must not depend on a few genes, nor on how well they
    are seen here.

    Parameters
    ----------
    x
        (n, n_genes) float32 of log1p CP10k.

    Returns
    -------
    x
        (n, n_genes) float32, perhaps downsampled.
    factor
        (n_genes,) float32, what each gene is still to be multiplied by.
    genes
        (n_measured,) int64 numbers of the genes measured, ascending.
    """
    import torch

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    n, n_genes = x.shape
    if uniform(0.0, 1.0, 1) < 0.5:
        x = x * (uniform(0.0, 1.0, n, n_genes) < uniform(*DEPTH, n, 1))
    factor = torch.exp(torch.randn(n_genes, generator=generator) * uniform(0.0, GENE_FACTOR, 1))
    measured = uniform(0.0, 1.0, n_genes) < uniform(*MEASURED, 1)
    return x, factor, torch.nonzero(measured)[:, 0]


def centred(vectors: Float32) -> Float32:
    """Return vectors with the mean removed, scaled to a root mean square of 1 per entry.

    Language models put all texts into a narrow cone: the common direction says nothing about a gene.
    """
    v = vectors - vectors.mean(axis=0)
    norms = np.linalg.norm(v, axis=1, keepdims=True)
    return np.asarray(v / np.maximum(norms, 1e-6) * np.sqrt(v.shape[1]), dtype=np.float32)


def leading(vectors: Float32) -> Float32:
    """Return vectors (n, dim) in their ``TEXT_RANK`` principal axes; as they are where they have no more."""
    if vectors.shape[1] <= TEXT_RANK:
        return vectors
    _, axes = np.linalg.eigh(vectors.T.astype(np.float64) @ vectors)
    return np.asarray(vectors @ axes[:, ::-1][:, :TEXT_RANK], dtype=np.float32)
