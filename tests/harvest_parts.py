"""What the tests of the harvest share: jobs, a source that answers by a function, and a journal."""

import asyncio
from collections import Counter

from scvec.ingest.sources.retry import Caller
from scvec.ingest.sources.run import harvest
from scvec.records import Answer, Job
from scvec.types import Gene


def jobs_of(n):
    return [Job.of(f"HGNC:{i}", "fake", str(i)) for i in range(n)]


def answer(job, gene_id=None):
    return Answer(job, Gene(gene_id or job.gene_id, "human", "X"))


class FakeSource:
    """Answers by a function of the batch, which may raise."""

    name = "fake"

    def __init__(self, reply=None, batch_size=10, attempts=8):
        self.batch_size = batch_size
        self.caller = Caller("fake", pace=0.0001, attempts=attempts, seed=1)
        self.reply = reply or (lambda batch: ([answer(j) for j in batch], []))
        self.asked = []

    async def ask(self, jobs):
        async def request():
            self.asked.append(list(jobs))
            await asyncio.sleep(0)
            return self.reply(jobs)

        return await self.caller.call(request)


class Journal:
    def __init__(self):
        self.answers, self.failures, self.n_writes = [], [], 0

    def __call__(self, answers, failures):
        self.n_writes += 1
        self.answers += answers
        self.failures += failures


def run(source, jobs, journal=None, **given):
    journal = Journal() if journal is None else journal
    return asyncio.run(harvest(source, jobs, journal, **given)), journal


def once_each(journal, jobs):
    counts = Counter(a.job for a in journal.answers) + Counter(f.job for f in journal.failures)
    return counts == Counter(jobs)
