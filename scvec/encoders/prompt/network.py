"""The trained parts of the prompt encoder around a frozen language model. Loads torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scvec.base.types import LanguageModel
from scvec.encoders.prompt.slots import Slots

__all__ = ["Batch", "PromptNetwork"]

#: Divides log1p CP10k, which ends at 9.2, before it is embedded.
VALUE_SCALE = 5.0


class Batch(NamedTuple):
    """Slots on the device: genes (n, length) int64, values (n, length) float32, mask (n, length) bool."""

    genes: Tensor
    values: Tensor
    mask: Tensor

    @classmethod
    def of(cls, slots: Slots, device: str) -> Batch:
        """Copy slots to a device; to a GPU from pinned memory, without waiting."""
        parts = (torch.from_numpy(a) for a in (slots.genes, slots.values, slots.mask))
        if device == "cpu":
            return cls(*parts)
        return cls(*(part.pin_memory().to(device, non_blocking=True) for part in parts))


class PromptNetwork(nn.Module):
    """From slots to the language model's last state, and from that to class scores.

    What is read is one sequence a cell: a part that all cells share, the cell's gene slots, padding, and a
    part that all share at the end, of which the last place is read. Padding stands in the middle: the mask
    hides it from every later place, and positions are counted over what is not hidden, so a cell's vector is
    that of the cell alone.

    Parameters
    ----------
    text
        (n_genes, text_dim) float32 text vectors, centred.
    language_model
        None for the order ``none``.
    """

    text: Tensor
    words: Tensor
    class_token: nn.Parameter

    def __init__(
        self,
        text: Tensor,
        n_classes: int,
        *,
        order: str,
        instruction: str,
        language_model: LanguageModel | None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.order = order
        # Not a child: what is frozen is neither saved nor counted among the parameters.
        self._lm: list[LanguageModel] = [] if language_model is None else [language_model]
        width = text.shape[1] if language_model is None else language_model.dim
        words = self._words(instruction)
        # Slots start as loud as words are: the frozen model knows no others.
        loudness = float(words.float().pow(2).mean().sqrt()) if len(words) else 1.0
        self.register_buffer("text", text, persistent=False)
        self.register_buffer("words", words, persistent=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            hidden = max(64, min(2 * text.shape[1], width))
            self.project = nn.Sequential(
                nn.Linear(text.shape[1], hidden), nn.GELU(), nn.Linear(hidden, width)
            )
            self.value = nn.Sequential(nn.Linear(1, 64), nn.GELU(), nn.Linear(64, width))
            self.norm = nn.LayerNorm(width)
            self.class_token = nn.Parameter(torch.randn(width) * loudness)
            self.head = nn.Linear(width, n_classes)
        nn.init.constant_(self.norm.weight, loudness)
        adapters = {} if language_model is None else language_model.adapters
        self.adapters = nn.ParameterDict({name.replace(".", "/"): p for name, p in adapters.items()})

    @property
    def language_model(self) -> LanguageModel | None:
        """The frozen model."""
        return self._lm[0] if self._lm else None

    def _words(self, instruction: str) -> Tensor:
        """Return (n, width) float32 input vectors of the start token and the instruction."""
        lm = self.language_model
        return torch.zeros(0, 1) if lm is None else lm.embed(lm.tokens(instruction)).float().cpu()

    @property
    def n_shared(self) -> int:
        """Positions of a sequence that do not hold genes."""
        return len(self.words) + (self.order == "paper") if self._lm else 0

    def gene_table(self) -> Tensor:
        """Return (n_genes, width) float32: every gene's projected text vector, without its value."""
        projected: Tensor = self.project(self.text)
        return projected

    def slots(self, batch: Batch, table: Tensor | None = None) -> Tensor:
        """Return (n, length, width) float32 gene slots, zero where padded."""
        if table is None:  # a batch has fewer genes than there are
            used, where = torch.unique(batch.genes, return_inverse=True)
            genes = F.embedding(where, self.project(self.text[used]))
        else:
            genes = F.embedding(batch.genes, table)
        values = (batch.values / VALUE_SCALE).unsqueeze(-1)
        # In the published code the value is a factor; in the paper it is told beside the gene.
        slots: Tensor = (
            self.norm(genes) * values if self.order == "code" else self.norm(genes + self.value(values))
        )
        return slots.masked_fill(~batch.mask.unsqueeze(-1), 0.0)

    def mean_slot(self, batch: Batch) -> Tensor:
        """Return (n, width) float32 the mean of each cell's slots; zero of a cell without genes."""
        counts = batch.mask.sum(dim=1, keepdim=True).clamp(min=1)
        mean: Tensor = self.slots(batch).sum(dim=1) / counts
        return mean

    def forward(self, batch: Batch, table: Tensor | None = None, prefix: Any = None) -> Tensor:
        """Return (n, width) float32 cell vectors of mean 0 and variance 1.

        Parameters
        ----------
        table
            What :meth:`gene_table` returns, where it has been computed for many batches.
        prefix
            What :meth:`prefix` returns: the instruction need not be read again.
        """
        lm = self.language_model
        if lm is None:
            state = self.mean_slot(batch) + self.class_token
            return F.layer_norm(F.gelu(state), state.shape[-1:])
        slots = self.slots(batch, table)
        n = len(slots)
        token = self.class_token.expand(n, 1, -1)
        words = self.words.expand(n, -1, -1)
        # The start token comes first in both orders: it also keeps the first gene slot from being alone with
        # nothing to attend to where a cell has no genes at all.
        before, after = (words, token) if self.order == "paper" else (words[:, :1], words[:, 1:])
        ones = _ones_like(batch.mask)
        mask = torch.cat([ones(before.shape[1]), batch.mask, ones(after.shape[1])], dim=1)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        if prefix is not None:
            read, positions = [slots, after], positions[:, before.shape[1] :]
        else:
            read = [before, slots, after]
        states = lm.run(torch.cat(read, dim=1), mask, positions, prefix=prefix)
        last = states[:, -1].float()
        return F.layer_norm(last, last.shape[-1:])

    def scores(self, vectors: Tensor) -> Tensor:
        """Return (n, n_classes) logits of cell vectors."""
        logits: Tensor = self.head(F.gelu(vectors))
        return logits

    def prefix(self) -> Any:
        """Return keys and values of the instruction, computed once for all cells; None where there are none.

        Only the order ``paper`` begins with it, and only plain attention layers keep what can be shared.
        """
        lm = self.language_model
        if lm is None or self.order != "paper":
            return None
        return lm.prefix(self.words.unsqueeze(0))


def _ones_like(mask: Tensor) -> Callable[[int], Tensor]:
    return lambda length: mask.new_ones(len(mask), length)
