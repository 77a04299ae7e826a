"""The head: a trained classifier on cell vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from scvec.base.types import CellEncoder, Float32, Neighbors, Progress, no_progress

__all__ = ["Head", "vote"]


def vote(
    neighbors: Neighbors, labels: npt.NDArray[np.int64], n_classes: int, *, pseudocount: float = 0.1
) -> Float32:
    """Return (n, n_classes) shares of the neighbours' votes, rows summing to 1.

    Votes are weighted by ``exp(-2 d^2 / d_k^2)``, with ``d_k`` the distance of the last neighbour: an
    adaptive Gaussian kernel, as in UMAP and scANVI's label transfer, so that dense and sparse regions vote
    alike; and by one over the square root of their class's size, half-way between the natural frequencies,
    which drown rare types, and equal ones.

    Parameters
    ----------
    labels
        (n_reference,) int64 class numbers of the reference cells; -1 does not vote.
    pseudocount
        Votes given to every class beforehand, so that no class is impossible.
    """
    found = neighbors.indices >= 0
    distances = np.where(found, neighbors.distances, 0.0).astype(np.float64)
    last = np.maximum(distances.max(axis=1, keepdims=True), 1e-12)
    codes = np.where(found, labels[neighbors.indices], -1)
    counts = np.maximum(np.bincount(labels[labels >= 0], minlength=n_classes), 1)
    # Scaled to 1 for a class of average size: the pseudocount keeps its meaning.
    balance = np.sqrt(counts.mean() / counts)
    weights = np.where(codes >= 0, np.exp(-2.0 * distances / last) * balance[codes], 0.0)
    votes = np.full((len(codes), n_classes), pseudocount / n_classes)
    rows = np.repeat(np.arange(len(codes)), codes.shape[1])
    # -1 would index the last class: its weight is 0, so it adds nothing there.
    np.add.at(votes, (rows, codes.ravel()), weights.ravel())
    return np.asarray(votes / votes.sum(axis=1, keepdims=True), dtype=np.float32)


Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

#: Logit of a class without cells: it is never the answer.
NEVER = -30.0


class Head:
    """Linear classifier ``vectors @ W.T + b``.

    Parameters
    ----------
    W, b
        (n_classes, dim) and (n_classes,) float32.
    activation
        ``"gelu"`` for a head trained together with its encoder, ``"none"`` for one trained on fixed vectors.
    """

    def __init__(self, W: Float32, b: Float32, activation: str = "none") -> None:
        if activation not in ("none", "gelu"):
            raise ValueError(f"unknown activation {activation!r}")
        self.W, self.b, self.activation = W, b, activation

    @classmethod
    def of_centers(cls, centers: Float32) -> Head:
        """Return the classifier whose score is the cosine to the mean vector of a class.

        Parameters
        ----------
        centers
            (n_classes, dim) float32; zeros for a class without cells, which is never the answer.
        """
        lengths = np.linalg.norm(centers, axis=1, keepdims=True)
        empty = lengths[:, 0] < 1e-9
        return cls(
            (centers / np.maximum(lengths, 1e-9)).astype(np.float32),
            np.where(empty, NEVER, 0.0).astype(np.float32),
        )

    @classmethod
    def fit(
        cls,
        encoder: CellEncoder,
        vectors: Float32,
        labels: npt.NDArray[np.int64],
        n_classes: int,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Head:
        """Take the head that the encoder trained with itself, else fit one on its vectors (n, dim)."""
        W, b = getattr(encoder, "W", None), getattr(encoder, "b", None)
        if W is not None and b is not None:
            # The encoder knows classes up to the last one it saw, and some of those it never saw.
            missing = n_classes - len(b)
            W, b = np.pad(W, ((0, missing), (0, 0))), np.pad(b, (0, missing))
            absent = np.bincount(labels[labels >= 0], minlength=n_classes) == 0
            W[absent], b[absent] = 0.0, NEVER
            return cls(W, b, "gelu")
        from sklearn.linear_model import LogisticRegression

        progress("training the head", 0, 1)
        rows = labels >= 0
        mean, sd = vectors[rows].mean(axis=0), np.maximum(vectors[rows].std(axis=0), 1e-6)
        counts = np.bincount(labels[rows], minlength=n_classes)
        weights = 1.0 / np.sqrt(counts[labels[rows]])
        model = LogisticRegression(C=0.1, max_iter=300, random_state=seed)
        model.fit((vectors[rows] - mean) / sd, labels[rows], sample_weight=weights / weights.mean())
        W = np.zeros((n_classes, vectors.shape[1]), dtype=np.float64)
        b = np.full(n_classes, NEVER)
        if len(model.classes_) == 2:
            W[model.classes_] = np.vstack([-model.coef_, model.coef_]) / 2
            b[model.classes_] = np.array([-model.intercept_[0], model.intercept_[0]]) / 2
        else:
            W[model.classes_], b[model.classes_] = model.coef_, model.intercept_
        # Fold the standardisation into the weights: encode and score stay two matrix products.
        W = W / sd
        progress("training the head", 1, 1)
        return cls(W.astype(np.float32), (b - W @ mean).astype(np.float32))

    def scores(self, vectors: Float32) -> Float32:
        """Return (n, n_classes) logits for cell vectors (n, dim)."""
        if self.activation == "gelu":
            from scipy.special import ndtr

            # gelu by its definition, x Phi(x) (Hendrycks and Gimpel 2016, arXiv:1606.08415)
            vectors = (vectors * ndtr(vectors)).astype(np.float32)
        return np.asarray(vectors @ self.W.T + self.b, dtype=np.float32)

    def directions(self, vectors: Float32, a: Int64, b: Int64) -> tuple[Float64, Float64]:
        """Return the score of class ``a[i]`` less that of ``b[i]`` as a product with the cell vector.

        Integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365) along the straight line from the
        vector 0, where the score is that of the intercepts alone. Each dimension passes through gelu by
        itself, so the integral is known: that of gelu'(t c) over t from 0 to 1 is gelu(c) / c = Phi(c).

        Returns
        -------
        directions
            (n, dim); row i times the vector of cell i, and the constant, are the difference of the scores.
        constant
            (n,) difference of the intercepts.
        """
        from scipy.special import ndtr

        W = (self.W[a] - self.W[b]).astype(np.float64)
        if self.activation == "gelu":
            W *= ndtr(vectors.astype(np.float64))
        return W, (self.b[a] - self.b[b]).astype(np.float64)

    def state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Return what ``Head`` takes."""
        return {"W": self.W, "b": self.b}, {"activation": self.activation}
