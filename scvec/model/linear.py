"""A voice: a linear classifier on the cells' profiles, in closed form."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scvec.profiles import Profile
from scvec.types import CellChunk, Float32

__all__ = ["Linear"]

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

#: Ridge penalty; profiles have length 1, cells a mean weight of 1. Macro-F1 is flat from a third of it to ten
#: times as much: more goes towards prototypes, less towards the narrow boundary between two like types.
PENALTY = 1.5
#: Cells that are dense at a time.
BLOCK = 4096


class Linear:
    """Ridge regression of class membership on profiles of length 1, all classes counting alike.

    Between the prototypes, which take genes for independent, and the head, which learns what tells the
    reference's cells apart and little else: shrinkage keeps many genes in play. Hoerl and Kennard 1970
    (doi:10.1080/00401706.1970.10488634).

    Parameters
    ----------
    W, b
        (n_classes, n_genes) and (n_classes,) float32.
    """

    def __init__(self, W: Float32, b: Float32, profile: Profile) -> None:
        if W.shape != (len(b), len(profile.mean)):
            raise ValueError(f"weights {W.shape} for {len(b)} classes and {len(profile.mean)} genes")
        self.W, self.b, self.profile = W, b, profile

    @classmethod
    def fit(cls, cells: CellChunk, labels: npt.NDArray[np.int64], n_classes: int, profile: Profile) -> Linear:
        """Learn from labelled cells; ``labels`` (n,) int64, -1 for none."""
        from scipy.linalg import solve

        rows = np.flatnonzero(labels >= 0)
        y = labels[rows]
        counts = np.bincount(y, minlength=n_classes)
        weights = 1.0 / counts[y]
        weights *= len(y) / weights.sum()
        n_genes = cells.X.shape[1]
        share = weights @ np.eye(n_classes)[y] / len(y)
        if len(y) < n_genes:
            # Cells or genes, whichever are fewer, are what has to be solved for.
            X = profile.unit(CellChunk(cells.X[rows], cells.measured))
            mean = weights @ X / len(y)
            # Products in single precision: their error is a millionth of the penalty, the time a half.
            X -= mean.astype(np.float32)
            X *= np.sqrt(weights).astype(np.float32)[:, None]
            Y = (np.eye(n_classes)[y] - share) * np.sqrt(weights)[:, None]
            gram = (X @ X.T).astype(np.float64)
            gram[np.diag_indices_from(gram)] += PENALTY
            W = X.T.astype(np.float64) @ solve(gram, Y, assume_a="pos", overwrite_a=True)
        else:
            gram, sums = np.zeros((n_genes, n_genes)), np.zeros((n_genes, n_classes))
            for start in range(0, len(y), BLOCK):
                block = slice(start, start + BLOCK)
                X = profile.unit(CellChunk(cells.X[rows[block]], cells.measured))
                root = np.sqrt(weights[block])[:, None]
                X *= root.astype(np.float32)
                gram += X.T @ X
                sums += X.T.astype(np.float64) @ (np.eye(n_classes)[y[block]] * root)
            # About the means, of which the products need nothing before: weights add up to the cells.
            mean = sums.sum(axis=1) / len(y)
            gram -= len(y) * np.outer(mean, mean)
            gram[np.diag_indices_from(gram)] += PENALTY
            W = solve(gram, sums - len(y) * np.outer(mean, share), assume_a="pos", overwrite_a=True)
        return cls(
            np.ascontiguousarray(W.T, dtype=np.float32), (share - mean @ W).astype(np.float32), profile
        )

    def scores(self, chunk: CellChunk) -> Float32:
        """Return (n, n_classes) memberships, about 0 to 1."""
        found = self.profile.unit_product(chunk, np.ascontiguousarray(self.W.T)) + self.b
        return np.asarray(found, dtype=np.float32)

    def contributions(self, chunk: CellChunk, a: Int64, b: Int64) -> tuple[Float64, Float64]:
        """Return what genes add to the score of class ``a[i]`` less that of ``b[i]``, and what none adds.

        Returns
        -------
        genes
            (n, n_genes), exact: the score is a sum over genes of profile times weight.
        constant
            (n,) difference of the intercepts.
        """
        u = self.profile.shared(chunk.measured).astype(np.float64)
        W = (self.W[a] - self.W[b]).astype(np.float64)
        # Profiles have no part along the shared direction: what weights have there says nothing of a gene.
        W -= np.outer(W @ u, u)
        return self.profile.unit(chunk) * W, (self.b[a] - self.b[b]).astype(np.float64)
