"""Questions to live sources and what became of them: from the journal into the knowledge base."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from scvec.base.records import Answer, Failure, Job, Note
from scvec.base.types import Gene
from scvec.stores.knowledge.gene_records import load_genes, match_genes
from scvec.stores.knowledge.tables import Tables, description_table, upsert, upsert_descriptions

if TYPE_CHECKING:
    import pyarrow as pa

    from scvec.stores.store.journal import Journal

__all__ = ["Jobs", "absorb"]

JOB_KEYS = ("gene_id", "source", "model", "prompt", "input_sha256")
_KEY = ", ".join(JOB_KEYS)

#: Answers that are held in memory at once.
BATCH = 5000
# Of two answers about one thing the later counts, whichever is absorbed first.
_NEWER = "s.retrieved_at >= t.retrieved_at"
# Of two live sources that know a gene NCBI counts, of two versions of one the newer; a gene that others
# brought stays theirs.
_BETTER = (
    "t.source IN ('ncbi', 'mygene') AND (t.source <> 'ncbi', t.source, s.source_version)"
    " > (s.source <> 'ncbi', s.source, t.source_version)"
)


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
        with self._registered(asked=_job_table(jobs)):
            rows = self._all(f"SELECT {_KEY} FROM jobs SEMI JOIN asked USING ({_KEY}) WHERE {condition}")
        return {Job(*row) for row in rows}


class _Placed(NamedTuple):
    gene_id: str
    answer: Answer


def absorb(con: Any, journal: Journal) -> tuple[dict[str, int], list[Job]]:
    """Write all that a journal holds, inside a transaction that the caller holds.

    Returns
    -------
    counts
        As :meth:`~scvec.stores.knowledge.knowledge.KnowledgeBase.absorb` says them.
    left
        Jobs whose answers belong to no gene that is known.
    """
    counts = dict.fromkeys(("answers", "failures", "genes", "descriptions", "notes", "unplaced"), 0)
    left: list[Job] = []
    for batch in journal.answers(BATCH):
        counts["answers"] += len(batch)
        placed, lost = _place(con, batch, counts)
        left += lost
        texts = [replace(d, gene_id=gene_id) for gene_id, a in placed for d in a.descriptions]
        texts.sort(key=lambda d: (d.retrieved_at, d.sha256))  # of one key the last counts
        counts["descriptions"] += upsert_descriptions(con, description_table(texts), where=_NEWER)
        notes = [replace(a.note, gene_id=gene_id) for gene_id, a in placed if a.note is not None]
        counts["notes"] += _put_notes(con, notes)
        _put_done(con, placed)
    counts["unplaced"] = len(left)
    for failures in journal.failures(BATCH):
        counts["failures"] += len(failures)
        _put_failed(con, failures)
    return counts, left


def _place(con: Any, batch: Sequence[Answer], counts: dict[str, int]) -> tuple[list[_Placed], list[Job]]:
    """Find the gene of each answer, and load what answers tell about genes.

    The gene that was asked about decides. Only for others is it looked up, after the first have got their
    Entrez ids.
    """
    known = _species(con, {a.job.gene_id for a in batch})
    direct = [_Placed(a.job.gene_id, a) for a in batch if a.job.gene_id in known]
    told = [(p.gene_id, p.answer.gene, p.answer) for p in direct if p.answer.gene is not None]
    counts["genes"] += _load(
        con, _free_numbers(con, [(i, replace(g, species=known[i]), a) for i, g, a in told])
    )
    others = [a for a in batch if a.job.gene_id not in known]
    genes: dict[str, Gene] = {}
    for answer in others:
        gene = _named(answer.gene)
        if gene is not None:
            genes.setdefault(gene.gene_id, gene)
    # Each gene once: of several records that match one gene by the same rule, one alone is it.
    ids = dict(zip(genes, match_genes(con, list(genes.values())), strict=True)) if genes else {}
    found, left, told = [], [], []
    for answer in others:
        gene = _named(answer.gene)
        if gene is None:
            left.append(answer.job)
            continue
        found.append(_Placed(ids[gene.gene_id], answer))
        told.append((ids[gene.gene_id], gene, answer))
    counts["genes"] += _load(con, told)
    return [*direct, *found], left


def _named(gene: Gene | None) -> Gene | None:
    """Return a gene that can be stored: one that has an id of its own, and not only the question."""
    if gene is None or not gene.gene_id.startswith("ask:"):
        return gene
    return replace(gene, gene_id=f"entrez:{gene.entrez_id}") if gene.entrez_id is not None else None


def _species(con: Any, gene_ids: set[str]) -> dict[str, Any]:
    import pyarrow as pa

    con.register("asked", pa.table({"gene_id": pa.array(sorted(gene_ids), pa.string())}))
    try:
        return dict(
            con.execute("SELECT gene_id, species FROM genes SEMI JOIN asked USING (gene_id)").fetchall()
        )
    finally:
        con.unregister("asked")


_Told = tuple[str, Gene, Answer]


def _free_numbers(con: Any, told: list[_Told]) -> list[_Told]:
    """Return the records without the Entrez ids that other genes have: an id is of one gene."""
    import pyarrow as pa

    numbers = sorted({g.entrez_id for _, g, _ in told if g.entrez_id is not None})
    con.register("numbers", pa.table({"entrez_id": pa.array(numbers, pa.int64())}))
    try:
        rows = con.execute(
            "SELECT entrez_id, species, min(gene_id) FROM genes SEMI JOIN numbers USING (entrez_id)"
            " GROUP BY ALL"
        ).fetchall()
    finally:
        con.unregister("numbers")
    owner = {(number, species): gene_id for number, species, gene_id in rows}
    free = []
    for gene_id, gene, answer in told:
        if (
            gene.entrez_id is not None
            and owner.setdefault((gene.entrez_id, gene.species), gene_id) != gene_id
        ):
            gene = replace(gene, entrez_id=None)
        free.append((gene_id, gene, answer))
    return free


def _load(con: Any, told: Sequence[_Told]) -> int:
    if not told:
        return 0
    # NCBI's word first, then the newest, whichever came first.
    ranked = sorted(told, key=lambda r: _version(r[2]), reverse=True)
    ranked.sort(key=lambda r: (r[2].job.source != "ncbi", r[2].job.source))
    ids, genes, answers = zip(*ranked, strict=True)
    return load_genes(
        con, genes, ids, [a.job.source for a in answers], [_version(a) for a in answers], _BETTER
    )


def _version(answer: Answer) -> str:
    if answer.note is not None:
        return answer.note.source_version
    return answer.descriptions[0].source_version if answer.descriptions else ""


def _put_notes(con: Any, notes: Sequence[Note]) -> int:
    import pyarrow as pa

    aged = sorted(((n.retrieved_at, n.source_version, n.to_json(), n) for n in notes), key=lambda r: r[:3])
    rows = {(n.gene_id, n.source): (n, facts) for _, _, facts, n in aged}  # of one key the last counts
    columns = {
        field: pa.array([getattr(n, field) for n, _ in rows.values()], pa.string())
        for field in ("gene_id", "source", "source_version", "retrieved_at")
    }
    table = pa.table({**columns, "facts": pa.array([facts for _, facts in rows.values()], pa.string())})
    update = {c: f"s.{c}" for c in ("source_version", "retrieved_at", "facts")}
    return upsert(con, "notes", table, "SELECT * FROM incoming", ("gene_id", "source"), update, _NEWER)


def _put_done(con: Any, placed: Sequence[_Placed]) -> None:
    import pyarrow as pa

    # Under the job, so that it is not asked again, and under the gene that it came to.
    done: dict[Job, Answer] = {}
    for gene_id, answer in placed:
        done[answer.job] = answer
        done.setdefault(replace(answer.job, gene_id=gene_id), answer)
    table = _job_table(done).append_column(
        "updated_at", pa.array([a.retrieved_at for a in done.values()], pa.string())
    )
    upsert(
        con,
        "jobs",
        table,
        "SELECT *, 'done' AS status, 1 AS attempts, '' AS error, false AS final FROM incoming",
        JOB_KEYS,
        {c: f"s.{c}" for c in ("status", "attempts", "error", "final", "updated_at")},
        "t.status <> 'done' OR s.updated_at > t.updated_at",
    )


def _put_failed(con: Any, failures: Sequence[Failure]) -> None:
    import pyarrow as pa

    now = datetime.now(UTC).isoformat(timespec="seconds")
    table = _job_table(f.job for f in failures)
    for name, values, kind in (
        ("attempts", [f.attempts for f in failures], pa.int64()),
        ("error", [f.reason for f in failures], pa.string()),
        ("final", [f.final for f in failures], pa.bool_()),
    ):
        table = table.append_column(name, pa.array(values, kind))
    upsert(
        con,
        "jobs",
        table,
        f"SELECT *, 'failed' AS status, '{now}' AS updated_at FROM incoming",
        JOB_KEYS,
        {c: f"s.{c}" for c in ("attempts", "error", "final")},
        "t.status <> 'done'",
    )


def _job_table(jobs: Iterable[Job]) -> pa.Table:
    """Keys of jobs as an Arrow table, in order."""
    import pyarrow as pa

    listed = list(jobs)
    return pa.table({k: pa.array([getattr(job, k) for job in listed], pa.string()) for k in JOB_KEYS})
