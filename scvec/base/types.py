"""The types that all rooms share: genes, spaces, cells, neighbours, and protocols of exchangeable parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from scvec.base.errors import ScvecError

__all__ = [
    "Backbone",
    "CellChunk",
    "CellEncoder",
    "Description",
    "DividesByGene",
    "Float32",
    "Float64",
    "Gene",
    "GeneMatch",
    "LanguageModel",
    "Neighbors",
    "Progress",
    "RefittedEncoder",
    "Space",
    "Species",
    "State",
    "Streamed",
    "StreamingBackbone",
    "VectorIndex",
    "no_progress",
    "text_sha256",
]

#: The key of a species (:mod:`scvec.base.species`), or a name of its own.
Species = str

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]


def text_sha256(text: str) -> str:
    """Return the SHA-256 of a text as UTF-8, in hex."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


@dataclass(frozen=True, slots=True)
class Gene:
    """One gene of one species.

    ``gene_id`` is the authority's id (``HGNC:6081``, ``MGI:96572``), or ``entrez:N`` for a gene that
    only NCBI knows. Symbols are not unique and are never used as keys.
    """

    gene_id: str
    species: Species
    symbol: str
    entrez_id: int | None = None
    name: str = ""
    gene_type: str = ""
    ensembl_ids: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    previous: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Description:
    """A text about a gene, and where it comes from.

    ``kind`` is ``"human"`` (written by curators), ``"composed"`` (a template over facts), ``"borrowed"``
    (the ortholog's) or ``"llm"``. ``provenance`` is JSON, or empty: who provided the text and when, or the
    tokens and finish reason of a model.
    """

    gene_id: str
    text: str
    source: str
    source_version: str
    retrieved_at: str
    kind: Literal["human", "composed", "borrowed", "llm"]
    model: str = ""
    prompt: str = ""
    provenance: str = ""

    @property
    def sha256(self) -> str:
        """SHA-256 of the text."""
        return text_sha256(self.text)


@dataclass(frozen=True, slots=True)
class Space:
    """An embedding space: the settings that make vectors comparable. Vectors of two spaces never mix."""

    backbone: str
    revision: str
    weights_sha256: str
    template: str
    pooling: str
    dim: int
    normalized: bool

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"dim must be positive, not {self.dim}")

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that name this space."""
        return text_sha256(json.dumps(asdict(self), sort_keys=True))[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the fingerprint."""
        return {**asdict(self), "fingerprint": self.fingerprint}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Space:
        """Rebuild from :meth:`to_dict`."""
        return cls(**{k: v for k, v in data.items() if k != "fingerprint"})


@dataclass(frozen=True, slots=True)
class Neighbors:
    """Nearest rows of an index.

    Attributes
    ----------
    indices
        (n, k) int64, nearest first; -1 pads where the index holds fewer than k rows.
    distances
        (n, k) float32 squared Euclidean distances, ascending; ``inf`` where padded.
    """

    indices: Int64
    distances: Float32

    def __post_init__(self) -> None:
        if self.indices.ndim != 2 or self.indices.shape != self.distances.shape:
            raise ValueError(
                f"indices {self.indices.shape} and distances {self.distances.shape} must be (n, k)"
            )
        if self.indices.dtype != np.int64 or self.distances.dtype != np.float32:
            raise ValueError("indices must be int64 and distances float32")

    @classmethod
    def concatenate(cls, parts: list[Neighbors]) -> Neighbors:
        """Return the neighbours of several blocks of queries as one; narrower blocks are padded."""
        width = max(p.indices.shape[1] for p in parts)

        def padded(values: npt.NDArray[Any], fill: float) -> npt.NDArray[Any]:
            return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=fill)

        return cls(
            np.concatenate([padded(p.indices, -1) for p in parts]),
            np.concatenate([padded(p.distances, np.inf) for p in parts]),
        )


@dataclass(frozen=True, slots=True)
class CellChunk:
    """Some cells over the genes of a reference.

    Attributes
    ----------
    X
        (n, n_genes) scipy CSR, float32, log1p of counts per ten thousand.
    measured
        (n_genes,) bool: genes that the data set measured at all. Where False the column of X is empty
        and says nothing about the cell.
    batches
        (n,) donors or batches, where they are known and matter.
    """

    X: Any
    measured: Bool
    batches: npt.NDArray[np.str_] | None = None

    def __post_init__(self) -> None:
        if self.X.shape[1] != self.measured.shape[0]:
            raise ValueError(f"X has {self.X.shape[1]} genes, measured {self.measured.shape[0]}")
        if self.batches is not None and len(self.batches) != self.X.shape[0]:
            raise ValueError(f"{len(self.batches)} batches for {self.X.shape[0]} cells")

    def take(self, rows: Int64) -> CellChunk:
        """Return some of the cells."""
        return CellChunk(self.X[rows], self.measured, None if self.batches is None else self.batches[rows])

    def __len__(self) -> int:
        return int(self.X.shape[0])

    def select(self, genes: Int64) -> CellChunk:
        """Return the same cells over some of the genes, by their numbers."""
        return CellChunk(self.X[:, genes], self.measured[genes], self.batches)


@dataclass(frozen=True, slots=True)
class GeneMatch:
    """The match of a list of gene names to genes.

    Attributes
    ----------
    names
        The names as given, length n.
    gene_ids
        The gene each name stands for, or None; length n.
    how
        Per name: ``symbol``, ``ensembl``, ``entrez``, ``previous``, ``alias``, ``case`` (matched after
        folding case), ``composite``, ``unique-suffix``, ``ambiguous`` or ``""`` (no match).
    species
        The species that was given or detected.
    id_type
        The kind of identifier most names are: ``symbols``, ``Ensembl ids`` or ``Entrez ids``.
    ambiguous
        Names that could be several genes, and which. They stay unmatched.
    looks_like
        A species whose genes are not known here, and whose names these seem to be; empty where there is none.
    """

    names: tuple[str, ...]
    gene_ids: tuple[str | None, ...]
    how: tuple[str, ...]
    species: Species
    id_type: str
    ambiguous: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    looks_like: str = ""

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.gene_ids) == len(self.how):
            raise ValueError("names, gene_ids and how must have one length")

    @property
    def matched(self) -> Bool:
        """(n,) bool, True where a name was matched to a gene."""
        return np.array([g is not None for g in self.gene_ids], dtype=bool)

    @property
    def n_matched(self) -> int:
        """Number of names matched."""
        return sum(g is not None for g in self.gene_ids)

    def summary(self, counts: npt.NDArray[np.float64] | None = None) -> str:
        """One line for people; ``counts`` (n,) adds the fraction of counts in matched genes."""
        share = ""
        if counts is not None and counts.sum() > 0:
            share = f" ({100 * self.count_share(counts):.1f}% of counts)"
        return (
            f"{self.n_matched:,} of {len(self.names):,} genes matched{share}: {self.id_type}, {self.species}"
        )

    def count_share(self, counts: npt.NDArray[np.float64]) -> float:
        """Fraction (0-1) of ``counts`` (n,) in matched genes."""
        total = float(counts.sum())
        return float(counts[self.matched].sum()) / total if total > 0 else 0.0


#: Saved state of an encoder or sample: arrays (safetensors) and JSON values.
State = tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]


class Progress(Protocol):
    """A function that receives the progress of a stage."""

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
    """The result of encoding texts by a server.

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


class RefittedEncoder(CellEncoder, Protocol):
    """An encoder that takes all genes, chooses among them, and is fitted again to the genes of a query.

    It puts the cells of a class in one direction: the cosine to the mean vector of each class is its head.

    Attributes
    ----------
    variability
        (n_genes,) float32 how variable each gene of the reference is.
    """

    variability: Float32

    @property
    def genes(self) -> npt.NDArray[np.int64]:
        """Numbers of the genes that the vectors are made of, ascending."""
        ...

    def read(self, chunk: CellChunk) -> CellChunk:
        """Return the cells over :attr:`genes`."""
        ...

    def encode_read(self, known: CellChunk) -> Float32:
        """Return (n, embed_dim) float32 vectors of the cells that :meth:`read` returned."""
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
        self, vectors: Float32, n_neighbors: int, *, subset: npt.NDArray[np.int64] | None = None
    ) -> Neighbors:
        """Return the nearest rows, ascending; ``subset`` restricts the search to those row numbers."""
        ...

    def save(self, path: Path) -> None:
        """Write to a file."""
        ...
