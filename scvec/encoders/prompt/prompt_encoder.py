"""scInterpreter's idea: a frozen language model reads the genes of a cell, and its last state is the cell."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scvec.base.errors import InputError, ResourceError, StoreError
from scvec.base.types import CellChunk, Float32, LanguageModel, Progress, State, no_progress
from scvec.encoders import Material, Models, encoder
from scvec.encoders.adapted import centred
from scvec.encoders.prompt.prompt_options import PromptOptions
from scvec.encoders.prompt.slots import packed, ranked, split

if TYPE_CHECKING:
    from scvec.encoders.prompt.network import PromptNetwork

__all__ = ["PromptEncoder", "PromptParts", "check_length", "check_same_model"]

#: Cells of a reference that are held out for calibration at most, per device: each is encoded several times.
HELD_OUT = {"cuda": 5000, "cpu": 120}


#: Encoders of folds, which only calibration sees, train for this fraction of the epochs.
FOLD_EPOCHS = 1 / 3
#: Language model where none is named.
DEFAULT_LLM = "smollm2"


@dataclass(frozen=True, slots=True)
class PromptParts:
    """What the trainings of one ingest have in common.

    Attributes
    ----------
    language_model
        None for the order ``none``.
    checkpoint
        Folder that the user named for the progress of trainings.
    """

    options: PromptOptions
    language_model: LanguageModel | None
    checkpoint: Path | None
    device: str

    @property
    def fold_epochs(self) -> int:
        """Epochs of a fold."""
        epochs = self.options.epochs
        return max(1, round(epochs * FOLD_EPOCHS)) if epochs else 0

    @property
    def notes(self) -> list[str]:
        """What a user should know of the confidence."""
        if not self.options.epochs:
            return []
        trained = f"encoders trained for {self.fold_epochs} of {self.options.epochs} epochs"
        return [f"confidence was calibrated with {trained}, so that it errs on the low side"]


@encoder("prompt", texts="genes", uses_gpu=True)
class PromptEncoder:
    """Cell vector: the last hidden state of a frozen language model that reads instruction and gene slots.

    A slot is a projection of the gene's text vector and of its value; projection, value embedding, class
    token and head are trained, the language model is not (Li et al. 2024, scInterpreter, arXiv:2402.12405).

    Parameters
    ----------
    gene_vectors
        (n_genes, text_dim) float32.
    language_model
        None for the order ``none``.
    checkpoint
        Where the training keeps how far it came: a file, or a folder in which the file is named by all that
        the training depends on.
    device
        ``cpu`` or ``cuda``.
    """

    name: str
    takes_turns: bool

    def __init__(
        self,
        gene_vectors: Float32,
        options: PromptOptions,
        language_model: LanguageModel | None,
        *,
        checkpoint: Path | None = None,
        device: str = "cpu",
    ) -> None:
        if (language_model is None) != (options.order == "none"):
            raise ValueError(f"the order {options.order!r} and a language model do not go together")
        self.gene_vectors = np.ascontiguousarray(gene_vectors, dtype=np.float32)
        self.options, self.language_model = options, language_model
        self.checkpoint, self.device = checkpoint, device
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
        lora: int | None,
        epochs: int | None,
        checkpoint: Path | str | None,
    ) -> PromptParts:
        """Return options and language model.

        Raises
        ------
        InputError
            If an option cannot be used, or the prompt is longer than the model can read.
        """
        if prompt_order == "none" and llm is not None:
            what = "with the order none no language model reads the cells"
            raise InputError(what, f"--llm {llm}", "leave out --llm or --prompt-order")
        options = PromptOptions.for_device(
            models.device, n_genes=n_genes, order=prompt_order or "paper", lora=lora or 0, epochs=epochs
        )
        model = None
        if options.order != "none":
            model = models.language_model(llm or DEFAULT_LLM, None)
            check_length(options, model)
        return PromptParts(options, model, None if checkpoint is None else Path(checkpoint), models.device)

    @classmethod
    def new(cls, material: Material) -> PromptEncoder:
        """Return the encoder of one of the trainings of an ingest; a fold's training is shorter."""
        parts: PromptParts = material.prepared
        options, checkpoint = parts.options, material.folder
        if parts.checkpoint is not None:
            # In the user's own folder lies what is asked for, or it is an error.
            kept = f"fold-{material.number}" if material.is_fold else "reference"
            checkpoint = parts.checkpoint / f"{kept}.safetensors"
        if material.is_fold:
            options = replace(options, epochs=parts.fold_epochs)
        vectors = np.asarray(material.gene_vectors)
        return cls(vectors, options, parts.language_model, checkpoint=checkpoint, device=parts.device)

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
        """Cells that calibration may hold out: each is encoded once."""
        return HELD_OUT[self.device] if self.language_model else 5000

    @property
    def parity(self) -> float:
        """Largest cosine distance that is rounding: of the precision, of another device or batch."""
        return 1e-4 if self.precision == "fp32" else 1e-3

    @property
    def W(self) -> Float32 | None:
        """(n_classes, dim) of the trained head; None before training, and after one of no epochs."""
        if self._network is None or not self.best_epoch:
            return None
        return np.array(self._network.head.weight.detach().cpu().numpy(), dtype=np.float32)

    @property
    def b(self) -> Float32 | None:
        """(n_classes,) of the trained head."""
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
        """Train on labelled cells; ``labels`` (n,) holds class numbers, -1 for none.

        Where the chunks know of three batches or more, a whole one tells when to stop.
        """
        import scipy.sparse as sp

        from scvec.encoders.prompt.prompt_training import Trainer

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
        made_of = self._made_of(X, labels, batches, seed)
        checkpoint = self.checkpoint
        if checkpoint is not None and checkpoint.suffix != ".safetensors":
            checkpoint = checkpoint / f"{made_of[:24]}.safetensors"
        trainer = Trainer(
            self._network,
            X,
            labels,
            self.options,
            batches=batches,
            seed=seed,
            device=self.device,
            precision=self.precision,
            checkpoint=checkpoint,
            made_of=made_of,
            progress=progress,
        )
        trainer.run()
        self.micro_batch, self.best_epoch = trainer.micro, trainer.best_epoch
        self.notes, self.history = trainer.notes, trainer.history

    def encode(self, chunk: CellChunk) -> Float32:
        """Return (n, embed_dim) float32 cell vectors, each of mean 0 and variance 1."""
        import torch

        from scvec.encoders.prompt.network import Batch

        if self._network is None:
            raise ValueError("the encoder is not trained")
        slots = ranked(chunk.X, self.options.n_genes)
        vectors = np.zeros((len(chunk), self.embed_dim), dtype=np.float32)
        parts = list(packed(slots.counts, self.options.n_genes, self.micro_batch))
        at = 0
        with torch.inference_mode():
            if self._ready is None:  # the projected genes and the instruction are the same for every cell
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
                    if not (isinstance(error, MemoryError) or "memory" in str(error)):
                        raise
                    if len(rows) == 1:
                        fix = "free memory, or make the reference with a smaller --n-genes"
                        where = f"{self.options.n_genes} genes a cell"
                        raise ResourceError("out of memory while encoding a cell", where, fix) from error
                else:
                    at += 1
                    continue
                # Out here the error, whose traceback holds the tensors, is gone.
                self.micro_batch = len(rows) // 2
                parts[at:] = split(parts[at:], self.micro_batch)
                if self.device == "cuda":
                    torch.cuda.empty_cache()
        if not np.isfinite(vectors).all():
            name = self.language_model.name if self.language_model else "prompt"
            raise InputError("the language model gave vectors that are not finite", name, "check its weights")
        return vectors

    def state(self) -> State:
        """Return the trained parts and the text vectors, not the language model."""
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
            If the language model is not the one that it was trained with.
        """
        import torch

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
        import torch

        from scvec.encoders.prompt.network import PromptNetwork

        lm = self.language_model
        if lm is not None and self.options.lora:
            lm = lm.adapted(self.options.lora, seed)
        return PromptNetwork(
            torch.from_numpy(centred(self.gene_vectors)),
            n_classes,
            order=self.options.order,
            instruction=self.options.instruction,
            language_model=lm,
            seed=seed,
        )

    def _made_of(
        self, X: Any, labels: npt.NDArray[np.int64], batches: npt.NDArray[np.str_] | None, seed: int
    ) -> str:
        """Return a fingerprint of all that the training depends on."""
        digest = hashlib.sha256()
        numbers = np.zeros(0) if batches is None else np.unique(batches, return_inverse=True)[1]
        for array in (X.indptr, X.indices, X.data, labels, self.gene_vectors, numbers):
            digest.update(f"{array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        model = self.language_model.sha256 if self.language_model else ""
        said = [self.options.to_dict(), seed, self.device, self.precision, model]
        digest.update(json.dumps(said, sort_keys=True).encode())
        return digest.hexdigest()


def check_same_model(language_model: LanguageModel, made_with: dict[str, Any]) -> None:
    """Raise StoreError where a model is not the one that a reference was made with."""
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
    """Raise InputError where a prompt is longer than the model can read."""
    if language_model is None or language_model.max_positions is None:
        return
    shared = len(language_model.tokens(options.instruction)) + (options.order == "paper")
    left = language_model.max_positions - shared
    if options.n_genes > left:
        what = f"{options.n_genes} genes and {shared} other places are more than the model can read"
        where = f"{language_model.name}: {language_model.max_positions} places"
        raise InputError(
            what,
            where,
            f"give --n-genes {left} or fewer" if left > 0 else "give another model",
            code="option-out-of-range",
        )
