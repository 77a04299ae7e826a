"""Jobs for live sources, their answers and their failures, and markers, as the store keeps them."""

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

    It is asked once: equal jobs have one answer in the store.

    Attributes
    ----------
    gene_id
        The gene in the knowledge base, or ``ask:SPECIES:NAME`` for a name it does not know; ``CL:...`` for a
        cell type, ``group:...`` for a group of cells.
    source
        ``ncbi``, ``mygene``, ``cellguide`` or ``llm``.
    model, prompt
        Model, and name and version of the prompt; empty where none is asked.
    input_sha256
        SHA-256 of what the answer depends on: the id that is asked for, or the facts given to a model.
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
    """A gene to ask a source about, with all names it could be asked by.

    Attributes
    ----------
    gene_id
        As in :class:`Job`.
    """

    gene_id: str
    species: Species
    symbol: str = ""
    entrez_id: int | None = None
    ensembl_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Marker:
    """A gene that tells a cell type from others.

    Attributes
    ----------
    direction
        ``positive``, or ``negative`` for a gene that the type lacks.
    weight
        Above 0; 1 where the source says nothing.
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
    """Facts of one source about what a job is about, field by field, as JSON holds them."""

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
        The gene's facts as the source has them, or None where it tells none (a language model).
    descriptions
        Texts; their ``gene_id`` is the gene's, which is not the job's where a name was asked.
    note
        The source's other facts, or None.
    markers
        Markers of the cell type; they take the place of those that the source told before.
    """

    job: Job
    gene: Gene | None = None
    descriptions: tuple[Description, ...] = ()
    note: Note | None = None
    markers: tuple[Marker, ...] = ()

    @property
    def retrieved_at(self) -> str:
        """When the last part was retrieved; empty where it has none."""
        times = [d.retrieved_at for d in self.descriptions]
        return max([*times, "" if self.note is None else self.note.retrieved_at])


@dataclass(frozen=True, slots=True)
class Failure:
    """A job without an answer.

    Attributes
    ----------
    reason
        Why, in words; without secrets.
    final
        True where asking again would get the same: the gene is not known there. The next run does not.
    """

    job: Job
    reason: str
    final: bool = False
    attempts: int = 1
