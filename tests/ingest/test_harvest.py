"""A harvest keeps one outcome of every job, whatever the source answers."""

import pytest
from harvest_parts import FakeSource, answer, jobs_of, once_each, run

from scvec.errors import InputError
from scvec.ingest.sources.retry import ServiceError
from scvec.ingest.sources.run import ROUNDS
from scvec.records import Answer, Failure, Job
from scvec.types import Gene


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
