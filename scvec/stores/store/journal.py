"""Answers of live sources, on the disk from the moment they arrive until a generation holds them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from scvec.base.records import Answer, Failure, Job, Note
from scvec.base.types import Description, Gene
from scvec.stores.store.append_log import AppendLog

__all__ = ["Journal"]

_KEY = attrgetter(*(field.name for field in fields(Job)))


class _Place(NamedTuple):
    """Where the answer to a job stands. Of several the largest counts."""

    retrieved_at: str
    sha256: str
    at: int
    has_gene: bool


class Journal:
    """What live sources answered and no generation holds yet.

    It lies beside the generations and belongs to none: whatever is committed or thrown away meanwhile, what
    was paid for stays. What was written is on the disk when :meth:`write` returns; each record has a
    checksum, and a damaged file is kept aside while what can be read of it goes on
    (:class:`~scvec.stores.store.append_log.AppendLog`).

    An equal job counts once: an answer is preferred to any failure, then the answer retrieved last. So what
    is read does not depend on the order of writing, or on repeats.

    Parameters
    ----------
    path
        The file, such as ``STORE/work/answers.log``. There is none until the first record.
    writable
        False to look at what another process may be writing. Only the holder of the store's writer lock may
        write.
    """

    def __init__(self, path: Path | str, *, writable: bool = True) -> None:
        self.path = Path(path)
        self._log = AppendLog(self.path, writable=writable)
        self._answers: dict[Job, _Place] = {}
        self._failures: dict[Job, Failure] = {}
        # Whether what was read is all that there is; None before the first look.
        self._is_read: bool | None = None
        self._absorbed: tuple[int, frozenset[Job]] | None = None
        #: What went wrong on the way, and what became of it.
        self.notes: list[str] = []

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        self._log.close()

    def write(self, answers: Sequence[Answer], failures: Sequence[Failure] = ()) -> None:
        """Keep answers and failures: all of them are on the disk when this returns, none if it raises.

        Raises
        ------
        ResourceError
            The disk is full.
        """
        rows: list[tuple[list[Any], str]] = [
            (["answer", *_KEY(a.job), a.retrieved_at, a.gene is not None], _body(a)) for a in answers
        ]
        rows += [(["failure", *_KEY(f.job), f.reason, f.final, f.attempts], "") for f in failures]
        if self._is_read is None:
            self._read()
        if self._log.append(rows):
            self._is_read = False

    def done_jobs(self) -> set[Job]:
        """Return jobs that have an answer here."""
        self._read()
        return set(self._answers)

    def failed_jobs(self) -> set[Job]:
        """Return jobs that have failed, and no answer here."""
        self._read()
        return set(self._failures) - set(self._answers)

    def answers(self, n: int = 5000) -> Iterator[list[Answer]]:
        """Yield answers, each job's once, ``n`` at a time.

        The order is always the same: those that tell a gene's facts first, of those the ones that were asked
        about a gene and not about a name; then by job.
        """
        self._read()
        places = dict(self._answers)
        jobs = sorted(places, key=lambda j: (not places[j].has_gene, j.gene_id.startswith("ask:"), _KEY(j)))
        bodies = self._log.bodies([places[job].at for job in jobs])
        for start in range(0, len(jobs), n):
            part = jobs[start : start + n]
            yield [_answer(job, next(bodies)) for job in part]

    def failures(self, n: int = 5000) -> Iterator[list[Failure]]:
        """Yield failures of jobs that have no answer here, each job's once, ``n`` at a time, by job.

        Of several the final one counts, then that of most attempts.
        """
        self._read()
        lost = [self._failures[job] for job in sorted(self.failed_jobs(), key=_KEY)]
        for start in range(0, len(lost), n):
            yield lost[start : start + n]

    def absorbed(self, left: Iterable[Job]) -> None:
        """Note that all that is here now has been taken in, but for the answers of the jobs in ``left``."""
        self._absorbed = (self._log.end, frozenset(left))

    def clear(self) -> None:
        """Forget what was absorbed, and nothing else; delete the file where nothing is left.

        For when the generation that took it in is in place.
        """
        if self._absorbed is None or not self.path.exists():
            return
        end, left = self._absorbed
        entries = self._log.entries()
        self._absorbed, self._is_read = None, False
        if self._log.n_damaged:
            return  # records have moved; taken in once more, they change nothing
        self._log.keep(
            [e.at for e in entries if e.at >= end or (e.head[0] == "answer" and Job(*e.head[1:6]) in left)]
        )

    def _read(self) -> None:
        if self._is_read:
            return
        self._answers, self._failures = {}, {}
        for at, sha256, head in self._log.entries():
            job, rest = Job(*head[1:6]), head[6:]
            if head[0] == "answer":
                place = _Place(rest[0], sha256, at, rest[1])
                self._answers[job] = max(place, self._answers.get(job, place))
            else:
                failure = Failure(job, *rest)
                self._failures[job] = max(failure, self._failures.get(job, failure), key=_weight)
        self._is_read = True
        if self._log.n_damaged:
            aside = self._log.aside
            kept = f"; the file is kept as {aside.name}" if aside is not None else ""
            n = len(self._answers)
            self.notes.append(f"the journal of answers was damaged: {n:,} answers could be read{kept}")


def _weight(failure: Failure) -> tuple[bool, int, str]:
    return failure.final, failure.attempts, failure.reason


def _body(answer: Answer) -> str:
    gene, note = answer.gene, answer.note
    whole = {
        "gene": None if gene is None else _fields(gene),
        "descriptions": [_fields(d) for d in answer.descriptions],
        "note": None if note is None else _fields(note) | {"facts": dict(note.facts)},
    }
    return json.dumps(whole, ensure_ascii=False)


def _fields(noun: Gene | Description | Note) -> dict[str, Any]:
    return {field.name: getattr(noun, field.name) for field in fields(noun)}


def _answer(job: Job, body: str) -> Answer:
    found: dict[str, Any] = json.loads(body)
    gene: dict[str, Any] | None
    gene, note = found["gene"], found["note"]
    if gene is not None:
        gene = {k: tuple(v) if isinstance(v, list) else v for k, v in gene.items()}
    return Answer(
        job,
        None if gene is None else Gene(**gene),
        tuple(Description(**d) for d in found["descriptions"]),
        None if note is None else Note(**note),
    )
