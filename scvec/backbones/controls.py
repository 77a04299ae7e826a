"""Backbones that read no text: random directions, and the vectors of a space of the store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from scvec.backbones import BackboneSpec, LoadOptions, backbone
from scvec.base.errors import InputError
from scvec.base.types import Float32, Space, text_sha256

__all__ = ["RandomBackbone", "StoredBackbone", "permutation"]


@backbone("random:DIM", reads_text=False)
class RandomBackbone:
    """A random direction per text: the same text always has the same one."""

    def __init__(self, dim: int, template: str = "default") -> None:
        if not 1 <= dim <= 65536:
            fix = "give one from 1 to 65536, as random:384"
            raise InputError(
                f"random:{dim} is not a dimension", "--backbone", fix, code="option-out-of-range"
            )
        self.space = Space(
            backbone=f"random:{dim}",
            revision="1",
            weights_sha256="",
            template=template,
            pooling="none",
            dim=dim,
            normalized=True,
        )

    @classmethod
    def load(cls, spec: BackboneSpec, options: LoadOptions) -> RandomBackbone:
        """Return the one of the dimension of a SPEC."""
        return cls(int(spec.argument), spec.template)

    def encode(self, texts: Sequence[str]) -> Float32:
        """Return (n, dim) float32 vectors of length 1."""
        vectors = np.empty((len(texts), self.space.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            seed = int(text_sha256(text)[:16], 16)
            vectors[row] = np.random.default_rng(seed).standard_normal(self.space.dim, dtype=np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)


@backbone("stored:NAME", reads_text=False, is_stored=True)
class StoredBackbone:
    """A space of the store: its vectors are there, and no text can be encoded into it."""

    @classmethod
    def load(cls, spec: BackboneSpec, options: LoadOptions) -> StoredBackbone:
        """Raise InputError."""
        raise InputError(
            "the vectors of a stored space are as they are: no text can be encoded into it",
            f"--backbone stored:{spec.argument}",
            "give it to scvec ingest cells, or name a backbone that encodes",
        )


def permutation(gene_ids: Sequence[str], seed: int = 0) -> npt.NDArray[np.int64]:
    """Return which gene's vector each gene gets under ``permuted:``; independent of the order given."""
    order = np.argsort(np.asarray(gene_ids, dtype=str), kind="stable")
    shuffled = np.random.default_rng(seed).permutation(len(order))
    given = np.empty(len(order), dtype=np.int64)
    given[order] = order[shuffled]
    return given
