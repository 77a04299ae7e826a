"""Common parts of the tests of the prompt encoder: cells, an encoder, and vectors in various batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from tiny_llama import planted

from scvec.backbones.hf import CausalModel
from scvec.base.types import CellChunk
from scvec.encoders.prompt import PromptEncoder, PromptOptions

TINY = PromptOptions(n_genes=24, warm_steps=3, epochs=2, epoch_cells=48, batch_size=12, micro_batch=5)
#: Cells with 1 to 24 expressed genes, and one cell without any.
CELLS = planted(40, seed=7, sparse=1.0)


def make(model: CausalModel, **options: Any) -> PromptEncoder:
    chosen = replace(TINY, **options)
    return PromptEncoder(planted().text, chosen, None if chosen.order == "none" else model)


def rows(numbers: Any) -> CellChunk:
    return CELLS.chunk.take(np.asarray(numbers))


def cosines(a: Any, b: Any) -> Any:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def padded_further(encoder: PromptEncoder) -> Any:
    """Vectors of all cells with extra padding, which only the mask can neutralise."""
    import torch

    from scvec.encoders.prompt import Batch
    from scvec.encoders.sentence import ranked

    network = encoder._network
    assert network is not None and encoder._ready is not None
    slots = ranked(CELLS.chunk.X, encoder.options.n_genes)
    with torch.inference_mode():
        batch = Batch.of(slots.take(np.arange(40), encoder.options.n_genes + 5), "cpu")
        return network(batch, *encoder._ready).numpy()


def company(encoder: PromptEncoder, *, further: bool = True) -> Iterator[Any]:
    """Vectors of all cells: alone, in odd batches, reversed, with extra padding, and without the prefix."""
    yield np.concatenate([encoder.encode(rows([i])) for i in range(40)])
    yield np.concatenate([encoder.encode(rows(part)) for part in np.array_split(np.arange(40), 7)])
    yield encoder.encode(rows(np.arange(40)[::-1]))[::-1]
    encoder.micro_batch = 40
    yield encoder.encode(rows(np.arange(40)))
    if further:
        yield padded_further(encoder)
    encoder.use_prefix, encoder._ready, encoder.micro_batch = False, None, 5
    yield encoder.encode(rows(np.arange(40)))
    encoder.use_prefix, encoder._ready = True, None
