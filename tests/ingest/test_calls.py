"""When a call is made again, when it waits, and when the service is given up."""

import asyncio
import time
from email.utils import formatdate

import pytest

from scvec.errors import AuthError, InputError, NetworkError
from scvec.ingest.sources.retry import ENOUGH, REFUSED, Caller, ServiceError, parse_retry_after
from scvec.secrets import Secret


class Service:
    """Fails as a list says: an error, or None for an answer; the last entry for ever."""

    def __init__(self, *outcomes):
        self.outcomes = outcomes
        self.times = []
        self.at_once = 0
        self.most_at_once = 0

    async def __call__(self):
        outcome = self.outcomes[min(len(self.times), len(self.outcomes) - 1)]
        self.times.append(time.monotonic())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0.001)
        finally:
            self.at_once -= 1
        if outcome is not None:
            raise outcome
        return "answer"


def transient(**given):
    return ServiceError("transient", "no luck", **given)


def call(service, **given):
    caller = Caller("test", **{"pace": 0.001, "seed": 1, **given})
    return asyncio.run(caller.call(service)), caller


def failing(service, **given):
    caller = Caller("test", **{"pace": 0.001, "seed": 1, **given})
    with pytest.raises(ServiceError) as caught:
        asyncio.run(caller.call(service))
    return caught.value, caller


def test_a_passing_error_is_asked_again():
    answer, caller = call(Service(transient(), transient(), None))
    assert answer == "answer"
    assert (caller.n_calls, caller.n_answered) == (3, 1)


@pytest.mark.parametrize("kind", ["rejected", "unfit", "auth", "quota", "gone", "address"])
def test_no_other_error_is_asked_again(kind):
    service = Service(ServiceError(kind, "no"))
    error, caller = failing(service)
    assert error.kind == kind
    assert len(service.times) == caller.n_calls == 1


@pytest.mark.parametrize("kind", ["auth", "quota", "gone", "address"])
def test_after_an_end_no_call_is_made(kind):
    async def main():
        caller, service = Caller("test"), Service(ServiceError(kind, "no"))
        for _ in range(3):
            with pytest.raises(ServiceError):
                await caller.call(service)
        return len(service.times)

    assert asyncio.run(main()) == 1


@pytest.mark.parametrize("kind", ["rejected", "unfit"])
def test_a_service_that_refuses_all_is_left(kind):
    async def main():
        caller, service = Caller("test", pace=0.001), Service(None, ServiceError(kind, "no"))
        ends = await asyncio.gather(*(caller.call(service) for _ in range(100)), return_exceptions=True)
        return caller, service, ends

    caller, service, ends = asyncio.run(main())
    assert len(service.times) <= 1 + REFUSED + service.most_at_once
    assert caller.hopeless().kind == kind and "in a row" in str(ends[-1])


def test_refusals_between_answers_are_no_end():
    async def main():
        caller = Caller("test", pace=0.001)
        service = Service(*[ServiceError("rejected", "no"), None] * 50)
        await asyncio.gather(*(caller.call(service) for _ in range(100)), return_exceptions=True)
        return caller, service

    caller, service = asyncio.run(main())
    assert caller.hopeless() is None and len(service.times) == 100


def test_an_unfit_answer_is_asked_for_as_often_as_is_said():
    service = Service(*[ServiceError("unfit", "no")] * 4, None)

    async def main(times):
        return await Caller("test", pace=0.001).call(service, unfit=times)

    with pytest.raises(ServiceError):
        asyncio.run(main(4))
    assert asyncio.run(main(4)) == "answer"
    assert len(service.times) == 5


def test_a_service_that_is_gone_gets_few_calls():
    service = Service(transient())
    error, caller = failing(service)
    assert error.kind == "gone"
    assert caller.n_calls == ENOUGH


@pytest.mark.parametrize("n_tasks", [1, 4, 20])
def test_tasks_together_make_as_few_calls_to_one_that_is_gone(n_tasks):
    async def main():
        caller, service = Caller("test", pace=0.001), Service(transient())
        outcomes = await asyncio.gather(
            *(caller.call(service) for _ in range(n_tasks)), return_exceptions=True
        )
        assert {o.kind for o in outcomes} == {"gone"}
        return service

    service = asyncio.run(main())
    assert len(service.times) == ENOUGH
    assert service.most_at_once == 1


def test_a_service_that_dies_gets_few_calls_more():
    async def main():
        caller, service = Caller("test", pace=0.001), Service(*[None] * 40, transient())
        await asyncio.gather(*(caller.call(service) for _ in range(100)), return_exceptions=True)
        return service

    # Those that were under way when it died are no more than ran together.
    service = asyncio.run(main())
    assert len(service.times) <= 40 + service.most_at_once + ENOUGH


def test_three_failures_in_ten_are_not_an_end():
    import random

    rng = random.Random(5)
    outcomes = [transient() if rng.random() < 0.3 else None for _ in range(3000)]

    async def main():
        caller, service = Caller("test", pace=1e-5, seed=1), Service(*outcomes)
        found = await asyncio.gather(*(caller.call(service) for _ in range(1000)), return_exceptions=True)
        return found, caller

    found, caller = asyncio.run(main())
    assert found.count("answer") == 1000
    assert caller.n_calls <= 1600


def test_the_wait_that_is_asked_for_is_kept():
    service = Service(transient(retry_after=0.3), None)
    call(service)
    assert service.times[1] - service.times[0] >= 0.3


def test_the_other_tasks_keep_it_too():
    async def main():
        caller = Caller("test", pace=0.001, attempts=1)
        service = Service(None, transient(retry_after=0.3), None)
        await caller.call(service)
        with pytest.raises(ServiceError):
            await caller.call(service)
        await asyncio.gather(*(caller.call(service) for _ in range(3)))
        return service

    service = asyncio.run(main())
    assert service.times[2] - service.times[1] >= 0.3


def test_a_service_that_asks_for_an_hour_is_not_waited_for():
    error, caller = failing(Service(transient(retry_after=3600)))
    assert error.kind == "gone" and "3600 s" in error.reason
    assert caller.n_calls == 1


def test_silence_ends_too():
    async def main():
        caller = Caller("test", patience=0.05)

        async def silent():
            await asyncio.sleep(60)

        task = asyncio.create_task(caller.call(silent))
        await asyncio.sleep(0.1)
        found = caller.hopeless()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return found

    found = asyncio.run(main())
    assert found is not None and found.kind == "gone"


@pytest.mark.parametrize("asked_for", [None, 30.0])
def test_waits_of_our_own_are_part_of_the_silence_and_those_asked_for_are_not(asked_for):
    async def main():
        caller = Caller("test", patience=0.05)
        task = asyncio.create_task(caller.call(Service(transient(retry_after=asked_for))))
        await asyncio.sleep(0.1)
        caller._not_before += 30
        found = caller.hopeless()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return found

    assert (asyncio.run(main()) is None) == (asked_for is not None)


def test_a_service_that_answers_is_not_hopeless():
    async def main():
        caller = Caller("test", patience=0.0)
        await caller.call(Service(None))
        return caller.hopeless()

    assert asyncio.run(main()) is None


def test_a_cancelled_call_leaves_room_for_others():
    async def main():
        caller = Caller("test", pace=0.001)

        async def silent():
            await asyncio.sleep(60)

        task = asyncio.create_task(caller.call(silent))
        await asyncio.sleep(0.01)
        waiting = asyncio.create_task(caller.call(Service(None)))
        await asyncio.sleep(0.01)
        assert not waiting.done()  # one at a time until the first answer
        task.cancel()
        return await asyncio.wait_for(waiting, 60)

    assert asyncio.run(main()) == "answer"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"RETRY-AFTER-MS": "1500"}, 1.5),
        ({"Retry-After-Ms": "200", "Retry-After": "60"}, 0.2),
        ({"Retry-After-Ms": "soon", "Retry-After": "6"}, 6.0),
        ({"Retry-After": "-3"}, 0.0),
        ({"Retry-After": formatdate(1000, usegmt=True)}, 40.0),
        ({"Retry-After": formatdate(900, usegmt=True)}, 0.0),
        ({"Retry-After": "Thu, 01 Jan 1970 00:16:40 -0000"}, 40.0),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "tomorrow"}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "Thu, 99 Foo 99999 99:99:99 GMT"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers, seconds):
    assert parse_retry_after(headers, now=960.0) == seconds


def test_errors_become_those_that_users_see():
    found = {
        kind: type(ServiceError(kind, "no").translated("ncbi"))
        for kind in ("auth", "quota", "gone", "transient", "rejected", "unfit", "address")
    }
    assert found == {
        "auth": AuthError,
        "quota": AuthError,
        "gone": NetworkError,
        "transient": NetworkError,
        "rejected": InputError,
        "unfit": InputError,
        "address": InputError,
    }


def test_messages_hold_no_key():
    Secret("canary-0123456789")
    error = ServiceError("auth", "refused canary-0123456789")
    assert "canary" not in f"{error} {error!r} {error.reason} {error.translated('x')}"
