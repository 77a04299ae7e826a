"""What a backbone, an encoder and an index must be able to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from scvec.base.errors import ScvecError
from scvec.base.types import CellChunk, Float32, Neighbors, Space

__all__ = [
    "Backbone",
    "CellEncoder",
    "DividesByGene",
    "LanguageModel",
    "Progress",
    "State",
    "Streamed",
    "StreamingBackbone",
    "VectorIndex",
    "no_progress",
]

#: What an encoder, head or calibration is saved as: arrays (safetensors) and JSON values.
State = tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]


class Progress(Protocol):
    """A function that is told how far a stage is."""

    def __call__(self, stage: str, done: int, total: int | None, detail: str = "") -> None:
        """``total`` is None while unknown; ``detail`` says more in words, such as rate and cost."""
        ...


def no_progress(stage: str, done: int, total: int | None, detail: str = "") -> None:
    """Report nothing."""


@runtime_checkable
class Backbone(Protocol):
    """Turns texts into vectors."""

    @property
    def space(self) -> Space:
        """The space that the vectors live in."""
        ...

    def encode(self, texts: Sequence[str]) -> Float32:
        """Return (n, dim) float32, one row per text, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Streamed:
    """What became of texts that a server was asked to encode.

    Attributes
    ----------
    failures
        Number of the text -> why it has no vector.
    stopped
        Why not all texts were asked for; empty where they were.
    error
        The error that this is for the user; None if it is none, as a limit of cost.
    """

    failures: Mapping[int, str]
    stopped: str = ""
    error: ScvecError | None = None


@runtime_checkable
class StreamingBackbone(Protocol):
    """What a :class:`Backbone` can do whose vectors are paid for: each is kept as soon as it is there.

    Not derived from it, as a check of the kind would ask for the space, and so the server.
    """

    @property
    def notes(self) -> Sequence[str]:
        """What a user should know and is no error."""
        ...

    def fits(self, space: Space) -> bool:
        """Return whether vectors of a space may be of this backbone, as far as it can tell without asking."""
        ...

    def probe(self) -> tuple[Space, Mapping[str, Float32]]:
        """Return the space, and SHA-256 -> vector (dim,) float32 of a few texts; asks the server.

        They tell whether it still is itself.
        """
        ...

    def encode_each(
        self,
        texts: Sequence[str],
        keep: Callable[[list[int], Float32], None],
        *,
        progress: Callable[[int, str], None] = lambda done, detail: None,
    ) -> Streamed:
        """Encode texts and give vectors to ``keep`` as they arrive.

        Whatever has arrived is kept before this returns or raises, on Ctrl-C too.

        Parameters
        ----------
        keep
            Takes numbers of texts and their vectors, (n, dim) float32. Called by one thread at a time.
        progress
            Takes how many texts are done, and rate and cost in words.
        """
        ...


@runtime_checkable
class CellEncoder(Protocol):
    """Turns cells into vectors.

    A cell gets the same vector alone, in any chunk and in any order (within 1e-5).
    """

    name: str
    embed_dim: int

    def fit(
        self,
        chunks: Iterable[CellChunk],
        labels: npt.NDArray[np.int64],
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> None:
        """Learn from labelled cells. ``labels`` (n,) holds class numbers, -1 for unlabelled."""
        ...

    def encode(self, chunk: CellChunk) -> Float32:
        """Return (n, embed_dim) float32."""
        ...

    def state(self) -> State:
        """Return arrays and JSON values from which ``load_state`` rebuilds the encoder."""
        ...


class LanguageModel(Protocol):
    """A causal language model that reads vectors in place of words; its own weights stay as they are.

    Attributes
    ----------
    name
        What the user called it.
    sha256
        Of its weights.
    dim
        Length of the vectors that it reads and gives.
    max_positions
        Places of a sequence that it can read; None where it sets no limit.
    device, precision
        ``cpu`` or ``cuda``, and ``fp32`` or ``bf16``.
    """

    name: str
    sha256: str
    dim: int
    max_positions: int | None
    device: str
    precision: str

    def tokens(self, text: str) -> list[int]:
        """Return the numbers of the words of a text, after the number of the word that starts a sequence."""
        ...

    def embed(self, tokens: Sequence[int]) -> Any:
        """Return (n, dim) torch vectors that the model reads for words."""
        ...

    def run(self, vectors: Any, mask: Any, positions: Any, *, prefix: Any = None) -> Any:
        """Return the (n, length, dim) last states of sequences of vectors (n, length, dim).

        Parameters
        ----------
        mask
            (n, prefix + length) bool, False at places that no other may see.
        positions
            (n, length) int64.
        prefix
            From :meth:`prefix`.
        """
        ...

    def prefix(self, vectors: Any) -> Any:
        """Return what :meth:`run` needs to know of a beginning (1, length, dim) that sequences share.

        None where the model keeps nothing that can be shared.
        """
        ...

    def adapted(self, rank: int, seed: int) -> LanguageModel:
        """Return the same model with trainable low-rank adapters of its own; this one stays as it is."""
        ...

    @property
    def adapters(self) -> Mapping[str, Any]:
        """Name -> torch parameter of the adapters; empty where there are none."""
        ...


@runtime_checkable
class DividesByGene(Protocol):
    """What a :class:`CellEncoder` can do whose vectors are sums over genes, given their length."""

    def shares(self, chunk: CellChunk, directions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return (n, n_genes) what each gene adds to the product of cell vector i and direction i.

        Rows sum to the product; ``directions`` is (n, embed_dim).
        """
        ...


@runtime_checkable
class VectorIndex(Protocol):
    """Nearest-neighbour search by squared Euclidean distance."""

    @property
    def n(self) -> int:
        """Number of vectors held."""
        ...

    @property
    def dim(self) -> int:
        """Length of a vector."""
        ...

    def add(self, vectors: Float32) -> None:
        """Append (n, dim) float32 rows; they get the next row numbers."""
        ...

    def search(
        self,
        vectors: Float32,
        n_neighbors: int,
        *,
        subset: npt.NDArray[np.int64] | None = None,
    ) -> Neighbors:
        """Return the nearest rows, ascending; ``subset`` restricts the search to those row numbers."""
        ...

    def save(self, path: Path) -> None:
        """Write to a file."""
        ...
