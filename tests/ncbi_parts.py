"""What the tests of NCBI share: what is wanted, and how it is asked."""

import asyncio

from scvec.ingest.sources.ncbi import NcbiSource
from scvec.ingest.sources.run import harvest
from scvec.records import Job, Wanted


def by_id(gene, gene_id=None, species=None):
    gene_id = gene_id or gene.authority
    job = Job.of(gene_id, "ncbi", f"entrez:{gene.entrez_id}")
    return {job: Wanted(gene_id, species or gene.species, gene.symbol, gene.entrez_id)}


def by_name(name, species="human"):
    gene_id = f"ask:{species}:{name}"
    return {Job.of(gene_id, "ncbi", name): Wanted(gene_id, species, name)}


def ask(server, wanted, *, settings=None, **given):
    """One round of questions: answers and failures by gene id."""

    async def main():
        async with NcbiSource(
            wanted, settings, base_url=server.url, per_second=0, pace=0.001, **given
        ) as source:
            return await source.ask(list(wanted))

    answers, failures = asyncio.run(main())
    return {a.job.gene_id: a for a in answers}, {f.job.gene_id: f for f in failures}


def collect(server, wanted, **given):
    """A whole harvest."""
    answers, failures = [], []

    async def main():
        async with NcbiSource(wanted, base_url=server.url, per_second=0, pace=0.001, **given) as source:
            return await harvest(source, list(wanted), lambda a, f: (answers.extend(a), failures.extend(f)))

    return asyncio.run(main()), answers, failures
