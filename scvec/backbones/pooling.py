"""From token vectors to one vector a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

__all__ = ["POOLINGS", "Pooling", "last_vectors", "mean_vectors", "padded", "prompt_around"]

#: ``mean`` of all tokens; the ``last`` token; the last token of a prompt that asks for the text in one word.
Pooling = Literal["mean", "last", "eol"]
POOLINGS: tuple[Pooling, ...] = ("mean", "last", "eol")

#: PromptEOL, with the open quotation mark at which the answer would begin (Jiang et al. 2023,
#: "Scaling Sentence Embeddings with Large Language Models", arXiv 2307.16645).
PROMPT_EOL = 'This sentence : "{}" means in one word:"'


def prompt_around(text: str, pooling: Pooling) -> str:
    """Return what the model reads for a text."""
    return PROMPT_EOL.format(text) if pooling == "eol" else text


def mean_vectors(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean (n, dim) float32 of token vectors (n, length, dim) where ``mask`` (n, length) is 1."""
    weights = mask.unsqueeze(-1).float()
    # Not a product with the mask: what a model gives at a padded place may be NaN.
    kept = tokens.float().masked_fill(weights == 0, 0.0)
    return kept.sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)


def last_vectors(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the vector (n, dim) float32 at the last place where ``mask`` (n, length) is 1.

    Padding may be on either side.
    """
    import torch

    places = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask.bool(), places, 0).amax(dim=1)
    rows = torch.arange(mask.shape[0], device=mask.device)
    return tokens[rows, last].float()


def padded(ids: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and mask, both (n, longest) int64, padded on the right.

    On the right for every model, whatever side its tokenizer would take: positions then count from the
    first token as they do for a text alone, and no causal model sees what comes after.
    """
    import torch

    length = max(len(row) for row in ids)
    tokens = torch.full((len(ids), length), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(ids), length), dtype=torch.int64)
    for i, row in enumerate(ids):
        tokens[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[i, : len(row)] = 1
    return tokens, mask
