"""What the prompt encoder is made and trained with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from scvec.base.errors import InputError

__all__ = ["INSTRUCTION", "ORDERS", "PromptOptions", "PromptOrder"]

#: ``paper``: instruction, genes, class token (Li et al. 2024, scInterpreter, arXiv:2402.12405). ``code``:
#: genes scaled by their values, then the instruction, of which the last token is read, as the code
#: published with it does. ``none``: no language model, the mean of the gene slots.
PromptOrder = Literal["paper", "code", "none"]
ORDERS: tuple[PromptOrder, ...] = ("paper", "code", "none")

INSTRUCTION = (
    "You are an expert in single-cell biology. Below are the genes that one cell expresses, from the highest "
    "to the lowest expression, each given by what is known about its function. Read them, and decide from "
    "the genes alone what type of cell this is."
)

#: Genes of a cell that are read where nothing else is asked for, per device.
N_GENES = {"cuda": 2048, "cpu": 256}
#: Cells that are seen in an epoch at most, per device: a frozen model of 135M parameters takes half a second
#: a cell on one CPU core.
EPOCH_CELLS = {"cuda": 8192, "cpu": 384}
#: Cells of a step, per device: where cells are dear, more steps of fewer learn more.
BATCH = {"cuda": 64, "cpu": 16}
#: Cells that are computed at once at first, per device.
MICRO_BATCH = {"cuda": 32, "cpu": 16}


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """Options of :class:`scvec.encoders.prompt.prompt_encoder.PromptEncoder`.

    Attributes
    ----------
    n_genes
        Genes of a cell that are read.
    lora
        Rank of the low-rank adapters trained inside the language model (needs ``peft``); 0 for none.
    epochs
        Epochs at most; 0 leaves projector and class token as they start (a control).
    epoch_cells
        Cells drawn in an epoch at most, class-balanced.
    batch_size
        Cells of a step of the optimizer. As many at once as fit the memory: ``micro_batch`` at first.
    patience
        Epochs without a better held-out macro-F1 after which training ends.
    warm_steps
        Steps that the projection learns by itself before the language model reads it.
    gene_drop
        Largest fraction of the genes of a cell that a step leaves out.
    """

    n_genes: int = 256
    order: PromptOrder = "paper"
    lora: int = 0
    epochs: int = 8
    epoch_cells: int = 384
    batch_size: int = 32
    micro_batch: int = 16
    lr: float = 3e-3
    warm_steps: int = 150
    weight_decay: float = 0.01
    warmup: float = 0.1
    patience: int = 3
    gene_drop: float = 0.3
    label_smoothing: float = 0.05
    max_norm: float = 1.0
    instruction: str = INSTRUCTION

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            fix = f"orders: {', '.join(ORDERS)}"
            raise InputError(f"there is no prompt order {self.order!r}", "--prompt-order", fix)
        for name, least in (("n_genes", 1), ("lora", 0), ("epochs", 0), ("epoch_cells", 1)):
            if getattr(self, name) < least:
                option = "--" + name.replace("_", "-")
                raise InputError(
                    f"{option} must be {least} or more",
                    option,
                    "leave it out for the default",
                    code="option-out-of-range",
                )
        if self.lora and self.order == "none":
            raise InputError(
                "there is no language model to adapt where the order is none", "--lora", "leave it out"
            )

    @classmethod
    def for_device(
        cls,
        device: str,
        *,
        n_genes: int | None = None,
        order: str = "paper",
        lora: int = 0,
        epochs: int | None = None,
    ) -> PromptOptions:
        """Return options that suit ``cpu`` or ``cuda``; None stands for the default there."""
        return cls(
            n_genes=N_GENES[device] if n_genes is None else n_genes,
            order=order,  # type: ignore[arg-type]  # checked at once
            lora=lora,
            epochs=8 if epochs is None else epochs,
            epoch_cells=EPOCH_CELLS[device],
            batch_size=BATCH[device],
            micro_batch=MICRO_BATCH[device],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)
