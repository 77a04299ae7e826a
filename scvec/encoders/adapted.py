"""Encoder with text vectors as a prior, adapted to the reference by gradient descent, and its control."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.types import CellChunk, Float32, Progress, State, no_progress
from scvec.encoders import Material, encoder
from scvec.encoders.statistics import Profile

if TYPE_CHECKING:
    import torch

__all__ = ["AdaptedEncoder", "AdaptedOptions", "ResidualEncoder", "Schedule", "class_weights", "train"]

#: Fewer steps than this leave the result close to its random start, also for small references.
MIN_STEPS = 100


@dataclass(frozen=True, slots=True)
class Schedule:
    """Length of a training.

    Attributes
    ----------
    epochs, batch_size
        Passes over the cells, and cells per step.
    lr
        Largest learning rate of the schedule.
    min_steps, max_steps
        Limits on the number of steps. Small references see each cell in more epochs, large ones in fewer.
    """

    epochs: int
    batch_size: int
    lr: float
    min_steps: int = MIN_STEPS
    max_steps: int = 4000

    def n_steps(self, n: int) -> int:
        """Return the number of steps for n cells."""
        return max(self.min_steps, min(self.max_steps, self.epochs * -(-n // self.batch_size)))


def class_weights(labels: npt.NDArray[np.int64], n_classes: int) -> npt.NDArray[np.float64]:
    """Return (n,) float64 sampling weights: one over the square root of the number of cells of the label.

    This is a compromise: natural frequencies neglect rare types, and equal frequencies exaggerate them.
    Unlabelled cells (-1) get weight 0. The weights sum to 1.
    """
    labelled = labels >= 0
    counts = np.bincount(labels[labelled], minlength=n_classes)
    weights = np.zeros(len(labels))
    weights[labelled] = 1.0 / np.sqrt(counts[labels[labelled]])
    return np.asarray(weights / weights.sum())


def train(
    parameters: list[dict[str, object]],
    loss: Callable[[torch.Tensor], torch.Tensor],
    weights: npt.NDArray[np.float64],
    schedule: Schedule,
    *,
    seed: int,
    stage: str = "training",
    progress: Progress = no_progress,
) -> None:
    """Minimise ``loss`` with AdamW and a one-cycle schedule (Smith and Topin 2017, arXiv:1708.07120).

    Parameters
    ----------
    parameters
        Parameter groups for AdamW.
    loss
        Takes the row numbers (batch_size,) int64 of a batch and returns a scalar tensor.
    weights
        (n,) float64 sampling weights that sum to 1.
    """
    import torch

    n_steps = schedule.n_steps(len(weights))
    rng = np.random.default_rng(seed)
    # Draws the same rows as rng.choice(p=weights), but checks and sums the weights only once.
    upto = np.cumsum(weights)
    upto /= upto[-1]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.lr, fused=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, schedule.lr, total_steps=n_steps)
    for step in range(n_steps):
        rows = upto.searchsorted(rng.random(schedule.batch_size), side="right")
        value = loss(torch.from_numpy(rows))
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        cycle.step()
        if step % 10 == 9 or step == n_steps - 1:
            progress(stage, step + 1, n_steps)


#: Largest standard deviation of the log factor by which training scales a gene. It is the standard
#: deviation between human and mouse orthologs in the Baron data that all cell types share.
GENE_FACTOR = 0.9
#: Smallest and largest fraction of the genes, and of the non-zero values of a cell, that training keeps.
MEASURED, DEPTH = (0.1, 0.95), (0.2, 1.0)
#: Number of principal axes of the text vectors that are kept. Training time grows with it.
TEXT_RANK = 128


@dataclass(frozen=True, slots=True)
class AdaptedOptions:
    """How :class:`AdaptedEncoder` is trained.

    Attributes
    ----------
    text_scale
        Length of the text vectors. With long vectors A learns faster than the residuals, and the encoder is
        worse than one with random vectors. At 0.1 both learn equally fast (`benchmarks/text_scale.py`).
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

    ``Z`` holds the profiles of the cells (:class:`scvec.encoders.statistics.Profile`). ``e_i`` is the
    centred text vector of gene i and ``A`` a learned map. ``r_i`` is a learned residual that starts at zero
    and has weight decay. The head ``softmax(W gelu(c) + b)`` is trained together with them. Text is the
    prior: a gene with little signal in the reference keeps a vector close to genes with similar texts.

    Parameters
    ----------
    gene_vectors
        (n_genes, text_dim) float32 text vectors, or None for residuals alone (a control).
    profile
        Standardises the cells, over the same genes.
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
        """Return an encoder whose profile is learned from the training cells."""
        return cls(material.gene_vectors, Profile.from_cells(material.cells.X, material.labels))

    def fit(
        self,
        chunks: Iterable[CellChunk],
        labels: npt.NDArray[np.int64],
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> None:
        """Train gene vectors and head on labelled cells.

        Parameters
        ----------
        labels
            (n,) int64 class numbers; -1 marks an unlabelled cell.
        """
        import scipy.sparse as sp
        import torch
        from torch.nn import functional as F

        if self.text is None and len(self.A):
            raise ValueError("a saved encoder does not hold the text it was trained on: make a new one")
        # Cells stay sparse: the dense matrix would be the largest array in memory, and training no faster.
        X = sp.vstack([chunk.X for chunk in chunks], format="csr", dtype=np.float32)
        y = torch.from_numpy(np.asarray(labels, dtype=np.int64))
        n_genes, n_classes = X.shape[1], int(labels.max()) + 1
        generator = torch.Generator().manual_seed(seed)

        def normal(rows: int, columns: int, scale: float) -> torch.Tensor:
            return (torch.randn(rows, columns, generator=generator) * scale).requires_grad_()

        if self.text is None:
            # Without text the vectors start as noise with the scale of the text vectors.
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
            # Dropped genes are zero, so leaving them out of the product saves time.
            z = x[:, genes] * (factor * inverse)[genes]
            direction = F.normalize(mean[genes], dim=0)
            G = gene_vectors(genes)
            # Same as Profile.product: the projection is applied to the gene vectors instead of the cells.
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
        """Return the contribution of each gene to the dot product of cell vector and direction.

        Each cell's standard deviation in ``LayerNorm`` is treated as a constant. The cell vector is then a
        sum over genes, and the contributions of a cell add up to its dot product.
        """
        d = directions - directions.mean(axis=1, keepdims=True)
        Z = self.profile.dense(chunk).astype(np.float64)
        G = self.G.astype(np.float64) / np.sqrt(len(self.G))
        u = self.profile.shared(chunk.measured).astype(np.float64)
        sd = np.sqrt((Z @ G).var(axis=1, keepdims=True) + 1e-5)
        weights = d @ G.T
        # Profiles are zero along the shared direction, so the weights along it are removed, too.
        return np.asarray(Z * (weights - np.outer(weights @ u, u)) / sd, dtype=np.float64)

    def state(self) -> State:
        """Return the arrays that encoding needs: gene vectors, text map and head."""
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
    """Control: the encoder ``adapted`` without text vectors."""


def distorted(x: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a training batch with simulated differences between data sets.

    A random fraction of the genes is dropped, each gene is scaled by a random factor, and half of the batches
    are downsampled. The encoder then does not depend on a few genes or on the platform.

    Parameters
    ----------
    x
        (n, n_genes) float32 of log1p CP10k.

    Returns
    -------
    x
        (n, n_genes) float32, perhaps downsampled.
    factor
        (n_genes,) float32 factor of each gene, not yet applied to ``x``.
    genes
        (n_measured,) int64 column numbers of the kept genes, ascending.
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

    Text models place all texts in a narrow cone. The common direction carries no information about a gene.
    """
    v = vectors - vectors.mean(axis=0)
    norms = np.linalg.norm(v, axis=1, keepdims=True)
    return np.asarray(v / np.maximum(norms, 1e-6) * np.sqrt(v.shape[1]), dtype=np.float32)


def leading(vectors: Float32) -> Float32:
    """Return vectors (n, dim) in their first ``TEXT_RANK`` principal axes; unchanged if dim is smaller."""
    if vectors.shape[1] <= TEXT_RANK:
        return vectors
    _, axes = np.linalg.eigh(vectors.T.astype(np.float64) @ vectors)
    return np.asarray(vectors @ axes[:, ::-1][:, :TEXT_RANK], dtype=np.float32)
