"""A LLaMA of about 140,000 random parameters on the disk, and cells of planted classes for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from scvec.base.types import CellChunk

WORDS = "cell gene genes expresses expression what type single from the one is this of to".split()
N_GENES, TEXT_DIM, WIDTH = 80, 24, 64


def save_llama(folder: Path, *, seed: int = 0, positions: int = 256, width: int = WIDTH) -> Path:
    """Write model and tokenizer to a folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        # Weights of a usual size leave three layers so near to the identity that masks hardly matter.
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Cells:
    """Cells of three classes, each with ten genes of its own, and the texts' vectors of the genes."""

    chunk: CellChunk
    labels: Any
    batches: Any
    text: Any


def planted(n: int = 90, *, seed: int = 0, sparse: float = 0.0) -> Cells:
    """Return cells; ``sparse`` is the share of values that some cells lack, so that lengths differ."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    rate = np.full((n, N_GENES), 0.4)
    for k in range(3):
        rate[labels == k, 10 * k : 10 * k + 10] = 4.0
    counts = rng.poisson(rate).astype(np.float32)
    counts *= rng.random((n, N_GENES)) >= sparse * rng.random((n, 1))
    X = sp.csr_matrix(np.log1p(counts * 40))
    text = np.random.default_rng(99).normal(size=(N_GENES, TEXT_DIM)).astype(np.float32)
    for k in range(3):  # genes of a class are described alike
        text[10 * k : 10 * k + 10] += 2 * np.random.default_rng(k).normal(size=TEXT_DIM)
    batches = np.array([f"donor{i // 3 % 4}" for i in range(n)])
    return Cells(CellChunk(X, np.ones(N_GENES, bool)), labels, batches, text)
