"""Types that all packages share: genes, spaces, cells, neighbours, answers of live sources, and protocols."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from scvec.base.errors import ScvecError

__all__ = [
    "Answer",
    "Backbone",
    "CellChunk",
    "CellEncoder",
    "Description",
    "DividesByGene",
    "Failure",
    "Float32",
    "Float64",
    "Gene",
    "GeneMatch",
    "Job",
    "LanguageModel",
    "Marker",
    "Neighbors",
    "Note",
    "Progress",
    "RefittedEncoder",
    "Space",
    "Species",
    "State",
    "Streamed",
    "StreamingBackbone",
    "Wanted",
    "no_progress",
    "text_sha256",
]

#: The key of a species (:mod:`scvec.base.species`), or another name.
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

    ``gene_id`` is the id of the naming authority (``HGNC:6081``, ``MGI:96572``), or ``entrez:N`` for a gene
    that only NCBI lists. Symbols are not unique and are never used as keys.
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
    """A text about a gene, with its source.

    ``kind`` is ``"human"`` (written by curators), ``"composed"`` (a template filled with facts),
    ``"borrowed"`` (the ortholog's text) or ``"llm"``. ``provenance`` is JSON or empty. It holds the provider
    and date of the text, or the token counts and finish reason of a model.
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
        """Name of this space: 16 hex digits of a hash over all fields."""
        return text_sha256(json.dumps(asdict(self), sort_keys=True))[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the fingerprint."""
        return {**asdict(self), "fingerprint": self.fingerprint}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Space:
        """Rebuild a space from the result of :meth:`to_dict`."""
        return cls(**{k: v for k, v in data.items() if k != "fingerprint"})


@dataclass(frozen=True, slots=True)
class Neighbors:
    """Nearest rows of an index.

    Attributes
    ----------
    indices
        (n, k) int64 row numbers, nearest first; padded with -1 if the index holds fewer than k rows.
    distances
        (n, k) float32 squared Euclidean distances, ascending; padded with ``inf``.
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
        """Join the neighbours of several blocks of queries; narrower blocks are padded."""
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
        (n_genes,) bool: True for genes that the data set measured. The column of X of an unmeasured gene is
        empty; its zeros carry no information about the cell.
    batches
        (n,) donors or batches; None if unknown or not needed.
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
        """Return the same cells over the genes with the given column numbers."""
        return CellChunk(self.X[:, genes], self.measured[genes], self.batches)


@dataclass(frozen=True, slots=True)
class GeneMatch:
    """The match of a list of gene names to genes.

    Attributes
    ----------
    names
        The names as given, length n.
    gene_ids
        Gene id that each name was matched to, or None; length n.
    how
        Kind of match per name: ``symbol``, ``ensembl``, ``entrez``, ``previous``, ``alias``, ``case``
        (matched after folding case), ``composite``, ``unique-suffix``, ``ambiguous`` or ``""`` (no match).
    species
        The species that was given or detected.
    id_type
        The identifier type of most names: ``symbols``, ``Ensembl ids`` or ``Entrez ids``.
    ambiguous
        Name -> ids of the genes that it may mean. Ambiguous names stay unmatched.
    looks_like
        The likely species, if its genes are not loaded; else empty.
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
            raise ValueError("names, gene_ids and how must have the same length")

    @property
    def matched(self) -> Bool:
        """(n,) bool, True for names that were matched to a gene."""
        return np.array([g is not None for g in self.gene_ids], dtype=bool)

    @property
    def n_matched(self) -> int:
        """Number of matched names."""
        return sum(g is not None for g in self.gene_ids)

    def summary(self, counts: npt.NDArray[np.float64] | None = None) -> str:
        """Return one line for people; ``counts`` (n,) adds the percentage of counts in matched genes."""
        percent = ""
        if counts is not None and counts.sum() > 0:
            percent = f" ({100 * self.count_share(counts):.1f}% of counts)"
        matched = f"{self.n_matched:,} of {len(self.names):,} genes matched{percent}"
        return f"{matched}: {self.id_type}, {self.species}"

    def count_share(self, counts: npt.NDArray[np.float64]) -> float:
        """Return the fraction (0-1) of ``counts`` (n,) in matched genes."""
        total = float(counts.sum())
        return float(counts[self.matched].sum()) / total if total > 0 else 0.0


#: Saved state of an encoder or a sample of cells: arrays (safetensors) and JSON values.
State = tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]


class Progress(Protocol):
    """A function that receives the progress of a stage."""

    def __call__(self, stage: str, done: int, total: int | None, detail: str = "") -> None:
        """Report ``done`` of ``total`` (None if unknown); ``detail`` adds words, such as rate and cost."""
        ...


def no_progress(stage: str, done: int, total: int | None, detail: str = "") -> None:
    """Report nothing."""


@runtime_checkable
class Backbone(Protocol):
    """Turns texts into vectors."""

    @property
    def space(self) -> Space:
        """The space of the vectors."""
        ...

    def encode(self, texts: Sequence[str]) -> Float32:
        """Return (n, dim) float32, one row per text, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Streamed:
    """The result of encoding texts on a server.

    Attributes
    ----------
    failures
        Number of the text -> reason why it has no vector.
    stopped
        Reason why not all texts were sent; empty if all were sent.
    error
        The error to show to the user; None if the stop is not an error, such as a cost limit.
    """

    failures: Mapping[int, str]
    stopped: str = ""
    error: ScvecError | None = None


@runtime_checkable
class StreamingBackbone(Protocol):
    """A :class:`Backbone` with paid vectors; the caller keeps each vector as soon as it arrives.

    This protocol does not derive from :class:`Backbone`. Otherwise ``isinstance`` would read ``space``, and
    so send a request to the server.
    """

    @property
    def notes(self) -> Sequence[str]:
        """Messages for the user that are not errors."""
        ...

    def fits(self, space: Space) -> bool:
        """Return whether this backbone may have made vectors of a space; sends no request."""
        ...

    def probe(self) -> tuple[Space, Mapping[str, Float32]]:
        """Ask the server for the space, and for vectors of a few fixed texts.

        The vectors show whether the server still runs the same model.

        Returns
        -------
        space
            The space of the vectors.
        vectors
            SHA-256 of each text -> (dim,) float32.
        """
        ...

    def encode_each(
        self,
        texts: Sequence[str],
        keep: Callable[[list[int], Float32], None],
        *,
        progress: Callable[[int, str], None] = lambda done, detail: None,
    ) -> Streamed:
        """Encode texts and pass vectors to ``keep`` as they arrive.

        ``keep`` has received all arrived vectors when this returns or raises, also after Ctrl-C.

        Parameters
        ----------
        texts
            Texts to encode.
        keep
            Function of text numbers and their vectors, (n, dim) float32. One thread at a time calls it.
        progress
            Function of the number of finished texts, and of rate and cost in words.
        """
        ...


@runtime_checkable
class CellEncoder(Protocol):
    """Turns cells into vectors.

    The vector of a cell does not depend on the other cells of its chunk or on their order (within 1e-5).
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
        """Fit to labelled cells. ``labels`` (n,) int64 holds class numbers, -1 for unlabelled cells."""
        ...

    def encode(self, chunk: CellChunk) -> Float32:
        """Return (n, embed_dim) float32."""
        ...

    def state(self) -> State:
        """Return the arrays and JSON values from which ``load_state`` rebuilds the encoder."""
        ...


class RefittedEncoder(CellEncoder, Protocol):
    """An encoder that selects genes itself and is fitted again to the genes that a query measured.

    Cells of one class point in one direction, so the classifier is the cosine to each class mean.

    Attributes
    ----------
    variability
        (n_genes,) float32, variability of each gene in the reference.
    """

    variability: Float32

    @property
    def genes(self) -> npt.NDArray[np.int64]:
        """Column numbers of the selected genes, ascending."""
        ...

    def read(self, chunk: CellChunk) -> CellChunk:
        """Return the cells over :attr:`genes`."""
        ...

    def encode_read(self, known: CellChunk) -> Float32:
        """Return (n, embed_dim) float32 vectors of cells that :meth:`read` returned."""
        ...


class LanguageModel(Protocol):
    """A causal language model with vectors as input in place of words. Its weights are frozen.

    Attributes
    ----------
    name
        Name that the user gave.
    sha256
        SHA-256 of the weights.
    dim
        Length of the input and output vectors.
    max_positions
        Largest sequence length; None if there is no limit.
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
        """Return the token ids of a text, with the start token first."""
        ...

    def embed(self, tokens: Sequence[int]) -> Any:
        """Return the (n, dim) torch input embeddings of tokens."""
        ...

    def run(self, vectors: Any, mask: Any, positions: Any, *, prefix: Any = None) -> Any:
        """Return the (n, length, dim) last hidden states.

        Parameters
        ----------
        vectors
            (n, length, dim) input embeddings.
        mask
            (n, prefix length + length) bool attention mask; no token attends to positions that are False.
        positions
            (n, length) int64 position ids.
        prefix
            Cache of a shared beginning, from :meth:`prefix`.
        """
        ...

    def prefix(self, vectors: Any) -> Any:
        """Return the cache for :meth:`run` of a beginning (1, length, dim) that all sequences share.

        None if the model has no cache that sequences can share.
        """
        ...


@runtime_checkable
class DividesByGene(Protocol):
    """A :class:`CellEncoder` whose vectors are sums of one term per gene, up to normalization."""

    def shares(self, chunk: CellChunk, directions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the contribution of each gene to the dot product of cell vector i and direction i.

        Parameters
        ----------
        chunk
            n cells.
        directions
            (n, embed_dim) float64.

        Returns
        -------
        ndarray
            (n, n_genes) float64; rows sum to the dot products.
        """
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """One question about one gene, cell type or group of cells.

    Equal jobs share one answer in the store, so each is asked once.

    Attributes
    ----------
    gene_id
        Gene id in the knowledge base, or ``ask:SPECIES:NAME`` for a name that the knowledge base lacks;
        ``CL:...`` for a cell type, ``group:...`` for a group of cells.
    source
        ``ncbi``, ``mygene``, ``cellguide`` or ``llm``.
    model, prompt
        Model, and name and version of the prompt; empty if the source is not a language model.
    input_sha256
        SHA-256 of the input that decides the answer: the id to look up, or the facts given to a model.
    """

    gene_id: str
    source: str
    model: str = ""
    prompt: str = ""
    input_sha256: str = ""

    @classmethod
    def of(cls, gene_id: str, source: str, question: str, *, model: str = "", prompt: str = "") -> Job:
        """Return the job whose answer depends on ``question``."""
        return cls(gene_id, source, model, prompt, text_sha256(question))

    @property
    def is_about_gene(self) -> bool:
        """Whether the question is about a gene."""
        return not self.gene_id.startswith(("CL:", "group:"))


@dataclass(frozen=True, slots=True)
class Wanted:
    """A gene to look up in a source, with all names that the lookup may use.

    Attributes
    ----------
    gene_id
        Gene id, as in :class:`Job`.
    """

    gene_id: str
    species: Species
    symbol: str = ""
    entrez_id: int | None = None
    ensembl_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Marker:
    """A marker gene of a cell type.

    Attributes
    ----------
    direction
        ``positive``, or ``negative`` for a gene that the type lacks.
    weight
        Above 0; 1 if the source gives no weight.
    """

    cl_id: str
    tissue: str
    species: str
    gene: str
    direction: str = "positive"
    weight: float = 1.0
    source: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """Facts of one source about the subject of a job: field name -> JSON value."""

    gene_id: str
    source: str
    source_version: str
    retrieved_at: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the facts as JSON with sorted keys."""
        return json.dumps(dict(self.facts), sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a job.

    Attributes
    ----------
    gene
        The gene's facts in the source, or None if the source gives no facts (a language model).
    descriptions
        Texts. Their ``gene_id`` is the gene's; it differs from the job's if the job looked up a name.
    note
        Other facts of the source, or None.
    markers
        Markers of the cell type. They replace those that the source gave before.
    """

    job: Job
    gene: Gene | None = None
    descriptions: tuple[Description, ...] = ()
    note: Note | None = None
    markers: tuple[Marker, ...] = ()

    @property
    def retrieved_at(self) -> str:
        """Time (ISO 8601) at which the latest part was retrieved; empty if the answer has no parts."""
        times = [d.retrieved_at for d in self.descriptions]
        return max([*times, "" if self.note is None else self.note.retrieved_at])


@dataclass(frozen=True, slots=True)
class Failure:
    """A job without an answer.

    Attributes
    ----------
    reason
        Why the job failed, in words; without secrets.
    final
        True if a retry would fail too, because the source does not know the gene. The next run skips the job.
    """

    job: Job
    reason: str
    final: bool = False
    attempts: int = 1
