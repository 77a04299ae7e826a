"""Training of the prompt encoder. Loads torch and accelerate."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from scvec.base.errors import InputError, ResourceError, StoreError
from scvec.base.types import Progress, no_progress
from scvec.encoders.gradient_descent import Schedule, class_weights
from scvec.encoders.gradient_descent import train as train_loop
from scvec.encoders.prompt.network import Batch, PromptNetwork
from scvec.encoders.prompt.prompt_options import PromptOptions
from scvec.encoders.prompt.slots import Slots, packed, ranked, split

__all__ = ["Trainer", "held_out_rows", "load_checkpoint", "save_checkpoint"]

#: Of the file; another one is not read.
FORMAT = "scvec prompt training 1"


def save_checkpoint(path: Path, tensors: dict[str, Any], record: dict[str, Any], *, made_of: str) -> None:
    """Replace a checkpoint: whoever is killed meanwhile leaves the old one.

    Parameters
    ----------
    tensors
        Name -> torch tensor.
    record
        JSON values.
    made_of
        Fingerprint of all that the training depends on.
    """
    from safetensors.torch import save_file

    header = {"format": FORMAT, "made_of": made_of, "record": json.dumps(record)}
    part = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ready = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(ready, part, metadata=header)
        with part.open("rb") as handle:
            os.fsync(handle.fileno())
        part.replace(path)
    except OSError as error:
        what = f"the checkpoint cannot be written ({error.strerror})"
        raise ResourceError(
            what, str(path), "free space, or give another folder", code="disk-full"
        ) from error


def load_checkpoint(path: Path, *, made_of: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return (tensors, record), or None where there is no file.

    Raises
    ------
    StoreError
        If it cannot be read, or is of a training on other cells, genes, vectors, options or another model.
    """
    from safetensors import SafetensorError, safe_open

    fix = "give another --checkpoint, or delete this one to train from the start"
    try:
        with safe_open(path, framework="pt") as handle:
            header = handle.metadata() or {}
            if header.get("format") != FORMAT:
                raise StoreError("this is not a checkpoint of the prompt encoder", str(path), fix)
            if header.get("made_of") != made_of:
                what = "the checkpoint is of another training: other cells, genes, vectors, options or model"
                raise StoreError(what, str(path), fix, code="model-changed")
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            return tensors, json.loads(header["record"])
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        what = f"the checkpoint cannot be read ({type(error).__name__})"
        raise StoreError(what, str(path), fix) from error


Int64 = npt.NDArray[np.int64]
STAGE = "training the prompt encoder"


def held_out_rows(
    labels: Int64, batches: npt.NDArray[np.str_] | None, *, most: int, seed: int
) -> tuple[Int64, str]:
    """Return the cells that tell when to stop, and how they were chosen: ``batch`` or ``cells``.

    Of three batches or more the one nearest to a sixth of the cells, if no more than a third; of fewer, a
    tenth of each label's cells, since half of them would be too much to do without. Cells of labels that
    nothing else has tell nothing.
    """
    rng = np.random.default_rng([seed, 1])
    labelled = np.flatnonzero(labels >= 0)
    held, how = np.zeros(len(labels), dtype=bool), "cells"
    of = np.zeros(len(labels), dtype=str) if batches is None else batches
    names, sizes = np.unique(of[labelled], return_counts=True)
    shares = sizes / max(1, len(labelled))
    if len(names) >= 3 and (shares <= 1 / 3).any():
        best = int(np.abs(np.where(shares <= 1 / 3, shares, np.inf) - 1 / 6).argmin())
        held, how = (of == names[best]) & (labels >= 0), "batch"
        held &= np.isin(labels, np.unique(labels[~held & (labels >= 0)]))
    if not held.any():
        how = "cells"
        for label in np.unique(labels[labelled]):
            rows = rng.permutation(np.flatnonzero(labels == label))
            held[rows[: len(rows) // 10 or int(len(rows) >= 4)]] = True
    rows = np.flatnonzero(held)
    return np.sort(rng.permutation(rows)[:most]) if len(rows) > most else rows, how


@contextmanager
def _accelerator(device: str, precision: str) -> Iterator[Any]:
    """Yield an Accelerator, and leave the process as it was: its state is the library's, of which one is."""
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ImportError as error:
        what = "training the prompt encoder needs the package accelerate"
        raise InputError(
            what, "--encoder prompt", "pip install 'scvec[llm]'", code="extra-not-installed"
        ) from error
    ours = not AcceleratorState._shared_state
    try:
        yield Accelerator(cpu=device == "cpu", mixed_precision="bf16" if precision == "bf16" else "no")
    finally:
        if ours:
            AcceleratorState._reset_state(reset_partial_state=True)


class _Tools(NamedTuple):
    """What the library prepared, and the instruction, read once."""

    accelerator: Any
    made: Any
    optimizer: Any
    schedule: Any
    prefix: Any


@dataclass
class Trainer:
    """One training of a network.

    Attributes
    ----------
    X
        (n, n_genes) CSR cells, log1p CP10k.
    labels
        (n,) int64 class numbers, -1 for none.
    checkpoint
        File that holds how far it came, after each epoch; None for no such file.
    made_of
        Fingerprint of all that the result depends on.
    notes, history
        What a user should know, and loss and held-out macro-F1 of each epoch.
    """

    network: PromptNetwork
    X: Any
    labels: Int64
    options: PromptOptions
    batches: npt.NDArray[np.str_] | None = None
    seed: int = 0
    device: str = "cpu"
    precision: str = "fp32"
    checkpoint: Path | None = None
    made_of: str = ""
    progress: Progress = no_progress
    notes: list[str] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)

    def run(self) -> None:
        """Train; the network has the weights of the epoch of the best held-out macro-F1.

        Raises
        ------
        ResourceError
            If memory runs out for a single cell.
        """
        options, network = self.options, self.network.to(self.device)
        most = max(16, options.epoch_cells // 4)
        held, how = held_out_rows(self.labels, self.batches, most=most, seed=self.seed)
        train = np.setdiff1d(np.flatnonzero(self.labels >= 0), held)
        if how == "batch" and self.batches is not None:  # nothing else of that batch is seen either
            train = train[self.batches[train] != self.batches[held[0]]]
        weights = class_weights(self.labels[train], int(self.labels.max()) + 1)
        self.micro = min(options.micro_batch, options.batch_size)
        steps = -(-min(len(train), options.epoch_cells) // options.batch_size)
        parameters = dict(network.named_parameters())
        with ExitStack() as stack:
            accelerator = stack.enter_context(_accelerator(self.device, self.precision))
            optimizer = torch.optim.AdamW(
                parameters.values(), lr=options.lr, weight_decay=options.weight_decay
            )
            from transformers import get_cosine_schedule_with_warmup

            total = steps * options.epochs
            schedule = get_cosine_schedule_with_warmup(optimizer, int(options.warmup * total), total)
            made, optimizer, schedule = accelerator.prepare(network, optimizer, schedule)
            # Else the network would go on in mixed precision, and one loaded from the store would not.
            stack.callback(accelerator.unwrap_model, made, keep_fp32_wrapper=False)
            state = self._resume(parameters, optimizer, schedule)
            if state["epoch"] == 0 and network.language_model is not None and options.warm_steps:
                self._warm_up(train, weights)
            best = state["best"]
            # The instruction is the same for all cells at all steps, as the model that reads it is frozen.
            prefix = network.prefix()
            tools = _Tools(accelerator, made, optimizer, schedule, prefix)
            for epoch in range(state["epoch"], options.epochs):
                if state["stale"] >= options.patience:
                    break
                try:
                    loss = self._epoch(
                        tools, train, weights, range(epoch * steps, (epoch + 1) * steps), total
                    )
                    found = self._evaluate(made, held)
                except KeyboardInterrupt:
                    if self.checkpoint is None or epoch == 0:
                        raise
                    raise KeyboardInterrupt(f"the training is kept up to epoch {epoch}") from None
                self.history.append({"epoch": epoch + 1, "loss": loss, **found})
                better = best is None or (found["macro_f1"], -found["held_out_loss"]) > tuple(state["score"])
                if better or not len(held):
                    best = {name: p.detach().clone() for name, p in parameters.items()}
                    state["score"] = [found["macro_f1"], -found["held_out_loss"]]
                    state["best_epoch"] = epoch + 1
                state["stale"] = 0 if better or not len(held) else state["stale"] + 1
                state["epoch"], state["best"] = epoch + 1, best
                self._save(state, parameters, optimizer, schedule)
        if best is not None:
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(best[name])
        self.best_epoch = state["best_epoch"]

    def _epoch(
        self, tools: _Tools, train: Int64, weights: npt.NDArray[np.float64], steps: range, total: int
    ) -> float:
        """Take some steps; return their mean loss."""
        options, losses = self.options, []
        for step in steps:
            # Everything random of a step comes from its number: a resumed training needs no more.
            rng = np.random.default_rng([self.seed, 2, step])
            rows = rng.choice(train, size=options.batch_size, p=weights)
            drop = rng.uniform(0.0, options.gene_drop)
            slots = ranked(self.X[rows], options.n_genes, drop=drop, rng=rng)
            losses.append(self._gradients(tools, slots, rows))
            tools.accelerator.clip_grad_norm_(tools.made.parameters(), options.max_norm)
            tools.optimizer.step()
            tools.schedule.step()
            said = f"loss {np.mean(losses):.3f}"
            if self.history:
                said += f", held-out macro-F1 {self.history[-1]['macro_f1']:.3f}"
            self.progress(STAGE, step + 1, total, said)
        return float(np.mean(losses))

    def _warm_up(self, train: Int64, weights: npt.NDArray[np.float64]) -> None:
        """Teach the projection without the language model first, by the mean slot: seconds instead of hours.

        Slots of an untrained projection are noise to the model, and a gradient through all its layers takes
        long to change that.
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

    def _vectors(self, made: Any, rows: Int64) -> Iterator[tuple[Int64, torch.Tensor]]:
        """Yield positions in ``rows`` and vectors of cells, without gradient; fewer at once where need be."""
        slots = ranked(self.X[rows], self.options.n_genes)
        start = 0
        with torch.no_grad():
            prefix, table = self.network.prefix(), self.network.gene_table()
            parts = list(packed(slots.counts, self.options.n_genes, self.micro))
            while start < len(parts):
                part, places = parts[start]
                try:
                    vectors = made(Batch.of(slots.take(part, places), self.device), table, prefix)
                except (RuntimeError, MemoryError) as error:
                    self._smaller(error)
                else:
                    yield part, vectors.float()
                    start += 1
                    continue
                _free(self.device)
                parts[start:] = split(parts[start:], self.micro)

    def _gradients(self, tools: _Tools, slots: Slots, rows: Int64) -> float:
        """Add up the gradients of a step over as many cells at once as fit; return its loss."""
        while True:
            tools.optimizer.zero_grad()
            total = 0.0
            try:
                for part, places in packed(slots.counts, self.options.n_genes, self.micro):
                    batch = Batch.of(slots.take(part, places), self.device)
                    target = torch.from_numpy(self.labels[rows[part]]).to(self.device)
                    scores = self.network.scores(tools.made(batch, prefix=tools.prefix))
                    smoothing = self.options.label_smoothing
                    loss = F.cross_entropy(scores, target, reduction="sum", label_smoothing=smoothing)
                    tools.accelerator.backward(loss / len(rows))
                    total += float(loss.detach()) / len(rows)
                return total
            except (RuntimeError, MemoryError) as error:
                self._smaller(error)
            _free(self.device)

    def _smaller(self, error: Exception) -> None:
        """Halve the cells computed at once where memory ran out; raise anything else again."""
        from accelerate.utils.memory import should_reduce_batch_size

        if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
            raise error
        if self.micro == 1:
            raise ResourceError(
                "out of memory while training on a single cell",
                f"{self.options.n_genes} genes a cell",
                "free memory, or give a smaller --n-genes",
            ) from error
        self.micro //= 2
        self.notes.append(f"out of memory: went on with {self.micro} cells at once, steps as large as before")

    def _evaluate(self, made: Any, held: Int64) -> dict[str, float]:
        """Return macro-F1 and loss on held-out cells; 0 without any."""
        if not len(held):
            return {"macro_f1": 0.0, "held_out_loss": 0.0}
        from sklearn.metrics import f1_score

        scores = torch.zeros(len(held), self.network.head.out_features)
        with torch.no_grad():
            for part, vectors in self._vectors(made, held):
                scores[part] = self.network.scores(vectors).cpu()
        truth = self.labels[held]
        said = scores.argmax(dim=1).numpy()
        return {
            "macro_f1": float(f1_score(truth, said, average="macro", labels=np.unique(truth))),
            "held_out_loss": float(F.cross_entropy(scores, torch.from_numpy(truth))),
        }

    def _save(self, state: dict[str, Any], parameters: dict[str, Any], optimizer: Any, schedule: Any) -> None:
        if self.checkpoint is None:
            return
        inner = optimizer.state_dict()
        tensors = {f"now.{name}": p for name, p in parameters.items()}
        tensors |= {f"best.{name}": p for name, p in (state["best"] or {}).items()}
        for number, moments in inner["state"].items():
            tensors |= {f"optimizer.{number}.{key}": value for key, value in moments.items()}
        record = {
            **{key: value for key, value in state.items() if key != "best"},
            "optimizer": inner["param_groups"],
            "schedule": {k: v for k, v in schedule.state_dict().items() if k != "lr_lambdas"},
            "micro": self.micro,
            "history": self.history,
            "notes": self.notes,
        }
        save_checkpoint(
            self.checkpoint, tensors, json.loads(json.dumps(record, default=float)), made_of=self.made_of
        )

    def _resume(self, parameters: dict[str, Any], optimizer: Any, schedule: Any) -> dict[str, Any]:
        """Return where to go on: at the start, or after the last epoch that a checkpoint has."""
        start = {"epoch": 0, "stale": 0, "best": None, "best_epoch": 0, "score": [-1.0, 0.0]}
        found = None
        if self.checkpoint is not None:
            found = load_checkpoint(self.checkpoint, made_of=self.made_of)
        if found is None:
            return start
        tensors, record = found
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[f"now.{name}"])
        moments: dict[int, dict[str, Any]] = {}
        for key, tensor in tensors.items():
            if key.startswith("optimizer."):
                _, number, name = key.split(".")
                moments.setdefault(int(number), {})[name] = tensor
        optimizer.load_state_dict({"state": moments, "param_groups": record["optimizer"]})
        schedule.load_state_dict({**record["schedule"], "lr_lambdas": [None]})
        best = {name: tensors[f"best.{name}"].to(self.device) for name in parameters}
        self.micro, self.history = int(record["micro"]), list(record["history"])
        self.notes += [*record["notes"], f"went on after epoch {record['epoch']} of an earlier run"]
        kept = {key: record[key] for key in ("epoch", "stale", "best_epoch", "score")}
        return {**start, **kept, "best": best}


def _free(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()
