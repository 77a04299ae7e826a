"""Jobs for live sources, their answers and failures, and markers. The journal of the store holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scvec.base.types import Description, Gene, Species, text_sha256

__all__ = ["Answer", "Failure", "Job", "Marker", "Note", "Wanted"]


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
