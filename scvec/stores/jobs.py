"""Which questions about genes have been answered, as the knowledge base has it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from scvec.records import Failure, Job
from scvec.stores.tables import Tables

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["JOB_KEYS", "Jobs", "job_table"]

JOB_KEYS = ("gene_id", "source", "model", "prompt", "input_sha256")
_KEY = ", ".join(JOB_KEYS)


class Jobs(Tables):
    """The part of the knowledge base that is about questions to live sources."""

    def jobs_done(self, jobs: Iterable[Job]) -> set[Job]:
        """Return those of ``jobs`` that have an answer here."""
        return self._with(jobs, "status = 'done'")

    def jobs_final(self, jobs: Iterable[Job]) -> set[Job]:
        """Return those of ``jobs`` that failed for good: asking again would get the same."""
        return self._with(jobs, "status = 'failed' AND final")

    def answered(self, source: str, *, model: str = "", prompt: str = "") -> set[str]:
        """Return the ids of genes that a source has answered, whatever it was asked for them.

        A gene that was asked for by its symbol, or by a name nobody knew, has an Entrez id once the answer
        is here: the next question about it would be another job, but the gene has been answered.
        """
        rows = self._all(
            "SELECT DISTINCT gene_id FROM jobs"
            " WHERE status = 'done' AND source = ? AND model = ? AND prompt = ?",
            [source, model, prompt],
        )
        return {str(row[0]) for row in rows}

    def failures(self, source: str | None = None, *, gene_id: str | None = None) -> list[Failure]:
        """Return jobs that were asked and have no answer, in a stable order."""
        rows = self._all(
            f"SELECT {_KEY}, error, final, attempts FROM jobs WHERE status = 'failed'"
            f" AND ($1 IS NULL OR source = $1) AND ($2 IS NULL OR gene_id = $2) ORDER BY {_KEY}",
            [source, gene_id],
        )
        return [Failure(Job(*row[:5]), *row[5:]) for row in rows]

    def _with(self, jobs: Iterable[Job], condition: str) -> set[Job]:
        with self._registered(asked=job_table(jobs)):
            rows = self._all(f"SELECT {_KEY} FROM jobs SEMI JOIN asked USING ({_KEY}) WHERE {condition}")
        return {Job(*row) for row in rows}


def job_table(jobs: Iterable[Job]) -> pa.Table:
    """Keys of jobs as an Arrow table, in order."""
    import pyarrow as pa

    listed = list(jobs)
    return pa.table({k: pa.array([getattr(job, k) for job in listed], pa.string()) for k in JOB_KEYS})
