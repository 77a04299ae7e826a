"""Answers and failures of a service that tells the same of a gene whenever it is asked."""

from __future__ import annotations

from scvec.base.types import Answer, Description, Failure, Gene, Job, Note

AT = "2026-11-22T10:00:00+00:00"


def job(n, source="ncbi", ask=False):
    gene_id = f"ask:human:G{n}" if ask else f"HGNC:{n}"
    return Job.of(gene_id, source, f"human {n}")


def answer(n, source="ncbi", *, ask=False, text=None, at=AT, version="2026"):
    asked = job(n, source, ask)
    text = f"Gene {n} does something, says {source}." if text is None else text
    return Answer(
        asked,
        Gene(f"entrez:{1000 + n}", "human", f"G{n}", 1000 + n, f"gene {n}", aliases=(f"A{n}",)),
        (
            Description(
                asked.gene_id, text, source, version, at, "human", provenance='{"provided_by": "RefSeq"}'
            ),
        ),
        Note(asked.gene_id, source, version, at, {"summary": text, "aliases": [f"A{n}"], "lineage": None}),
    )


def written(n, *, text=None, at=AT):
    """What a language model answers: a text and nothing else."""
    asked = Job.of(f"HGNC:{n}", "llm", f"facts {n}", model="m", prompt="p1")
    text = f"A model on gene {n}." if text is None else text
    description = Description(
        asked.gene_id, text, "llm", "", at, "llm", "m", "p1", '{"finish_reason": "stop", "tokens": 7}'
    )
    return Answer(asked, None, (description,))


def failure(n, source="ncbi", *, final=False, reason="no answer", ask=False, attempts=1):
    return Failure(job(n, source, ask), reason, final, attempts)


def genes(n):
    """Genes of a knowledge base before anything was asked: names and ids of an authority, no Entrez ids."""
    return [Gene(f"HGNC:{i}", "human", f"G{i}") for i in range(n)]


def done_jobs(journal):
    """Jobs with an answer in a journal."""
    return {answer.job for answers in journal.answers() for answer in answers}
