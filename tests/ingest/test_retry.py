"""When a service is asked again, how often a second, and when it is left."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from email.utils import formatdate

import pytest

from scvec.base.errors import AuthError, InputError, NetworkError, ResourceError
from scvec.base.settings import Secret
from scvec.ingest.sources.retry import ENOUGH, REFUSED, Caller, RateLimit, ServiceError, parse_retry_after


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


CHILD = """
import asyncio, json, sys
from pathlib import Path
from scvec.ingest.sources.retry import RateLimit

async def main(folder, per_second, n):
    limit, turns = RateLimit("x", per_second, folder=Path(folder)), []
    for _ in range(n):
        turns.append(await limit.turn())
    return turns
print(json.dumps(asyncio.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))))
"""


def most_in_a_second(turns):
    turns = sorted(turns)
    most, first = 0, 0
    for last, at in enumerate(turns):
        while turns[first] <= at - 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most


async def turns_of(limit, n):
    """Return when ``n`` tasks had their turns."""

    return await asyncio.gather(*(limit.turn() for _ in range(n)))


def test_two_processes_share_every_second(tmp_path):
    command = [sys.executable, "-c", CHILD, str(tmp_path), "10", "15"]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    turns = [t for child in children for t in json.loads(child.communicate(timeout=200)[0])]
    assert len(turns) == 30
    assert most_in_a_second(turns) <= 10
    assert len(json.loads((tmp_path / "rate-x.json").read_text())) == 10


@pytest.mark.parametrize(("per_second", "n"), [(20, 45), (0.8, 2)])
def test_tasks_share_every_second_and_waste_none(tmp_path, per_second, n):
    started = time.time()
    limit = RateLimit("x", per_second, folder=tmp_path)
    turns = asyncio.run(turns_of(limit, n - 1)) + asyncio.run(turns_of(limit, 1))  # two loops, one limit
    assert most_in_a_second(turns) <= max(1, per_second)
    assert 1.0 < max(turns) - started < 8.0


def test_threads_share_every_second(tmp_path):
    found = []

    def run():
        found.extend(asyncio.run(turns_of(RateLimit("x", 10, folder=tmp_path), 7)))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 21
    assert most_in_a_second(found) <= 10


def test_a_slower_process_does_not_make_a_faster_one_forget(tmp_path):
    fast, slow = RateLimit("x", 10, folder=tmp_path), RateLimit("x", 1, folder=tmp_path)
    turns = asyncio.run(turns_of(fast, 9)) + asyncio.run(turns_of(slow, 1))
    assert most_in_a_second(turns + asyncio.run(turns_of(fast, 10))) <= 10


def test_no_limit_means_no_file(tmp_path):
    asyncio.run(turns_of(RateLimit("x", 0, folder=tmp_path), 100))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", ["", "{", "[1, 2", "null", '["a"]', "[NaN]", "[[1]]", "[1e400]", "[9e15]", "[" * 10**5]
)
def test_a_damaged_file_or_one_of_the_future_is_as_good_as_none(tmp_path, content):
    (tmp_path / "rate-x.json").write_text(content)
    started = time.monotonic()
    asyncio.run(turns_of(RateLimit("x", 1, folder=tmp_path), 1))
    assert time.monotonic() - started < 0.9


def test_a_cancelled_turn_does_not_block_the_next(tmp_path):
    async def main():
        limit = RateLimit("x", 1, folder=tmp_path)
        await limit.turn()
        waiting = asyncio.create_task(limit.turn())
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.wait_for(limit.turn(), 10)

    asyncio.run(main())


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    limit = RateLimit("x", 3, folder=tmp_path / "file" / "state")
    with pytest.raises(ResourceError, match="SCVEC_STATE"):
        asyncio.run(limit.turn())


@pytest.mark.parametrize("per_second", [-1, float("nan")])
def test_a_rate_must_be_a_number(tmp_path, per_second):
    with pytest.raises(ValueError):
        RateLimit("x", per_second, folder=tmp_path)
