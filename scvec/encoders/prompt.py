"""Encoder after scInterpreter: a frozen language model reads a cell's genes; its last state is the vector."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scvec.base.errors import InputError, ResourceError, StoreError, check_choice, check_range
from scvec.base.types import CellChunk, Float32, Int64, LanguageModel, Progress, State, no_progress
from scvec.encoders import Material, Models, encoder
from scvec.encoders.adapted import Schedule, centred, class_weights
from scvec.encoders.adapted import train as train_loop
from scvec.encoders.sentence import Slots, packed, ranked, split

__all__ = ["ORDERS", "Batch", "PromptEncoder", "PromptOptions", "held_out_rows"]

#: Divisor of log1p CP10k values, whose maximum is 9.2, before they are embedded.
VALUE_SCALE = 5.0


class Batch(NamedTuple):
    """Slots on the device: genes (n, length) int64, values (n, length) float32, mask (n, length) bool."""

    genes: Tensor
    values: Tensor
    mask: Tensor

    @classmethod
    def of(cls, slots: Slots, device: str) -> Batch:
        """Copy slots to a device. The copy to a GPU is asynchronous, from pinned memory."""
        parts = (torch.from_numpy(a) for a in (slots.genes, slots.values, slots.mask))
        if device == "cpu":
            return cls(*parts)
        return cls(*(part.pin_memory().to(device, non_blocking=True) for part in parts))


class PromptNetwork(nn.Module):
    """Maps gene slots to the last state of the language model, and this state to class scores.

    The model reads one sequence per cell: a prefix common to all cells, the gene slots of the cell, padding,
    and a common suffix. The state at the last place is the cell vector. The mask hides the padding from the
    suffix, and positions are counted without it. The vector of a cell is thus independent of its batch.

    Parameters
    ----------
    text
        (n_genes, text_dim) float32 text vectors, centred.
    n_classes
        Number of classes of the head.
    order, instruction
        As in :class:`PromptOptions`.
    language_model
        None for the order ``none``.
    seed
        Seed of the initial weights.
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
        # In a list, so that torch does not register the frozen model as a submodule with parameters.
        self._lm: list[LanguageModel] = [] if language_model is None else [language_model]
        width = text.shape[1] if language_model is None else language_model.dim
        words = self._words(instruction)
        # Slots start with the scale of word vectors, the only inputs that the frozen model was trained on.
        scale = float(words.float().pow(2).mean().sqrt()) if len(words) else 1.0
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
            self.class_token = nn.Parameter(torch.randn(width) * scale)
            self.head = nn.Linear(width, n_classes)
        nn.init.constant_(self.norm.weight, scale)

    @property
    def language_model(self) -> LanguageModel | None:
        """The frozen model."""
        return self._lm[0] if self._lm else None

    def _words(self, instruction: str) -> Tensor:
        """Return (n, width) float32 input vectors of the start token and the instruction."""
        lm = self.language_model
        return torch.zeros(0, 1) if lm is None else lm.embed(lm.tokens(instruction)).float().cpu()

    def gene_table(self) -> Tensor:
        """Return the projected text vectors of all genes, (n_genes, width) float32, without values."""
        projected: Tensor = self.project(self.text)
        return projected

    def slots(self, batch: Batch, table: Tensor | None = None) -> Tensor:
        """Return (n, length, width) float32 gene slots, zero where padded."""
        if table is None:  # project only the genes of this batch
            used, where = torch.unique(batch.genes, return_inverse=True)
            genes = F.embedding(where, self.project(self.text[used]))
        else:
            genes = F.embedding(batch.genes, table)
        values = (batch.values / VALUE_SCALE).unsqueeze(-1)
        # The published code multiplies the gene by its value; the paper adds an embedding of the value.
        slots: Tensor = (
            self.norm(genes) * values if self.order == "code" else self.norm(genes + self.value(values))
        )
        return slots.masked_fill(~batch.mask.unsqueeze(-1), 0.0)

    def mean_slot(self, batch: Batch) -> Tensor:
        """Return (n, width) float32 means of the slots of each cell; zeros for a cell without genes."""
        counts = batch.mask.sum(dim=1, keepdim=True).clamp(min=1)
        mean: Tensor = self.slots(batch).sum(dim=1) / counts
        return mean

    def forward(self, batch: Batch, table: Tensor | None = None, prefix: Any = None) -> Tensor:
        """Return (n, width) float32 cell vectors of mean 0 and variance 1.

        Parameters
        ----------
        table
            The result of :meth:`gene_table`, to reuse it for many batches.
        prefix
            The result of :meth:`prefix`, so that the model does not read the instruction again.
        """
        lm = self.language_model
        if lm is None:
            state = self.mean_slot(batch) + self.class_token
            return F.layer_norm(F.gelu(state), state.shape[-1:])
        slots = self.slots(batch, table)
        n = len(slots)
        token = self.class_token.expand(n, 1, -1)
        words = self.words.expand(n, -1, -1)
        # The start token comes first in both orders. It gives the first slot something to attend to, also
        # for a cell without genes.
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
        """Return keys and values of the instruction, computed once for all cells, or None.

        Only the order ``paper`` begins with the instruction, and only plain attention layers have keys and
        values that cells can share.
        """
        lm = self.language_model
        if lm is None or self.order != "paper":
            return None
        return lm.prefix(self.words.unsqueeze(0))


def _ones_like(mask: Tensor) -> Callable[[int], Tensor]:
    return lambda length: mask.new_ones(len(mask), length)


#: ``paper``: instruction, genes, class token (Li et al. 2024, scInterpreter, arXiv:2402.12405). ``code``, as
#: in the code of that paper: genes multiplied by their values, then the instruction, whose last token gives
#: the vector. ``none``: the mean of the gene slots, without a language model.
PromptOrder = Literal["paper", "code", "none"]
ORDERS: tuple[PromptOrder, ...] = ("paper", "code", "none")

INSTRUCTION = (
    "You are an expert in single-cell biology. Below are the genes that one cell expresses, from the highest "
    "to the lowest expression, each given by what is known about its function. Read them, and decide from "
    "the genes alone what type of cell this is."
)

#: Default number of genes per cell, for each device.
N_GENES = {"cuda": 2048, "cpu": 256}
#: Largest number of cells in an epoch, for each device. A frozen model of 135M parameters needs half a second
#: per cell on one CPU core.
EPOCH_CELLS = {"cuda": 8192, "cpu": 384}
#: Cells per optimizer step, for each device. With few cells per epoch, more and smaller steps learn more.
BATCH = {"cuda": 64, "cpu": 16}
#: Initial number of cells computed at once, for each device. It is halved when memory runs out.
MICRO_BATCH = {"cuda": 32, "cpu": 16}


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """Options of :class:`scvec.encoders.prompt.PromptEncoder`.

    Attributes
    ----------
    n_genes
        Largest number of genes that the model reads per cell.
    order
        Order of the prompt, one of :data:`ORDERS`.
    epochs
        Largest number of epochs; 0 leaves projection and class token untrained (a control).
    epoch_cells
        Largest number of cells drawn in an epoch, class-balanced.
    batch_size
        Cells per optimizer step.
    micro_batch
        Cells computed at once at first. It is halved when memory runs out; steps keep their size.
    patience
        Training stops after this many epochs without a better held-out macro-F1.
    warm_steps
        Steps of the projection alone, before the language model reads its output.
    gene_drop
        Largest fraction of the genes of a cell that a step leaves out.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    n_genes: int = 256
    order: PromptOrder = "paper"
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
        check_choice("--prompt-order", self.order, ORDERS)
        for name, least in (("n_genes", 1), ("epochs", 0), ("epoch_cells", 1)):
            check_range(f"--{name.replace('_', '-')}", getattr(self, name), least)

    @classmethod
    def for_device(
        cls,
        device: str,
        *,
        n_genes: int | None = None,
        order: str = "paper",
        epochs: int | None = None,
    ) -> PromptOptions:
        """Return options for ``cpu`` or ``cuda``; None means the default of the device."""
        return cls(
            n_genes=N_GENES[device] if n_genes is None else n_genes,
            order=order,  # type: ignore[arg-type]  # checked at once
            epochs=8 if epochs is None else epochs,
            epoch_cells=EPOCH_CELLS[device],
            batch_size=BATCH[device],
            micro_batch=MICRO_BATCH[device],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


STAGE = "training the prompt encoder"


def held_out_rows(
    labels: Int64, batches: npt.NDArray[np.str_] | None, *, most: int, seed: int
) -> tuple[Int64, str]:
    """Choose the held-out cells for early stopping.

    With three batches or more, one whole batch is held out: the batch whose size is nearest to a sixth of the
    cells, if it has at most a third of them. Its labels that no other batch has are left out. Otherwise a
    tenth of the cells of each label is held out, because one of two batches would be too much to lose.

    Parameters
    ----------
    labels
        (n,) int64 class numbers; -1 marks an unlabelled cell.
    batches
        (n,) str batch of each cell, or None.
    most
        Largest number of cells.

    Returns
    -------
    tuple
        Row numbers (m,) int64, ascending, and ``"batch"`` or ``"cells"``.
    """
    rng = np.random.default_rng([seed, 1])
    labelled = np.flatnonzero(labels >= 0)
    held, how = np.zeros(len(labels), dtype=bool), "cells"
    batch_of = np.zeros(len(labels), dtype=str) if batches is None else batches
    names, sizes = np.unique(batch_of[labelled], return_counts=True)
    fractions = sizes / max(1, len(labelled))
    if len(names) >= 3 and (fractions <= 1 / 3).any():
        best = int(np.abs(np.where(fractions <= 1 / 3, fractions, np.inf) - 1 / 6).argmin())
        held, how = (batch_of == names[best]) & (labels >= 0), "batch"
        held &= np.isin(labels, np.unique(labels[~held & (labels >= 0)]))
    if not held.any():
        how = "cells"
        for label in np.unique(labels[labelled]):
            rows = rng.permutation(np.flatnonzero(labels == label))
            held[rows[: len(rows) // 10 or int(len(rows) >= 4)]] = True
    rows = np.flatnonzero(held)
    return np.sort(rng.permutation(rows)[:most]) if len(rows) > most else rows, how


@dataclass
class Trainer:
    """One training of a network.

    Attributes
    ----------
    X
        (n, n_genes) CSR cells, log1p CP10k.
    labels
        (n,) int64 class numbers, -1 for none.
    batches
        (n,) str batch of each cell, or None.
    notes
        Notes for the user.
    history
        Loss and held-out macro-F1 of each epoch.
    """

    network: PromptNetwork
    X: Any
    labels: Int64
    options: PromptOptions
    batches: npt.NDArray[np.str_] | None = None
    seed: int = 0
    device: str = "cpu"
    precision: str = "fp32"
    progress: Progress = no_progress
    notes: list[str] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)

    def run(self) -> None:
        """Train the network, and restore the weights of the epoch with the best held-out macro-F1.

        Raises
        ------
        ResourceError
            If memory runs out for a single cell.
        """
        options, network = self.options, self.network.to(self.device)
        most = max(16, options.epoch_cells // 4)
        held, how = held_out_rows(self.labels, self.batches, most=most, seed=self.seed)
        train = np.setdiff1d(np.flatnonzero(self.labels >= 0), held)
        if how == "batch" and self.batches is not None:  # training sees no other cell of that batch
            train = train[self.batches[train] != self.batches[held[0]]]
        weights = class_weights(self.labels[train], int(self.labels.max()) + 1)
        self.micro = min(options.micro_batch, options.batch_size)
        steps = -(-min(len(train), options.epoch_cells) // options.batch_size)
        parameters = dict(network.named_parameters())
        optimizer = torch.optim.AdamW(parameters.values(), lr=options.lr, weight_decay=options.weight_decay)
        from transformers import get_cosine_schedule_with_warmup

        total = steps * options.epochs
        schedule = get_cosine_schedule_with_warmup(optimizer, int(options.warmup * total), total)
        if network.language_model is not None and options.warm_steps:
            self._warm_up(train, weights)
        best: dict[str, Tensor] | None = None
        score, stale = (-1.0, 0.0), 0
        # The model is frozen, so the prefix of the instruction is the same for all cells and steps.
        prefix = network.prefix()
        for epoch in range(options.epochs):
            if stale >= options.patience:
                break
            losses: list[float] = []
            for step in range(epoch * steps, (epoch + 1) * steps):
                losses.append(self._step(step, train, weights, optimizer, prefix))
                schedule.step()
                detail = f"loss {np.mean(losses):.3f}"
                if self.history:
                    detail += f", held-out macro-F1 {self.history[-1]['macro_f1']:.3f}"
                self.progress(STAGE, step + 1, total, detail)
            found = self._evaluate(held)
            self.history.append({"epoch": epoch + 1, "loss": float(np.mean(losses)), **found})
            stale += 1
            if best is None or not len(held) or (found["macro_f1"], -found["held_out_loss"]) > score:
                best = {name: p.detach().clone() for name, p in parameters.items()}
                score, stale = (found["macro_f1"], -found["held_out_loss"]), 0
                self.best_epoch = epoch + 1
        if best is not None:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(best[name])

    def _read(self, batch: Batch, table: Tensor | None = None, prefix: Any = None) -> Tensor:
        """Return cell vectors in the precision of the training."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
            vectors: Tensor = self.network(batch, table, prefix)
        return vectors.float()

    def _step(
        self, step: int, train: Int64, weights: npt.NDArray[np.float64], optimizer: Any, prefix: Any
    ) -> float:
        """Take one step; return its loss."""
        options = self.options
        # The step number seeds all random choices of the step.
        rng = np.random.default_rng([self.seed, 2, step])
        rows = rng.choice(train, size=options.batch_size, p=weights)
        drop = rng.uniform(0.0, options.gene_drop)
        loss = self._gradients(
            optimizer, prefix, ranked(self.X[rows], options.n_genes, drop=drop, rng=rng), rows
        )
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), options.max_norm)
        optimizer.step()
        return loss

    def _warm_up(self, train: Int64, weights: npt.NDArray[np.float64]) -> None:
        """Train the projection on mean slots first, without the language model: seconds instead of hours.

        The slots of an untrained projection are noise to the language model. Gradients through all its layers
        would need long to change that.
        """
        network, n_classes = self.network, self.network.head.out_features
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            head = torch.nn.Linear(network.head.in_features, n_classes).to(self.device)
        steps = itertools.count()

        def loss(numbers: torch.Tensor) -> torch.Tensor:
            rng = np.random.default_rng([self.seed, 4, next(steps)])
            rows = train[numbers.numpy()]
            drop = rng.uniform(0.0, self.options.gene_drop)
            slots = ranked(self.X[rows], self.options.n_genes, drop=drop, rng=rng)
            mean = network.mean_slot(Batch.of(slots, self.device))
            scores = head(F.gelu(F.layer_norm(mean, mean.shape[-1:])))
            target = torch.from_numpy(self.labels[rows]).to(self.device)
            return F.cross_entropy(scores, target, label_smoothing=self.options.label_smoothing)

        parts = (network.project, network.value, network.norm)
        parameters: list[object] = [p for part in parts for p in part.parameters()]
        train_loop(
            [{"params": [*parameters, *head.parameters()], "weight_decay": self.options.weight_decay}],
            loss,
            weights,
            Schedule(1, 64, 1e-3, min_steps=self.options.warm_steps, max_steps=self.options.warm_steps),
            seed=self.seed,
            stage="warming up the projection",
            progress=self.progress,
        )

    def _vectors(self, rows: Int64) -> Iterator[tuple[Int64, torch.Tensor]]:
        """Yield (positions in ``rows``, cell vectors) without gradient, in smaller batches if memory ends."""
        slots = ranked(self.X[rows], self.options.n_genes)
        start = 0
        with torch.no_grad():
            prefix, table = self.network.prefix(), self.network.gene_table()
            parts = list(packed(slots.counts, self.options.n_genes, self.micro))
            while start < len(parts):
                part, places = parts[start]
                try:
                    vectors = self._read(Batch.of(slots.take(part, places), self.device), table, prefix)
                except (RuntimeError, MemoryError) as error:
                    self._smaller(error)
                else:
                    yield part, vectors
                    start += 1
                    continue
                _free(self.device)
                parts[start:] = split(parts[start:], self.micro)

    def _gradients(self, optimizer: Any, prefix: Any, slots: Slots, rows: Int64) -> float:
        """Accumulate the gradients of a step over parts that fit into memory; return the loss of the step."""
        while True:
            optimizer.zero_grad()
            total = 0.0
            try:
                for part, places in packed(slots.counts, self.options.n_genes, self.micro):
                    batch = Batch.of(slots.take(part, places), self.device)
                    target = torch.from_numpy(self.labels[rows[part]]).to(self.device)
                    scores = self.network.scores(self._read(batch, prefix=prefix))
                    smoothing = self.options.label_smoothing
                    loss = F.cross_entropy(scores, target, reduction="sum", label_smoothing=smoothing)
                    torch.autograd.backward(loss / len(rows))
                    total += float(loss.detach()) / len(rows)
                return total
            except (RuntimeError, MemoryError) as error:
                self._smaller(error)
            _free(self.device)

    def _smaller(self, error: Exception) -> None:
        """Halve the number of cells computed at once if memory ran out; raise any other error again."""
        if not out_of_memory(error):
            raise error
        if self.micro == 1:
            raise ResourceError(
                "out of memory while training on a single cell",
                f"{self.options.n_genes} genes a cell",
                "free memory, or give a smaller --n-genes",
            ) from error
        self.micro //= 2
        self.notes.append(
            f"out of memory: {self.micro} cells were computed at once from here; steps kept their size"
        )

    def _evaluate(self, held: Int64) -> dict[str, float]:
        """Return macro-F1 and loss on held-out cells; zeros if there are none."""
        if not len(held):
            return {"macro_f1": 0.0, "held_out_loss": 0.0}
        from sklearn.metrics import f1_score

        scores = torch.zeros(len(held), self.network.head.out_features)
        with torch.no_grad():
            for part, vectors in self._vectors(held):
                scores[part] = self.network.scores(vectors).cpu()
        truth = self.labels[held]
        predicted = scores.argmax(dim=1).numpy()
        return {
            "macro_f1": float(f1_score(truth, predicted, average="macro", labels=np.unique(truth))),
            "held_out_loss": float(F.cross_entropy(scores, torch.from_numpy(truth))),
        }


def out_of_memory(error: Exception) -> bool:
    """Return whether memory of the machine or of the GPU ran out."""
    return isinstance(error, MemoryError) or "memory" in str(error)


def _free(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()


#: Largest number of cells held out for calibration, for each device. Each is encoded several times.
HELD_OUT = {"cuda": 5000, "cpu": 120}


#: Fraction of the epochs that encoders of calibration folds train for.
FOLD_EPOCHS = 1 / 3
#: Default language model.
DEFAULT_LLM = "smollm2"


@dataclass(frozen=True, slots=True)
class PromptParts:
    """Settings common to all training runs of one ingest.

    Attributes
    ----------
    language_model
        None for the order ``none``.
    """

    options: PromptOptions
    language_model: LanguageModel | None
    device: str

    @property
    def fold_epochs(self) -> int:
        """Number of epochs of a fold."""
        epochs = self.options.epochs
        return max(1, round(epochs * FOLD_EPOCHS)) if epochs else 0

    @property
    def notes(self) -> list[str]:
        """Notes for the user on the calibration of confidence."""
        if not self.options.epochs:
            return []
        trained = f"encoders trained for {self.fold_epochs} of {self.options.epochs} epochs"
        return [f"confidence was calibrated with {trained}, so it is rather too low than too high"]


@encoder("prompt", texts="genes", uses_gpu=True)
class PromptEncoder:
    """Cell vector: the last hidden state of a frozen language model that reads an instruction and gene slots.

    A slot combines a projection of the gene's text vector with an embedding of its value. Projection, value
    embedding, class token and head are trained; the language model is frozen (Li et al. 2024, scInterpreter,
    arXiv:2402.12405).

    Parameters
    ----------
    gene_vectors
        (n_genes, text_dim) float32.
    language_model
        None for the order ``none``.
    device
        ``cpu`` or ``cuda``.

    Raises
    ------
    ValueError
        If the order ``none`` comes with a language model, or another order without one.
    InputError
        If the prompt is longer than the language model can read.
    """

    name: str
    takes_turns: bool

    def __init__(
        self,
        gene_vectors: Float32,
        options: PromptOptions,
        language_model: LanguageModel | None,
        *,
        device: str = "cpu",
    ) -> None:
        if (language_model is None) != (options.order == "none"):
            raise ValueError(f"the language model does not fit the order {options.order!r}")
        self.gene_vectors = np.ascontiguousarray(gene_vectors, dtype=np.float32)
        self.options, self.language_model = options, language_model
        self.device = device
        self.embed_dim = language_model.dim if language_model else self.gene_vectors.shape[1]
        self.precision = language_model.precision if language_model else "fp32"
        self.notes: list[str] = []
        self.history: list[dict[str, float]] = []
        self.best_epoch = 0
        self.micro_batch = options.micro_batch
        self.use_prefix = True
        self._network: PromptNetwork | None = None
        self._ready: tuple[Any, Any] | None = None
        check_length(options, language_model)

    @classmethod
    def prepare(
        cls,
        models: Models,
        *,
        llm: str | None,
        n_genes: int | None,
        prompt_order: str | None,
        epochs: int | None,
    ) -> PromptParts:
        """Return options and language model.

        Raises
        ------
        InputError
            If an option cannot be used, or the prompt is longer than the model can read.
        """
        if prompt_order == "none" and llm is not None:
            what = "the order none uses no language model"
            raise InputError(what, f"--llm {llm}", "leave out --llm or --prompt-order")
        options = PromptOptions.for_device(
            models.device, n_genes=n_genes, order=prompt_order or "paper", epochs=epochs
        )
        model = None
        if options.order != "none":
            model = models.language_model(llm or DEFAULT_LLM, None)
            check_length(options, model)
        return PromptParts(options, model, models.device)

    @classmethod
    def new(cls, material: Material) -> PromptEncoder:
        """Return the encoder of one training run of an ingest. Training runs of folds are shorter."""
        parts: PromptParts = material.prepared
        options = parts.options
        if material.is_fold:
            options = replace(options, epochs=parts.fold_epochs)
        vectors = np.asarray(material.gene_vectors)
        return cls(vectors, options, parts.language_model, device=parts.device)

    @classmethod
    def load(
        cls, tensors: dict[str, npt.NDArray[Any]], meta: dict[str, Any], models: Models
    ) -> PromptEncoder:
        """Rebuild from :meth:`state`, with the language model that it was trained with."""
        made_with = meta["llm"]
        model = models.language_model(made_with["name"], meta["precision"]) if made_with else None
        return cls.from_state(tensors, meta, model, device=models.device)

    @property
    def held_out_cells(self) -> int:
        """Largest number of cells that calibration may hold out."""
        return HELD_OUT[self.device] if self.language_model else 5000

    @property
    def parity(self) -> float:
        """Largest cosine distance that rounding causes, between devices, batches and precisions."""
        return 1e-4 if self.precision == "fp32" else 1e-3

    @property
    def W(self) -> Float32 | None:
        """(n_classes, dim) float32 weights of the trained head; None before training or with 0 epochs."""
        if self._network is None or not self.best_epoch:
            return None
        return np.array(self._network.head.weight.detach().cpu().numpy(), dtype=np.float32)

    @property
    def b(self) -> Float32 | None:
        """(n_classes,) float32 intercepts of the trained head, or None."""
        if self._network is None or not self.best_epoch:
            return None
        return np.array(self._network.head.bias.detach().cpu().numpy(), dtype=np.float32)

    def fit(
        self,
        chunks: Iterable[CellChunk],
        labels: npt.NDArray[np.int64],
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> None:
        """Train on labelled cells. With three batches or more, one of them decides when to stop.

        Parameters
        ----------
        labels
            (n,) int64 class numbers; -1 marks an unlabelled cell.

        Raises
        ------
        ResourceError
            If memory runs out for a single cell.
        """
        import scipy.sparse as sp

        chunks = list(chunks)
        X = sp.csr_matrix(sp.vstack([chunk.X for chunk in chunks]))
        known = [chunk.batches for chunk in chunks if chunk.batches is not None]
        batches = np.concatenate(known) if len(known) == len(chunks) else None
        labels = np.asarray(labels, dtype=np.int64)
        self._network = self._new_network(int(labels.max()) + 1, seed)
        self._ready = None
        if self.options.epochs == 0:
            self._network.to(self.device)
            return
        trainer = Trainer(
            self._network,
            X,
            labels,
            self.options,
            batches=batches,
            seed=seed,
            device=self.device,
            precision=self.precision,
            progress=progress,
        )
        trainer.run()
        self.micro_batch, self.best_epoch = trainer.micro, trainer.best_epoch
        self.notes, self.history = trainer.notes, trainer.history

    def encode(self, chunk: CellChunk) -> Float32:
        """Return (n, embed_dim) float32 cell vectors, each of mean 0 and variance 1.

        Raises
        ------
        ResourceError
            If memory runs out for a single cell.
        InputError
            If the language model returns values that are not finite.
        """
        if self._network is None:
            raise ValueError("the encoder is not trained")
        slots = ranked(chunk.X, self.options.n_genes)
        vectors = np.zeros((len(chunk), self.embed_dim), dtype=np.float32)
        parts = list(packed(slots.counts, self.options.n_genes, self.micro_batch))
        at = 0
        with torch.inference_mode():
            if self._ready is None:  # projected genes and prefix are the same for all cells
                self._ready = (
                    self._network.gene_table(),
                    self._network.prefix() if self.use_prefix else None,
                )
            while at < len(parts):
                rows, places = parts[at]
                try:
                    batch = Batch.of(slots.take(rows, places), self.device)
                    vectors[rows] = self._network(batch, *self._ready).float().cpu().numpy()
                except (MemoryError, RuntimeError) as error:
                    if not out_of_memory(error):
                        raise
                    if len(rows) == 1:
                        fix = "free memory, or make the reference with a smaller --n-genes"
                        where = f"{self.options.n_genes} genes a cell"
                        raise ResourceError("out of memory while encoding a cell", where, fix) from error
                else:
                    at += 1
                    continue
                # Free memory only after the except block: the traceback of the error holds the tensors.
                self.micro_batch = len(rows) // 2
                parts[at:] = split(parts[at:], self.micro_batch)
                _free(self.device)
        if not np.isfinite(vectors).all():
            name = self.language_model.name if self.language_model else "prompt"
            raise InputError(
                "the language model returned values that are not finite", name, "check its weights"
            )
        return vectors

    def state(self) -> State:
        """Return the trained parameters and the text vectors, without the language model."""
        if self._network is None:
            raise ValueError("the encoder is not trained")
        trained = {
            f"network.{name}": np.array(p.detach().cpu().numpy())
            for name, p in self._network.named_parameters()
        }
        lm = self.language_model
        meta = {
            "options": self.options.to_dict(),
            "best_epoch": self.best_epoch,
            "history": self.history,
            "precision": self.precision,
            "llm": {"name": lm.name, "sha256": lm.sha256, "dim": lm.dim} if lm else None,
        }
        return {"gene_vectors": self.gene_vectors, **trained}, meta

    @classmethod
    def from_state(
        cls,
        tensors: dict[str, npt.NDArray[Any]],
        meta: dict[str, Any],
        language_model: LanguageModel | None,
        *,
        device: str = "cpu",
    ) -> PromptEncoder:
        """Rebuild from :meth:`state`.

        Raises
        ------
        StoreError
            If the language model differs from the one of the training.
        ValueError
            If the tensors do not fit the encoder.
        """
        made_with = meta["llm"]
        if made_with is not None and language_model is not None:
            check_same_model(language_model, made_with)
        encoder = cls(
            tensors["gene_vectors"], PromptOptions(**meta["options"]), language_model, device=device
        )
        network = encoder._new_network(len(tensors["network.head.bias"]), 0)
        wanted = {f"network.{name}": tuple(p.shape) for name, p in network.named_parameters()}
        given = {k: v.shape for k, v in tensors.items() if k.startswith("network.")}
        if wanted != given:
            differing = sorted(k for k in wanted.keys() | given.keys() if wanted.get(k) != given.get(k))
            raise ValueError(f"tensors do not fit the prompt encoder: {differing[0]}")
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(torch.from_numpy(np.array(tensors[f"network.{name}"])))
        encoder._network = network.to(device)
        encoder.best_epoch = int(meta["best_epoch"])
        encoder.history = list(meta["history"])
        return encoder

    def _new_network(self, n_classes: int, seed: int) -> PromptNetwork:
        return PromptNetwork(
            torch.from_numpy(centred(self.gene_vectors)),
            n_classes,
            order=self.options.order,
            instruction=self.options.instruction,
            language_model=self.language_model,
            seed=seed,
        )


def check_same_model(language_model: LanguageModel, made_with: dict[str, Any]) -> None:
    """Raise StoreError if a model differs from the one that a reference was made with."""
    if language_model.sha256 == made_with["sha256"]:
        return
    other = "its weights differ"
    if language_model.dim != made_with["dim"]:
        other = f"it has {language_model.dim} dimensions instead of {made_with['dim']}"
    raise StoreError(
        f"the language model is not the one that the reference was made with: {other}",
        language_model.name,
        f"give that one with --llm (it was {made_with['name']}), or ingest the cells again",
        code="model-changed",
    )


def check_length(options: PromptOptions, language_model: LanguageModel | None) -> None:
    """Raise InputError if the prompt is longer than the model can read."""
    if language_model is None or language_model.max_positions is None:
        return
    shared = len(language_model.tokens(options.instruction)) + (options.order == "paper")
    left = language_model.max_positions - shared
    if options.n_genes > left:
        what = f"{options.n_genes} genes and {shared} other tokens are more than the model can read"
        where = f"{language_model.name}: {language_model.max_positions} tokens"
        raise InputError(
            what,
            where,
            f"give --n-genes {left} or fewer" if left > 0 else "give another model",
            code="option-out-of-range",
        )
