"""A run keeps one outcome of every job, whatever the source answers and however it ends."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter

import pytest
from fake_faults import QUICK, Faults
from fake_genes import fake_genes
from fake_server import FakeServer

from scvec.base.errors import InputError
from scvec.base.settings import Secret, ServiceSettings
from scvec.base.types import Answer, Failure, Gene, Job, Wanted
from scvec.ingest.sources.mygene import MyGeneSource
from scvec.ingest.sources.ncbi import NcbiSource
from scvec.ingest.sources.retry import ENOUGH, BudgetSpentError, Caller, ServiceError
from scvec.ingest.sources.run import ROUNDS, harvest, run_async


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


def test_every_job_is_answered_once():
    jobs = jobs_of(95)
    seen = []
    found, journal = run(
        FakeSource(), jobs, progress=lambda tally: seen.append(tally.done), cost=lambda: 0.25
    )
    assert once_each(journal, jobs) and not journal.failures
    assert (found.tally.done, found.tally.failed, found.tally.calls) == (95, 0, 10)
    assert found.tally.cost == 0.25 and "$0.2500" in found.tally.line()
    assert seen == sorted(seen) and seen[-1] == 95
    assert found.stopped is None and found.failures == ()


def test_nothing_to_ask():
    found, journal = run(FakeSource(), [])
    assert found.tally.total == 0 and journal.n_writes == 0


def test_what_is_left_out_is_asked_again_and_then_failed():
    jobs = jobs_of(10)
    source = FakeSource(lambda batch: ([answer(j) for j in batch if j != jobs[3]], []))
    found, journal = run(source, jobs)
    assert once_each(journal, jobs)
    assert [f.job for f in found.failures] == [jobs[3]]
    assert found.failures[0].attempts == ROUNDS and not found.failures[0].final
    assert source.asked[1:] == [[jobs[3]]] * (ROUNDS - 1)


@pytest.mark.parametrize("trick", ["unasked", "twice", "wrong gene", "both", "mixed"])
def test_answers_that_do_not_fit_are_not_kept(trick):
    jobs = jobs_of(4)
    stranger = Job.of("HGNC:999", "fake", "999")

    def reply(batch):
        good = [answer(j) for j in batch]
        if trick == "unasked":
            return [*good, answer(stranger)], [Failure(stranger, "no")]
        if trick == "twice":
            return [*good, *good], []
        if trick == "both":
            return good, [Failure(j, "no", final=True) for j in batch]
        if trick == "wrong gene":
            return [answer(j, "HGNC:999") for j in batch], []
        parts = Answer(batch[0], Gene("entrez:1", "human", "X"))
        return [parts, *good[1:]], []

    found, journal = run(FakeSource(reply), jobs)
    assert once_each(journal, jobs)
    lost = {"wrong gene": 4, "mixed": 1}.get(trick, 0)
    assert (len(journal.answers), len(journal.failures)) == (4 - lost, lost)
    assert all(a.gene.gene_id == a.job.gene_id for a in journal.answers)
    assert found.tally.done + found.tally.failed == 4


def test_an_unknown_name_may_become_a_gene():
    job = Job.of("ask:human:INS", "fake", "INS")
    found, journal = run(FakeSource(lambda batch: ([answer(job, "entrez:3630")], [])), [job])
    assert journal.answers[0].gene.gene_id == "entrez:3630" and not found.failures


@pytest.mark.parametrize("kind", ["rejected"])
def test_one_bad_gene_does_not_take_the_others_with_it(kind):
    jobs = jobs_of(300)
    bad = {jobs[17], jobs[250]}

    def reply(batch):
        if bad & set(batch):
            raise ServiceError(kind, "bad gene")
        return [answer(j) for j in batch], []

    source = FakeSource(reply, batch_size=100)
    found, journal = run(source, jobs)
    assert once_each(journal, jobs)
    assert {f.job for f in found.failures} == bad
    assert all(f.attempts == 1 for f in found.failures)
    assert len(source.asked) < 3 + 2 * 2 * 8


def test_a_service_that_rejects_everything_is_left_alone():
    def reply(batch):
        raise ServiceError("rejected", "never")

    source = FakeSource(reply, batch_size=100)
    found, _ = run(source, jobs_of(5000))
    assert isinstance(found.stopped.translated("fake"), InputError)
    assert len(source.asked) < 40


def test_a_batch_that_fails_in_passing_is_asked_in_another_round():
    jobs = jobs_of(20)
    n_failed = 0

    def reply(batch):
        nonlocal n_failed
        if jobs[0] in batch and n_failed < 3:
            n_failed += 1
            raise ServiceError("transient", "later")
        return [answer(j) for j in batch], []

    found, journal = run(FakeSource(reply, attempts=2), jobs)
    assert len(journal.answers) == 20 and not found.failures


def test_an_unfit_answer_fails_its_gene_only():
    jobs = jobs_of(30)

    def reply(batch):
        if jobs[0] in batch:
            raise ServiceError("unfit", "not what was asked for")
        return [answer(j) for j in batch], []

    found, journal = run(FakeSource(reply), jobs)
    assert (
        len(journal.answers) == 29 and [f.job for f in found.failures] == jobs[:1] and found.stopped is None
    )
    assert once_each(journal, jobs)


@pytest.mark.parametrize("kind", ["auth", "quota", "address", "gone"])
def test_an_end_keeps_what_has_arrived(kind):
    jobs = jobs_of(200)
    source = FakeSource()

    def reply(batch):
        if source.asked.index(list(batch)) >= 10:
            raise ServiceError(kind, "over")
        return [answer(j) for j in batch], []

    source.reply = reply
    found, journal = run(source, jobs)
    assert found.stopped.kind == kind
    assert len(journal.answers) == 100
    assert len(source.asked) <= 10 + ENOUGH
    assert len(set(a.job for a in journal.answers)) == len(journal.answers)


def test_what_is_under_way_when_the_budget_is_spent_is_waited_for():
    jobs = jobs_of(100)
    source = FakeSource()

    async def ask(batch):
        source.asked.append(batch)
        if len(source.asked) == 3:
            raise BudgetSpentError("enough")
        await asyncio.sleep(0.2)
        return [answer(j) for j in batch], []

    source.ask = ask
    found, journal = run(source, jobs, concurrency=4)
    assert isinstance(found.stopped, BudgetSpentError)
    assert len(journal.answers) == 30 and len(source.asked) == 4


@pytest.mark.parametrize("at", [1, 2, 10])
def test_a_writer_that_fails_is_not_passed_over(at):
    journal = Journal()

    def write(answers, failures):
        journal(answers, failures)
        if journal.n_writes >= at:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run(FakeSource(batch_size=1), jobs_of(400), write)


def test_a_writer_that_fails_on_the_last_answers_is_not_passed_over():
    def write(answers, failures):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run(FakeSource(), jobs_of(3), write)


def test_a_bug_in_a_source_is_raised_and_what_arrived_is_kept():
    source = FakeSource(batch_size=1)

    def reply(batch):
        if len(source.asked) == 20:
            raise ZeroDivisionError
        return [answer(j) for j in batch], []

    source.reply = reply
    journal = Journal()
    with pytest.raises(ZeroDivisionError):
        run(source, jobs_of(100), journal, concurrency=1)
    assert len(journal.answers) == 19


def test_cancelling_writes_what_has_arrived():
    jobs = jobs_of(1000)
    source = FakeSource(batch_size=1)
    journal = Journal()
    arrived = 0

    async def ask(batch):
        nonlocal arrived
        await asyncio.sleep(0.001)
        arrived += 1
        if arrived == 50:
            task.cancel()
        return [answer(j) for j in batch], []

    source.ask = ask
    task = None

    async def main():
        nonlocal task
        task = asyncio.create_task(harvest(source, jobs, journal))
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert 50 <= arrived < 1000
    assert len(journal.answers) == arrived
    assert len({a.job for a in journal.answers}) == arrived


def test_cancelling_keeps_what_waits_to_be_written():
    # All arrive at once, more than may wait for the writer; the cancelling comes with the first write.
    jobs = jobs_of(60)
    source, journal = FakeSource(batch_size=1), Journal()
    n_asked, all_asked = 0, asyncio.Event()

    async def ask(batch):
        nonlocal n_asked
        n_asked += 1
        if n_asked == len(jobs):
            all_asked.set()
        await all_asked.wait()
        return [answer(j) for j in batch], []

    source.ask = ask

    async def main():
        def write(answers, failures):
            journal(answers, failures)
            task.cancel()

        task = asyncio.create_task(harvest(source, jobs, write, concurrency=60))
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert journal.n_writes > 1
    assert once_each(journal, jobs)


def test_a_bug_that_shows_after_the_end_is_raised():
    jobs = jobs_of(2)
    source = FakeSource(batch_size=1)

    async def ask(batch):
        if batch == [jobs[0]]:
            raise ServiceError("auth", "no")
        await asyncio.sleep(0.05)
        raise ZeroDivisionError

    source.ask = ask
    with pytest.raises(ZeroDivisionError):
        run(source, jobs)


def test_ctrl_c_writes_what_has_arrived():
    jobs = jobs_of(2000)
    source, journal = FakeSource(batch_size=1), Journal()
    arrived = 0

    async def ask(batch):
        nonlocal arrived
        await asyncio.sleep(0)
        arrived += 1
        if arrived == 100:
            signal.raise_signal(signal.SIGINT)
        return [answer(j) for j in batch], []

    source.ask = ask
    with pytest.raises(KeyboardInterrupt):
        run_async(harvest(source, jobs, journal))
    assert 100 <= len(journal.answers) == arrived < 2000
    assert len({a.job for a in journal.answers}) == arrived


def test_a_slow_writer_stops_the_asking():
    jobs = jobs_of(400)
    source = FakeSource(batch_size=1)
    ahead = []
    journal = Journal()

    def write(answers, failures):
        journal(answers, failures)
        ahead.append(len(source.asked) - len(journal.answers))

    run(source, jobs, write, concurrency=4)
    assert len(journal.answers) == 400
    assert max(ahead) <= 30  # what waits is bounded


def test_an_async_run_works_inside_a_running_loop():
    async def notebook():
        return run_async(asyncio.sleep(0.01, "done"))

    assert asyncio.run(notebook()) == "done"

    async def failing():
        raise InputError("no")

    async def notebook_failing():
        run_async(failing())

    with pytest.raises(InputError):
        asyncio.run(notebook_failing())


SOURCES = {"ncbi": NcbiSource, "mygene": MyGeneSource}


def wanted_of(genes, source):
    return {
        Job.of(g.authority, source, str(g.entrez_id)): Wanted(
            g.authority, g.species, g.symbol, g.entrez_id, g.ensembl_ids
        )
        for g in genes
    }


def harvested(name, server, wanted, settings=None, **given):
    journal = Journal()
    given = {"pace": 0.001, "per_second": 0, **given}

    async def main():
        async with SOURCES[name](wanted, settings, base_url=server.url, **given) as source:
            return await harvest(source, list(wanted), journal)

    return asyncio.run(main()), journal


@pytest.mark.parametrize("name", ["ncbi", "mygene"])
def test_a_thousand_genes_with_three_calls_in_ten_faulty(name):
    genes = fake_genes(1000)
    wanted = wanted_of(genes, name)
    kinds = (*QUICK, "error200")
    with FakeServer(genes, faults=Faults.random(0.3, seed=7, kinds=kinds)) as server:
        found, journal = harvested(name, server, wanted, batch_size=1, pace=1e-4)
    assert found.stopped is None and found.failures == ()
    assert once_each(journal, list(wanted)) and len(journal.answers) == 1000
    assert len(server.requests) == found.tally.calls <= 1.6 * 1000
    for got in journal.answers:
        number = got.job.gene_id.partition(":")[2]
        assert got.gene.entrez_id == int(number)
        assert got.descriptions[0].text == f"This gene encodes protein number {number}."


@pytest.mark.parametrize("name", ["ncbi", "mygene"])
@pytest.mark.parametrize("fault", ["503", "reset", "429", "html"])
@pytest.mark.parametrize("n_good", [0, 20])
def test_a_service_that_is_gone_is_left_after_five_calls(name, fault, n_good):
    genes = fake_genes(100)
    with FakeServer(genes, faults=Faults.after(n_good, fault)) as server:
        found, journal = harvested(name, server, wanted_of(genes, name), batch_size=1)
    assert found.stopped.kind == "gone"
    assert len(journal.answers) == n_good
    assert len(server.requests) <= n_good + ENOUGH


@pytest.mark.parametrize("fault", ["401", "403"])
def test_a_key_that_is_revoked_midway_stops_at_once(fault):
    genes = fake_genes(100)
    settings = ServiceSettings(api_key=Secret("canary-revoked-key"))
    with FakeServer(genes, faults=Faults.after(20, fault)) as server:
        found, journal = harvested("ncbi", server, wanted_of(genes, "ncbi"), settings, batch_size=1)
    assert found.stopped.kind == "auth"
    assert len(journal.answers) == 20
    assert len(server.requests) <= 20 + ENOUGH


def test_a_wrong_address_stops_at_once():
    genes = fake_genes(100)
    with FakeServer(genes, faults=Faults.always("404")) as server:
        found, _ = harvested("ncbi", server, wanted_of(genes, "ncbi"), batch_size=10)
    assert found.stopped.kind == "address" and len(server.requests) == 1


def test_five_thousand_genes_a_minute_and_many_more():
    genes = fake_genes(5000)
    with FakeServer(genes) as server:
        found, _ = harvested("ncbi", server, wanted_of(genes, "ncbi"))
    assert found.tally.done == 5000
    # At three requests a second, as without a key, less than a minute is enough for them.
    assert len(server.requests) < 3 * 60
