"""A harvest that ends early: by the service, the budget, the writer, a bug, or the user."""

import asyncio
import signal

import pytest
from harvest_parts import FakeSource, Journal, answer, jobs_of, once_each, run

from scvec.errors import InputError
from scvec.ingest.sources.retry import ENOUGH, BudgetSpentError, ServiceError
from scvec.ingest.sources.run import harvest, run_async


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
