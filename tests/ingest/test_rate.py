"""The shared rate limit: no sliding second holds more, over tasks, threads and processes."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from scvec.errors import ResourceError
from scvec.ingest.sources.retry import RateLimit

CHILD = """
import asyncio, json, sys
from pathlib import Path
from scvec.ingest.sources.retry import RateLimit

clock = [1e9]
async def sleep(seconds):
    clock[0] += seconds
async def main(folder, per_second, n):
    limit = RateLimit("x", per_second, folder=Path(folder), now=lambda: clock[0], sleep=sleep)
    return [await limit.turn() for _ in range(n)]
print(json.dumps(asyncio.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))))
"""


class Clock:
    def __init__(self, start=1e9):
        self.time = start

    def now(self):
        return self.time

    async def sleep(self, seconds):
        self.time += seconds


def most_in_a_second(turns):
    turns = sorted(turns)
    most, first = 0, 0
    for last, at in enumerate(turns):
        while turns[first] <= at - 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most


def limit_on(tmp_path, per_second, clock):
    return RateLimit("x", per_second, folder=tmp_path, now=clock.now, sleep=clock.sleep)


async def turns_of(limit, n):
    return [await limit.turn() for _ in range(n)]


@pytest.mark.parametrize("n", [600, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("per_second", [3, 10])
def test_two_processes_share_every_second(tmp_path, per_second, n):
    command = [sys.executable, "-c", CHILD, str(tmp_path), str(per_second), str(n // 2)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    turns = [t for child in children for t in json.loads(child.communicate(timeout=200)[0])]
    assert len(turns) == n
    assert most_in_a_second(turns) == per_second
    # Nothing is wasted either.
    assert max(turns) - min(turns) < 1.06 * n / per_second


@pytest.mark.parametrize("per_second", [0.5, 1, 3, 10])
def test_tasks_of_one_process_share_every_second(tmp_path, per_second):
    clock = Clock()
    limit = limit_on(tmp_path, per_second, clock)

    async def main():
        return await asyncio.gather(*(limit.turn() for _ in range(400)))

    turns = asyncio.run(main())
    assert most_in_a_second(turns) == max(1, per_second)
    if per_second < 1:
        assert min(b - a for a, b in zip(sorted(turns), sorted(turns)[1:], strict=False)) >= 2


def test_threads_share_every_second(tmp_path):
    found = []

    def run():
        clock = Clock()
        found.extend(asyncio.run(turns_of(limit_on(tmp_path, 3, clock), 60)))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 180
    assert most_in_a_second(found) == 3


def test_one_limit_serves_loops_one_after_the_other(tmp_path):
    limit = limit_on(tmp_path, 3, Clock())
    turns = asyncio.run(turns_of(limit, 5)) + asyncio.run(turns_of(limit, 5))
    assert most_in_a_second(turns) == 3


def test_a_slower_process_does_not_make_a_faster_one_forget(tmp_path):
    clock = Clock()
    fast, slow = limit_on(tmp_path, 10, clock), limit_on(tmp_path, 1, clock)

    async def main():
        turns = await turns_of(fast, 9)
        turns += await turns_of(slow, 1)
        return turns + await turns_of(fast, 20)

    assert most_in_a_second(asyncio.run(main())) <= 10


def test_turns_are_spaced_by_the_real_clock_too(tmp_path):
    limit = RateLimit("x", 20, folder=tmp_path)
    started = time.monotonic()
    asyncio.run(turns_of(limit, 25))
    assert time.monotonic() - started > 1.0


def test_no_limit_means_no_file(tmp_path):
    asyncio.run(turns_of(limit_on(tmp_path, 0, Clock()), 100))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", ["", "{", "[1, 2", "null", '["a"]', "[NaN]", "[[1]]", "[1e400]", "[" * 10**5]
)
def test_a_damaged_file_is_as_good_as_none(tmp_path, content):
    (tmp_path / "rate-x.json").write_text(content)
    assert asyncio.run(turns_of(limit_on(tmp_path, 3, Clock(5.0)), 1)) == [5.0]


def test_a_clock_that_was_set_back_does_not_stop_everything(tmp_path):
    # Written an hour ahead, by a clock that was an hour ahead.
    ahead = time.time() + 3600
    path = tmp_path / "rate-x.json"
    path.write_text(json.dumps([ahead, ahead, ahead]))
    os.utime(path, (ahead, ahead))
    waits = []

    async def sleep(seconds):
        waits.append(seconds)
        await asyncio.sleep(seconds)

    asyncio.run(turns_of(RateLimit("x", 3, folder=tmp_path, sleep=sleep), 2))
    assert sum(waits) < 5


def test_a_long_queue_is_not_taken_for_a_clock_set_back(tmp_path):
    clock = Clock()
    (tmp_path / "rate-x.json").write_text(json.dumps([clock.time + 200] * 3))
    assert asyncio.run(turns_of(limit_on(tmp_path, 3, clock), 1))[0] > 1e9 + 200


def test_a_cancelled_turn_does_not_block_the_next(tmp_path):
    async def main():
        limit = RateLimit("x", 1, folder=tmp_path)
        await limit.turn()
        waiting = asyncio.create_task(limit.turn())
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        limit._sleep = Clock().sleep  # do not wait for it in truth
        limit._now = lambda: time.time() + 100
        return await limit.turn()

    assert asyncio.run(main()) > time.time() + 50


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    limit = RateLimit("x", 3, folder=tmp_path / "file" / "state")
    with pytest.raises(ResourceError, match="SCVEC_STATE"):
        asyncio.run(limit.turn())


@pytest.mark.parametrize("per_second", [-1, float("nan")])
def test_a_rate_must_be_a_number(tmp_path, per_second):
    with pytest.raises(ValueError):
        RateLimit("x", per_second, folder=tmp_path)
