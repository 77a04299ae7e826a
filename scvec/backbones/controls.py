"""Backbones that do not read texts: random vectors, and the vectors of a space of the store."""

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
    """A random unit vector for each text; equal texts have equal vectors."""

    def __init__(self, dim: int, template: str = "default") -> None:
        if not 1 <= dim <= 65536:
            fix = "give a dimension from 1 to 65536, such as random:384"
            raise InputError(
                f"random:{dim} has no valid dimension", "--backbone", fix, code="option-out-of-range"
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
        """Return a backbone with the dimension of a SPEC."""
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
    """A space of the store. Its vectors exist already; it cannot encode texts."""

    @classmethod
    def load(cls, spec: BackboneSpec, options: LoadOptions) -> StoredBackbone:
        """Raise InputError, because a stored space cannot encode texts."""
        raise InputError(
            "a stored space cannot encode texts",
            f"--backbone stored:{spec.argument}",
            "use it with scvec ingest cells, or give a backbone that encodes texts",
        )


def permutation(gene_ids: Sequence[str], seed: int = 0) -> npt.NDArray[np.int64]:
    """Return for each gene the row of the gene whose vector it gets under ``permuted:``.

    The assignment does not depend on the order of the genes.
    """
    order = np.argsort(np.asarray(gene_ids, dtype=str), kind="stable")
    shuffled = np.random.default_rng(seed).permutation(len(order))
    given = np.empty(len(order), dtype=np.int64)
    given[order] = order[shuffled]
    return given
