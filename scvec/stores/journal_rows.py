"""Answers and failures as rows of the journal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from scvec.records import Answer, Failure, Job, Note
from scvec.stores.jobs import JOB_KEYS
from scvec.types import Description, Gene

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["answer_of", "answer_table", "failure_table", "retrieved_at"]

_LISTS = ("ensembl_ids", "aliases", "previous")
_GENE = tuple(f.name for f in fields(Gene))
_DESCRIPTION = tuple(f.name for f in fields(Description))
_NOTE = tuple(f.name for f in fields(Note))


def answer_table(answers: Sequence[Answer]) -> pa.Table:
    """Answers as an Arrow table: the job's key, when it was retrieved, and all of it as JSON."""
    import pyarrow as pa

    table = {key: _strings(getattr(a.job, key) for a in answers) for key in JOB_KEYS}
    table["retrieved_at"] = _strings(retrieved_at(a) for a in answers)
    table["has_gene"] = pa.array([a.gene is not None for a in answers], pa.bool_())
    table["body"] = _strings(_body(a) for a in answers)
    return pa.table(table)


def failure_table(failures: Sequence[Failure]) -> pa.Table:
    """Failures as an Arrow table."""
    import pyarrow as pa

    table = {key: _strings(getattr(f.job, key) for f in failures) for key in JOB_KEYS}
    table["reason"] = _strings(f.reason for f in failures)
    table["final"] = pa.array([f.final for f in failures], pa.bool_())
    table["attempts"] = pa.array([f.attempts for f in failures], pa.int64())
    return pa.table(table)


def answer_of(job: Job, body: str) -> Answer:
    """Rebuild what :func:`answer_table` wrote."""
    found: dict[str, Any] = json.loads(body)
    gene: dict[str, Any] | None
    gene, note = found["gene"], found["note"]
    if gene is not None:
        gene = gene | {k: tuple(gene[k]) for k in _LISTS}
    return Answer(
        job,
        None if gene is None else Gene(**gene),
        tuple(Description(**d) for d in found["descriptions"]),
        None if note is None else Note(**note),
    )


def _body(answer: Answer) -> str:
    note = answer.note
    whole: Mapping[str, Any] = {
        "gene": None if answer.gene is None else {k: getattr(answer.gene, k) for k in _GENE},
        "descriptions": [{k: getattr(d, k) for k in _DESCRIPTION} for d in answer.descriptions],
        "note": None if note is None else {k: getattr(note, k) for k in _NOTE} | {"facts": dict(note.facts)},
    }
    return json.dumps(whole, sort_keys=True, ensure_ascii=False)


def retrieved_at(answer: Answer) -> str:
    """Return when the last part of an answer was retrieved; empty where it has none."""
    times = [d.retrieved_at for d in answer.descriptions]
    return max([*times, "" if answer.note is None else answer.note.retrieved_at])


def _strings(values: Any) -> pa.Array:
    """Text as UTF-8 can hold it: half a surrogate pair in one answer must not cost the batch."""
    import pyarrow as pa

    listed = list(values)
    try:
        return pa.array(listed, pa.string())
    except (UnicodeEncodeError, pa.ArrowException):
        return pa.array([v.encode("utf-8", "replace").decode("utf-8") for v in listed], pa.string())
